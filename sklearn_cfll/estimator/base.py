"""Base class of the regressor and the classifier: check, plan, run, solve, keep."""

from __future__ import annotations

import contextlib
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from .._compat import CallbackSupportMixin, fit_context
from .._warnings import user_level
from ..backbones.recipe import input_shape_of
from ..data.blocks import is_stream
from ..final_solve.refit import Refit
from ..linalg import RIDGES
from ..training.batches import RowsDataset
from ..training.distribution import refuse_workers, told_to_all, workers_of_fit
from ..training.progress import Progress
from ..training.torch_settings import resolve_device, use_threads
from .attributes import FittedAttributes
from .checks import Checked, check_data, check_inputs, check_sample_shape
from .defaults import DEFAULTS, Defaults
from .effects import warn_of_fixed_features
from .few_rows import few_rows
from .fitted import FittedModel, new_offset
from .incremental import IncrementalMixin
from .inputs import out_of_range
from .keeping import PreviousFitKept
from .known_rows import KnownRows
from .left_out import honest_outputs
from .nets import new_net, standardise_inside
from .parameters import CONSTRAINTS, CheckedParameters
from .plan import Plan, make_plan, prediction_batch
from .run import Run
from .scaled_columns import may_scale_columns, scale_columns
from .shares import Shares, check_one_model
from .split import Parts, parts_of
from .streaming import StreamingMixin
from .tables import encodes_columns, with_learned_columns
from .targets import TargetScale
from .validation_scale import warn_of_useless_validation


