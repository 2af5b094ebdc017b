"""A few rows of numbers, predicted one by one by a perceptron in NumPy.

A torch operation on one row costs more in its call than in its numbers, and a prediction takes
about a hundred of them. NumPy's calls cost a third. Its arrays share the memory of the modules'
tensors, so that changes of these change the next prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from scipy.special import erf, expit
from torch import Tensor, nn

from ..backbones.dropout import SeededDropout
from ..backbones.mlp import Blocks, JoinMembers, MemberLinear, MemberNetworks, MLPBackbone
from ..columns.bins import PiecewiseLinear
from ..columns.encoder import Encoded
from ..columns.normal_scores import NormalScores
from ..columns.scaling import RobustStandardize
from ..training.batches import RowsDataset
from .arrays import few_numbers

__all__ = ["few_rows", "labelled_features"]

# More rows are faster together. Each row is computed by itself, so that it does not matter which
# others are with it.
MOST_ROWS = 8
# Products of a row with more weights are faster in BLAS, which would also split them among threads.
MOST_WEIGHTS = 2**19
NAMES = "weight", "bias"

Map = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS: dict[type[nn.Module], Map] = {
    nn.ReLU: lambda x: np.maximum(x, 0),
    nn.Tanh: np.tanh,
    nn.SiLU: lambda x: x * expit(x),
    nn.GELU: lambda x: 0.5 * x * (1 + erf(x * np.array(0.5**0.5, x.dtype))),
    nn.ELU: lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    nn.Identity: lambda x: x,
    SeededDropout: lambda x: x,
}


class _NotServed(Exception):
    """A part of a network that only torch computes."""


class Views:
    """Arrays that share the memory of modules' tensors, while the modules still hold these."""

    def __init__(self) -> None:
        self.held: list[tuple[dict[str, Any], str, Any]] = []
        self.places: list[tuple[Tensor, int]] = []

    def __call__(self, module: nn.Module, name: str) -> np.ndarray:
        """The array of a parameter or a buffer."""
        held: Any = module._parameters if name in module._parameters else module._buffers
        tensor = held[name]
        self.held.append((held, name, tensor))
        self.places.append((tensor, tensor.data_ptr()))
        array: np.ndarray = tensor.detach().numpy()
        return array

    def children(self, module: nn.Module) -> list[Any]:
        """The modules within a module."""
        self.held += [(module._modules, *item) for item in module._modules.items()]
        return list(module._modules.values())

    @property
    def are_current(self) -> bool:
        return all(held.get(name) is value for held, name, value in self.held) and all(
            tensor.data_ptr() == place for tensor, place in self.places
        )


class FewRows:
    """Features and predictions of a fitted model, row by row.

    Parameters
    ----------
    model : FittedModel

    Raises
    ------
    _NotServed
        If the model is not a perceptron on numbers on a CPU.
    """

    def __init__(self, model: Any) -> None:
        module, network = model.module, model.plan.network
        # Other recipes may give their activations options.
        own = type(network.recipe) is MLPBackbone and type(module.backbone) is Encoded
        if not own or module.autocast or network.device.type != "cpu":
            raise _NotServed
        columns, inner = module.backbone.columns, module.backbone.network
        if len(columns.expansion.share):
            raise _NotServed  # categories or gaps
        self.module, self.offset = module, model.offset
        self.views, self.head_views = Views(), Views()
        dtype = np.dtype(str(network.dtype).removeprefix("torch."))
        parts = [each for each in self.views.children(columns.encoders) if each.n_outputs]
        self.encoders = [_encoder(each, self.views, dtype) for each in parts]
        scale = columns.column_scale
        self.scale = None if scale is None else self.views(columns, "column_scale")
        if isinstance(inner, MemberNetworks) and type(inner[-1]) is JoinMembers:
            inner = self.views.children(inner)[0]
        blocks = [inner]
        if type(inner) is Blocks:
            blocks = self.views.children(inner.networks)
        stops = np.cumsum([0, *columns.widths]) if len(blocks) > 1 else [0, None]
        self.places = [slice(*each) for each in itertools.pairwise(stops)]
        self.blocks = [_layers(each, self.views) for each in blocks]
        self.linear: Map | None = None
        if model.offset is not None:
            encode = _encoder(model.offset.columns, self.views, dtype)
            weight, bias = (self.views(model.offset.layer, name) for name in NAMES)
            self.linear = lambda row: np.einsum("p,kp->k", encode(row), weight) + bias

    def is_current(self, model: Any) -> bool:
        """Whether this still describes the model."""
        same = model.module is self.module and model.offset is self.offset
        return same and self.views.are_current

    def features(self, X: np.ndarray) -> np.ndarray:
        """Features (n, d) of the rows."""
        with np.errstate(all="ignore"):  # what is not finite is told of elsewhere
            return np.stack([self._features(row).ravel() for row in X.astype(np.float64)])

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Predictions (n, k) on the scale of training."""
        if not (self.head_views.held and self.head_views.are_current):  # solved again
            self.head_views, members = Views(), self.module.last_layer.members
            self.head = [[self.head_views(member, name) for member in members] for name in NAMES]
        weight, bias = map(np.stack, self.head)
        with np.errstate(all="ignore"):  # `predict` warns of predictions that are not finite
            return np.stack([self._prediction(row, weight, bias) for row in X.astype(np.float64)])

    def _prediction(self, row: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        output = np.einsum("md,mkd->k", self._features(row), weight) / len(weight) + bias.mean(0)
        return output if self.linear is None else output + self.linear(row)

    def _features(self, row: np.ndarray) -> np.ndarray:
        """Features (m, d) of each member."""
        encoded = np.concatenate([encode(row) for encode in self.encoders])
        encoded = encoded if self.scale is None else encoded * self.scale
        found = []
        for place, block in zip(self.places, self.blocks, strict=True):
            hidden = encoded[..., place]
            for layer in block:
                hidden = layer(hidden)
            found.append(hidden)
        return np.concatenate(found, axis=1)


def few_rows(estimator: Any, X: Any) -> np.ndarray | None:
    """Predictions of a few plain rows in y's units, or None if the usual way has to be taken."""
    model = vars(estimator).get("_model")
    if model is None or not few_numbers(X, 2) or len(X) > MOST_ROWS:
        return None
    plan = model.plan
    if plan.reader is not None or "feature_names_in_" in vars(estimator):
        return None
    if X.shape[1:] != plan.network.sample_shape or model.local_part is not None:
        return None
    few = _prepared(model)
    return None if few is None else plan.unscale(few(X))


