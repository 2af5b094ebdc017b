"""What is checked of each formula; a check is given the formulas, right ones or wrong ones.

The flow in feature space is exact at any width for ``φ(x) = Vᵀh(x)`` with fixed h: there K = HHᵀ.
"""

import functools

import numpy as np
import torch
from scipy.integrate import solve_ivp

from sklearn_cfll import linalg

N, D, HIDDEN = 14, 3, 40


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def problem(k=2, seed=0, n=N, d=D):
    """Features with a mean, targets that they explain in part, and a kernel."""
    features = numbers(n, d, seed=seed) + 1.0
    targets = features @ numbers(d, k, seed=seed + 1) + 0.7 * numbers(n, k, seed=seed + 2) - 2.0
    hidden = numbers(n, HIDDEN, seed=seed + 3) + 0.5
    return features, targets, hidden @ hidden.T / HIDDEN


class OtherShapeError(Exception):
    """What a formula gives has not even the right shape: nothing was compared."""


def assert_close(actual, expected, tolerance=1e-10):
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        raise OtherShapeError(f"{actual.shape}, not {expected.shape}")
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def solved(features, targets, a):
    """Weights and residuals by least squares with a column of ones, not by the formulas."""
    n, d = features.shape
    design = np.block([[features, np.ones((n, 1))], [np.sqrt(a) * np.eye(d), np.zeros((d, 1))]])
    right = np.vstack([targets, np.zeros((d, targets.shape[1]))])
    solution = np.linalg.lstsq(design, right)[0]
    return solution[:-1], targets - features @ solution[:-1] - solution[-1], solution[-1]


def loss_through_the_solve(features, targets, penalty):
    """J*(Φ) in torch, with everything that depends on Φ in the graph; ``penalty(Φ̃)`` gives a."""
    features, targets = features - features.mean(0), targets - targets.mean(0)
    a = penalty(features)
    gram = features.T @ features + a * torch.eye(features.shape[1], dtype=features.dtype)
    weights = torch.linalg.solve(gram, features.T @ targets)
    error = (targets - features @ weights).square().sum()
    return 0.5 * error + 0.5 * a * weights.square().sum()


def slope_through_the_solve(features, targets, penalty):
    features = torch.tensor(features, requires_grad=True)
    loss = loss_through_the_solve(features, torch.tensor(targets), penalty)
    return torch.autograd.grad(loss, features)[0].numpy()


@functools.cache
def trajectory(k, a, until, seed=0):
    """Times and features of the flow, solved here; and the integral of W Wᵀ along it."""
    start, targets, kernel = problem(k, seed)

    def rate(_, state):
        weights, residual, _ = solved(state[: N * D].reshape(N, D), targets, a)
        return np.concatenate(
            [(kernel @ residual @ weights.T).ravel(), (weights @ weights.T).ravel()]
        )

    first = np.concatenate([start.ravel(), np.zeros(D * D)])
    found = solve_ivp(rate, (0, until), first, "LSODA", rtol=1e-11, atol=1e-13, dense_output=True)
    times = np.linspace(0, until, 30)
    states = found.sol(times).T
    return times, states[:, : N * D].reshape(-1, N, D), states[:, N * D :].reshape(-1, D, D)


# -- checks ----------------------------------------------------------------------------------------


def check_weights_and_intercept(f):
    features, targets, _ = problem()
    for a in (0.0, 0.8):
        weights, _, intercept = solved(features, targets, a)
        assert_close(f.best_weights(features, targets, a), weights)
        assert_close(f.best_intercept(features, targets, weights), intercept)


def check_residual_and_loss_with_ridge(f):
    features, targets, _ = problem()
    weights, residual, _ = solved(features, targets, 0.8)
    assert_close(f.ridge_residual(features, targets, 0.8), residual)
    loss = 0.5 * np.sum(residual**2) + 0.5 * 0.8 * np.sum(weights**2)
    assert_close(f.least_loss(targets, residual), loss)


def check_envelope(f):
    features, targets, _ = problem()
    for a in (0.0, 0.8):
        weights, residual, _ = solved(features, targets, a)
        expected = slope_through_the_solve(features, targets, lambda _, a=a: a)
        assert_close(f.feature_slope(residual, weights), expected)


