"""Networks side by side (`n_members`) and the linear part: what they are made of, exactly."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_cfll import (
    CFLLClassifier,
    CFLLNet,
    CFLLRegressor,
    ClosedFormLastLayer,
    EnsembleLastLayer,
)
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.mlp import MemberLinear
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.final_solve.offset import LinearOffset
from sklearn_cfll.final_solve.refit import shrink_to_evidence
from sklearn_cfll.heads import Head
from sklearn_cfll.training.batches import RowsDataset

M, D, K = 3, 5, 2


def rows(n=40, width=M * D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def pair(**options):
    """An ensemble and its members on their own."""
    options = {"ridge": 0.7, "dtype": torch.float64} | options
    alone = [ClosedFormLastLayer(D, K, **options) for _ in range(M)]
    return EnsembleLastLayer(M * D, K, n_members=M, **options), alone


def blocks(features):
    return features.split(D, -1)


# -- the last layer ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [40, 4], ids=["primal", "dual"])
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_members_are_solved_as_if_alone(n, memory, weighted, fit_intercept):
    together, alone = pair(memory=memory, fit_intercept=fit_intercept)
    weights = torch.rand(n, dtype=torch.float64) + 0.1 if weighted else None
    for seed in range(3):
        features, targets = rows(n, seed=seed), rows(n, K, seed=seed + 10)
        together.step(features, targets, weights)
        for layer, block in zip(alone, blocks(features), strict=True):
            layer.step(block, targets, weights)
    expected = torch.stack([m(b) for m, b in zip(alone, blocks(features), strict=True)])
    torch.testing.assert_close(together.member_predictions(features), expected)
    torch.testing.assert_close(together(features), expected.mean(0))


def test_wide_members_are_solved_as_if_alone():
    """From 128 features on one by one, by conjugate gradients."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(256, 2 * 128, generator=generator)
    targets = torch.randn(256, 1, generator=generator)
    together = EnsembleLastLayer(256, 1, n_members=2, ridge=10.0)
    alone = ClosedFormLastLayer(128, 1, ridge=10.0)
    together.step(features, targets)
    alone.step(features[:, 128:], targets)
    torch.testing.assert_close(together.members[1].weight, alone.weight)


def test_from_outside_it_is_one_linear_layer():
    together, _ = pair()
    features, targets = rows(), rows(width=K)
    together.step(features, targets)
    linear = together.to_linear()
    torch.testing.assert_close(linear(features), together(features))
    torch.testing.assert_close(linear.weight, together.weight)
    torch.testing.assert_close(linear.bias, together.bias)


