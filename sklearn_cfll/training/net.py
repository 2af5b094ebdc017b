"""CFLLNet: skorch's training loop around a backbone and a closed-form last layer."""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import skorch
import torch
from skorch.callbacks import Callback, EpochTimer
from skorch.dataset import get_len
from skorch.helper import predefined_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..backbones.dropout import seed_dropout
from ..last_layer import ClosedFormLastLayer, NotFiniteError
from .batches import (
    Batch,
    BatchIterator,
    RowsDataset,
    as_rows,
    as_tensor,
    fetch,
    fetches_by_own_code,
    unpack_batch,
)
from .callbacks import EpochLog
from .optimizers import optimizer_options
from .schedules import SCHEDULES
from .seeding import LentStream, draws_globally, global_seed, mix_seed, own_generator
from .steps import (
    UPDATE_ORDERS,
    CFLLModule,
    apply,
    match_targets,
    module_dtype,
    solve_again,
    squared_error,
)
from .torch_settings import default_modes

__all__ = ["CFLLNet"]

LAST_LAYER = ("ridge", "decay", "memory", "solver")  # its settings, of every run
BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")


class CFLLNet(skorch.NeuralNet):
    """A skorch net that trains a backbone by gradient and its last layer in closed form.

    Everything of :class:`skorch.NeuralNet` works as skorch documents it: ``module__*``,
    ``optimizer__*``, ``iterator_train__*``, callbacks, history, checkpoints, ``set_params``.
    The loss is squared error. Batches are index selections from tensors on the device;
    skorch's records per batch are kept only while a callback listens to batches.

    Parameters
    ----------
    module : torch.nn.Module class or instance
        The *backbone*: maps inputs to features of shape (n, ..., d).
    optimizer : torch.optim.Optimizer class, default=torch.optim.AdamW
        Trains the backbone; the last layer has no parameters.
    lr : float, default=0.01
    lr_schedule : {"constant", "cosine", "linear", "one_cycle"}, default="constant"
        Factor of ``lr`` from step to step over ``max_epochs``. Leave "constant" beside
        skorch's ``LRScheduler``.
    update_order : {"last_layer_first", "backbone_first"}, default="last_layer_first"
        Which of the two moves first on each batch. "backbone_first" is the paper's
        Algorithm 1 and costs a second forward pass.
    last_layer : class, default=ClosedFormLastLayer
        Built with ``last_layer__ridge``, ``last_layer__decay``, ``last_layer__memory``...;
        ``last_layer__in_features`` and ``last_layer__out_features`` are read off the first
        batch where they are not given.
    train_split : callable or None, default=None
        skorch's split into training and validation rows.
    random_state : int or None, default=None
        Drives initialisation, shuffling and dropout; the global random state is restored
        after training. None draws a seed from torch's global state.
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

    provisional_ = False  # what is trained is undone in any case
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
        # No PassthroughScoring: it reads records of every batch; `run_single_epoch` keeps
        # the sums instead.
        return [("epoch_timer", EpochTimer()), ("print_log", EpochLog())]

    def initialize(self) -> CFLLNet:
        for name, value, known in (
            ("update_order", self.update_order, UPDATE_ORDERS),
            ("lr_schedule", self.lr_schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {sorted(known)}, got {value!r}.")
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

    def _initialize_callbacks(self) -> CFLLNet:
        super()._initialize_callbacks()
        self.listeners_ = {
            hook: any(
                getattr(type(callback), hook) is not getattr(Callback, hook)
                for _, callback in self.callbacks_
            )
            for hook in BATCH_HOOKS
        }
        return self

    def initialize_module(self) -> CFLLNet:
        backbone = self.initialized_instance(self.module, self.get_params_for("module"))
        options = self.get_params_for("last_layer")
        backbone = backbone.to(self.device)
        options.setdefault("dtype", module_dtype(backbone))
        sample = getattr(self, "sample_", None)
        if "in_features" not in options or "out_features" not in options:
            if sample is None:
                raise ValueError(
                    "The last layer's sizes are read off the data at `fit`. To initialise "
                    "before, give `last_layer__in_features` and `last_layer__out_features`."
                )
            inputs, targets, _ = sample
            with torch.no_grad():
                backbone.eval()
                features = apply(backbone, self._on_device(inputs, options["dtype"]))
            targets = torch.as_tensor(targets)
            one_target = targets.ndim == features.ndim - 1
            options.setdefault("in_features", features.shape[-1])
            options.setdefault("out_features", 1 if one_target else targets.shape[-1])
        self.module_ = CFLLModule(backbone, self.last_layer(**options))
        return self

    def initialize_optimizer(self, *args: Any, **kwargs: Any) -> CFLLNet:
        trained = [(name, p) for name, p in self.module_.named_parameters() if p.requires_grad]
        if not trained:  # fixed features: only the last layer is fitted
            self.optimizer_ = None
            if "optimizer" not in self.prefixes_:  # skorch learns it from a live optimiser
                self.prefixes_ = [*self.prefixes_, "optimizer"]  # type: ignore[misc]
            return self
        positional, options = self.get_params_for_optimizer("optimizer", trained)
        self.optimizer_ = self.optimizer(*positional, **options)
        return self

    def torch_compile(self, module: nn.Module, name: str) -> nn.Module:
        # Compiling the backbone in place keeps module_ and its state_dict as they are.
        if self.compile and isinstance(module, CFLLModule):
            module.backbone.compile(**self.get_params_for("compile"))
        return module

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> CFLLNet:
        self._remember_sample(X, y)
        return super().fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> CFLLNet:
        """Train for ``max_epochs`` more; Ctrl-C ends training and keeps the model."""
        if not self.initialized_:
            self._remember_sample(X, y)
            self.initialize()
        self.first_epoch_ = len(self.history)
        self.best_losses_ = {
            name: min((row[name] for row in self.history if name in row), default=math.inf)
            for name in ("train_loss", "valid_loss")
        }
        self.interrupted_ = True
        self.lends_ = self._steps_draw_globally()
        with default_modes():
            super().partial_fit(X, y, classes, **fit_params)
        while self.history and "train_loss" not in self.history[-1]:
            del self.history[-1]  # an epoch that was interrupted has no loss
        if self.interrupted_ and not self.provisional_:
            warnings.warn(
                f"Training was interrupted after {len(self.history)} epochs; the model "
                "trained so far is kept.",
                stacklevel=2,
            )
        return self

    def fit_loop(self, *args: Any, **kwargs: Any) -> CFLLNet:
        super().fit_loop(*args, **kwargs)
        self.interrupted_ = False  # skorch swallows KeyboardInterrupt around this method
        return self

    def notify(self, method_name: str, **kwargs: Any) -> None:
        if isinstance(kwargs.get("batch"), Batch):  # callbacks expect inputs and targets
            kwargs["batch"] = tuple(kwargs["batch"][:2])
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt:
            # Early stopping and its like end training this way between epochs.
            self.interrupted_ = method_name in BATCH_HOOKS
            raise

    def set_params(self, **kwargs: Any) -> CFLLNet:
        """Set parameters; those of the last layer and the rate act on a fitted net too."""
        layer = {
            key.removeprefix("last_layer__"): value
            for key, value in kwargs.items()
            if key.startswith("last_layer__")
        }
        if self.initialized_ and layer:
            for name, value in layer.items():
                setattr(self, f"last_layer__{name}", value)
                setattr(self.module_.last_layer, name, value)
            kwargs = {k: v for k, v in kwargs.items() if not k.startswith("last_layer__")}
        super().set_params(**kwargs)
        if self.initialized_ and self.optimizer_ is not None and "lr" in kwargs:
            for group in self.optimizer_.param_groups:
                group.pop("initial_lr", None)
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
        """Change settings of an initialised net without touching what it has learnt."""
        for name, value in settings.items():
            setattr(self, name, value)
        layer = self.module_.last_layer
        layer.ridge, layer.decay, layer.memory, layer.solver = ridge, decay, memory, solver
        self.lr = lr
        for group in self.optimizer_.param_groups if self.optimizer_ is not None else ():
            group["lr"] = group["initial_lr"] = lr
            if "weight_decay" in group:  # not every optimiser has one
                # Also for the optimiser that takes this one's place, see `reset_optimizer`.
                group["weight_decay"] = self.optimizer__weight_decay = weight_decay

    def run(
        self,
        train: Dataset,
        valid: Dataset | None,
        callbacks: list[Any],
        *,
        provisional: bool = False,
    ) -> None:
        """Train on with these callbacks and rows; neither stays in the net."""
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
        """Forget the optimiser's state (moments of past gradients)."""
        with self._current_init_context("optimizer"):
            self.initialize_optimizer()

    def change_optimizer(self, optimizer: type[torch.optim.Optimizer]) -> None:
        """Go on with an optimiser of another class; of the same one nothing is forgotten."""
        if self.optimizer_ is None or type(self.optimizer_) is optimizer:
            return
        options = optimizer_options(optimizer, self.module_)
        settings = {f"optimizer__{name}": value for name, value in options.items()}
        self._set_optimizer_settings({"optimizer": optimizer, **settings})
        self.reset_optimizer()

    def _set_optimizer_settings(self, settings: dict[str, Any]) -> None:
        """Settings of the optimiser in place of those that are there, the optimiser itself too."""
        for name in self._optimizer_settings():
            del self.__dict__[name]  # past skorch, which would forget that there is an optimiser
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
        if isinstance(X, Dataset | DataLoader) and y is None:
            return X
        if isinstance(X, dict | list | tuple):  # several inputs: skorch's own data set
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

    def _remember_sample(self, X: Any, y: Any) -> None:
        """Two rows, off which the last layer's sizes are read."""
        dataset = self.get_dataset(X, y)
        # A loader draws a seed, a data set may draw what it gives.
        stream = LentStream(self.device, 0)
        with stream.lent() if fetches_by_own_code(dataset) else contextlib.nullcontext():
            if isinstance(dataset, DataLoader):
                self.sample_ = unpack_batch(next(iter(dataset)))
            else:
                self.sample_ = unpack_batch(fetch(dataset, slice(0, 2)))

    def _dtype(self) -> torch.dtype:
        if getattr(self, "initialized_", False):
            return self.module_.last_layer.weight.dtype
        return module_dtype(self.module) if isinstance(self.module, nn.Module) else torch.float32

    def _on_device(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        if isinstance(value, dict):
            return {key: self._on_device(part, dtype) for key, part in value.items()}
        tensor = as_tensor(value)
        if tensor.is_floating_point():
            return tensor.to(self.device, dtype or self._dtype())
        return tensor.to(self.device)

    # -- steps ----------------------------------------------------------------------

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """One pass over the batches; records the mean loss of its rows."""
        if iterator is None:
            return
        if training:
            # Everything random in an epoch follows from (seed, epoch): a run resumed from
            # a checkpoint repeats what an uninterrupted one would have done.
            seed = mix_seed(self.seed_, len(self.history))
            seed_dropout(self.module_, own_generator(self.device, seed))
            self.stream_ = LentStream(self.device, seed)
            self.n_batches_ = len(iterator)
            self.step_ = (len(self.history) - 1 - self.first_epoch_) * self.n_batches_
        settle = self._settle
        if fetches_by_own_code(iterator):
            iterator = self.stream_.batches(iterator)
        if self.lends_:
            lend = self.stream_.lent()
            step_fn, settle = lend(step_fn), lend(settle)
        self._set_training(training)
        losses: list[Any] = []
        sizes: list[int] = []
        if self.listeners_["on_batch_begin"] or self.listeners_["on_batch_end"]:
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            names = (f"{prefix}_loss", f"{prefix}_batch_size")
            losses, sizes = map(list, zip(*self.history[-1, "batches", :, names], strict=True))
        else:
            for batch in iterator:
                losses.append(step_fn(batch, **fit_params)["loss"])
                sizes.append(get_len(batch[0]))
            # skorch's loggers and Checkpoint look at an epoch's last batch: leave them one.
            if not self.history[-1]["batches"]:
                self.history.new_batch()
            self.history.record_batch(f"{prefix}_loss", float(losses[-1]))
            self.history.record_batch(f"{prefix}_batch_size", sizes[-1])
        if training:
            settle()
        loss = float(np.average([float(value) for value in losses], weights=sizes))
        if training:
            self.history.record("learning_rate", self._current_rate())
        name = f"{prefix}_loss"
        self.history.record(name, loss)
        self.history.record(f"{name}_best", loss < self.best_losses_[name])
        self.best_losses_[name] = min(loss, self.best_losses_[name])

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Both moves on one batch, in ``update_order``; stops where the loss is not finite."""
        inputs, targets, sample_weight = self._unpack(batch)
        if not self.module_.training:
            self._set_training(True)
        if self.lr_schedule != "constant" and self.optimizer_ is not None:
            factor = SCHEDULES[self.lr_schedule](self.step_ / (self.max_epochs * self.n_batches_))
            self.step_ += 1
            for group in self.optimizer_.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
        self.last_batch_: Any = (inputs, targets, sample_weight)
        step = UPDATE_ORDERS[self.update_order]
        with self.naming_divergence():
            loss, prediction = step(self.module_, inputs, targets, sample_weight, self._descend)
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._raise_diverged()
        return {"loss": loss, "y_pred": prediction}

    def _descend(self, loss: Tensor) -> None:
        """One optimiser step on the backbone."""
        if self.optimizer_ is None:
            return
        self.optimizer_.zero_grad()
        loss.backward()
        if self.listeners_["on_grad_computed"]:
            named = list(self.module_.named_parameters())
            self.notify("on_grad_computed", named_parameters=named, training=True)
        self.optimizer_.step()

    def _settle(self) -> None:
        """Let the last layer follow the epoch's last step before anyone looks at the net.

        Last layer first leaves it behind; at large rates errors between epochs were up to three
        times as large, and jumped (benchmarks/operators.py).
        """
        batch, self.last_batch_ = self.last_batch_, None
        behind = self.update_order == "last_layer_first" and self.optimizer_ is not None
        # "statistics" hold the batch already; one batch of all rows would cost a step more.
        if behind and self.module_.last_layer.memory == "proximal" and self.n_batches_ > 1:
            with self.naming_divergence():
                solve_again(self.module_, *batch)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        inputs, targets, sample_weight = self._unpack(batch)
        if self.module_.training:
            self._set_training(False)
        with torch.no_grad():
            prediction = apply(self.module_, inputs)
            targets = match_targets(targets, prediction, prediction.shape[-1])
            loss = squared_error(prediction, targets, sample_weight)
        if not torch.isfinite(loss):
            self._raise_diverged()
        return {"loss": loss, "y_pred": prediction}

    def mean_loss(self, dataset: Any) -> float:
        """The loss on a labelled data set, as an epoch's validation measures it."""
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
        """Batches of (features, targets, weights) in evaluation mode: what ``refit`` takes.

        Of a net with a linear part targets are what that leaves over.
        """
        for batch in self._batches(X, y):
            features = self._features(batch)
            inputs, targets, sample_weight = self._unpack(batch)
            yield features, self.module_.left_over(inputs, targets, features), sample_weight

    def get_loss(
        self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False
    ) -> Tensor:
        return squared_error(y_pred, self._on_device(y_true))

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
        inputs, targets, sample_weight = unpack_batch(batch)
        targets = self._on_device(targets).to(self._dtype())
        if sample_weight is not None:
            sample_weight = self._on_device(sample_weight).to(self._dtype())
        return self._on_device(inputs), targets, sample_weight

    def _current_rate(self) -> float:
        return 0.0 if self.optimizer_ is None else self.optimizer_.param_groups[0]["lr"]

    def check_finite(self) -> None:
        """Raise where the last layer's weights are not finite."""
        if not torch.isfinite(self.module_.last_layer.weight).all():
            self._raise_diverged()

    @contextlib.contextmanager
    def naming_divergence(self) -> Iterator[None]:
        """Features that are not finite come from a backbone that has diverged: say so."""
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
