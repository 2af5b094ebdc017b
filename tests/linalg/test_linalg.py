"""Every function of linalg against a plain reference: normal equations with a column of ones."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from sklearn_cfll import ClosedFormLastLayer, linalg

conjugate_gradients = linalg.SOLVERS["cg"]
EXACT = 1e-10
TALL, WIDE = (40, 6, 3), (5, 12, 2)  # rows, features, targets: B > d and B < d

shapes = pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
weights = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
intercepts = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "origin"])


# -- plain references --------------------------------------------------------------------------


def reference_update(
    features, targets, weight, penalty, decay=1.0, sample_weight=None, total=None, intercept=True
):
    """Minimiser of (1/total) Σ w‖y - Wφ - b‖² + penalty ‖W - decay W_t‖², b unpenalised."""
    n_rows, n_features = features.shape
    w = features.new_ones(n_rows) if sample_weight is None else sample_weight
    total = w.sum() if total is None else total
    ones = features.new_ones(n_rows, 1 if intercept else 0)
    design = torch.cat([features, ones], 1)
    penalties = torch.cat([features.new_ones(n_features), features.new_zeros(ones.shape[1])])
    prior = torch.zeros(design.shape[1], targets.shape[1], dtype=features.dtype)
    prior[:n_features] = penalty * decay * weight.T
    matrix = design.T @ (w[:, None] * design) / total + penalty * torch.diag(penalties)
    solution = torch.linalg.solve(matrix, design.T @ (w[:, None] * targets) / total + prior)
    bias = solution[-1] if intercept else features.new_zeros(targets.shape[1])
    return solution[:n_features].T, bias


def reference_power(features, sample_weight=None, center=True):
    """tr(ΦᵀΦ) / (total · d) of weighted, centred features, by NumPy."""
    rows = features.numpy()
    w = np.ones(len(rows)) if sample_weight is None else sample_weight.numpy()
    mean = np.average(rows, axis=0, weights=w) if center else 0.0
    return float(np.average((rows - mean) ** 2, axis=0, weights=w).mean())


def objective(
    features, targets, weight, bias, previous, penalty, decay, sample_weight=None, total=None
):
    w = features.new_ones(len(features)) if sample_weight is None else sample_weight
    squares = (targets - features @ weight.T - bias).square().sum(1)
    pull = (weight - decay * previous).square().sum()
    return (w * squares).sum() / (w.sum() if total is None else total) + penalty * pull


def problem(shape, seed=0, weighted=False):
    n_rows, n_features, n_targets = shape
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    features = draw(n_rows, n_features) + 2.0  # a mean, so that centring matters
    targets = features @ draw(n_features, n_targets) + draw(n_rows, n_targets) - 5.0
    previous = draw(n_targets, n_features)
    sample_weight = None
    if weighted:
        sample_weight = torch.rand(n_rows, generator=generator, dtype=torch.float64) + 0.1
    return features, targets, previous, sample_weight


def gap(actual, expected):
    """Largest difference relative to the size of what is expected."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def fit_proximal(features, targets, sample_weight=None, ridge=0.3, fit_intercept=True):
    zero = features.new_zeros(targets.shape[1], features.shape[1])
    weight, bias, _ = linalg.proximal_step(
        features,
        targets,
        zero,
        ridge=ridge,
        decay=0.0,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        solver="cholesky",
    )
    return weight, bias


def fit_moments(features, targets, sample_weight=None, ridge=0.3, fit_intercept=True):
    block = linalg.moments(features, targets, sample_weight, center=fit_intercept)
    return linalg.solve_moments(block, ridge)


fits = pytest.mark.parametrize("fit", [fit_proximal, fit_moments], ids=["proximal", "moments"])


# -- the envelope theorem ----------------------------------------------------------------------


def envelope_gradients(shape, weighted, fit_intercept, penalty, decay):
    """Gradients of min_W L(W, θ) in θ: with W held fixed, and through the solve."""
    inputs, targets, previous, sample_weight = problem(shape, weighted=weighted)
    generator = torch.Generator().manual_seed(1)
    n_features = shape[1]
    start = torch.randn(n_features, n_features, generator=generator, dtype=torch.float64) / 3
    gradients = []
    for detached in (True, False):
        theta = start.clone().requires_grad_()
        features = torch.tanh(inputs @ theta)
        solved_on = features.detach() if detached else features
        rows = linalg.center_rows(solved_on, targets, sample_weight, center=fit_intercept)
        weight = linalg.primal_update(
            rows.features, rows.targets, previous, penalty, decay, rows.total
        )
        bias = rows.target_mean - weight @ rows.feature_mean
        loss = objective(features, targets, weight, bias, previous, penalty, decay, sample_weight)
        gradients.append(torch.autograd.grad(loss, theta)[0])
    return gradients