def check_flow(f):
    _, targets, _ = problem()
    hidden, second = torch.tensor(numbers(N, HIDDEN)), torch.tensor(numbers(HIDDEN, D, seed=1))
    second.requires_grad_()
    loss = loss_through_the_solve(hidden @ second, torch.tensor(targets), lambda _: 0.8)
    (gradient,) = torch.autograd.grad(loss, second)
    hidden = hidden.numpy()
    weights, residual, _ = solved(hidden @ second.detach().numpy(), targets, 0.8)
    moved = f.flow(hidden @ hidden.T, residual, weights)
    assert_close(moved, -hidden @ gradient.numpy())


def check_descent(f):
    features, targets, kernel = problem()
    for a in (0.0, 0.8):
        weights, residual, _ = solved(features, targets, a)
        slope = slope_through_the_solve(features, targets, lambda _, a=a: a)
        falls = np.sum(slope * (kernel @ residual @ weights.T))
        assert_close(f.descent(kernel, residual, weights), falls)


def check_all_layers_flow(f):
    hidden, second = numbers(N, HIDDEN), numbers(HIDDEN, D, seed=1)
    weights, targets = numbers(D, 2, seed=2), problem()[1]

    def residual(second, weights):
        missed = targets - hidden @ second @ weights
        return missed - missed.mean(0)

    now = residual(second, weights)
    slopes = hidden.T @ now @ weights.T, (hidden @ second).T @ now  # minus the gradients of ½‖R‖²
    moved = [residual(second + t * slopes[0], weights + t * slopes[1]) for t in (1e-7, -1e-7)]
    rate = f.all_layers_flow(hidden @ second, now, weights, hidden @ hidden.T)
    assert_close(rate, (moved[0] - moved[1]) / 2e-7, 1e-5)


def check_conservation(f):
    _, path, _ = trajectory(2, 0.0, 20.0)
    *_, kernel = problem()
    assert np.abs(path[-1] - path[0]).max() > 0.3  # the features have moved
    start = f.invariant(path[0], kernel)
    inverse = np.linalg.inv(kernel)
    for features in path:
        assert_close(f.invariant(features, kernel), start, 1e-6)
        assert_close(features.T @ inverse @ features, path[0].T @ inverse @ path[0], 1e-6)
    # another way to write the same
    middle = np.eye(N) - np.outer(inverse.sum(1), np.ones(N)) / inverse.sum()
    assert_close(start, path[0].T @ middle @ inverse @ path[0], 1e-8)


def check_growth(f):
    times, path, squares = trajectory(2, 0.8, 20.0)
    *_, kernel = problem()
    start = f.invariant(path[0], kernel)
    root = np.linalg.cholesky(squares[-1] / times[-1])  # W Wᵀ averaged over time
    grown = times[-1] * f.growth(0.8, root)
    assert_close(f.invariant(path[-1], kernel) - start, grown, 1e-6)


def check_least_rate(f):
    start, targets, kernel = problem(1)
    rate = f.least_rate(start, targets, kernel)
    times, path, _ = trajectory(1, 0.0, 20.0)
    losses = np.array([np.sum(solved(each, targets, 0.0)[1] ** 2) / 2 for each in path])
    assert rate > 0 and (losses <= losses[0] * np.exp(-rate * times) * (1 + 1e-9)).all()


def check_least_rate_where_it_is_attained(f):
    """One explained direction along the top eigenvector of K̃, all of E along the lowest."""
    *_, kernel = problem()
    centering = np.eye(N) - 1 / N
    vectors = np.linalg.eigh(centering @ kernel @ centering)[1]
    low, second, top = vectors[:, [1]], vectors[:, [-2]], vectors[:, [-1]]
    rotation, _ = np.linalg.qr(numbers(2, 2))
    one = top * 2.0 + low * 0.5
    two = np.hstack([one, second * 3.0]) @ rotation  # λ_min(ỸᵀỸ) is that of the first
    for features, targets in (
        (top * 1.3, one),
        (np.hstack([top * 1.3, second * 0.2]) @ rotation, one),  # λ_max(M) is that of the first
        (np.hstack([top * 1.3, second * 0.2]) @ rotation, two),
    ):
        weights, residual, _ = solved(features + 1.0, targets - 2.0, 0.0)
        falls = np.sum((weights.T @ weights) * (residual.T @ kernel @ residual))
        expected = falls / (np.sum(residual**2) / 2)
        assert_close(f.least_rate(features + 1.0, targets - 2.0, kernel), expected)


