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

from .._compat import Interval, StrOptions
from ..columns.bins import PiecewiseLinear
from ..columns.normal_scores import SpreadStandardize
from ..columns.scaling import ColumnScale, RobustStandardize
from .dropout import SeededDropout
from .parameters import RealInterval, check_parameters, positive_integers

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

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([network(inputs) for network in self.networks], dim=-1)


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

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.expand(len(self.weight), *inputs.shape[-2:])
        return torch.baddbmm(self.bias, inputs, self.weight)


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

    Inputs are standardised inside, by statistics of the training rows, and outliers are
    soft-clipped.

    Parameters
    ----------
    hidden_layer_sizes : int or tuple of int, default=(256, 256)
        Widths of the hidden layers; the last one is the number of features.
    activation : {"relu", "tanh", "silu", "gelu", "elu", "identity"}, default="relu"
    dropout : float, default=0.0
        Share of hidden units dropped in training, after each hidden layer except the last. With one
        hidden layer it has no effect, and a warning is issued.
    bin_edges : list of ndarray, default=None
        Edges of bins for each column (:func:`~sklearn_cfll.columns.bins.bin_edges`). With them,
        half of each layer's units form a separate network on the binned columns; the last layer
        uses the features of both.
    score_tables : list of (ndarray or None), default=None
        For each column, values and the scores that replace them, None for a column without scores
        (:func:`~sklearn_cfll.columns.normal_scores.score_tables`). Bins are computed from the
        original columns.
    n_members : int, default=1
        Number of such networks, for an :class:`~sklearn_cfll.EnsembleLastLayer`. The features of
        the first network come first.

    Examples
    --------
    >>> from sklearn_cfll.backbones import MLPBackbone
    >>> MLPBackbone(hidden_layer_sizes=(8,)).build((3,))  # doctest: +ELLIPSIS
    Sequential(...
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "hidden_layer_sizes": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "dropout": [RealInterval(0, 1, closed="left")],
        "bin_edges": ["array-like", None],
        "score_tables": ["array-like", None],
        "n_members": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (256, 256),
        activation: str = "relu",
        dropout: float = 0.0,
        bin_edges: list[Any] | None = None,
        score_tables: list[Any] | None = None,
        n_members: int = 1,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.bin_edges = bin_edges
        self.score_tables = score_tables
        self.n_members = n_members

    def build(
        self, input_shape: tuple[int, ...], generator: torch.Generator | None = None
    ) -> nn.Module:
        """Build a new module for samples of this shape.

        Its initial weights are drawn from ``generator``, a CPU generator, or from torch's global
        one. In training, dropout draws from a separate generator.
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
                stacklevel=2,
            )
        network = self._network(input_shape[0], sizes, generator)
        return network if self.n_members == 1 else nn.Sequential(network, JoinMembers())

    def _network(
        self, n_columns: int, sizes: tuple[int, ...], generator: torch.Generator | None
    ) -> nn.Module:
        """The network, or all members of an ensemble."""
        standardized = self._standardize(n_columns), ColumnScale(torch.arange(n_columns))
        if self.bin_edges is None:
            return nn.Sequential(*standardized, *self._layers(n_columns, sizes, generator))
        if min(sizes) < 2:
            raise ValueError(
                "With `bin_edges` each of `hidden_layer_sizes` is split in two and must be at "
                f"least 2, got {self.hidden_layer_sizes!r}."
            )
        bins = PiecewiseLinear(self.bin_edges)
        if bins.n_columns != n_columns:
            raise ValueError(
                f"`bin_edges` has edges of {bins.n_columns} columns, but X has {n_columns}."
            )
        halves = [size // 2 for size in sizes]
        rest = [size - half for size, half in zip(sizes, halves, strict=True)]
        return SideBySide(
            nn.Sequential(*standardized, *self._layers(n_columns, rest, generator)),
            nn.Sequential(
                bins, ColumnScale(bins.column), *self._layers(bins.n_outputs, halves, generator)
            ),
        )

    def _standardize(self, n_columns: int) -> nn.Module:
        tables = self.score_tables or []
        if tables and len(tables) != n_columns:
            raise ValueError(f"`score_tables` has {len(tables)} columns, but X has {n_columns}.")
        if all(table is None for table in tables):
            return RobustStandardize(n_columns)
        return SpreadStandardize(tables)

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