@shapes
@weights
@intercepts
@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0], ids=["full_batch", "decayed", "proximal"])
def test_gradient_with_weights_held_is_the_gradient_through_the_solve(
    shape, weighted, fit_intercept, decay
):
    held, through = envelope_gradients(shape, weighted, fit_intercept, 0.2, decay)
    assert gap(held, through) < EXACT


def test_gradient_with_weights_held_differs_where_weights_are_not_the_minimiser():
    # The envelope theorem is about the minimum: a test that also passes elsewhere is void.
    inputs, targets, previous, _ = problem(TALL)
    gradients = []
    for detached in (True, False):
        theta = torch.eye(TALL[1], dtype=torch.float64).requires_grad_()
        features = torch.tanh(inputs @ theta)
        solved_on = features.detach() if detached else features
        weight, bias = reference_update(solved_on, targets, previous, 0.2)
        loss = objective(features, targets, weight, bias, previous, 2.0, 1.0)
        gradients.append(torch.autograd.grad(loss, theta)[0])
    assert gap(*gradients) > 1e-3


@weights
@intercepts
@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_layer_gives_the_envelope_gradient(weighted, fit_intercept, decay):
    inputs, targets, previous, sample_weight = problem(TALL, weighted=weighted)
    head = ClosedFormLastLayer(
        6, 3, ridge=0.5, decay=decay, fit_intercept=fit_intercept, dtype=torch.float64
    )
    head.weight = previous
    theta = torch.eye(6, dtype=torch.float64).requires_grad_()
    features = torch.tanh(inputs @ theta)
    prediction = head.update(features, targets, sample_weight)
    w = torch.ones(len(inputs)).double() if sample_weight is None else sample_weight
    loss = (w * (prediction - targets).square().sum(1)).sum() / w.sum()
    (given,) = torch.autograd.grad(loss, theta)

    # Through the solve, with the penalty (a unit, not part of the loss) held fixed.
    penalty = 0.5 * reference_power(features.detach(), sample_weight, fit_intercept)
    features = torch.tanh(inputs @ theta)
    weight, bias = reference_update(
        features, targets, previous, penalty, decay, sample_weight, intercept=fit_intercept
    )
    loss = objective(features, targets, weight, bias, previous, penalty, decay, sample_weight)
    assert gap(given, torch.autograd.grad(loss, theta)[0]) < EXACT


# -- the proximal update -----------------------------------------------------------------------


def exact_conjugate_gradients(monkeypatch, n_features):
    # Rounding costs conjugate gradients a few steps beyond the d of exact arithmetic.
    defaults = conjugate_gradients.__kwdefaults__
    monkeypatch.setitem(defaults, "n_steps", 4 * n_features)


solvers = pytest.mark.parametrize("solver", ["auto", "cholesky", "primal", "dual", "cg"])


@shapes
@weights
@intercepts
@solvers
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_update_satisfies_its_optimality_condition(
    shape, weighted, fit_intercept, solver, decay, monkeypatch
):
    exact_conjugate_gradients(monkeypatch, shape[1])
    features, targets, previous, sample_weight = problem(shape, weighted=weighted)
    ridge = 0.5
    weight, bias, _ = linalg.proximal_step(
        features,
        targets,
        previous,
        ridge=ridge,
        decay=decay,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        solver=solver,
    )
    penalty = ridge * reference_power(features, sample_weight, fit_intercept)
    weight.requires_grad_()
    bias.requires_grad_()
    loss = objective(features, targets, weight, bias, previous, penalty, decay, sample_weight)
    weight_gradient, bias_gradient = torch.autograd.grad(loss, (weight, bias))
    scale = float((targets.T @ features).abs().max() / len(features))
    assert float(weight_gradient.abs().max()) < EXACT * scale
    if fit_intercept:
        assert float(bias_gradient.abs().max()) < EXACT * scale
    else:
        assert not bias.any()