class BaseCFLL(
    PreviousFitKept,
    IncrementalMixin,
    StreamingMixin,
    FittedAttributes,
    CheckedParameters,
    CallbackSupportMixin,
    BaseEstimator,
    metaclass=ABCMeta,
):
    """From parameters and data to a fitted model: checks, training, the final solve."""

    _decision_threshold = 0.0  # threshold on raw outputs
    defaults: ClassVar[Defaults] = DEFAULTS
    _known_rows: KnownRows

    _parameter_constraints: ClassVar[dict[str, Any]] = CONSTRAINTS

    # -- hooks for the two estimators -----------------------------------------------

    @abstractmethod
    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        """Check y and convert it to float targets of shape (n, ...)."""

    def _fit_weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        """Sample weights, including class weights."""
        return sample_weight

    def _tame_targets(self, checked: Checked) -> Checked:
        """Limit the influence of extreme training targets."""
        return checked

    def _tame_held_out(self, checked: Checked) -> Checked:
        """Limit the influence of extreme held-out targets on the choice of epoch and ridge."""
        return checked

    def _tame_added(self, checked: Checked) -> Checked:
        """Limit the influence of extreme targets in rows that are added to a fitted model."""
        return checked

    def _fit_scale(self, rows: np.ndarray, sample_weight: np.ndarray | None) -> TargetScale:
        return TargetScale.identity(rows.shape[-1])

    def _n_network_outputs(self, y: np.ndarray) -> int | None:
        """Number of outputs of a complete network for these targets, None for fields."""
        return None if y.ndim > 2 else (*y.shape, 1)[1]

    def _stratify(self, y: np.ndarray) -> np.ndarray | None:
        return None

    def _takes_linear_part(self, plan: Plan, parts: Parts) -> bool:
        """Whether the network is fitted to the residuals of a ridge regression."""
        return False

    def _calibrated(self, model: FittedModel, run: Run, parts: Parts, solved: Refit) -> FittedModel:
        """Add what an estimator learns from the held-out rows after the final solve."""
        return model

    @abstractmethod
    def _out_of_fold_score(
        self, parts: Parts, solved: Refit, sample_weight: np.ndarray | None
    ) -> float:
        """The score to be expected of new rows."""

    # -- fitting --------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        X_val: Any = None,
        y_val: Any = None,
        groups: Any = None,
    ) -> Any:
        """Train the backbone by gradient descent and the last layer in closed form.

        Parameters
        ----------
        X : array-like, sparse matrix or torch Dataset of shape (n_samples, n_features), or dict
            If its columns are encoded, a table may be a frame or an array with gaps, categories and
            text. With a ``backbone``, samples may have any shape (images, fields). A numpy memory
            map or a ``torch.utils.data.Dataset`` of (inputs, target) pairs is read batch by batch;
            a third part of its items is the sample weight.
            A :class:`~sklearn_cfll.data.ParquetDataset`, a DataLoader or an IterableDataset of such
            pairs is read in order, at constant memory: a first pass draws a sample, which decides
            the scales of columns and targets, and whose held-out rows choose the epoch. A dict of
            arrays of n_samples rows each is passed as keyword arguments to the forward of the
            backbone; a hyperparameter search, which selects rows, needs a
            ``skorch.helper.SliceDict`` instead.
            Integers stay integers (``torch.int64``) if the backbone does not accept floats, for
            example because it is an ``nn.Embedding``.
        y : array-like of shape (n_samples,) or (n_samples, ...)
            May be omitted if X is a Dataset that holds it. In regression, targets that lie 100
            times as far from the median as all others are clipped to the range of the others if
            they are at most 2% of the rows, with a warning that names them. If they are more, up to
            a tenth of the rows, they are only named.
        sample_weight : array-like of shape (n_samples,), default=None
            A weight is a number of repetitions of the row: in the solve and in the gradient.
        X_val, y_val : array-like, default=None
            Validation set to use instead of ``validation_fraction``. Earlier steps of a pipeline do
            not transform it unless ``transform_input`` is set; a warning is issued if it is on
            another scale.
        groups : array-like of shape (n_samples,), default=None
            Labels of groups, such as persons of whom there are several rows. Rows of a group are
            held out together, so that epoch, ridge and intervals are right for rows of new groups.

        Returns
        -------
        self
            The fitted estimator. If a fit fails, the previous fitted state is kept. An interrupt
            (Ctrl-C) ends training with a warning and keeps the model trained so far; an interrupt
            during the preliminary runs that determine the column scales aborts the fit.

        Raises
        ------
        ValueError
            If the input cannot be fitted; nearly always raised before training starts.
        FloatingPointError
            If training diverges; raised at that batch.
        """
        if is_stream(X):
            return self._fit_stream(X, y, sample_weight, X_val, y_val, groups)
        with self._previous_fit_kept() as (settings, before):
            if self.warm_start and self.__sklearn_is_fitted__():
                refuse_workers("A warm start")
                again = (X, y, sample_weight, X_val, y_val, groups)
                return self._fit_again(*again, settings, before)
            with told_to_all():
                device = resolve_device(self.device)
            workers = settings.enter_context(workers_of_fit(device))
            shown = self.verbose == 1 and workers.rank == 0
            progress = settings.enter_context(Progress(shown=shown))
            progress.stage("checks")
            shares = Shares(workers, self, X, y, sample_weight, groups)
            checked = check_data(self, *shares.known, plan=None, min_samples=2)
            checked = with_learned_columns(self, self._tame_targets(checked))
            progress.stage("columns")
            plan = make_plan(self, checked, workers)
            shares.add(plan, checked)
            parts = shares(parts_of(self, plan, checked, *shares.validation(X_val, y_val)))
            net = new_net(plan, self.optimizer, self.compile, self.memory)
            run = Run(self, plan, net)
            settings.enter_context(net.followed(progress))
            task = self._init_callback_context(max_subtasks=run.epochs)
            settings.enter_context(use_threads(run.n_threads(parts.train.n_joint)))
            standardise_inside(plan.network, net, parts.before)
            offset = None
            if self._takes_linear_part(plan, parts):
                offset = new_offset(plan).fit(parts.before)
            if not run.trains:
                warn_of_fixed_features(self, holds_out=parts.valid is not None)
            rest = shares(parts.less(offset), offset)
            if may_scale_columns(run, rest):
                progress.stage("scales of columns")
                scale_columns(run, rest, offset)
            run.configure(rest.train.n_joint, run.epochs)
            settings.enter_context(net.trained_by(workers))
            unsolved = FittedModel(plan, net.module_, offset)
            as_fitted = self._as_fitted(run, unsolved)
            callbacks = run.callbacks(rest, task, (X, y), as_fitted)
            progress.stage("epochs", run.epochs * len(rest.train.own))
            with run.explained(rest, X):
                net.run(rest.train.own, rest.watched(self.defaults.most_watched), callbacks)
            if X_val is not None and run.best_iteration == 1 and parts.valid is not None:
                found = unsolved.raw(parts.valid)
                warn_of_useless_validation(found, len(run.history), parts.train, parts.valid)
            if not self.warm_start:
                net.reset_optimizer()  # a later partial_fit starts without its state
            self._finish(run, parts, rest, offset, checked)
            check_one_model(workers, self._model)
            return self._end(task, X, y, as_fitted)

    def _finish(self, run: Run, parts: Parts, rest: Parts, offset: Any, checked: Checked) -> None:
        """Solve for the last layer, and set the fitted attributes."""
        run.net.progress.stage("final solve")
        run.net.agree()  # a callback may have ended training before another worker's had run
        solved, plan = run.solve(parts, rest, offset), run.plan
        model = FittedModel(
            plan,
            run.net.module_,
            solved.offset,
            solved.ridge,
            plan.unscale_variance(solved.noise_variance),
            # Rows outside the training set from which the noise level is estimated.
            0.0 if solved.calibration is None else float(solved.calibration.n_samples),
            local_part=solved.local_part,
        )
        run.net.progress.stage("importances and scores")
        judged = parts.judged(self.defaults.most_judged)
        model = replace(
            self._calibrated(model, run, judged, solved),
            influences=model.influences_of(parts.rows),
        )
        if parts.folds is not None:
            outputs = honest_outputs(model, parts, solved, checked)
            score = self._out_of_fold_score(judged, solved, judged.own_weight)
            model = replace(model, out_of_fold=(outputs, score))
        path = None
        if solved.path_errors is not None:
            errors = plan.unscale_variance(solved.path_errors).mean(1)
            path = {"ridge": np.array(RIDGES), "error": errors}
        self._set_fitted(run, model, KnownRows.after_fit(parts.rows, parts.folds), parts, path)

    def _set_fitted(
        self, run: Run, model: FittedModel, known_rows: KnownRows, parts: Parts, path: Any = None
    ) -> None:
        """Keep what a call has left."""
        first = run.net.first_epoch_
        self._model, self._net, self._known_rows = model, run.net, known_rows
        self.history_ = [*self.__dict__.get("history_", ())][:first] + run.history
        self.n_iter_, self.best_iteration_ = len(self.history_), run.best_iteration
        self.resolved_ = run.resolved(parts, model)
        self.__dict__.pop("ridge_path_", None)  # from an earlier fit
        if path is not None:
            self.ridge_path_ = path

    def _as_fitted(self, run: Run, model: FittedModel) -> Callable[[], dict[str, Any]]:
        """A function that returns the fitted attributes as if training had stopped here."""

        def attributes() -> dict[str, Any]:
            public = {k: v for k, v in self.__dict__.items() if k.endswith("_")}
            return public | {"_model": model, "_net": run.net, "_known_rows": KnownRows()}

        return attributes

    def _end(self, task: Any, X: Any, y: Any, as_fitted: Callable[[], dict[str, Any]]) -> Any:
        """Tell scikit-learn's callbacks that the fit has ended."""
        if task is not None:
            task.call_on_fit_task_end(estimator=self, X=X, y=y, reconstruction_attributes=as_fitted)
        return self

    # -- prediction -----------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Raw predictions (n, positions..., k) in y's units."""
        if is_stream(X):
            return self._outputs_of_stream(X)
        outputs = few_rows(self, X)
        if outputs is None:
            with self._rows_to_predict(X) as rows:
                outputs = self._model.outputs(rows)
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        if not finite.all():
            warnings.warn(
                f"{(~finite).sum()} of {len(finite)} predictions are not finite, the first in row "
                f"{finite.argmin()}: the network overflows for these values of X.",
                RuntimeWarning,
                stacklevel=user_level(),
            )
        return outputs

    @contextlib.contextmanager
    def _rows_to_predict(self, X: Any) -> Iterator[RowsDataset]:
        """Check the rows, and raise an informative error if the backbone cannot take them."""
        check_is_fitted(self)
        plan, lazy = self._model.plan, isinstance(X, np.memmap)
        fitted_shape = plan.network.sample_shape
        check_sample_shape(X, fitted_shape)
        with self._torch_settings() as settings:
            rows = plan.rows(check_inputs(self, X, plan, reader=plan.reader), lazy)
            settings.enter_context(use_threads(self._n_threads_to_predict(len(rows))))
            try:
                yield RowsDataset(rows)
            except IndexError as error:
                raise out_of_range(self.backbone_, X) from error
            except RuntimeError as error:
                shape = input_shape_of(rows.take(slice(0, 1)))
                if shape == fitted_shape:
                    raise
                raise ValueError(
                    f"X has samples of shape {shape}, which the backbone cannot take; it "
                    f"was fitted on samples of shape {fitted_shape}."
                ) from error

    def _n_threads_to_predict(self, n_rows: int) -> int:
        network = self._model.plan.network
        at_once = min(n_rows, prediction_batch(network))
        return self.defaults.n_threads(self.n_threads, at_once, network.product_size)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        # Not `string`: scikit-learn's checks pass a dict in a cell to estimators with that tag.
        tags.input_tags.allow_nan = tags.input_tags.categorical = encodes_columns(self)
        return tags
