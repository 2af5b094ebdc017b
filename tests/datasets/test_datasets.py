"""Simulators: orders of accuracy, exact solutions, conservation, symmetry, seeds and the cache."""

import pickle
import re
import sys
import warnings
from functools import partial

import numpy as np
import pytest
from scipy.special import ive
from sklearn.datasets import load_digits

from sklearn_cfll.datasets import (
    _cache,
    burgers,
    darcy,
    make_burgers,
    make_darcy,
    make_demand_design,
    make_navier_stokes,
    make_sprite_design,
    navier_stokes,
)
from sklearn_cfll.datasets._etdrk4 import ETDRK4
from sklearn_cfll.datasets._random_fields import (
    evaluate_cosine,
    evaluate_periodic,
    from_fft_order,
    neumann_field,
    periodic_field,
    to_fft_order,
)
from sklearn_cfll.datasets.burgers import solve_burgers
from sklearn_cfll.datasets.darcy import darcy_matrix, solve_darcy
from sklearn_cfll.datasets.navier_stokes import solve_navier_stokes
from sklearn_cfll.datasets.sprites import render

EQUATIONS = {
    "burgers": partial(make_burgers, 3, 32, final_time=0.1),
    "darcy": partial(make_darcy, 3, 9),
    "navier_stokes": partial(make_navier_stokes, 3, 16, final_time=0.5),
}
equations = pytest.mark.parametrize("make", EQUATIONS.values(), ids=EQUATIONS)
DESIGNS = {
    "demand": partial(make_demand_design, 50),
    "demand-images": partial(make_demand_design, 50, images=True),
    "sprites": partial(make_sprite_design, 20, 16),
}
designs = pytest.mark.parametrize("make", DESIGNS.values(), ids=DESIGNS)


def error(values, reference):
    return np.linalg.norm(values - reference) / np.linalg.norm(reference)


def orders(errors):
    """Observed orders of accuracy where each step or cell is half the one before."""
    return np.log2(np.divide(errors[:-1], errors[1:]))


def coefficients(values):
    """The trigonometric polynomial through values (n_samples, points, ...), as the solvers take."""
    points, axes = values.shape[-1], range(1, values.ndim)
    spectrum = np.fft.rfftn(values, axes=tuple(axes), norm="forward")
    return from_fft_order(spectrum, (points - 1) // 2)


# -- random fields -----------------------------------------------------------------------------


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


# -- exponential integrator --------------------------------------------------------------------


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


# -- Burgers -----------------------------------------------------------------------------------


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


# -- Darcy -------------------------------------------------------------------------------------


def test_darcy_is_of_order_two_on_a_manufactured_solution():
    errors = []
    for n_cells in (16, 32, 64):
        x, y = np.meshgrid(*[(np.arange(n_cells) + 0.5) / n_cells] * 2, indexing="ij")
        exact = np.sin(np.pi * x) * np.sin(np.pi * y)
        gradient_part = -np.exp(x) * np.pi * np.cos(np.pi * x) * np.sin(np.pi * y)
        source = gradient_part + 2 * np.pi**2 * np.exp(x) * exact
        errors.append(error(solve_darcy(np.exp(x), source), exact))
    np.testing.assert_allclose(orders(errors), 2, atol=0.1)


def test_darcy_of_constant_permeability_meets_the_fourier_series():
    n_cells, odd = 65, np.arange(1, 200, 2)
    solution = solve_darcy(np.full((n_cells, n_cells), 3.0), np.ones((n_cells, n_cells)))
    for i, j in (32, 32), (10, 32), (5, 50):
        waves_x, waves_y = (np.sin(np.pi * odd * (index + 0.5) / n_cells) for index in (i, j))
        squares = odd[:, None] ** 2 + odd**2
        series = 16 / np.pi**4 * waves_x @ (1 / (odd[:, None] * odd * squares)) @ waves_y
        assert solution[i, j] == pytest.approx(series / 3.0, rel=2e-3)


def test_harmonic_means_are_exact_for_layers():
    """Where a flux of one passes layers, the pressure falls by thickness over permeability."""
    layers = np.array([3.0, 12.0, 12.0, 5.0, 3.0, 1.0])
    h = 1 / len(layers)
    pressure = np.cumsum(h / layers) - 0.5 * h / layers  # at the centres
    permeability = np.tile(layers[:, None], (1, 6))
    flux = darcy_matrix(permeability) @ np.tile(pressure[:, None], (1, 6)).ravel()
    inner = flux.reshape(6, 6)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 0.0, atol=1e-14)


