"""A noise level that differs from row to row: one more closed-form layer on the same features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg

__all__ = ["NoiseModel", "fit_noise", "leave_one_out"]

RIDGES = torch.logspace(-3, 2, 11, dtype=torch.float64)
# Held-out rows that judge: enough, and a bound on memory.
JUDGES = 20_000
# Squared residuals below this share of their mean count as this: the logarithm of a residual
# that is zero by chance would weigh more than a hundred others.
SMALLEST = 1e-4


class NoiseModel(NamedTuple):
    """Noise variance ``exp(features @ weight.T + bias)``, within the range of the training rows.

    Attributes
    ----------
    weight : Tensor of shape (k, d)
        Zero where a constant explains the held-out residuals as well.
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

    def __call__(self, features: Tensor) -> Tensor:
        """Noise variance of each row; shape (..., k)."""
        logs = features.to(self.weight) @ self.weight.T + self.bias
        return logs.clamp(self.low, self.high).exp()


def leave_one_out(net: Any, data: Any, ridge: float) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Features, residuals under the last layer fitted to all *other* rows, and weights.

    Batch by batch, from the moments that the layer holds
    (:func:`~sklearn_cfll.linalg.leave_one_out_residuals`). Features are (n, d) and residuals
    (n, k), samples with positions flattened. The backbone has seen the row all the same.
    """
    layer = net.module_.last_layer
    for features, targets, sample_weight in net.labelled_features(data):
        rows, weights = as_rows(features, sample_weight)
        rows = rows.to(layer.moments.gram)
        residuals = (targets - layer(features)).reshape(len(rows), -1)
        hat = linalg.leverage(rows, layer.moments, ridge, fit_intercept=layer.fit_intercept)
        if weights is not None:
            hat = hat * weights
        share = (1.0 - hat).clamp_min(torch.finfo(hat.dtype).eps)  # of a row that fixes a weight
        yield rows, residuals / share.unsqueeze(1), weights


def as_rows(features: Tensor, sample_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features (n, positions..., d) as rows, a sample's weight at each of its positions."""
    rows = features.reshape(-1, features.shape[-1])
    if sample_weight is None or len(rows) == len(features):
        return rows, sample_weight
    return rows, sample_weight.repeat_interleave(len(rows) // len(features))


def fit_noise(net: Any, train: Any, valid: Any, ridge: float, constant: Tensor) -> NoiseModel:
    """Ridge regression of the logarithm of squared residuals on the features.

    Leave-one-out residuals of the training rows make the shape, the held-out rows its level and
    the ridge, by the likelihood of a normal distribution. A constant is kept unless the best
    is better by more than a standard error over the held-out samples.

    Parameters
    ----------
    net : CFLLNet
        Its last layer fitted to ``train`` with ``ridge``, moments held.
    train, valid : RowsDataset
    ridge : float
    constant : Tensor of shape (k,)
        Mean squared residual of the held-out rows.
    """
    held = None
    smallest = SMALLEST * constant.double()
    for rows, residuals, weights in leave_one_out(net, train, ridge):
        logs = residuals.double().square().clamp_min(smallest).log()
        weights = None if weights is None else weights.double()
        block = linalg.moments(rows.double(), logs, weights)
        held = block if held is None else linalg.merge_moments(held, block)
    assert held is not None
    weights, biases = linalg.ridge_path(held, RIDGES)  # (r, k, d) and (r, k)
    # Three standard deviations of the fitted logarithms: features of rows unlike the training
    # rows are unbounded, and an exponential of them more so.
    spread = ((weights @ held.gram) * weights).sum(2).div(held.total).clamp_min(0.0).sqrt()
    center = held.target_mean

    scaled, squares, counts = [], [], []
    for features, targets, sample_weight in net.labelled_features(valid):
        rows, row_weight = as_rows(features, sample_weight)
        logs = (rows.double() @ weights.mT + biases[:, None]).clamp(
            (center - 3 * spread)[:, None], (center + 3 * spread)[:, None]
        )
        residuals = (targets - net.module_.last_layer(features)).reshape(len(rows), -1)
        row_weight = rows.new_ones(len(rows)) if row_weight is None else row_weight
        positions = len(rows) // len(features)
        scaled.append(logs.unflatten(1, (-1, positions)))
        squares.append(residuals.double().square().unflatten(0, (-1, positions)))
        counts.append(row_weight.double().unflatten(0, (-1, positions))[..., None])
        if sum(len(part) * positions for part in squares) >= JUDGES:
            break
    logs, square, weight = torch.cat(scaled, 1), torch.cat(squares), torch.cat(counts)

    def mean(values: Tensor) -> Tensor:  # over rows, by weight
        return (weight * values).sum((-3, -2)) / weight.sum()

    level = mean(square / logs.exp()).log()  # (r, k): makes squared residuals 1 on average
    flat = mean(square).clamp_min(torch.finfo(square.dtype).tiny)
    loss = logs + level[:, None, None] + square / (logs + level[:, None, None]).exp()
    gain = ((flat.log() + square / flat - loss) * weight / weight.mean()).mean(2)  # by sample
    gains, errors = gain.mean(1), gain.std(1) / len(square) ** 0.5
    best = gains.argmax(0)
    model = NoiseModel.constant(constant, rows.shape[1])
    for target, chosen in enumerate(best.tolist()):
        if gains[chosen, target] > errors[chosen, target]:
            offset = level[chosen, target]
            model.weight[target] = weights[chosen, target]
            model.bias[target] = biases[chosen, target] + offset
            model.low[target] = center[target] + offset - 3 * spread[chosen, target]
            model.high[target] = center[target] + offset + 3 * spread[chosen, target]
    return model
