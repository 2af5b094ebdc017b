"""Heteroscedastic noise model: another closed-form layer on the same features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import linalg
from ..heads import Head

__all__ = ["NoiseModel", "fit_noise", "leave_one_out", "noise_inputs", "points_as_rows"]

NOISE_RIDGES = torch.logspace(-3, 2, 11, dtype=torch.float64)
# Largest number of held-out rows for model selection, to bound memory.
JUDGES = 20_000
# Squared residuals are at least this fraction of their mean. Otherwise the logarithm of a residual
# that is zero by chance would outweigh a hundred others.
SMALLEST = 1e-4


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
        ratio = np.log(after / before, out=np.zeros_like(after), where=before * after > 0)
        shift = torch.as_tensor(ratio, device=self.bias.device)
        logs = (each + shift.to(each) for each in (self.bias, self.low, self.high))
        return NoiseModel(self.weight, *logs)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Noise variance of each row; shape (..., k)."""
        logs = inputs.to(self.weight) @ self.weight.T + self.bias
        return logs.clamp(self.low, self.high).exp()


def leave_one_out(net: Any, data: Any, ridge: float) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Features, residuals under the last layer fitted to all *other* rows, and weights.

    They are computed batch by batch, from the moments that the layer holds
    (:func:`~sklearn_cfll.linalg.leave_one_out_residuals`). Features have shape (n, ..., d);
    residuals have shape (rows, k), with the positions of samples flattened. The backbone was still
    trained on the row.
    """
    layer = net.module_.last_layer
    for features, targets, sample_weight in net.labelled_features(data):
        rows, weights = points_as_rows(features, sample_weight)
        wanted = targets.reshape(len(rows), -1)
        yield features, layer.leave_one_out_residuals(rows, wanted, weights, ridge), weights


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


def fit_noise(net: Any, train: Any, valid: Any, ridge: float, constant: Tensor) -> NoiseModel:
    """Ridge regression of the logarithm of squared residuals on the features.

    The shape is fitted to leave-one-out residuals of the training rows. The level and the ridge are
    chosen on the held-out rows by the likelihood of a normal distribution. The noise is constant
    unless the best model is better by more than one standard error over the held-out samples.

    Parameters
    ----------
    net : CFLLNet
        Net whose last layer was fitted to ``train`` with ``ridge`` and holds moments.
    train, valid : RowsDataset
    ridge : float
    constant : Tensor of shape (k,)
        Mean squared residual of the held-out rows.
    """
    held, layer = None, net.module_.last_layer
    smallest = SMALLEST * constant.double()
    for features, residuals, weights in leave_one_out(net, train, ridge):
        rows = noise_inputs(layer, features).flatten(0, -2)
        logs = residuals.double().square().clamp_min(smallest).log()
        weights = None if weights is None else weights.double()
        block = linalg.moments(rows.double(), logs, weights)
        held = block if held is None else linalg.merge_moments(held, block)
    assert held is not None
    weights, biases = _path(
        held, equal_scales=held.gram.shape[0] > layer.in_features // layer.n_members
    )
    # Clip at three standard deviations of the fitted logarithms, because features of rows unlike
    # the training rows are unbounded, and their exponential even more so.
    spread = ((weights @ held.gram) * weights).sum(2).div(held.total).clamp_min(0.0).sqrt()
    center = held.target_mean

    scaled, squares, counts = [], [], []
    for features, targets, sample_weight in net.labelled_features(valid):
        rows, row_weight = points_as_rows(noise_inputs(layer, features), sample_weight)
        logs = (rows.double() @ weights.mT + biases[:, None]).clamp(
            (center - 3 * spread)[:, None], (center + 3 * spread)[:, None]
        )
        residuals = (targets - layer(features)).reshape(len(rows), -1)
        row_weight = rows.new_ones(len(rows)) if row_weight is None else row_weight
        positions = len(rows) // len(features)
        scaled.append(logs.reshape(len(logs), -1, positions, logs.shape[2]))
        squares.append(residuals.double().square().reshape(-1, positions, residuals.shape[1]))
        counts.append(row_weight.double().reshape(-1, positions, 1))
        if sum(len(part) * positions for part in squares) >= JUDGES:
            break
    logs, square, weight = torch.cat(scaled, 1), torch.cat(squares), torch.cat(counts)
    model = NoiseModel.constant(constant, rows.shape[1])
    if len(square) < 2:
        return model  # one sample has no standard error

    def mean(values: Tensor) -> Tensor:  # weighted mean over rows
        return (weight * values).sum((-3, -2)) / weight.sum()

    level = mean(square / logs.exp()).log()  # (r, k): makes scaled squared residuals one on average
    flat = mean(square).clamp_min(torch.finfo(square.dtype).tiny)
    loss = logs + level[:, None, None] + square / (logs + level[:, None, None]).exp()
    gain = ((flat.log() + square / flat - loss) * weight / weight.mean()).mean(2)  # by sample
    gains, errors = gain.mean(1), gain.std(1) / len(square) ** 0.5
    best = gains.argmax(0)
    for target, chosen in enumerate(best.tolist()):
        if gains[chosen, target] > errors[chosen, target]:
            offset = level[chosen, target]
            model.weight[target] = weights[chosen, target]
            model.bias[target] = biases[chosen, target] + offset
            model.low[target] = center[target] + offset - 3 * spread[chosen, target]
            model.high[target] = center[target] + offset + 3 * spread[chosen, target]
    return model


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