def check_least_rate_of_several_outputs(f):
    features, targets, kernel = problem(2)
    targets = features @ numbers(D, 2, seed=1) + 0.05 * numbers(N, 2, seed=2)
    rate, step = f.least_rate(features, targets, kernel), 1e-4
    assert rate > 0
    for _ in range(3):
        weights, residual, _ = solved(features, targets, 0.0)
        falls = np.sum((weights.T @ weights) * (residual.T @ kernel @ residual))
        assert falls >= rate * np.sum(residual**2) / 2
        features = features + step * kernel @ residual @ weights.T


def check_late_rate(f):
    _, targets, kernel = problem(1)
    times, path, _ = trajectory(1, 0.0, 60.0)
    losses = np.array([np.sum(solved(each, targets, 0.0)[1] ** 2) / 2 for each in path])
    late = (losses < 1e-8) & (losses > 1e-16)
    measured = -np.polyfit(times[late], np.log(losses[late]), 1)[0]
    assert late.sum() > 5
    assert_close(f.late_rate(path[-1], targets, kernel), measured, 0.01)


def check_proximal_residual(f):
    features, targets, _ = problem()
    before = numbers(D, 2, seed=5)
    alpha, decay = 0.3, 0.6
    rows = [torch.tensor(part) for part in (features, targets, before.T)]
    after = linalg.primal_update(*rows, alpha, decay).numpy().T
    expected = targets - features @ after
    assert_close(f.proximal_residual(features, targets, before, alpha, decay), expected)


def check_solve_decrease(f):
    features, targets, _ = problem()
    before, alpha = numbers(D, 2, seed=5), 0.3
    rows = [torch.tensor(part) for part in (features, targets, before.T)]
    after = linalg.dual_update(*rows, alpha).numpy().T
    losses = [np.sum((targets - features @ each) ** 2) / N for each in (before, after)]
    assert_close(
        f.solve_decrease(features, targets - features @ before, alpha), -np.diff(losses)[0]
    )


def check_update_error(f):
    features, targets, _ = problem()
    before, center, alpha = numbers(D, 2, seed=5), numbers(D, 2, seed=6), 0.3
    rows = [torch.tensor(part) for part in (features, targets, before.T)]
    after = linalg.primal_update(*rows, alpha).numpy().T
    error = f.update_error(features, targets - features @ center, before - center, alpha)
    assert_close(error, after - center)


def check_bias_and_variance(f):
    n, alpha, batch_size, draws = 400, 0.7, 300, 3000
    features = numbers(n, D) * [0.6, 1.0, 1.8]
    targets = features @ numbers(D, 1, seed=1) + (1 + features[:, :1] ** 2)  # noise of its own
    second = features.T @ features / n
    best = np.linalg.solve(second, features.T @ targets / n)
    before = best + numbers(D, 1, seed=3)
    chosen = np.random.default_rng(0).integers(n, size=(draws, batch_size))
    rows, wanted = features[chosen], targets[chosen]
    systems = np.swapaxes(rows, -1, -2) @ rows / batch_size + alpha * np.eye(D)
    steps = np.linalg.solve(
        systems, np.swapaxes(rows, -1, -2) @ (wanted - rows @ before) / batch_size
    )
    after = before + steps
    assert_close(f.mean_error(second, before - best, alpha), after.mean(0) - best, 0.03)
    spread = after - after.mean(0)
    variance = np.mean(np.swapaxes(spread, -1, -2) @ second @ spread)
    mean = before + np.linalg.solve(
        second + alpha * np.eye(D), features.T @ (targets - features @ before) / n
    )
    predicted = f.update_variance(features, targets - features @ mean, alpha, batch_size)
    assert_close(predicted, variance, 0.05)


