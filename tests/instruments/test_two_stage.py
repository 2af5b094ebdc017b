"""Two closed-form stages: the maths against autograd and finite differences, training of folds."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_cfll import linalg
from sklearn_cfll.instruments import two_stage as maths
from sklearn_cfll.instruments.cross_fit import Schedule, cross_fit
from sklearn_cfll.instruments.diagnostics import jackknife_variance
from sklearn_cfll.instruments.fold_training import FoldTraining
from sklearn_cfll.instruments.stages import (
    InstrumentRows,
    Networks,
    Settings,
    Shrinkage,
    confounder_corrections,
    design_scale,
    shrunken_fit,
    structural_design,
)

PENALTY1, PENALTY2, OMEGA = 0.05, 0.02, 0.3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal(rng, *shape):
    return torch.as_tensor(rng.normal(size=shape))


def problem(rng):
    """Instrument features of both stages, treatment inputs, confounders, outcomes, weights."""
    return (
        normal(rng, 30, 4),
        normal(rng, 25, 4),
        normal(rng, 30, 2),
        normal(rng, 25, 3),
        normal(rng, 25, 1),
        torch.as_tensor(rng.uniform(0.5, 2, 30)),
        torch.as_tensor(rng.uniform(0.5, 2, 25)),
    )


def stage2(theta, data, *, hold_u):
    """Stage-2 loss of treatment features tanh(x θ), V solved inside; penalty term included."""
    first, second, inputs, confounder, outcome, weight1, weight2 = data
    features = torch.tanh(inputs @ theta)
    features = maths.feature_scaling(features, weight1)(features)
    predicted = maths.ridge_fit(first, features, PENALTY1, weight1)(second)
    design = maths.stage2_design(predicted, confounder, OMEGA)
    solved = maths.ridge_fit(design, outcome, PENALTY2, weight2)
    if hold_u:
        return maths.held_loss(design, outcome, solved, weight2)
    loss = maths.weighted_square(outcome - solved(design), weight2)
    return loss + PENALTY2 * solved.weight.square().sum()


def test_gradient_holds_u_and_goes_through_v(rng):
    # Envelope theorem: at the minimising u the penalised loss has the same gradient.
    data, start = problem(rng), normal(rng, 2, 3)
    gradients = []
    for hold_u in (True, False):
        theta = start.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(stage2(theta, data, hold_u=hold_u), theta)
        gradients.append(gradient)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_gradient_equals_finite_differences(rng):
    data, theta = problem(rng), normal(rng, 2, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(stage2(theta, data, hold_u=True), theta)
    step, numeric = 1e-6, torch.zeros_like(theta)
    for i, j in itertools.product(range(2), range(3)):
        shift = torch.zeros_like(theta)
        shift[i, j] = step
        with torch.no_grad():
            above, below = (stage2(theta + sign * shift, data, hold_u=False) for sign in (1, -1))
        numeric[i, j] = (above - below) / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_gradient_with_v_held_is_another(rng):
    # What would be left of the gradient if V were treated like u: nothing at all.
    first, second, inputs, confounder, outcome, *_ = problem(rng)
    theta = normal(rng, 2, 3).requires_grad_()
    solved1 = maths.ridge_fit(first, torch.tanh(inputs @ theta).detach(), PENALTY1)
    predicted = solved1(second)
    design = maths.stage2_design(predicted, confounder, OMEGA)
    solved2 = maths.ridge_fit(design, outcome, PENALTY2)
    assert not maths.held_loss(design, outcome, solved2).requires_grad


def test_stage1_gradient_equals_that_of_the_minimum(rng):
    inputs, treatment, start = normal(rng, 30, 3), normal(rng, 30, 2), normal(rng, 3, 4)

    def loss(theta, envelope):
        features = torch.tanh(inputs @ theta)
        held = features.detach() if envelope else features
        solved = maths.ridge_fit(held, treatment, PENALTY1)
        if envelope:
            return maths.held_loss(features, treatment, solved)
        residual = maths.weighted_square(treatment - solved(features))
        # weighted_square averages over both columns of the treatment.
        return residual + PENALTY1 * solved.weight.square().sum() / 2

    gradients = []
    for envelope in (True, False):
        theta = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(theta, envelope), theta)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("shape", [(30, 5), (5, 30)])
def test_ridge_fit_is_the_ridge_solution(rng, shape):
    features, targets = normal(rng, *shape), normal(rng, shape[0], 2)
    weight = torch.as_tensor(rng.uniform(0.5, 2, shape[0]))
    solved = maths.ridge_fit(features, targets, 0.1, weight)
    share = weight / weight.sum()
    centered = features - share @ features
    gram = centered.T @ (share.unsqueeze(1) * centered) + 0.1 * torch.eye(shape[1])
    cross = centered.T @ (share.unsqueeze(1) * (targets - share @ targets))
    torch.testing.assert_close(solved.weight.T, torch.linalg.solve(gram, cross))
    torch.testing.assert_close(share @ solved(features), share @ targets)


def test_scaling_weighs_and_leaves_constant_columns_at_zero(rng):
    features = normal(rng, 20, 2)
    counts = torch.as_tensor(rng.integers(1, 4, 20))
    repeated = features.repeat_interleave(counts, dim=0)
    for a, b in zip(
        maths.feature_scaling(features, counts.double()),
        maths.feature_scaling(repeated),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    constant = torch.full((20, 1), 1e6, dtype=torch.float64).requires_grad_()
    scaled = maths.feature_scaling(constant)(constant)
    assert scaled.abs().max() < 1e-9
    scaled.sum().backward()
    assert torch.isfinite(constant.grad).all()


def test_design_is_the_tensor_product(rng):
    treatment, confounder = normal(rng, 6, 2), normal(rng, 6, 3)
    design = maths.stage2_design(treatment, confounder, 0.5)
    ones = torch.ones(6, 1)
    left, right = torch.cat([ones, treatment], 1), torch.cat([ones, confounder], 1)
    product = torch.einsum("ni,nj->nij", left, right)
    torch.testing.assert_close(design[:, :2], product[:, 1:, 0])
    torch.testing.assert_close(design[:, 2:5], product[:, 0, 1:])
    torch.testing.assert_close(design[:, 5:], 0.5 * product[:, 1:, 1:].flatten(1))
    assert maths.stage2_design(treatment, confounder, 0.0).shape == (6, 5)
    assert maths.stage2_design(treatment, None, 1.0) is treatment


@pytest.mark.parametrize("shrinkage", [(0.1, 0.3, 0.02), (0.0, 0.0, 0.02), (1.0, 1.0, 0.0)])
def test_one_gram_matrix_serves_all_shrinkages(rng, shrinkage):
    shrinkage = Shrinkage(*shrinkage)
    treatment, confounder, outcome = normal(rng, 60, 3), normal(rng, 60, 2), normal(rng, 60, 1)
    block = linalg.moments(maths.stage2_design(treatment, confounder, 1.0), outcome)
    columns = design_scale(11, 3, 1, shrinkage)
    weight = shrunken_fit(block, columns, shrinkage.ridge)
    scaled = maths.stage2_design(treatment, confounder, 1.0) * columns
    expected = maths.ridge_fit(scaled, outcome, shrinkage.ridge).weight * columns
    torch.testing.assert_close(weight, expected, check_dtype=False)
    inverse = shrunken_fit(block, columns, shrinkage.ridge, invert=True)
    torch.testing.assert_close(block.cross @ inverse, weight)


def test_scales_name_the_kinds_of_columns():
    # Ψ: one raw treatment and two features; Ξ: two; products in that order.
    scale = design_scale(11, 3, 1, Shrinkage(0.1, 0.3, 0.02, treatment=0.02 / 25))
    expected = [5, 0.3, 0.3, 1, 1, 0.1, 0.1, 0.03, 0.03, 0.03, 0.03]
    torch.testing.assert_close(scale, torch.tensor(expected))
    narrow = design_scale(11, 3, 1, Shrinkage(0.1, 0.3, 0.02, treatment=1.0))
    assert narrow[0] == 1  # at most so much, never more than the ridge


def test_jackknife_of_a_mean_is_its_variance(rng):
    # Delete-a-fold means of K numbers: the jackknife is the usual s² / K, exactly.
    values = torch.as_tensor(rng.normal(size=7))
    deleted = torch.stack([torch.cat([values[:k], values[k + 1 :]]).mean() for k in range(7)])
    torch.testing.assert_close(jackknife_variance(deleted[None]), values.var() / 7)


# -- training -----------------------------------------------------------------------


class Joint(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, width), nn.Tanh()).double()

    def forward(self, instrument, confounder=None):
        return self.net(instrument)


def make_networks(n_first_stages=2, trained=True):
    treatment = nn.Sequential(nn.Linear(1, 3), nn.Tanh()).double() if trained else nn.Identity()
    first = [Joint() if trained else nn.Identity() for _ in range(n_first_stages)]
    if not trained:
        first = [Pass() for _ in range(n_first_stages)]
    return Networks(treatment, None, first, 0 if trained else 1)


class Pass(nn.Module):
    def forward(self, instrument, confounder=None):
        return instrument


def linear_rows(rng, n=200):
    Z, hidden = normal(rng, n, 2), normal(rng, n, 1)
    X = Z.sum(1, keepdim=True) + hidden
    return InstrumentRows(X, Z, None, 0.5 * X + hidden, None)


SETTINGS = Settings(0.01, 0.01, Shrinkage(0.0, 1.0, 0.01), None)


def halves_of(n):
    return [torch.arange(0, n // 2), torch.arange(n // 2, n)]


def test_no_first_stage_predicts_rows_it_was_fitted_on(rng):
    rows = linear_rows(rng)
    fold = FoldTraining(make_networks(), rows, halves_of(200), torch.arange(0), SETTINGS)
    before = fold._forward(fold.train, None)
    # Change the treatment of one row of the first half: only the other half's prediction moves,
    # but for the normalisation, which all rows share.
    fold.train[0].treatment[0] += 1.0
    nets = fold.networks
    features = [nets.treatment(part.treatment) for part in fold.train]
    scaling = maths.feature_scaling(torch.cat(features))
    instrument = nets.instruments[0](fold.train[1].instrument)
    normalise = maths.feature_scaling(instrument)
    solved = maths.ridge_fit(normalise(instrument), scaling(features[1]), 0.01)
    own = solved(normalise(nets.instruments[0](fold.train[0].instrument)))
    after = fold._forward(fold.train, None)
    torch.testing.assert_close(after.predicted[:100], own)
    assert not torch.allclose(before.predicted[100:], after.predicted[100:])


def test_one_step_moves_every_net_by_its_own_gradient(rng):
    rows = linear_rows(rng)
    fold = FoldTraining(make_networks(), rows, halves_of(200), torch.arange(0), SETTINGS)
    before = [p.clone() for p in fold.networks.parameters()]
    fold.epoch(torch.Generator())
    for old, new in zip(before, fold.networks.parameters(), strict=True):
        assert not torch.equal(old, new)
    # The second stage leaves no gradient in the instrument nets but that of the first stage.
    forward = fold._forward(fold.train, None)
    forward.predicted.sum().backward()
    assert forward.predicted.requires_grad


@pytest.mark.parametrize("batch_size", [None, 50])
def test_training_lowers_held_out_loss(rng, batch_size):
    rows = linear_rows(rng, 400)
    rows = rows._replace(outcome=rows.treatment.square())
    settings = SETTINGS._replace(batch_size=batch_size)
    parts = [torch.arange(0, 150), torch.arange(150, 300)]
    fold = FoldTraining(make_networks(), rows, parts, torch.arange(300, 400), settings)
    assert fold.n_batches == (1 if batch_size is None else 6)
    shrinkages = [SETTINGS.shrinkage]
    start = fold.record(shrinkages).losses[0]
    for _ in range(60 if batch_size is None else 30):
        fold.epoch(torch.Generator().manual_seed(0))
    assert fold.record(shrinkages).losses[0] < 0.97 * start


def schedule(n, n_folds=3, **changes):
    labels = torch.arange(n)[None] % n_folds
    halves = torch.div(torch.arange(n)[None], n_folds, rounding_mode="floor") % 2
    return Schedule(30, 10, float(n), labels, halves)._replace(**changes)


def own_fit(rows, choices, prior):
    """Networks that are drawn from torch's global generator, which is lent to them."""

    def lent(_, stream):
        with stream.lent():
            return make_networks()

    candidates = dict(zip(choices, prior, strict=True))
    return cross_fit(lent, rows, schedule(200), SETTINGS, candidates, seed=0)