def test_darcy_flow_out_of_the_square_is_what_the_source_puts_in():
    X, y = make_darcy(2, 12, random_state=0)
    for a, u in zip(X, y, strict=True):
        flux = 2 * a * u
        assert sum(flux[e].sum() for e in (0, -1, np.s_[:, 0], np.s_[:, -1])) == pytest.approx(1.0)


def test_darcy_commutes_with_the_symmetries_of_the_square():
    permeability = make_darcy(1, 16, random_state=0)[0][0]
    solve = partial(solve_darcy, source=np.ones((16, 16)))
    solution = solve(permeability)
    np.testing.assert_allclose(solve(permeability[::-1]), solution[::-1], rtol=1e-11)
    np.testing.assert_allclose(solve(permeability.T), solution.T, rtol=1e-11)
    np.testing.assert_allclose(solve(2 * permeability), solution / 2, rtol=1e-11)


def test_darcy_by_multigrid_equals_the_factorisation():
    pytest.importorskip("pyamg")
    _, direct = make_darcy(2, 40, random_state=0)
    _, multigrid = make_darcy(2, 40, solver="multigrid", random_state=0)
    np.testing.assert_allclose(multigrid, direct, rtol=1e-9)


def test_darcy_by_multigrid_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyamg", None)
    with pytest.raises(ImportError, match="pip install pyamg"):
        make_darcy(1, 4, solver="multigrid")


def test_darcy_matrix_is_symmetric():
    matrix = darcy_matrix(np.random.RandomState(0).uniform(1, 10, (5, 5))).toarray()
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_refinement_solves_on_smaller_cells_and_comes_closer():
    X, coarse = make_darcy(3, 15, random_state=0)
    X_refined, refined = make_darcy(3, 15, refinement=3, random_state=0)
    fine = make_darcy(3, 45, random_state=0)[1]
    np.testing.assert_array_equal(X_refined, X)
    np.testing.assert_array_equal(refined, fine[:, 1::3, 1::3])
    finest = make_darcy(3, 15, refinement=9, random_state=0)[1]
    assert error(refined, finest) < 0.5 * error(coarse, finest)


def test_contrast_sets_the_two_permeabilities():
    X, _ = make_darcy(2, 16, contrast=(0.5, 100), random_state=0)
    assert set(np.unique(X)) == {0.5, 100.0}
    field_sign = make_darcy(2, 16, random_state=0)[0] == 12
    np.testing.assert_array_equal(field_sign, X == 100)


# -- Navier-Stokes -----------------------------------------------------------------------------


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


# -- what all equations share ------------------------------------------------------------------


def periodic_eigenvalues(dimension, tau, power, n_modes):
    """Of (-Δ + tau² I)^-power without the constant mode, over all frequencies."""
    k = np.meshgrid(*[np.arange(-n_modes, n_modes + 1)] * dimension, indexing="ij")
    squared = 4 * np.pi**2 * sum(axis**2 for axis in k)
    return np.where(squared > 0, (squared + tau**2) ** -power, 0.0)


@pytest.mark.slow
def test_initial_fields_have_the_variance_of_the_formulas_of_li_et_al():
    X, _ = make_burgers(2000, 8, final_time=1e-6, random_state=0)
    variance = 625 * periodic_eigenvalues(1, 5.0, 2.0, 340).sum()
    assert np.mean(X**2) == pytest.approx(variance, rel=0.08)
    X, _ = make_navier_stokes(300, 8, final_time=1e-6, random_state=0)
    variance = 7**1.5 * periodic_eigenvalues(2, 7.0, 2.5, 32).sum()
    assert np.mean(X**2) == pytest.approx(variance, rel=0.1)


def test_permeability_follows_the_sign_of_the_field_of_li_et_al():
    field = neumann_field(np.random.RandomState(0), 4, 128, scale=1.0, tau=3.0, power=2.0)
    values = evaluate_cosine(field, (np.arange(32) + 0.5) / 32)
    X, _ = make_darcy(4, random_state=0)
    np.testing.assert_array_equal(X, np.where(values < 0, 3.0, 12.0))


