"""The linear fit below the nets: a k-class estimate net of a flexible function of the controls."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch

from ..regressor import CFLLRegressor
from .data import InstrumentData
from .diagnostics import linear_controls
from .networks import ROLES, NetworkPlan
from .stages import Offset

__all__ = ["Residuals", "control_residuals", "fit_offsets", "fuller", "has_offset"]

# With fewer rows the controls are partialled out linearly: a network learns little from so few.
FLEXIBLE_ROWS = 200


class Residuals(NamedTuple):
    """Outcome (n,), treatments (n, p) and instruments (n, q), less their expectation given C."""

    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray


def control_residuals(data: InstrumentData, seed: int, n_threads: int | None = None) -> Residuals:
    """Residuals of y, X and Z on the controls: cross-fitted, by networks.

    Each row is predicted by networks that were not fitted to it. With few rows, and with constant
    columns only, it is least squares.
    """
    assert data.Z is not None
    columns = np.column_stack([data.y, data.X, data.Z]).astype(float)
    weight = data.sample_weight
    if data.C is None or len(columns) < FLEXIBLE_ROWS:
        design = [np.ones((len(columns), 1))]
        controls = linear_controls(data.C, len(columns))
        design += [] if controls is None else [controls]
        fitted = _least_squares(np.hstack(design), columns, weight)
    else:
        net = CFLLRegressor(random_state=seed, n_threads=n_threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on data of the caller, who is told of them by fit
            fitted = net.fit(data.C, columns, sample_weight=weight).oof_prediction_
    rest = columns - fitted
    n_treatments = data.X.shape[1]
    return Residuals(rest[:, 0], rest[:, 1 : 1 + n_treatments], rest[:, 1 + n_treatments :])


def fuller(residuals: Residuals, sample_weight: np.ndarray | None = None) -> np.ndarray:
    """Fuller's estimate of the effects (p,), a k-class estimator.

    ``(X'(I - κM)X)⁻¹ X'(I - κM)y``, where M removes the instruments and κ is that of limited
    information maximum likelihood less ``1 / (n - q)``. With strong instruments it is two-stage
    least squares up to terms of order 1 / n; with weak ones it has moments, and lies nearer to
    least squares instead of anywhere [1]_.

    References
    ----------
    .. [1] W. Fuller, "Some properties of a modification of the limited information estimator",
       Econometrica 45 (1977).
    """
    root = np.ones(len(residuals.y)) if sample_weight is None else np.sqrt(sample_weight)
    y, X, Z = (part.reshape(len(root), -1) * root[:, None] for part in residuals)
    basis = scipy.linalg.orth(Z / np.maximum(np.linalg.norm(Z, axis=0), 1e-300), rcond=1e-10)
    both = np.hstack([y, X])
    both = both / np.maximum(np.linalg.norm(both, axis=0), 1e-300)
    left = both - basis @ (basis.T @ both)
    # κ is the smallest root of |W'W - κ W'MW| = 0; its inverse is the largest of the reverse.
    shares = scipy.linalg.eigvals(left.T @ left, both.T @ both + 1e-12 * np.eye(both.shape[1]))
    kappa = 1.0 / max(float(np.max(shares.real)), 1e-12)
    kappa -= 1.0 / max(1, len(root) - basis.shape[1])
    outside = X - basis @ (basis.T @ X)
    moved = X - kappa * outside
    effect: np.ndarray = np.linalg.lstsq(moved.T @ X, moved.T @ y, rcond=1e-10)[0][:, 0]
    return effect


def has_offset(estimator: Any, data: InstrumentData) -> bool:
    """Whether a linear fit in these columns exists, and is what the nets are fitted above."""
    if data.Z is None or not estimator.linear_part or estimator.treatment_backbone is not None:
        return False
    columns = [part for part in (data.X, data.Z, data.C) if part is not None]
    if any(part.ndim != 2 for part in columns):
        return False
    return linear_controls(np.hstack([data.X, data.Z]), len(data.X)) is not None


def fit_offsets(
    plan: NetworkPlan,
    data: InstrumentData,
    outcome: np.ndarray,
    unit: float,
    residuals: Residuals,
    labels: np.ndarray,
) -> list[Offset]:
    """The linear fit to the training rows of each fold, in the units of the nets.

    The slopes of the treatments come from the residuals, those of the controls from least squares
    on what the treatments leave of the outcome.

    Parameters
    ----------
    plan : NetworkPlan
    data : InstrumentData
    outcome : ndarray of shape (n, 1)
        Scaled.
    unit : float
        The scale of the outcome.
    residuals : Residuals
    labels : ndarray of int, shape (repeats, n)
        Fold of each row.
    """
    given = dict(zip(ROLES, (data.X, data.Z, data.C), strict=True))
    scaled: dict[str, Any] = {}
    for role, scale in plan.scales.items():
        rows = given[role]
        scaled[role] = None if rows is None or scale is None else scale.transform(rows)
    X, controls = scaled[ROLES[0]], linear_controls(scaled[ROLES[2]], len(data.X))
    scale = plan.scales[ROLES[0]]
    assert scale is not None
    residuals = Residuals(residuals.y / unit, residuals.X / scale.scale, residuals.Z)
    return [
        _offset(X, controls, outcome, residuals, data.sample_weight, label != k)
        for label in labels
        for k in range(int(labels.max()) + 1)
    ]


def _offset(
    X: np.ndarray,
    controls: np.ndarray | None,
    outcome: np.ndarray,
    residuals: Residuals,
    sample_weight: np.ndarray | None,
    chosen: np.ndarray,
) -> Offset:
    weight = None if sample_weight is None else sample_weight[chosen]
    effect = fuller(Residuals(*(part[chosen] for part in residuals)), weight)
    rest = outcome[chosen] - X[chosen] @ effect[:, None]
    design = [np.ones((len(rest), 1)), *([] if controls is None else [controls[chosen]])]
    root = np.ones((len(rest), 1)) if weight is None else np.sqrt(weight)[:, None]
    slopes = np.linalg.lstsq(np.hstack(design) * root, rest * root, rcond=1e-10)[0][:, 0]
    tensors = [torch.as_tensor(part[None]) for part in (effect, slopes[1:])]
    confounder = None if controls is None else tensors[1]
    return Offset(tensors[0], confounder, torch.as_tensor(slopes[:1]))


def _least_squares(
    design: np.ndarray, targets: np.ndarray, weight: np.ndarray | None
) -> np.ndarray:
    root = np.ones((len(design), 1)) if weight is None else np.sqrt(weight)[:, None]
    fitted: np.ndarray = design @ np.linalg.lstsq(design * root, targets * root, rcond=1e-10)[0]
    return fitted
