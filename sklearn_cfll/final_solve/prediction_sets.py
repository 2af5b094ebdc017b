"""Adaptive prediction sets of a classifier, from probabilities of held-out rows."""

from __future__ import annotations

import numpy as np

from .calibration import Calibration
from .intervals import Ranked, Scores
from .probabilities import Probabilities

__all__ = ["in_set", "set_scores"]


def sums_above(probabilities: np.ndarray) -> np.ndarray:
    """Sum of the probabilities that are larger than each of a row; zero for the largest; (n, k)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1).astype(float)
    sums = ordered.cumsum(axis=1) - ordered
    sums[:, 0] = 0.0
    found: np.ndarray = np.empty_like(sums)
    np.put_along_axis(found, order, sums, axis=1)
    return found


def in_set(probabilities: np.ndarray, bound: float) -> np.ndarray:
    """Whether each class belongs to the set: classes that are likelier sum to at most the bound.

    Parameters
    ----------
    probabilities : ndarray of shape (n, k)
    bound : float
    """
    within: np.ndarray = sums_above(probabilities) <= bound
    return within


def set_scores(
    probabilities: Probabilities,
    targets: np.ndarray,
    calibration: Calibration,
    exclusive: bool,
    sample_weight: np.ndarray | None,
) -> Scores:
    """Sums of the probabilities of classes likelier than the true one, over held-out rows.

    Parameters
    ----------
    probabilities : Probabilities
        Map that suits the scores of these rows.
    targets : ndarray of shape (n, k)
        Indicators of the classes; of two classes that of the second.
    calibration : Calibration
    exclusive : bool
        See :meth:`Probabilities.fit`.
    sample_weight : ndarray of shape (n,), or None
        Without class weights: these would change the frequencies of classes, and the coverage.
    """
    scores = targets - calibration.residuals.double().cpu().numpy()
    found, right = probabilities(scores, exclusive=exclusive), targets
    if not exclusive:  # two classes in one column
        found, right = (np.hstack([1 - part, part]) for part in (found, right))
    sums = (sums_above(found) * right).sum(axis=1)[:, None]
    weights = np.ones(len(sums)) if sample_weight is None else sample_weight
    n_samples = weights.sum() ** 2 / (weights**2).sum()
    ranked = Ranked.of(sums, weights)
    return Scores(ranked, ranked, float(n_samples), np.ones(1))
