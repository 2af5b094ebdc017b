"""Rows that tell a last layer little: no variation, no power, no numbers, half precision."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_friedman1
from sklearn.feature_selection import SequentialFeatureSelector
from torch import nn

from sklearn_cfll import (
    CFLLClassifier,
    CFLLRegressor,
    ClosedFormLastLayer,
    EnsembleLastLayer,
    linalg,
)

D, K = 6, 2
BOTH = pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- estimators on columns that say little -----------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("n", [6, 50, 400])
@pytest.mark.parametrize("options", [{}, {"n_members": 3}, {"precision": "float32"}], ids=str)
def test_class_frequencies_where_columns_say_nothing(value, n, options):
    X, y = np.full((n, 2), value), (np.arange(n) % 5 == 0).astype(int)
    model = CFLLClassifier(max_epochs=5, early_stopping=False, random_state=0, **options)
    model.fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], y.mean(), atol=0.02)
    assert float(model.net_.module_.last_layer.weight.abs().max()) < 1e-3


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n", [60, 200])
def test_class_frequencies_with_held_out_rows_in_float64(n, n_classes):
    y = np.minimum(np.random.default_rng(1).geometric(0.8, n) - 1, n_classes - 1)
    model = CFLLClassifier(max_epochs=3, random_state=0).fit(np.ones((n, 1)), y)
    found = model.predict_proba(np.ones((1, 1)))[0]
    np.testing.assert_allclose(found, np.bincount(y) / n, atol=0.05)


@pytest.mark.parametrize("n", [60, 300, 600])
@pytest.mark.parametrize("value", [1.0, -1e3, 0.1])
def test_deviations_where_columns_say_nothing(value, n):
    y = np.random.default_rng(0).normal(size=n)
    model = CFLLRegressor(max_epochs=3, random_state=0).fit(np.full((n, 2), value), y)
    _, std = model.predict(np.full((1, 2), value), return_std=True)
    lower, upper = model.predict_interval(np.full((1, 2), value))
    assert 0.7 < std[0] < 1.6 and 2.0 < upper[0] - lower[0] < 6.0


def test_constant_features_have_the_leverage_of_the_mean():
    features = torch.full((50, 3), 0.1).double()
    block = linalg.moments(features, draw(50, 1))
    found = linalg.leverage(features + 1e-17, block, 0.1)
    torch.testing.assert_close(found, torch.full((50,), 0.02).double())


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("n", [2, 6, 50, 400])
@pytest.mark.parametrize("options", [{}, {"n_members": 1}, {"precision": "float32"}], ids=str)
def test_the_mean_where_columns_say_nothing(value, n, options):
    X, y = np.full((n, 3), value), np.random.default_rng(0).normal(3, 2, n)
    model = CFLLRegressor(max_epochs=5, random_state=0, **options).fit(X, y)
    np.testing.assert_allclose(model.predict(X), y.mean(), rtol=1e-4, atol=1e-4)


def rare_indicators(rng):
    return (rng.random((4000, 10)) < 0.001) * 1.0


def one_row(rng):
    X = np.zeros((600, 5))
    X[7] = 1.0
    return X


def rare_levels(rng):
    return np.eye(40)[np.where(rng.random(1500) < 0.02, rng.integers(0, 40, 1500), 0)]


def duplicates(rng):
    return np.repeat(rng.normal(size=(2, 3)), 150, axis=0)


def barely_varying(rng):
    return 1.0 + 1e-9 * rng.normal(size=(400, 3))


SPARSE = [rare_indicators, one_row, rare_levels, duplicates, barely_varying]


@BOTH
@pytest.mark.parametrize("make", SPARSE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("wide", [False, True])
def test_columns_that_hardly_ever_vary_are_fitted(Estimator, make, wide):
    X = make(np.random.default_rng(0))
    levels = X @ np.arange(1.0, X.shape[1] + 1)
    y = (levels > np.median(levels)).astype(int)
    sizes = {"hidden_layer_sizes": (256, 256), "n_members": 1} if wide else {"n_members": 2}
    model = Estimator(max_epochs=5, random_state=0, **sizes).fit(X, y)
    assert np.isfinite(model.predict(X)).all()
    assert model.score(X, y) > (0.9 if Estimator is CFLLClassifier else -0.01)


@BOTH
@pytest.mark.parametrize("weights", ["one_heavy", "twelve_orders", "one_light"])
@pytest.mark.parametrize("n", [60, 500])
def test_weights_of_any_range_leave_finite_predictions(Estimator, weights, n):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    y = X[:, 0] if Estimator is CFLLRegressor else (X[:, 0] > 0).astype(int)
    w = np.ones(n)
    if weights == "twelve_orders":
        w = 10.0 ** rng.uniform(-6, 6, n)
    else:
        w[3] = {"one_heavy": 1e12, "one_light": 1e-12}[weights]
    model = Estimator(max_epochs=8, random_state=0).fit(X, y, w)
    assert np.isfinite(model.predict(X)).all()
    assert model.score(X, y, w) > 0.5


def test_sequential_selection_passes_a_constant_column():
    X, y = make_friedman1(120, n_features=5, random_state=0)
    X[:, 4] = 3.0
    model = CFLLRegressor(max_epochs=5, random_state=0)
    selector = SequentialFeatureSelector(model, n_features_to_select=1, cv=2).fit(X, y)
    assert not selector.get_support()[4]


def test_dead_units_predict_the_mean():
    class Dead(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 16)

        def forward(self, X):
            return torch.relu(self.layer(X) - 1e6)

    X, y = make_friedman1(200, n_features=5, random_state=0)
    model = CFLLRegressor(Dead(), max_epochs=3, early_stopping=False).fit(X[:, :3], y)
    np.testing.assert_allclose(model.predict(X[:, :3]), y.mean(), rtol=1e-5)


# -- the layer on batches without power --------------------------------------------------------


def make_layer(members, width=D, **options):
    if members == 1:
        return ClosedFormLastLayer(width, K, **options)
    return EnsembleLastLayer(members * width, K, n_members=members, **options)


members = pytest.mark.parametrize("members", [1, 3])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@members
@dtypes
@pytest.mark.parametrize("width", [D, 160], ids=["exact", "iterated"])
def test_a_batch_that_hardly_varies_does_not_throw_the_weights_about(members, dtype, width):
    layer = make_layer(members, width, ridge=3.0, dtype=dtype)
    for seed in range(20):
        layer.step(draw(200, members * width, seed=seed, dtype=dtype), draw(200, K, dtype=dtype))
    before = layer.weight.clone()
    features = torch.ones(200, members * width, dtype=dtype)
    features[0] += 1e-4  # one row in 200 differs, by little
    targets = torch.zeros(200, K, dtype=dtype)
    targets[0] = 1.0
    layer.step(features, targets)
    assert float((layer.weight - before).abs().max()) < 0.1


@members
@dtypes
@pytest.mark.parametrize("width", [D, 160], ids=["exact", "iterated"])
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_constant_batches_alone_teach_the_mean(members, dtype, width, memory):
    layer = make_layer(members, width, ridge=3.0, dtype=dtype, memory=memory)
    value = draw(1, members * width, dtype=dtype) * 100
    for seed in range(5):
        # Rounding, as a product of many rows leaves it.
        features = value * (1 + torch.finfo(dtype).eps * draw(200, 1, seed=seed, dtype=dtype))
        layer.step(features, 2.0 + draw(200, K, seed=9 - seed, dtype=dtype))
    assert float(layer.weight.abs().max()) < 1e-3
    assert float((layer(value) - 2.0).abs().max()) < 0.5


def test_sorted_rows_of_constant_batches_are_learnt_between_them():
    layer = ClosedFormLastLayer(3, 1, ridge=0.1, dtype=torch.float64)
    levels = draw(8, 3)
    for _ in range(30):
        for level in levels:  # each batch holds one level, and one mixed batch follows
            layer.step(level.expand(20, 3), level.sum().expand(20, 1))
        layer.step(levels.repeat(3, 1), levels.sum(1, keepdim=True).repeat(3, 1))
    torch.testing.assert_close(layer(levels), levels.sum(1, keepdim=True), rtol=0, atol=0.05)


@pytest.mark.parametrize("ratio", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("way", ["step", "wide", "statistics", "refit", "members"])
def test_small_deviations_beside_a_large_mean_count_in_float32(ratio, way):
    width = 160 if way == "wide" else D
    features = draw(400, width).float()
    shifted = features + ratio
    targets = (shifted.double() - ratio)[:, :1] @ torch.ones(1, K).double()
    layer = ClosedFormLastLayer(
        width, K, ridge=1e-3, memory="statistics" if way == "statistics" else "proximal"
    )
    if way == "members":
        layer = EnsembleLastLayer(width, K, n_members=1, ridge=1e-3)
    if way == "wide":
        layer.ridge, layer.decay, layer.solver = 1.0, 1.0, "cg"
    for _ in range(60 if way == "wide" else 5):
        if way == "refit":
            layer.refit([(shifted, targets.float())])
        else:
            layer.step(shifted, targets.float())
    weight = layer.weight[0]
    assert float(weight[0]) == pytest.approx(1.0, abs=0.1)
    assert float(weight[1:].abs().max()) < 0.1


@members
@pytest.mark.parametrize("width", [D, 160], ids=["exact", "iterated"])
def test_a_batch_of_weightless_rows_changes_nothing_for_later_ones(members, width):
    layer = make_layer(members, width, ridge=3.0, dtype=torch.float64)
    features, targets = draw(200, members * width), draw(200, K)
    layer.step(features, targets)
    before = layer.weight.clone()
    layer.step(features, targets, torch.zeros(200).double(), 200.0)
    torch.testing.assert_close(layer.weight, before)
    layer.step(features, targets)
    assert bool(torch.isfinite(layer.weight).all())


@members
def test_ordinary_batches_are_solved_as_without_the_floor(members):
    floored, plain = (make_layer(members, ridge=0.5, dtype=torch.float64) for _ in "ab")
    for seed in range(6):
        features = draw(30, members * D, seed=seed) * 2.0 ** (seed % 3)
        targets = draw(30, K, seed=seed + 50)
        for part in plain.modules():
            if isinstance(part, ClosedFormLastLayer):
                part.feature_power = None
        floored.step(features, targets)
        plain.step(features, targets)
        assert torch.equal(floored.weight, plain.weight)


@members
def test_training_resumed_from_a_state_meets_the_same_floor(members):
    layer = make_layer(members, ridge=3.0, dtype=torch.float64)
    layer.step(draw(50, members * D), draw(50, K))
    resumed = make_layer(members, ridge=3.0, dtype=torch.float64)
    resumed.load_state_dict(layer.state_dict())
    for copied in (resumed, copy.deepcopy(layer)):
        again = copy.deepcopy(layer)
        batch = 1.0 + 1e-5 * draw(50, members * D), draw(50, K)
        again.step(*batch)
        copied.step(*batch)
        assert torch.equal(again.weight, copied.weight)


def test_power_of_unlike_members_is_their_own():
    layer = make_layer(2, ridge=3.0, dtype=torch.float64)
    features = draw(50, 2 * D)
    features[:, D:] *= 10.0
    layer.step(features, draw(50, K))
    small, large = (float(member.feature_power) for member in layer.members)
    assert large / small == pytest.approx(100, rel=0.5)


# -- rows that are no numbers ------------------------------------------------------------------

CALLS = {
    "step": lambda layer, *rows: layer.step(*rows),
    "accumulate": lambda layer, *rows: layer.accumulate(*rows),
    "refit": lambda layer, *rows: layer.refit([(part[:10] for part in rows), rows]),
    "refit, ridge": lambda layer, *rows: layer.refit([rows], ridge=1.0),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["features", "targets", "sample_weight"])
@members
def test_rows_that_are_not_finite_are_named_and_nothing_is_changed(
    call, memory, value, name, members
):
    layer = make_layer(members, memory=memory, ridge=0.5, dtype=torch.float64)
    good = draw(30, members * D), draw(30, K), torch.ones(30).double()
    for _ in range(2):
        layer.step(*good)
    before = copy.deepcopy(layer.state_dict())
    rows = {
        "features": good[0].clone(),
        "targets": good[1].clone(),
        "sample_weight": good[2].clone(),
    }
    rows[name][[12, 17], ..., *([-1] if name != "sample_weight" else [])] = value
    with pytest.raises(ValueError, match=rf"`{name}` must be finite, but 2 of 30 rows.*index 12"):
        CALLS[call](layer, *rows.values())
    after = layer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_update_refuses_them_too():
    targets = draw(9, K)
    targets[4] = torch.nan
    with pytest.raises(ValueError, match="`targets` must be finite, but 1 of 9 rows"):
        ClosedFormLastLayer(D, K, dtype=torch.float64).update(draw(9, D), targets)


def test_negative_weights_and_rows_too_large_to_square_are_named():
    layer = ClosedFormLastLayer(D, K)
    with pytest.raises(ValueError, match="`sample_weight` must not be negative, got -1"):
        layer.step(draw(9, D), draw(9, K), torch.full((9,), -1.0))
    with pytest.raises(ValueError, match="squared in torch.float32: features go up to"):
        layer.step(draw(9, D).float() * 1e30, draw(9, K).float())


# -- half precision ----------------------------------------------------------------------------

halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


@halves
@members
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_features_in_half_precision_are_solved_in_float32(half, members, memory):
    features, targets = draw(60, members * D).to(half), draw(60, K)
    low, full = (make_layer(members, ridge=0.3, memory=memory) for _ in "ab")
    low.step(features, targets)
    full.step(features.float(), targets.float())
    torch.testing.assert_close(low.weight, full.weight)
    assert low.weight.dtype == torch.float32
    torch.testing.assert_close(low(features), full(features.float()))
    low.refit([(features, targets)])
    full.refit([(features.float(), targets.float())])
    torch.testing.assert_close(low.weight, full.weight)
    assert low.variance(features).dtype == torch.float32
    torch.testing.assert_close(low.variance(features), full.variance(features.float()))


@halves
def test_gradients_reach_features_in_half_precision(half):
    features = draw(40, D).to(half).requires_grad_()
    layer = ClosedFormLastLayer(D, K, ridge=0.3)
    F.mse_loss(layer.update(features, draw(40, K)), draw(40, K).float()).backward()
    assert features.grad.dtype == half and bool((features.grad != 0).all(1).any())


@members
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_under_autocast_the_solve_is_as_exact_as_outside(members, memory):
    features, targets = draw(60, members * D).float() + 3, draw(60, K).float()
    inside, outside = (make_layer(members, ridge=1e-3, memory=memory) for _ in "ab")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.step(features, targets)
        assert inside(features).dtype == torch.bfloat16
    outside.step(features, targets)
    assert torch.equal(inside.weight, outside.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.refit([(features, targets)])
        leverage = inside.leverage(features)
    outside.refit([(features, targets)])
    assert torch.equal(inside.weight, outside.weight)
    assert torch.equal(leverage, outside.leverage(features))


def test_a_loop_under_autocast_learns():
    X, y = make_friedman1(300, n_features=5, random_state=0)
    X, y = torch.as_tensor(X).float(), torch.as_tensor((y - y.mean()) / y.std()).float()[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(5, 32), nn.ReLU())
    head = ClosedFormLastLayer(32, 1, ridge=1.0)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        for rows in torch.arange(300).split(50):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.mse_loss(head.update(backbone(X[rows]), y[rows]).float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert head.weight.dtype == torch.float32


@halves
def test_a_layer_in_half_precision_keeps_its_dtype(half):
    layer = ClosedFormLastLayer(D, K, ridge=0.3, dtype=half)
    features, targets = draw(60, D).to(half), draw(60, K)
    assert layer.update(features, targets).dtype == half
    layer.refit([(features, targets)])
    assert layer.weight.dtype == layer.bias.dtype == half
    assert bool(torch.isfinite(layer.variance(features)).all())
