"""The final exact solve of the last layer, and its evaluation on held-out rows."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..heads import Head
from ..linalg import RIDGES
from ..training.batches import RowsDataset
from .calibration import Calibration, calibrate, left_out_residuals
from .noise import NoiseModel, fit_noise, held_out, leave_one_out, points_as_rows
from .offset import Offset, less_offset

__all__ = ["Refit", "mean_squared_residuals", "path_errors", "refit_last_layer"]
__all__ += ["shrinkage_factor"]

# Strength of the shrinkage of an uncertain coefficient; benchmarks/small_data.py measures it. With
# fewer rows than ENOUGH_ROWS, a standard error is itself imprecise, and shrinkage is stronger.
DOUBT, ENOUGH_ROWS = 2.0, 40


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
    out_of_fold : OutOfFold or None
        Judged rows as seen by cross-fitted members that did not see them.
    residuals : Tensor of shape (n, ..., k), or None
        Residuals of all rows under the same members; None for a stream.
    local_part : LocalPart or None
        Smoother of these residuals, which is added to the predictions.
    """

    ridge: float
    noise_variance: Tensor
    exact: bool = False
    path_errors: Tensor | None = None
    noise: NoiseModel | None = None
    calibration: Calibration | None = None
    offset: Any = None
    out_of_fold: Any = None
    residuals: Tensor | None = None
    local_part: Any = None


def refit_last_layer(
    net: Any,
    train: RowsDataset,
    valid: RowsDataset | None,
    ridge: float | None = None,
    lowest: float = 0.0,
    offset: Offset | None = None,
    most: int = 2**15,
    others: Any = None,
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
    most : int, default=32768
        Held-out rows by which the ridge is chosen and noise is estimated, and training rows that
        shape the noise; evenly spread if there are more.
    others : optional
        All held-out rows, if ``valid`` is a sample of them.
    """
    given_train, given_valid = train, valid
    train = less_offset(train, offset)
    layer = net.module_.last_layer
    with net.naming_divergence():
        first_ridge = ridge if given_valid is None else 1.0  # held-out rows choose another one
        layer.refit(net.labelled_features(train.own), ridge=first_ridge)
    if given_valid is None:
        left = mean_squared_residuals(net, train)
        # With fixed features, a row left out of the last layer was not used at all.
        fixed = net.optimizer_ is None and not _has_points(net, train)
        calibration = calibrate(net, train, left, None, left_out_residuals) if fixed else None
        found = layer.final_ridge
        return Refit(found, left, exact=True, calibration=calibration, offset=offset)
    given_judged = given_valid.spread(most)
    valid, some = less_offset(given_judged, offset), train.spread(most)
    path = layer.ridge_path(torch.tensor(RIDGES))
    errors = path_errors(net, valid, path)
    first = sum(ridge < lowest for ridge in RIDGES)
    best = first + int(errors[first:].mean(1).argmin())
    ridge, left = RIDGES[best], errors[best]
    layer.solve(ridge)
    shrinkage = None
    if offset is not None:
        assert valid.targets is not None
        predicted = torch.cat([layer(features) for features in net.iterate_features(valid)])
        shrinkage = shrinkage_factor(predicted, valid.targets, valid.sample_weight)
        layer.solve(ridge, shrinkage)
        left = mean_squared_residuals(net, valid)
    shaping = functools.partial(leave_one_out, net, some, ridge)
    noise, _ = fit_noise(layer, [(shaping, functools.partial(held_out, net, valid))], left)
    # A field has many points per sample, so leaving out a single point is uninformative, and the
    # last layer hardly changes when the held-out samples are added.
    calibration = None
    if _has_points(net, valid):
        calibration = calibrate(net, valid, left, noise, train=some)
    if offset is not None:
        offset = offset.refitted(given_train, given_valid)
        train = less_offset(given_train, offset)
        valid, some = less_offset(given_judged, offset), train.spread(most)
        layer.refit(net.labelled_features(train.own), ridge=ridge)
    rest = less_offset(given_valid, offset).own if others is None else others
    layer.accumulate_all(net.labelled_features(rest))
    layer.solve(ridge, shrinkage)
    if calibration is None:
        left_out = functools.partial(left_out_residuals, offset=offset)
        calibration = calibrate(net, valid, left, noise, left_out, some)
    return Refit(ridge, left, True, errors, noise, calibration, offset)


def shrinkage_factor(predicted: Tensor, targets: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Shrinkage factor of the last layer's prediction for each target; shape (k,).

    It is b times ``b² / (b² + c se²)``. b is the least-squares coefficient of the prediction on the
    held-out rows, clipped to [0, 1], and se its standard error; c = 2, or ``2 (40/m)²`` for m < 40
    rows. The factor is near one if the held-out rows leave no doubt that the network helps, and
    near zero if b is no larger than its standard error.

    Parameters
    ----------
    predicted, targets : Tensor of shape (n, k)
        Of rows that the last layer was not fitted to.
    sample_weight : Tensor of shape (n,), or None
    """
    predicted, targets = predicted.double(), targets.double()
    weights = torch.ones_like(predicted)
    if sample_weight is not None:
        weights = sample_weight.double()[:, None]
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


def _has_points(net: Any, data: Any) -> bool:
    """Whether samples have positions, each of which is a row of the solve."""
    features: Tensor = next(iter(net.labelled_features(data)))[0]
    return features.ndim > 2


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
