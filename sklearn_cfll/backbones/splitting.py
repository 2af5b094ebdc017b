"""Split the last linear layer off a whole network."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._warnings import user_level
from .ends import SIGMOIDS, SOFTMAXES, Trace, one_per_target, refuse_probabilities

__all__ = [
    "Backbone",
    "CannotTakeInputs",
    "ChannelsLast",
    "copy_module",
    "evaluation_mode",
    "keep_whole",
    "replace_module",
    "set_width",
    "split_last_layer",
    "strip_last_layer",
]


Inputs = Tensor | dict[str, Tensor]


class CannotTakeInputs(ValueError):
    """The network raised on a sample of the inputs."""


class Backbone(NamedTuple):
    """A module that maps samples (n, ...) to features (n, ..., d).

    Attributes
    ----------
    module : torch.nn.Module
    feature_shape : tuple of int
        Shape of one sample's features; the last entry is d.
    channels_first : bool
        Whether the original network predicts (n, k, ...), with channels before positions.
    removed : str or None
        Name, inside the network, of the last layer that was split off.
    input_dtype : torch.dtype or dict of torch.dtype
        Dtype of the inputs: a floating dtype, or ``torch.int64`` if the module looks up integers. A
        dict for a module that takes several inputs by name.
    """

    module: nn.Module
    feature_shape: tuple[int, ...]
    channels_first: bool
    removed: str | None
    input_dtype: torch.dtype | dict[str, torch.dtype] = torch.float32


class ChannelsLast(nn.Module):
    """Move channels (n, d, ...) behind positions (n, ..., d), where a last layer expects them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.network(*args, **kwargs).movedim(1, -1)


class SplitOff(nn.Identity):
    """Placeholder for a last layer that was split off; it records the kind of layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.kind = type(layer)


def keep_whole(network: nn.Module, sample: Inputs) -> Backbone:
    """Use a network's output as features; raise as :func:`split_last_layer` does.

    An attribute ``channels_first`` of the network states where targets have their channels.
    """
    output = _check_output(_evaluate(network, sample), sample)
    channels_first = bool(getattr(network, "channels_first", False))
    return Backbone(network, tuple(output.shape[1:]), channels_first, None, _dtypes(sample))


def split_last_layer(network: nn.Module, sample: Inputs, n_outputs: int | None = None) -> Backbone:
    """Replace a network's last linear layer by the identity, if there is one.

    The layer counts as last when the network's output *is* that layer's output: a
    `torch.nn.Linear`, or a convolution with kernel 1 (a linear layer at each position).
    A network that ends differently (an activation, a pooling) is a backbone already.

    Parameters
    ----------
    network : torch.nn.Module
        Changed in place.
    sample : Tensor of shape (m, ...), or dict of them for a network of named inputs
    n_outputs : int, optional
        Number of targets per sample. If a network ends in this many sigmoids, they are taken as
        predictions, otherwise as features.

    Returns
    -------
    Backbone

    Raises
    ------
    ValueError
        If the output is not a float tensor with one row per sample, if the network cannot take the
        sample, or if it ends in a softmax, whose values are not features.
    """
    trace = _trace(network, sample)
    name, channels_first, features = trace.last, False, trace.output
    if name is None:
        refuse_probabilities(network, trace, n_outputs)
    else:
        assert trace.inputs is not None
        layer = network.get_submodule(name)
        channels_first = not isinstance(layer, nn.Linear)
        stripped = strip_last_layer(network, name, channels_first)
        try:
            found = _evaluate(stripped, sample)
        except CannotTakeInputs:  # its forward accesses the layer itself
            found = None
        expected = trace.inputs.movedim(1, -1) if channels_first else trace.inputs
        if _holds(found, expected):
            assert found is not None
            network, features = stripped, found
        else:
            network = _put_back(network, name, layer)
            name, channels_first = None, False
            if features.ndim > 1 and one_per_target(features, n_outputs):
                warnings.warn(
                    f"The network's last linear layer, {trace.last!r}, could not be split off: its "
                    "forward reshapes that layer's output or accesses the layer itself. The "
                    "network's output is used as features of a new last layer. Return the "
                    "layer's output unchanged.",
                    UserWarning,
                    stacklevel=user_level(),
                )
    features = _check_output(features, sample)
    return Backbone(network, tuple(features.shape[1:]), channels_first, name, _dtypes(sample))


def _holds(found: Any, expected: Tensor) -> bool:
    """Whether features equal the inputs of the last layer, up to shape and dtype."""
    if not isinstance(found, Tensor) or found.ndim < 2 or found.numel() != expected.numel():
        return False
    same_width = found.shape[-1] == expected.shape[-1]
    return same_width and torch.equal(found.reshape(expected.shape), expected.to(found.dtype))


def strip_last_layer(network: nn.Module, removed: str | None, channels_first: bool) -> nn.Module:
    """Split off a layer by its name, as :func:`split_last_layer` did before."""
    if removed is None:
        return network
    layer = dict(network.named_modules()).get(removed)
    if layer is None or not _is_pointwise_linear(layer):
        raise ValueError(
            f"`backbone`, a {type(network).__name__}, has no linear layer {removed!r}, which was "
            "the last one of the network at fit."
        )
    set_width(network, removed, *_widths(layer)[::-1])
    network = replace_module(network, removed, SplitOff(layer))
    return ChannelsLast(network) if channels_first else network


def _put_back(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Undo what :func:`strip_last_layer` did to a network."""
    set_width(network, name, *_widths(layer))
    return replace_module(network, name, layer)


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a pointwise linear layer."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight.shape[1], layer.weight.shape[0]


