"""The part of CFLLNet that follows skorch's conventions: checks, listeners and files."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator, Mapping
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

import numpy as np
import skorch
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score
from skorch.callbacks import Callback, LRScheduler
from torch import nn

from ..heads.member import SETTINGS
from ..heads.module import CFLLModule
from .batches import Batch, unpack_batch
from .distribution import Alone, Workers
from .schedules import SCHEDULES
from .update_orders import UPDATE_ORDERS

__all__ = ["SkorchConventions"]

BATCH_HOOKS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
# Methods that may use records of batches if a subclass overrides them.
STEPS = (
    "train_step",
    "train_step_single",
    "validation_step",
    "get_loss",
    "get_train_step_accumulator",
)
OURS = (f"{__package__}.steps", "skorch.net")


class SkorchConventions(RegressorMixin, skorch.NeuralNet):
    """The part of CFLLNet other than training: options, listeners, files and the score."""

    # Attributes of CFLLNet.
    module_: Any
    callbacks_: list[Any]
    callbacks: Any
    optimizer_: Any
    update_order: str
    lr_schedule: str
    interrupted_: bool
    workers_: Workers = Alone()  # that train this net together

    def _check_options(self) -> None:
        for name, value, known in (
            ("update_order", self.update_order, UPDATE_ORDERS),
            ("lr_schedule", self.lr_schedule, SCHEDULES),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {sorted(known)}, got {value!r}.")

    def check_training_readiness(self) -> None:
        """Raise, before any work starts, if the net cannot be trained with these options."""
        super().check_training_readiness()
        self._check_options()
        check_schedule(self.lr_schedule, self.callbacks)

    def _check_loss(self) -> None:
        self.check_training_readiness()
        check_criterion(self.criterion)
        if type(self).infer is not skorch.NeuralNet.infer:
            raise TypeError(
                f"{type(self).__name__} overrides `infer`, which CFLLNet does not use in training: "
                "it needs the features for the last layer. Override `forward` of the "
                "module instead."
            )

    def _initialize_callbacks(self) -> SkorchConventions:
        super()._initialize_callbacks()
        self._listen()
        return self

    def _listen(self) -> None:
        """Find which batch events have listeners; callbacks may change between epochs."""
        callbacks = [callback for _, callback in self.callbacks_]
        self.listeners_ = {
            hook: listens(self, hook, skorch.NeuralNet)
            or any(listens(callback, hook) for callback in callbacks)
            for hook in BATCH_HOOKS
        }

    def _records_batches(self) -> bool:
        if self.listeners_["on_batch_begin"] or self.listeners_["on_batch_end"]:
            return True
        return any(getattr(self, step).__module__ not in OURS for step in STEPS)

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        params = super().get_params_for(prefix)
        if prefix == "optimizer" and params.get("param_groups"):
            groups = parameter_groups(params["param_groups"], self.module_.backbone)
            params["param_groups"] = groups
        return params

    def torch_compile(self, module: nn.Module, name: str) -> nn.Module:
        # Compiling the backbone in place keeps module_ and its state_dict as they are.
        if isinstance(module, CFLLModule):
            if self.compile:
                module.backbone.compile(**self.get_params_for("compile"))
            return module
        # Squared error is a part of the solve: there is nothing to compile.
        return module if name == "criterion" else super().torch_compile(module, name)

    def notify(self, method_name: str, **kwargs: Any) -> None:
        if isinstance(kwargs.get("batch"), Batch):  # callbacks expect inputs and targets
            kwargs["batch"] = tuple(kwargs["batch"][:2])
        if method_name == "on_epoch_end":
            self.whole_epochs_ = len(self.history)
        if method_name == "on_grad_computed" and not self.listeners_[method_name]:
            return  # of each batch, and nobody listens
        stopped: KeyboardInterrupt | None = None
        try:
            super().notify(method_name, **kwargs)
        except KeyboardInterrupt as error:
            # Early stopping and similar callbacks end training this way between epochs.
            self.interrupted_ = method_name in BATCH_HOOKS
            stopped = error
        if method_name == "on_epoch_end" and self.workers_.any_(stopped is not None):
            self.interrupted_ = False  # if one worker ends training, all do
            raise stopped or KeyboardInterrupt
        if stopped is not None:
            raise stopped

    def set_params(self, **kwargs: Any) -> SkorchConventions:
        """Set parameters; those of the last layer and ``lr`` also act on a fitted net."""
        layer = {k: v for k, v in kwargs.items() if k.split("__")[0] == "last_layer"}
        if self.initialized_ and layer:
            kwargs = {k: v for k, v in kwargs.items() if k not in layer}
            self._set_last_layer(layer)
        super().set_params(**kwargs)
        if self.initialized_ and self.optimizer_ is not None and "lr" in kwargs:
            for group in self.optimizer_.param_groups:
                group.pop("initial_lr", None)
        return self

    def _set_last_layer(self, params: dict[str, Any]) -> None:
        for key, value in params.items():
            setattr(self, key, value)
            self._params_to_validate.add(key)
        names = [key.removeprefix("last_layer__") for key in params]
        if all(name in SETTINGS for name in names):  # others need a new last layer
            for name, value in zip(names, params.values(), strict=True):
                setattr(self.module_.last_layer, name, value)
            return
        self._initialize_module(self._format_reinit_msg("module", params))
        self._initialize_criterion(self._format_reinit_msg("criterion", None, False))
        self._initialize_optimizer(self._format_reinit_msg("optimizer", None, False))

    def save_params(self, *args: Any, **kwargs: Any) -> None:
        """See :meth:`skorch.NeuralNet.save_params`; files are replaced once complete."""
        names = ("f_params", "f_optimizer", "f_criterion", "f_history")
        kwargs |= dict(zip(names, args, strict=False))
        with contextlib.ExitStack() as stack:
            for name, target in kwargs.items():
                if name.startswith("f_"):
                    kwargs[name] = stack.enter_context(written_whole(target))
            super().save_params(**kwargs)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Coefficient of determination R² of the predictions, averaged over targets.

        Parameters
        ----------
        X
            Inputs as :meth:`predict` takes them.
        y : array of shape (n, ...), optional
            Targets; may be omitted for a data set with targets.
        sample_weight : array of shape (n,), optional
        """
        if y is None:
            batches = self.get_iterator(self.get_dataset(X), training=False)
            targets = [unpack_batch(batch)[1] for batch in batches]
            if targets[0] is None:
                raise ValueError("`score` needs targets: pass `y`, or a data set with targets.")
            y = torch.cat(targets).cpu()
        wanted, predicted = (
            np.reshape(part, (len(part), -1)) for part in (np.asarray(y), self.predict(X))
        )
        score: float = r2_score(wanted, predicted, sample_weight=sample_weight)
        return score

    def _merged(self, inputs: Any, fit_params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Inputs, and further keyword arguments of the module."""
        if fit_params and isinstance(inputs, Mapping):
            return self._merge_x_and_fit_params(inputs, fit_params), {}
        return inputs, fit_params


def check_criterion(criterion: Any) -> None:
    """Raise unless the criterion is squared error (class or instance), or None in a trimmed net."""
    kind = criterion.func if isinstance(criterion, functools.partial) else criterion
    kind = kind if isinstance(kind, type) else type(kind)
    if criterion is not None and not issubclass(kind, nn.MSELoss):
        name = getattr(criterion, "__name__", None) or kind.__name__
        raise ValueError(
            f"`criterion` must be torch.nn.MSELoss or a subclass of it, got {name}: the last layer "
            "is solved in closed form, which exists only for squared error. To add a penalty on "
            "the backbone, override `get_loss`; for classification use CFLLClassifier."
        )


def check_schedule(lr_schedule: str, callbacks: Any) -> None:
    """Raise if a callback would set the learning rate in addition to the schedule."""
    if lr_schedule == "constant" or not callbacks or isinstance(callbacks, str):
        return
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple | list) else item
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, LRScheduler):
            raise ValueError(
                f"`lr_schedule`={lr_schedule!r} (`learning_rate_schedule` of the estimators) and "
                f'the callback {kind.__name__} would both set the learning rate. Use "constant" '
                "with the callback, or remove the callback."
            )


def listens(listener: Any, hook: str, nothing: type = Callback) -> bool:
    """Whether a callback, or an object that behaves like one, handles this event."""
    own = hook in getattr(listener, "__dict__", ())
    return own or getattr(type(listener), hook, None) is not getattr(nothing, hook)


def parameter_groups(groups: Any, backbone: nn.Module) -> list[tuple[str, Any]]:
    """Parameter groups of an optimiser; patterns may use names of the user's module."""
    names = [name for name, _ in backbone.named_parameters()]
    return [
        (f"backbone.{pattern}" if matching(names, pattern) else pattern, group)
        for pattern, group in groups
    ]


@contextlib.contextmanager
def written_whole(target: Any) -> Iterator[Any]:
    """Yield a temporary path that replaces the target once it is completely written to disk.

    If the process is killed before that, the old file is kept. Open files are passed through.
    """
    if not isinstance(target, str | os.PathLike) or (
        os.path.exists(target) and not os.path.isfile(target)
    ):
        yield target
        return
    path = Path(os.path.realpath(target))  # a symbolic link is kept
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield str(beside)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