@shapes
@weights
@intercepts
@solvers
def test_update_equals_the_plain_reference(shape, weighted, fit_intercept, solver, monkeypatch):
    exact_conjugate_gradients(monkeypatch, shape[1])
    features, targets, previous, sample_weight = problem(shape, weighted=weighted)
    total = 7.0  # not the sum of the weights: what a batch of light rows is divided by
    weight, bias, _ = linalg.proximal_step(
        features,
        targets,
        previous,
        ridge=0.4,
        decay=0.8,
        sample_weight=sample_weight,
        total=total,
        fit_intercept=fit_intercept,
        solver=solver,
    )
    penalty = 0.4 * reference_power(features, sample_weight, fit_intercept)
    expected = reference_update(
        features, targets, previous, penalty, 0.8, sample_weight, total, fit_intercept
    )
    assert gap(weight, expected[0]) < EXACT
    if fit_intercept:
        assert gap(bias, expected[1]) < EXACT


@shapes
@weights
@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_primal_and_dual_updates_agree(shape, weighted, decay, seed):
    features, targets, previous, sample_weight = problem(shape, seed, weighted)
    rows = linalg.center_rows(features, targets, sample_weight)
    arguments = (rows.features, rows.targets, 10 * previous, 0.05, decay, rows.total)
    assert gap(linalg.primal_update(*arguments), linalg.dual_update(*arguments)) < EXACT


def test_update_keeps_the_previous_weights_outside_the_span_of_the_batch():
    features, targets, previous, _ = problem(WIDE)
    updated = linalg.dual_update(features, targets, previous, 0.1)
    outside = torch.eye(WIDE[1]).double() - torch.linalg.pinv(features) @ features
    assert gap(updated @ outside, previous @ outside) < EXACT


@shapes
def test_conjugate_gradients_are_exact_after_d_steps(shape):
    features, targets, previous, _ = problem(shape)
    rows = linalg.center_rows(features, targets)
    arguments = (rows.features, rows.targets, previous, 0.3)
    exact = linalg.primal_update(*arguments)
    solved = conjugate_gradients(*arguments, n_steps=2 * shape[1])
    assert gap(solved, exact) < EXACT


def test_each_conjugate_gradient_step_comes_closer():
    features, targets, previous, _ = problem((60, 12, 3))
    rows = linalg.center_rows(features, targets)
    arguments = (rows.features, rows.targets, previous, 0.3)
    exact = linalg.primal_update(*arguments)
    errors = [gap(conjugate_gradients(*arguments, n_steps=steps), exact) for steps in range(1, 9)]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 1e-2 * errors[0]


def test_conjugate_gradients_leave_a_solved_column_alone():
    features, targets, previous, _ = problem(TALL)
    solved = linalg.primal_update(features, targets, previous, 0.3, decay=0.0)
    targets = features @ previous.T  # W_t is the answer: residual and gradient are zero
    updated = conjugate_gradients(features, targets, previous, 0.3)
    assert gap(updated, previous) < EXACT
    assert torch.isfinite(updated).all() and torch.isfinite(solved).all()


@weights
@intercepts
@shapes
def test_forgetting_everything_on_all_rows_is_ridge_regression(shape, weighted, fit_intercept):
    features, targets, previous, sample_weight = problem(shape, weighted=weighted)
    weight, bias, _ = linalg.proximal_step(
        features,
        targets,
        previous,
        ridge=0.3,
        decay=0.0,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
    )
    expected = sklearn_ridge(features, targets, sample_weight, 0.3, fit_intercept)
    assert gap(weight, expected.coef_) < EXACT
    if fit_intercept:
        assert gap(bias, expected.intercept_) < EXACT


def sklearn_ridge(features, targets, sample_weight, ridge, fit_intercept=True):
    total = len(features) if sample_weight is None else float(sample_weight.sum())
    alpha = total * ridge * reference_power(features, sample_weight, fit_intercept)
    return Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky").fit(
        features.numpy(),
        targets.numpy(),
        None if sample_weight is None else sample_weight.numpy(),
    )


@shapes
@weights
def test_update_shrinks_the_residual_as_the_kernel_says(shape, weighted):
    # E' = α(G/B + αI)⁻¹E with G = ΦΦᵀ of centred rows: why a small α starves the backbone.
    features, targets, previous, sample_weight = problem(shape, weighted=weighted)
    ridge = 0.2
    weight, bias, _ = linalg.proximal_step(
        features, targets, previous, ridge=ridge, sample_weight=sample_weight
    )
    rows = linalg.center_rows(features, targets, sample_weight)
    before = rows.targets - rows.features @ previous.T
    penalty = ridge * reference_power(features, sample_weight)
    kernel = rows.features @ rows.features.T / rows.total
    shrunk = penalty * torch.linalg.solve(
        kernel + penalty * torch.eye(len(features)).double(), before
    )
    after = targets - features @ weight.T - bias
    if sample_weight is not None:
        after = after * sample_weight.sqrt().unsqueeze(1)
    assert gap(after, shrunk) < EXACT


