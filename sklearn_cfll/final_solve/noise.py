"""Heteroscedastic noise model: another closed-form layer on the same features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import linalg
from ..heads import Head

__all__ = ["NoiseModel", "fit_noise", "leave_one_out", "noise_inputs", "points_as_rows"]

Residuals = tuple[Tensor, Tensor, Tensor | None]  # features, residuals, sample weights
Part = tuple[Callable[[], Iterable[Residuals]], Callable[[], Iterable[Residuals]]]

NOISE_RIDGES = torch.logspace(-3, 2, 11, dtype=torch.float64)
# Largest number of held-out rows for model selection, to bound memory.
JUDGES = 20_000
# Squared residuals are at least this fraction of their mean. Otherwise the logarithm of a residual
# that is zero by chance would outweigh a hundred others.
SMALLEST = 1e-4
# Least effective number (Kish) of squared residuals that judge; of n normal ones it is n / 3. If
# nearly all of their sum comes from a few rows, as for targets that are nearly always zero, the
# likelihood is that of these rows.
FEWEST = 10


class NoiseModel(NamedTuple):
    """Noise variance ``exp(inputs @ weight.T + bias)``, within the range of the training rows.

    Attributes
    ----------
    weight : Tensor of shape (k, d), or (k, d + 1) for fields
        Weights on :func:`noise_inputs`; zero if a constant explains the held-out residuals as well.
    bias, low, high : Tensor of shape (k,)
        Intercept and bounds of the logarithm.
    """

    weight: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def constant(cls, variance: Tensor, n_features: int) -> NoiseModel:
        """The same noise everywhere."""
        level = variance.double().clamp_min(torch.finfo(torch.float64).tiny).log()
        return cls(level.new_zeros(len(level), n_features), level, level.clone(), level.clone())

    def scaled(self, after: np.ndarray, before: np.ndarray) -> NoiseModel:
        """The model after a change of the mean noise level from ``before`` to ``after``."""
        ratio = np.divide(after, before, out=np.ones_like(after), where=before * after > 0)
        shift = torch.as_tensor(np.log(ratio), device=self.bias.device)
        logs = (each + shift.to(each) for each in (self.bias, self.low, self.high))
        return NoiseModel(self.weight, *logs)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Noise variance of each row; shape (..., k)."""
        logs = inputs.to(self.weight) @ self.weight.T + self.bias
        return logs.clamp(self.low, self.high).exp()


