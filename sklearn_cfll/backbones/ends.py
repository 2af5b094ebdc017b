"""Check whether a network's output is meant as features or as predictions."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._warnings import user_level

__all__ = ["SIGMOIDS", "SOFTMAXES", "Trace", "one_per_target", "refuse_probabilities"]

# Modules that turn a linear layer's output into probabilities, or logarithms of them.
SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)
SIGMOIDS = (nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid)


class Trace(NamedTuple):
    """Record of a network's forward pass on a sample.

    Attributes
    ----------
    output : Tensor
    last : str or None
        Name of the linear layer whose output the network returns.
    inputs : Tensor or None
        Inputs of that layer.
    linear : list of Tensor
        Outputs of all linear layers.
    squash : str or None
        Name of the softmax or sigmoid whose output the network returns.
    """

    output: Tensor
    last: str | None
    inputs: Tensor | None
    linear: list[Tensor]
    squash: str | None


def refuse_probabilities(network: nn.Module, trace: Trace, n_outputs: int | None) -> None:
    """Raise if a network ends in a softmax, or in one sigmoid per target."""
    output = trace.output
    module = None if trace.squash is None else network.get_submodule(trace.squash)
    end = None
    if isinstance(module, SOFTMAXES) or (
        isinstance(module, SIGMOIDS) and one_per_target(output, n_outputs)
    ):
        end = type(module).__name__ + (f" ({trace.squash!r})" if trace.squash else "")
    elif module is None:  # torch.softmax etc. in forward: visible only in the values
        end = _squashing_function(trace, n_outputs)
    if end is None:
        narrow = one_per_target(output, n_outputs)
        if narrow and any(each.numel() == output.numel() for each in trace.linear):
            width = output.shape[-1] if output.ndim > 1 else 1
            found = "one feature" if width == 1 else f"{width} features, as many as outputs"
            warnings.warn(
                f"`backbone` returns {found}, a function of its last linear layer's output: "
                "predictions are linear in these. If that is meant as the prediction, return "
                "the last linear layer's output itself, so that the layer can be split off and "
                "solved in closed form; if it is meant as features, make that layer wider.",
                UserWarning,
                stacklevel=user_level(),
            )
        return
    raise ValueError(
        f"`backbone` ends in {end} after its last linear layer, which then cannot be split off "
        "and solved in closed form. Remove it, so that the network returns that layer's "
        "output: the solved layer gives the predictions, and a classifier's `predict_proba` gives "
        "probabilities. If its values are meant as features, pass a recipe, an object with "
        "`build(input_shape)`: the network that it builds is never split."
    )


def _squashing_function(trace: Trace, n_outputs: int | None) -> str | None:
    """Name of the function that turned a linear layer's output into probabilities."""
    output = trace.output.double()
    linear = [
        each.double().reshape(output.shape)
        for each in trace.linear
        if each.numel() == output.numel()
    ]
    if not linear:
        return None
    for axis in {1, output.ndim - 1} if output.ndim > 1 else ():
        if output.shape[axis] == 1:
            continue
        for name, values in (("softmax", output), ("log_softmax", output.exp())):
            total = values.sum(axis)
            # Shares that include zeros may be normalised features.
            if _close(total, torch.ones_like(total)) and (
                bool((values > 0).all()) or any(_close(x.softmax(axis), values) for x in linear)
            ):
                return f"a {name}"
    if one_per_target(output, n_outputs):
        if any(_close(each.sigmoid(), output) for each in linear):
            return "a sigmoid"
        if any(_close(F.logsigmoid(each), output) for each in linear):
            return "a logsigmoid"
    return None


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def one_per_target(output: Tensor, n_outputs: int | None) -> bool:
    """Whether there are as many outputs as targets, or only one, so that they are not features."""
    widths = {1} if output.ndim < 2 else {output.shape[1], output.shape[-1]}
    return bool(widths & {1, n_outputs})
