"""MLPBackbone: the recipe of the default network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from .._compat import Interval
from .._validation import Choice, RealInterval, check_parameters, positive_integers
from .._warnings import user_level
from ..columns.indicators import Indicators
from .dropout import SeededDropout

__all__ = ["ACTIVATIONS", "MLPBackbone"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class SideBySide(nn.Module):
    """Networks on the same inputs, with concatenated outputs."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *args: Tensor, **inputs: Tensor) -> Tensor:
        return torch.cat([network(*args, **inputs) for network in self.networks], dim=-1)


class Blocks(nn.Module):
    """Networks on consecutive blocks of the inputs, with concatenated outputs.

    Parameters
    ----------
    widths : tuple of int
        Number of inputs of each network.
    networks : list of torch.nn.Module
    """

    def __init__(self, widths: Sequence[int], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.widths = list(widths)

    def forward(self, inputs: Tensor, *given: Any) -> Tensor:
        widths = self.widths
        if len(given) > 1:  # the last inputs of each block are looked up
            widths = [width - given[1].width for width in widths]
        parts = [inputs.split(widths, -1), *(part.split(self.widths, -1) for part in given[:1])]
        blocks = zip(self.networks, *parts, strict=True)
        found = [network(*block, *given[1:]) for network, *block in blocks]
        return torch.cat(found, dim=-1)


class MemberNetworks(nn.Sequential):
    """Layers of m networks, of which the first takes the scale of each input and indicators too."""

    takes_scale = True

    def forward(self, inputs: Tensor, *given: Any) -> Tensor:
        for part in self:
            inputs, given = part(inputs, *given), ()
        return inputs


class MemberLinear(nn.Module):
    """A linear layer for each of m networks, from (m, n, p) or shared inputs (n, p) to (m, n, q).

    It uses one batched product, because small networks are limited by the number of operations.
    """

    def __init__(
        self,
        n_members: int,
        in_features: int,
        out_features: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        # In float32: other dtypes give other random numbers from the same generator.
        weight = torch.empty(n_members, in_features, out_features, dtype=torch.float32)
        bias = torch.empty(n_members, 1, out_features, dtype=torch.float32)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise as :class:`torch.nn.Linear` does."""
        bound = self.weight.shape[1] ** -0.5
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(
        self, inputs: Tensor, scale: Tensor | None = None, indicators: Indicators | None = None
    ) -> Tensor:
        """Outputs; ``scale`` (m, 1, p) multiplies the inputs of each network.

        The last of the p inputs may be ``indicators``, which are looked up, not multiplied.
        """
        inputs = inputs.expand(len(self.weight), *inputs.shape[-2:])
        weight = self.weight if scale is None else self.weight * scale.mT
        if indicators is None:
            return torch.baddbmm(self.bias, inputs, weight)
        numbers, levels = weight.tensor_split([inputs.shape[-1]], 1)
        return torch.baddbmm(self.bias, inputs, numbers) + indicators.product(levels)


def seeded_linear(in_features: int, out_features: int, generator: torch.Generator | None) -> Any:
    """A :class:`torch.nn.Linear` with its usual initialisation, drawn from this generator."""
    layer: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, in_features, out_features, device="cpu", dtype=torch.float32
    )
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    bound = 1 / math.sqrt(in_features) if in_features else 0.0
    nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


class JoinMembers(nn.Module):
    """Concatenate the features of m networks, (m, n, d), to (n, m · d)."""

    def forward(self, features: Tensor) -> Tensor:
        return features.movedim(0, 1).flatten(1)


class MLPBackbone(BaseEstimator):
    """Recipe of a multilayer perceptron; its last hidden layer gives the features.

    It is the default network of the estimators, which have parameters for its sizes. Pass one as
    ``backbone`` to set ``bins_share``, or for a grid over ``backbone__...``. The estimators put the
    encoding of the columns before it (their parameter ``columns``).

    Parameters
    ----------
    hidden_layer_sizes : int or tuple of int, default=(256, 256)
        Widths of the hidden layers; the last one is the number of features.
    activation : {"relu", "tanh", "silu", "gelu", "elu", "identity"}, default="relu"
    dropout : float, default=0.0
        Share of hidden units dropped in training, after each hidden layer except the last. With one
        hidden layer it has no effect, and a warning is issued.
    n_members : int, default=1
        Number of perceptrons side by side, for an :class:`~sklearn_cfll.EnsembleLastLayer`. The
        features of the first one come first.
    bins_share : float, default=0.5
        Share of the units of each layer that see the bins of encoded columns, and not the columns
        as numbers. Bins are robust to wrong entries and help where a target jumps along a column;
        interactions of many columns need the other units. CFLLClassifier's default is a quarter.

    Examples
    --------
    >>> from sklearn_cfll.backbones import MLPBackbone
    >>> MLPBackbone(hidden_layer_sizes=(8,)).build((3,))  # doctest: +ELLIPSIS
    Sequential(...
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "hidden_layer_sizes": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "activation": [Choice(ACTIVATIONS)],
        "dropout": [RealInterval(0, 1, closed="left")],
        "n_members": [Interval(Integral, 1, None, closed="left")],
        "bins_share": [RealInterval(0, 1, closed="neither")],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (256, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        n_members: int = 1,
        bins_share: float = 0.5,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.n_members = n_members
        self.bins_share = bins_share

    def build(
        self,
        input_shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        widths: tuple[int, ...] = (),
    ) -> nn.Module:
        """Build a new module for samples of this shape.

        Parameters
        ----------
        input_shape : (int,)
        generator : torch.Generator, optional
            CPU generator of the initial weights; default torch's global one. In training, dropout
            draws from a separate generator.
        widths : tuple of int, optional
            Numbers of consecutive inputs, such as the outputs of one column encoder. Each block has
            a network of its own. All but the first share ``bins_share`` of the units of each layer.
        """
        check_parameters(self)
        if isinstance(input_shape, dict) or len(input_shape) != 1:
            raise ValueError(
                f"An MLP needs samples of shape (n_features,), got {input_shape}. "
                "Pass a `backbone` for images, fields or named inputs, or reshape X to 2-d."
            )
        sizes = positive_integers(self.hidden_layer_sizes)
        if not sizes:
            raise ValueError(
                "`hidden_layer_sizes` must hold at least one positive integer, "
                f"got {self.hidden_layer_sizes!r}."
            )
        if self.dropout and len(sizes) == 1:
            warnings.warn(
                f"`dropout`={float(self.dropout):g} has no effect with one hidden layer: units are "
                "dropped between hidden layers. Add a second one to `hidden_layer_sizes`.",
                UserWarning,
                stacklevel=user_level(),
            )
        network = self._network(input_shape[0], sizes, widths, generator)
        return network if self.n_members == 1 else MemberNetworks(network, JoinMembers())

    def _network(
        self,
        n_inputs: int,
        sizes: tuple[int, ...],
        widths: tuple[int, ...],
        generator: torch.Generator | None,
    ) -> nn.Module:
        """The network, or all members of an ensemble."""
        m, kind = len(widths), nn.Sequential if self.n_members == 1 else MemberNetworks
        if m < 2:
            return kind(*self._layers(n_inputs, sizes, generator))
        if min(sizes) < m:
            raise ValueError(
                f"Each of `hidden_layer_sizes` is split among {m} encodings of the columns and "
                f"must be at least {m}, got {self.hidden_layer_sizes!r}. Use wider layers, or "
                "fewer encodings (`n_bins`=0)."
            )
        shares = [max(1, int(size * self.bins_share / (m - 1))) for size in sizes]
        first = [size - (m - 1) * share for size, share in zip(sizes, shares, strict=True)]
        networks = [
            kind(*self._layers(width, shares if i else first, generator))
            for i, width in enumerate(widths)
        ]
        return Blocks(widths, networks)

    def _layers(
        self, width: int, sizes: Sequence[int], generator: torch.Generator | None
    ) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for i, size in enumerate(sizes):
            layers += [self._linear(width, int(size), generator), ACTIVATIONS[self.activation]()]
            if self.dropout and i < len(sizes) - 1:
                layers.append(SeededDropout(float(self.dropout)))
            width = int(size)
        return layers

    def _linear(self, width: int, size: int, generator: torch.Generator | None) -> nn.Module:
        if self.n_members == 1:
            layer = seeded_linear(width, size, generator)
        else:
            layer = MemberLinear(self.n_members, width, size, generator)
        return layer.to(torch.get_default_dtype())
