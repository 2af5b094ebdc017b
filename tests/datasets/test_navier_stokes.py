"""Navier-Stokes: exact solutions, a plain solver beside it, conservation."""

from functools import partial

import numpy as np
import pytest

from simulated_fields import coefficients, error, orders
from sklearn_cfll.datasets import make_navier_stokes, navier_stokes
from sklearn_cfll.datasets._random_fields import evaluate_periodic, periodic_field
from sklearn_cfll.datasets.navier_stokes import solve_navier_stokes


def square(points=16):
    return np.meshgrid(*[np.arange(points) / points] * 2, indexing="ij")


@pytest.mark.parametrize(
    ("wave", "squared"),
    [
        (lambda x, y: np.cos(2 * np.pi * (2 * x + y)), 5),
        (lambda x, y: np.sin(2 * np.pi * x) * np.sin(2 * np.pi * y), 2),
    ],
    ids=["single-mode", "taylor-green"],
)
def test_vorticity_of_one_wavelength_decays_exactly(wave, squared):
    initial = wave(*square())
    final = solve_navier_stokes(coefficients(initial[None]), 1e-2, 1.0, 24, 10, forcing=0.0)
    decay = np.exp(-1e-2 * 4 * np.pi**2 * squared)
    np.testing.assert_allclose(evaluate_periodic(final, 16)[0], decay * initial, atol=1e-13)


def test_stirring_of_a_flow_at_rest_has_its_exact_response():
    x, y = square()
    final = solve_navier_stokes(np.zeros((1, 3, 2), complex), 1e-2, 2.0, 24, 10)
    rate = 1e-2 * 8 * np.pi**2
    stirring = 0.1 * (np.sin(2 * np.pi * (x + y)) + np.cos(2 * np.pi * (x + y)))
    exact = stirring * -np.expm1(-2.0 * rate) / rate
    np.testing.assert_allclose(evaluate_periodic(final, 16)[0], exact, atol=1e-13)


def rough_vorticity(n_samples=1, n_modes=7):
    rng = np.random.RandomState(0)
    return periodic_field(
        rng, n_samples, n_modes, dimension=2, scale=20 * 7**0.75, tau=7.0, power=2.5
    )


def plain_navier_stokes(field, viscosity, time, grid, n_steps):
    """The textbook's form u · ∇w on the whole grid, classical Runge-Kutta steps."""
    k = 2 * np.pi * np.fft.fftfreq(grid, 1 / grid)
    kx, ky = np.meshgrid(k, k, indexing="ij")
    squared = kx**2 + ky**2
    kept = np.maximum(abs(kx), abs(ky)) <= 2 * np.pi * ((grid - 1) // 3)
    x, y = square(grid)
    stirring = 0.1 * (np.sin(2 * np.pi * (x + y)) + np.cos(2 * np.pi * (x + y)))

    def rate(w):
        stream = np.where(squared > 0, w / np.where(squared > 0, squared, 1), 0)
        u, v, w_x, w_y = (
            np.fft.ifft2(1j * factor).real for factor in (ky * stream, -kx * stream, kx * w, ky * w)
        )
        return kept * np.fft.fft2(stirring - u * w_x - v * w_y) - viscosity * squared * w

    w, step = np.fft.fft2(evaluate_periodic(field, grid)[0]), time / n_steps
    for _ in range(n_steps):
        first = rate(w)
        second = rate(w + step / 2 * first)
        third = rate(w + step / 2 * second)
        w = w + step / 6 * (first + 2 * second + 2 * third + rate(w + step * third))
    return np.fft.ifft2(w).real


def test_navier_stokes_meets_a_plain_solver_of_the_textbook_form():
    field = rough_vorticity()
    plain = plain_navier_stokes(field, 1e-3, 1.0, 24, 200)
    final = solve_navier_stokes(field, 1e-3, 1.0, 24, 100)
    nothing_moved = solve_navier_stokes(0 * field, 1e-3, 1.0, 24, 100)
    assert error(evaluate_periodic(final, 24)[0], plain) < 1e-8
    assert error(evaluate_periodic(nothing_moved, 24)[0], plain) > 0.1


def test_navier_stokes_is_of_order_four_in_time():
    solve = partial(solve_navier_stokes, rough_vorticity(), 1e-3, 2.0, 32)
    exact = evaluate_periodic(solve(320), 32)
    errors = [error(evaluate_periodic(solve(n), 32), exact) for n in (10, 20, 40)]
    np.testing.assert_allclose(orders(errors), 4, atol=0.4)


@pytest.mark.parametrize("amplitude", [1.0, 6.09])
@pytest.mark.slow
def test_default_discretisation_of_navier_stokes_is_converged(amplitude):
    field = rough_vorticity(2, 32) * amplitude / 20
    grid, n_steps = navier_stokes._discretisation(1e-3, 10.0)
    coarse = solve_navier_stokes(field, 1e-3, 10.0, grid, n_steps)
    fine = solve_navier_stokes(field, 1e-3, 10.0, 2 * grid, 2 * n_steps)
    assert error(evaluate_periodic(coarse, 64), evaluate_periodic(fine, 64)) < 1e-8


def test_mean_vorticity_stays_zero_and_energy_falls_without_stirring():
    field = rough_vorticity(2)
    final = solve_navier_stokes(field, 1e-3, 1.0, 24, 50, forcing=0.0)
    assert abs(evaluate_periodic(final, 24).mean((1, 2))).max() < 1e-15
    assert np.all(
        evaluate_periodic(final, 24).var((1, 2)) < evaluate_periodic(field, 24).var((1, 2))
    )


def test_flow_without_viscosity_keeps_energy_and_enstrophy_because_nothing_is_aliased():
    field = rough_vorticity(2)
    final = solve_navier_stokes(field, 0.0, 2.0, 24, 100, forcing=0.0)
    assert error(final, field) > 0.3
    k = np.meshgrid(np.arange(-7, 8), np.arange(8), indexing="ij")
    squared = np.maximum(k[0] ** 2 + k[1] ** 2, 1)
    both_halves = np.where(k[1] == 0, 1, 2)
    for weights in both_halves, both_halves / squared:
        before, after = ((abs(w) ** 2 * weights).sum((1, 2)) for w in (field, final))
        np.testing.assert_allclose(after, before, rtol=1e-6)


def test_amplitude_multiplies_the_initial_vorticity():
    one, four = (
        make_navier_stokes(2, 16, final_time=0.1, amplitude=a, random_state=0)[0] for a in (1, 4)
    )
    np.testing.assert_allclose(four, 4 * one, rtol=1e-12)
