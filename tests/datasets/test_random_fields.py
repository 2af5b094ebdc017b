"""Random fields, and the exponential integrator of the simulators."""

from functools import partial

import numpy as np
import pytest

from simulated_fields import orders
from sklearn_cfll.datasets._etdrk4 import ETDRK4
from sklearn_cfll.datasets._random_fields import (
    evaluate_cosine,
    evaluate_periodic,
    from_fft_order,
    neumann_field,
    periodic_field,
    to_fft_order,
)

# -- random fields ----------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", [1, 2])
def test_variances_of_periodic_fields_are_the_operators_eigenvalues(dimension):
    rng = np.random.RandomState(0)
    field = periodic_field(rng, 6000, 3, dimension=dimension, scale=25.0, tau=5.0, power=2.0)
    k = np.meshgrid(*[np.arange(-3, 4)] * (dimension - 1), np.arange(4), indexing="ij")
    squared = 4 * np.pi**2 * sum(axis**2 for axis in k)
    expected = 625.0 * (squared + 25.0) ** -2.0
    expected[squared == 0] = 0.0
    np.testing.assert_allclose((abs(field) ** 2).mean(0), expected, rtol=0.08)


def test_covariance_of_periodic_fields_depends_on_the_distance_as_the_spectrum_says():
    rng = np.random.RandomState(0)
    field = periodic_field(rng, 20_000, 20, dimension=1, scale=25.0, tau=5.0, power=2.0)
    values = evaluate_periodic(field, 8)
    k = np.arange(1, 21)
    eigenvalues = 625.0 * (4 * np.pi**2 * k**2 + 25.0) ** -2.0
    for lag in range(5):
        exact = 2 * np.sum(eigenvalues * np.cos(2 * np.pi * k * lag / 8))
        measured = (values * np.roll(values, -lag, axis=1)).mean(0)  # the same at every point
        np.testing.assert_allclose(measured, exact, atol=0.02)


def test_variances_of_neumann_fields_are_the_operators_eigenvalues():
    field = neumann_field(np.random.RandomState(0), 6000, 4, scale=2.0, tau=3.0, power=2.0)
    j = np.arange(4)
    expected = 4.0 * (np.pi**2 * (j[:, None] ** 2 + j**2) + 9.0) ** -2.0
    expected[0, 0] = 0.0
    np.testing.assert_allclose(field.var(0), expected, rtol=0.08)


def test_neumann_fields_are_flat_across_the_boundary():
    field = neumann_field(np.random.RandomState(0), 2, 8, scale=1.0, tau=3.0, power=2.0)
    before, edge, after = np.moveaxis(evaluate_cosine(field, np.array([-1e-3, 0.0, 1e-3])), 1, 0)
    np.testing.assert_allclose(before, after, atol=1e-14)
    assert abs(after - edge).max() < 1e-4 * abs(edge).max()


@pytest.mark.parametrize("resolution", [4, 7, 9, 32])
def test_periodic_fields_are_evaluated_at_points_even_where_the_grid_is_too_coarse(resolution):
    field = periodic_field(np.random.RandomState(0), 2, 4, dimension=1, scale=1, tau=1, power=1)
    x, k = np.arange(resolution) / resolution, np.arange(5)
    waves = np.exp(2j * np.pi * k[:, None] * x)
    by_hand = 2 * (field @ waves).real - field[:, :1].real
    np.testing.assert_allclose(evaluate_periodic(field, resolution), by_hand, atol=1e-14)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_orders_of_coefficients_are_inverse_to_each_other(dimension):
    draw = partial(periodic_field, dimension=dimension, scale=1.0, tau=1.0, power=1.0)
    field = draw(np.random.RandomState(0), 2, 3)
    np.testing.assert_array_equal(from_fft_order(to_fft_order(field, 12), 3), field)
    lowest = from_fft_order(to_fft_order(field, 5), 2)  # a grid too small for all of them
    inner = (slice(None), *[slice(1, -1)] * (dimension - 1), slice(0, 3))
    np.testing.assert_array_equal(lowest, field[inner])


# -- exponential integrator -------------------------------------------------------------------


def test_integrator_solves_linear_equations_exactly_stiff_or_not():
    rates = np.array([0.0, -1e-6, -1.0, -1e6])
    step = ETDRK4(rates, 0.5)
    forced = step(np.ones(4), lambda v: np.full(4, 2.0))
    gain = np.array([0.5, *np.expm1(0.5 * rates[1:]) / rates[1:]])
    np.testing.assert_allclose(forced, np.exp(0.5 * rates) + 2.0 * gain, rtol=1e-12)


def test_integrator_is_of_order_four():
    """v' = -v + v² has the solution 1 / (1 + (1/v₀ - 1) eᵗ)."""
    exact, errors = 1 / (1 + np.e), []
    for n_steps in (4, 8, 16):
        v, step = np.array([0.5]), ETDRK4(np.array([-1.0]), 1 / n_steps)
        for _ in range(n_steps):
            v = step(v, np.square)
        errors.append(abs(v[0] - exact))
    np.testing.assert_allclose(orders(errors), 4, atol=0.2)
