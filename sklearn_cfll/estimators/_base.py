"""What regressor and classifier share: from arrays to a net, to fitted attributes."""

from __future__ import annotations

import contextlib
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..backbones.mlp import MLPBackbone, SideBySide
from ..backbones.scaling import ColumnScale, RobustStandardize, Standardize
from ..backbones.splitting import join_last_layer
from ..ensemble_last_layer import EnsembleLastLayer
from ..last_layer import as_linear
from ..training.batches import RowsDataset, input_statistics, robust_statistics
from ..training.callbacks import BestEpoch, EpochBar, TaskBridge
from ..training.column_scales import FEWEST_ROWS, FIRST_RUN_STEPS, column_scales, slopes
from ..training.linear_part import LinearPart
from ..training.net import CFLLNet
from ..training.optimizers import optimizer_class, optimizer_options
from ..training.refit import RIDGES, Refit, mean_squared_residuals, refit_last_layer
from ._compat import CallbackSupportMixin
from ._data import (
    Checked,
    Parts,
    check_data,
    check_inputs,
    check_sample_shape,
    column_bins,
    column_scores,
    held_out_rows,
    needs_float64,
)
from ._options import (
    HELD_OUT_FROM,
    auto_weight_decay,
    draw_seed,
    lowest_ridge,
    n_held_out,
    refit_ridge,
    resolve_batch_size,
    resolve_device,
    resolve_dtype,
    resolve_learning_rate,
    resolve_max_epochs,
    resolve_ridge,
    resolve_schedule,
)
from ._parameters import CONSTRAINTS
from ._plan import Plan
from ._state import StateMixin
from ._targets import TargetScale

# Rows predicted at once. Fixed: a batch's size moves the last bit of its products, and a
# model must predict the same before and after pickling.
PREDICTION_ROWS = 1024
PREDICTION_POINTS = 2**15  # of fields: a batch's features at 64 × 64 points are then 8 samples'


