"""FewRows: a perceptron on a table of numbers, prepared to predict single rows in NumPy.

A torch operation on one row costs more in its call than in its numbers, and a prediction takes
about a hundred of them. NumPy's calls cost a third, and what does not depend on the row (scales of
columns, the mean over members) is multiplied in beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import erf, expit
from torch import Tensor, nn

from ..backbones.dropout import SeededDropout
from ..backbones.mlp import Blocks, JoinMembers, MemberLinear, MemberNetworks
from ..columns.bins import PiecewiseLinear
from ..columns.encoder import Encoded
from ..columns.normal_scores import NormalScores
from ..columns.scaling import RobustStandardize
from ..training.batches import RowsDataset
from .arrays import few_numbers

__all__ = ["MOST_ROWS", "FewRows", "few_rows", "labelled_features"]

# More rows are faster together. Each row is computed by itself, so that it does not matter which
# others are with it.
MOST_ROWS = 8
# Products of a row with more weights are faster in BLAS.
MOST_WEIGHTS = 2**19

Map = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS: dict[type[nn.Module], Map] = {
    nn.ReLU: lambda x: np.maximum(x, 0),
    nn.Tanh: np.tanh,
    nn.SiLU: lambda x: x * expit(x),
    nn.GELU: lambda x: 0.5 * x * (1 + erf(x * np.array(0.5**0.5, x.dtype))),
    nn.ELU: lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


class Layer(NamedTuple):
    """Weights (m, p, q), biases (m, q) and activation of a layer of m networks."""

    weight: np.ndarray
    bias: np.ndarray
    activation: Map | None


class Seen:
    """Tensors of some modules, and whether they have been replaced or changed since."""

    def __init__(self, *modules: nn.Module | None) -> None:
        parts = [part for module in modules if module is not None for part in module.modules()]
        self.tensors = [
            (held, name, tensor, tensor._version)
            for part in parts
            for held in (part._parameters, part._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]
        # Fused optimisers change parameters and not their versions.
        self.sums = [
            (tensor, tensor.data_ptr(), bits, _sum(bits))
            for part in parts
            for tensor in part._parameters.values()
            if tensor is not None
            for bits in [_bits(tensor)]
        ]

    @property
    def is_unchanged(self) -> bool:
        same = all(
            held.get(name) is tensor and tensor._version == version
            for held, name, tensor, version in self.tensors
        )
        return same and all(
            tensor.data_ptr() == place and _sum(bits) == total
            for tensor, place, bits, total in self.sums
        )


def _bits(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor as integers."""
    if not tensor.is_contiguous():
        raise TypeError  # they would be those of a copy
    array: np.ndarray = tensor.detach().numpy().ravel()
    size = array.itemsize if array.nbytes % 8 else 8
    return array.view(f"u{size}")


def _sum(bits: np.ndarray) -> int:
    return int(np.add.reduce(bits, dtype=bits.dtype))


class FewRows:
    """Features and predictions of a fitted model, row by row.

    Parameters
    ----------
    model : FittedModel

    Raises
    ------
    TypeError
        If the model is not a perceptron on numbers on a CPU.
    """

    def __init__(self, model: Any) -> None:
        module, dtype = model.module, model.plan.network.dtype
        backbone, head = module.backbone, module.last_layer
        if type(backbone) is not Encoded or module.autocast or head.weight.device.type != "cpu":
            raise TypeError
        columns, network = backbone.columns, backbone.network
        if len(columns.expansion.share) or model.local_part is not None:
            raise TypeError  # categories, gaps, or the distances of rows
        self.dtype = np.dtype(str(dtype).removeprefix("torch."))
        self.encoders = [_encoder(each, self.dtype) for each in columns.encoders if each.n_outputs]
        inner: Any = network
        if isinstance(network, MemberNetworks) and isinstance(network[-1], JoinMembers):
            inner = network[0]
        widths, networks = [sum(columns.widths)], [inner]
        if type(inner) is Blocks:
            widths, networks = inner.widths, list(inner.networks)
        scale = columns.column_scale
        scales = [None] * len(widths) if scale is None else scale.split(widths, -1)
        self.stops = np.cumsum(widths)[:-1]
        parts = zip(networks, scales, strict=True)
        self.blocks = [_scaled(_layers(each), own) for each, own in parts]
        if sum(layer.weight.size for block in self.blocks for layer in block) > MOST_WEIGHTS:
            raise TypeError
        self.made_of = module, model.offset
        self.seen, self.head_seen = Seen(backbone, model.offset), Seen()
        self.offset: tuple[Map, np.ndarray, np.ndarray] | None = None
        if model.offset is not None:
            own, layer = model.offset.columns, model.offset.layer
            self.offset = _encoder(own, self.dtype), _array(layer.weight.T), _array(layer.bias)

    def is_current(self, model: Any) -> bool:
        """Whether the network and the offset of the model are those that this was made of."""
        same = model.module is self.made_of[0] and model.offset is self.made_of[1]
        return same and model.local_part is None and self.seen.is_unchanged

    def features(self, X: np.ndarray) -> np.ndarray:
        """Features (n, d) of the rows."""
        with np.errstate(all="ignore"):  # what is not finite is told of elsewhere
            return np.stack([self._features(row) for row in X.astype(np.float64)])

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Predictions (n, k) on the scale of training."""
        if not (self.head_seen.tensors and self.head_seen.is_unchanged):
            head = self.made_of[0].last_layer
            self.head_seen = Seen(*head.members)
            self.head = _array(head.weight.T), _array(head.bias)
        with np.errstate(all="ignore"):  # `predict` warns of predictions that are not finite
            return np.stack([self._prediction(row) for row in X.astype(np.float64)])

    def _prediction(self, row: np.ndarray) -> np.ndarray:
        weight, bias = self.head
        output: np.ndarray = np.einsum("d,dk->k", self._features(row), weight) + bias
        if self.offset is not None:
            encode, weight, bias = self.offset
            output = output + (np.einsum("p,pk->k", encode(row), weight) + bias)
        return output

    def _features(self, row: np.ndarray) -> np.ndarray:
        parts = [encode(row) for encode in self.encoders]
        encoded = parts[0] if len(parts) == 1 else np.concatenate(parts)
        found = []
        for first, block in zip(np.split(encoded, self.stops), self.blocks, strict=True):
            weight, bias, activation = block[0]
            hidden = np.einsum("p,pq->q", first, weight).reshape(bias.shape) + bias
            hidden = hidden if activation is None else activation(hidden)
            for weight, bias, activation in block[1:]:
                hidden = np.einsum("mp,mpq->mq", hidden, weight) + bias
                hidden = hidden if activation is None else activation(hidden)
            found.append(hidden)
        features: np.ndarray = found[0] if len(found) == 1 else np.concatenate(found, axis=1)
        return features.ravel()


def few_rows(estimator: Any, X: Any) -> np.ndarray | None:
    """Predictions of a few plain rows in y's units, or None if the usual way has to be taken."""
    model = vars(estimator).get("_model")
    if model is None or not few_numbers(X, 2) or len(X) > MOST_ROWS:
        return None
    plan = model.plan
    if plan.reader is not None or "feature_names_in_" in vars(estimator):
        return None
    if X.shape[1:] != plan.network.sample_shape:
        return None
    few = prepared(model)
    return None if few is None else plan.unscale(few(X))


