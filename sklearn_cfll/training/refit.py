"""The final exact solve of the last layer, and what held-out rows say of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg
from .noise import NoiseModel, as_rows, fit_noise, noise_inputs

__all__ = ["RIDGES", "Calibration", "Refit", "mean_squared_residuals", "predictive_variance"]
__all__ += ["refit_last_layer"]

# Half a decade apart: wide enough for clean and for noisy targets alike, and the path costs one
# eigendecomposition whatever its length.
RIDGES = tuple(float(r) for r in torch.logspace(-8, 3, 23, dtype=torch.float64))


class Calibration(NamedTuple):
    """Rows that the last layer was not fitted to, as it saw them.

    Attributes
    ----------
    scores : Tensor of shape (rows, k)
        Absolute residual over the predictive standard deviation.
    weights : Tensor of shape (rows,)
        Sample weights.
    n_samples : int
        Samples behind the rows; fewer than rows where samples have positions.
    outputs : Tensor of shape (n, ..., k), or None
        What the layer predicted; a classifier's probabilities are made from it.
    """

    scores: Tensor
    weights: Tensor
    n_samples: int
    outputs: Tensor | None = None


class Refit(NamedTuple):
    """What the final solve found.

    Attributes
    ----------
    ridge : float
    noise_variance : Tensor of shape (k,)
        Mean squared residual per target: of the held-out rows under the fit to the others,
        of the training rows where none were held out.
    exact : bool
        The last layer is the ridge fit to all rows, and not what training left.
    path_errors : Tensor of shape (len(RIDGES), k) or None
        Mean squared residual of the held-out rows for each of ``RIDGES``.
    noise : NoiseModel or None
        Noise of single rows, its level and shape judged on the held-out rows.
    calibration : Calibration or None
        Of the held-out rows.
    """

    ridge: float
    noise_variance: Tensor
    exact: bool = False
    path_errors: Tensor | None = None
    noise: NoiseModel | None = None
    calibration: Calibration | None = None


def refit_last_layer(net: Any, train: Any, valid: Any, default_ridge: float) -> Refit:
    """Solve exactly for the last layer on evaluation-mode features of all rows.

    Parameters
    ----------
    net : CFLLNet
        Trained; its last layer is changed.
    train, valid : RowsDataset
        ``valid`` may be None.
    default_ridge : float
        Taken where there are no held-out rows: judged on its own training rows any fit
        looks best with too small a ridge, since the features were shaped by their targets.
    """
    layer = net.module_.last_layer
    layer.refit(net.labelled_features(train), ridge=default_ridge)
    if valid is None:
        return Refit(default_ridge, mean_squared_residuals(net, train), exact=True)
    path = linalg.ridge_path(layer.moments, torch.tensor(RIDGES))
    errors = _path_errors(net, valid, path)
    best = int(errors.mean(1).argmin())
    layer.solve(RIDGES[best])
    noise = fit_noise(net, train, valid, RIDGES[best], errors[best])
    calibration = _calibrate(net, valid, errors[best], noise)
    for batch in net.labelled_features(valid):
        layer.accumulate(*batch)
    layer.solve(RIDGES[best])
    return Refit(RIDGES[best], errors[best], True, errors, noise, calibration)


def mean_squared_residuals(net: Any, data: Any) -> Tensor:
    """Weighted mean squared residual of each target; shape (k,)."""
    layer = net.module_.last_layer
    return _path_errors(net, data, (layer.weight[None], _bias(layer)[None]))[0]


def predictive_variance(
    layer: Any, features: Tensor, noise_variance: Tensor, noise: NoiseModel | None
) -> Tensor:
    """``σ²(x) + σ² · leverage``: the row's own noise, and what the weights are unsure of."""
    variance = layer.variance(features, noise_variance)
    if noise is None:
        return variance
    weights_only = variance - noise_variance.to(variance)
    return weights_only.clamp_min(0.0) + noise(noise_inputs(layer, features)).to(variance)


def _calibrate(net: Any, valid: Any, noise_variance: Tensor, noise: NoiseModel) -> Calibration:
    """How the layer as it is, fitted to the training rows, does on the held-out ones."""
    layer = net.module_.last_layer
    floor = torch.finfo(noise_variance.dtype).tiny
    scores, weights, outputs, n_samples = [], [], [], 0
    for features, targets, sample_weight in net.labelled_features(valid):
        variance = predictive_variance(layer, features, noise_variance, noise)
        predicted = layer(features)
        score = (targets - predicted).abs() / variance.clamp_min(floor).sqrt()
        rows, row_weight = as_rows(score, sample_weight)
        scores.append(rows)
        outputs.append(predicted)
        weights.append(rows.new_ones(len(rows)) if row_weight is None else row_weight)
        n_samples += len(score)
    return Calibration(torch.cat(scores), torch.cat(weights), n_samples, torch.cat(outputs))


def _path_errors(net: Any, data: Any, path: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted mean squared error of each target for r last layers; shape (r, k)."""
    weights, biases = path
    total: Tensor | float = 0.0
    errors = torch.zeros_like(biases)
    for features, targets, sample_weight in net.labelled_features(data):
        rows, row_weight = as_rows(features, sample_weight)
        wanted = targets.reshape(-1, targets.shape[-1]).to(weights)
        predictions = rows.to(weights) @ weights.mT + biases[:, None]
        squares = (predictions - wanted).square()
        if row_weight is None:
            errors, total = errors + squares.sum(1), total + len(rows)
        else:
            errors = errors + row_weight.to(weights) @ squares
            total = total + row_weight.sum()
    return errors / total


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
