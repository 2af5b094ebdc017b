"""CFLLNet: skorch's training loop around a backbone and a closed-form last layer."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, ClassVar

import skorch
import torch
from skorch.callbacks import Callback, EpochTimer
from skorch.utils import to_device
from torch import nn

from .._warnings import user_level
from ..heads.closed_form import ClosedFormLastLayer
from ..heads.module import CFLLModule, module_dtype
from .batches import BatchIterator
from .callbacks import EpochLog, EpochLoss
from .distribution import refuse_workers
from .runs import Runs
from .seeding import LentStream, draws_globally, global_seed
from .torch_settings import default_modes

__all__ = ["CFLLNet"]


class CFLLNet(Runs):
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
    autocast : torch.dtype, default=None
        Dtype in which the backbone computes its products, as in :class:`torch.autocast`; usually
        ``torch.bfloat16``. Parameters stay as they are, and the last layer is solved in float32 or
        better. float16 would need its gradients scaled.
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
        autocast: torch.dtype | None = None,
        random_state: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.lr_schedule = lr_schedule
        self.update_order = update_order
        self.last_layer = last_layer
        self.iterator_train__shuffle = iterator_train__shuffle
        self.autocast = autocast
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
        self.module_ = CFLLModule(backbone, self.last_layer(**options), self.autocast)
        self.last_batch_ = None
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
        refuse_workers("CFLLNet")
        return super().fit(X, y, **fit_params)

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> CFLLNet:
        """Train for ``max_epochs`` more epochs; an interrupt ends training and keeps the model."""
        self._check_loss()
        if not self.initialized_:
            self.initialize()
        self.first_epoch_ = self.whole_epochs_ = len(self.history)
        self.epoch_losses_: dict[str, float] = {}
        self.n_batches_ = self.resumed_ = 0
        self.last_batch_ = None  # of an interrupted run
        self.interrupted_ = True
        self.lends_ = self._steps_draw_globally()
        with default_modes():
            super().partial_fit(X, y, classes, **fit_params)
        if self.interrupted_ and self.workers_.size > 1:
            raise KeyboardInterrupt  # the others are at another batch, or wait for this one
        del self.history[max(self.first_epoch_, self.whole_epochs_) :]  # of an unfinished epoch
        if self.interrupted_ and not self.provisional_:
            warnings.warn(
                f"Training was interrupted after {len(self.history)} epochs; the model "
                "trained so far is kept.",
                stacklevel=user_level(),
            )
        return self

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> CFLLNet:
        self.n_epochs_ = self.max_epochs if epochs is None else epochs
        super().fit_loop(X, y, self.n_epochs_ - self.resumed_, **kwargs)
        self.interrupted_ = False  # skorch swallows KeyboardInterrupt around this method
        return self
