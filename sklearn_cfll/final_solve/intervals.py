"""Split-conformal intervals from quantiles of the standardised held-out residuals."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .calibration import Calibration

__all__ = ["Scores", "check_coverage"]

# Fields have many similar points, whose scores this number of order statistics describes.
KEPT = 10_000


def check_coverage(coverage: Any) -> None:
    """Raise if ``coverage`` is not a probability."""
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
        Kish's effective sample size: the equivalent number of samples of equal weight.
    inflation : ndarray of shape (k,)
        Factor from the layer's predictive deviations to ``std``.
    """

    values: np.ndarray
    shares: np.ndarray
    n_samples: float
    inflation: np.ndarray

    @classmethod
    def of(cls, calibration: Calibration) -> Scores:
        """Sort the calibration of the final solve."""
        scores = calibration.scores.double().cpu().numpy()
        weights = calibration.weights.double().cpu().numpy()
        n_samples = calibration.n_samples * weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        inflation = np.sqrt(calibration.inflation_square.double().cpu().numpy())
        scores = scores / inflation
        order = scores.argsort(axis=0)
        values = np.take_along_axis(scores, order, axis=0)
        shares = weights[order].cumsum(axis=0) / weights.sum()
        if len(values) > KEPT:
            chosen = np.linspace(0, len(values) - 1, KEPT).round().astype(int)
            values, shares = values[chosen], shares[chosen]
        return cls(values, shares, n_samples, inflation)

    def mixed(self, share: float) -> Scores:
        """After rows with this share of the weight, whose deviations are taken as they are.

        The noise is then that of rows outside the training set, which needs no factor.
        """
        return self._replace(inflation=(1 - share) * self.inflation + share)

    def quantile(self, coverage: float) -> np.ndarray:
        """Factor on the standard deviation for intervals with this coverage; shape (k,).

        This is the ``(1 + 1/n) · coverage`` quantile. If the rows are exchangeable and were not
        used for model selection, the interval has at least this coverage, whatever the distribution
        [1]_.

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
                f"weight, got {self.n_samples:.3g}. Increase `validation_fraction`, pass `X_val` "
                "and `y_val` to `fit`, or decrease `coverage`."
            )
        first = (self.shares < level * (1 - 1e-12)).sum(axis=0)
        chosen = first.clip(max=len(self.values) - 1)[None]
        return np.asarray(np.take_along_axis(self.values, chosen, 0)[0])
