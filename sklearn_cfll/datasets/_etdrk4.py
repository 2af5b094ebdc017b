"""Fourth-order exponential time differencing for equations with a diagonal linear part."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["ETDRK4"]

_CONTOUR_POINTS = 32


class ETDRK4:
    """One step of ``dv/dt = linear * v + nonlinear(v)`` (Kassam & Trefethen 2005).

    The linear part is solved exactly, the rest by a Runge-Kutta method of order four. The formulas
    of the coefficients divide by powers of ``step * linear`` and suffer from cancellation near 0,
    so they are averaged over a circle in the complex plane instead.

    Parameters
    ----------
    linear : real ndarray
        Factor of each coefficient; not positive for a dissipative equation.
    step : float
        The time step.

    References
    ----------
    A.-K. Kassam and L. N. Trefethen, "Fourth-order time-stepping for stiff PDEs", SIAM Journal
    on Scientific Computing 26 (2005).
    """

    def __init__(self, linear: np.ndarray, step: float) -> None:
        # The integrands are symmetric about the real axis, so half a circle and real parts suffice.
        angles = np.pi * (np.arange(_CONTOUR_POINTS) + 0.5) / _CONTOUR_POINTS
        z = step * linear[..., None] + np.exp(1j * angles)
        e = np.exp(z)

        def mean(integrand: np.ndarray) -> np.ndarray:
            return step * integrand.mean(-1).real

        self.decay = np.exp(step * linear)
        self.half_decay = np.exp(0.5 * step * linear)
        self.half = mean((np.exp(0.5 * z) - 1) / z)
        self.first = mean((-4 - z + e * (4 - 3 * z + z**2)) / z**3)
        self.middle = mean(2 * (2 + z + e * (z - 2)) / z**3)
        self.last = mean((-4 - 3 * z - z**2 + e * (4 - z)) / z**3)

    def __call__(self, v: np.ndarray, nonlinear: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The state one step later."""
        at_v = nonlinear(v)
        decayed = self.half_decay * v
        a = decayed + self.half * at_v
        at_a = nonlinear(a)
        at_b = nonlinear(decayed + self.half * at_a)
        at_c = nonlinear(self.half_decay * a + self.half * (2 * at_b - at_v))
        return self.decay * v + self.first * at_v + self.middle * (at_a + at_b) + self.last * at_c
