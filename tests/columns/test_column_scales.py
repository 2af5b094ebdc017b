"""Scales of input columns: the mathematics, and what the estimators make of it."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.encoder import EncodedColumns
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.columns.scaling import RobustStandardize, Standardize
from sklearn_cfll.heads.closed_form import ClosedFormLastLayer
from sklearn_cfll.heads.module import CFLLModule
from sklearn_cfll.training import column_scales as module_under_test
from sklearn_cfll.training.batches import RowsDataset
from sklearn_cfll.training.column_scales import column_scales, slopes
from sklearn_cfll.training.net import CFLLNet

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
    assert float(relative.mean()) == pytest.approx(1.0, abs=0.1)


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
    assert float(scales.max() / scales.min()) == pytest.approx(20**0.5)
    assert bool((scales.diff() >= 0).all())


def test_scales_within_the_bounds_are_root_mean_square_slopes():
    first = torch.tensor([[[0.5, 0.3, 0.4]]]).double()
    strong = torch.tensor([[[5.0, 0.9, 1.2]]]).double()
    assert column_scales(first, first).tolist() == pytest.approx([1.0] * 3, abs=0.3)
    relative = column_scales(strong, strong)
    assert float(relative[2] / relative[1]) == pytest.approx(4 / 3)


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
    torch.testing.assert_close(scales[1:] / scales[0], torch.full((5,), 0.05**0.5).double())


@pytest.mark.parametrize("fill", [0.0, torch.nan, torch.inf])
def test_without_agreement_all_columns_count_the_same(fill):
    slopes_of_nothing = torch.full((5, 1, 3), fill, dtype=DOUBLE)
    assert column_scales(slopes_of_nothing, -slopes_of_nothing).tolist() == [1.0] * 3


def test_a_module_scales_what_comes_from_a_column():
    columns = EncodedColumns([RobustStandardize(), RobustStandardize()], True).double()
    inputs = torch.randn(5, 3, dtype=DOUBLE)
    columns.fit(as_rows(inputs, "cpu", DOUBLE))
    before = columns(inputs)
    columns.scale_columns(torch.tensor([2.0, 3.0, 5.0]))
    assert torch.equal(columns(inputs), before * torch.tensor([2.0, 3.0, 5.0, 2.0, 3.0, 5.0]))


# -- in the estimators ------------------------------------------------------------------


def factors(model):
    """What each input of the networks is multiplied by."""
    columns = model.backbone_.columns
    return [] if columns.column_scale is None else list(columns.column_scale.split(columns.widths))


def noisy_columns(n_rows=400, n_columns=20, seed=0):
    X = np.random.RandomState(seed).uniform(-1, 1, (n_rows, n_columns))
    return X, np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2]


@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_columns_that_matter_get_the_larger_scales(Estimator):
    X, y = noisy_columns(n_rows=1000)
    if Estimator is CFLLClassifier:
        y = np.digitize(y, [-0.5, 0.5])
    found = factors(Estimator(max_epochs=10, random_state=0).fit(X, y))
    assert len(found) == (2 if Estimator is CFLLRegressor else 1)  # raw columns and bins
    assert found[0][:3].min() > 1.5 * found[0][3:].max()
    if Estimator is CFLLRegressor:
        assert torch.equal(found[1], found[0].repeat_interleave(16))


@pytest.mark.parametrize(
    "options",
    [{}, {"memory": "statistics"}, {"update_order": "backbone_first"}, {"dropout": 0.2}],
    ids=str,
)
def test_the_first_runs_leave_nothing_but_the_scales(monkeypatch, options):
    X, y = noisy_columns()
    settings = {"max_epochs": 5, "random_state": 0} | options
    plain = CFLLRegressor(columns=ColumnEncoder(importance=False), **settings).fit(X, y)
    monkeypatch.setattr(module_under_test, "LOWEST", module_under_test.HIGHEST)  # all the same
    model = CFLLRegressor(**settings).fit(X, y)
    assert all(torch.equal(factor, torch.ones_like(factor)) for factor in factors(model))
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    losses = [[row["train_loss"] for row in m.history_] for m in (model, plain)]
    assert losses[0] == losses[1]


def test_units_of_the_columns_do_not_matter():
    X, y = noisy_columns()
    units = np.logspace(-2, 2, 20)
    found = [
        factors(CFLLRegressor(max_epochs=5, precision="float64", random_state=0).fit(inputs, y))
        for inputs in (X, X * units + units)
    ]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n_rows", "parameters"),
    [
        (30, {}),
        (90, {}),
        (400, {"columns": ColumnEncoder(importance=False)}),
        (400, {"early_stopping": False}),
    ],
    ids=["few rows", "few training rows", "switched off", "no rows held out"],
)
def test_where_columns_are_not_scaled(n_rows, parameters):
    X, y = noisy_columns(n_rows)
    model = CFLLRegressor(max_epochs=3, random_state=0, **parameters).fit(X, y)
    streamed = CFLLRegressor(random_state=0).partial_fit(X, y)
    for factor in factors(model) + factors(streamed):
        assert bool((factor == 1).all())


def test_many_targets_and_one_column():
    X, y = noisy_columns()
    many = np.stack([y * k for k in range(1, 21)], axis=1)
    assert len(CFLLRegressor(max_epochs=2, random_state=0).fit(X, many).predict(X).T) == 20
    CFLLRegressor(max_epochs=2, random_state=0).fit(X[:, :1], y)


def test_an_interrupt_before_training_keeps_the_previous_fit(monkeypatch):
    X, y = noisy_columns()
    model = CFLLRegressor(max_epochs=3, random_state=0).fit(X, y)
    before = model.predict(X)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CFLLNet, "train_step", interrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt):
            model.fit(X + 1, y)
    np.testing.assert_array_equal(model.predict(X), before)