def check_first_order(f):
    alpha, rate, rows, targets = 0.3, 1e-4, torch.tensor(numbers(N, 4)), torch.tensor(problem(1)[1])
    before = torch.tensor(numbers(1, D, seed=5), requires_grad=True)
    backbone = torch.tensor(numbers(4, D, seed=6), requires_grad=True)

    def loss(weights, backbone):
        return (targets - torch.tanh(rows @ backbone) @ weights.T).square().mean()

    with torch.no_grad():
        features = torch.tanh(rows @ backbone)
        after = linalg.dual_update(features, targets, before, alpha)
    (slope,) = torch.autograd.grad(loss(after, backbone), backbone)
    measured = float((loss(before, backbone) - loss(after, backbone - rate * slope)).detach())
    residual = (targets - features @ before.T).detach().numpy()
    solve = f.solve_decrease(features.numpy(), residual, alpha)
    step = f.first_order(rate, slope.numpy())
    assert_close(step, measured - solve, 0.01)
    both = torch.autograd.grad(loss(before, backbone), (before, backbone))
    moved = before - rate * both[0], backbone - rate * both[1]
    measured = float((loss(before, backbone) - loss(*moved)).detach())
    assert_close(f.first_order(rate, *(slope.numpy() for slope in both)), measured, 0.01)


def check_backbone_first(f):
    alpha, rate, rows, targets = 0.3, 1e-5, torch.tensor(numbers(N, 4)), torch.tensor(problem(1)[1])
    before = torch.tensor(numbers(1, D, seed=5))
    backbone = torch.tensor(numbers(4, D, seed=6), requires_grad=True)

    def loss(backbone, solve):
        features = torch.tanh(rows @ backbone)
        weights = linalg.dual_update(features, targets, before, alpha) if solve else before
        return (targets - features @ weights.T).square().mean()

    slope, whole = (
        torch.autograd.grad(loss(backbone, solve), backbone)[0] for solve in (False, True)
    )
    measured = float((loss(backbone, True) - loss(backbone - rate * slope, True)).detach())
    predicted = f.first_order_backbone_first(rate, whole.numpy(), slope.numpy())
    assert_close(predicted, measured, 0.01)


def check_relative_ridge(f):
    features, targets, _ = problem()
    ridge = 0.4
    a = ridge * np.sum((features - features.mean(0)) ** 2) / D
    weights, residual, _ = solved(features, targets, a)
    expected = slope_through_the_solve(
        features, targets, lambda centered: ridge * centered.square().sum() / D
    )
    assert_close(f.relative_slope(features, residual, weights, ridge), expected)


def check_relative_floor(f):
    features, targets, _ = problem(1)
    ridge = 0.4
    for given, exact in ((features, False), (np.hstack([targets, 0 * features[:, 1:]]), True)):
        a = ridge * np.sum((given - given.mean(0)) ** 2) / D
        weights, residual, _ = solved(given, targets, a)
        loss = 0.5 * np.sum(residual**2) + 0.5 * a * np.sum(weights**2)
        floor = f.relative_floor(targets, ridge, D)
        assert abs(loss - floor) < 1e-10 * loss if exact else loss > floor


def check_rest(f):
    n, alpha, batch_size, chains = 400, 0.5, 200, 300
    features = (numbers(n, D) * [0.3, 1.0, 1.8]) @ [[1, 1, 1], [1, -1, 0], [1, 1, -2]]
    targets = features @ numbers(D, 1, seed=1) + (1 + features[:, :1] ** 2)
    second = features.T @ features / n
    best = np.linalg.solve(second, features.T @ targets / n)
    weights, rng, found = np.tile(best, (chains, 1, 1)), np.random.default_rng(0), []
    for _ in range(40):
        chosen = rng.integers(n, size=(chains, batch_size))
        rows, wanted = features[chosen], targets[chosen]
        systems = np.swapaxes(rows, -1, -2) @ rows / batch_size + alpha * np.eye(D)
        weights = weights + np.linalg.solve(
            systems, np.swapaxes(rows, -1, -2) @ (wanted - rows @ weights) / batch_size
        )
        off = weights - best
        found.append(np.mean(np.swapaxes(off, -1, -2) @ second @ off))
    predicted = f.rest_excess(features, targets - features @ best, alpha, batch_size)
    assert_close(predicted, np.mean(found[20:]), 0.05)


CHECKS = {name: value for name, value in globals().items() if name.startswith("check_")}
