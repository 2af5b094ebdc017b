"""Targets orders of magnitude beyond all others: a warning, and a value that training survives."""

from __future__ import annotations

import warnings

import numpy as np

from ._data import Checked

__all__ = ["tame_targets", "wild_bounds"]

# Squared error of one target of 1e6 among tens is all that a fit sees. Times as far from the
# median as the next value: of a Cauchy distribution one sample in a hundred has such a gap, of a
# lognormal one of deviation 2.3 one in a thousand (benchmarks/wild_targets.py).
GAP = 100.0
# Of the weight of all rows. More are no accident, and are left to say what they say.
SHARE, AT_MOST = 0.02, 0.1
NAMED = 3  # rows that the warning lists


def wild_bounds(y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Smallest and largest target once the wild ones are left out.

    Targets are wild where a few of them, at most 2% of the rows (or one of up to 50), are 100
    times as far from the median as all others.

    Parameters
    ----------
    y : ndarray of shape (n,)
    weights : ndarray of shape (n,)
        Numbers of repetitions.
    """
    everything = float(y.min()), float(y.max())
    by_value = y.argsort(kind="stable")
    low, middle, high = y[by_value][
        np.searchsorted(
            weights[by_value].cumsum(), weights.sum() * np.array([0.05, 0.5, 0.95]) * (1 - 1e-9)
        )
    ]
    if not low < high:
        return everything  # mostly one value: whatever differs from it is far from it
    distance = np.abs(y - middle)
    order = distance.argsort(kind="stable")
    ranked, total = distance[order], weights.sum()
    above = weights[order][::-1].cumsum()[::-1]  # weight of a row and of all farther ones
    few = above <= min(max(1.0, SHARE * total), AT_MOST * total) * (1 + 1e-9)
    few[0] = False
    gaps = few[1:] & (ranked[1:] > GAP * ranked[:-1])
    if not gaps.any():
        return everything
    kept = y[order[: gaps.argmax() + 1]]
    return float(kept.min()), float(kept.max())


def tame_targets(checked: Checked, name: str) -> Checked:
    """Wild targets drawn in to the nearest other one, with a warning that names their rows."""
    if checked.y.ndim > 2:
        return checked  # fields: their points are not rows
    columns = checked.y.reshape(len(checked.y), -1)
    weights = checked.sample_weight
    repetitions = checked.mean_weight * (np.ones(len(columns)) if weights is None else weights)
    bounds = np.array([wild_bounds(column, repetitions) for column in columns.T]).T
    tamed = columns.clip(*bounds)
    rows, targets = np.nonzero(tamed != columns)
    if len(rows) == 0:
        return checked
    positions = rows if checked.rows is None else checked.rows[rows]
    listed = [
        f"{name}[{position}{'' if checked.y.ndim == 1 else f', {target}'}] = "
        f"{columns[row, target]:.6g}"
        for row, position, target in zip(rows, positions, targets, strict=True)
    ]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    low, high = bounds[:, targets[0]]
    warnings.warn(
        f"{', '.join(listed[:NAMED])}{more}: at least {GAP:g} times as far from the median as all "
        f"other values, which lie between {low:.6g} and {high:.6g}. Training draws them in to that "
        "range, for squared error would see little else. Check them; drop these rows if they are "
        "wrong, or transform y by sklearn.compose.TransformedTargetRegressor if they are right.",
        UserWarning,
        stacklevel=5,
    )
    return checked._replace(y=tamed.reshape(checked.y.shape))