def labelled_features(model: Any, rows: RowsDataset) -> Iterator[tuple[Any, ...]]:
    """Batches of features, targets and weights of rows that are added to a fitted model."""
    few = _prepared(model) if len(rows) <= MOST_ROWS else None
    if few is None:
        yield from model.labelled_features(rows)
    else:
        yield torch.from_numpy(few.features(rows.X.numpy())), rows.targets, rows.sample_weight


def _prepared(model: Any) -> FewRows | None:
    """What predicts a few rows of this model, made anew if the model has changed; None if nothing.

    Parameters
    ----------
    model : FittedModel
    """
    if model.few is None or (model.few and not model.few.is_current(model)):
        try:
            model.few = FewRows(model)
        except _NotServed:
            model.few = False
    return model.few or None


def _layers(network: nn.Module, views: Views) -> list[Map]:
    """The layers of a network, or of m networks side by side: from (m, p) to (m, q).

    The first layer also takes (m, 1, p), or (p,) which all of them share.
    """
    found: list[Map] = []
    n_weights = 0
    for part in views.children(network):
        kind: Any = type(part)
        if kind in ACTIVATIONS:
            found.append(ACTIVATIONS[kind])
            continue
        if kind not in (nn.Linear, MemberLinear):
            raise _NotServed
        weight, bias = (views(part, name) for name in NAMES)
        if kind is nn.Linear:
            weight, bias = weight.T[None], bias[None]
        n_weights += weight.size
        found.append(_linear(weight, bias.reshape(len(weight), -1)))
    if n_weights > MOST_WEIGHTS:
        raise _NotServed
    return found


def _linear(weight: np.ndarray, bias: np.ndarray) -> Map:
    """Product with weights (m, p, q), plus biases (m, q)."""

    def layer(x: np.ndarray) -> np.ndarray:
        output: np.ndarray = np.einsum("mp,mpq->mq", x.reshape(-1, x.shape[-1]), weight) + bias
        return output

    return layer


def _encoder(encoder: nn.Module, views: Views, dtype: np.dtype) -> Map:
    """What an encoder makes of a row in float64."""
    if type(encoder) is PiecewiseLinear:
        names = "center", "width", "lower", "rate", "column"
        center, width, lower, rate, column = (views(encoder, name) for name in names)

        def bins(row: np.ndarray) -> np.ndarray:
            scaled = ((row - center) / width).astype(dtype)[column]
            return np.minimum(np.maximum((scaled - lower) * rate, 0), 2) - 1

        return bins
    if type(encoder) not in (RobustStandardize, NormalScores):
        raise _NotServed
    mean, scale, limit = (views(encoder, name) for name in ("mean", "scale", "limit"))
    tables = _tables(encoder, views) if isinstance(encoder, NormalScores) else []

    def standardised(row: np.ndarray) -> np.ndarray:
        scaled = ((row - mean) / scale).astype(dtype)
        near = np.minimum(np.maximum(scaled, -limit), limit)
        if (near != scaled).any():
            near = near + limit * np.tanh((scaled - near) / limit)
        for column, values, scores in tables:
            near[column] = np.interp(row[column], values, scores)
        return near

    return standardised


def _tables(encoder: NormalScores, views: Views) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Each column that is replaced by its scores, and the values and scores between them."""
    parts = (views(encoder, name) for name in ("columns", "values", "scores", "last"))
    return [(c, v[: n.item() + 1], s[: n.item() + 1]) for c, v, s, n in zip(*parts, strict=True)]