def prediction_batch(feature_shape: tuple[int, ...]) -> int:
    """Samples predicted at once, fewer where each has many positions."""
    return max(1, min(PREDICTION_ROWS, PREDICTION_POINTS // math.prod(feature_shape[:-1])))


class BaseCFLL(StateMixin, CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta):
    """Training, prediction of raw outputs, adaptation and persistence."""

    _decision_threshold = 0.0  # what a raw output is compared with
    _epochs_on_tables: int  # what `max_epochs="auto"` is for them
    _plan: Plan
    net_: CFLLNet
    device_: torch.device
    n_outputs_: int
    ridge_: float
    noise_variance_: np.ndarray

    _parameter_constraints: ClassVar[dict[str, Any]] = CONSTRAINTS

    # -- what the two estimators fill in --------------------------------------------

    @abstractmethod
    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        """Check y and turn it into float targets of shape (n, ...)."""

    def _fit_weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        """Sample weights, those of classes included."""
        return sample_weight

    def _fit_scale(self, rows: np.ndarray, sample_weight: np.ndarray | None) -> TargetScale:
        return TargetScale.identity(rows.shape[-1])

    def _stratify(self, y: np.ndarray) -> np.ndarray | None:
        return None

    def _finish(self, parts: Parts, solved: Refit) -> None:
        """Attributes of one kind of estimator, set after the final solve."""

    # -- fitting --------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, X_val: Any = None, y_val: Any = None
    ) -> Any:
        """Train the backbone by gradient and the last layer in closed form.

        Parameters
        ----------
        X : array-like, sparse matrix or torch Dataset of shape (n_samples, n_features)
            With a ``backbone`` samples may have any shape (images, fields). A numpy memory
            map or a ``torch.utils.data.Dataset`` of (inputs, target) pairs is read batch by
            batch.
        y : array-like of shape (n_samples,) or (n_samples, ...)
            May be left out with a Dataset that holds it.
        sample_weight : array-like of shape (n_samples,), default=None
            A weight means a number of repetitions: it weighs the solve and the gradient.
        X_val, y_val : optional
            Held-out rows of your own in place of ``validation_fraction``.

        Returns
        -------
        self
            Fitted. A fit that fails leaves the previous one as it was; Ctrl-C ends training
            with a warning and keeps the model trained so far. Before training, in the short runs
            that give columns their scales, Ctrl-C is a failure.

        Raises
        ------
        ValueError
            For input that cannot be fitted, before any work starts.
        FloatingPointError
            Where training diverges, at that batch.
        """
        with self._previous_fit_kept():
            warm = self.warm_start and self.__sklearn_is_fitted__()
            checked = check_data(self, X, y, sample_weight, reset=not warm, min_samples=2)
            plan = self._plan if warm else self._make_plan(checked)
            epochs = self._epochs()
            task = self._init_callback_context(max_subtasks=epochs)
            parts = self._split(plan, checked, X_val, y_val)
            if not warm:
                self._start(plan, parts.train, self._takes_linear_part(parts))
                if self._scales_columns(parts):
                    self._scale_columns(parts.train)
            self._configure(len(parts.train), epochs)
            self._train(parts, task, X, y)
            if not self.warm_start:
                self.net_.reset_optimizer()  # a partial_fit that follows starts afresh
            self._solve(parts)
            if task is not None:
                task.call_on_fit_task_end(
                    estimator=self, X=X, y=y, reconstruction_attributes=self._fitted_now
                )
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """One epoch over these rows, at a constant rate, with no rows held out."""
        with self._previous_fit_kept():
            first = not self.__sklearn_is_fitted__()
            checked = check_data(self, X, y, sample_weight, reset=first, min_samples=1)
            plan = self._make_plan(checked) if first else self._plan
            if first:
                plan.mean_weight = 1.0  # a stream's weights count as they come
            data = plan.dataset(checked, as_added=self.memory == "statistics")
            if first:
                self._start(plan, data)
            parts = Parts(data, data, None)
            self._configure(len(data), 1, stream=True)
            self._train(parts, None, X, y)
            noise = mean_squared_residuals(self.net_, data)
            self._set_solved(parts, Refit(self._training_ridge(len(data)), noise))
        return self

    def _make_plan(self, checked: Checked) -> Plan:
        recipe = self.backbone
        device = resolve_device(self.device)
        coarse = self.precision == "auto" and needs_float64(checked)
        dtype = resolve_dtype(self.precision, checked.y.shape, device, coarse)
        if recipe is None:
            sizes = self.hidden_layer_sizes
            sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
            edges = column_bins(checked, self.n_bins, dtype) if 1 not in sizes else None
            tables = column_scores(checked, dtype) if self.spread_columns else None
            members = self._n_members()
            recipe = MLPBackbone(sizes, self.activation, self.dropout, edges, tables, members)
        plan = Plan.make(
            recipe,
            self.backbone_kwargs,
            checked,
            seed=draw_seed(self.random_state),
            device=device,
            dtype=dtype,
            mean_weight=checked.mean_weight,
        )
        plan.scale = self._fit_scale(plan.layout.to_rows(checked.y), checked.sample_weight)
        self._plan = plan
        return plan

    def _n_members(self) -> int:
        """Networks to train: one where the backbone is the user's."""
        return 1 if self.backbone is not None else self.n_members

    def _takes_linear_part(self, parts: Parts) -> bool:
        """Whether the network is trained on what a ridge regression leaves over."""
        return False

    def _start(self, plan: Plan, train: RowsDataset, linear: bool = False) -> None:
        """An untrained net, its inputs standardised by the training rows."""
        for part in plan.backbone.module.modules():
            if isinstance(part, RobustStandardize):
                part.adapt_to(*robust_statistics(train))
            elif isinstance(part, Standardize):
                part.adapt_to(*input_statistics(train))
        self.net_ = self._make_net(plan, linear)
        if self.net_.module_.linear is not None:
            self.net_.module_.linear.fit(train)
        self.device_, self.n_outputs_ = plan.device, plan.layout.n_targets
        self.history_: list[dict[str, Any]] = []

    def _make_net(self, plan: Plan, linear: bool = False) -> CFLLNet:
        optimizer = optimizer_class(self.optimizer)
        options = optimizer_options(optimizer, plan.backbone.module)
        kind: dict[str, Any] = {}
        if self._n_members() > 1:
            kind = {"last_layer": EnsembleLastLayer, "last_layer__n_members": self._n_members()}
        net = CFLLNet(
            plan.backbone.module,
            optimizer=optimizer,
            **{f"optimizer__{name}": value for name, value in options.items()},
            **kind,
            last_layer__in_features=plan.backbone.feature_shape[-1],
            last_layer__out_features=plan.layout.n_targets,
            last_layer__memory=self.memory,
            last_layer__dtype=plan.dtype,
            device=str(plan.device),
            compile=self.compile,
            random_state=plan.seed,
            iterator_valid__batch_size=prediction_batch(plan.backbone.feature_shape),
            verbose=0,
        )
        net.initialize()
        if linear:
            part = LinearPart(plan.sample_shape[0], plan.layout.n_targets, plan.dtype)
            net.module_.linear = part.to(plan.device)
        return net

    def _scales_columns(self, parts: Parts) -> bool:
        """Not without held-out rows: a random split is what such a fit does without."""
        if not self.scale_columns or self.backbone is not None or parts.valid is None:
            return False
        return len(parts.train) >= FEWEST_ROWS and parts.rows.inputs.shape[1] > 1

    def _scale_columns(self, train: RowsDataset) -> None:
        """Scale the perceptron's columns by what two short runs, both undone, agree on."""
        net, n_rows = self.net_, len(train)
        untrained, found = net.snapshot(), []
        for half in held_out_rows(n_rows, n_rows // 2, None, self._plan.seed):
            epochs = math.ceil(FIRST_RUN_STEPS / self._n_batches(len(half)))
            self._configure(len(half), min(epochs, self._epochs()))
            net.verbose = 0
            net.run(train.subset(half), None, [])
            if net.interrupted_:
                raise KeyboardInterrupt
            found.append(slopes(net.module_, train))
            net.restore(untrained)
        scales = column_scales(*found)
        for part in net.module_.backbone.modules():
            if isinstance(part, ColumnScale):
                part.adapt_to(scales)

    def _n_batches(self, n_rows: int) -> int:
        return math.ceil(n_rows / self._batch_rows(n_rows))

    def _batch_rows(self, n_rows: int) -> int:
        """Rows a batch; "auto" looks at how many there are where the network is ours."""
        perceptron, fields = self._is_perceptron(), self._on_fields()
        return resolve_batch_size(self.batch_size, n_rows, perceptron, fields)

    def _rate(self) -> float:
        return resolve_learning_rate(self.learning_rate, self._on_fields())

    def _schedule(self) -> str:
        return resolve_schedule(self.learning_rate_schedule, self._on_fields())

    def _epochs(self) -> int:
        return resolve_max_epochs(self.max_epochs, self._on_fields(), self._epochs_on_tables)

    def _on_fields(self) -> bool:
        """Whether features have positions, and the settings found for such samples apply."""
        return len(self._plan.backbone.feature_shape) > 1

    def _is_perceptron(self) -> bool:
        """Whether what was measured on perceptrons speaks of this network."""
        return self.backbone is None or isinstance(self.backbone, MLPBackbone)

    def _configure(self, n_rows: int, epochs: int, *, stream: bool = False) -> None:
        """This estimator's settings for so many epochs, whatever came before.

        Of a stream nobody knows how many rows will come.
        """
        net, full = self.net_, self.batch_size == "full"
        if net.optimizer_ is None:
            epochs = 1  # nothing to train
        net.configure(
            update_order=self.update_order,
            lr_schedule="constant" if stream else self._schedule(),
            lr=self._rate(),
            weight_decay=self._weight_decay(None if stream else epochs * self._n_batches(n_rows)),
            max_epochs=epochs,
            batch_size=self._batch_rows(n_rows),
            ridge=self._training_ridge(n_rows),
            # A batch of all rows needs no memory: γ = 0 is the exact minimiser.
            decay=0.0 if full and not stream else float(self.decay),
            memory=self.memory,
            solver="cholesky" if full else "auto",
            verbose=max(0, int(self.verbose) - 1),
        )

    def _train(self, parts: Parts, task: Any, X: Any, y: Any) -> None:
        """Run the net's loop."""
        net = self.net_
        callbacks: list[Any] = list(self.callbacks or ())
        stopper = None
        if parts.valid is not None and self.early_stopping is not False:
            stopper = BestEpoch(self.n_iter_no_change, self.tol)
            callbacks.append(("early_stopping", stopper))
        if self.verbose == 1:
            callbacks.append(("epoch_bar", EpochBar()))
        if task is not None:
            task.call_on_fit_task_begin(estimator=self, X=X, y=y)
            callbacks.append(("task_bridge", TaskBridge(self, task, X, y, self._fitted_now)))
        net.run(parts.train, parts.valid, callbacks)
        first = net.first_epoch_
        rows = net.history[first:]
        self.history_ = [*self.history_[:first], *map(_history_row, rows)]
        self.n_iter_ = len(self.history_)
        self.best_iteration_ = self.n_iter_
        if stopper is not None and hasattr(stopper, "best_epoch_"):
            self.best_iteration_ = int(stopper.best_epoch_)

    def _weight_decay(self, n_steps: int | None) -> float:
        """In force for a run of so many steps; "auto" is 0 where nobody knows how many."""
        if self.weight_decay != "auto":
            return float(self.weight_decay)
        decoupled = optimizer_class(self.optimizer) is torch.optim.AdamW
        if n_steps is None or not self._is_perceptron() or not decoupled:
            return 0.0
        return auto_weight_decay(self._rate(), self._schedule(), n_steps)

    def _solve(self, parts: Parts) -> None:
        """The final exact solve and the noise that is left."""
        net, train, valid = self.net_, parts.train, parts.valid
        if self.refit_last_layer:
            # With fixed features or full batches a ridge of the user's is the penalty itself.
            exact = net.optimizer_ is None or self.batch_size == "full"
            given = exact and self.ridge != "auto"
            ridge = float(self.ridge) if given else refit_ridge(len(train))
            points = math.prod(self._plan.backbone.feature_shape[:-1])  # each is a row of the solve
            lowest = lowest_ridge(points * len(parts.rows))
            solved = refit_last_layer(net, train, valid, ridge, lowest)
        else:
            noise = mean_squared_residuals(net, train if valid is None else valid)
            solved = Refit(self._training_ridge(len(train)), noise)
        net.check_finite()
        self._set_solved(parts, solved)

    def _training_ridge(self, n_rows: int) -> float:
        *grid, width = self._plan.backbone.feature_shape
        shape = (*grid, width // self._n_members())  # each member's own features
        batch = "full" if self.batch_size == "full" else self._batch_rows(n_rows)
        return resolve_ridge(self.ridge, shape, batch, n_rows)

    def _set_solved(self, parts: Parts, solved: Refit) -> None:
        self.ridge_, self.decay_ = solved.ridge, self.net_.module_.last_layer.decay
        self.noise_variance_ = self._plan.unscale_variance(solved.noise_variance)
        self.__dict__.pop("ridge_path_", None)  # of an earlier fit
        if solved.path_errors is not None:
            errors = self._plan.unscale_variance(solved.path_errors).mean(1)
            self.ridge_path_ = {"ridge": np.array(RIDGES), "error": errors}
        self._finish(parts, solved)

    def _split(self, plan: Plan, checked: Checked, X_val: Any, y_val: Any) -> Parts:
        """All rows in their order, those to train on, and those held out."""
        if (X_val is None) != (y_val is None) and not isinstance(X_val, Dataset):
            raise ValueError("Give both `X_val` and `y_val`, or neither.")
        data = plan.dataset(checked)
        if X_val is not None:
            held_out = check_data(self, X_val, y_val, None, reset=False, min_samples=1)
            return Parts(data, data, plan.dataset(held_out))
        n_rows = len(data)
        wanted = self.early_stopping
        if wanted == "auto":
            wanted = n_rows >= HELD_OUT_FROM
        if not wanted or self.validation_fraction == 0:
            return Parts(data, data, None)
        if n_rows < 10:
            raise ValueError(
                f"`early_stopping`=True holds out rows and needs at least 10, got n_samples="
                f'{n_rows}. Use early_stopping="auto" or False, or give `X_val` and `y_val`.'
            )
        classes = self._stratify(checked.y)
        train, held = held_out_rows(
            n_rows, n_held_out(self.validation_fraction, n_rows), classes, plan.seed
        )
        return Parts(data, data.subset(train), data.subset(held))

    # -- using ----------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Raw predictions (n, positions..., k) in y's units."""
        with self._rows_to_predict(X) as dataset, torch.no_grad():
            parts = list(self.net_.forward_iter(dataset, device="cpu"))
        return self._plan.unscale(torch.cat(parts).numpy())

    @contextlib.contextmanager
    def _rows_to_predict(self, X: Any) -> Iterator[RowsDataset]:
        """Checked rows; where the backbone cannot take them, an error that says so."""
        check_is_fitted(self)
        lazy, fitted_shape = isinstance(X, np.memmap), self._plan.sample_shape
        check_sample_shape(X, fitted_shape)
        rows = self._plan.rows(check_inputs(self, X, reset=False), lazy)
        try:
            yield RowsDataset(rows)
        except RuntimeError as error:
            if rows.shape[1:] == fitted_shape:
                raise
            raise ValueError(
                f"X has samples of shape {rows.shape[1:]}, which the backbone cannot take; it "
                f"was fitted on samples of shape {fitted_shape}."
            ) from error

    def features(self, X: Any) -> np.ndarray:
        """The backbone's output: what the last layer sees.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ..., d)
            With a linear part the standardised columns of X follow.
        """
        linear = self._linear_part() if self.__sklearn_is_fitted__() else None
        with self._rows_to_predict(X) as dataset:
            features = self.net_.features(dataset)
            if linear is not None:
                features = torch.cat([features, linear.columns(dataset.X).cpu()], 1)
        return features.numpy()

    def adapt(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Add rows to the last layer's exact ridge fit; the backbone stays as it is.

        The same as a fit of the last layer to all rows, old and new, in any order, and
        needs no old row: their moments are enough.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`. Weights count on the scale of those at fit.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Where no moments are kept: fit with ``refit_last_layer=True`` or
            ``memory="statistics"``.
        """
        check_is_fitted(self)
        with self._previous_fit_kept():
            checked = check_data(self, X, y, sample_weight, reset=False, min_samples=1)
            data = self._plan.dataset(checked, as_added=True)
            layer = self.net_.module_.last_layer
            if not layer.holds_moments:
                raise ValueError(
                    "`adapt` needs the moments of the training rows, and none are kept: fit "
                    'with refit_last_layer=True or memory="statistics".'
                )
            for batch in self.net_.labelled_features(data):
                layer.accumulate(*batch)
            layer.solve(self.ridge_)
            if not torch.isfinite(layer.weight).all():
                raise ValueError(
                    "`adapt` met values that are not finite in X, y or the features. The "
                    "estimator is left as it was."
                )
        return self

    def to_torch(self) -> nn.Module:
        """A plain module that maps raw X to predictions, its last layer an ``nn.Linear``.

        Scaling of inputs and targets is inside; for a network whose last layer was split
        off, that layer is put back with the fitted weights (a 1 × 1 convolution stays
        one). On the CPU, in evaluation mode, independent of the estimator.

        Returns
        -------
        torch.nn.Module
            Output (n, ..., k), of a classifier the decision values.
        """
        check_is_fitted(self)
        linear = as_linear(*self._whole_last_layer())
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(self.coef_))
            linear.bias.copy_(torch.as_tensor(self.intercept_ - self._decision_threshold))
        backbone, part = self._plan.backbone, self._linear_part()
        if part is not None:
            backbone = backbone._replace(module=SideBySide(backbone.module, part.columns))
        return join_last_layer(backbone, linear).cpu().eval()

    @property
    def coef_(self) -> np.ndarray:
        """Last layer's weights (k, d) in y's units: ``features(X) @ coef_.T + intercept_``."""
        self._fitted_layer("coef_")
        weight, _ = self._whole_last_layer()
        return weight.double().cpu().numpy() * self._plan.scale.scale[:, None]

    @property
    def intercept_(self) -> np.ndarray:
        """Last layer's intercept (k,) in y's units."""
        self._fitted_layer("intercept_")
        _, bias = self._whole_last_layer()
        return self._plan.unscale(bias.double().cpu().numpy())

    def _linear_part(self) -> LinearPart | None:
        return self.net_.module_.linear

    def _whole_last_layer(self) -> tuple[Tensor, Tensor]:
        """Weights and intercept on what :meth:`features` gives."""
        layer: Any = self.net_.module_.last_layer
        linear: Any = self._linear_part()
        if linear is None:
            return layer.weight, layer.bias
        return torch.cat([layer.weight, linear.layer.weight], 1), layer.bias + linear.layer.bias

    @property
    def backbone_(self) -> nn.Module:
        """The trained backbone."""
        self._fitted_layer("backbone_")
        return self.net_.module_.backbone

    def _fitted_layer(self, name: str) -> Any:
        if not self.__sklearn_is_fitted__():  # AttributeError: hasattr must say False before fit
            raise AttributeError(f"{type(self).__name__} has no `{name}` before it is fitted.")
        return self.net_.module_.last_layer

    # -- keeping --------------------------------------------------------------------

    @contextlib.contextmanager
    def _previous_fit_kept(self) -> Iterator[None]:
        """Put everything back as it was where the block raises."""
        before = dict(self.__dict__)
        net = before.get("net_")
        snapshot = None if net is None else net.snapshot()
        try:
            yield
        except BaseException:
            # scikit-learn tears its callbacks down after us and needs what it set up.
            begun = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")
            before |= {name: self.__dict__[name] for name in begun if name in self.__dict__}
            self.__dict__.clear()
            self.__dict__.update(before)
            if net is not None:
                net.restore(snapshot)
            raise

    def _fitted_now(self) -> dict[str, Any]:
        """Attributes of the estimator as if training had stopped here."""
        return {k: v for k, v in self.__dict__.items() if k.endswith("_") or k == "_plan"}

    def __sklearn_is_fitted__(self) -> bool:
        return "net_" in self.__dict__

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _history_row(row: dict[str, Any]) -> dict[str, Any]:
    """What `history_` keeps of skorch's record of an epoch."""
    kept = {
        "epoch": row["epoch"],
        "train_loss": row["train_loss"],
        "valid_loss": row.get("valid_loss"),
        "learning_rate": row["learning_rate"],
        "seconds": row.get("dur"),
    }
    return kept
