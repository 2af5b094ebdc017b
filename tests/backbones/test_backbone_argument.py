"""Ways to give an estimator a backbone; whole networks; images and fields."""

import functools

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_friedman1
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import MLPBackbone
from small_networks import X, convolutional_network, regressor, y

X_new, y_new = make_friedman1(300, n_features=6, noise=0.3, random_state=1)


def features_network():
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh())


def whole_network(n_outputs=1):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, n_outputs))


def build_network(input_shape, width=16):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh())


class BuildsNetwork(nn.Sequential):
    """A module class takes the sample shape, as any callable does."""

    def __init__(self, input_shape, width=16):
        super().__init__(nn.Linear(input_shape[0], width), nn.Tanh())


with torch.random.fork_rng():
    torch.manual_seed(0)
    MODULES = {"module": features_network(), "whole_network": whole_network()}

BACKBONES = {
    "none": None,
    **MODULES,
    "function": build_network,
    "function_with_options": functools.partial(build_network, width=16),
    "class": BuildsNetwork,
    "class_with_options": functools.partial(BuildsNetwork, width=16),
    "recipe": MLPBackbone((16,), activation="tanh"),
}


# -- ways to give one -------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_of_backbone_trains(name):
    model = regressor(BACKBONES[name]).fit(X, y)
    assert model.features(X).shape == (150, 16)
    assert model.last_layer_coef_.shape == (1, 16)
    assert model.score(X_new, y_new) > 0.75


@pytest.mark.parametrize("name", BACKBONES)
def test_every_kind_of_backbone_can_be_cloned_and_fitted_again(name):
    model = regressor(BACKBONES[name]).fit(X, y)
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@BOTH
@pytest.mark.parametrize("build", [features_network, whole_network])
def test_the_module_given_stays_as_it_was(Estimator, build):
    module = build()
    module.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    children = [str(child) for child in module]
    target = y if Estimator is CFLLRegressor else y > y.mean()
    model = Estimator(module, max_epochs=3, random_state=0).fit(X, target)
    model.partial_fit(X, target)
    assert model.backbone is module
    assert not module.training
    assert [str(child) for child in module] == children
    assert all(parameter.grad is None for parameter in module.parameters())
    for name, value in module.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_the_recipe_given_stays_as_it_was():
    recipe = MLPBackbone((16,))
    model = regressor(recipe).fit(X, y)
    model.set_params(backbone__hidden_layer_sizes=(8,))
    assert recipe.hidden_layer_sizes == (8,)  # set_params goes to the user's own recipe
    assert model.features(X).shape == (150, 16)  # what was fitted does not change with it


def test_training_starts_from_the_weights_of_the_module():
    module = features_network()
    model = regressor(module, learning_rate=1e-12, max_epochs=1).fit(X, y)
    with torch.no_grad():
        expected = module(torch.as_tensor(X, dtype=torch.float32)).numpy()
    np.testing.assert_allclose(model.features(X), expected, atol=1e-5)


def test_frozen_parameters_stay_frozen():
    module = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    module[0].requires_grad_(False)
    model = regressor(module).fit(X, y)
    torch.testing.assert_close(model.backbone_[0].weight.float(), module[0].weight)
    assert not torch.allclose(model.backbone_[2].weight.float(), module[2].weight)


def test_a_wholly_frozen_module_is_ridge_on_its_features():
    module = features_network().requires_grad_(False)
    model = regressor(module).fit(X, y)
    features = model.features(X)
    centred = features - features.mean(0)
    alpha = model.final_ridge_ * len(X) * np.square(centred).sum() / features.size
    expected = Ridge(alpha=alpha).fit(features, y).predict(features)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-7)


@pytest.mark.parametrize("width", [3, 24])
def test_bound_options_reach_the_callable(width):
    model = regressor(functools.partial(build_network, width=width)).fit(X, y)
    assert model.features(X).shape == (150, width)


def test_callable_gets_the_shape_of_a_sample():
    seen = []

    def build(input_shape):
        seen.append(tuple(input_shape))
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU())

    regressor(build).fit(np.hstack([X, X]).reshape(-1, 4, 3), y)
    assert set(seen) == {(4, 3)}