def leave_one_out(
    net: Any, data: Any, ridge: float | None = None
) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Features, residuals under the last layer fitted to all *other* rows, and sample weights.

    They are computed batch by batch, from the moments that the layer holds
    (:func:`~sklearn_cfll.linalg.leave_one_out_residuals`); each position of a sample is a row.
    Features have shape (n, ..., d), residuals (n, ..., k). The backbone was still trained on the
    row.
    """
    layer = net.module_.last_layer
    for features, targets, sample_weight in net.labelled_features(data):
        rows, weights = points_as_rows(features, sample_weight)
        wanted = targets.reshape(len(rows), -1)
        residuals = layer.leave_one_out_residuals(rows, wanted, weights, ridge)
        yield features, residuals.reshape(targets.shape), sample_weight


def held_out(net: Any, data: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """The same for rows that the last layer was not fitted to."""
    for features, targets, sample_weight in net.labelled_features(data):
        yield features, targets - net.module_.last_layer(features), sample_weight


def points_as_rows(features: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features (n, positions..., d) as rows; each position gets the weight of its sample."""
    rows = features.reshape(-1, features.shape[-1])
    if sample_weight is None or len(rows) == len(features):
        return rows, sample_weight
    return rows, sample_weight.repeat_interleave(len(rows) // len(features))


def noise_inputs(layer: Head, features: Tensor) -> Tensor:
    """Inputs of the noise model: features and, for fields, the logarithm of their leverage.

    The leverage is a sample's mean over its positions, times the total weight of the rows, so that
    more rows of the same kind do not change it. If features are unusual, the backbone errs too, at
    all points of a field together. On tables the leverage gained nothing. For an ensemble only the
    features of the first network are used: those of all would cost more than its solve.
    """
    if features.ndim == 2:
        return features[:, : layer.in_features // layer.n_members]
    assert layer.moments_total is not None
    leverage = layer.moments_total * layer.leverage(features).flatten(1).mean(1)
    column = leverage.clamp_min(torch.finfo(leverage.dtype).tiny).log()
    column = column.reshape(-1, *[1] * (features.ndim - 1)).expand(*features.shape[:-1], 1)
    return torch.cat([features.to(column), column], -1)


def fit_noise(layer: Head, parts: Sequence[Part], constant: Tensor) -> list[NoiseModel]:
    """Ridge regression of the logarithm of squared residuals on the features.

    A model whose shape is fitted to some rows is judged on others, by the likelihood of a normal
    distribution, which chooses its ridge and level. The noise is constant unless the best model is
    better by more than one standard error over the samples that judge, and these do not owe their
    squares to a few.

    Parameters
    ----------
    layer : Head
        Layer that holds moments.
    parts : sequence of (shaping, judging)
        Each is a function that returns batches (features, residuals, sample weights) of rows that
        the layer was not fitted to when their residuals were taken: features (n, ..., d), residuals
        (n, ..., k), weights (n,) or None. With several parts, the shape is fitted to the rows that
        shape of all parts in the end.
    constant : Tensor of shape (k,)
        Mean squared residual of the held-out rows.

    Returns
    -------
    list of NoiseModel
        The model, and for each part the one that its judging rows have judged: it has the same
        ridge and level, and a shape that was fitted without them.
    """
    smallest = SMALLEST * constant.double()
    moments = [_log_moments(layer, shaping(), smallest) for shaping, _ in parts]
    shapes = [_Shape.of(layer, block) for block in moments]
    judged = [
        _judge(layer, judging(), shape) for shape, (_, judging) in zip(shapes, parts, strict=True)
    ]
    logs = torch.cat([each[0] for each in judged], 1)  # (r, n, positions, k)
    square, weight = (torch.cat([each[i] for each in judged]) for i in (1, 2))
    shapes = [_Shape.of(layer, functools.reduce(linalg.merge_moments, moments)), *shapes]
    models = [NoiseModel.constant(constant, shape.weights.shape[2]) for shape in shapes]
    if len(square) < 2:
        return models  # one sample has no standard error

    def mean(values: Tensor) -> Tensor:  # weighted mean over rows
        return (weight * values).sum((-3, -2)) / weight.sum()

    level = mean(square / logs.exp()).log()  # (r, k): makes scaled squared residuals one on average
    flat = mean(square).clamp_min(torch.finfo(square.dtype).tiny)
    loss = logs + level[:, None, None] + square / (logs + level[:, None, None]).exp()
    gain = ((flat.log() + square / flat - loss) * weight / weight.mean()).mean(2)  # by sample
    gains, errors = gain.mean(1), gain.std(1) / len(square) ** 0.5
    total = square.sum(1)  # by sample
    n_equal = total.sum(0).square() / total.square().sum(0).clamp_min(torch.finfo(total.dtype).tiny)
    best = gains.argmax(0)
    for target, chosen in enumerate(best.tolist()):
        better = gains[chosen, target] > errors[chosen, target]
        if better and bool(n_equal[target] >= FEWEST):
            for model, shape in zip(models, shapes, strict=True):
                offset, reach = level[chosen, target], 3 * shape.spread[chosen, target]
                model.weight[target] = shape.weights[chosen, target]
                model.bias[target] = shape.biases[chosen, target] + offset
                model.low[target] = shape.center[target] + offset - reach
                model.high[target] = shape.center[target] + offset + reach
    return models


class _Shape(NamedTuple):
    """Fits of the logarithm for each of r ridges, and the range to which they are clipped."""

    weights: Tensor  # (r, k, d)
    biases: Tensor  # (r, k)
    center: Tensor  # (k,)
    spread: Tensor  # (r, k)

    @classmethod
    def of(cls, layer: Head, block: linalg.Moments) -> _Shape:
        equal_scales = block.gram.shape[0] > layer.in_features // layer.n_members
        weights, biases = _path(block, equal_scales)
        # Clip at three standard deviations of the fitted logarithms, because features of rows
        # unlike the training rows are unbounded, and their exponential even more so.
        variance = ((weights @ block.gram) * weights).sum(2).div(block.total)
        return cls(weights, biases, block.target_mean, variance.clamp_min(0.0).sqrt())

    def logs(self, rows: Tensor) -> Tensor:
        """Fitted logarithms of rows (n, d); shape (r, n, k)."""
        found = rows.double() @ self.weights.mT + self.biases[:, None]
        reach = 3 * self.spread
        return found.clamp((self.center - reach)[:, None], (self.center + reach)[:, None])


def _log_moments(layer: Head, batches: Iterable[Residuals], smallest: Tensor) -> linalg.Moments:
    """Moments of the features and the logarithms of squared residuals."""
    blocks = []
    for features, residuals, sample_weight in batches:
        rows, weights = points_as_rows(noise_inputs(layer, features), sample_weight)
        squares = residuals.double().square().reshape(len(rows), -1)
        weights = None if weights is None else weights.double()
        blocks.append(linalg.moments(rows.double(), squares.clamp_min(smallest).log(), weights))
    return functools.reduce(linalg.merge_moments, blocks)


def _judge(
    layer: Head, batches: Iterable[Residuals], shape: _Shape
) -> tuple[Tensor, Tensor, Tensor]:
    """Fitted logarithms (r, n, positions, k), squared residuals and weights of some rows."""
    logs, squares, counts, n_rows = [], [], [], 0
    for features, residuals, sample_weight in batches:
        rows, weights = points_as_rows(noise_inputs(layer, features), sample_weight)
        found, positions = shape.logs(rows), len(rows) // len(features)
        weights = rows.new_ones(len(rows)) if weights is None else weights
        logs.append(found.reshape(len(found), -1, positions, found.shape[2]))
        squares.append(residuals.double().square().reshape(-1, positions, found.shape[2]))
        counts.append(weights.double().reshape(-1, positions, 1))
        n_rows += len(rows)
        if n_rows >= JUDGES:
            break
    return torch.cat(logs, 1), torch.cat(squares), torch.cat(counts)


def _path(block: linalg.Moments, equal_scales: bool) -> tuple[Tensor, Tensor]:
    """Ridge fits (r, k, d) and (r, k); ``equal_scales`` puts different columns on one scale."""
    scale = torch.ones_like(block.feature_mean)
    if equal_scales:
        spread = (block.gram.diagonal() / block.total).sqrt()
        scale = torch.where(spread > 0, spread, scale)
    scaled = block._replace(
        gram=block.gram / torch.outer(scale, scale),
        cross=block.cross / scale,
        feature_mean=block.feature_mean / scale,
    )
    weights, biases = linalg.ridge_path(scaled, NOISE_RIDGES)
    return weights / scale, biases
