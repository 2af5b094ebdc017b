"""Confidence sets that are valid with weak instruments, by inversion of tests.

A set is an array of shape (m, 2) of disjoint intervals in order. It may be unbounded, the whole
line or empty (no value is compatible with the instruments).

References
----------
.. [1] T. Anderson and H. Rubin, "Estimation of the parameters of a single equation in a complete
   system of stochastic equations", Annals of Mathematical Statistics 20 (1949).
.. [2] M. Moreira, "A conditional likelihood ratio test for structural models", Econometrica 71
   (2003).
.. [3] D. Lee, J. McCrary, M. Moreira and J. Porter, "Valid t-ratio inference for IV", American
   Economic Review 112 (2022), table 3.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import linalg, stats

from .partially_linear import Residuals

__all__ = ["anderson_rubin_set", "describe", "ivmodels_set", "tf_factor"]

WHOLE_LINE = np.array([[-np.inf, np.inf]])
# Critical values of |t| at 5% for first-stage F statistics of 2², 2.1², ... 10.2²; table 3 in [3].
# Above they are 1.96.
TF_VALUES = (
    18.66, 9.74, 7.37, 6.18, 5.43, 4.92, 4.54, 4.25, 4.01, 3.82, 3.65, 3.51, 3.39, 3.29, 3.19, 3.11,
    3.03, 2.97, 2.91, 2.85, 2.80, 2.75, 2.71, 2.67, 2.63, 2.60, 2.57, 2.54, 2.51, 2.48, 2.46, 2.43,
    2.41, 2.39, 2.37, 2.35, 2.33, 2.32, 2.30, 2.29, 2.27, 2.26, 2.24, 2.23, 2.22, 2.21, 2.20, 2.19,
    2.17, 2.16, 2.16, 2.15, 2.14, 2.13, 2.12, 2.11, 2.10, 2.10, 2.09, 2.08, 2.08, 2.07, 2.06, 2.06,
    2.05, 2.04, 2.04, 2.03, 2.03, 2.02, 2.02, 2.01, 2.01, 2.00, 2.00, 1.99, 1.99, 1.99, 1.98, 1.98,
    1.97, 1.97, 1.97, 1.96,
)  # fmt: skip


def anderson_rubin_set(rows: Residuals, level: float = 0.95) -> np.ndarray:
    """Slopes θ of one treatment for which the instruments do not explain ``y - xθ``.

    The test is robust to heteroscedasticity, or clustered: with the moment ``g(θ) = Σ z(y - xθ)``
    and the sum of squares of its terms ``Ω(θ)``, the set is ``g'Ω⁻¹g ≤ c``. If terms of G
    independent units are normal, ``g'Ω⁻¹g / G`` has a beta distribution with parameters q/2 and
    (G - q)/2, which gives c. For many units it is the quantile of χ² with q degrees.

    The condition holds if ``Q(θ) = cΩ(θ) - g(θ)g(θ)'`` is positive semi-definite. Q is quadratic in
    θ, so the ends of the intervals are the real eigenvalues of a quadratic eigenvalue problem: no
    grid is searched.

    Parameters
    ----------
    rows : Residuals
        With one treatment and at least one instrument.
    level : float, default=0.95
        Coverage probability.

    Returns
    -------
    ndarray of shape (m, 2)
    """
    assert rows.Z is not None and rows.X.shape[1] == 1
    q, units = rows.Z.shape[1], rows.n_units
    counts = rows.counts
    y_scale = np.sqrt(np.average(rows.y**2, weights=counts))
    x_scale = np.sqrt(np.average(rows.X[:, 0] ** 2, weights=counts))
    if q == 0 or units <= q or not (y_scale > 0 and x_scale > 0):
        return WHOLE_LINE
    y = rows.sums(rows.Z * (rows.y / y_scale)[:, None])
    x = rows.sums(rows.Z * (rows.X / x_scale))
    critical = units * stats.beta.ppf(level, q / 2, (units - q) / 2)

    def form(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> np.ndarray:
        (total_a, terms_a), (total_b, terms_b) = a, b
        value: np.ndarray = critical * terms_a.T @ terms_b - np.outer(total_a, total_b)
        return value

    mixed = form(y, x)
    constant, linear, square = form(y, y), -(mixed + mixed.T), form(x, x)

    def holds(theta: float) -> bool:
        # Beyond one, divided by θ²: large values of θ stay accurate.
        u = max(1.0, abs(theta))
        matrix = constant / u**2 + linear * (theta / u) / u + square * (theta / u) ** 2
        return bool(np.linalg.eigvalsh(matrix)[0] >= 0)

    return pieces(_real_eigenvalues(constant, linear, square), holds) * (y_scale / x_scale)


def _real_eigenvalues(constant: np.ndarray, linear: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Real θ at which ``constant + θ linear + θ² square`` is singular."""
    q = len(constant)
    unit, zero = np.eye(q), np.zeros((q, q))
    left = np.block([[zero, unit], [-constant, -linear]])
    right = np.block([[unit, zero], [zero, square]])
    above, below = linalg.eigvals(left, right, homogeneous_eigvals=True)
    finite = np.abs(below) > 1e-12 * np.abs(above)
    found = above[finite] / below[finite]
    return np.sort(found.real[np.abs(found.imag) <= 1e-7 * (1 + np.abs(found))])


