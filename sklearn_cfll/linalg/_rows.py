"""Raw rows: weighted means, centring, and the power that makes a ridge dimensionless."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CenteredRows",
    "center_rows",
    "constant_features",
    "feature_power",
    "is_constant",
    "near_rounding",
    "weighted_means",
]

# Deviations of fewer than this many units in the last place of the mean are rounding errors.
ROUNDING = 10.0

Columns = TypeVar("Columns", Tensor, np.ndarray[Any, Any])


class CenteredRows(NamedTuple):
    """Rows with their weighted means removed and scaled by the root of their weights."""

    features: Tensor
    targets: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    total: Tensor | float


def weighted_means(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Weighted means of features and targets (zeros unless ``center``), and ``Σ w``."""
    if not center:
        total = float(features.shape[-2]) if sample_weight is None else sample_weight.sum(-1)
        zeros = features.new_zeros(*features.shape[:-2], features.shape[-1])
        return zeros, targets.new_zeros(targets.shape[1]), total
    if sample_weight is None:
        return features.mean(-2), targets.mean(0), float(features.shape[-2])
    total = sample_weight.sum(-1)
    # A batch whose weights are all zero has no mean; zero keeps the update finite.
    share = sample_weight / total.clamp_min(torch.finfo(features.dtype).tiny).unsqueeze(-1)
    if sample_weight.ndim == 1:
        return share @ features, share @ targets, total
    return (share.unsqueeze(-2) @ features).squeeze(-2), share @ targets, total


def center_rows(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> CenteredRows:
    """Remove weighted means, so that an unpenalised intercept drops out of the solve.

    Parameters
    ----------
    features : Tensor of shape (n, d), or (m, n, d) for m networks
    targets : Tensor of shape (n, k)
    sample_weight : Tensor of shape (n,), or (m, n) for weights of each network, optional
    center : bool, default=True
        False for a fit without intercept; the means are then zero.

    Returns
    -------
    CenteredRows
        Rows ``√w (φ - φ̄)`` and ``√w (y - ȳ)``, the means, and ``Σ w``. Weights of each network give
        targets (m, n, k), means (m, ·) and totals (m,).
    """
    feature_mean, target_mean, total = weighted_means(
        features, targets, sample_weight, center=center
    )
    if center:
        # The blocks of several networks stand side by side; apart, products are faster.
        apart = features.ndim == 3 and not torch.is_grad_enabled()
        out = features.new_empty(features.shape) if apart else None
        features = torch.sub(features, feature_mean.unsqueeze(-2), out=out)
        targets = targets - target_mean.unsqueeze(-2)
    if sample_weight is not None:
        root = sample_weight.sqrt().unsqueeze(-1)
        # In place on the copies that centring has made: another one of a large batch costs more
        # than the products.
        features = features.mul_(root) if center else features * root
        targets = targets * root
    return CenteredRows(features, targets, feature_mean, target_mean, total)


def feature_power(
    square_sum: Tensor,
    n_features: int,
    total: Tensor | float,
    feature_mean: Tensor,
    mean_square: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Mean power ``tr(ΦᵀΦ) / (total · d)`` of centred features: the unit of ``ridge``.

    With ``penalty = ridge · power``, the effect of a ridge does not depend on the scale of the
    features: multiplying all of them by ``c`` leaves predictions unchanged.

    The power of constant features is only rounding noise, of the order of ``(eps · mean)²``. The
    lower bound of the result is a hundred times that, which keeps divisions finite. (The noise
    itself is to be removed with :func:`constant_features`.)

    Parameters
    ----------
    square_sum : Tensor of shape (...)
        Weighted sum of squares of all centred features.
    n_features : int
    total : Tensor or float
        Sum of the weights.
    feature_mean : Tensor of shape (..., d)
    mean_square : Tensor of shape (...), optional
        ``‖feature_mean‖²``, if it is known already.
    eps : float, optional
        Machine epsilon of the precision in which the features were computed; default that of
        the dtype.
    """
    info = torch.finfo(square_sum.dtype)
    if mean_square is None:
        mean_square = torch.linalg.vecdot(feature_mean, feature_mean)
    noise = (ROUNDING * (info.eps if eps is None else eps)) ** 2
    floor = torch.clamp_min(mean_square * (noise / n_features), info.tiny**0.5)
    if isinstance(total, Tensor):
        total = total.clamp_min(info.tiny)  # all weights of a batch may be zero
    return torch.maximum(square_sum / (total * n_features), floor)


def near_rounding(power: Tensor, feature_mean: Tensor, eps: float) -> Tensor:
    """Whether features vary so little, relative to their means, that it may be rounding; a bool.

    The condition is ``power < eps · mean(φ̄²)``. This is far above the noise, so that ordinary
    batches need no further check.
    """
    mean_square = torch.linalg.vecdot(feature_mean, feature_mean)
    near: Tensor = power < mean_square * (eps / feature_mean.shape[-1])
    return near


def constant_features(variance: Tensor, feature_mean: Tensor, eps: float) -> Tensor:
    """Features that are constant up to rounding; bool, shape (..., d).

    A fit would put large weights on their rounding noise. The rounding error of a feature near zero
    may come from larger terms that cancel, so the unit is its own mean or the root mean square of
    all means, whichever is larger.
    """
    squares = feature_mean.square()
    unit = torch.maximum(squares, squares.mean(-1, keepdim=True))
    return is_constant(variance.sqrt(), unit.sqrt(), eps)


def is_constant(deviation: Columns, mean: Columns, eps: float, least: float = 0.0) -> Columns:
    """Whether columns are constant up to rounding: ``deviation <= 10 eps |mean| + least``.

    Such columns are only centred. Division by their standard deviation, which is a rounding error,
    would turn a small change of a new value into 1e9.

    Parameters
    ----------
    deviation, mean : Tensor or array of shape (..., d)
        Standard deviation and mean of each column.
    eps : float
        Machine epsilon of the precision in which the columns are used.
    least : float, default=0.0
        Deviations up to this number count as zero, too: the smallest normal number of a precision
        that is lower than that of the deviations.

    Returns
    -------
    Tensor or array of bool of shape (..., d)
    """
    constant: Columns = deviation <= ROUNDING * eps * abs(mean) + least
    return constant
