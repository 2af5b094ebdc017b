"""The final exact solve of the last layer, and what held-out rows say of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg

__all__ = ["RIDGES", "Calibration", "Refit", "leave_one_out", "mean_squared_residuals"]
__all__ += ["refit_last_layer"]

# Half a decade apart: wide enough for clean and for noisy targets alike, and the path costs one
# eigendecomposition whatever its length.
RIDGES = tuple(float(r) for r in torch.logspace(-6, 3, 19, dtype=torch.float64))


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
    """

    scores: Tensor
    weights: Tensor
    n_samples: int


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
    calibration : Calibration or None
        Of the held-out rows.
    """

    ridge: float
    noise_variance: Tensor
    exact: bool = False
    path_errors: Tensor | None = None
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
    calibration = _calibrate(net, valid, errors[best])
    for batch in net.labelled_features(valid):
        layer.accumulate(*batch)
    layer.solve(RIDGES[best])
    return Refit(RIDGES[best], errors[best], True, errors, calibration)


def leave_one_out(net: Any, data: Any, ridge: float) -> Tensor:
    """Residual of each row under the last layer fitted to all others; shape (n, k).

    The backbone has seen the row all the same. See
    :func:`~sklearn_cfll.linalg.leave_one_out_residuals`; here from the layer's moments, batch
    by batch.
    """
    layer, parts = net.module_.last_layer, []
    for features, targets, sample_weight in net.labelled_features(data):
        rows = features.to(layer.moments.gram)
        hat = linalg.leverage(rows, layer.moments, ridge, fit_intercept=layer.fit_intercept)
        if sample_weight is not None:
            hat = hat * sample_weight
        share = (1.0 - hat).clamp_min(torch.finfo(hat.dtype).eps)  # of a row that fixes a weight
        parts.append((targets - layer(features)) / share.unsqueeze(1))
    return torch.cat(parts)


def mean_squared_residuals(net: Any, data: Any) -> Tensor:
    """Weighted mean squared residual of each target; shape (k,)."""
    layer = net.module_.last_layer
    return _path_errors(net, data, (layer.weight[None], _bias(layer)[None]))[0]


def _calibrate(net: Any, valid: Any, noise_variance: Tensor) -> Calibration:
    """How the layer as it is, fitted to the training rows, does on the held-out ones."""
    layer = net.module_.last_layer
    floor = torch.finfo(noise_variance.dtype).tiny
    scores, weights, n_samples = [], [], 0
    for features, targets, sample_weight in net.labelled_features(valid):
        std = layer.variance(features, noise_variance).clamp_min(floor).sqrt()
        score = (targets - layer(features)).abs() / std
        scores.append(score.reshape(-1, score.shape[-1]))
        if sample_weight is None:
            sample_weight = score.new_ones(len(score))
        weights.append(sample_weight.repeat_interleave(len(scores[-1]) // len(score)))
        n_samples += len(score)
    return Calibration(torch.cat(scores), torch.cat(weights), n_samples)


def _path_errors(net: Any, data: Any, path: tuple[Tensor, Tensor]) -> Tensor:
    """Weighted mean squared error of each target for r last layers; shape (r, k)."""
    weights, biases = path
    total: Tensor | float = 0.0
    errors = torch.zeros_like(biases)
    for features, targets, sample_weight in net.labelled_features(data):
        rows = features.reshape(-1, features.shape[-1]).to(weights)
        wanted = targets.reshape(-1, targets.shape[-1]).to(weights)
        predictions = rows @ weights.mT + biases[:, None]
        squares = (predictions - wanted).square()
        if sample_weight is None:
            errors, total = errors + squares.sum(1), total + len(rows)
        else:
            repeats = len(rows) // len(sample_weight)
            row_weight = sample_weight.repeat_interleave(repeats).to(weights)
            errors = errors + row_weight @ squares
            total = total + row_weight.sum()
    return errors / total


def _bias(layer: Any) -> Tensor:
    return layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
