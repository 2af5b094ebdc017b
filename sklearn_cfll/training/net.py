"""CFLLNet: skorch's training loop around a backbone and a closed-form last layer."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import skorch
import torch
from skorch.callbacks import Callback, EpochTimer
from skorch.dataset import get_len, unpack_data
from skorch.helper import predefined_split
from skorch.utils import TeeGenerator, to_device, to_tensor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..backbones.dropout import seed_dropout
from ..heads.closed_form import ClosedFormLastLayer
from ..heads.rows import NotFiniteError
from ._skorch import SkorchConventions
from .batches import (
    Batch,
    BatchIterator,
    RowsDataset,
    as_rows,
    as_tensor,
    fetches_by_own_code,
    unpack_batch,
)
from .callbacks import EpochLog, EpochLoss
from .optimizers import optimizer_options
from .schedules import SCHEDULES
from .seeding import LentStream, draws_globally, global_seed, mix_seed, own_generator
from .steps import (
    CFLLModule,
    apply,
    as_tuple,
    match_targets,
    module_dtype,
    solve,
    solve_again,
    squared_error,
    training_error,
    with_feature_dimension,
)
from .torch_settings import default_modes

__all__ = ["CFLLNet"]

LAST_LAYER = ("ridge", "decay", "memory", "solver")  # its settings, set for each run


class CFLLNet(SkorchConventions):
    """A skorch net that trains a backbone by gradient descent, its last layer in closed form.

    Everything in :class:`skorch.NeuralNet` works as documented there: ``module__*``,
    ``optimizer__*``, ``iterator_train__*``, callbacks, history, checkpoints, ``set_params``,
    ``initialize`` without data, and overridden methods. The closed form requires these exceptions:

    - The loss is squared error; another ``criterion`` raises an error. A subclass may override
      ``get_loss`` to add a penalty to the loss of the backbone. The last layer is always solved for
      squared error.
    - ``module`` returns features, not predictions. In a tuple, the first entry is the features; the
      others are passed to ``get_loss`` after the predictions, as in skorch. Overriding ``infer``
      raises an error: change the module's ``forward`` instead.
    - ``module_`` holds the module as ``module_.backbone``, so the names of its parameters start
      with "backbone.". Attributes are also found without this prefix, as in ``module_.fc``.
      Patterns of ``optimizer__param_groups`` work with and without it; those of ``Freezer`` and
      similar callbacks need "backbone." or "*".
    - ``train_split`` is None by default, and rows of a data set may have a third entry, the
      sample weight.
    - If an optimiser evaluates the loss several times per step (LBFGS), the last layer is solved at
      the first evaluation only. Set ``optimizer__line_search_fn="strong_wolfe"`` for LBFGS: the
      last layer, and hence the loss, changes from step to step.
    - Batches are selected by index from tensors on the device. skorch's records per batch are kept
      only if a callback handles batch events or a subclass overrides one of the steps.
    - ``compile=True`` compiles only the module.
    - ``save_params`` writes a temporary file and renames it, so that the checkpoint is complete
      even if the process is killed while saving.

    Parameters
    ----------
    module : torch.nn.Module class or instance
        The *backbone*: maps inputs to features of shape (n, ..., d), or (n,) for a single
        feature. In that case predictions have the shape (n,) too.
    criterion : torch.nn.MSELoss or a subclass, default=torch.nn.MSELoss
    optimizer : torch.optim.Optimizer class, default=torch.optim.AdamW
        Optimiser of the backbone; the last layer has no parameters.
    lr : float, default=0.01
    lr_schedule : {"constant", "cosine", "linear", "one_cycle"}, default="constant"
        Schedule of the learning rate, step by step over ``max_epochs``. Must be "constant" if
        skorch's ``LRScheduler`` is used.
    update_order : {"last_layer_first", "backbone_first"}, default="last_layer_first"
        Which of the two is updated first on each batch. "backbone_first" is the paper's
        Algorithm 1 and costs a second forward pass.
    last_layer : class, default=ClosedFormLastLayer
        Built with ``last_layer__ridge``, ``last_layer__decay``, ``last_layer__memory``...;
        ``last_layer__in_features`` and ``last_layer__out_features`` are inferred from the first
        batch if they are not given. Until then predictions are zero.
    train_split : callable or None, default=None
        skorch's split into training and validation sets.
    random_state : int or None, default=None
        Controls initialisation, shuffling and dropout; the global random state is restored after
        training. None draws a seed from torch's global state.
    **kwargs
        Further parameters of :class:`skorch.NeuralNet`.

    Attributes
    ----------
    module_ : CFLLModule
        ``module_.backbone`` and ``module_.last_layer``; one ``state_dict`` holds both, so
        skorch's ``Checkpoint``, ``EarlyStopping(load_best=True)``, ``save_params`` and
        ``load_params`` restore the last layer and its memory too.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sklearn_cfll import CFLLNet
    >>> X = np.linspace(-1, 1, 200, dtype="float32").reshape(-1, 1)
    >>> y = np.sin(4 * X)
    >>> net = CFLLNet(nn.Sequential(nn.Linear(1, 32), nn.Tanh()), max_epochs=20,
    ...               last_layer__ridge=1e-3, batch_size=50, verbose=0, random_state=0)
    >>> float(np.square(net.fit(X, y).predict(X) - y).mean()) < 0.01
    True
    """

    provisional_ = False  # True if the caller discards the result of a run
    _optimizers: list[str]
    optimizer_: Any  # None if the backbone has no trainable parameters
    prefixes_: ClassVar[list[str]] = [*skorch.NeuralNet.prefixes_, "last_layer"]

    def __init__(
        self,
        module: Any,
        *,
        criterion: Any = nn.MSELoss,
        optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
        lr: float = 0.01,
        lr_schedule: str = "constant",
        update_order: str = "last_layer_first",
        last_layer: type[ClosedFormLastLayer] = ClosedFormLastLayer,
        iterator_train: Any = BatchIterator,
        iterator_train__shuffle: bool = True,
        iterator_valid: Any = BatchIterator,
        train_split: Any = None,
        random_state: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.lr_schedule = lr_schedule
        self.update_order = update_order
        self.last_layer = last_layer
        self.iterator_train__shuffle = iterator_train__shuffle
        self.random_state = random_state
        super().__init__(
            module,
            criterion=criterion,
            optimizer=optimizer,
            lr=lr,
            iterator_train=iterator_train,
            iterator_valid=iterator_valid,
            train_split=train_split,
            **kwargs,
        )

    # -- setting up -----------------------------------------------------------------

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        return [
            ("epoch_timer", EpochTimer()),
            ("train_loss", EpochLoss(name="train_loss", on_train=True)),
            ("valid_loss", EpochLoss(name="valid_loss")),
            ("print_log", EpochLog()),
        ]

    def initialize(self) -> CFLLNet:
        self.seed_ = global_seed() if self.random_state is None else int(self.random_state)
        stream = LentStream(self.device, self.seed_)
        with default_modes(), stream.lent() if self._builds_module() else contextlib.nullcontext():
            super().initialize()
        return self

    def _steps_draw_globally(self) -> bool:
        """Whether a step runs code that may draw from torch's global generators."""
        optimizer = type(self.optimizer_).__module__
        foreign = type(self) is not CFLLNet or not optimizer.startswith(("torch.", "builtins"))
        if self.listeners_["on_grad_computed"]:  # they are called within the step
            modules = [type(callback).__module__ for _, callback in self.callbacks_]
            foreign |= not all(name.startswith(("skorch.", "sklearn_cfll.")) for name in modules)
        return foreign or draws_globally(self.module_)

    def _builds_module(self) -> bool:
        """Whether `initialize` runs code that may draw random numbers."""
        given = isinstance(self.module, nn.Module) and not self.get_params_for("module")
        return not given or draws_globally(self.module)

    def initialize_module(self) -> CFLLNet:
        backbone = self.initialized_instance(self.module, self.get_params_for("module"))
        backbone = to_device(backbone, self.device)
        options: dict[str, Any] = {"in_features": None, "out_features": None}
        options |= {"dtype": module_dtype(backbone)} | self.get_params_for("last_layer")
        self.module_ = CFLLModule(backbone, self.last_layer(**options))
        # The batch on which the last layer has to be solved again, and whether the next step
        # solves.
        self.last_batch_: Any = None
        self.solves_ = True
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> CFLLNet:
        trained = [(name, p) for name, p in self.get_all_learnable_params() if p.requires_grad]
        if not trained:  # fixed features: only the last layer is fitted
            self.optimizer_ = None
            self._optimizers = [name for name in self._optimizers if name != "optimizer"]
            if "optimizer" not in self.prefixes_:  # skorch adds it only for an existing optimiser
                self.prefixes_ = [*self.prefixes_, "optimizer"]  # type: ignore[misc]
            return self
        positional, options = self.get_params_for_optimizer("optimizer", trained)
        self.optimizer_ = self.optimizer(*positional, **options)
        return self

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> CFLLNet:
        self._check_loss()
        return super().fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> CFLLNet:
        """Train for ``max_epochs`` more epochs; an interrupt ends training and keeps the model."""
        self._check_loss()
        if not self.initialized_:
            self.initialize()
        self.first_epoch_ = self.whole_epochs_ = len(self.history)
        self.epoch_losses_: dict[str, float] = {}
        self.last_batch_ = None  # of an interrupted run
        self.interrupted_ = True
        self.lends_ = self._steps_draw_globally()
        with default_modes():
            super().partial_fit(X, y, classes, **fit_params)
        if self.interrupted_:
            del self.history[max(self.first_epoch_, self.whole_epochs_) :]
        if self.interrupted_ and not self.provisional_:
            warnings.warn(
                f"Training was interrupted after {len(self.history)} epochs; the model "
                "trained so far is kept.",
                stacklevel=2,
            )
        return self

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> CFLLNet:
        self.n_epochs_ = self.max_epochs if epochs is None else epochs
        super().fit_loop(X, y, epochs, **kwargs)
        self.interrupted_ = False  # skorch swallows KeyboardInterrupt around this method
        return self

    def configure(
        self,
        *,
        ridge: float,
        decay: float,
        memory: str,
        solver: str,
        lr: float,
        weight_decay: float,
        **settings: Any,
    ) -> None:
        """Change settings of an initialised net; weights and states are kept."""
        for name, value in settings.items():
            setattr(self, name, value)
        layer = self.module_.last_layer
        layer.ridge, layer.decay, layer.memory, layer.solver = ridge, decay, memory, solver
        self.lr = lr
        for group in self.optimizer_.param_groups if self.optimizer_ is not None else ():
            group["lr"] = group["initial_lr"] = lr
            if "weight_decay" in group:  # not every optimiser has one
                # Also for the optimiser that replaces this one, see `reset_optimizer`.
                group["weight_decay"] = self.optimizer__weight_decay = weight_decay

    def run(
        self,
        train: Dataset,
        valid: Dataset | None,
        callbacks: list[Any],
        *,
        provisional: bool = False,
    ) -> None:
        """Continue training with these callbacks and data sets, which the net does not keep."""
        self.callbacks, self.provisional_ = callbacks, provisional
        self.train_split = None if valid is None else predefined_split(valid)
        self._initialize_callbacks()
        try:
            self.partial_fit(train)
        finally:
            self.callbacks, self.train_split = None, None  # type: ignore[assignment]
            self.provisional_ = False
            self.callbacks_: list[Any] = []

    def reset_optimizer(self) -> None:
        """Discard the optimiser's state (moments of past gradients)."""
        with self._current_init_context("optimizer"):
            self.initialize_optimizer()

    def change_optimizer(self, optimizer: type[torch.optim.Optimizer]) -> None:
        """Continue with an optimiser of another class; if the class is the same, keep its state."""
        if self.optimizer_ is None or type(self.optimizer_) is optimizer:
            return
        options = optimizer_options(optimizer, self.module_)
        settings = {f"optimizer__{name}": value for name, value in options.items()}
        self._set_optimizer_settings({"optimizer": optimizer, **settings})
        self.reset_optimizer()

    def _set_optimizer_settings(self, settings: dict[str, Any]) -> None:
        """Replace all settings of the optimiser, and the optimiser itself."""
        for name in self._optimizer_settings():
            del self.__dict__[name]  # bypasses skorch, which would unregister the optimiser
        self.__dict__.update(settings)

    def _optimizer_settings(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in vars(self).items()
            if name in ("optimizer", "optimizer_") or name.startswith("optimizer__")
        }

    def snapshot(self) -> tuple[Any, ...]:
        """Copies of weights, states and settings, and the number of epochs; for `restore`."""
        optimizer = None if self.optimizer_ is None else self.optimizer_.state_dict()
        copies = copy.deepcopy(self.module_.state_dict()), copy.deepcopy(optimizer)
        layer = {name: getattr(self.module_.last_layer, name) for name in LAST_LAYER}
        return *copies, self._optimizer_settings(), layer, len(self.history)

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a `snapshot`."""
        module, optimizer, settings, layer, n_epochs = snapshot
        self._set_optimizer_settings(settings)
        self.module_.load_state_dict(module)
        for name, value in layer.items():
            setattr(self.module_.last_layer, name, value)
        if optimizer is not None and self.optimizer_ is not None:
            self.optimizer_.load_state_dict(optimizer)
        del self.history[n_epochs:]

    # -- data -----------------------------------------------------------------------

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        if isinstance(X, Dataset | DataLoader):
            return X
        own = self.dataset is not skorch.dataset.Dataset or self.get_params_for("dataset")
        if own or isinstance(X, Mapping | list | tuple):  # several inputs: skorch's own data set
            return super().get_dataset(X, y)
        dtype = self._dtype()
        targets = None if y is None else as_tensor(y).to(self.device, dtype)
        return RowsDataset(as_rows(X, self.device, dtype), targets)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if isinstance(dataset, DataLoader):
            return dataset
        iterator = super().get_iterator(dataset, training=training)
        if isinstance(iterator, BatchIterator):
            iterator.seed = getattr(self, "seed_", 0)
            iterator.epoch = len(self.history or ())
            if not training:
                iterator.shuffle = False
        return iterator

    def _dtype(self) -> torch.dtype:
        if getattr(self, "initialized_", False):
            return self.module_.last_layer.weight.dtype
        return module_dtype(self.module) if isinstance(self.module, nn.Module) else torch.float32

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            tensor = as_tensor(value)
            floating = tensor.is_floating_point()
            return tensor.to(self.device, self._dtype() if floating else tensor.dtype)
        if isinstance(value, Mapping):
            return {key: self._on_device(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._on_device(part) for part in value)
        tensor = to_tensor(value, self.device)
        return self._on_device(tensor) if isinstance(tensor, Tensor) else tensor

    # -- steps ----------------------------------------------------------------------

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """One pass over the batches, which records the mean loss over their rows."""
        if iterator is None:
            return
        if training:
            # All random numbers of an epoch depend only on (seed, epoch): a run resumed from a
            # checkpoint gives the same result as an uninterrupted one.
            seed = mix_seed(self.seed_, len(self.history))
            seed_dropout(self.module_, own_generator(self.device, seed))
            self.stream_ = LentStream(self.device, seed)
            self.n_batches_ = len(iterator)
            self.step_ = (len(self.history) - 1 - self.first_epoch_) * self.n_batches_
        solve_after = self._solve_after_epoch
        if fetches_by_own_code(iterator):
            iterator = self.stream_.batches(iterator)
        if self.lends_:
            lend = self.stream_.lent()
            step_fn, solve_after = lend(step_fn), lend(solve_after)
        self._set_training(training)
        if training:
            self._listen()
        losses: list[Any] = []
        sizes: list[int] = []
        if self._records_batches():
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            names = (f"{prefix}_loss", f"{prefix}_batch_size")
            losses, sizes = map(list, zip(*self.history[-1, "batches", :, names], strict=True))
        else:
            for batch in iterator:
                losses.append(step_fn(batch, **fit_params)["loss"].detach())
                sizes.append(get_len(batch[0] if isinstance(batch, list | tuple) else batch))
            # skorch's loggers and Checkpoint read the last batch of an epoch, so record one.
            if not self.history[-1]["batches"]:
                self.history.new_batch()
            self.history.record_batch(f"{prefix}_loss", float(losses[-1]))
            self.history.record_batch(f"{prefix}_batch_size", sizes[-1])
            self.history.record(f"{prefix}_batch_count", len(sizes))
        if training:
            solve_after()
            self.history.record("learning_rate", self._current_rate())
            self.epoch_losses_ = {}
        loss = float(np.average([float(value) for value in losses], weights=sizes))
        self.epoch_losses_[f"{prefix}_loss"] = loss

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Update both parts on one batch, in ``update_order``; raise if the loss is not finite.

        "last_layer_first" solves on the batch's features, then updates the backbone with the new
        weights fixed. The gradient is that of the proximal loss itself (envelope theorem), as in
        variable projection. "backbone_first" updates the backbone with the stored weights, then
        solves on its *new* features: Algorithm 1 of arXiv 2510.04606.
        """
        self._follow_schedule()
        trains = bool(self._optimizers)
        accumulator = self.get_train_step_accumulator()
        evaluated = False

        def evaluate() -> Tensor:
            nonlocal evaluated
            if trains:
                self._zero_grad_optimizer()
            if evaluated:  # the last layer is fixed in further evaluations
                self.solves_ = False
            step = self.train_step_single(batch, **fit_params)
            accumulator.store_step(step)
            evaluated = True
            if self.listeners_["on_grad_computed"]:
                named = TeeGenerator(self.get_all_learnable_params())
                kwargs = {"named_parameters": named, "batch": batch, "training": True}
                self.notify("on_grad_computed", **kwargs)
            loss: Tensor = step["loss"]
            return loss

        with self.naming_divergence():
            try:
                if trains:
                    self._step_optimizer(evaluate)
                else:
                    evaluate()
            finally:
                if not self.solves_:  # skorch checks each attribute that is set
                    self.solves_ = True
            if self.update_order == "backbone_first":
                self._solve_last_batch()
        step: dict[str, Any] = accumulator.get_step()
        loss = step["loss"]
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._raise_diverged()
        return step

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss and gradients of one batch; with "last_layer_first" the solve comes first."""
        inputs, targets, sample_weight = self._unpack(batch)
        if targets is None:
            raise ValueError(
                "CFLLNet needs targets to solve for its last layer, got y=None and a data set "
                "without targets."
            )
        if not self.module_.training:
            self._set_training(True)
        if self.update_order == "backbone_first":
            self._solve_last_batch()  # if a user's own `train_step` has not done it
        inputs, kwargs = self._merged(inputs, fit_params)
        features, *more = self.module_.outputs(inputs, **kwargs)
        self.last_batch_ = (inputs, targets, sample_weight, kwargs)
        targets = self.module_.matched_targets(targets, features)
        layer = self.module_.last_layer
        if self.update_order == "last_layer_first" and self.solves_:
            solve(self.module_, features, targets, sample_weight)

        def loss(prediction: Tensor, wanted: Tensor, weight: Tensor | None) -> Tensor:
            options = {} if weight is None else {"sample_weight": weight}
            y_pred = (prediction, *more) if more else prediction
            return self.get_loss(y_pred, wanted, X=inputs, training=True, **options)

        error, prediction = training_error(layer, features, targets, sample_weight, loss)
        if error.requires_grad:
            error.backward()
        if layer.n_members > 1:
            error = error / layer.n_members
        prediction = prediction.detach()
        return {"loss": error, "y_pred": (prediction, *more) if more else prediction}

    def _follow_schedule(self) -> None:
        if self.lr_schedule == "constant" or not self._optimizers:
            return
        factor = SCHEDULES[self.lr_schedule](self.step_ / (self.n_epochs_ * self.n_batches_))
        self.step_ += 1
        for group in self.optimizer_.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def _solve_last_batch(self) -> None:
        """Solve again on the last batch, after its step has changed the backbone."""
        batch, self.last_batch_ = self.last_batch_, None
        if batch is not None:
            *rows, kwargs = batch
            solve_again(self.module_, *rows, **kwargs)

    def _solve_after_epoch(self) -> None:
        """Solve again after the last step of an epoch, before the net is evaluated.

        With "last_layer_first", the last layer does not reflect that step; at large learning rates,
        errors between epochs were up to three times as large and erratic (benchmarks/operators.py).
        """
        # "statistics" contain the batch already; for one batch of all rows, it would cost a step
        # more.
        holds = self.module_.last_layer.memory != "proximal" or self.n_batches_ == 1
        if not self._optimizers or (self.update_order == "last_layer_first" and holds):
            self.last_batch_ = None
        with self.naming_divergence():
            self._solve_last_batch()

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        inputs, targets, sample_weight = self._unpack(batch)
        if self.module_.training:
            self._set_training(False)
        with torch.no_grad():
            inputs, kwargs = self._merged(inputs, fit_params)
            output = apply(self.module_, inputs, **kwargs)
            first, *more = as_tuple(output)
            prediction = with_feature_dimension(first)
            targets = match_targets(targets, prediction, prediction.shape[-1])
            y_pred = (prediction, *more) if more else prediction
            options = {} if sample_weight is None else {"sample_weight": sample_weight}
            loss = self.get_loss(y_pred, targets, X=inputs, training=False, **options)
        if not torch.isfinite(loss):
            self._raise_diverged()
        return {"loss": loss, "y_pred": y_pred}

    def mean_loss(self, dataset: Any) -> float:
        """The loss on a labelled data set, computed as in the validation of an epoch."""
        losses, sizes = [], []
        for batch in self._batches(dataset):
            losses.append(float(self.validation_step(batch)["loss"]))
            sizes.append(get_len(batch[0]))
        return float(np.average(losses, weights=sizes))

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        self.check_is_fitted()
        with default_modes(), torch.set_grad_enabled(training):
            self._set_training(training)
            return apply(self.module_, self._inputs(batch))

    def features(self, X: Any) -> Tensor:
        """The backbone's output in evaluation mode, on the CPU."""
        return torch.cat([features.cpu() for features in self.iterate_features(X)])

    def iterate_features(self, X: Any) -> Iterator[Tensor]:
        """The backbone's output in evaluation mode, batch by batch."""
        return (self._features(batch) for batch in self._batches(X))

    def labelled_features(self, X: Any, y: Any = None) -> Iterator[tuple[Any, ...]]:
        """Batches of (features, targets, weights) in evaluation mode, the input of ``refit``."""
        for batch in self._batches(X, y):
            features = self._features(batch)
            _, targets, sample_weight = self._unpack(batch)
            yield features, self.module_.matched_targets(targets, features), sample_weight

    def get_loss(
        self,
        y_pred: Any,
        y_true: Any,
        X: Any = None,
        training: bool = False,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Squared error by ``criterion``: the loss of the backbone.

        Parameters
        ----------
        y_pred, y_true : Tensor of shape (n, ..., k)
            Those of all members are concatenated when an ensemble is trained. ``y_pred`` is a tuple
            that starts with the predictions if the module returns a tuple.
        X : optional
            The batch's inputs.
        training : bool, default=False
        sample_weight : Tensor of shape (n,), optional
            Given only if the rows have weights.
        """
        y_pred = y_pred[0] if isinstance(y_pred, tuple) else y_pred
        y_true = y_true if isinstance(y_true, Tensor) else self._on_device(y_true)
        if sample_weight is None:
            loss: Tensor = self.criterion_(y_pred, y_true)
            return loss
        if type(self.criterion_) is not nn.MSELoss or self.criterion_.reduction != "mean":
            raise ValueError(
                f"Rows with sample weights need `criterion`=torch.nn.MSELoss with "
                f'reduction="mean", got {self.criterion_!r}. Override `get_loss`, which receives '
                "the weights."
            )
        return squared_error(y_pred, y_true, sample_weight)

    def _batches(self, X: Any, y: Any = None) -> Any:
        return self.get_iterator(self.get_dataset(X, y), training=False)

    @torch.no_grad()
    def _features(self, batch: Any) -> Tensor:
        self._set_training(False)
        return self.module_.features(self._inputs(batch))

    def _inputs(self, batch: Any) -> Any:
        # Rows of a RowsDataset are on the device, in the dtype that their network takes.
        return batch.inputs if isinstance(batch, Batch) else self._on_device(unpack_batch(batch)[0])

    def _unpack(self, batch: Any) -> tuple[Any, Any, Tensor | None]:
        if isinstance(batch, Batch):
            return batch  # of a RowsDataset: on the device, cast already
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            unpack_data(batch)  # skorch's error
        inputs, targets, sample_weight = unpack_batch(batch)
        targets = self._on_device(targets).to(self._dtype())
        if sample_weight is not None:
            sample_weight = self._on_device(sample_weight).to(self._dtype())
        return self._on_device(inputs), targets, sample_weight

    def _current_rate(self) -> float:
        optimizer = getattr(self, "optimizer_", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            return optimizer.param_groups[0]["lr"]
        return 0.0 if optimizer is None else math.nan  # NaN: not a torch optimiser

    def check_finite(self) -> None:
        """Raise if the last layer's weights are not finite."""
        if not torch.isfinite(self.module_.last_layer.weight).all():
            self._raise_diverged()

    @contextlib.contextmanager
    def naming_divergence(self) -> Iterator[None]:
        """Report features that are not finite as divergence of the backbone."""
        try:
            yield
        except NotFiniteError as error:
            if error.argument != "features":
                raise
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        layer = self.module_.last_layer
        raise FloatingPointError(
            f"Training diverged in epoch {len(self.history)}: the loss is not finite. Lower "
            f"`learning_rate` (now {self.lr:g}) or raise `ridge` (now {layer.ridge:g})."
        )
