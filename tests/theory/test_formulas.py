"""The formulas of docs/theory.md hold, and where the page says that they end, they do."""

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

import checks
import formulas
from checks import N, numbers, problem, solved
from sklearn_cfll import CFLLNet


@pytest.mark.parametrize("name", checks.CHECKS)
def test_the_formula_holds(name):
    checks.CHECKS[name](formulas)


def test_nothing_is_learnt_where_rows_are_no_more_than_features():
    features, targets, _ = problem(n=6, d=6)
    weights, residual, _ = solved(features, targets, 0.0)
    assert np.abs(formulas.feature_slope(residual, weights)).max() < 1e-10


def test_outputs_that_the_features_do_not_explain_stay():
    """A start with W* = 0 is a stationary point: the rate's bound is zero there."""
    features, targets, kernel = problem(1)
    centered = features - features.mean(0)
    targets = targets - centered @ np.linalg.lstsq(centered, targets - targets.mean(0))[0]
    weights, residual, _ = solved(features, targets, 0.0)
    assert np.abs(formulas.flow(kernel, residual, weights)).max() < 1e-10
    assert abs(formulas.least_rate(features, targets, kernel)) < 1e-10


def test_with_a_ridge_the_loss_falls_like_one_over_the_root_of_time():
    start, targets, kernel = problem(1)

    def rate(log_time, state):
        weights, residual, _ = solved(state.reshape(start.shape), targets, 0.8)
        return np.exp(log_time) * (kernel @ residual @ weights.T).ravel()

    times = np.log([1e7, 1e8])
    found = solve_ivp(
        rate, (-7, times[1]), start.ravel(), "LSODA", rtol=1e-8, atol=1e-10, t_eval=times
    )
    losses = []
    for features in found.y.T.reshape(-1, *start.shape):
        _, residual, _ = solved(features, targets, 0.8)
        losses.append(formulas.least_loss(targets, residual))
    assert np.log(losses[1] / losses[0]) / np.log(10) == pytest.approx(-0.5, abs=0.02)


def test_with_a_ridge_the_loss_stays_where_outputs_outnumber_features():
    """One feature, two outputs, K = I: half the square of the second singular value is left."""
    start, targets, _ = problem(2, d=1)

    def rate(log_time, state):
        weights, residual, _ = solved(state[:, None], targets, 0.8)
        return np.exp(log_time) * (residual @ weights.T).ravel()

    found = solve_ivp(rate, (-7, np.log(1e8)), start.ravel(), "LSODA", rtol=1e-8, atol=1e-10)
    _, residual, _ = solved(found.y[:, -1:], targets, 0.8)
    floor = 0.5 * np.linalg.svd(targets - targets.mean(0))[1][1] ** 2
    loss = formulas.least_loss(targets, residual)
    assert floor < loss < floor * 1.001


def test_a_full_batch_step_of_the_net_is_the_step_of_the_page():
    """The product's loss is a mean over rows and outputs, the page's half a sum: η = 2 lr/(n k)."""
    X, k, lr = numbers(N, 4), 2, 0.3
    targets = problem(k)[1]
    backbone = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).double()
    net = CFLLNet(
        copy.deepcopy(backbone),
        optimizer=torch.optim.SGD,
        lr=lr,
        batch_size=-1,
        last_layer__ridge=0.0,
        max_epochs=1,
        verbose=0,
    ).fit(X, targets)
    features = backbone(torch.from_numpy(X))
    weights, residual, _ = solved(features.detach().numpy(), targets, 0.0)
    features.backward(torch.from_numpy(formulas.feature_slope(residual, weights)))
    for ours, theirs in zip(net.module_.backbone.parameters(), backbone.parameters(), strict=True):
        moved = theirs.detach() - 2 * lr / (N * k) * theirs.grad
        torch.testing.assert_close(ours.detach(), moved, rtol=1e-9, atol=1e-11)
