"""From what the user calls a backbone to a module that maps samples to features."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .splitting import Backbone, keep_whole, split_last_layer, strip_last_layer

__all__ = ["build_backbone", "cast_module", "rebuild_backbone", "takes_generator"]


def build_backbone(
    backbone: Any,
    backbone_kwargs: Mapping[str, Any] | None,
    sample: Tensor,
    generator: torch.Generator | None = None,
) -> Backbone:
    """Build, or copy, a backbone and split off the last linear layer of a whole network.

    Parameters
    ----------
    backbone : torch.nn.Module, recipe, or callable
        A module is deep-copied; a recipe has ``build(input_shape)`` and builds a backbone,
        never a whole network; a callable takes ``(input_shape, **backbone_kwargs)``.
        ``input_shape`` is one sample's shape.
    backbone_kwargs : mapping, optional
        For a callable only.
    sample : Tensor of shape (m, ...)
        A few rows of input, to see what the module makes of them.
    generator : torch.Generator, optional
        On the CPU, for a recipe that takes one (:func:`takes_generator`).

    Returns
    -------
    Backbone

    Raises
    ------
    TypeError, ValueError
        Where it is none of these, or its output cannot serve as features.
    """
    if backbone_kwargs and (isinstance(backbone, nn.Module) or hasattr(backbone, "build")):
        raise ValueError(
            "`backbone_kwargs` are for a callable backbone, got a "
            f"{type(backbone).__name__}; set its own parameters instead."
        )
    module = _instantiate(backbone, backbone_kwargs, tuple(sample.shape[1:]), generator)
    module = cast_module(module, sample.device, sample.dtype)
    return keep_whole(module, sample) if _is_recipe(backbone) else split_last_layer(module, sample)


def rebuild_backbone(
    backbone: Any,
    backbone_kwargs: Mapping[str, Any] | None,
    sample: Tensor,
    like: Backbone,
    generator: torch.Generator | None = None,
) -> Backbone:
    """The same modules as at fit, untrained: for a state that is loaded into them.

    ``like`` says which layer was split off; its own module is not looked at.
    """
    module = _instantiate(backbone, backbone_kwargs, tuple(sample.shape[1:]), generator)
    module = cast_module(module, sample.device, sample.dtype)
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        with torch.no_grad():
            module(sample)
    return like._replace(module=strip_last_layer(module, like.removed, like.channels_first))


def cast_module(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move to a device and a real dtype; complex weights (Fourier layers) stay complex."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, complex_dtype)
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return module._apply(cast)


def takes_generator(backbone: Any) -> bool:
    """Whether it is a recipe whose ``build`` has a parameter ``generator``."""
    return _is_recipe(backbone) and "generator" in inspect.signature(backbone.build).parameters


def _is_recipe(backbone: Any) -> bool:
    return hasattr(backbone, "build") and not isinstance(backbone, type | nn.Module)


def _instantiate(
    backbone: Any,
    backbone_kwargs: Mapping[str, Any] | None,
    input_shape: tuple[int, ...],
    generator: torch.Generator | None,
) -> nn.Module:
    if isinstance(backbone, nn.Module):
        module = copy.deepcopy(backbone)
    elif takes_generator(backbone):
        module = backbone.build(input_shape, generator=generator)
    elif _is_recipe(backbone):
        module = backbone.build(input_shape)
    elif callable(backbone):
        module = backbone(input_shape, **dict(backbone_kwargs or {}))
    else:
        raise TypeError(
            "`backbone` must be None, a torch.nn.Module, a recipe with a "
            "`build(input_shape)` method, or a callable that returns a module, got "
            f"{backbone!r}."
        )
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`backbone` must build a torch.nn.Module, {backbone!r} built a "
            f"{type(module).__name__}."
        )
    return module
