"""Scales of input columns: slopes of a network, and what two halves of the rows agree on."""

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.columns.scaling import Standardize
from sklearn_cfll.heads.closed_form import ClosedFormLastLayer
from sklearn_cfll.heads.module import CFLLModule
from sklearn_cfll.training.batches import RowsDataset
from sklearn_cfll.training.column_scales import HIGHEST, LOWEST, column_scales, slopes

DOUBLE = torch.float64


def linear_net(weight, mean, std):
    """``standardised columns @ weight.T``, as a net with a closed-form last layer."""
    standardize = Standardize(weight.shape[1]).double()
    standardize.adapt_to(mean, std)
    layer = ClosedFormLastLayer(weight.shape[1], len(weight), dtype=DOUBLE)
    layer.weight.copy_(weight)
    return CFLLModule(nn.Sequential(standardize), layer)


def rows_of(X, weights=None):
    return RowsDataset(as_rows(X, "cpu", DOUBLE), None, weights)


@pytest.fixture
def X():
    return np.random.RandomState(0).standard_normal((50, 3)) * [1.0, 100.0, 1e-3] + 5.0


@pytest.mark.parametrize("n_targets", [1, 4, 16])
def test_slopes_of_a_linear_function_are_its_weights(X, n_targets):
    weight = torch.randn(n_targets, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    mean, std = torch.from_numpy(X.mean(0)), torch.from_numpy(X.std(0))
    found = slopes(linear_net(weight, mean, std), rows_of(X))
    torch.testing.assert_close(found, weight.expand(50, -1, -1))


def test_of_many_targets_signed_sums_stand_for_all():
    weight = torch.randn(200, 60, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    X = np.random.RandomState(0).standard_normal((20, 60))
    found = slopes(linear_net(weight, torch.zeros(60), torch.from_numpy(X.std(0))), rows_of(X))
    assert found.shape == (20, 16, 60)
    relative = found[0].square().mean(0) / weight.square().sum(0)
    assert float(relative.mean()) == pytest.approx(1.0, abs=0.05)


def test_a_weight_is_a_repetition(X):
    net = linear_net(torch.tensor([[1.0, -2.0, 0.5]]).double(), torch.zeros(3), torch.ones(3))
    net.backbone.append(nn.Tanh())
    weights = torch.arange(50)
    weighted = slopes(net, rows_of(X, weights.double()))
    repeated = slopes(net, rows_of(X.repeat(weights.numpy(), axis=0)))
    torch.testing.assert_close(weighted.square().sum(0), repeated.square().sum(0))


def test_a_constant_column_has_no_slope(X):
    X[:, 1] = 7.0
    net = linear_net(torch.ones(1, 3, dtype=DOUBLE), torch.zeros(3), torch.ones(3))
    assert slopes(net, rows_of(X))[:, :, 1].abs().max() < 1e-12


def random_slopes(seed, n=40, k=2, p=6):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((n, k, p)))


def test_scales_have_mean_square_one_and_keep_their_bounds():
    first = random_slopes(0) * torch.logspace(-3, 3, 6)
    scales = column_scales(first, first)
    assert scales.square().mean() == pytest.approx(1.0)
    assert float(scales.max() / scales.min()) == pytest.approx((HIGHEST / LOWEST) ** 0.5)
    assert bool((scales.diff() >= 0).all())


def test_scales_within_the_bounds_are_root_mean_square_slopes():
    found = torch.tensor([[[5.0, 0.9, 1.2]]]).double()
    scales = column_scales(found, found)
    assert float(scales[2] / scales[1]) == pytest.approx(4 / 3)
    # The largest square counts as 0.3 of itself.
    assert float(scales[0] / scales[1]) == pytest.approx(5.0 * HIGHEST**0.5 / 0.9)


def test_scales_ignore_units_and_follow_permutations():
    first, second = random_slopes(0) + 1.0, random_slopes(1) + 1.0
    scales = column_scales(first, second)
    torch.testing.assert_close(column_scales(7.0 * first, 0.1 * second), scales)
    torch.testing.assert_close(column_scales(second, first), scales)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(column_scales(first[..., order], second[..., order]), scales[order])


def test_what_two_halves_do_not_agree_on_counts_as_noise():
    first, second = random_slopes(0, n=2000), random_slopes(1, n=2000)
    first[..., 0] += 1.0
    second[..., 0] += 1.0
    scales = column_scales(first, second)
    torch.testing.assert_close(
        scales[1:] / scales[0], torch.full((5,), (LOWEST / HIGHEST) ** 0.5).double()
    )


@pytest.mark.parametrize("fill", [0.0, torch.nan, torch.inf])
def test_without_agreement_all_columns_count_the_same(fill):
    slopes_of_nothing = torch.full((5, 1, 3), fill, dtype=DOUBLE)
    assert column_scales(slopes_of_nothing, -slopes_of_nothing).tolist() == [1.0] * 3