def test_slimtik_without_memory_is_a_proximal_update_with_growing_pull():
    """slimTik, memory depth 0 = proximal update with α = Λ_t and γ = 1 - λ_t / Λ_t.

    Newman, Chung, Chung, Ruthotto, "slimTrain", SIAM J. Sci. Comput. 44 (2022),
    arXiv 2109.14002, after Slagel, Chung, Chung, Kozak, Tenorio, "Sampled Tikhonov
    regularization for large linear inverse problems", arXiv 1812.06165. Their code
    (github.com/elizabethnewman/slimTrain, slimtik_solve_kronecker_structure.py) divides
    by the batch's rows and updates ``Λ_t = Λ_{t-1} + λ_t`` (Λ_0 = 0.05) and
    ``W_t = W_{t-1} - ((W_{t-1}Z - C)Zᵀ + λ_t W_{t-1})(ZZᵀ + Λ_t I)⁻¹``, λ_t possibly
    negative. So the pull to W_{t-1} is the sum of the *past* ridges and λ_t the ridge to
    zero. Their intercept is a penalised column of ones, hence no centring here.
    """
    weight = slimtik = torch.zeros(3, 6, dtype=torch.float64)
    ridge_sum = 0.05
    for step, ridge in enumerate([0.4, 0.01, 2.0, -0.9, 0.3]):
        features, targets, *_ = problem(TALL, seed=step)
        n_rows = len(features)
        ridge_sum += ridge
        gradient = (slimtik @ features.T - targets.T) @ features / n_rows + ridge * slimtik
        inverse = torch.linalg.inv(
            features.T @ features / n_rows + ridge_sum * torch.eye(6).double()
        )
        slimtik = slimtik - gradient @ inverse
        weight = linalg.primal_update(features, targets, weight, ridge_sum, 1 - ridge / ridge_sum)
        assert gap(weight, slimtik) < EXACT


# -- moments -----------------------------------------------------------------------------------


def batch_orders(n_rows):
    """Splits of the rows into batches, in several orders."""
    shuffled = torch.randperm(n_rows, generator=torch.Generator().manual_seed(5))
    return {
        "whole": [torch.arange(n_rows)],
        "single_rows": list(torch.arange(n_rows).split(1)),
        "uneven": list(torch.arange(n_rows).split([1, 7, n_rows - 8])),
        "reversed": list(torch.arange(n_rows).split(9))[::-1],
        "shuffled": list(shuffled.split(6)),
    }


@weights
@intercepts
@pytest.mark.parametrize("order", batch_orders(40))
def test_statistics_memory_is_ridge_regression_on_all_rows_seen(weighted, fit_intercept, order):
    features, targets, _, sample_weight = problem(TALL, weighted=weighted)
    head = ClosedFormLastLayer(
        6, 3, ridge=0.3, memory="statistics", fit_intercept=fit_intercept, dtype=torch.float64
    )
    merged = None
    for rows in batch_orders(len(features))[order]:
        w = None if sample_weight is None else sample_weight[rows]
        head.update(features[rows], targets[rows], w)
        block = linalg.moments(features[rows], targets[rows], w, center=fit_intercept)
        merged = (
            block if merged is None else linalg.merge_moments(merged, block, center=fit_intercept)
        )
    expected = sklearn_ridge(features, targets, sample_weight, 0.3, fit_intercept)
    for weight, bias in [(head.weight, head.bias), linalg.solve_moments(merged, 0.3)]:
        assert gap(weight, expected.coef_) < EXACT
        if fit_intercept:
            assert gap(bias, expected.intercept_) < EXACT


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
    center=st.booleans(),
)
@settings(derandomize=True, max_examples=30, deadline=None)
def test_merging_moments_is_associative_commutative_and_equals_the_union(
    sizes, seed, offset, center
):
    features, targets, _, sample_weight = problem((sum(sizes), 4, 2), seed, weighted=True)
    rows = (features + offset, targets, sample_weight)
    parts = zip(*(part.split(sizes) for part in rows), strict=True)
    a, b, c = (linalg.moments(*part, center=center) for part in parts)
    merge = partial(linalg.merge_moments, center=center)
    union = linalg.moments(features + offset, targets, sample_weight, center=center)
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(merge(c, a), b)):
        for got, expected in zip(merged, union, strict=True):
            # Centred sums lose digits to the common mean: eps · offset, not eps.
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11 * (1 + offset))