def test_recipe_parameters_are_searched_over():
    search = GridSearchCV(
        regressor(MLPBackbone(), max_epochs=3),
        {"backbone__hidden_layer_sizes": [(4,), (32,)], "backbone__activation": ["tanh"]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    width = search.best_params_["backbone__hidden_layer_sizes"][0]
    assert search.best_estimator_.features(X).shape == (150, width)
    assert len(set(search.cv_results_["mean_test_score"])) == 2


def test_recipe_is_the_default_network():
    default = regressor(activation="tanh", dropout=0.2, hidden_layer_sizes=(16, 16), n_members=2)
    recipe = regressor(MLPBackbone((16, 16), "tanh", 0.2, 2), n_members="auto")
    np.testing.assert_array_equal(default.fit(X, y).predict(X), recipe.fit(X, y).predict(X))


def test_lazy_layers_take_their_width_from_the_data():
    module = nn.Sequential(nn.LazyLinear(16), nn.Tanh(), nn.LazyLinear(1))
    model = regressor(module).fit(X, y)
    assert isinstance(module[0].weight, nn.UninitializedParameter)
    assert model.backbone_[0].in_features == 6
    assert model.score(X_new, y_new) > 0.72


@pytest.mark.parametrize("module", [nn.Identity(), nn.Tanh(), nn.Flatten()])
def test_backbone_without_parameters_is_ridge_on_fixed_features(module):
    X, y = load_diabetes(return_X_y=True)
    model = regressor(module, max_epochs=2, precision="float64").fit(X, y)
    features = np.tanh(X) if isinstance(module, nn.Tanh) else X
    centred = features - features.mean(0)
    alpha = model.final_ridge_ * len(X) * np.square(centred).sum() / features.size
    expected = Ridge(alpha=alpha).fit(features, y).predict(features)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-7)
    with torch.no_grad():
        joined = model.to_torch()(torch.as_tensor(X)).numpy()[:, 0]
    np.testing.assert_allclose(joined, expected, rtol=1e-7)


def test_backbone_without_parameters_classifies():
    X, y = load_iris(return_X_y=True)
    model = CFLLClassifier(nn.Identity(), max_epochs=2, random_state=0).fit(X[::2], y[::2])
    assert model.last_layer_coef_.shape == (3, 4)
    assert model.score(X[1::2], y[1::2]) > 0.85


# -- whole networks ---------------------------------------------------------------------------


class Network(nn.Module):
    """Its last layer is neither last registered nor in a Sequential."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 2)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, inputs):
        return self.out(self.body(inputs))


@pytest.mark.parametrize("build", [whole_network, Network], ids=["sequential", "subclass"])
def test_last_linear_layer_is_split_off_and_put_back(build):
    network = build()
    n_outputs = 1 if build is whole_network else 2
    targets = np.column_stack([y, -3 * y])[:, :n_outputs]
    model = regressor(network).fit(X, targets)
    assert model.last_layer_coef_.shape == (n_outputs, 16)
    module = model.to_torch()
    assert type(module) is type(network)
    assert set(module.state_dict()) == set(network.state_dict())
    with torch.no_grad():
        outputs = module(torch.as_tensor(X)).numpy()
    np.testing.assert_allclose(outputs, model.predict(X), atol=1e-5)


def test_last_layer_of_another_width_is_replaced_by_one_that_fits_y():
    model = regressor(whole_network(n_outputs=7)).fit(X, y)
    assert model.predict(X).shape == y.shape
    with torch.no_grad():
        assert model.to_torch()(torch.as_tensor(X)).shape == (150, 1)


def test_network_without_bias_gets_an_intercept_all_the_same():
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1, bias=False))
    model = regressor(network).fit(X, y + 1000)
    with torch.no_grad():
        outputs = model.to_torch()(torch.as_tensor(X)).numpy()[:, 0]
    np.testing.assert_allclose(outputs, model.predict(X), rtol=1e-7)
    assert abs(model.predict(X).mean() - 1000 - y.mean()) < 1


@pytest.mark.parametrize("last", [nn.ReLU(), nn.Sigmoid(), nn.Softplus(), nn.ReLU(inplace=True)])
def test_network_that_ends_in_an_activation_is_a_backbone(last):
    network = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), last)
    model = regressor(network).fit(X, y)
    assert model.features(X).shape == (150, 8)
    assert model.features(X).min() >= 0


def test_network_that_is_one_linear_layer_is_ridge():
    model = regressor(nn.Linear(6, 1), max_epochs=1).fit(X, y)
    np.testing.assert_allclose(model.features(X), X)
    assert isinstance(model.to_torch(), nn.Linear)


# -- images and fields ------------------------------------------------------------------------


def test_convolutional_backbone_reads_digits():
    digits = load_digits()
    images = digits.images[:, None] / 16
    model = CFLLClassifier(convolutional_network(), max_epochs=5, batch_size=128, random_state=0)
    model.fit(images[:1200], digits.target[:1200])
    assert model.score(images[1200:], digits.target[1200:]) > 0.9
    assert model.predict_proba(images[:5]).shape == (5, 10)


def test_samples_of_another_shape_are_refused():
    images = load_digits().images[:100, None]
    model = CFLLClassifier(convolutional_network(), max_epochs=1).fit(
        images, load_digits().target[:100]
    )
    with pytest.raises(ValueError, match=r"samples of shape \(8, 8\).*fitted on.*\(1, 8, 8\)"):
        model.predict(images[:, 0])
    with pytest.raises(ValueError, match=r"shape \(1, 6, 8\)"):
        model.predict(images[:, :, :6])


def test_samples_with_three_dimensions_in_all():
    sequences = np.random.default_rng(0).normal(size=(200, 5, 3))
    targets = sequences.sum((1, 2))
    network = nn.Sequential(nn.Flatten(), nn.Linear(15, 16), nn.ReLU(), nn.Linear(16, 1))
    model = regressor(network, max_epochs=30).fit(sequences[:150], targets[:150])
    assert model.predict(sequences).shape == (200,)
    assert model.score(sequences[150:], targets[150:]) > 0.95


def fields(n_rows=120, n_points=24):
    """Inputs and their running means on a circle."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(n_rows, 1, n_points))
    return inputs, (np.roll(inputs, 1, 2) + inputs + np.roll(inputs, -1, 2)) / 3


def field_network(n_outputs=1):
    return nn.Sequential(
        nn.Conv1d(1, 12, 3, padding=1, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv1d(12, n_outputs, 1),
    )


@pytest.mark.parametrize("layout", ["(n, grid)", "(n, 1, grid)", "(n, 2, grid)"])
def test_targets_at_each_position(layout):
    inputs, outputs = fields(160)
    targets = {
        "(n, grid)": outputs[:, 0],
        "(n, 1, grid)": outputs,
        "(n, 2, grid)": np.concatenate([outputs, 1 - 2 * outputs], axis=1),
    }[layout]
    k = 2 if layout == "(n, 2, grid)" else 1
    model = regressor(field_network(k), max_epochs=20, batch_size=30).fit(
        inputs[:120], targets[:120]
    )
    assert model.features(inputs).shape == (160, 24, 12)
    assert model.last_layer_coef_.shape == (k, 12)
    assert model.n_outputs_ == k
    assert model.predict(inputs[:9]).shape == (9, *targets.shape[1:])
    assert model.score(inputs[120:], targets[120:]) > 0.995
    prediction, deviation = model.predict(inputs[120:], return_std=True)
    assert deviation.shape == (40, *targets.shape[1:])
    assert 0.5 < np.mean(((prediction - targets[120:]) / deviation) ** 2) < 1.5
    with torch.no_grad():
        outputs = model.to_torch()(torch.as_tensor(inputs)).numpy()
    np.testing.assert_allclose(outputs.reshape(targets.shape), model.predict(inputs), atol=1e-5)


def test_field_predictions_have_the_units_of_each_target():
    inputs, outputs = fields()
    targets = np.concatenate([100 * outputs, 5 - 0.01 * outputs], axis=1)
    model = regressor(field_network(2), max_epochs=20, batch_size=30).fit(inputs, targets)
    rows = model.features(inputs) @ model.last_layer_coef_.T + model.last_layer_intercept_
    np.testing.assert_allclose(np.moveaxis(rows, -1, 1), model.predict(inputs), rtol=1e-8)
    errors = np.square(targets - model.predict(inputs)).mean((0, 2))
    assert np.all(errors < 0.02 * targets.var((0, 2)))


def test_channels_may_come_last():
    inputs, outputs = fields()
    inputs, targets = inputs[:, 0, :, None], np.moveaxis(outputs, 1, -1)
    pointwise = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    model = regressor(pointwise).fit(inputs, targets)
    assert model.features(inputs).shape == (120, 24, 8)
    assert model.predict(inputs).shape == targets.shape


def test_targets_that_do_not_match_the_positions_are_refused():
    inputs, outputs = fields()
    with pytest.raises(ValueError, match=r"positions \(24\), so y must have shape \(n, 24\)"):
        regressor(field_network()).fit(inputs, outputs[:, 0, :-1])


def test_sample_weights_count_each_position_of_a_sample():
    inputs, outputs = fields(40)
    weights = np.random.default_rng(1).integers(0, 4, 40)
    model = regressor(field_network(), batch_size="full", max_epochs=5, early_stopping=False)
    weighted = model.fit(inputs, outputs, weights).predict(inputs)
    repeated = model.fit(inputs.repeat(weights, axis=0), outputs.repeat(weights, axis=0)).predict(
        inputs
    )
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)
