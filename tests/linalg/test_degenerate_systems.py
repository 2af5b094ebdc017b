"""Dead, constant and redundant features; no ridge; rows that are not finite."""

from functools import partial

import numpy as np
import pytest
import torch

from linalg_references import (
    EXACT,
    TALL,
    exact_conjugate_gradients,
    fits,
    gap,
    intercepts,
    problem,
    solvers,
    weights,
)
from sklearn_cfll import linalg


@fits
@weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 1e3, 0.1])
@pytest.mark.parametrize("ridge", [1e-6, 1.0])
def test_dead_and_constant_features_get_small_weights(fit, weighted, dtype, value, ridge):
    features, targets, _, w = problem(TALL, weighted=weighted)
    features[:, 2] = value
    w = None if w is None else w.to(dtype)
    weight, bias = fit(features.to(dtype), targets.to(dtype), w, ridge=ridge)
    others = [0, 1, 3, 4, 5]
    expected, _ = fit(features[:, others], targets, w if w is None else w.double(), ridge=ridge)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert float(weight[:, 2].abs().max()) < 1e-2 * float(weight.abs().max())
    # The dead column lowers the mean power by a sixth: the others hardly change.
    assert gap(weight[:, others].double(), expected) < 0.2


@fits
@weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e3])
def test_only_dead_features_leave_the_mean_of_the_targets(fit, weighted, dtype, value):
    _, targets, _, w = problem(TALL, weighted=weighted)
    targets, w = targets.to(dtype), None if w is None else w.to(dtype)
    features = torch.full((40, 6), value, dtype=dtype)
    weight, bias = fit(features, targets, w)
    expected = linalg.center_rows(features, targets, w).target_mean
    assert gap(features @ weight.T + bias, expected.expand(40, 3)) < 1e-3
    assert float(weight.abs().max()) < 1.0


@solvers
@weights
def test_large_common_mean_costs_float32_few_digits(solver, weighted, monkeypatch):
    exact_conjugate_gradients(monkeypatch, TALL[1])
    features, targets, previous, w = problem(TALL, weighted=weighted)
    update = partial(linalg.proximal_step, ridge=0.3, solver=solver)
    expected, *_ = update(features, targets, previous, sample_weight=w)
    w = None if w is None else w.float()
    weight, *_ = update(
        features.float() + 100.0, targets.float(), previous.float(), sample_weight=w
    )
    assert gap(weight.double(), expected) < 5e-3  # eps · mean² of the power: 1e-3


def test_weightless_batch_leaves_finite_weights():
    features, targets, previous, _ = problem(TALL)
    weight, bias, _ = linalg.proximal_step(
        features, targets, previous, ridge=1.0, sample_weight=torch.zeros(40).double(), total=40.0
    )
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    assert gap(weight, previous) < EXACT


def rank_deficient(n_rows, n_features, rank):
    generator = torch.Generator().manual_seed(2)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    features = draw(n_rows, rank) @ draw(rank, n_features) + 1.0
    return features, draw(n_rows, 2), draw(2, n_features)


@intercepts
@pytest.mark.parametrize("solver", ["auto", "cholesky", "primal", "dual"])
@pytest.mark.parametrize("seed", range(4))
def test_update_without_ridge_shares_weight_among_redundant_columns(fit_intercept, solver, seed):
    # Whether rounding leaves the last pivot of a singular Gram matrix positive is chance: a
    # Cholesky factorisation that happens to succeed would give huge cancelling weights.
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    features = torch.cat([features, features[:, :1] + features[:, 1:2]], 1)
    targets = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    weight, *_ = linalg.proximal_step(
        features,
        targets,
        torch.zeros(2, 5).double(),
        ridge=0.0,
        fit_intercept=fit_intercept,
        solver=solver,
    )
    rows = linalg.center_rows(features, targets, center=fit_intercept)
    expected = np.linalg.lstsq(rows.features.numpy(), rows.targets.numpy(), rcond=1e-10)[0]
    assert gap(weight, torch.from_numpy(expected).T) < 1e-8