def labelled_features(model: Any, rows: RowsDataset) -> Iterator[tuple[Any, ...]]:
    """Batches of features, targets and weights of rows that are added to a fitted model."""
    few = prepared(model) if len(rows) <= MOST_ROWS else None
    if few is None:
        yield from model.labelled_features(rows)
        return
    inputs, targets, sample_weight = rows.batch(slice(None))
    yield torch.from_numpy(few.features(inputs.numpy())), targets, sample_weight


def prepared(model: Any) -> FewRows | None:
    """What predicts a few rows of this model, made anew if the model has changed; None if nothing.

    Parameters
    ----------
    model : FittedModel
    """
    if model.few is None or (model.few and not model.few.is_current(model)):
        try:
            model.few = FewRows(model)
        except TypeError:
            model.few = False
    return model.few or None


def _array(tensor: Tensor | None) -> np.ndarray:
    """A copy in C order, which later changes of the tensor do not reach."""
    assert tensor is not None
    return np.array(tensor.detach().numpy(), order="C")


def _layers(network: nn.Module) -> list[Layer]:
    """The layers of a network, or of m networks side by side."""
    found: list[Layer] = []
    for part in network.children():
        if type(part) is MemberLinear:
            found.append(Layer(_array(part.weight), _array(part.bias)[:, 0], None))
        elif type(part) is nn.Linear:
            found.append(Layer(_array(part.weight.T)[None], _array(part.bias)[None], None))
        elif type(part) in ACTIVATIONS and found:
            found[-1] = found[-1]._replace(activation=ACTIVATIONS[type(part)])
        elif not isinstance(part, nn.Identity | SeededDropout):
            raise TypeError
    if not found or not isinstance(network, nn.Sequential):
        raise TypeError
    return found


def _scaled(layers: list[Layer], scale: Tensor | None) -> list[Layer]:
    """The layers, the first times the scale of its inputs and with those of all networks in one."""
    weight = layers[0].weight
    if scale is not None:
        weight = weight * _array(scale)[..., None].reshape(-1, weight.shape[1], 1)
    joined = np.ascontiguousarray(weight.transpose(1, 0, 2).reshape(weight.shape[1], -1))
    return [layers[0]._replace(weight=joined), *layers[1:]]


def _encoder(encoder: nn.Module, dtype: np.dtype) -> Map:
    """What an encoder makes of a row in float64."""
    if type(encoder) is PiecewiseLinear:
        parts = map(_array, (encoder.center, encoder.width, encoder.lower, encoder.rate))
        center, width, lower, rate = parts
        column = _array(encoder.column)

        def bins(row: np.ndarray) -> np.ndarray:
            scaled = ((row - center) / width).astype(dtype)[column]
            return np.minimum(np.maximum((scaled - lower) * rate, 0), 2) - 1

        return bins
    if type(encoder) not in (RobustStandardize, NormalScores):
        raise TypeError
    assert isinstance(encoder, RobustStandardize)
    mean, scale, limit = map(_array, (encoder.mean, encoder.scale, encoder.limit))
    tables = _tables(encoder) if isinstance(encoder, NormalScores) else []

    def standardised(row: np.ndarray) -> np.ndarray:
        scaled = ((row - mean) / scale).astype(dtype)
        near = np.minimum(np.maximum(scaled, -limit), limit)
        if (near != scaled).any():
            near = near + limit * np.tanh((scaled - near) / limit)
        for column, values, scores in tables:
            near[column] = np.interp(row[column], values, scores)
        return near

    return standardised


def _tables(encoder: NormalScores) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Each column that is replaced by its scores, and the values and scores between them."""
    parts = zip(encoder.columns, encoder.values, encoder.scores, encoder.last, strict=True)
    return [(int(c), _array(v)[: int(n) + 1], _array(s)[: int(n) + 1]) for c, v, s, n in parts]
