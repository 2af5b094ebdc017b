"""The final exact solve of the last layer, and its evaluation on held-out rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..heads import Head
from ..linalg import RIDGES
from ..training.batches import RowsDataset
from .noise import NoiseModel, fit_noise, noise_inputs, points_as_rows
from .offset import Offset, less_offset

__all__ = [
    "Calibration",
    "Refit",
    "calibrate",
    "mean_squared_residuals",
    "path_errors",
    "predictive_variance",
]
__all__ += ["refit_last_layer"]

# Strength of the shrinkage of an uncertain coefficient; benchmarks/small_data.py measures it. With
# fewer rows than ENOUGH_ROWS, a standard error is itself imprecise, and shrinkage is stronger.
DOUBT, ENOUGH_ROWS = 2.0, 40


class Calibration(NamedTuple):
    """Residuals of rows outside the training set, under a last layer not fitted to them.

    Attributes
    ----------
    scores : Tensor of shape (rows, k)
        Absolute residual over the predictive standard deviation.
    weights : Tensor of shape (rows,)
        Sample weights.
    n_samples : int
        Number of samples; fewer than rows if samples have positions.
    residuals : Tensor of shape (n, ..., k)
        Target minus prediction; the probabilities of a classifier are fitted to them.
    training_squares : Tensor of shape (k,)
        Mean squared score of the training rows, zero if unknown.
    """

    scores: Tensor
    weights: Tensor
    n_samples: int
    residuals: Tensor
    training_squares: Tensor


class Refit(NamedTuple):
    """Result of the final solve.

    Attributes
    ----------
    ridge : float
    noise_variance : Tensor of shape (k,)
        Mean squared residual per target: on the held-out rows under the fit to the others, or on
        the training rows if none were held out.
    exact : bool
        Whether the last layer is the ridge fit to all rows, not the result of training.
    path_errors : Tensor of shape (len(RIDGES), k) or None
        Mean squared residual on the held-out rows for each of ``RIDGES``.
    noise : NoiseModel or None
        Noise of individual rows, with level and shape chosen on the held-out rows.
    calibration : Calibration or None
        Calibration on the held-out rows.
    offset : Offset or None
        Offset fitted to all rows.
    """

    ridge: float
    noise_variance: Tensor
    exact: bool = False
    path_errors: Tensor | None = None
    noise: NoiseModel | None = None
    calibration: Calibration | None = None
    offset: Any = None


def refit_last_layer(
    net: Any,
    train: RowsDataset,
    valid: RowsDataset | None,
    ridge: float | None = None,
    lowest: float = 0.0,
    offset: Offset | None = None,
) -> Refit:
    """Solve exactly for the last layer on evaluation-mode features of all rows.

    Parameters
    ----------
    net : CFLLNet
        Trained net, whose last layer is changed.
    train, valid : RowsDataset
        ``valid`` may be None.
    ridge : float, optional
        Ridge to use without held-out rows. By default it is chosen from the moments of the training
        rows (:func:`~sklearn_cfll.linalg.final_ridge`), with a correction for features that were
        trained on the same targets.
    lowest : float, default=0.0
        Smallest ridge that may be chosen.
    offset : Offset, optional
        Offset fitted to ``train``, to whose residuals the net was trained. It is refitted to all
        rows.
    """
    given_train, given_valid = train, valid
    train = less_offset(train, offset)
    layer = net.module_.last_layer
    with net.naming_divergence():
        layer.refit(net.labelled_features(train), ridge=ridge)
    if given_valid is None:
        left = mean_squared_residuals(net, train)
        # With fixed features, a row left out of the last layer was not used at all.
        fixed = net.optimizer_ is None and not _has_points(net, train)
        calibration = calibrate(net, train, left, None, _left_out_residuals) if fixed else None
        found = layer.final_ridge
        return Refit(found, left, exact=True, calibration=calibration, offset=offset)
    valid = less_offset(given_valid, offset)
    path = layer.ridge_path(torch.tensor(RIDGES))
    errors = path_errors(net, valid, path)
    first = sum(ridge < lowest for ridge in RIDGES)
    best = first + int(errors[first:].mean(1).argmin())
    ridge, left = RIDGES[best], errors[best]
    layer.solve(ridge)
    shrinkage = None
    if offset is not None:
        shrinkage = shrink_to_evidence(net, valid)
        layer.solve(ridge, shrinkage)
        left = mean_squared_residuals(net, valid)
    noise = fit_noise(net, train, valid, ridge, left)
    # A field has many points per sample, so leaving out a single point is uninformative, and the
    # last layer hardly changes when the held-out samples are added.
    calibration = None
    if _has_points(net, valid):
        calibration = calibrate(net, valid, left, noise, train=train)
    if offset is not None:
        offset = offset.refitted(given_train, given_valid)
        train, valid = less_offset(given_train, offset), less_offset(given_valid, offset)
        layer.refit(net.labelled_features(train), ridge=ridge)
    for batch in net.labelled_features(valid):
        layer.accumulate(*batch)
    layer.solve(ridge, shrinkage)
    if calibration is None:
        left_out = functools.partial(_left_out_residuals, offset=offset)
        calibration = calibrate(net, valid, left, noise, left_out, train)
    return Refit(ridge, left, True, errors, noise, calibration, offset)


def shrink_to_evidence(net: Any, held_out: Any) -> Tensor:
    """Shrinkage factor of the last layer's prediction for each target; shape (k,).

    It is b times ``b² / (b² + c se²)``. b is the least-squares coefficient of the prediction on the
    held-out rows, clipped to [0, 1], and se its standard error; c = 2, or ``2 (40/m)²`` for m < 40
    rows. The factor is near one if the held-out rows leave no doubt that the network helps, and
    near zero if b is no larger than its standard error.
    """
    layer = net.module_.last_layer
    parts = [(layer(f), t, w) for f, t, w in net.labelled_features(held_out)]
    predicted, targets = (torch.cat([part[i] for part in parts]).double() for i in (0, 1))
    weights = torch.ones_like(predicted)
    if held_out.sample_weight is not None:
        weights = torch.cat([w for *_, w in parts]).double()[:, None]
    power = (weights * predicted.square()).sum(0).clamp_min(torch.finfo(torch.float64).tiny)
    share = ((weights * predicted * targets).sum(0) / power).clamp(0.0, 1.0)
    residual = targets - share * predicted
    variance = (weights * predicted * residual).square().sum(0) / power.square()
    square = share.square()
    doubt = square + DOUBT * max(1.0, ENOUGH_ROWS / len(predicted)) ** 2 * variance
    return torch.where(doubt > 0, share * square / doubt, share)


def mean_squared_residuals(net: Any, data: Any) -> Tensor:
    """Weighted mean squared residual of each target; shape (k,)."""
    layer = net.module_.last_layer
    return path_errors(net, data, (layer.weight[None], _bias(layer)[None]))[0]


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
    weights_only = variance - noise_variance.to(variance)
    return weights_only.clamp_min(0.0) + noise(noise_inputs(layer, features)).to(variance)


def _has_points(net: Any, data: Any) -> bool:
    """Whether samples have positions, each of which is a row of the solve."""
    features: Tensor = next(iter(net.labelled_features(data)))[0]
    return features.ndim > 2


def _residuals(net: Any, data: Any, variance: Any) -> Iterator[tuple[Tensor, Tensor, Any]]:
    """Residuals, variances and weights of rows that the last layer was not fitted to."""
    layer = net.module_.last_layer
    for features, targets, sample_weight in net.labelled_features(data):
        yield targets - layer(features), variance(features, None), sample_weight


def _left_out_residuals(
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

    Residuals of ``train`` are used too, if given; see :class:`Calibration`.
    """
    layer = net.module_.last_layer
    floor = torch.finfo(noise_variance.dtype).tiny

    def variance(features: Tensor, left_out: Tensor | None) -> Tensor:
        if not layer.holds_moments:  # the uncertainty of the weights is unknown
            return noise_variance.expand(*features.shape[:-1], -1)
        return predictive_variance(layer, features, noise_variance, noise, left_out)

    scores, weights, left, n_samples = [], [], [], 0
    for residual, spread, sample_weight in residuals(net, data, variance):
        score = residual.abs() / spread.to(noise_variance).clamp_min(floor).sqrt()
        rows, row_weight = points_as_rows(score, sample_weight)
        scores.append(rows)
        left.append(residual)
        weights.append(rows.new_ones(len(rows)) if row_weight is None else row_weight)
        n_samples += len(score)
    least = torch.zeros_like(noise_variance)
    if train is not None:
        own = calibrate(net, train, noise_variance, noise)
        weight = own.weights.to(own.scores)
        least = weight @ own.scores.square() / weight.sum()
    return Calibration(torch.cat(scores), torch.cat(weights), n_samples, torch.cat(left), least)


def path_errors(net: Any, data: Any, path: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted mean squared error of each target for r last layers; shape (r, k)."""
    weights, biases = path
    total: Tensor | float = 0.0
    errors = torch.zeros_like(biases)
    for features, targets, sample_weight in net.labelled_features(data):
        rows, row_weight = points_as_rows(features, sample_weight)
        wanted = targets.reshape(-1, targets.shape[-1]).to(weights)
        predictions = rows.to(weights) @ weights.mT + biases[:, None]
        squares = (predictions - wanted).square()
        if row_weight is None:
            errors, total = errors + squares.sum(1), total + len(rows)
        else:
            errors = errors + row_weight.to(weights) @ squares
            total = total + row_weight.sum()
    mean: Tensor = errors / total
    return mean


def _bias(layer: Head) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
