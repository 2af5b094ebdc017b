"""What scaling, shifting, permuting and repeating rows must not change."""

from functools import partial

import pytest
import torch

from linalg_references import EXACT, TALL, fits, gap, intercepts, problem, shapes, solvers, weights
from sklearn_cfll import linalg


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
