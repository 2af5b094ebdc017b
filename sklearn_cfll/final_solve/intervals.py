"""Split-conformal intervals: the quantile of held-out residuals over their predicted spread."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .refit import Calibration

__all__ = ["Scores", "check_coverage"]

# Points of fields are many and alike: so many order statistics describe their scores.
KEPT = 10_000
# What predicted variances are multiplied by is the held-out rows' mean squared score, with that
# of so many others: few rows say little of it, and they have chosen epoch, ridge and noise, so
# that it is too small (benchmarks/intervals.py).
OTHERS, THEIR_SQUARE = 20, 1.5


def check_coverage(coverage: Any) -> None:
    """Raise where it is no probability."""
    if not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
        raise ValueError(f"`coverage` must lie between 0 and 1, got {coverage!r}.")


class Scores(NamedTuple):
    """Calibration scores of each target, ascending, as arrays that a pickle may hold.

    Attributes
    ----------
    values : ndarray of shape (rows, k)
        ``|y - prediction| / std`` of rows that the last layer was not fitted to.
    shares : ndarray of shape (rows, k)
        Share of the total weight up to and with that row.
    n_samples : float
        As many of equal weight would say as much (Kish's effective sample size).
    inflation : ndarray of shape (k,)
        What the layer's predictive deviations were multiplied by, for ``std``.
    """

    values: np.ndarray
    shares: np.ndarray
    n_samples: float
    inflation: np.ndarray

    @classmethod
    def of(cls, calibration: Calibration) -> Scores:
        """Sort what the final solve handed over."""
        scores = calibration.scores.double().cpu().numpy()
        weights = calibration.weights.double().cpu().numpy()
        squares = np.average(scores**2, axis=0, weights=weights)
        n_samples = calibration.n_samples * weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        pulled = (n_samples * squares + OTHERS * THEIR_SQUARE) / (n_samples + OTHERS)
        # Residuals of training rows are too small: what exceeds the held-out rows' is a lower
        # bound of the noise (of targets that are nearly always zero the few others count).
        least = calibration.training_squares.double().cpu().numpy()
        inflation = np.sqrt(np.maximum(pulled, least))
        scores = scores / inflation
        order = scores.argsort(axis=0)
        values = np.take_along_axis(scores, order, axis=0)
        shares = weights[order].cumsum(axis=0) / weights.sum()
        if len(values) > KEPT:
            chosen = np.linspace(0, len(values) - 1, KEPT).round().astype(int)
            values, shares = values[chosen], shares[chosen]
        return cls(values, shares, n_samples, inflation)

    def quantile(self, coverage: float) -> np.ndarray:
        """Factor on the standard deviation that covers a new row so often; shape (k,).

        The ``(1 + 1/n) · coverage`` quantile: with rows that are exchangeable and chose nothing
        the interval then covers at least that often, whatever the distribution [1]_.

        References
        ----------
        .. [1] J. Lei et al., "Distribution-free predictive inference for regression", Journal
           of the American Statistical Association 113 (2018).
        """
        level = coverage * (1 + 1 / self.n_samples)
        if level > 1 + 1e-12:
            needed = np.ceil(coverage / (1 - coverage) - 1e-9)
            raise ValueError(
                f"`coverage`={coverage:g} needs at least {needed:.0f} held-out rows of equal "
                f"weight, there are {self.n_samples:.3g}: raise `validation_fraction`, give "
                "`X_val` and `y_val` at fit, or ask for less."
            )
        first = (self.shares < level * (1 - 1e-12)).sum(axis=0)
        chosen = first.clip(max=len(self.values) - 1)[None]
        return np.asarray(np.take_along_axis(self.values, chosen, 0)[0])
