"""Solves that start from the last one, after a few more rows."""

import copy

import pytest
import torch

from helpers import draw
from linalg_references import gap, intercepts, weights
from sklearn_cfll import EnsembleLastLayer, linalg
from sklearn_cfll.heads import member

D = 60


@pytest.fixture
def factorisations(monkeypatch):
    """Number of factorisations so far."""
    found, cholesky = [], torch.linalg.cholesky_ex

    def counted(matrix, **options):
        found.append(matrix)
        return cholesky(matrix, **options)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted)
    return found


@weights
@intercepts
@pytest.mark.parametrize("ridge", [1e-8, 1e-3, 10.0])
def test_a_row_at_a_time_is_as_exact_as_a_factorisation(
    ridge, weighted, fit_intercept, factorisations
):
    scales = torch.logspace(0, -3, D).double()
    features, targets = draw(500, D) * scales + 0.3, draw(500, 2, seed=1)
    weight = torch.rand(500, generator=torch.Generator().manual_seed(2)).double()
    block = linalg.moments(features[:300], targets[:300], weight[:300], center=fit_intercept)
    held = linalg.Moments(*(part[None] for part in block))
    start, inverse, worst = torch.zeros(2, D), None, 0.0
    for i in range(300, 500):
        own = weight[i : i + 1] if weighted else None
        row = features[None, i : i + 1], targets[i : i + 1], own
        held = linalg.add_moments(held, *row, center=fit_intercept)
        block = linalg.Moments(*(part[0] for part in held))
        found, bias, inverse = linalg.solve_near_moments(block, ridge, start, inverse)
        start = found.float()  # as a layer holds them
        before = len(factorisations)
        exact = linalg.solve_moments(block, ridge)
        del factorisations[before:]
        worst = max(worst, gap(found, exact[0]), gap(bias, exact[1]))
    assert worst < 1e-10
    assert len(factorisations) < 80  # of 200


def test_a_system_that_is_not_near_is_factorised():
    block = linalg.moments(draw(200, D), draw(200, 1, seed=1))
    other = linalg.moments(1e3 * draw(90, D, seed=2), draw(90, 1, seed=3))
    weight, _, inverse = linalg.solve_near_moments(block, 1e-6, torch.zeros(1, D), None)
    for start, near in ((weight, inverse), (weight, torch.full((D, D), torch.nan).double())):
        found = linalg.solve_near_moments(other, 1e-6, start, near)[0]
        assert gap(found, linalg.solve_moments(other, 1e-6)[0]) < 1e-12


def test_systems_that_have_no_factor_are_solved_too():
    features = draw(50, 1).expand(50, D) + 0.0  # of rank one
    block = linalg.moments(features, draw(50, 1, seed=1))
    inverse = None
    for _ in range(2):
        found, _, inverse = linalg.solve_near_moments(block, 1e-18, torch.zeros(1, D), inverse)
        assert gap(found, linalg.solve_moments(block, 1e-18)[0]) < 1e-6


@pytest.mark.parametrize("n_members", [1, 2])
def test_a_layer_that_learns_row_by_row_is_the_fit_to_all_rows(monkeypatch, n_members):
    monkeypatch.setattr(member, "WIDE", 8)
    features, targets = draw(120, 16 * n_members), draw(120, 1, seed=1)
    head = EnsembleLastLayer(16 * n_members, 1, n_members=n_members, dtype=torch.float64)
    head.refit([(features[:60], targets[:60])], ridge=0.1)
    for i in range(60, 120):
        head.accumulate(features[i : i + 1], targets[i : i + 1]).solve(near=True)
        if i == 90:  # what the next solve starts from is no part of a copy
            kept, head = head, copy.deepcopy(head)
            assert kept.members[0].inverse is not None
            assert head.members[0].inverse is None
    exact = copy.deepcopy(head).refit([(features, targets)], ridge=0.1)
    torch.testing.assert_close(head.weight, exact.weight, rtol=1e-10, atol=1e-12)
