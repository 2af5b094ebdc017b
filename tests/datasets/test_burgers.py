"""Burgers' equation: an exact solution, orders of accuracy, conservation, symmetries."""

from functools import partial

import numpy as np
import pytest
from scipy.special import ive

from simulated_fields import coefficients, error, orders
from sklearn_cfll.datasets import burgers
from sklearn_cfll.datasets._random_fields import evaluate_periodic, periodic_field
from sklearn_cfll.datasets.burgers import solve_burgers


def cole_hopf(x, time, viscosity):
    """Burgers' solution from u(x, 0) = sin(2πx), by the Cole-Hopf transformation."""
    n = np.arange(1, 200)
    weights = ive(n, 1 / (4 * np.pi * viscosity)) * np.exp(-viscosity * (2 * np.pi * n) ** 2 * time)
    phase = 2 * np.pi * n * x[:, None]
    potential = ive(0, 1 / (4 * np.pi * viscosity)) + 2 * np.cos(phase) @ weights
    slope = -4 * np.pi * np.sin(phase) @ (n * weights)
    return -2 * viscosity * slope / potential


def burgers_from_sine(grid, n_steps, viscosity=0.02, time=0.3, points=64):
    x = np.arange(points) / points
    sine = coefficients(np.sin(2 * np.pi * np.arange(8) / 8)[None])
    final = solve_burgers(sine, viscosity, time, grid, n_steps)
    return error(evaluate_periodic(final, points)[0], cole_hopf(x, time, viscosity))


def test_burgers_meets_the_cole_hopf_solution():
    assert burgers_from_sine(grid=256, n_steps=400) < 1e-10


def test_burgers_is_of_order_four_in_time():
    errors = [burgers_from_sine(grid=128, n_steps=n) for n in (20, 40, 80)]
    np.testing.assert_allclose(orders(errors), 4, atol=0.4)


def test_burgers_is_spectral_in_space():
    errors = [burgers_from_sine(grid=n, n_steps=400) for n in (32, 64, 128)]
    assert orders(errors)[0] > 3 and orders(errors)[1] > 8  # faster than any fixed order


@pytest.mark.parametrize("viscosity", [0.1, 0.01])
def test_default_discretisation_of_burgers_is_converged(viscosity):
    field = periodic_field(np.random.RandomState(3), 4, 340, dimension=1, scale=25, tau=5, power=2)
    grid, n_steps = burgers._discretisation(viscosity, 1.0)
    coarse = solve_burgers(field, viscosity, 1.0, grid, n_steps)
    fine = solve_burgers(field, viscosity, 1.0, 2 * grid, 3 * n_steps)
    assert error(evaluate_periodic(coarse, 64), evaluate_periodic(fine, 64)) < 1e-6


def test_burgers_keeps_the_mean_and_loses_energy():
    values = np.random.RandomState(0).standard_normal((3, 33))
    field = coefficients(values)
    final = solve_burgers(field, 0.05, 0.2, 128, 100)
    np.testing.assert_allclose(final[:, 0], field[:, 0], rtol=1e-13)
    assert np.all(evaluate_periodic(final, 64).var(1) < values.var(1))


def test_burgers_without_viscosity_keeps_its_energy_because_nothing_is_aliased():
    field = periodic_field(np.random.RandomState(0), 3, 42, dimension=1, scale=25, tau=5, power=1)
    final = solve_burgers(field, 0.0, 1e-3, 128, 100)
    energy = [np.sum(abs(state[:, 1:43]) ** 2, axis=1) for state in (field, final)]
    assert error(final[:, :43], field) > 0.05
    np.testing.assert_allclose(energy[1], energy[0], rtol=1e-6)


def test_burgers_commutes_with_translation_and_odd_reflection():
    field = periodic_field(np.random.RandomState(0), 3, 40, dimension=1, scale=25, tau=5, power=2)
    shift = np.exp(-2j * np.pi * np.arange(41) * 0.3)
    solve = partial(solve_burgers, viscosity=0.05, final_time=0.2, grid=128, n_steps=100)
    final = solve(field)
    np.testing.assert_allclose(solve(field * shift)[:, :41], final[:, :41] * shift, atol=1e-13)
    np.testing.assert_allclose(solve(-field.conj()), -final.conj(), atol=1e-13)