def test_refit_path_and_left_out_rows_are_means_of_the_members():
    together, alone = pair()
    features, targets = rows(), rows(width=K)
    together.refit([(features[:30], targets[:30]), (features[30:], targets[30:])], ridge=0.1)
    for layer, block in zip(alone, blocks(features), strict=True):
        layer.refit([(block, targets)], ridge=0.1)
    parts = list(zip(alone, blocks(features), strict=True))
    mean = torch.stack([layer(block) for layer, block in parts]).mean(0)
    torch.testing.assert_close(together(features), mean)
    left_out = torch.stack([m.leave_one_out_residuals(b, targets) for m, b in parts]).mean(0)
    torch.testing.assert_close(together.leave_one_out_residuals(features, targets), left_out)
    weights, biases = together.ridge_path(torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(features @ weights[0].T + biases[0], mean)
    together.solve(3.0)
    torch.testing.assert_close(features @ weights[1].T + biases[1], together(features))


def test_left_out_residual_of_the_ensemble_is_a_refit_without_the_row():
    together, _ = pair()
    features, targets = rows(20), rows(20, K)
    together.refit([(features, targets)], ridge=0.5)
    shrinkage = torch.tensor([0.3, 0.8], dtype=torch.float64)
    together.solve(0.5, shrinkage)
    found = together.leave_one_out_residuals(features, targets)[0]
    members = []
    for block in blocks(features):
        centred = block - block.mean(0)
        penalty = 0.5 * centred.square().sum() / centred.numel() * len(block)
        ridge = Ridge(alpha=float(penalty)).fit(block[1:].numpy(), targets[1:].numpy())
        members.append(ridge.predict(block[:1].numpy())[0])
    expected = targets[0].numpy() - shrinkage.numpy() * np.mean(members, axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_spread_of_the_members_adds_to_the_variance():
    together, alone = pair()
    features, targets = rows(), rows(width=K)
    together.refit([(features, targets)])
    for layer, block in zip(alone, blocks(features), strict=True):
        layer.refit([(block, targets)])
    own = torch.stack([m.variance(b, 2.0) for m, b in zip(alone, blocks(features), strict=True)])
    spread = together.member_predictions(features).var(0, correction=0)
    torch.testing.assert_close(together.variance(features, 2.0), own.mean(0) + spread)


def test_uneven_blocks_are_refused():
    with pytest.raises(ValueError, match="`in_features` must be a multiple of `n_members`"):
        EnsembleLastLayer(10, 1, n_members=3)


# -- the networks -----------------------------------------------------------------------------


@pytest.mark.parametrize("binned", [False, True])
def test_members_are_networks_of_their_own(binned):
    X = rows(30, 4)
    widths = (1, 3) if binned else ()
    together = MLPBackbone((8, 6), "tanh", n_members=M).build((4,), widths=widths).double()
    features = together(X)
    assert features.shape == (30, M * 6)
    one = MLPBackbone((8, 6), "tanh").build((4,), widths=widths).double()
    layers = [part for part in together.modules() if isinstance(part, MemberLinear)]
    own = [part for part in one.modules() if isinstance(part, nn.Linear)]
    for member in range(M):
        with torch.no_grad():
            for mine, all_members in zip(own, layers, strict=True):
                mine.weight.copy_(all_members.weight[member].T)
                mine.bias.copy_(all_members.bias[member, 0])
        torch.testing.assert_close(features[:, 6 * member : 6 * (member + 1)], one(X))


def test_member_layers_start_as_linear_layers_do():
    torch.manual_seed(0)
    layer = MemberLinear(50, 16, 30)
    for parameter in (layer.weight, layer.bias):
        assert float(parameter.detach().abs().max()) <= 0.25
        assert float(parameter.detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.05)


@pytest.mark.parametrize("order", ["last_layer_first", "backbone_first"])
def test_a_net_of_two_members_trains_each_as_if_alone(order):
    """SGD on both: nothing but the sum of errors joins them."""
    X, y = rows(60, 4), rows(60, 1, seed=1)
    torch.manual_seed(0)
    backbones = [nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double() for _ in range(2)]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(backbones)

        def forward(self, inputs):
            return torch.cat([part(inputs) for part in self.parts], 1)

    settings = {
        "optimizer": torch.optim.SGD,
        "lr": 0.1,
        "batch_size": 20,
        "max_epochs": 3,
        "update_order": order,
        "last_layer__ridge": 1.0,
        "random_state": 0,
        "verbose": 0,
    }
    alone = [CFLLNet(b, **settings).fit(X, y).predict(X) for b in map(copy_of, backbones)]
    both = CFLLNet(Both(), last_layer=EnsembleLastLayer, last_layer__n_members=2, **settings).fit(
        X, y
    )
    np.testing.assert_allclose(both.predict(X), np.mean(alone, axis=0), rtol=1e-10)


def copy_of(module):
    fresh = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    fresh.load_state_dict(module.state_dict())
    return fresh


# -- the estimators ---------------------------------------------------------------------------


def friedman(n=400, seed=0):
    return make_friedman1(n, n_features=6, noise=0.5, random_state=seed)


@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_features_and_coefficients_are_what_predictions_are_made_of(Estimator):
    X, y = friedman(200)
    y = y if Estimator is CFLLRegressor else y > np.median(y)
    model = Estimator(n_members=3, hidden_layer_sizes=(8,), max_epochs=3, random_state=0).fit(X, y)
    raw = model.predict(X) if Estimator is CFLLRegressor else model.decision_function(X)
    found = (model.features(X) @ model.last_layer_coef_.T + model.last_layer_intercept_)[:, 0]
    np.testing.assert_allclose(found - model._decision_threshold, raw, rtol=1e-9, atol=1e-9)
    joined = model.to_torch()(torch.as_tensor(X)).detach().numpy()[:, 0]
    np.testing.assert_allclose(joined, raw, rtol=1e-9, atol=1e-9)


def test_members_beat_one_of_them():
    X, y = friedman(1200)
    X_test, y_test = friedman(1000, seed=1)
    settings = {"hidden_layer_sizes": (32, 32), "max_epochs": 30, "random_state": 0}
    score = {
        n: CFLLRegressor(n_members=n, **settings).fit(X, y).score(X_test, y_test) for n in (1, 4)
    }
    assert score[4] > score[1]


def test_a_backbone_of_the_users_stays_one_network():
    X, y = friedman(100)
    module = nn.Sequential(nn.Linear(6, 7), nn.ReLU())
    model = CFLLRegressor(module, n_members=4, linear_part=True, max_epochs=2).fit(X, y)
    assert model.features(X).shape == (100, 7)
    assert isinstance(model.net_.module_.last_layer, ClosedFormLastLayer)
    assert not model.resolved_["linear_part"]


# -- the linear part --------------------------------------------------------------------------


def test_linear_part_is_ridge_regression():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    data = RowsDataset(as_rows(X, "cpu", torch.float64), torch.as_tensor(y[:, None]))
    part = LinearOffset(10, 1, torch.float64)
    part.fit(data.subset(range(300)), data.subset(range(300, 442)))
    fine = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 200))).fit(X, y)
    found = part(torch.as_tensor(X)).numpy()[:, 0]
    assert np.abs(found - fine.predict(X)).max() < 0.03  # its scales are those of the first part


