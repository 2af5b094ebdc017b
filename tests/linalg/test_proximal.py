"""The proximal update of a batch, and the gradient through it, against plain references."""

import itertools

import pytest
import torch

from linalg_references import (
    EXACT,
    TALL,
    WIDE,
    conjugate_gradients,
    exact_conjugate_gradients,
    gap,
    intercepts,
    objective,
    problem,
    reference_power,
    reference_update,
    shapes,
    sklearn_ridge,
    solvers,
    weights,
)
from sklearn_cfll import ClosedFormLastLayer, linalg

# -- the envelope theorem ---------------------------------------------------------------------


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


# -- the proximal update ----------------------------------------------------------------------


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
