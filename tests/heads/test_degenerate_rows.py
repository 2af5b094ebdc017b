"""Batches without variation or power, and rows that are not finite."""

import copy

import pytest
import torch

from helpers import draw
from sklearn_cfll import ClosedFormLastLayer, EnsembleLastLayer
from small_layers import D, K, make_layer, members

# -- the layer on batches without power -------------------------------------------------------


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
    assert float((layer.weight - before).abs().max()) < 0.01


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
    assert float((layer(value) - 2.0).abs().max()) < 0.2


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
    assert float(weight[0]) == pytest.approx(1.0, abs=0.01)
    assert float(weight[1:].abs().max()) < 0.01


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
    for member, block in zip(layer.members, features.split(D, 1), strict=True):
        power = block.var(0, correction=0).mean()
        torch.testing.assert_close(member.feature_power, power)


# -- rows that are no numbers -----------------------------------------------------------------

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