def pieces(ends: np.ndarray, holds: Callable[[float], bool]) -> np.ndarray:
    """Intervals between consecutive ends in which a condition holds, joined where they touch."""
    if len(ends) == 0:
        return WHOLE_LINE.copy() if holds(0.0) else np.empty((0, 2))
    first, last = ends[0] - 1 - abs(ends[0]), ends[-1] + 1 + abs(ends[-1])
    between = [first, *(ends[1:] + ends[:-1]) / 2, last]
    edges = [-np.inf, *ends, np.inf]
    found: list[list[float]] = []
    for i, inside in enumerate(map(holds, between)):
        if not inside:
            continue
        if found and found[-1][1] == edges[i]:
            found[-1][1] = edges[i + 1]
        else:
            found.append([edges[i], edges[i + 1]])
    return np.array(found).reshape(-1, 2)


def ivmodels_set(
    kind: str, rows: Residuals, treatment: int, level: float = 0.95
) -> np.ndarray | None:
    """Confidence set of one of the treatments by a test of ivmodels.

    The tests assume errors that are independent and of one variance. The result is None if ivmodels
    is not installed, or cannot invert the test: the outcome has no error, or rows are too few.

    Parameters
    ----------
    kind : {"anderson_rubin", "conditional_likelihood_ratio"}
    rows : Residuals
    treatment : int
        The column of X; the other slopes are not restricted.
    level : float, default=0.95

    Returns
    -------
    ndarray of shape (m, 2), or None
    """
    try:
        from ivmodels import tests
        from ivmodels.confidence_set import ConfidenceSet
    except ImportError:
        return None
    root = np.sqrt(rows.counts)
    assert rows.Z is not None
    Z, X, y = rows.Z * root[:, None], rows.X * root[:, None], rows.y * root
    x_length, y_length = np.linalg.norm(X, axis=0), np.linalg.norm(y)
    if not (x_length.all() and y_length):
        return None
    X, y = X / x_length, y / y_length  # its tolerances are absolute
    others = np.delete(X, treatment, axis=1)
    invert = getattr(tests, f"inverse_{kind}_test")
    try:
        found = invert(
            Z, X[:, [treatment]], y, alpha=1 - level, W=others,
            C=np.ones((len(y), 1)) * root[:, None], fit_intercept=False,
        )  # fmt: skip
        if not isinstance(found, ConfidenceSet):
            found = ConfidenceSet.from_quadric(found)
    except (ArithmeticError, LookupError, np.linalg.LinAlgError):
        return None
    unit = y_length / x_length[treatment]
    return np.sort(np.array(found.boundaries, dtype=float).reshape(-1, 2), axis=0) * unit


def tf_factor(first_stage_f: float) -> float:
    """Factor by which the standard error of one treatment with one instrument has to grow.

    The interval ``estimate ± 1.96 · factor · standard error`` covers with at least 95% whatever the
    strength of the instrument and the confounding [3]. It is infinite for an F below 4, where the
    table ends.
    """
    if not first_stage_f >= 4.0:
        return float("inf")
    grid = 2.0 + 0.1 * np.arange(len(TF_VALUES))
    return max(1.0, float(np.interp(np.sqrt(first_stage_f), grid, TF_VALUES)) / 1.96)


def describe(found: np.ndarray, format_spec: str = ".4g") -> str:
    """A confidence set as text: ``[0.1, 0.4]``, ``(-inf, 0.1] or [0.4, inf)`` or ``empty``."""
    if len(found) == 0:
        return "empty"
    text = []
    for low, high in found:
        left = "(-inf" if low == -np.inf else f"[{low:{format_spec}}"
        text.append(left + ", " + ("inf)" if high == np.inf else f"{high:{format_spec}}]"))
    return " or ".join(text)
