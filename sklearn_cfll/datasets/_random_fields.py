"""Gaussian random fields N(0, scale² (-Δ + tau² I)^-power) as random coefficients.

Coefficients are drawn instead of grid values, so that a seed determines functions, which can be
evaluated on any grid. The constant mode is omitted, as in the generators that Li et al. released;
in their formulas it has the variance scale² tau^(-2 power).
"""

from __future__ import annotations

import numpy as np
from scipy import fft

__all__ = [
    "evaluate_cosine",
    "evaluate_periodic",
    "from_fft_order",
    "neumann_field",
    "periodic_field",
    "to_fft_order",
]


def _standard_deviation(
    squared_frequency: np.ndarray, scale: float, tau: float, power: float
) -> np.ndarray:
    """Square roots of the covariance's eigenvalues; 0 for the constant mode, which is omitted."""
    deviation = scale * (squared_frequency + tau**2) ** (-0.5 * power)
    deviation[squared_frequency == 0] = 0.0
    return deviation


def periodic_field(
    rng: np.random.RandomState,
    n_samples: int,
    n_modes: int,
    *,
    dimension: int,
    scale: float,
    tau: float,
    power: float,
) -> np.ndarray:
    """Fourier coefficients of periodic fields on the unit cube.

    The field is ``u(x) = Σ_k c_k exp(2πi k·x)`` over ``|k_j| <= n_modes``, with independent
    ``c_k`` of variance ``scale² (4π²|k|² + tau²)^-power`` and ``c_{-k}`` conjugate to ``c_k``.

    Returns
    -------
    coefficients : complex ndarray of shape (n_samples, 2 n_modes + 1, ..., n_modes + 1)
        ``k = -n_modes ... n_modes`` along all axes but the last, which has ``k = 0 ... n_modes``.
    """
    k = np.arange(-n_modes, n_modes + 1)
    axes = tuple(range(1, dimension + 1))
    white = rng.standard_normal((n_samples, *[len(k)] * dimension, 2))
    complex_white = 0.5 * (white[..., 0] + 1j * white[..., 1])
    hermitian = complex_white + np.flip(complex_white, axes).conj()
    squared = np.sum(np.meshgrid(*[(2 * np.pi * k) ** 2] * dimension, indexing="ij"), axis=0)
    coefficients = hermitian * _standard_deviation(squared, scale, tau, power)
    return coefficients[..., n_modes:]


def evaluate_periodic(coefficients: np.ndarray, resolution: int) -> np.ndarray:
    """Values at ``i / resolution`` along every axis, even if that grid does not resolve the field.

    The coefficients are in the order of :func:`periodic_field`.
    """
    dimension, n_modes = coefficients.ndim - 1, coefficients.shape[-1] - 1
    stride = -(-(2 * n_modes + 1) // resolution)
    grid = stride * resolution
    values = fft.irfftn(
        to_fft_order(coefficients, grid),
        s=[grid] * dimension,
        axes=tuple(range(1, dimension + 1)),
        norm="forward",
    )
    return values[(slice(None), *[slice(None, None, stride)] * dimension)]


def to_fft_order(coefficients: np.ndarray, grid: int) -> np.ndarray:
    """Coefficients in the order of ``rfftn`` on ``grid`` points; missing frequencies are zero.

    Frequencies that the grid cannot represent are dropped. The last axis is not extended, because
    ``irfftn`` pads it.
    """
    n_samples, full_axes = len(coefficients), coefficients.ndim - 2
    n_modes = coefficients.shape[-1] - 1
    kept = min(n_modes, (grid - 1) // 2)
    k = np.arange(-kept, kept + 1)  # as an index, a negative frequency counts from the end
    samples, last = np.arange(n_samples), np.arange(kept + 1)
    ordered = np.zeros((n_samples, *[grid] * full_axes, kept + 1), dtype=complex)
    centred = coefficients[np.ix_(samples, *[k + n_modes] * full_axes, last)]
    ordered[np.ix_(samples, *[k] * full_axes, last)] = centred
    return ordered


def from_fft_order(ordered: np.ndarray, n_modes: int) -> np.ndarray:
    """The lowest ``n_modes`` frequencies in the order of :func:`periodic_field`."""
    k = np.arange(-n_modes, n_modes + 1)
    samples, last = np.arange(len(ordered)), np.arange(n_modes + 1)
    return ordered[np.ix_(samples, *[k] * (ordered.ndim - 2), last)]


def neumann_field(
    rng: np.random.RandomState,
    n_samples: int,
    n_modes: int,
    *,
    scale: float,
    tau: float,
    power: float,
) -> np.ndarray:
    """Cosine coefficients of fields on the unit square with zero normal derivative at the edge.

    The field is ``Σ_jk c_jk e_j(x) e_k(y)`` over ``0 <= j, k < n_modes`` with ``e_0 = 1``,
    ``e_j(x) = √2 cos(πjx)`` and independent ``c_jk`` of variance
    ``scale² (π²(j² + k²) + tau²)^-power``.

    Returns
    -------
    coefficients : ndarray of shape (n_samples, n_modes, n_modes)
    """
    squared = (np.pi * np.arange(n_modes)) ** 2
    deviation = _standard_deviation(squared[:, None] + squared, scale, tau, power)
    return rng.standard_normal((n_samples, n_modes, n_modes)) * deviation


def evaluate_cosine(coefficients: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of :func:`neumann_field` on the grid ``points`` × ``points``."""
    orders = np.arange(coefficients.shape[-1])
    basis = np.where(orders == 0, 1.0, np.sqrt(2.0)) * np.cos(np.pi * points[:, None] * orders)
    return basis @ coefficients @ basis.T
