"""Darcy flow: manufactured and exact solutions, orders of accuracy, symmetries."""

import sys
from functools import partial

import numpy as np
import pytest

from simulated_fields import error, orders
from sklearn_cfll.datasets import make_darcy
from sklearn_cfll.datasets.darcy import darcy_matrix, solve_darcy


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
