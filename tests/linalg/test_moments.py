"""Moments of rows, and what is solved from them: ridge paths, leverages, rows left out."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import draw
from linalg_references import (
    EXACT,
    TALL,
    gap,
    intercepts,
    problem,
    reference_power,
    reference_update,
    shapes,
    sklearn_ridge,
    weights,
)
from sklearn_cfll import ClosedFormLastLayer, linalg


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


def test_constant_features_have_the_leverage_of_the_mean():
    features = torch.full((50, 3), 0.1).double()
    block = linalg.moments(features, draw(50, 1))
    found = linalg.leverage(features + 1e-17, block, 0.1)
    torch.testing.assert_close(found, torch.full((50,), 0.02).double())
