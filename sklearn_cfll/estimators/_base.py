"""What regressor and classifier share: from arrays to a net, to fitted attributes."""

from __future__ import annotations

import contextlib
import copy
from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator, _fit_context, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EarlyStopping
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import Dataset

from .. import persistence
from ..backbones.mlp import ACTIVATIONS, MLPBackbone, Standardize
from ..backbones.recipe import build_backbone
from ..backbones.splitting import join_last_layer
from ..last_layer import MEMORIES
from ..training.batches import RowsDataset, as_rows, input_statistics
from ..training.callbacks import EpochBar, TaskBridge
from ..training.net import CFLLNet, preserved_random_state
from ..training.optimizers import OPTIMIZERS, optimizer_class, optimizer_options
from ..training.refit import mean_squared_residuals, refit_last_layer
from ..training.schedules import SCHEDULES
from ..training.steps import UPDATE_ORDERS
from ._data import (
    check_inputs,
    check_lengths,
    check_sample_shape,
    check_targets_given,
    check_weights,
    targets_of_dataset,
)
from ._options import draw_seed, resolve_device, resolve_dtype
from ._targets import TargetLayout, TargetScale

try:  # scikit-learn >= 1.9; an older one is served without its callbacks
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in: no callbacks before scikit-learn 1.9."""

        def _init_callback_context(self, **kwargs: Any) -> None:
            return None


# A tenth of fewer rows says too little about when to stop, and a random split would make
# weights differ from repetitions on the tiny sets of scikit-learn's checks.
EARLY_STOPPING_ROWS = 200
# Rows predicted at once. Fixed: a batch's size moves the last bit of its products, and a
# model must predict the same before and after pickling.
PREDICTION_ROWS = 1024


class BaseCFLL(CallbackSupportMixin, BaseEstimator, metaclass=ABCMeta):
    """Training, prediction of raw outputs, adaptation and persistence."""

    _parameter_constraints: dict[str, Any] = {
        "backbone": "no_validation",  # build_backbone says what is wrong with it
        "backbone_kwargs": [dict, None],
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "ridge": [Interval(Real, 0, None, closed="left")],
        "decay": [Interval(Real, 0, 1, closed="both")],
        "memory": [StrOptions(set(MEMORIES))],
        "update_order": [StrOptions(set(UPDATE_ORDERS))],
        "optimizer": [StrOptions(set(OPTIMIZERS)), type],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "learning_rate_schedule": [StrOptions(set(SCHEDULES))],
        "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"full"})],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean", StrOptions({"auto"})],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "refit_last_layer": ["boolean"],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "float64"})],
        "compile": ["boolean"],
        "callbacks": [list, None],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    # -- what the two estimators fill in --------------------------------------------

    @abstractmethod
    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        """Check y and turn it into float targets of shape (n, ...)."""

    def _fit_weights(self, y: Any, sample_weight: np.ndarray | None) -> np.ndarray | None:
        """Sample weights, those of classes included."""
        return sample_weight

    def _fit_scale(self, rows: np.ndarray, sample_weight: np.ndarray | None) -> TargetScale:
        return TargetScale.identity(rows.shape[-1])

    def _stratify(self, y: np.ndarray) -> np.ndarray | None:
        return None

    def _finish(self, valid: RowsDataset | None, train: RowsDataset) -> None:
        """Attributes of one kind of estimator, set after training."""

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
            with a warning and keeps the model trained so far.

        Raises
        ------
        ValueError
            For input that cannot be fitted, before any work starts.
        FloatingPointError
            Where training diverges, at that batch.
        """
        with self._previous_fit_kept():
            warm = self.warm_start and hasattr(self, "net_")
            task = self._init_callback_context(max_subtasks=self.max_epochs)
            data = self._prepare(X, y, sample_weight, reset=not warm, min_samples=2)
            if not warm:
                self._build(data)
            train, valid = self._split(data, X_val, y_val)
            if not warm:
                self._adapt_inputs(train)
            self._train(train, valid, self.max_epochs, self.learning_rate_schedule, task, X, y)
            if not self.warm_start:
                self.net_.initialize_optimizer()  # partial_fit starts with a fresh one
            self._solve(train, valid)
            if task is not None:
                task.call_on_fit_task_end(
                    estimator=self, X=X, y=y, reconstruction_attributes=self._fitted_now
                )
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """One epoch over these rows, at a constant rate, with no rows held out."""
        with self._previous_fit_kept():
            first = not hasattr(self, "net_")
            data = self._prepare(X, y, sample_weight, reset=first, min_samples=1)
            if first:
                self._build(data)
                self._adapt_inputs(data)
            self._train(data, None, 1, "constant", None, X, y)
            self.noise_variance_ = self._unscale_variance(mean_squared_residuals(self.net_, data))
            self.ridge_, self.decay_ = self._effective_ridge(), self._effective_decay()
            self._finish(None, data)
        return self

    def _prepare(
        self, X: Any, y: Any, sample_weight: Any, *, reset: bool, min_samples: int
    ) -> RowsDataset:
        """Checked rows, targets and weights on the device; targets still in y's units."""
        lazy = isinstance(X, np.memmap)
        if isinstance(X, Dataset) and y is None:
            y = targets_of_dataset(X)
        check_targets_given(self, y)
        X = check_inputs(self, X, reset=reset, min_samples=min_samples)
        y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(y)
        check_lengths(X, y)
        rows, weights = check_weights(sample_weight, X)
        y = y if rows is None else y[rows]
        targets = self._encode_targets(y, reset=reset)
        weights = self._fit_weights(y, weights)
        if reset:
            self.device_ = resolve_device(self.device)
            self._dtype = resolve_dtype(self.precision, len(targets), self.device_)
            self._seed = draw_seed(self.random_state)
            self._sample_shape = None
        else:
            check_sample_shape(X, self._sample_shape)
        inputs = as_rows(X, self.device_, self._dtype, lazy)
        data = RowsDataset(inputs)
        if rows is not None:
            data = data.subset(rows)
        data.targets = targets  # numpy until the backbone says how they are laid out
        data.sample_weight = None if weights is None else self._tensor(weights)
        if reset:
            self._sample_shape = tuple(inputs.shape[1:])
        else:
            self._lay_out(data)
        return data

    def _build(self, data: RowsDataset) -> None:
        """Backbone, target layout and an untrained net."""
        recipe = self.backbone
        if recipe is None:
            sizes = self.hidden_layer_sizes
            sizes = (sizes,) if isinstance(sizes, Integral) else tuple(sizes)
            recipe = MLPBackbone(sizes, self.activation, self.dropout)
        elif isinstance(recipe, BaseEstimator):
            recipe = clone(recipe)
        sample = data.inputs.take(slice(0, 2))
        if len(sample) == 1:
            sample = sample.repeat(2, *[1] * (sample.ndim - 1))
        with preserved_random_state(self.device_, self._seed):
            self._split_backbone = build_backbone(recipe, self.backbone_kwargs, sample)
        self._recipe = (recipe, self.backbone_kwargs)
        backbone = self._split_backbone
        self._layout = TargetLayout.infer(
            data.targets.shape, backbone.feature_shape, backbone.channels_first
        )
        self.n_outputs_ = self._layout.n_targets
        self._scale = None
        self._lay_out(data)
        self.net_ = self._make_net()
        with preserved_random_state(self.device_, self._seed):
            self.net_.initialize()

    def _lay_out(self, data: RowsDataset) -> None:
        """Targets as (n, positions..., k) tensors, in the scale of training."""
        expected = self._layout.own_shape
        rows = self._layout.to_rows(np.asarray(data.targets, dtype=np.float64))
        if rows.shape[-1] != self.n_outputs_:
            raise ValueError(
                f"y has shape {data.targets.shape}, but the estimator was fitted on targets "
                f"of shape {expected}."
            )
        if self._scale is None:
            weights = data.sample_weight
            self._scale = self._fit_scale(
                rows, None if weights is None else weights.double().cpu().numpy()
            )
        data.targets = self._tensor(self._scale.transform(rows))

    def _make_net(self) -> CFLLNet:
        optimizer = optimizer_class(self.optimizer)
        options = optimizer_options(optimizer, self.weight_decay)
        return CFLLNet(
            self._split_backbone.module,
            optimizer=optimizer,
            **{f"optimizer__{name}": value for name, value in options.items()},
            last_layer__in_features=self._split_backbone.feature_shape[-1],
            last_layer__out_features=self.n_outputs_,
            last_layer__memory=self.memory,
            last_layer__dtype=self._dtype,
            device=str(self.device_),
            compile=self.compile,
            random_state=self._seed,
            iterator_valid__batch_size=PREDICTION_ROWS,
            verbose=0,
        )

    def _train(
        self,
        train: RowsDataset,
        valid: RowsDataset | None,
        epochs: int,
        schedule: str,
        task: Any,
        X: Any,
        y: Any,
    ) -> None:
        """Run the net's loop with this estimator's settings on top of whatever came before."""
        net = self.net_
        full = self.batch_size == "full"
        net.update_order, net.lr_schedule, net.max_epochs = self.update_order, schedule, epochs
        net.lr = self.learning_rate
        net.batch_size = len(train) if full else self.batch_size
        net.verbose = max(0, int(self.verbose) - 1)
        net.train_split = None if valid is None else predefined_split(valid)
        if net.optimizer_ is not None:
            for group in net.optimizer_.param_groups:
                group["lr"] = group["initial_lr"] = self.learning_rate
        layer = net.module_.last_layer
        layer.ridge, layer.decay = self._effective_ridge(), self._effective_decay()
        layer.memory = self.memory
        if full:
            layer.solver = "cholesky"
        stopper = None
        net.callbacks = list(self.callbacks or ())
        if valid is not None and self.early_stopping is not False:
            stopper = EarlyStopping(
                patience=self.n_iter_no_change,
                threshold=self.tol,
                threshold_mode="abs",
                load_best=True,
                sink=_silent,
            )
            net.callbacks.append(("early_stopping", stopper))
        if self.verbose == 1:
            net.callbacks.append(("epoch_bar", EpochBar()))
        if task is not None:
            task.call_on_fit_task_begin(estimator=self, X=X, y=y)
            bridge = TaskBridge(self, task, X, y, None, self._fitted_now)
            net.callbacks.append(("task_bridge", bridge))
        net._initialize_callbacks()
        try:
            net.partial_fit(train)
        finally:
            net.callbacks, net.callbacks_, net.train_split = None, [], None
        first = net.first_epoch_
        rows = net.history[first:]
        self.history_ = [*getattr(self, "history_", [])[:first], *map(_history_row, rows)]
        self.n_iter_ = len(self.history_)
        self.best_iteration_ = self.n_iter_
        if stopper is not None and hasattr(stopper, "best_epoch_"):
            self.best_iteration_ = int(stopper.best_epoch_)

    def _solve(self, train: RowsDataset, valid: RowsDataset | None) -> None:
        """The final exact solve and the noise that is left."""
        net = self.net_
        self.decay_ = self._effective_decay()
        if self.refit_last_layer:
            found = refit_last_layer(net, train, valid, self._refit_ridge(train))
            self.ridge_, noise = found.ridge, found.noise_variance
        else:
            self.ridge_ = self._effective_ridge()
            noise = mean_squared_residuals(net, train if valid is None else valid)
        if not torch.isfinite(net.module_.last_layer.weight).all():
            net._raise_diverged()
        self.noise_variance_ = self._unscale_variance(noise)
        self._finish(valid, train)

    def _effective_ridge(self) -> float:
        return float(self.ridge)

    def _effective_decay(self) -> float:
        # A batch of all rows needs no memory: γ = 0 is the exact minimiser.
        return 0.0 if self.batch_size == "full" else float(self.decay)

    def _refit_ridge(self, train: RowsDataset) -> float:
        """The refit's ridge where no rows are held out: the training ridge, less per row.

        A batch's ridge weighs against a batch; against all rows it should weigh the less
        the more rows there are a feature. In full-batch mode the two are one.
        """
        if self.batch_size == "full":
            return self._effective_ridge()
        n_rows = train.targets[..., 0].numel()
        return self._effective_ridge() * min(1.0, self._split_backbone.feature_shape[-1] / n_rows)

    def _split(
        self, data: RowsDataset, X_val: Any, y_val: Any
    ) -> tuple[RowsDataset, RowsDataset | None]:
        """Training and held-out rows."""
        if (X_val is None) != (y_val is None) and not isinstance(X_val, Dataset):
            raise ValueError("Give both `X_val` and `y_val`, or neither.")
        if X_val is not None:
            return data, self._prepare(X_val, y_val, None, reset=False, min_samples=1)
        n_rows = len(data)
        wanted = self.early_stopping
        if wanted == "auto":
            wanted = n_rows >= EARLY_STOPPING_ROWS
        if not wanted or self.validation_fraction == 0:
            return data, None
        if n_rows < 10:
            raise ValueError(
                f"`early_stopping`=True holds out rows and needs at least 10, got n_samples="
                f'{n_rows}. Use early_stopping="auto" or False, or give `X_val` and `y_val`.'
            )
        chosen = self._held_out(data)
        held_out = np.zeros(n_rows, dtype=bool)
        held_out[chosen] = True
        return data.subset(np.flatnonzero(~held_out)), data.subset(np.flatnonzero(held_out))

    def _held_out(self, data: RowsDataset) -> np.ndarray:
        """Indices of a random ``validation_fraction`` of the rows, stratified by class."""
        from sklearn.model_selection import train_test_split

        codes = self._stratify(data.targets.cpu().numpy())
        n_rows = len(data)
        n_held = max(1, round(self.validation_fraction * n_rows))
        if codes is not None:
            counts = np.unique(codes, return_counts=True)[1]
            if counts.min() < 2 or len(counts) > min(n_held, n_rows - n_held):
                codes = None  # too few rows a class to have each on both sides
        return train_test_split(
            np.arange(n_rows), test_size=n_held, stratify=codes, random_state=self._seed
        )[1]

    def _adapt_inputs(self, train: RowsDataset) -> None:
        """Let the default backbone standardise by the training rows."""
        module = self._split_backbone.module
        first = next(module.children(), None)
        if isinstance(first, Standardize):
            first.adapt_to(*input_statistics(train))

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array)).to(self.device_, self._dtype)

    def _unscale_variance(self, variance: Tensor) -> np.ndarray:
        return variance.double().cpu().numpy() * self._scale.scale**2

    # -- using ----------------------------------------------------------------------

    def _outputs(self, X: Any) -> np.ndarray:
        """Raw predictions (n, positions..., k) in y's units."""
        dataset = self._rows_to_predict(X)
        with torch.no_grad():
            parts = list(self.net_.forward_iter(dataset, device="cpu"))
        return self._unscale(torch.cat(parts).numpy())

    def _rows_to_predict(self, X: Any) -> RowsDataset:
        check_is_fitted(self)
        lazy = isinstance(X, np.memmap)
        X = check_inputs(self, X, reset=False)
        check_sample_shape(X, self._sample_shape)
        return RowsDataset(as_rows(X, self.device_, self._dtype, lazy))

    def _unscale(self, rows: np.ndarray) -> np.ndarray:
        scale = self._scale
        return rows * scale.scale.astype(rows.dtype) + scale.mean.astype(rows.dtype)

    def features(self, X: Any) -> np.ndarray:
        """The backbone's output: what the last layer sees.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ..., d)
        """
        return self.net_.features(self._rows_to_predict(X)).numpy()

    def adapt(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Add rows to the last layer's exact ridge fit; the backbone stays as it is.

        The same as a fit of the last layer to all rows, old and new, in any order, and
        needs no old row: their moments are enough.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`. Weights average one over these rows.

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
            data = self._prepare(X, y, sample_weight, reset=False, min_samples=1)
            layer = self.net_.module_.last_layer
            if layer.moments is None:
                raise ValueError(
                    "`adapt` needs the moments of the training rows, and none are kept: fit "
                    'with refit_last_layer=True or memory="statistics".'
                )
            for batch in self.net_.labelled_features(data):
                layer.accumulate(*batch)
            layer.solve(self.ridge_)
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
        linear = self.net_.module_.last_layer.to_linear()
        if linear.bias is None:
            raise AssertionError("estimators fit an intercept")
        with torch.no_grad():
            linear.weight.copy_(torch.as_tensor(self.coef_))
            linear.bias.copy_(torch.as_tensor(self.intercept_))
        return join_last_layer(self._split_backbone, linear).cpu().eval()

    @property
    def coef_(self) -> np.ndarray:
        """Last layer's weights (k, d) in y's units: ``features(X) @ coef_.T + intercept_``."""
        weight = self._fitted_layer("coef_").weight.double().cpu().numpy()
        return weight * self._scale.scale[:, None]

    @property
    def intercept_(self) -> np.ndarray:
        """Last layer's intercept (k,) in y's units."""
        bias = self._fitted_layer("intercept_").bias.double().cpu().numpy()
        return bias * self._scale.scale + self._scale.mean

    @property
    def backbone_(self) -> nn.Module:
        """The trained backbone."""
        self._fitted_layer("backbone_")
        return self.net_.module_.backbone

    def _fitted_layer(self, name: str) -> Any:
        if "net_" not in vars(self):  # AttributeError: hasattr must say False before fit
            raise AttributeError(f"{type(self).__name__} has no `{name}` before it is fitted.")
        return self.net_.module_.last_layer

    # -- keeping --------------------------------------------------------------------

    @contextlib.contextmanager
    def _previous_fit_kept(self) -> Iterator[None]:
        """Put everything back as it was where the block raises."""
        before = dict(vars(self))
        net = before.get("net_")
        snapshot = None if net is None else _snapshot(net)
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            if net is not None:
                _restore(net, snapshot)
            raise

    def _fitted_now(self) -> dict[str, Any]:
        """Attributes of the estimator as if training had stopped here."""
        state = {name: value for name, value in vars(self).items() if name.endswith("_")}
        state |= {name: vars(self)[name] for name in persistence.PRIVATE_STATE if name in vars(self)}
        return state

    def save(self, path: Any) -> None:
        """Write the fitted estimator to one file that opens without running code.

        Parameters
        ----------
        path : str or path-like
        """
        check_is_fitted(self)
        persistence.save(self, path)

    @classmethod
    def load(cls, path: Any, *, backbone: Any = None, device: str = "cpu") -> Any:
        """Read an estimator that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        backbone : optional
            What was passed as ``backbone`` at fit, where that was code: a module or a
            callable. Recipes of this package are in the file.
        device : str, default="cpu"
            Where to put it, whatever it was fitted on.
        """
        return persistence.load(cls, path, backbone=backbone, device=device)

    def __getstate__(self) -> dict[str, Any]:
        return persistence.to_arrays(super().__getstate__())

    def __setstate__(self, state: dict[str, Any]) -> None:
        persistence.from_arrays(self, state)

    def __sklearn_is_fitted__(self) -> bool:
        return "net_" in vars(self)

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


def _snapshot(net: CFLLNet) -> tuple[Any, Any, int]:
    optimizer = None if net.optimizer_ is None else copy.deepcopy(net.optimizer_.state_dict())
    return copy.deepcopy(net.module_.state_dict()), optimizer, len(net.history)


def _restore(net: CFLLNet, snapshot: tuple[Any, Any, int] | None) -> None:
    assert snapshot is not None
    module, optimizer, n_epochs = snapshot
    net.module_.load_state_dict(module)
    if optimizer is not None:
        net.optimizer_.load_state_dict(optimizer)
    del net.history[n_epochs:]


def _silent(*args: Any) -> None:
    """Where skorch's EarlyStopping may print to."""
