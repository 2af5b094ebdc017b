"""Optimisers of the backbone by name."""

from __future__ import annotations

import inspect

import torch
from torch import nn

__all__ = ["OPTIMIZERS", "optimizer_class", "optimizer_options"]

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "nadam": torch.optim.NAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}


def optimizer_class(optimizer: str | type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The class with this name; a class is returned unchanged."""
    if isinstance(optimizer, str):
        return OPTIMIZERS[optimizer]
    if not issubclass(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"`optimizer` must be one of {sorted(OPTIMIZERS)} or a subclass of "
            f"torch.optim.Optimizer, got {optimizer!r}."
        )
    return optimizer


def optimizer_options(optimizer: type[torch.optim.Optimizer], module: nn.Module) -> dict:
    """Options for the parameters of this module.

    One fused kernel updates all parameters: on small networks a step then costs about a
    third less than a loop over tensors. The kernel does not support complex parameters (Fourier
    layers), nor that of Adagrad, in torch 2.11, an accelerator.
    """
    known = inspect.signature(optimizer).parameters
    if "fused" not in known or optimizer not in OPTIMIZERS.values():
        return {}
    parameters = list(module.parameters())
    on_cpu = all(p.device.type == "cpu" for p in parameters)
    supported = on_cpu or optimizer is not torch.optim.Adagrad
    return {"fused": supported and not any(p.is_complex() for p in parameters)}