@pytest.mark.parametrize("n_rows", [120, 599, 600])
def test_few_rows_take_a_linear_part(n_rows):
    X, y = friedman(n_rows)
    model = CFLLRegressor(max_epochs=2, random_state=0).fit(X, y)
    assert model.resolved_["linear_part"] == (n_rows < 600)
    off = CFLLRegressor(linear_part=False, max_epochs=2, random_state=0).fit(X, y)
    assert not off.resolved_["linear_part"]
    assert model.features(X).shape[1] == off.features(X).shape[1] + (6 if n_rows < 600 else 0)


@pytest.mark.parametrize(("n_rows", "doubt"), [(200, 2.0), (20, 8.0)])
def test_a_part_is_believed_as_far_as_held_out_rows_speak_for_it(n_rows, doubt):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(n_rows, 2))
    targets = predicted * [0.7, 0.0] + rng.normal(size=(n_rows, 2))
    batch = torch.as_tensor(predicted), torch.as_tensor(targets), None
    module = SimpleNamespace(last_layer=lambda features: features)
    net = SimpleNamespace(module_=module, labelled_features=lambda rows: iter([batch]))
    power = np.square(predicted).sum(0)
    share = np.clip((predicted * targets).sum(0) / power, 0, 1)
    error = np.square(predicted * (targets - share * predicted)).sum(0) / power**2
    expected = share**3 / (share**2 + doubt * error)
    found = shrink_to_evidence(net, SimpleNamespace(sample_weight=None)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[1] < 0.2 < found[0] < 0.8


def test_a_linear_target_is_left_to_the_linear_part():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 5))
    y = X @ np.arange(5.0) + rng.normal(size=80)
    X_test = rng.normal(size=(1000, 5))
    truth = X_test @ np.arange(5.0)
    model = CFLLRegressor(random_state=0).fit(X, y)
    ridge = make_pipeline(StandardScaler(), RidgeCV()).fit(X, y)
    error, least = (np.square(m.predict(X_test) - truth).mean() for m in (model, ridge))
    alone = CFLLRegressor(linear_part=False, random_state=0).fit(X, y)
    assert error < least + 0.1  # of a noise variance of 1
    assert error < 0.5 * np.square(alone.predict(X_test) - truth).mean()


def test_linear_part_survives_adapting_streaming_and_warm_starts():
    X, y = friedman(150)
    more, y_more = friedman(60, seed=1)
    model = CFLLRegressor(max_epochs=3, random_state=0).fit(X, y)
    before = model.predict(more)
    again = clone(model).fit(X, y).adapt(more, y_more)
    assert np.abs(again.predict(more) - before).max() > 0
    assert np.square(again.predict(more) - y_more).mean() < np.square(before - y_more).mean()
    streamed = clone(model).fit(X, y).partial_fit(more, y_more)
    assert streamed.resolved_["linear_part"]
    assert np.isfinite(streamed.predict(more)).all()
    warm = clone(model).set_params(warm_start=True).fit(X, y).fit(X, y)
    assert warm.n_iter_ == 6


@pytest.mark.parametrize("shift", [1.0, -1000.0])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_shifting_and_scaling_targets_does_the_same_to_predictions(shift, scale):
    X, y = friedman(100)
    model = CFLLRegressor(max_epochs=5, random_state=0).fit(X, y)
    moved = clone(model).fit(X, shift + scale * y)
    mean, std = model.predict(X, return_std=True)
    moved_mean, moved_std = moved.predict(X, return_std=True)
    np.testing.assert_allclose(moved_mean, shift + scale * mean, rtol=1e-6)
    np.testing.assert_allclose(moved_std, scale * std, rtol=1e-5)


def heavy_tailed(kind, n, seed):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 5))
    if kind == "t(2)":
        X = rng.standard_t(2, size=(n, 4))
        return X, np.clip(X[:, 0], -3, 3) + 0.3 * rng.normal(size=n)
    X = np.exp(Z) if kind == "lognormal" else np.tan(np.pi * (norm.cdf(Z) - 0.5))
    return X, Z[:, 0] + 0.5 * Z[:, 1] + 0.1 * rng.normal(size=n)


@pytest.mark.parametrize("kind", ["lognormal", "Cauchy", "t(2)"])
def test_forty_rows_with_heavy_tails_are_no_cliff(kind):
    errors = []
    for seed in range(4):
        X, y = heavy_tailed(kind, 1040, seed)
        model = CFLLRegressor(random_state=seed).fit(X[:40], y[:40])
        error = np.square(model.predict(X[40:]) - y[40:]).mean()
        errors.append(error / np.square(y[40:] - y[:40].mean()).mean())
    assert np.mean(errors) < 0.3 and np.max(errors) < 0.6


@pytest.mark.parametrize("make", [ClosedFormLastLayer, EnsembleLastLayer])
def test_both_last_layers_are_heads(make):
    head = make(4, 2)
    assert isinstance(head, Head)
    features = torch.randn(6, 5, 4)
    found = head.member_predictions(features)
    assert found.shape == (head.n_members, 6, 5, 2)
    torch.testing.assert_close(found.mean(0), head(features))