def test_cross_fit_averages_the_records_around_the_best_time(rng):
    rows = linear_rows(rng)
    state = torch.random.get_rng_state()
    fitted = own_fit(rows, [SETTINGS.shrinkage], [0.0])
    assert torch.equal(state, torch.random.get_rng_state())
    losses = [row["valid_loss"] for row in fitted.history]
    running = [np.mean(losses[i - 4 : i + 1]) for i in range(4, len(losses))]
    assert fitted.held_out_loss == pytest.approx(min(running))
    assert fitted.best_epoch == fitted.history[int(np.argmin(running)) + 4]["epoch"]
    assert [len(models) for models in fitted.folds] == [5, 5, 5]
    mean = torch.stack(
        [
            structural_design(fitted.networks, m, rows) @ m.weight.T + m.bias
            for models in fitted.folds
            for m in models
        ]
    ).mean(0)
    torch.testing.assert_close(fitted.predict(rows), mean)


def test_shrinkages_are_averaged_by_likelihood_and_the_best_is_named(rng):
    rows = linear_rows(rng)
    choices = [Shrinkage(0.0, 1.0, ridge) for ridge in (0.001, 10.0)]
    fitted = own_fit(rows, choices, [0.0, 0.0])
    alone = own_fit(rows, choices[:1], [0.0])
    assert fitted.shrinkage == choices[0]
    # 200 rows speak clearly against a ridge of 10.
    torch.testing.assert_close(
        fitted.predict(rows),
        alone.predict(rows),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_prior_decides_where_the_held_out_loss_does_not(rng):
    rows = linear_rows(rng)
    choices = [Shrinkage(0.0, 1.0, 0.0101), Shrinkage(0.0, 1.0, 0.01)]
    for prior, expected in [([0.0, -3.0], choices[0]), ([-3.0, 0.0], choices[1])]:
        fitted = own_fit(rows, choices, prior)
        assert fitted.shrinkage == expected


def test_where_nothing_is_trained_the_estimate_is_the_fit_to_all_rows(rng):
    rows = linear_rows(rng)
    exact = SETTINGS._replace(stage1_ridge=0.0)
    nets = lambda *_: make_networks(1, trained=False)  # noqa: E731
    candidates = {Shrinkage(0.0, 1.0, 0.0): 0.0}
    fitted = cross_fit(nets, rows, schedule(200, halves=None), exact, candidates, seed=0)
    Z = np.column_stack([np.ones(200), rows.instrument.numpy()])
    predicted = Z @ np.linalg.lstsq(Z, rows.treatment.numpy(), rcond=None)[0]
    design = np.column_stack([np.ones(200), predicted])
    intercept, slope = np.linalg.lstsq(design, rows.outcome.numpy(), rcond=None)[0]
    expected = intercept + slope * rows.treatment.numpy()
    np.testing.assert_allclose(fitted.predict(rows).numpy(), expected, rtol=1e-9)


def test_divergence_is_an_error_that_says_what_to_do(rng):
    rows = linear_rows(rng)
    rows = rows._replace(outcome=rows.outcome * torch.nan)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        own_fit(rows, [SETTINGS.shrinkage], [0.0])


@pytest.mark.parametrize("weighted", [False, True])
def test_corrected_parts_agree_on_the_confounders(rng, weighted):
    confounder = [normal(rng, 30, 3), normal(rng, 40, 3)]
    predicted = [normal(rng, 30, 2), normal(rng, 40, 2)]
    counts = [torch.as_tensor(rng.integers(1, 4, len(part))) for part in confounder]
    weight = [each.double() for each in counts] if weighted else None
    corrections = confounder_corrections(predicted, confounder, weight)
    parts = list(zip(predicted, confounder, corrections, strict=True))
    corrected = [part + correct(features) for part, features, correct in parts]

    def slopes(values):
        """Least squares on a constant and the confounders, part by part."""
        solutions = []
        for part, features, count in zip(values, confounder, counts, strict=True):
            rows = torch.cat([torch.ones(len(features), 1).double(), features], dim=1)
            if weighted:
                rows, part = (each.repeat_interleave(count, 0) for each in (rows, part))
            solutions.append(torch.linalg.lstsq(rows, part).solution)
        return torch.stack(solutions)

    wanted = slopes(predicted).mean(0)
    torch.testing.assert_close(slopes(corrected), wanted.expand(2, -1, -1))
    # What the confounders do not explain, the movement by instruments, stays as it was.
    for j, (part, features) in enumerate(zip(corrected, confounder, strict=True)):
        rows = torch.cat([torch.ones(len(features), 1).double(), features], dim=1)
        moved = predicted[j] - rows @ slopes(predicted)[j]
        torch.testing.assert_close(part - rows @ wanted, moved)
