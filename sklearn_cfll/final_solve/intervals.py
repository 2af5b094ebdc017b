"""Conformal quantiles of the standardised residuals of held-out rows."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .calibration import Calibration

__all__ = ["Ranked", "Scores", "check_coverage", "unpack_scores"]

# Fields have many similar points, whose scores this number of order statistics describes.
KEPT = 10_000


def check_coverage(coverage: Any, name: str = "coverage") -> None:
    """Raise if ``coverage`` is not a probability."""
    if not isinstance(coverage, Real) or not 0 < float(coverage) < 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {coverage!r}.")


class Ranked(NamedTuple):
    """Scores in ascending order.

    Attributes
    ----------
    values : ndarray of shape (rows, k)
    shares : ndarray of shape (rows, k)
        Share of the total weight up to and with that row.
    """

    values: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, weights: np.ndarray) -> Ranked:
        """Sort scores (rows, k) with these weights (rows,), and keep some of very many."""
        order = scores.argsort(axis=0)
        values = np.take_along_axis(scores, order, axis=0)
        shares = weights[order].cumsum(axis=0) / weights.sum()
        if len(values) > KEPT:
            chosen = np.linspace(0, len(values) - 1, KEPT).round().astype(int)
            values, shares = values[chosen], shares[chosen]
        return cls(values, shares)

    def quantile(self, level: float) -> np.ndarray:
        """The first values whose share is at least ``level``; shape (k,)."""
        first = (self.shares < level * (1 - 1e-12)).sum(axis=0)
        chosen = first.clip(max=len(self.values) - 1)[None]
        return np.asarray(np.take_along_axis(self.values, chosen, 0)[0])


class Scores(NamedTuple):
    """Calibration scores of each target, as arrays that a pickle may hold.

    A score is ``(y - prediction) / std`` of a row that the last layer was not fitted to.

    Attributes
    ----------
    sizes : Ranked
        Absolute scores.
    signed : Ranked
        Scores with their signs.
    n_samples : float
        Kish's effective sample size: the equivalent number of samples of equal weight.
    inflation : ndarray of shape (k,)
        Factor from the layer's predictive deviations to ``std``.
    """

    sizes: Ranked
    signed: Ranked
    n_samples: float
    inflation: np.ndarray

    @classmethod
    def of(cls, calibration: Calibration) -> Scores:
        """Sort the calibration of the final solve."""
        weights = calibration.weights.double().cpu().numpy()
        inflation = np.sqrt(calibration.inflation_square.double().cpu().numpy())
        scores = calibration.scores.double().cpu().numpy() / inflation
        n_samples = calibration.n_samples * weights.sum() ** 2 / (len(weights) * (weights**2).sum())
        sizes, signed = (Ranked.of(each, weights) for each in (np.abs(scores), scores))
        return cls(sizes, signed, n_samples, inflation)

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
        return self.sizes.quantile(self._level(coverage, "coverage", coverage))

    def signed_quantile(self, level: float) -> np.ndarray:
        """Multiple of the standard deviation below which a share ``level`` of rows lies; (k,).

        Like :meth:`quantile`, it is on the safe side: further out than that of the rows. The median
        is the middle of both sides.
        """
        if level > 0.5:
            return self._upper(level, level)
        lower: np.ndarray = -self._mirrored()._upper(1 - level, level)
        return lower if level < 0.5 else np.mean([lower, self._upper(0.5, level)], axis=0)

    def _upper(self, share: float, level: float) -> np.ndarray:
        """The value below which at least this share of the signed scores lies."""
        return self.signed.quantile(self._level(share, "quantiles", level))

    def _mirrored(self) -> Scores:
        """The scores with the other sign."""
        values, shares = self.signed.values[::-1], self.signed.shares[::-1]
        above = np.vstack([1 - shares[1:], np.ones_like(shares[:1])])
        return self._replace(signed=Ranked(-values, above))

    def _level(self, coverage: float, name: str, given: float) -> float:
        """The finite-sample level; raise if there are too few rows for it."""
        level = coverage * (1 + 1 / self.n_samples)
        if level > 1 + 1e-12:
            needed = np.ceil(coverage / (1 - coverage) - 1e-9)
            raise ValueError(
                f"`{name}`={given:g} needs at least {needed:.0f} "
                f"held-out rows of equal weight, got {self.n_samples:.3g}. Fit on more rows, pass "
                "`X_val` and `y_val` to `fit`, or ask for one nearer to the middle."
            )
        return level


def unpack_scores(packed: Any) -> Scores:
    """Scores from the nested tuples as which they are stored."""
    sizes, signed, n_samples, inflation = packed
    return Scores(Ranked(*sizes), Ranked(*signed), n_samples, inflation)
