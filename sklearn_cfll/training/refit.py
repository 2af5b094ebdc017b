"""The final exact solve of the last layer, its ridge chosen on held-out rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg

__all__ = ["RIDGES", "Refit", "refit_last_layer"]

# Half a decade apart: wide enough for clean and for noisy targets alike, and the path costs one
# eigendecomposition whatever its length.
RIDGES = tuple(float(r) for r in torch.logspace(-6, 3, 19, dtype=torch.float64))


class Refit(NamedTuple):
    """What the final solve found.

    Attributes
    ----------
    ridge : float
    noise_variance : Tensor of shape (k,)
        Mean squared residual per target: of the held-out rows under the fit to the others,
        of the training rows where none were held out.
    """

    ridge: float
    noise_variance: Tensor


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
    ridge = default_ridge
    layer.refit(net.labelled_features(train), ridge=ridge)
    if valid is not None:
        path = linalg.ridge_path(layer.moments, torch.tensor(RIDGES))
        errors = _path_errors(net, valid, path)
        best = int(errors.mean(1).argmin())
        ridge, noise_variance = RIDGES[best], errors[best]
        for batch in net.labelled_features(valid):
            layer.accumulate(*batch)
        layer.solve(ridge)
    else:
        noise_variance = mean_squared_residuals(net, train)
    return Refit(ridge, noise_variance)


def mean_squared_residuals(net: Any, data: Any) -> Tensor:
    """Weighted mean squared residual of each target; shape (k,)."""
    layer = net.module_.last_layer
    return _path_errors(net, data, (layer.weight[None], _bias(layer)[None]))[0]


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
