"""The linear fit below the nets: a k-class estimate net of a flexible function of the controls."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch

from ..estimator.targets import TargetScale
from .data import InstrumentData
from .diagnostics import linear_controls, orthonormal
from .networks import ROLES, NetworkPlan
from .partially_linear import Residuals
from .stages import Offset

__all__ = ["fit_offsets", "fuller", "has_offset"]

ROWS_PER_COLUMN = 20  # of the linear fit


def fuller(rows: Residuals) -> np.ndarray:
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
    assert rows.Z is not None
    root = np.sqrt(rows.counts)[:, None]
    y, X, Z = rows.y[:, None] * root, rows.X * root, rows.Z * root
    basis = orthonormal(Z)
    both = np.hstack([y, X])
    both = both / np.maximum(np.linalg.norm(both, axis=0), 1e-300)
    left = both - basis @ (basis.T @ both)
    # κ is the smallest root of |W'W - κ W'MW| = 0; its inverse is the largest of the reverse.
    shares = scipy.linalg.eigvals(left.T @ left, both.T @ both + 1e-12 * np.eye(both.shape[1]))
    kappa = 1.0 / max(float(np.max(shares.real)), 1e-12)
    kappa -= 1.0 / max(1.0, rows.counts.sum() - basis.shape[1])
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
    return linear_controls(np.hstack([data.X, data.Z]), data.total, ROWS_PER_COLUMN) is not None


def fit_offsets(
    plan: NetworkPlan,
    data: InstrumentData,
    outcome: np.ndarray,
    rows: Residuals,
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
    rows : Residuals
        Of outcome, treatments and instruments, in the user's units.
    labels : ndarray of int, shape (repeats, n)
        Fold of each row.
    """
    treatment, _, confounder = (plan.scales[role] for role in ROLES)
    assert treatment is not None
    X, controls = treatment.transform(data.X), None
    if data.C is not None and confounder is not None:
        controls = linear_controls(confounder.transform(data.C), data.total, ROWS_PER_COLUMN)
    # Both outcomes differ by their unit and a function of the controls.
    unit = TargetScale.fit(data.y[:, None], data.sample_weight).scale[0]
    rows = rows._replace(y=rows.y / unit, X=rows.X / treatment.scale)
    folds = [label != k for label in labels for k in range(int(labels.max()) + 1)]
    return [_offset(X, controls, outcome, rows, chosen) for chosen in folds]


def _offset(
    X: np.ndarray,
    controls: np.ndarray | None,
    outcome: np.ndarray,
    rows: Residuals,
    chosen: np.ndarray,
) -> Offset:
    """The linear fit to the chosen rows."""
    assert rows.Z is not None
    taken = rows.y[chosen], rows.X[chosen], rows.Z[chosen], rows.counts[chosen], None
    effect = fuller(Residuals(*taken))
    rest = outcome[chosen] - X[chosen] @ effect[:, None]
    design = [np.ones((len(rest), 1)), *([] if controls is None else [controls[chosen]])]
    root = np.sqrt(rows.counts[chosen])[:, None]
    slopes = np.linalg.lstsq(np.hstack(design) * root, rest * root, rcond=1e-10)[0][:, 0]
    confounder = None if controls is None else torch.as_tensor(slopes[None, 1:])
    return Offset(torch.as_tensor(effect[None]), confounder, torch.as_tensor(slopes[:1]))
