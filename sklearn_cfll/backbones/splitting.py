"""Splitting the last linear layer off a whole network, and putting one back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "Backbone",
    "ChannelsLast",
    "evaluation_mode",
    "join_last_layer",
    "keep_whole",
    "split_last_layer",
    "strip_last_layer",
]


class Backbone(NamedTuple):
    """A module that maps samples (n, ...) to features (n, ..., d).

    Attributes
    ----------
    module : torch.nn.Module
    feature_shape : tuple of int
        Shape of one sample's features; the last entry is d.
    channels_first : bool
        The network it came from predicts (n, k, ...): channels before positions.
    removed : str or None
        Name, inside the network, of the last layer that was split off.
    """

    module: nn.Module
    feature_shape: tuple[int, ...]
    channels_first: bool
    removed: str | None


class ChannelsLast(nn.Module):
    """Move channels (n, d, ...) behind positions (n, ..., d), where a last layer wants them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs).movedim(1, -1)


class SplitOff(nn.Identity):
    """Stands where a last layer was, and knows what kind of layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.kind = type(layer)


def keep_whole(network: nn.Module, sample: Tensor) -> Backbone:
    """Take a network's output as features; raises as :func:`split_last_layer` does.

    A network with an attribute ``channels_first`` says where targets have their channels.
    """
    output = _check_output(_evaluate(network, sample), sample)
    channels_first = bool(getattr(network, "channels_first", False))
    return Backbone(network, tuple(output.shape[1:]), channels_first, None)


def split_last_layer(network: nn.Module, sample: Tensor) -> Backbone:
    """Replace a network's last linear layer by the identity, where there is one.

    The layer counts as last when the network's output *is* that layer's output: a
    `torch.nn.Linear`, or a convolution with kernel 1 (a linear layer at each position).
    A network that ends otherwise (an activation, a pooling) is a backbone already.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    sample : Tensor of shape (m, ...)

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        Where the output is not a float tensor with a row per sample, or the network cannot
        take the sample.
    """
    name, inputs_of_last, output = _trace(network, sample)
    channels_first = False
    features = output
    if name is not None and inputs_of_last is not None:
        channels_first = not isinstance(network.get_submodule(name), nn.Linear)
        stripped = strip_last_layer(copy.deepcopy(network), name, channels_first)
        try:
            features = _evaluate(stripped, sample)
        except ValueError:  # its forward looks at the layer itself: leave the network whole
            features = output.new_empty(0)
        expected = inputs_of_last.movedim(1, -1) if channels_first else inputs_of_last
        # What follows the layer must pass features unchanged; positions may be reshaped.
        same_size = features.numel() == expected.numel() and features.ndim > 1
        same_size &= features.shape[-1] == expected.shape[-1]
        if same_size and torch.equal(features.reshape(expected.shape), expected):
            network = stripped
        else:
            name, channels_first, features = None, False, output
    features = _check_output(features, sample)
    return Backbone(network, tuple(features.shape[1:]), channels_first, name)


def strip_last_layer(network: nn.Module, removed: str | None, channels_first: bool) -> nn.Module:
    """Split off a layer whose name is known, as :func:`split_last_layer` did once."""
    if removed is None:
        return network
    layer = network.get_submodule(removed)
    _set_width(network, removed, *_widths(layer)[::-1])
    network = _replace(network, removed, SplitOff(layer))
    return ChannelsLast(network) if channels_first else network


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a pointwise linear layer."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[1], layer.weight.shape[0]


def _set_width(network: nn.Module, name: str, old: int, new: int) -> None:
    """Tell the module that holds the layer its new width.

    neuraloperator's ``ChannelMLP`` reshapes what its last layer gives to ``out_channels``.
    """
    parent = network.get_submodule(name.rpartition(".")[0].removesuffix(".fcs")) if name else None
    if getattr(parent, "out_channels", None) == old:
        parent.out_channels = new  # type: ignore[union-attr, assignment]


def join_last_layer(backbone: Backbone, linear: nn.Linear) -> nn.Module:
    """The whole network again: a copy of the backbone with ``linear`` as its last layer."""
    module = copy.deepcopy(backbone.module)
    if backbone.removed is None:
        return nn.Sequential(module, linear)
    if not backbone.channels_first:
        return _replace(module, backbone.removed, linear)
    assert isinstance(module, ChannelsLast)
    network = module.network
    split_off: Any = network.get_submodule(backbone.removed)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind = next(kind for kind in kinds if issubclass(split_off.kind, kind))
    # Without initial weights, which would be drawn from torch's global generator.
    last: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        kind,
        linear.in_features,
        linear.out_features,
        1,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    with torch.no_grad():
        last.weight.copy_(linear.weight.reshape(last.weight.shape))
        if last.bias is not None:
            last.bias.copy_(linear.bias)
    _set_width(network, backbone.removed, linear.in_features, linear.out_features)
    return _replace(network, backbone.removed, last)


def _trace(network: nn.Module, sample: Tensor) -> tuple[str | None, Tensor | None, Tensor]:
    """Name and input of the linear layer whose output the network returns, and the output."""
    calls: list[tuple[str, Tensor, Tensor, int]] = []
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, output, name=name: calls.append(
                (name, inputs[0], output, output._version)
            )
        )
        for name, module in network.named_modules()
        if _is_pointwise_linear(module)
    ]
    try:
        output = _evaluate(network, sample)
    finally:
        for hook in hooks:
            hook.remove()
    _check_float(output)
    if calls:
        name, inputs, last, version = calls[-1]
        same_memory = last.data_ptr() == output.data_ptr() and last.numel() == output.numel()
        untouched = output._version == version  # an in-place activation would have changed it
        used_once = sum(call[0] == name for call in calls) == 1
        if same_memory and untouched and used_once:
            return name, inputs, output
    return None, None, output


def _check_float(output: Any) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = f"dtype {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"The backbone's output must be a floating-point tensor of features, got {kind}."
        )


def _check_output(output: Any, sample: Tensor) -> Tensor:
    """Features must be floats, with a row per sample and at least one column."""
    _check_float(output)
    found = f"{len(sample)} samples gave shape {tuple(output.shape)}"
    if output.ndim == 0 or len(output) != len(sample):
        raise ValueError(f"The backbone's output must have a row per sample: {found}.")
    if output.ndim == 1 or output.shape[-1] == 0:
        raise ValueError(
            f"The backbone's output must have at least one column of features: {found}."
        )
    return output


def _is_pointwise_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return (
            set(module.kernel_size) == {1}
            and set(module.stride) == {1}
            and module.groups == 1
            and module.padding in ("valid", (0,) * len(module.kernel_size))
        )
    return isinstance(module, nn.Linear)


@torch.no_grad()
def _evaluate(network: nn.Module, sample: Tensor) -> Tensor:
    """One evaluation-mode pass."""
    try:
        with evaluation_mode(network):
            return network(sample)
    except Exception as error:
        raise ValueError(
            f"The backbone cannot take samples of shape {tuple(sample.shape[1:])} and dtype "
            f"{sample.dtype}: {error}"
        ) from error


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put the training flags back afterwards."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _replace(network: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Put a module at a dotted name; an empty name is the network itself."""
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
    return network
