"""Residuals of rows outside the training set, relative to their predicted deviations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..heads import Head
from .noise import NoiseModel, noise_inputs, points_as_rows
from .offset import Offset

__all__ = ["Calibration", "calibrate", "left_out_residuals", "predictive_variance", "pulled"]
__all__ += ["with_noise"]

# Predicted variances are multiplied by the mean squared score of the held-out rows, regularised by
# this many pseudo-observations with this variance: the score is imprecise for few rows, and it is
# too small because these rows chose epoch, ridge and noise model (benchmarks/intervals.py).
OTHERS, THEIR_SQUARE = 20, 1.5


class Calibration(NamedTuple):
    """Residuals of rows outside the training set, under a last layer not fitted to them.

    Attributes
    ----------
    scores : Tensor of shape (rows, k)
        Residual over the predictive standard deviation.
    weights : Tensor of shape (rows,)
        Sample weights.
    n_samples : int
        Number of samples; fewer than rows if samples have positions.
    residuals : Tensor of shape (n, ..., k)
        Target minus prediction; the probabilities of a classifier are fitted to them.
    inflation_square : Tensor of shape (k,)
        Factor on predicted variances: the mean squared score to be expected of new rows.
    """

    scores: Tensor
    weights: Tensor
    n_samples: int
    residuals: Tensor
    inflation_square: Tensor


def predictive_variance(
    layer: Head,
    features: Tensor,
    noise_variance: Tensor,
    noise: NoiseModel | None,
    left_out: Tensor | None = None,
) -> Tensor:
    """``σ²(x) + σ² · leverage``: noise of the row plus uncertainty of the weights.

    ``left_out`` holds the sample weights of rows that are in the moments, for their variance under
    the fit to all other rows.
    """
    variance = layer.variance(features, noise_variance, left_out)
    if noise is None:
        return variance
    return with_noise(variance, noise_variance, noise(noise_inputs(layer, features)))


def with_noise(variance: Tensor, noise_variance: Tensor, noise: Tensor) -> Tensor:
    """Variances with the noise of each row in place of the mean ``noise_variance``."""
    weights_only = variance - noise_variance.to(variance)
    return weights_only.clamp_min(0.0) + noise.to(variance)


def _residuals(net: Any, data: Any, variance: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Residuals, variances and weights of rows that the last layer was not fitted to."""
    layer = net.module_.last_layer
    for features, targets, sample_weight in net.labelled_features(data):
        yield targets - layer(features), variance(features, None), sample_weight


def left_out_residuals(
    net: Any, data: Any, variance: Any, offset: Offset | None = None
) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Like :func:`_residuals`, for rows that the last layer *was* fitted to.

    Each row is predicted exactly by the last layer and the offset fitted to all other rows.
    """
    layer = net.module_.last_layer
    more = None if offset is None else offset.left_out_shift(data)
    start = 0
    for features, targets, sample_weight in net.labelled_features(data):
        ones = features.new_ones(len(features))
        weight = ones if sample_weight is None else sample_weight
        residuals = layer.leave_one_out_residuals(features, targets, weight)
        if more is not None:
            residuals = residuals + more[start : start + len(features)] * targets
        start += len(features)
        yield residuals, variance(features, weight), sample_weight


def calibrate(
    net: Any,
    data: Any,
    noise_variance: Tensor,
    noise: NoiseModel | None,
    residuals: Callable[..., Iterator[tuple[Tensor, Tensor, Any]]] = _residuals,
    train: Any = None,
) -> Calibration:
    """Residuals of rows outside the training set, relative to their predicted deviations.

    If ``train`` is given, the mean square is at least that of its residuals.
    """
    layer = net.module_.last_layer
    floor = torch.finfo(noise_variance.dtype).tiny

    def variance(features: Tensor, left_out: Tensor | None) -> Tensor:
        if not layer.holds_moments:  # the uncertainty of the weights is unknown
            return noise_variance.expand(*features.shape[:-1], -1)
        return predictive_variance(layer, features, noise_variance, noise, left_out)

    scores, weights, left, n_samples = [], [], [], 0
    for residual, spread, sample_weight in residuals(net, data, variance):
        score = residual / spread.to(noise_variance).clamp_min(floor).sqrt()
        rows, row_weight = points_as_rows(score, sample_weight)
        scores.append(rows)
        left.append(residual)
        weights.append(rows.new_ones(len(rows)) if row_weight is None else row_weight)
        n_samples += len(score)
    score, weight = torch.cat(scores), torch.cat(weights)
    inflation = pulled(score.square(), weight, n_samples)
    if train is not None:
        # Residuals of training rows are too small. If they exceed those of the held-out rows, they
        # are a lower bound of the noise (this matters for targets that are nearly always zero).
        own = calibrate(net, train, noise_variance, noise)
        share = (own.weights / own.weights.sum()).to(own.scores)
        inflation = torch.maximum(inflation, share @ own.scores.square())
    return Calibration(score, weight, n_samples, torch.cat(left), inflation)


def pulled(squares: Tensor, weights: Tensor, n_samples: int) -> Tensor:
    """Weighted mean square of scores (rows, k), pulled to that of some others; shape (k,).

    Rows count by their effective number (Kish): that of as many rows of equal weight.
    """
    share = weights.to(squares) / weights.to(squares).sum()
    n_equal = n_samples / (len(share) * share.square().sum())
    return (n_equal * (share @ squares) + OTHERS * THEIR_SQUARE) / (n_equal + OTHERS)
