"""Base class of the regressor and the classifier: checks, training and fitted attributes."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, is_regressor
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._compat import CallbackSupportMixin, fit_context
from ..backbones.mlp import MLPBackbone, SideBySide
from ..backbones.recipe import input_shape_of
from ..backbones.splitting import CannotTakeInputs, WithLastLayer, join_last_layer
from ..columns.encoder import Encoded
from ..columns.scaling import RobustStandardize, Standardize
from ..columns.statistics import input_statistics
from ..final_solve.offset import WithOffset, less_offset
from ..final_solve.refit import (
    Refit,
    calibrate,
    mean_squared_residuals,
    refit_last_layer,
)
from ..heads.member import as_linear
from ..heads.memory import memory_of
from ..linalg import RIDGES
from ..training.batches import RowsDataset
from ..training.callbacks import BestEpoch, EpochBar, TaskBridge
from ..training.column_scales import (
    FEWEST_ROWS,
    FIRST_RUN_STEPS,
    column_scales,
    mean_squared_slopes,
    slopes,
)
from ..training.net import CFLLNet
from ..training.optimizers import optimizer_class
from ..training.schedules import mean_factor
from ..training.seeding import draw_seed
from ..training.torch_settings import default_modes, resolve_device, use_threads
from .arrays import told_of
from .checks import (
    Checked,
    Parts,
    Split,
    check_data,
    check_inputs,
    check_sample_shape,
    check_sizes,
    needs_float64,
    seen_as_given,
)
from .defaults import DEFAULTS, Defaults
from .effects import warn_of_fixed_features, warn_without_effect
from .going_on import GoingOnMixin, total_weight
from .inputs import out_of_range
from .parameters import CONSTRAINTS, refuse_mistaken_kinds
from .plan import Plan, fixed_parameters, prediction_batch
from .state import StateMixin
from .targets import TargetScale
from .unusable_features import unusable_features, warn_of_equal_features
from .validation_scale import warn_of_other_scale, warn_of_useless_validation


class BaseCFLL(GoingOnMixin, StateMixin, CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta):
    """Training, prediction of raw outputs, adaptation and persistence."""

    _decision_threshold = 0.0  # threshold on raw outputs
    defaults: ClassVar[Defaults] = DEFAULTS
    _plan: Plan
    _offset: Any  # LinearOffset, or None
    net_: CFLLNet
    device_: torch.device
    n_outputs_: int
    final_ridge_: float
    noise_variance_: np.ndarray

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

    def _noise_changed(self, before: np.ndarray, after: np.ndarray) -> None:
        """Update attributes after a change of ``noise_variance_``."""

    def _finish(self, parts: Parts, solved: Refit) -> None:
        """Set the attributes specific to an estimator after the final solve."""

    # -- fitting --------------------------------------------------------------------

    def _validate_params(self) -> None:
        refuse_mistaken_kinds(self)
        super()._validate_params()

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> Any:
        """Train the backbone by gradient descent and the last layer in closed form.

        Parameters
        ----------
        X : array-like, sparse matrix or torch Dataset of shape (n_samples, n_features), or dict
            With a ``backbone``, samples may have any shape (images, fields). A numpy memory map or
            a ``torch.utils.data.Dataset`` of (inputs, target) pairs is read batch by batch. A dict
            of arrays of n_samples rows each is passed as keyword arguments to the forward of the
            backbone; a hyperparameter search, which selects rows, needs a
            ``skorch.helper.SliceDict`` instead. Integers stay integers (``torch.int64``) if the
            backbone does not accept floats, for example because it is an ``nn.Embedding``.
        y : array-like of shape (n_samples,) or (n_samples, ...)
            May be omitted if X is a Dataset that holds it. In regression, targets that lie 100
            times as far from the median as all others are clipped to the range of the others if
            they are at most 2% of the rows, with a warning that names them. If they are more, up to
            a tenth of the rows, they are only named.
        sample_weight : array-like of shape (n_samples,), default=None
            A weight is a number of repetitions; it applies to the solve and to the gradient.
        X_val, y_val : optional
            Validation set to use instead of ``validation_fraction``. Earlier steps of a pipeline do
            not transform it unless ``transform_input`` is set; a warning is issued if it is on
            another scale.

        Returns
        -------
        self
            The fitted estimator. If a fit fails, the previous fitted state is kept. An interrupt
            (Ctrl-C) ends training with a warning and keeps the model trained so far; an interrupt
            during the preliminary runs that determine the column scales aborts the fit.

        Raises
        ------
        ValueError
            If the input cannot be fitted; raised before any work starts.
        FloatingPointError
            If training diverges; raised at that batch.
        """
        with self._previous_fit_kept() as settings:
            warm = self.warm_start and self.__sklearn_is_fitted__()
            if warm:
                self._follow_parameters()
            checked = check_data(self, X, y, sample_weight, reset=not warm, min_samples=2)
            checked = self._tame_targets(checked)
            if warm:
                self._plan.check_targets(checked)
                checked = self._tame_added(checked)
            given = X_val is not None
            holds_out = not given and self._holds_out(len(checked.y))
            warn_without_effect(self, holds_out=holds_out, given=given)
            plan = self._plan if warm else self._make_plan(checked)
            split = self._split(checked, plan.seed) if holds_out else None
            epochs = self._epochs()
            task = self._init_callback_context(max_subtasks=epochs)
            parts = self._parts(plan, checked, split, X_val, y_val)
            settings.enter_context(use_threads(self._n_threads_to_train(len(parts.train))))
            few = warm and total_weight(parts.rows) < self._n_known
            if not warm:
                self._start(plan, parts.train)
                self._offset = None
                if self._takes_linear_part(parts):
                    self._offset = plan.make_offset().fit(parts.train)
            rest = self._less_offset(parts)
            if few:
                self._add_rows(checked, rest, epochs, task, X, y)
            elif warm:
                self._forget_held_out(rest)
            else:
                if self.net_.optimizer_ is None:
                    warn_of_fixed_features(self, holds_out=parts.valid is not None)
                if self._scales_columns(parts):
                    self._scale_columns(rest.train)
            if not few:
                self._configure(len(parts.train), epochs)
                self._train(rest, task, X, y, warm)
            if given and self.best_iteration_ == 1 and parts.valid is not None:
                found = self._raw_outputs(parts.valid)
                warn_of_useless_validation(found, self.n_iter_, parts.train, parts.valid)
            if not self.warm_start:
                self.net_.reset_optimizer()  # a later partial_fit starts without its state
            if not few:
                self._solve(parts)
                self._n_known = total_weight(parts.rows)
                assert parts.rows.targets is not None
                self._target_reach = float(parts.rows.targets.abs().max())
                self._remember_rows(parts.rows, anew=True)
                self._slope_squares = self._measure_slopes(parts.rows)
            self._is_stream = False  # scales and ridge are fixed from now on
            self._columns_seen = self._ridge_errors = None
            if task is not None:
                task.call_on_fit_task_end(
                    estimator=self, X=X, y=y, reconstruction_attributes=self._fitted_now
                )
        return self

    def _make_plan(self, checked: Checked) -> Plan:
        device, recipe = resolve_device(self.device), self.backbone
        if recipe is None:
            recipe = MLPBackbone(
                self.hidden_layer_sizes, self.activation, self.dropout, self.n_members
            )
        encoder = self.defaults.column_encoder(self.columns, recipe)
        encoded = encoder is not None
        as_given = seen_as_given(
            checked,
            inputs=not encoded or device.type == "mps",
            targets=not getattr(self, "normalize_y", True),
        )
        coarse = self.precision == "auto" and needs_float64(checked, encoded, as_given)
        dtype = self.defaults.dtype(self.precision, checked.y.shape, device, coarse)
        check_sizes(as_given, dtype)

        seed = draw_seed(self.random_state)

        def make(dtype: torch.dtype) -> Plan:
            weight = checked.mean_weight
            return Plan.make(
                recipe,
                encoder,
                checked,
                n_outputs=self._n_network_outputs(checked.y),
                seed=seed,
                device=device,
                dtype=dtype,
                mean_weight=weight,
            )

        dtypes, failures = [dtype], []
        if self.precision == "auto" and device.type != "mps":  # its forward may cast to the other
            dtypes.append(torch.float32 if dtype == torch.float64 else torch.float64)
        for dtype in dtypes:
            try:
                plan = make(dtype)
                break
            except CannotTakeInputs as error:
                failures.append(error)
        else:
            raise failures[0]
        plan.parameters = fixed_parameters(self, plan.recipe)
        plan.scale = self._fit_scale(plan.layout.to_rows(checked.y), checked.sample_weight)
        self._plan = plan
        return plan

    def _takes_linear_part(self, parts: Parts) -> bool:
        """Whether the network is fitted to the residuals of a ridge regression."""
        return False

    def _less_offset(self, parts: Parts) -> Parts:
        """The same rows, with the residuals of the offset as targets."""
        if self._offset is None:
            return parts
        whole, train, valid = parts
        train = less_offset(train, self._offset)
        valid = None if valid is None else less_offset(valid, self._offset)
        return Parts(less_offset(whole, self._offset), train, valid)

    def _start(self, plan: Plan, train: RowsDataset) -> None:
        """Create an untrained net whose inputs are standardised by the training rows."""
        for part in plan.backbone.module.modules():
            if isinstance(part, RobustStandardize):
                part.fit(train.inputs, train.sample_weight)
            elif isinstance(part, Standardize):
                part.adapt_to(*input_statistics(train.inputs, train.sample_weight))
        self.net_ = self._make_net(plan)
        self.device_, self.n_outputs_ = plan.device, plan.layout.n_targets
        self.history_: list[dict[str, Any]] = []
        if plan.columns is None:
            with contextlib.suppress(IndexError):  # index out of range: training raises it
                warn_of_equal_features(self.net_, train)

    def _make_net(self, plan: Plan) -> CFLLNet:
        return plan.make_net(
            optimizer_class(self.optimizer),
            n_members=plan.n_members,
            memory=self.memory,
            compile=self.compile,
        )

    def _follow_parameters(self) -> None:
        """Apply a changed optimiser, and raise for changed parameters that are fixed after a fit.

        All other settings are read when they are needed.
        """
        self._validate_params()  # scikit-learn does not validate them in partial_fit
        self._plan.check_unchanged(self)
        self.net_.change_optimizer(optimizer_class(self.optimizer))

    def _scales_columns(self, parts: Parts) -> bool:
        """Whether to scale columns; not without held-out rows, as such fits use no random split."""
        columns = self._plan.columns
        if columns is None or not columns.importance or parts.valid is None:
            return False
        return len(parts.train) >= FEWEST_ROWS and parts.rows.inputs.shape[1] > 1

    def _scale_columns(self, train: RowsDataset) -> None:
        """Scale the columns by the slopes that two short, discarded runs agree on."""
        net, n_rows = self.net_, len(train)
        untrained, found = net.snapshot(), []
        for half in Split.draw(n_rows, n_rows // 2, None, self._plan.seed):
            epochs = math.ceil(FIRST_RUN_STEPS / self._n_batches(len(half)))
            self._configure(len(half), min(epochs, self._epochs()))
            net.verbose = 0
            net.run(train.subset(half), None, [], provisional=True)
            if net.interrupted_:
                raise KeyboardInterrupt
            found.append(slopes(self._whole_module(), train))
            net.restore(untrained)
        assert self._plan.columns is not None
        self._plan.columns.scale_columns(column_scales(*found))

    def _n_batches(self, n_rows: int) -> int:
        return math.ceil(n_rows / self._batch_rows(n_rows))

    def _batch_rows(self, n_rows: int) -> int:
        """Samples per batch; for a perceptron, "auto" depends on the number of rows."""
        perceptron, fields = self._is_perceptron(), self._on_fields()
        return self.defaults.batch_size(self.batch_size, n_rows, perceptron, fields)

    def _rate(self) -> float:
        return self.defaults.rate(self.learning_rate, self._on_fields())

    def _schedule(self) -> str:
        return self.defaults.rate_schedule(self.learning_rate_schedule, self._on_fields())

    def _epochs(self) -> int:
        return self.defaults.max_epochs(self.max_epochs, self._on_fields())

    def _on_fields(self) -> bool:
        """Whether features have positions, so that the defaults for fields apply."""
        return len(self._plan.backbone.feature_shape) > 1

    def _n_threads(self, n_rows: int) -> int:
        """Number of threads for passes over ``n_rows`` rows at once."""
        return self.defaults.n_threads(self.n_threads, n_rows, self._plan.product_size)

    def _n_threads_to_train(self, n_rows: int) -> int:
        return self._n_threads(min(n_rows, self._batch_rows(n_rows)))

    def _n_threads_to_predict(self, n_rows: int) -> int:
        at_once = prediction_batch(self._plan.backbone.feature_shape)
        return self._n_threads(min(n_rows, at_once))

    def _is_perceptron(self) -> bool:
        """Whether the defaults tuned for perceptrons apply."""
        return self._plan.is_perceptron

    def _configure(
        self,
        n_rows: int,
        epochs: int,
        *,
        stream: bool = False,
        rate: float = 1.0,
        going_on: bool = False,
    ) -> None:
        """Configure the net for a run of ``epochs`` epochs, independently of earlier runs.

        The number of rows of a stream is unknown, so its learning rate stays constant, unless it is
        a fraction (``rate`` below one) of the initial rate of a finished fit. A finished fit that
        is continued on a few rows (``going_on``) keeps the statistics of batch normalisation.
        """
        net, full = self.net_, self.batch_size == "full"
        net.module_.holds_statistics = going_on
        if net.optimizer_ is None:
            epochs = 1  # nothing to train
        batch_rows, ridge = self._batch_rows(n_rows), self._training_ridge(n_rows)
        if stream and memory_of(self.memory).holds_rows:
            ridge = self.__dict__.get("final_ridge_", ridge)
        elif stream:
            # The ridge is meant for a full batch: fewer rows must change the last layer less.
            ridge *= max(1.0, batch_rows / n_rows)
            rate *= min(1.0, n_rows / batch_rows) ** 0.5  # adaptive steps are noisier
        net.configure(
            update_order=self.update_order,
            lr_schedule="constant" if stream and self._is_stream else self._schedule(),
            lr=rate * self._rate(),
            weight_decay=self._weight_decay(None if stream else epochs * self._n_batches(n_rows)),
            max_epochs=epochs,
            batch_size=batch_rows,
            ridge=ridge,
            # A batch of all rows needs no memory: γ = 0 gives the exact minimiser.
            decay=0.0 if full and not stream else float(self.decay),
            memory=self.memory,
            solver="cholesky" if full else "auto",
            verbose=max(0, int(self.verbose) - 1),
        )

    def _total_rate(self) -> float:
        """Sum of the learning rates of the last run's steps."""
        net = self.net_
        if net.optimizer_ is None:
            return 0.0
        steps = net.n_batches_ * (len(net.history) - net.first_epoch_)
        return net.lr * mean_factor(net.lr_schedule) * steps

    def _train(self, parts: Parts, task: Any, X: Any, y: Any, warm: bool = False) -> None:
        """Run the training loop of the net."""
        net = self.net_
        callbacks: list[Any] = list(self.callbacks or ())
        stopper = None
        if parts.valid is not None and self.early_stopping is not False:
            stopper = BestEpoch(self.n_iter_no_change, self.tol, parts.valid if warm else None)
            callbacks.append(("early_stopping", stopper))
        if self.verbose == 1:
            callbacks.append(("epoch_bar", EpochBar()))
        if task is not None:
            task.call_on_fit_task_begin(estimator=self, X=X, y=y)
            callbacks.append(("task_bridge", TaskBridge(self, task, X, y, self._fitted_now)))
        backbone = net.module_.backbone
        untrained = copy.deepcopy(backbone.state_dict())
        try:
            net.run(parts.train, parts.valid, callbacks)
        except IndexError as error:
            raise out_of_range(backbone, X) from error
        except FloatingPointError as error:
            backbone.load_state_dict(untrained)
            said = unusable_features(net, parts)
            if said is None:
                raise
            raise FloatingPointError(said) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "The backbone's batch normalisation needs at least two rows per batch, got a batch "
                "of a single row. Pass more rows to the first `partial_fit`, set `batch_size` to 2 "
                "or more, or use nn.LayerNorm."
            ) from error
        first = net.first_epoch_
        rows = net.history[first:]
        self.history_ = [*self.history_[:first], *map(_history_row, rows)]
        self.n_iter_ = len(self.history_)
        self.best_iteration_ = self.n_iter_
        if stopper is not None and hasattr(stopper, "best_epoch_"):
            self.best_iteration_ = int(stopper.best_epoch_)

    def _weight_decay(self, n_steps: int | None) -> float:
        """Weight decay for a run of ``n_steps`` steps; "auto" is 0 if their number is unknown."""
        if self.weight_decay != "auto":
            return float(self.weight_decay)
        decoupled = optimizer_class(self.optimizer) is torch.optim.AdamW
        if n_steps is None or not self._is_perceptron() or not decoupled:
            return 0.0
        return self.defaults.weight_decay(self._rate(), self._schedule(), n_steps)

    def _solve(self, parts: Parts) -> None:
        """Solve exactly for the last layer and estimate the noise."""
        net, train, valid = self.net_, parts.train, parts.valid
        if self.refit_last_layer:
            # With fixed features or full batches, the parameter `ridge` is the penalty itself.
            exact = net.optimizer_ is None or self.batch_size == "full"
            given = exact and self.ridge != "auto"
            ridge = float(self.ridge) if given else None
            points = math.prod(self._plan.backbone.feature_shape[:-1])  # each is a row of the solve
            lowest = self.defaults.lowest_ridge(points * len(parts.rows))
            solved = refit_last_layer(net, train, valid, ridge, lowest, self._offset)
        else:
            _, train, valid = self._less_offset(parts)
            noise = mean_squared_residuals(net, train if valid is None else valid)
            calibration = None if valid is None else calibrate(net, valid, noise, None, train=train)
            ridge = self._training_ridge(len(train))
            solved = Refit(ridge, noise, calibration=calibration, offset=self._offset)
        self._offset = solved.offset
        net.check_finite()
        self._set_solved(parts, solved)

    def _training_ridge(self, n_rows: int) -> float:
        *grid, width = self._plan.backbone.feature_shape
        shape = (*grid, width // self._plan.n_members)  # features of one member
        batch = "full" if self.batch_size == "full" else self._batch_rows(n_rows)
        return self.defaults.ridge(self.ridge, shape, batch, n_rows)

    def _set_solved(self, parts: Parts, solved: Refit) -> None:
        known = solved.calibration
        # Number of rows outside the training set from which the noise level is estimated.
        self._n_judges = 0 if known is None else known.n_samples
        self.final_ridge_, self.decay_ = solved.ridge, self.net_.module_.last_layer.decay
        self.noise_variance_ = self._plan.unscale_variance(solved.noise_variance)
        self.resolved_ = self._resolved(parts)
        self.__dict__.pop("ridge_path_", None)  # from an earlier fit
        if solved.path_errors is not None:
            errors = self._plan.unscale_variance(solved.path_errors).mean(1)
            self.ridge_path_ = {"ridge": np.array(RIDGES), "error": errors}
        self._finish(parts, solved)

    def _resolved(self, parts: Parts) -> dict[str, Any]:
        """Settings of the last run, with every "auto" replaced by its value."""
        net, layer = self.net_, self.net_.module_.last_layer
        options = {} if net.optimizer_ is None else net.optimizer_.param_groups[0]
        return {
            "ridge": layer.ridge,
            "decay": layer.decay,
            "learning_rate": net.lr,
            "weight_decay": options.get("weight_decay", 0.0),
            "batch_size": net.batch_size,
            "max_epochs": net.max_epochs,
            "n_held_out": 0 if parts.valid is None else len(parts.valid),
            "linear_part": self._offset is not None,
            "precision": str(self._plan.dtype).removeprefix("torch."),
            "device": str(self.device_),
            "n_threads": self._n_threads_to_train(len(parts.train)),
        }

    def _split(self, checked: Checked, seed: int) -> Split:
        """Hold out some of the rows at random."""
        n_rows = len(checked.y)
        if n_rows < 10:
            raise ValueError(
                f"`early_stopping`=True holds out rows and needs at least 10, got n_samples="
                f'{n_rows}. Use early_stopping="auto" or False, or give `X_val` and `y_val`.'
            )
        n_held = self.defaults.n_held_out(self.validation_fraction, n_rows)
        return Split.draw(n_rows, n_held, self._stratify(checked.y), seed)

    def _parts(
        self, plan: Plan, checked: Checked, split: Split | None, X_val: Any, y_val: Any
    ) -> Parts:
        """All rows in their order, the training rows and the held-out rows."""
        if (X_val is None) != (y_val is None) and not isinstance(X_val, Dataset):
            raise ValueError("Give both `X_val` and `y_val`, or neither.")
        data = plan.dataset(checked)
        if X_val is not None:
            with told_of("In `X_val` and `y_val`, called X and y here"):
                held_out = check_data(self, X_val, y_val, None, reset=False, min_samples=1)
                held_out = self._tame_held_out(held_out)
                parts = Parts(data, data, plan.dataset(held_out))
            assert parts.valid is not None
            warn_of_other_scale(data, parts.valid, plan.scale if is_regressor(self) else None)
            return parts
        if split is None:
            return Parts(data, data, None)
        return Parts(data, data.subset(split.train), data.subset(split.held_out))

    def _holds_out(self, n_rows: int) -> bool:
        """Whether some of ``n_rows`` rows are held out."""
        if self.validation_fraction == 0:
            return False
        return self.defaults.holds_out(self.early_stopping, n_rows)

    # -- prediction -----------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Raw predictions (n, positions..., k) in y's units."""
        with self._rows_to_predict(X) as dataset:
            outputs = self._plan.unscale(self._raw_outputs(dataset).numpy())
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        if not finite.all():
            warnings.warn(
                f"{(~finite).sum()} of {len(finite)} predictions are not finite, the first in row "
                f"{finite.argmin()}: the network overflows for these values of X.",
                RuntimeWarning,
                stacklevel=3,
            )
        return outputs

    def _raw_outputs(self, dataset: RowsDataset) -> Tensor:
        """Predictions in the scale of training, on the CPU."""
        with torch.no_grad():
            found = torch.cat(list(self.net_.forward_iter(dataset, device="cpu")))
            return found if self._offset is None else found + self._offset(dataset.X).cpu()

    @contextlib.contextmanager
    def _rows_to_predict(self, X: Any) -> Iterator[RowsDataset]:
        """Check the rows, and raise an informative error if the backbone cannot take them."""
        check_is_fitted(self)
        lazy, fitted_shape = isinstance(X, np.memmap), self._plan.sample_shape
        check_sample_shape(X, fitted_shape)
        with self._torch_settings() as settings:
            rows = self._plan.rows(check_inputs(self, X, reset=False), lazy)
            settings.enter_context(use_threads(self._n_threads_to_predict(len(rows))))
            try:
                yield RowsDataset(rows)
            except IndexError as error:
                raise out_of_range(self.net_.module_.backbone, X) from error
            except RuntimeError as error:
                shape = input_shape_of(rows.take(slice(0, 1)))
                if shape == fitted_shape:
                    raise
                raise ValueError(
                    f"X has samples of shape {shape}, which the backbone cannot take; it "
                    f"was fitted on samples of shape {fitted_shape}."
                ) from error

    def features(self, X: Any) -> np.ndarray:
        """Compute the features: the output of the backbone and input of the last layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ..., d)
            With a linear part, the standardised columns of X are appended.
        """
        with self._rows_to_predict(X) as dataset:
            features = self.net_.features(dataset)
            if self._offset is not None:
                features = torch.cat([features, self._offset.columns(dataset.X).cpu()], 1)
        return features.to(self._plan.dtype).numpy()

    def _no_moments(self) -> str:
        return (
            "needs the moments of the training rows, which were not kept. Fit with "
            'refit_last_layer=True, or use memory="statistics".'
        )

    @default_modes()
    def to_torch(self) -> nn.Module:
        """Export a plain module that maps raw X to predictions and ends in an ``nn.Linear``.

        The module includes the scaling of inputs and targets. If the last layer was split off a
        network, it is put back with the fitted weights (a 1 × 1 convolution stays one). The module
        is on the CPU, in evaluation mode and independent of the estimator.

        Returns
        -------
        torch.nn.Module
            Its output has shape (n, ..., k) and holds the decision values for a classifier. Named
            inputs are keyword arguments, and integer inputs of embeddings are ``torch.int64``.
        """
        check_is_fitted(self)
        linear = as_linear(*self._whole_last_layer())
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(self.last_layer_coef_))
            if not torch.isfinite(linear.weight).all():
                raise ValueError(
                    "The targets are so large that the last layer's weights on their scale "
                    f"overflow {linear.weight.dtype}. Rescale y, or fit in float64."
                )
            linear.bias.copy_(
                torch.as_tensor(self.last_layer_intercept_ - self._decision_threshold)
            )
        plan, offset = self._plan, self._offset
        if offset is not None:
            module: nn.Module = WithLastLayer(SideBySide(plan.module, offset.columns), linear)
            return copy.deepcopy(module).cpu().eval()
        module = join_last_layer(plan.backbone, linear)
        if plan.columns is not None:
            module = Encoded(copy.deepcopy(plan.columns), module)
        return module.cpu().eval()

    @property
    def last_layer_coef_(self) -> np.ndarray:
        """Weights of the last layer in y's units; shape (k, d).

        Predictions are ``features(X) @ last_layer_coef_.T + last_layer_intercept_``.
        """
        self._fitted_layer("last_layer_coef_")
        weight, _ = self._whole_last_layer()
        return weight.double().cpu().numpy() * self._plan.scale.scale[:, None]

    @property
    def last_layer_intercept_(self) -> np.ndarray:
        """Intercept of the last layer in y's units; shape (k,)."""
        self._fitted_layer("last_layer_intercept_")
        _, bias = self._whole_last_layer()
        return self._plan.unscale(bias.double().cpu().numpy())

    @property
    def feature_importances_(self) -> np.ndarray:
        """Mean squared slope of the predictions along each column; shape (p,), summing to one.

        The mean is over the training rows, in units of the columns' standard deviations.
        """
        self._fitted_layer("feature_importances_")
        if self._slope_squares is None:
            raise AttributeError(
                f"This {type(self).__name__} has no `feature_importances_`: they are slopes along "
                "the columns of a table, and require X of shape (n_samples, n_features) and a "
                "backbone that is differentiable with respect to X."
            )
        total = self._slope_squares.sum()
        if not total > 0:  # a constant prediction
            return np.full(len(self._slope_squares), 1.0 / len(self._slope_squares))
        return self._slope_squares / total

    def _measure_slopes(self, rows: RowsDataset) -> np.ndarray | None:
        squares = mean_squared_slopes(self._whole_module(), rows)
        return None if squares is None else squares.cpu().numpy()

    def _whole_module(self) -> Any:
        """Module that predicts in the scale of training."""
        module = self.net_.module_
        return module if self._offset is None else WithOffset(module, self._offset)

    def _whole_last_layer(self) -> tuple[Tensor, Tensor]:
        """Weights and intercept on the output of :meth:`features`."""
        layer: Any = self.net_.module_.last_layer
        if self._offset is None:
            return layer.weight, layer.bias
        linear = self._offset.layer
        return torch.cat([layer.weight, linear.weight], 1), layer.bias + linear.bias

    @property
    def backbone_(self) -> nn.Module:
        """The trained backbone."""
        self._fitted_layer("backbone_")
        return self.net_.module_.backbone

    def _fitted_layer(self, name: str) -> Any:
        if not self.__sklearn_is_fitted__():  # AttributeError, so that hasattr is False before fit
            raise AttributeError(f"{type(self).__name__} has no `{name}` before it is fitted.")
        return self.net_.module_.last_layer

    # -- state ----------------------------------------------------------------------

    @contextlib.contextmanager
    def _torch_settings(self) -> Iterator[contextlib.ExitStack]:
        """Set torch's default modes and one thread, or ``n_threads``.

        The block may enter another number of threads into the stack. The caller's settings are
        restored when it ends.
        """
        with contextlib.ExitStack() as settings:
            settings.enter_context(default_modes())
            settings.enter_context(use_threads(int(self.n_threads or 1)))
            yield settings

    @contextlib.contextmanager
    def _previous_fit_kept(self) -> Iterator[contextlib.ExitStack]:
        """Restore the previous fitted state if the block raises; see `_torch_settings`."""
        before = dict(self.__dict__)
        net = before.get("net_")
        snapshot = None if net is None else net.snapshot()
        try:
            with self._torch_settings() as settings:
                yield settings
        except BaseException:
            # scikit-learn tears down its callbacks afterwards and needs these attributes.
            begun = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")
            before |= {name: self.__dict__[name] for name in begun if name in self.__dict__}
            self.__dict__.clear()
            self.__dict__.update(before)
            if net is not None:
                net.restore(snapshot)
            raise

    def _fitted_now(self) -> dict[str, Any]:
        """Attributes of the estimator as if training had stopped here."""
        return {
            k: v for k, v in self.__dict__.items() if k.endswith("_") or k in ("_plan", "_offset")
        }

    def __sklearn_is_fitted__(self) -> bool:
        return "net_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _history_row(row: dict[str, Any]) -> dict[str, Any]:
    """Entries of skorch's record of an epoch that `history_` keeps."""
    kept = {
        "epoch": row["epoch"],
        "train_loss": row["train_loss"],
        "valid_loss": row.get("valid_loss"),
        "learning_rate": row["learning_rate"],
        "seconds": row.get("dur"),
    }
    return kept