def set_width(network: nn.Module, name: str, old: int, new: int) -> None:
    """Set the new width in the module that contains the layer.

    neuraloperator's ``ChannelMLP`` reshapes the output of its last layer to ``out_channels``.
    """
    parent = network.get_submodule(name.rpartition(".")[0].removesuffix(".fcs")) if name else None
    if getattr(parent, "out_channels", None) == old:
        parent.out_channels = new  # type: ignore[union-attr, assignment]


def copy_module(module: nn.Module) -> nn.Module:
    """Return a deep copy, or raise an error with the reason."""
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise TypeError(
            f"The backbone {type(module).__name__} cannot be copied by copy.deepcopy: "
            f"{str(error).rstrip('.')}. Pass a callable of the input shape that builds the "
            "network, or remove from the module what cannot be copied (locks, open files, "
            "generators, tensors with a history)."
        ) from error


class Call(NamedTuple):
    """One call of a layer inside a network."""

    name: str
    inputs: Tensor
    output: Tensor
    version: int  # of the output: an in-place activation changes it
    values: Tensor  # of the output at that time

    def gave(self, output: Tensor) -> bool:
        """Whether a network's output is that of this call, up to the dtype (``.float()``)."""
        if output.numel() != self.output.numel():
            return False
        if output.dtype != self.output.dtype:
            return torch.equal(self.values.to(output.dtype).reshape(output.shape), output)
        same_memory = self.output.data_ptr() == output.data_ptr()
        return same_memory and output._version == self.version


def _trace(network: nn.Module, sample: Inputs) -> Trace:
    """Record one forward pass in evaluation mode."""
    linear: list[Call] = []
    squashes: list[Call] = []

    def watch(name: str, calls: list[Call]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            inputs = args[0] if args else kwargs["input"]
            calls.append(Call(name, inputs, output, output._version, output.clone()))

        return hook

    hooks = []
    for name, module in network.named_modules():
        for wanted, calls in (
            (_is_pointwise_linear(module), linear),
            (isinstance(module, SOFTMAXES + SIGMOIDS), squashes),
        ):
            if wanted:
                hook = watch(name, calls)
                hooks.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        output = _evaluate(network, sample)
    finally:
        for handle in hooks:
            handle.remove()
    _check_float(output)
    squash = next((call.name for call in squashes if call.gave(output)), None)
    outputs = [call.values for call in linear]
    if linear and linear[-1].gave(output):
        last = linear[-1]
        if sum(call.name == last.name for call in linear) == 1:
            return Trace(output, last.name, last.inputs, outputs, squash)
    return Trace(output, None, None, outputs, squash)


def _check_float(output: Any) -> None:
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise ValueError(
            "The backbone's output must be a floating-point tensor of features, got "
            f"{_describe(output)}. Return only the features."
        )


def _describe(output: Any) -> str:
    """What a network returned, in words."""
    if isinstance(output, Tensor):
        return f"dtype {output.dtype}"
    kind = type(output).__name__
    if isinstance(output, dict):
        return f"{kind} with the keys {list(output)}"
    if isinstance(output, tuple | list):
        parts = (
            f"Tensor of shape {tuple(part.shape)}"
            if isinstance(part, Tensor)
            else type(part).__name__
            for part in output
        )
        return f"{kind} of {len(output)} ({', '.join(parts)})"
    return kind


def _check_output(output: Any, sample: Inputs) -> Tensor:
    """Features must be floats, with one row per sample and at least one column."""
    _check_float(output)
    first = next(iter(sample.values())) if isinstance(sample, dict) else sample
    found = f"{len(first)} samples gave shape {tuple(output.shape)}"
    if output.ndim == 0 or len(output) != len(first):
        raise ValueError(f"The backbone's output must have one row per sample: {found}.")
    if output.ndim == 1:
        raise ValueError(
            f"The backbone's output must have at least one column of features: {found}. Return "
            "a single feature as a column, (n, 1): `features.unsqueeze(-1)`. A network that ends "
            "in a linear layer must return its output unchanged, without `[:, 0]`, `flatten()` "
            "or `view(-1)`, so that the layer can be split off."
        )
    if output.shape[-1] == 0:
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
def _evaluate(network: nn.Module, sample: Inputs) -> Tensor:
    """One forward pass in evaluation mode."""
    try:
        with evaluation_mode(network):
            return network(**sample) if isinstance(sample, dict) else network(sample)
    except Exception as error:
        raise CannotTakeInputs(
            f"The backbone cannot take {describe_inputs(sample)}: "
            f"{str(error).rstrip('.') or repr(error)}."
        ) from error


@contextlib.contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Use evaluation mode, and restore the training flags afterwards."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def describe_inputs(sample: Inputs) -> str:
    """A sample's shape and dtype in words."""
    if isinstance(sample, dict):
        parts = (f"{name}: {tuple(x.shape[1:])} {x.dtype}" for name, x in sample.items())
        return f"named inputs of shapes and dtypes {{{', '.join(parts)}}}"
    return f"samples of shape {tuple(sample.shape[1:])} and dtype {sample.dtype}"


def _dtypes(sample: Inputs) -> torch.dtype | dict[str, torch.dtype]:
    if isinstance(sample, dict):
        return {name: each.dtype for name, each in sample.items()}
    return sample.dtype


def replace_module(network: nn.Module, name: str, new: nn.Module) -> nn.Module:
    """Replace the module at a dotted name; an empty name is the network itself."""
    if not name:
        return new
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
    return network
