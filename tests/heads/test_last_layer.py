"""ClosedFormLastLayer: exchange, persistence, gradients, refits, variance, errors, loops."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_cfll import ClosedFormLastLayer

EXACT = dict(rtol=1e-10, atol=1e-10)
D, K = 5, 2

intercepts = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "origin"])
weights = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])


def make_rows(*leading, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*leading, D, generator=generator, dtype=torch.float64) + 1.0
    noise = torch.randn(*leading, K, generator=generator, dtype=torch.float64)
    sample_weight = torch.rand(*leading, generator=generator, dtype=torch.float64) + 0.1
    return (
        features,
        features @ torch.arange(float(D * K)).view(D, K).double() + noise,
        sample_weight,
    )


def make_layer(**options):
    return ClosedFormLastLayer(D, K, dtype=torch.float64, **{"ridge": 0.3, **options})


def trained_layer(memory, **options):
    """A layer after a few updates; "refit" is a proximal layer that was refitted."""
    layer = make_layer(memory="proximal" if memory == "refit" else memory, **options)
    for seed in range(3):
        layer.update(*make_rows(20, seed=seed))
    if memory == "refit":
        layer.refit([make_rows(30)], ridge=0.7)
    return layer


memories = pytest.mark.parametrize("memory", ["proximal", "statistics", "refit"])


def ridge_on(features, targets, ridge, fit_intercept=True, sample_weight=None):
    w = np.ones(len(features)) if sample_weight is None else sample_weight.numpy()
    mean = np.average(features, axis=0, weights=w) if fit_intercept else 0.0
    power = np.average((features.numpy() - mean) ** 2, axis=0, weights=w).mean()
    model = Ridge(w.sum() * ridge * power, fit_intercept=fit_intercept, solver="cholesky")
    return model.fit(features.numpy(), targets.numpy(), w)


# -- exchange and persistence ------------------------------------------------------------------


@intercepts
def test_linear_and_closed_form_layer_exchange_state(fit_intercept):
    features, *_ = make_rows(7)
    linear = nn.Linear(D, K, bias=fit_intercept, dtype=torch.float64)
    layer = make_layer(fit_intercept=fit_intercept)
    layer.load_state_dict(linear.state_dict())
    torch.testing.assert_close(layer(features), linear(features), **EXACT)

    layer = trained_layer("proximal", fit_intercept=fit_intercept)
    # Strict, it would stumble over the running feature power.
    linear.load_state_dict(layer.state_dict(), strict=False)
    torch.testing.assert_close(linear(features), layer(features), **EXACT)


@memories
@intercepts
def test_to_linear_predicts_the_same_and_shares_nothing(memory, fit_intercept):
    layer = trained_layer(memory, fit_intercept=fit_intercept)
    features, *_ = make_rows(7)
    linear = layer.to_linear()
    assert type(linear) is nn.Linear and len(list(linear.parameters())) == 1 + fit_intercept
    expected = layer(features)
    torch.testing.assert_close(linear(features), expected, **EXACT)
    with torch.no_grad():
        linear.weight.zero_()
    assert torch.equal(layer(features), expected)


def by_state_dict(layer, into=None):
    """What torch.save writes and torch.load reads without running code."""
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    into = into or make_layer(memory=layer.memory, fit_intercept=layer.fit_intercept)
    into.load_state_dict(torch.load(file, weights_only=True))
    return into


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "state_dict": by_state_dict,
}
copies = pytest.mark.parametrize("copying", COPIES.values(), ids=COPIES)


@copies
@memories
@intercepts
def test_copies_predict_and_go_on_as_the_original(copying, memory, fit_intercept):
    layer = trained_layer(memory, fit_intercept=fit_intercept)
    copied = copying(layer)
    features, targets, w = make_rows(9, seed=8)
    assert torch.equal(copied(features), layer(features))
    if memory != "proximal":
        for held, expected in zip(copied.moments, layer.moments, strict=True):
            assert torch.equal(held, expected)
        assert torch.equal(copied.variance(features, 0.5), layer.variance(features, 0.5))
    before = layer.weight.clone()
    updated = copied.update(features, targets, w)
    assert torch.equal(layer.weight, before)  # nothing shared
    assert torch.equal(updated, layer.update(features, targets, w))


@copies
def test_copies_keep_moments_in_float64_beside_float32_weights(copying):
    layer = ClosedFormLastLayer(D, K, memory="statistics")
    layer.update(*(part.float() for part in make_rows(20)))
    assert layer.weight.dtype == torch.float32 and layer.moments.gram.dtype == torch.float64
    if copying is by_state_dict:
        copied = by_state_dict(layer, ClosedFormLastLayer(D, K, memory="statistics"))
    else:
        copied = copying(layer)
    assert torch.equal(copied.moments.gram, layer.moments.gram)


def test_loading_a_state_without_moments_forgets_them():
    layer = by_state_dict(trained_layer("proximal"), into=trained_layer("refit"))
    assert layer.moments is None
    with pytest.raises(RuntimeError, match=r"`variance` needs the moments .*`refit\(batches\)`"):
        layer.variance(make_rows(3)[0])


def test_state_inside_a_network_is_restored_too():
    networks = [nn.Sequential(nn.Linear(3, D, dtype=torch.float64), make_layer()) for _ in "ab"]
    features, targets, _ = make_rows(20)
    networks[0][1].refit([(features, targets)])
    networks[1].load_state_dict(networks[0].state_dict())
    assert torch.equal(networks[1][1].variance(features), networks[0][1].variance(features))


def test_layer_has_no_parameters_so_an_optimiser_sees_the_backbone_alone():
    network = nn.Sequential(nn.Linear(3, D), nn.Tanh(), ClosedFormLastLayer(D, K))
    assert not list(network[-1].parameters())
    seen = {
        id(p)
        for group in torch.optim.Adam(network.parameters()).param_groups
        for p in group["params"]
    }
    assert seen == {id(p) for p in network[0].parameters()}
    assert set(network[-1].state_dict()) == {"weight", "bias"}


def test_moving_a_layer_casts_weights():
    layer = trained_layer("proximal").float()
    assert layer.weight.dtype == layer.bias.dtype == torch.float32
    features, targets, _ = (part.float() for part in make_rows(10))
    assert layer.update(features, targets).dtype == torch.float32


# -- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_gradient_reaches_features_but_not_the_solve(memory):
    features, targets, w = make_rows(20)
    layer = make_layer(memory=memory)
    features.requires_grad_()
    prediction = layer.update(features, targets, w)
    assert not layer.weight.requires_grad and not layer.bias.requires_grad
    loss = (prediction - targets).square().sum()
    (gradient,) = torch.autograd.grad(loss, features)
    # The weights count as constants: d‖ΦWᵀ + b - Y‖² = 2 (ΦWᵀ + b - Y) W.
    expected = 2 * (features @ layer.weight.T + layer.bias - targets) @ layer.weight
    torch.testing.assert_close(gradient, expected, **EXACT)


def test_update_leaves_the_graph_of_an_earlier_prediction_usable():
    # backbone_first may solve before an earlier graph is differentiated: no in-place change.
    features, targets, _ = make_rows(20)
    layer = trained_layer("proximal")
    features.requires_grad_()
    earlier = layer(features).sum()
    weight = layer.weight.clone()
    with torch.no_grad():
        layer.update(features, targets)
    earlier.backward()
    torch.testing.assert_close(features.grad, weight.sum(0).expand(20, D), **EXACT)


# -- shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("weight_kind", ["none", "sample", "position"])
def test_leading_dimensions_equal_flattened_rows(memory, weight_kind):
    features, targets, per_position = make_rows(6, 4, 3)
    per_sample = torch.arange(1.0, 7.0).double()
    given, flat = {
        "none": (None, None),
        "sample": (per_sample, per_sample.repeat_interleave(12)),
        "position": (per_position, per_position.flatten()),
    }[weight_kind]
    grid, rows = make_layer(memory=memory), make_layer(memory=memory)
    prediction = grid.update(features, targets, given)
    expected = rows.update(features.reshape(-1, D), targets.reshape(-1, K), flat)
    assert prediction.shape == targets.shape
    torch.testing.assert_close(prediction.reshape(-1, K), expected, **EXACT)
    torch.testing.assert_close(grid.weight, rows.weight, **EXACT)
    assert grid.refit([(features, targets)]).variance(features).shape == targets.shape


def test_single_vector_of_features_is_a_row():
    layer = trained_layer("refit")
    features, *_ = make_rows(3)
    assert layer(features[0]).shape == layer.variance(features[0]).shape == (K,)


# -- refits ------------------------------------------------------------------------------------

SPLITS = {"whole": [30], "single_rows": [1] * 30, "uneven": [2, 17, 11], "even": [10] * 3}


@pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
@weights
@intercepts
def test_refit_over_any_split_is_ridge_regression(split, weighted, fit_intercept):
    features, targets, w = make_rows(30)
    parts = (features, targets, w)[: 2 + weighted]
    batches = zip(*(part.split(split) for part in parts), strict=True)  # an iterator: one pass
    layer = trained_layer("statistics", fit_intercept=fit_intercept)  # memory must be cleared
    assert layer.refit(batches, ridge=0.2) is layer
    expected = ridge_on(features, targets, 0.2, fit_intercept, w if weighted else None)
    np.testing.assert_allclose(layer.weight, expected.coef_, **EXACT)
    if fit_intercept:
        np.testing.assert_allclose(layer.bias, expected.intercept_, **EXACT)
    else:
        assert layer.bias is None


def test_accumulating_and_solving_equals_a_refit_on_the_union():
    first, second = make_rows(20), make_rows(15, seed=1)
    together = make_layer().refit([first, second], ridge=0.3)
    added = make_layer().refit([first], ridge=0.3).accumulate(*second).solve()
    torch.testing.assert_close(added.weight, together.weight, **EXACT)
    torch.testing.assert_close(added.bias, together.bias, **EXACT)


def test_accumulating_alone_leaves_the_weights():
    layer = trained_layer("proximal")
    before = layer.weight.clone()
    layer.accumulate(*make_rows(10))
    assert torch.equal(layer.weight, before)
    layer.reset_memory()
    assert layer.moments is None and torch.equal(layer.weight, before)


def test_refit_of_float32_features_adds_up_in_float64():
    features, targets, _ = make_rows(4000)
    features, targets = features.float() + 30.0, targets.float()
    layer = ClosedFormLastLayer(D, K).refit(
        zip(features.split(100), targets.split(100), strict=True), ridge=1e-6
    )
    expected = ridge_on(features.double(), targets.double(), 1e-6)
    np.testing.assert_allclose(layer.weight, expected.coef_, rtol=1e-5, atol=1e-5)


# -- variance ----------------------------------------------------------------------------------


@weights
@intercepts
@pytest.mark.parametrize("memory", ["refit", "statistics"])
def test_variance_is_that_of_bayesian_linear_regression(weighted, fit_intercept, memory):
    features, targets, w = make_rows(30)
    w = w if weighted else None
    layer = make_layer(
        memory="proximal" if memory == "refit" else memory, fit_intercept=fit_intercept, ridge=0.4
    )
    if memory == "refit":
        layer.refit([(features, targets, *([] if w is None else [w]))], ridge=0.4)
    else:
        layer.update(features, targets, w)
    noise = torch.tensor([0.5, 2.0]).double()

    # Brute force: posterior covariance σ²(AᵀWA + P)⁻¹, an intercept with a flat prior.
    w = torch.ones(30).double() if w is None else w
    design = torch.cat([features, torch.ones(30, int(fit_intercept)).double()], 1)
    mean = (w @ features) / w.sum() if fit_intercept else 0.0
    power = (w @ (features - mean).square()).sum() / w.sum() / D
    prior = torch.zeros(design.shape[1]).double()
    prior[:D] = 0.4 * power * w.sum()
    covariance = torch.linalg.inv(design.T @ (w[:, None] * design) + torch.diag(prior))
    new, *_ = make_rows(8, seed=4)
    rows = torch.cat([new, torch.ones(8, int(fit_intercept)).double()], 1)
    expected = torch.outer(1 + (rows @ covariance * rows).sum(1), noise)
    torch.testing.assert_close(layer.variance(new, noise), expected, **EXACT)


def test_variance_follows_the_ridge_of_the_last_solve():
    new, *_ = make_rows(4, seed=2)
    rows = make_rows(30)
    given = make_layer(ridge=0.3).refit([rows], ridge=5.0)
    own = make_layer(ridge=5.0, memory="statistics")
    own.step(*rows)
    torch.testing.assert_close(given.variance(new), own.variance(new), **EXACT)


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ridge": -1.0}, "`ridge` must be zero or positive.*-1.0"),
        ({"ridge": float("nan")}, "`ridge` must be zero or positive.*nan"),
        ({"decay": 1.5}, "`decay` must lie between 0 and 1.*1.5"),
        ({"decay": -0.1}, "`decay` must lie between 0 and 1.*-0.1"),
        ({"memory": "elephant"}, "`memory` must be one of .*statistics.*'elephant'"),
        ({"solver": "qr"}, "`solver` must be one of .*cholesky.*'qr'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_layer(**options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((9, D + 1), (9, K), (9,)), r"`features` must have 5 columns.*\(9, 6\)"),
        (((9, D), (9,), (9,)), r"`targets` must have shape \(9, 2\).*\(9,\).*unsqueeze\(-1\)"),
        (((9, D), (8, K), (9,)), r"`targets` must have shape \(9, 2\).*\(8, 2\)"),
        (((9, 4, D), (9, K), (9,)), r"`targets` must have shape \(9, 4, 2\)"),
        (((9, 4, D), (9, 4, K), (4,)), r"`sample_weight` must have shape \(9,\) or \(9, 4\)"),
    ],
)
def test_wrong_shapes_are_named(shapes, message):
    with pytest.raises(ValueError, match=message):
        make_layer().update(*(torch.ones(shape).double() for shape in shapes))


@pytest.mark.parametrize("method", ["variance", "solve"])
def test_what_needs_moments_says_how_to_get_them(method):
    layer = trained_layer("proximal")
    arguments = [make_rows(3)[0]] if method == "variance" else []
    with pytest.raises(RuntimeError, match=rf"`{method}` needs.*refit\(batches\)"):
        getattr(layer, method)(*arguments)


def test_repr_shows_what_matters():
    text = repr(make_layer(ridge=0.3, decay=0.5, memory="statistics"))
    for part in ("in_features=5", "out_features=2", "ridge=0.3", "decay=0.5", "statistics"):
        assert part in text


# -- in a loop of one's own --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["last_layer_first", "backbone_first"])
@pytest.mark.parametrize("solver", ["auto", "cholesky", "cg"])
def test_plain_loop_learns_in_fifty_steps(order, solver):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 2, generator=generator) * 2 - 1
    y = torch.sin(4 * x[:, :1]) * x[:, 1:]
    backbone = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
    with torch.no_grad():
        for p in backbone.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    head = ClosedFormLastLayer(32, 1, ridge=0.1, solver=solver)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=0.02)
    initial = float(y.square().mean())  # the weights start at zero
    for step in range(50):
        batch = torch.arange(64) + 64 * (step % 4)
        if order == "last_layer_first":
            prediction = head.update(backbone(x[batch]), y[batch])
        else:
            prediction = head(backbone(x[batch]))
        loss = F.mse_loss(prediction, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if order == "backbone_first":
            with torch.no_grad():
                head.update(backbone(x[batch]), y[batch])
    assert F.mse_loss(head(backbone(x)), y).item() < 0.1 * initial