@equations
def test_a_seed_reproduces_and_another_does_not(make):
    X, y = make(random_state=0)
    again = make(random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(again[0], X)
    np.testing.assert_array_equal(again[1], y)
    assert not np.array_equal(make(random_state=1)[0], X)
    assert not np.array_equal(make()[0], make()[0])
    assert X.dtype == y.dtype == np.float64 and np.isfinite(X).all() and np.isfinite(y).all()


@pytest.mark.parametrize("make", [EQUATIONS["burgers"], EQUATIONS["navier_stokes"]])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_seed_names_the_same_functions_at_any_resolution(make, factor):
    simulate, (n_samples, resolution) = make.func, make.args
    fine = simulate(n_samples, factor * resolution, random_state=0, **make.keywords)
    for coarse_field, fine_field in zip(make(random_state=0), fine, strict=True):
        every = (slice(None), *[slice(None, None, factor)] * (fine_field.ndim - 1))
        np.testing.assert_allclose(coarse_field, fine_field[every], atol=1e-13)


def test_a_seed_names_the_same_permeabilities_at_any_resolution():
    X, y = make_darcy(4, 21, random_state=0)
    X_fine, y_fine = make_darcy(4, 63, random_state=0)
    np.testing.assert_array_equal(X, X_fine[:, 1::3, 1::3])
    assert error(y, y_fine[:, 1::3, 1::3]) < 0.05


@pytest.mark.parametrize(
    ("module", "size", "value"),
    [(burgers, "_BATCH_POINTS", 1), (darcy, "_BATCH_SIZE", 2), (navier_stokes, "_BATCH_POINTS", 1)],
    ids=EQUATIONS,
)
def test_results_do_not_depend_on_batches(module, size, value, monkeypatch):
    make = EQUATIONS[module.__name__.rpartition(".")[-1]]
    whole = make(random_state=0)
    monkeypatch.setattr(module, size, value)
    for one, other in zip(make(random_state=0), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@equations
def test_fewer_samples_are_the_first_of_more(make):
    _, resolution = make.args
    fewer = make.func(2, resolution, random_state=0, **make.keywords)
    for few, many in zip(fewer, make(random_state=0), strict=True):
        np.testing.assert_allclose(few, many[:2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make", [*EQUATIONS.values(), *DESIGNS.values()], ids=[*EQUATIONS, *DESIGNS]
)
def test_global_random_state_is_left_alone_and_nothing_is_printed(make, capfd):
    before = str(np.random.get_state())
    for random_state in 0, np.random.RandomState(0), None:
        make(random_state=random_state)
    assert str(np.random.get_state()) == before
    assert capfd.readouterr() == ("", "")


@equations
def test_verbose_shows_a_bar(make, capfd):
    make(random_state=0, verbose=1)
    assert re.search(r"3/3", capfd.readouterr().err)


# -- cache -------------------------------------------------------------------------------------


def no_simulation(*args, **kwargs):
    raise AssertionError("simulated although the result is cached")


@equations
def test_cache_gives_back_what_was_simulated(make, tmp_path, monkeypatch):
    expected = make(random_state=0)
    first = make(random_state=0, cache_dir=tmp_path / "new" / "folder")
    monkeypatch.setattr(burgers, "solve_burgers", no_simulation)
    monkeypatch.setattr(darcy, "solve_darcy", no_simulation)
    monkeypatch.setattr(navier_stokes, "solve_navier_stokes", no_simulation)
    second = make(random_state=np.int64(0), cache_dir=str(tmp_path / "new" / "folder"))
    for arrays in zip(expected, first, second, strict=True):
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], arrays[2])
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1


def test_cache_tells_parameters_and_seeds_apart(tmp_path):
    make = partial(make_darcy, 1, cache_dir=tmp_path)
    variants = [
        make(6, random_state=0),
        make(6, random_state=1),
        make(7, random_state=0),
        make(6, contrast=(1, 2), random_state=0),
        make(6, refinement=3, random_state=0),
    ]
    assert len(list(tmp_path.iterdir())) == len(variants)
    make(6, contrast=np.array([3.0, 12.0]), random_state=0)  # the first one's, written otherwise
    assert len(list(tmp_path.iterdir())) == len(variants)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_value(path):
    """A sound archive with another content."""
    with np.load(path) as archive:
        content = dict(archive)
    content["array_1"][0, 0] += 1e-12
    np.savez(path, **content)


def forget_the_checksum(path):
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files if name != "sha256"}
    np.savez(path, **content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, change_a_value, forget_the_checksum])
