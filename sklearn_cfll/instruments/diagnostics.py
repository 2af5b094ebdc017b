"""Diagnostics of instruments: strength, over-identification, test and size of endogeneity.

Pure functions of arrays: treatments ``X`` (n, p), outcome ``y`` (n,), instruments ``Z``
(n, q), controls ``C`` (n, c) or None. The controls always include an intercept. Weights are
numbers of repetitions.

References
----------
.. [1] J. Montiel Olea and C. Pflueger, "A robust test for weak instruments", Journal of Business
   & Economic Statistics 31 (2013).
.. [2] J. Sargan, "The estimation of economic relationships using instrumental variables",
   Econometrica 26 (1958).
.. [3] J. Hausman, "Specification tests in econometrics", Econometrica 46 (1978).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = [
    "HypothesisTest",
    "Strength",
    "confounding_size",
    "effective_f",
    "first_stage_f",
    "jackknife_variance",
    "sargan",
    "wu_hausman",
]

WORST_BIAS = 0.1  # instruments are weak if the bias is a larger share of the worst case; tau in [1]


class HypothesisTest(NamedTuple):
    """A statistic, its degrees of freedom and its p-value."""

    statistic: float
    df: tuple[int, ...]
    p_value: float


class Strength(NamedTuple):
    """Effective F of one treatment and its critical value."""

    effective_f: float
    critical_value: float


def first_stage_f(
    X: np.ndarray, Z: np.ndarray, C: np.ndarray | None = None, sample_weight: Any = None
) -> list[HypothesisTest]:
    """Classical F of the excluded instruments in the first stage of each treatment."""
    rows = _Rows(X, None, Z, C, sample_weight)
    instruments, df = rows.basis, rows.n - rows.rank_controls - rows.rank
    explained = np.square(instruments.T @ rows.X).sum(0)
    residual = np.square(rows.X).sum(0) - explained
    values = _ratio(explained / max(rows.rank, 1), residual / max(df, 1))
    return [
        HypothesisTest(
            float(f), (rows.rank, df), float(stats.f.sf(f, max(rows.rank, 1), max(df, 1)))
        )
        for f in values
    ]


def effective_f(
    X: np.ndarray, Z: np.ndarray, C: np.ndarray | None = None, sample_weight: Any = None
) -> list[Strength]:
    """Effective F of Montiel Olea and Pflueger per treatment, robust to heteroskedasticity.

    ``F = x'P_Z x / tr(Σ)``, where Σ is the robust covariance of the first stage's coefficients on
    orthonormal instruments. It is compared with the 95% quantile of a noncentral χ² (their
    simplified, conservative critical value) at which the bias is at most a tenth of the worst
    case: 23.1 for one instrument.
    """
    rows = _Rows(X, None, Z, C, sample_weight)
    df = max(1, rows.n - rows.rank_controls - rows.rank)
    results = []
    for x in rows.X.T:
        coefficients = rows.basis.T @ x
        residual = x - rows.basis @ coefficients
        # Basis and residual are both scaled by the root of the weight; the scores need it once.
        scores = rows.basis * (residual / rows.root)[:, None]
        covariance = scores.T @ scores * (rows.n / df)
        trace = np.trace(covariance)
        value = float(_ratio(coefficients @ coefficients, trace))
        results.append(Strength(value, _critical_value(covariance)))
    return results


def _critical_value(covariance: np.ndarray) -> float:
    eigenvalues = np.linalg.eigvalsh(covariance) if covariance.size else np.zeros(1)
    trace, square, largest = eigenvalues.sum(), np.square(eigenvalues).sum(), eigenvalues.max()
    if not trace > 0:
        return float("nan")
    noncentrality = 1.0 / WORST_BIAS
    df = trace**2 * (1 + 2 * noncentrality) / (square + 2 * noncentrality * trace * largest)
    return float(stats.ncx2.ppf(0.95, df, noncentrality * df) / df)


def sargan(
    X: np.ndarray,
    y: np.ndarray,
    Z: np.ndarray,
    C: np.ndarray | None = None,
    sample_weight: Any = None,
) -> HypothesisTest:
    """Sargan's test of over-identifying restrictions: ``n R²`` of residuals on instruments.

    The degrees of freedom are the rank of the instruments minus that of the treatments. The
    result is NaN if the model is exactly identified, because nothing can then be tested.
    """
    rows = _Rows(X, y, Z, C, sample_weight)
    projected = rows.basis @ (rows.basis.T @ rows.X)
    effect, _, rank, _ = np.linalg.lstsq(projected, rows.y, rcond=1e-10)
    df = rows.rank - int(rank)
    if df < 1:
        return HypothesisTest(float("nan"), (0,), float("nan"))
    residual = rows.y - rows.X @ effect
    explained = np.square(rows.basis.T @ residual).sum()
    value = float(rows.n * _ratio(explained, np.square(residual).sum()))
    return HypothesisTest(value, (df,), float(stats.chi2.sf(value, df)))


def wu_hausman(
    X: np.ndarray,
    y: np.ndarray,
    Z: np.ndarray,
    C: np.ndarray | None = None,
    sample_weight: Any = None,
) -> HypothesisTest:
    """Wu-Hausman test of exogeneity: F of first-stage residuals added to the treatments.

    It tests whether there is confounding, not whether it matters: with enough rows it rejects
    even if direct regression is far better (see :func:`confounding_size`).
    """
    rows = _Rows(X, y, Z, C, sample_weight)
    first_residual = rows.X - rows.basis @ (rows.basis.T @ rows.X)
    without = rows.y - _project(rows.X, rows.y)
    both = np.column_stack([rows.X, first_residual])
    restricted = np.square(without).sum()
    full = np.square(rows.y - _project(both, rows.y)).sum()
    added = np.linalg.matrix_rank(both, tol=None) - np.linalg.matrix_rank(rows.X)
    df = rows.n - rows.rank_controls - np.linalg.matrix_rank(both)
    if added < 1 or df < 1:
        return HypothesisTest(float("nan"), (int(added), int(df)), float("nan"))
    value = float(_ratio((restricted - full) / added, full / df))
    return HypothesisTest(value, (int(added), int(df)), float(stats.f.sf(value, added, df)))


class ConfoundingSize(NamedTuple):
    """Variance that instruments add, and squared bias that direct regression adds."""

    squared_bias: float  # of direct regression
    variance_instrument: float
    variance_direct: float
    preferred: str


def confounding_size(
    instrument_by_fold: np.ndarray, direct_by_fold: np.ndarray, sample_weight: Any = None
) -> ConfoundingSize:
    """Which of the two regressions has the smaller expected squared error.

    The squared bias of direct regression is the mean squared difference of the two functions,
    minus the jackknife variance of that difference. Direct regression is preferred if its squared
    bias plus its variance is below the variance of the other. On the demand design this was right
    in all of 30 runs with a clear answer, whereas a Wu-Hausman test always rejected.

    Parameters
    ----------
    instrument_by_fold, direct_by_fold : ndarray of shape (repeats, folds, n)
        Predictions at the same rows from the same folds.
    """

    def average(of_rows: np.ndarray) -> float:
        return float(np.average(of_rows, weights=sample_weight))

    difference = instrument_by_fold - direct_by_fold
    distance = average(np.square(difference.mean((0, 1))))
    bias = max(0.0, distance - average(jackknife_variance(difference)))
    instrument = average(jackknife_variance(instrument_by_fold))
    direct = average(jackknife_variance(direct_by_fold))
    preferred = "direct" if bias + direct < instrument else "instrument"
    return ConfoundingSize(bias, instrument, direct, preferred)


def jackknife_variance(by_fold: Any) -> Any:
    """Delete-a-fold jackknife ``(K - 1)/K Σ (f_k - f̄)²`` of (repeats, K, ...), mean of repeats.

    The argument is an array or a tensor.
    """
    n_folds = by_fold.shape[1]
    squares = ((by_fold - by_fold.mean(1)[:, None]) ** 2).sum(1)
    return squares.mean(0) * ((n_folds - 1) / n_folds)


class _Rows:
    """Treatments, outcome and an orthonormal basis of the instruments, net of the controls."""

    def __init__(self, X: Any, y: Any, Z: Any, C: Any, sample_weight: Any) -> None:
        weight = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, float)
        self.root = np.sqrt(weight)
        self.n = round(float(weight.sum()))
        controls = [np.ones((len(X), 1)), *([] if C is None else [np.asarray(C, dtype=float)])]
        basis = _orthonormal(np.hstack(controls) * self.root[:, None])
        self.rank_controls = basis.shape[1]

        def free(columns: Any) -> np.ndarray:
            rows = np.asarray(columns, dtype=float).reshape(len(X), -1) * self.root[:, None]
            return rows - basis @ (basis.T @ rows)

        self.X = free(X)
        self.y: Any = None if y is None else free(y)[:, 0]
        instruments = np.asarray(Z, dtype=float).reshape(len(X), -1) * self.root[:, None]
        length = np.linalg.norm(instruments, axis=0)
        instruments = free(Z)
        # The residual of a column that the controls explain up to rounding is only noise.
        kept = np.linalg.norm(instruments, axis=0) > 1e-8 * np.maximum(length, 1e-300)
        self.basis = _orthonormal(instruments[:, kept])
        self.rank = self.basis.shape[1]


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the span of the columns; does not depend on their units."""
    if columns.shape[1] == 0:
        return columns
    length = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(length > 0, length, 1.0)
    left, values, _ = np.linalg.svd(scaled, full_matrices=False)
    return left[:, values > 1e-10 * max(values[0], 1e-300)]


def _project(columns: np.ndarray, y: np.ndarray) -> np.ndarray:
    basis = _orthonormal(columns)
    return basis @ (basis.T @ y)


def _ratio(numerator: Any, denominator: Any) -> Any:
    """Numerator over denominator; if the denominator is zero, infinite, or zero for 0/0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.divide(numerator, denominator), nan=0.0, posinf=np.inf)
