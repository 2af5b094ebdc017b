"""Runs: how an estimator runs its net several times, and goes back to an earlier state."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from skorch.helper import predefined_split
from torch.utils.data import Dataset

from ..heads.member import SETTINGS
from .distribution import Workers
from .optimizers import optimizer_options
from .steps import Steps

__all__ = ["Runs"]


class Runs(Steps):
    """The part of CFLLNet that an estimator uses to change settings between runs."""

    provisional_ = False  # True if the caller discards the result of a run

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

    @contextlib.contextmanager
    def trained_by(self, workers: Workers) -> Iterator[None]:
        """Train together with other workers, from the state of the first, in this block."""
        layer = self.module_.last_layer
        workers.head.memory(layer.memory)  # raises for one that works on the rows themselves
        self.workers_, layer.together = workers, workers.head
        self.agree()
        try:
            yield
        finally:
            del self.workers_, layer.together

    def agree(self) -> None:
        """Take the state of the first worker's module."""
        self.workers_.adopt(self.module_)

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
        layer = {name: getattr(self.module_.last_layer, name) for name in SETTINGS}
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
