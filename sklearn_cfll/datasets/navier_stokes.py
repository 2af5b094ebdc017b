"""Two-dimensional Navier-Stokes equations on the periodic unit square, as vorticity."""

from __future__ import annotations

import math
import os
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy import fft

from .._compat import Interval, validate_params
from . import _cache
from ._batches import batches
from ._etdrk4 import ETDRK4
from ._random_fields import evaluate_periodic, from_fft_order, periodic_field, to_fft_order
from ._random_stream import random_stream

__all__ = ["make_navier_stokes"]

# Modes of the initial vorticity along each axis and direction. The omitted modes have less than 1%
# of its standard deviation.
_INITIAL_MODES = 32
# Grid points per batch, so that its arrays fit in the CPU cache.
_BATCH_POINTS = 2**15


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "resolution": [Interval(Integral, 2, None, closed="left")],
        "viscosity": [Interval(Real, 1e-5, None, closed="left")],
        "final_time": [Interval(Real, 0, None, closed="neither")],
        "amplitude": [Interval(Real, 0, 20, closed="both")],
        "random_state": ["random_state"],
        "cache_dir": _cache.CONSTRAINT,
        "verbose": ["verbose"],
    },
    prefer_skip_nested_validation=True,
)
def make_navier_stokes(
    n_samples: int = 1000,
    resolution: int = 64,
    viscosity: float = 1e-3,
    final_time: float = 10.0,
    *,
    amplitude: float = 1.0,
    random_state: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Generate initial and final vorticity of a forced flow, for operator learning in 2-d.

    The equation ``w_t + u · ∇w = viscosity * Δw + f`` with ``div u = 0`` and ``w = curl u`` is
    solved on the periodic unit square, with the forcing
    ``f = 0.1 (sin(2π(x + y)) + cos(2π(x + y)))``. The initial states are Gaussian random fields
    ``w(., 0) ~ N(0, 7^1.5 (-Δ + 49 I)^-2.5)`` without their constant mode, as described in [1]_.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of pairs of fields.
    resolution : int, default=64
        Number of points along each axis. A seed determines the functions, which are the same for
        all resolutions.
    viscosity : float, default=1e-3
        At least 1e-5. The solver's grid has 64 points along each axis at 1e-3, 128 at 1e-4 and
        512 at 1e-5. The time increases with the third power of this number.
    final_time : float, default=10.0
        Time of the final vorticity.
    amplitude : float, default=1.0
        Factor of the initial vorticity, from 0 to 20. The field of the formula is weak compared
        with the forcing: its standard deviation is 0.047, and at time 10 the final vorticities
        differ from their mean by 6% (relative L2). The generator released with [1]_ draws fields
        that are larger by a factor of ``sqrt(2 * 7**1.5)``, about 6.1, for which the difference is
        33%.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial vorticity.
    cache_dir : str or path-like, default=None
        Folder in which the result is stored and from which it is read, verified by its SHA-256.
        Requires an integer ``random_state``.
    verbose : int, default=0
        If positive, show a progress bar.

    Returns
    -------
    X : ndarray of shape (n_samples, resolution, resolution)
        Initial vorticity at ``(i / resolution, j / resolution)``.
    y : ndarray of shape (n_samples, resolution, resolution)
        Final vorticity at the same points.

    Notes
    -----
    The solver is a Fourier pseudo-spectral method with the 2/3 rule against aliasing and an
    exponential Runge-Kutta method of order four in time [2]_. Its grid does not depend on
    ``resolution``. The transport term is computed as ``(∂yy - ∂xx)(u v) + ∂xy(u² - v²)``, which
    needs four transforms instead of five [3]_. The relative L2 error is below 1e-8 at the default
    settings and below 1e-5 at a viscosity of 1e-4 and time 5.

    References
    ----------
    .. [1] Z. Li et al., "Fourier neural operator for parametric partial differential equations",
       International Conference on Learning Representations (2021), arXiv 2010.08895.
    .. [2] A.-K. Kassam and L. N. Trefethen, "Fourth-order time-stepping for stiff PDEs", SIAM
       Journal on Scientific Computing 26 (2005).
    .. [3] C. Basdevant, "Technical improvements for direct numerical simulation of homogeneous
       three-dimensional turbulence", Journal of Computational Physics 50 (1983).

    Examples
    --------
    >>> from sklearn_cfll.datasets import make_navier_stokes
    >>> X, y = make_navier_stokes(n_samples=2, resolution=32, final_time=1.0, random_state=0)
    >>> X.shape, y.shape
    ((2, 32, 32), (2, 32, 32))
    """
    grid, n_steps = _discretisation(viscosity, final_time)

    def simulate() -> tuple[np.ndarray, np.ndarray]:
        rng = random_stream(random_state)
        X, y = np.empty((2, n_samples, resolution, resolution))
        batch_size = max(1, _BATCH_POINTS // grid**2)
        done = 0
        for size in batches(n_samples, batch_size, description="Navier-Stokes", verbose=verbose):
            initial = periodic_field(
                rng,
                size,
                _INITIAL_MODES,
                dimension=2,
                scale=amplitude * 7**0.75,
                tau=7.0,
                power=2.5,
            )
            final = solve_navier_stokes(initial, viscosity, final_time, grid, n_steps)
            X[done : done + size] = evaluate_periodic(initial, resolution)
            y[done : done + size] = evaluate_periodic(final, resolution)
            done += size
        return X, y

    parameters = dict(
        n_samples=n_samples,
        resolution=resolution,
        viscosity=float(viscosity),
        final_time=float(final_time),
        amplitude=float(amplitude),
    )
    X, y = _cache.cached(
        simulate, "navier_stokes", parameters, random_state=random_state, cache_dir=cache_dir
    )
    return X, y


def _discretisation(viscosity: float, final_time: float) -> tuple[int, int]:
    """Numbers of grid points per axis, to resolve the thinnest filaments, and of time steps."""
    grid = max(64, 2 ** math.ceil(math.log2(40 * math.sqrt(1e-3 / viscosity))))
    # Velocities of about 1/2 pass 1.6 grid cells in a step. Modes that rotate too fast for a
    # Runge-Kutta method of order four are damped by the viscosity; the errors that this leaves are
    # in the docstring of `make_navier_stokes`.
    return grid, max(20, math.ceil(final_time * 20 * grid / 64))


def solve_navier_stokes(
    initial: np.ndarray,
    viscosity: float,
    final_time: float,
    grid: int,
    n_steps: int,
    forcing: float = 0.1,
) -> np.ndarray:
    """Final Fourier coefficients of the vorticity from initial ones.

    Both are in the order of :func:`periodic_field`, of shape (n_samples, 2 modes + 1, modes + 1).
    """
    n_modes = (grid - 1) // 3  # the 2/3 rule
    kx = 2 * np.pi * fft.fftfreq(grid, 1 / grid)[:, None]
    ky = 2 * np.pi * np.arange(n_modes + 1)
    kept = abs(kx) <= 2 * np.pi * n_modes
    squared = kx**2 + ky**2
    # u = ψ_y and v = -ψ_x with the stream function -Δψ = w; there is no mean flow.
    inverse = np.divide(kept, squared, out=np.zeros_like(squared), where=squared > 0)
    to_u, to_v = 1j * ky * inverse, -1j * kx * inverse
    of_uv, of_difference = (kx**2 - ky**2) * kept, -kx * ky * kept
    stirring = np.zeros_like(squared, dtype=complex)
    stirring[1, 1] = forcing * (0.5 - 0.5j)  # sin + cos of 2π(x + y)
    step = ETDRK4(-viscosity * squared, final_time / n_steps)

    def to_grid(spectrum: np.ndarray) -> np.ndarray:
        return fft.irfft2(spectrum, s=(grid, grid), norm="forward")

    def from_grid(values: np.ndarray) -> np.ndarray:
        return fft.rfft2(values, norm="forward")[..., : n_modes + 1]

    def transport_and_stirring(state: np.ndarray) -> np.ndarray:
        u, v = to_grid(to_u * state), to_grid(to_v * state)
        transport = of_uv * from_grid(u * v) + of_difference * from_grid(u * u - v * v)
        return transport + stirring

    state = np.zeros((len(initial), *squared.shape), dtype=complex)
    columns = min(n_modes + 1, initial.shape[-1])
    state[..., :columns] = (to_fft_order(initial, grid) * kept)[..., :columns]
    for _ in range(n_steps):
        state = step(state, transport_and_stirring)
    return from_fft_order(state, n_modes)