def test_merging_keeps_the_digits_that_a_large_common_mean_would_cost():
    features, targets, *_ = problem(TALL)
    merged = None
    for rows in torch.arange(len(features)).split(8):
        block = linalg.moments(features[rows] + 1e6, targets[rows])
        merged = block if merged is None else linalg.merge_moments(merged, block)
    expected = linalg.solve_moments(linalg.moments(features, targets), 0.3)[0]
    assert gap(linalg.solve_moments(merged, 0.3)[0], expected) < 1e-8


def test_scaled_moments_are_those_of_scaled_weights():
    features, targets, _, sample_weight = problem(TALL, weighted=True)
    scaled = linalg.scale_moments(linalg.moments(features, targets, sample_weight), 0.3)
    for got, expected in zip(
        scaled, linalg.moments(features, targets, 0.3 * sample_weight), strict=True
    ):
        assert gap(got, expected) < EXACT


@weights
@intercepts
def test_decayed_statistics_are_geometrically_weighted_rows(weighted, fit_intercept):
    features, targets, _, sample_weight = problem(TALL, weighted=weighted)
    head = ClosedFormLastLayer(
        6,
        3,
        ridge=0.3,
        decay=0.5,
        memory="statistics",
        fit_intercept=fit_intercept,
        dtype=torch.float64,
    )
    w = torch.ones(len(features)).double() if sample_weight is None else sample_weight
    for rows in torch.arange(len(features)).split(10):
        head.update(features[rows], targets[rows], w[rows])
    age = torch.arange(3, -1, -1).repeat_interleave(10)
    expected = sklearn_ridge(features, targets, w * 0.5**age, 0.3, fit_intercept)
    assert gap(head.weight, expected.coef_) < EXACT


@shapes
@weights
@intercepts
def test_ridge_path_equals_one_solve_per_ridge(shape, weighted, fit_intercept):
    features, targets, _, sample_weight = problem(shape, weighted=weighted)
    block = linalg.moments(features, targets, sample_weight, center=fit_intercept)
    ridges = torch.logspace(-3, 3, 7, dtype=torch.float64)
    path = linalg.ridge_path(block, ridges)
    for ridge, weight, bias in zip(ridges.tolist(), *path, strict=True):
        expected = sklearn_ridge(features, targets, sample_weight, ridge, fit_intercept)
        assert gap(weight, expected.coef_) < EXACT
        assert gap(weight, linalg.solve_moments(block, ridge)[0]) < EXACT
        if fit_intercept:
            assert gap(bias, expected.intercept_) < EXACT


@shapes
@weights
def test_leave_one_out_errors_equal_refits_without_the_row(shape, weighted):
    features, targets, _, sample_weight = problem(shape, weighted=weighted)
    n_rows = len(features)
    w = torch.ones(n_rows).double() if sample_weight is None else sample_weight
    ridges = torch.tensor([1e-3, 0.1, 10.0])
    errors = linalg.leave_one_out_errors(features, targets, ridges, sample_weight)
    zero = torch.zeros(targets.shape[1], features.shape[1]).double()
    for ridge, error in zip(ridges.double(), errors, strict=True):
        penalty, expected = ridge * reference_power(features, sample_weight), 0.0
        for row in range(n_rows):
            others = torch.arange(n_rows) != row
            weight, bias = reference_update(
                features[others], targets[others], zero, penalty, 0.0, w[others], w.sum()
            )
            residual = targets[row] - weight @ features[row] - bias
            expected += w[row] * residual.square().sum()
        assert abs(error / expected - 1) < 1e-9