@intercepts
@pytest.mark.parametrize("solver", ["auto", "cholesky", "primal", "dual"])
@pytest.mark.parametrize("decay", [0.0, 1.0])
@pytest.mark.parametrize("n_rows", [30, 5], ids=["tall", "wide"])
def test_update_without_ridge_is_the_minimum_norm_correction(fit_intercept, solver, decay, n_rows):
    features, targets, previous = rank_deficient(n_rows, 8, 3)
    weight, *_ = linalg.proximal_step(
        features,
        targets,
        previous,
        ridge=0.0,
        decay=decay,
        fit_intercept=fit_intercept,
        solver=solver,
    )
    rows = linalg.center_rows(features, targets, center=fit_intercept)
    prior = decay * previous
    correction = np.linalg.lstsq(
        rows.features.numpy(), (rows.targets - rows.features @ prior.T).numpy(), rcond=1e-10
    )[0]
    assert gap(weight, prior + torch.from_numpy(correction).T) < 1e-8


@intercepts
@pytest.mark.parametrize("n_rows", [30, 5], ids=["tall", "wide"])
def test_moments_without_ridge_give_the_minimum_norm_solution(fit_intercept, n_rows):
    features, targets, _ = rank_deficient(n_rows, 8, 3)
    weight, _ = linalg.solve_moments(linalg.moments(features, targets, center=fit_intercept), 0.0)
    rows = linalg.center_rows(features, targets, center=fit_intercept)
    expected = np.linalg.lstsq(rows.features.numpy(), rows.targets.numpy(), rcond=1e-10)[0]
    assert gap(weight, torch.from_numpy(expected).T) < 1e-8


@fits
@pytest.mark.parametrize("ridge", [1e-12, 1e-9, 1e-7])
@pytest.mark.parametrize("n_rows", [200, 20], ids=["tall", "wide"])
def test_rank_deficient_float32_stays_close_to_float64(fit, ridge, n_rows):
    features, targets, _ = rank_deficient(n_rows, 40, 5)
    weight, bias = fit(features.float(), targets.float(), ridge=ridge)
    expected_weight, expected_bias = fit(features, targets, ridge=ridge)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all()
    prediction = features @ weight.double().T + bias.double()
    assert gap(prediction, features @ expected_weight.T + expected_bias) < 1e-2
    # Fresh rows of the same subspace too: nothing blew up outside the training rows.
    fresh = features[:10].flip(0) * 3.0 - features[10:20]
    assert gap(fresh @ weight.double().T, fresh @ expected_weight.T) < 5e-2


def test_failed_factorisation_falls_back_to_an_eigendecomposition():
    # Negative in its last digits, as rounding leaves a singular Gram matrix: no Cholesky.
    matrix = torch.diag(torch.tensor([4.0, 1.0, -1e-12])).double()
    assert int(torch.linalg.cholesky_ex(matrix)[1]) > 0
    rows = torch.tensor([[8.0, 3.0, 1e-12]]).double()
    solved = linalg.solve_symmetric(matrix, 1e-18, rows)
    assert gap(solved, torch.tensor([[2.0, 3.0, 0.0]]).double()) < EXACT


def test_infinite_rows_give_nan_instead_of_an_obscure_error():
    features, targets, previous, _ = problem(TALL)
    features[0, 0] = torch.inf
    weight, *_ = linalg.proximal_step(features, targets, previous, ridge=1.0)
    assert torch.isnan(weight).any()


def test_automatic_solver_iterates_only_where_it_pays():
    assert linalg.choose_solver(256, 256, 1, 1.0) == "cg"
    assert linalg.choose_solver(256, 256, 1, 1e-4) == "primal"  # would not converge
    assert linalg.choose_solver(256, 256, 100, 1.0) == "primal"  # many columns share a factor
    assert linalg.choose_solver(32, 256, 1, 1.0) == "dual"


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray], ids=["tensor", "array"])
def test_a_column_is_constant_up_to_rounding_of_its_mean(kind):
    eps = torch.finfo(torch.float64).eps
    deviation = kind(np.array([0.0, 0.0, 1e-13, 1e-11, 1e-50, 1.0]))
    mean = kind(np.array([0.0, -3.0, 1e3, -1e3, 0.0, 1e3]))
    expected = [True, True, True, False, False, False]
    assert linalg.is_constant(deviation, mean, eps).tolist() == expected
    expected[4] = True  # float32 would round it to zero
    tiny = torch.finfo(torch.float32).tiny
    assert linalg.is_constant(deviation, mean, eps, tiny).tolist() == expected