def test_damaged_cache_is_computed_again_with_a_warning(damage, tmp_path):
    make = partial(make_burgers, 2, 16, final_time=0.01, random_state=0, cache_dir=tmp_path)
    expected = make()
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=r"burgers-n_samples=2.* is damaged .*computed again"):
        repaired = make()
    np.testing.assert_array_equal(repaired, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(make(), expected)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache.np, "savez", no_simulation)
    with pytest.raises(AssertionError):
        make_darcy(1, 4, random_state=0, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_cache_needs_an_integer_seed(random_state, tmp_path):
    with pytest.raises(ValueError, match="`cache_dir` needs an integer `random_state`, got "):
        make_burgers(1, 8, random_state=random_state, cache_dir=tmp_path)


# -- demand design -----------------------------------------------------------------------------


def season(t):
    return 2 * ((t - 5) ** 4 / 600 + np.exp(-4 * (t - 5) ** 2) + t / 10 - 2)


def shock_and_noise(data, noise_scale, strength=1.0):
    """v and e, recovered from what the design gives."""
    shock = data.X[:, 0] - 25 - (strength * data.Z[:, 0] + 3) * season(data.C[:, 0])
    return shock, (data.y - data.structural(data.X, data.C)) / noise_scale


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("noise_scale", [1.0, 158.0])
def test_noise_is_correlated_with_the_prices_shock_as_asked(rho, noise_scale):
    data = make_demand_design(40_000, rho, noise_scale, random_state=0)
    shock, noise = shock_and_noise(data, noise_scale)
    assert np.corrcoef(shock, noise)[0, 1] == pytest.approx(rho, abs=0.02)
    for standard in shock, noise:
        assert standard.mean() == pytest.approx(0, abs=0.02)
        assert standard.std() == pytest.approx(1, abs=0.02)


def test_noise_has_mean_zero_given_the_instrument():
    data = make_demand_design(40_000, 0.9, random_state=0)
    _, noise = shock_and_noise(data, 158.0)
    order = np.argsort(data.Z[:, 0])
    by_cost = noise[order].reshape(20, -1).mean(1)  # standard error 1 / sqrt(2000)
    assert abs(by_cost).max() < 4 / np.sqrt(2000)
    by_price = noise[np.argsort(data.X[:, 0])].reshape(20, -1).mean(1)
    assert abs(by_price).max() > 10 / np.sqrt(2000)


def test_moments_of_the_demand_design():
    data = make_demand_design(100_000, noise_scale=0.0, random_state=0)
    assert data.y.std() == pytest.approx(158, rel=0.02)
    assert data.Z.mean() == pytest.approx(0, abs=0.02) and data.Z.std() == pytest.approx(1, 0.02)
    time, customer = data.C.T
    assert time.min() >= 0 and time.max() <= 10 and time.mean() == pytest.approx(5, rel=0.01)
    counts = np.unique(customer, return_counts=True)
    np.testing.assert_array_equal(counts[0], np.arange(1, 8))
    np.testing.assert_allclose(counts[1] / 100_000, 1 / 7, rtol=0.03)
    np.testing.assert_allclose(data.y, data.structural(data.X, data.C))


def test_structural_function_by_hand():
    structural = make_demand_design(1).structural
    # t = 5: h = 2 (0 + 1 + 0.5 - 2) = -1. t = 10: h = 2 (625/600 + e^-100 + 1 - 2) = 1/12.
    sales = structural(np.array([[20.0], [14.0]]), np.array([[5.0, 1.0], [10.0, 6.0]]))
    np.testing.assert_allclose(sales, [100 - 30 - 40, 100 + 24 * 6 / 12 - 28])


@pytest.mark.parametrize("strength", [0.0, 0.3, -2.0])
def test_instrument_strength_scales_the_costs_effect(strength):
    data = make_demand_design(2000, instrument_strength=strength, random_state=0)
    shock, _ = shock_and_noise(data, 158.0, strength)
    assert shock.std() == pytest.approx(1, rel=0.05)
    assert abs(np.corrcoef(shock, data.Z[:, 0])[0, 1]) < 0.06


def test_grid_of_the_demand_design():
    one, other = (make_demand_design(10, random_state=seed).grid for seed in (0, 1))
    assert one.X.shape == (2800, 1) and one.C.shape == (2800, 2) and one.y.shape == (2800,)
    np.testing.assert_array_equal(one.C, other.C)
    np.testing.assert_allclose(one.y, make_demand_design(1).structural(one.X, one.C))
    np.testing.assert_allclose(np.unique(one.X), np.linspace(10, 25, 20))
    np.testing.assert_allclose(np.unique(one.C[:, 0]), np.linspace(0, 10, 20))
    assert len(np.unique(np.column_stack([one.X, one.C]), axis=0)) == 2800


def test_images_stand_in_for_the_customer_type_and_nothing_else_changes():
    plain = make_demand_design(300, random_state=0)
    images = make_demand_design(300, images=True, random_state=0)
    assert images.C.shape == (300, 65) and images.grid.C.shape == (2800, 65)
    for key in "X", "y", "Z":
        np.testing.assert_array_equal(images[key], plain[key])
    np.testing.assert_array_equal(images.C[:, 0], plain.C[:, 0])
    np.testing.assert_allclose(
        images.structural(images.X, images.C), plain.structural(plain.X, plain.C)
    )
    np.testing.assert_allclose(images.structural(images.grid.X, images.grid.C), plain.grid.y)


def test_images_are_digits_of_the_type_and_the_grid_has_others():
    plain = make_demand_design(2000, random_state=0)
    data = make_demand_design(2000, images=True, random_state=0)
    digits = load_digits()
    pairs = zip(digits.data / 16, digits.target, strict=True)
    label = {image.tobytes(): target for image, target in pairs}
    sample = [row.tobytes() for row in np.ascontiguousarray(data.C[:, 1:])]
    grid = [row.tobytes() for row in np.ascontiguousarray(data.grid.C[:, 1:])]
    assert [label[image] for image in sample] == plain.C[:, 1].tolist()
    assert [label[image] for image in grid] == plain.grid.C[:, 1].tolist()
    assert not set(sample) & set(grid)


# -- sprite design -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ellipse", "square"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize(("x", "y"), [(0.0, 1.0), (0.5, 0.25)])
def test_sprites_have_the_area_and_centre_asked_for(shape, scale, x, y):
    for rotation in 0.0, 0.7, 4.0:
        image = render(64, shape, scale, rotation, x, y)
        centres = (np.arange(64) + 0.5) / 64
        assert image.sum() == pytest.approx(scale**2 * 256, rel=0.03)
        assert image.sum(0) @ centres / image.sum() == pytest.approx(0.22 + 0.56 * x, abs=0.003)
        assert image.sum(1) @ centres / image.sum() == pytest.approx(0.22 + 0.56 * y, abs=0.003)
        assert image.min() == 0 and image.max() == 1
        assert not image[[0, -1]].any() and not image[:, [0, -1]].any()


def test_sprites_turn_with_their_rotation():
    turn = partial(render, 64, scale=1.0, x=0.5, y=0.5)
    quarter = turn("ellipse", rotation=np.pi / 2)
    np.testing.assert_allclose(np.rot90(turn("ellipse", rotation=0.0)), quarter, atol=1e-12)
    np.testing.assert_allclose(turn("ellipse", rotation=np.pi / 2 + np.pi), quarter, atol=1e-12)
    np.testing.assert_allclose(
        turn("square", rotation=0.3), turn("square", rotation=0.3 + np.pi / 2)
    )
    assert error(turn("ellipse", rotation=0.0), quarter) > 0.5


def test_outcome_of_the_sprite_design():
    data = make_sprite_design(1500, 32, random_state=0)
    rest = data.y - data.structural(data.X) - 32 * (data.confounder - 0.5)
    assert rest.mean() == pytest.approx(0, abs=0.05) and rest.std() == pytest.approx(0.5, rel=0.06)
    assert 3.5 < data.structural(data.X).std() < 5.5
    np.testing.assert_array_equal(data.images.reshape(1500, -1), data.X)
    for instrument in data.Z.T:
        assert abs(np.corrcoef(instrument, data.confounder)[0, 1]) < 0.08
        assert abs(np.corrcoef(instrument, rest)[0, 1]) < 0.08


def test_treatment_shows_the_confounder_and_the_instruments_set_it():
    data = make_sprite_design(200, 32, shape="square", random_state=0)
    bright = np.where(data.images > 0.5, 1.0, 0.0)
    height = bright.sum(2) @ np.arange(32) / bright.sum((1, 2))
    assert np.corrcoef(height, data.confounder)[0, 1] > 0.99
    assert np.corrcoef(data.structural(data.X), data.Z[:, 0])[0, 1] > 0.9  # scale sets the area


@pytest.mark.parametrize("size", [16, 64])
def test_quadratic_form_by_hand(size):
    structural = make_sprite_design(1, size, random_state=0).structural
    weights = np.random.RandomState(0).uniform(size=(10, size**2)) * (64 / size) ** 2
    image = render(size, "square", 0.8, 0.3, 0.5, 0.5).ravel()
    by_hand = (sum((row @ image) ** 2 for row in weights) / 10 - 5000) / 1000
    assert structural(image[None])[0] == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(((0.5 * 256 * 0.64) ** 2 - 5000) / 1000, abs=0.6)


def test_grid_of_the_sprite_design_is_noiseless_and_the_same_for_every_seed():
    one, other = (make_sprite_design(2, 16, random_state=seed).grid for seed in (0, 1))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.X.shape == (588, 256) and one.X.min() == 0 and one.X.max() == 1
    np.testing.assert_allclose(one.y, make_sprite_design(1, 16).structural(one.X))


@designs
def test_designs_reproduce_and_survive_pickling(make):
    data, again, other = make(random_state=0), make(random_state=0), make(random_state=1)
    loaded = pickle.loads(pickle.dumps(data))
    for key in "X", "y", "Z":
        np.testing.assert_array_equal(data[key], again[key])
        assert data[key].dtype == np.float64 and not np.array_equal(data[key], other[key])
    np.testing.assert_array_equal(
        loaded.structural(loaded.grid.X, loaded.grid.C), data.structural(data.grid.X, data.grid.C)
    )


# -- bad parameters ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "parameters", "message"),
    [
        (make_burgers, {"n_samples": 0}, "'n_samples' parameter of make_burgers must be an int"),
        (make_burgers, {"viscosity": 0.0}, "'viscosity' parameter of make_burgers must be a float"),
        (make_burgers, {"final_time": -1.0}, "'final_time' parameter"),
        (make_burgers, {"resolution": 2.5}, "'resolution' parameter"),
        (make_burgers, {"random_state": "one"}, "'random_state' parameter"),
        (make_burgers, {"cache_dir": 3}, "'cache_dir' parameter"),
        (make_darcy, {"contrast": (3, 12, 4)}, r"`contrast` must be two positive .* \(3, 12, 4\)"),
        (make_darcy, {"contrast": (0, 12)}, r"`contrast` must be two positive numbers, got \(0,"),
        (make_darcy, {"contrast": ("a", "b")}, "`contrast` must be two positive numbers"),
        (make_darcy, {"refinement": 2}, "`refinement` must be odd, got 2"),
        (make_navier_stokes, {"viscosity": 1e-9}, "'viscosity' parameter of make_navier_stokes"),
        (make_navier_stokes, {"amplitude": 100}, "'amplitude' parameter"),
        (make_demand_design, {"rho": 1.5}, "'rho' parameter of make_demand_design"),
        (make_demand_design, {"noise_scale": -1}, "'noise_scale' parameter"),
        (make_demand_design, {"images": "yes"}, "'images' parameter"),
        (make_sprite_design, {"shape": "heart"}, "'shape' parameter of make_sprite_design"),
        (make_sprite_design, {"size": 4}, "'size' parameter"),
    ],
)
def test_bad_parameters_are_named(make, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters)