@shapes
@weights
@intercepts
def test_leverage_equals_the_quadratic_form_with_an_explicit_inverse(
    shape, weighted, fit_intercept
):
    features, targets, _, sample_weight = problem(shape, weighted=weighted)
    n_rows, n_features = features.shape
    w = torch.ones(n_rows).double() if sample_weight is None else sample_weight
    block = linalg.moments(features, targets, sample_weight, center=fit_intercept)
    design = torch.cat([features, torch.ones(n_rows, int(fit_intercept)).double()], 1)
    penalties = torch.zeros(design.shape[1]).double()
    penalties[:n_features] = 0.3 * reference_power(features, sample_weight, fit_intercept) * w.sum()
    inverse = torch.linalg.inv(design.T @ (w[:, None] * design) + torch.diag(penalties))
    leverage = linalg.leverage(features, block, 0.3, fit_intercept=fit_intercept)
    assert gap(leverage, (design @ inverse * design).sum(1)) < EXACT
    # Of a training row, w times it is the hat matrix's entry: the fit's own derivative.
    hat = design @ inverse @ (design.T * w)
    assert gap(w * leverage, hat.diagonal()) < EXACT


# -- metamorphic -------------------------------------------------------------------------------


@fits
@weights
@intercepts
@shapes
@pytest.mark.parametrize("factor", [1e-3, -2.0, 1e4])
def test_scaling_features_leaves_predictions_unchanged(fit, weighted, fit_intercept, shape, factor):
    features, targets, _, w = problem(shape, weighted=weighted)
    weight, bias = fit(features, targets, w, fit_intercept=fit_intercept)
    scaled_weight, scaled_bias = fit(factor * features, targets, w, fit_intercept=fit_intercept)
    assert gap(factor * scaled_weight, weight) < EXACT
    if fit_intercept:
        assert gap(scaled_bias, bias) < EXACT


@solvers
def test_scaling_features_and_previous_weights_leaves_an_update_unchanged(solver):
    features, targets, previous, w = problem(TALL, weighted=True)
    update = partial(linalg.proximal_step, ridge=0.3, decay=0.9, sample_weight=w, solver=solver)
    weight, bias, _ = update(features, targets, previous)
    scaled_weight, scaled_bias, _ = update(8 * features, targets, previous / 8)
    assert gap(8 * scaled_weight, weight) < EXACT and gap(scaled_bias, bias) < EXACT


@fits
@weights
def test_shifts_move_only_the_intercept(fit, weighted):
    features, targets, _, w = problem(TALL, weighted=weighted)
    shift, lift = torch.arange(6.0).double(), torch.tensor([10.0, -3.0, 0.5]).double()
    weight, bias = fit(features, targets, w)
    shifted_weight, shifted_bias = fit(features + shift, targets + lift, w)
    assert gap(shifted_weight, weight) < EXACT
    assert gap(shifted_bias, bias + lift - weight @ shift) < EXACT


@fits
@weights
@intercepts
def test_permutations_permute_the_answer(fit, weighted, fit_intercept):
    features, targets, _, w = problem(TALL, weighted=weighted)
    generator = torch.Generator().manual_seed(3)
    rows, columns, outputs = (torch.randperm(size, generator=generator) for size in TALL)
    weight, bias = fit(features, targets, w, fit_intercept=fit_intercept)
    permuted_weight, permuted_bias = fit(
        features[rows][:, columns],
        targets[rows][:, outputs],
        None if w is None else w[rows],
        fit_intercept=fit_intercept,
    )
    assert gap(permuted_weight, weight[outputs][:, columns]) < EXACT
    if fit_intercept:
        assert gap(permuted_bias, bias[outputs]) < EXACT


@fits
@intercepts
@shapes
def test_integer_weights_are_repetitions(fit, fit_intercept, shape):
    features, targets, *_ = problem(shape)
    counts = torch.arange(len(features)) % 4  # some rows of weight zero: absent rows
    weight, bias = fit(features, targets, counts.double(), fit_intercept=fit_intercept)
    repeated_weight, repeated_bias = fit(
        features.repeat_interleave(counts, 0),
        targets.repeat_interleave(counts, 0),
        fit_intercept=fit_intercept,
    )
    assert gap(weight, repeated_weight) < EXACT
    if fit_intercept:
        assert gap(bias, repeated_bias) < EXACT


@fits
@intercepts
def test_scaling_all_weights_changes_nothing(fit, fit_intercept):
    features, targets, _, w = problem(TALL, weighted=True)
    weight, bias = fit(features, targets, w, fit_intercept=fit_intercept)
    for factor in (1e-4, 1e4):
        scaled = fit(features, targets, factor * w, fit_intercept=fit_intercept)
        assert gap(scaled[0], weight) < EXACT
        if fit_intercept:
            assert gap(scaled[1], bias) < EXACT


# -- degenerate rows ---------------------------------------------------------------------------


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
