"""Class probabilities from the scores of a squared-loss fit, calibrated on held-out rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import expit, log_expit, log_softmax, softmax

__all__ = ["Probabilities"]

# Values without held-out rows. With held-out rows, a prior that keeps each value within a factor of
# e is centred at this floor and a power of 2, the middle of the development sets.
POWER, FLOOR = 1.0, 0.01
CENTER = np.log([2.0, FLOOR])
# Sharpness of the softplus that keeps scores positive. It bends within a few hundredths of zero.
SHARPNESS = 32.0
# Largest ratio of the powers for a mean of members and for one.
SHARPEST = 2.5
# Rows by which the variance between members is pulled to zero.
PRIOR = 10
# A power moves the mean probabilities of unequal classes; that of no class may move by more.
MOST_MOVED = 0.003


class Probabilities(NamedTuple):
    """Scores, kept positive by a softplus and a floor, raised to a power and normalised.

    Under squared loss on indicators a score estimates the probability itself.
    ``benchmarks/classification.py --calibration`` compares this map with a temperature, vector
    and matrix scaling, projection on the simplex and Gaussian posteriors.

    Attributes
    ----------
    power, floor : float
    """

    power: float = POWER
    floor: float = FLOOR

    @classmethod
    def fit(
        cls,
        scores: np.ndarray,
        targets: np.ndarray,
        sample_weight: np.ndarray | None,
        *,
        exclusive: bool,
    ) -> Probabilities:
        """Fit power and floor by minimising the log loss.

        Parameters
        ----------
        scores : ndarray of shape (n, k)
            Scores of rows that the last layer was not fitted to.
        targets : ndarray of shape (n, k)
            Indicators of the classes.
        sample_weight : ndarray of shape (n,) or None
        exclusive : bool
            Whether each row belongs to one of k classes. Otherwise each column is binary: a label,
            or the second of two classes.
        """

        weights = np.ones(len(scores)) if sample_weight is None else sample_weight
        share = (weights / weights.sum())[:, None]

        def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
            """Log loss and its derivatives by the logarithms of power and floor."""
            power, floor = np.exp(logs)
            logits = cls(power, floor).logits(scores, exclusive=exclusive)
            by_floor = power * floor / (_positive(scores) + floor)
            if exclusive:
                losses, error = -targets * log_softmax(logits, axis=1), softmax(logits, axis=1)
            else:
                losses = -(targets * log_expit(logits) + (1 - targets) * log_expit(-logits))
                error = expit(logits)
                by_floor -= power * floor / (_positive(1.0 - scores) + floor)
            error = share * (error - targets)
            # A normal prior. Without it, or with one three times as wide, a few rows that are all
            # classified correctly lead to certainty (benchmarks/classification.py).
            prior = (logs - CENTER) / len(targets)
            slopes = np.array([(error * logits).sum(), (error * by_floor).sum()])
            return float((share * losses).sum() + prior @ (logs - CENTER) / 2), slopes + prior

        bounds = [(middle - 5, middle + 5) for middle in CENTER]
        # To the last digits, so that weights equal repetitions.
        precise = {"ftol": 0.0, "gtol": 1e-10}
        found = minimize(loss, CENTER, jac=True, method="L-BFGS-B", bounds=bounds, options=precise)
        return cls(*(float(value) for value in np.exp(found.x)))

    def sharpened(
        self,
        pairs: np.ndarray,
        sample_weight: np.ndarray | None,
        n_folds: int,
        *,
        exclusive: bool,
    ) -> Probabilities:
        """The map for the mean of all members, if this one is for the scores of a single one.

        The mean varies less from row to row than a single member's score and tells more of the
        classes, so a larger power suits it. Let V be the variance over rows of a single member's
        probabilities, and S the variance between members on one row. If the probabilities of
        single members are calibrated, V is also their covariance with the indicators of the
        classes, and that of the mean of two members. The mean has the variance ``V - S / 2``, so
        that the best linear function of it multiplies it by ``V / (V - S / 2)``, which makes its
        variance ``V² / (V - S / 2)``. The power for two members is that of this variance: times r,
        say, or less where the mean probability of a class would move. If no power has this
        variance, as for rare classes that hardly differ, r is one. That of n members is
        ``1 / (1 - 2 (1 - 1/n) (1 - 1/r))`` times that of one, as it is where probabilities are
        linear in scores: the mean of n loses ``(1 - 1/n) S``.

        Parameters
        ----------
        pairs : ndarray of shape (2, m, k)
            Scores of rows that two members hold out.
        sample_weight : ndarray of shape (m,) or None
        n_folds : int
            Number of members that hold out different rows.
        exclusive : bool
            As in :meth:`fit`.
        """
        if not pairs.shape[1]:
            return self
        one, other = (self(scores, exclusive=exclusive) for scores in pairs)
        weight = np.ones(len(one)) if sample_weight is None else sample_weight
        total = weight.sum()

        def moments(rows: np.ndarray) -> tuple[np.ndarray, float]:
            mean = weight @ rows / total
            return mean, float((weight @ (rows - mean) ** 2).sum() / total)

        own = (moments(one)[1] + moments(other)[1]) / 2
        between = float((weight @ (one - other) ** 2).sum() / 2 / (total + PRIOR))
        if between <= 0 or own <= between:
            return self
        wanted, shares = own**2 / (own - between / 2), moments((one + other) / 2)[0]

        def beyond(log_ratio: float) -> tuple[float, float]:
            """Excess of the variance, and of the distance that a mean probability moves."""
            raised = self._replace(power=self.power * np.exp(log_ratio))
            mean, variance = moments(raised(pairs.mean(0), exclusive=exclusive))
            return variance - wanted, float(np.abs(mean - shares).max()) - MOST_MOVED

        most = float(np.log(SHARPEST))
        if max(beyond(0.0)) >= 0 or beyond(most)[0] <= 0:
            return self
        of_two = brentq(lambda log_ratio: max(beyond(log_ratio)), 0.0, most)
        lost = 2 * (1 - 1 / n_folds) * (1 - np.exp(-of_two))
        ratio = 1 / max(1 - lost, 1 / SHARPEST)
        return self._replace(power=self.power * float(ratio))

    def logits(self, scores: np.ndarray, *, exclusive: bool) -> np.ndarray:
        """Logits of each class; binary logits of each column if classes are not exclusive."""
        logits = self.power * _log_positive(scores, self.floor)
        if not exclusive:
            logits -= self.power * _log_positive(1.0 - scores, self.floor)
        return logits

    def __call__(self, scores: np.ndarray, *, exclusive: bool) -> np.ndarray:
        """Probabilities of the shape of ``scores``."""
        logits = self.logits(scores, exclusive=exclusive)
        if exclusive:
            return np.asarray(softmax(logits, axis=1))
        found = np.asarray(expit(logits))
        # Stay strictly between 0 and 1 if a value rounds to one of them.
        eps = np.finfo(found.dtype).eps
        inside: np.ndarray = np.clip(found, eps, 1.0 - eps)
        return inside


def _log_positive(scores: np.ndarray, floor: float) -> np.ndarray:
    """Logarithm of scores, whose argument a softplus and a floor keep positive."""
    return np.log(_positive(scores) + floor)


def _positive(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.logaddexp(0.0, SHARPNESS * scores) / SHARPNESS
    return found
