"""Fourier neural operators: splitting off the last map, layouts of fields, other grids."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.backbones.joining import join_last_layer
from sklearn_cfll.backbones.splitting import split_last_layer
from sklearn_cfll.datasets import make_burgers

pytest.importorskip("neuralop")
from neuralop.models import FNO, TFNO, UNO

GRIDS = {1: (24,), 2: (12, 10), 3: (8, 6, 4)}


def recipe(**options):
    return FNOBackbone(**{"n_modes": 4, "hidden_channels": 6, "n_layers": 2, **options})


def regressor(**options):
    backbone = options.pop("backbone", None) or recipe()
    settings = {"batch_size": 10, "max_epochs": 2, "learning_rate": 5e-3, "random_state": 0}
    return CFLLRegressor(backbone, **{**settings, **options})


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def smooth_fields(n, *grid, seed=0):
    """Random trigonometric polynomials of low degree on the unit cube, and a nonlinear image."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(size) / size for size in grid), indexing="ij")
    X = np.zeros((n, *grid))
    for axis in axes:
        a, b = rng.normal(size=(2, n, *[1] * len(grid)))
        X += a * np.sin(2 * np.pi * axis) + b * np.cos(2 * np.pi * axis)
    return X, np.tanh(X) + 0.5 * X.mean(tuple(range(1, X.ndim)), keepdims=True)


@pytest.fixture(scope="module")
def fitted():
    X, y = smooth_fields(40, 24)
    return regressor(max_epochs=10, early_stopping=False).fit(X, y), X, y


# -- the recipe ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", GRIDS)
def test_features_are_those_of_the_whole_network_before_its_last_map(dimension):
    grid = GRIDS[dimension]
    torch.manual_seed(0)
    module = recipe(channels="first").build((2, *grid)).eval()
    options = {"n_modes": (4,) * dimension, "hidden_channels": 6, "n_layers": 2}
    whole = FNO(in_channels=2, out_channels=3, positional_embedding="grid", **options).eval()
    missing = whole.load_state_dict(
        {
            key.removeprefix("operator."): value
            for key, value in module.state_dict().items()
            if key.startswith("operator.")
        },
        strict=False,
    ).missing_keys
    assert missing == ["projection.fcs.1.weight", "projection.fcs.1.bias"]
    X = torch.randn(3, 2, *grid)
    features = module(X)
    assert features.shape == (3, *grid, 12)
    last = whole.projection.fcs[-1]
    expected = whole(X)
    got = nn.functional.linear(features, last.weight[..., 0], last.bias).movedim(-1, 1)
    torch.testing.assert_close(got, expected)


def test_build_is_seeded_by_torch_and_leaves_the_warning_filters():
    import warnings

    before = list(warnings.filters)
    modules = []
    for _ in range(2):
        torch.manual_seed(3)
        modules.append(recipe().build((24,)))
    assert warnings.filters == before
    X = torch.randn(2, 24)
    assert torch.equal(modules[0](X), modules[1](X))


def test_state_holds_tensors_only():
    module = recipe().build((24,))
    state = module.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    recipe().build((24,)).load_state_dict(state)
    copy.deepcopy(module).load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"positional_embedding": None},
        {"norm": "instance_norm"},
        {"domain_padding": 0.25},
        {"lifting_channel_ratio": 1.0, "projection_channel_ratio": 1.5},
        {"options": {"factorization": "tucker", "rank": 0.5}},
        {"options": {"use_channel_mlp": False, "fno_skip": "identity"}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_reach_the_network(options):
    module = recipe(**options).build((24,))
    width = int(6 * options.get("projection_channel_ratio", 2))
    features = module(torch.randn(2, 24))
    assert features.shape == (2, 24, width)
    features.square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({"n_modes": (4, 4)}, (24,), r"X must have shape \(n, grid_1, grid_2\), got.*\(24,\)"),
        ({"n_modes": (4,)}, (2, 24), r"X must have shape \(n, grid_1\).*`channels` states"),
        ({"n_modes": (4,), "channels": "first"}, (24,), r"\(n, channels, grid_1\), got.*\(24,\)"),
        ({"n_modes": (4, 4), "channels": "last"}, (8, 8), r"\(n, grid_1, grid_2, channels\)"),
        ({}, (), r"X must have shape \(n, grid_1\) or \(n, grid_1, grid_2\) or"),
        ({"n_modes": (30,)}, (24,), r"`n_modes` must be at most the grid's size.*\(24,\)"),
        ({"n_modes": (0,)}, (24,), r"`n_modes` must hold positive integers.*got \(0,\)"),
        ({"channels": "middle"}, (24,), r"'channels' parameter.*'middle'"),
        ({"positional_embedding": "sin"}, (24,), "'positional_embedding' parameter.*'sin'"),
        ({"hidden_channels": 0}, (24,), "'hidden_channels' parameter.*an int.*Got 0"),
        ({"projection_channel_ratio": 0.1}, (24,), "`projection_channel_ratio` must leave"),
    ],
)
def test_what_cannot_be_built_is_explained(options, shape, message):
    with pytest.raises(ValueError, match=message):
        recipe(**options).build(shape)


def test_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "neuralop.models", None)
    with pytest.raises(ImportError, match=r"pip install sklearn-cfll\[operators\]"):
        recipe().build((24,))


@pytest.mark.parametrize("channels", [None, "first", "last"])
def test_each_channel_is_standardised_by_all_its_points(channels):
    X = draw(30, 2, 24) * np.array([1.0, 50.0])[:, None] + np.array([0.0, 900.0])[:, None]
    X = {None: X[:, 1], "first": X, "last": np.moveaxis(X, 1, -1)}[channels]
    model = regressor(backbone=recipe(channels=channels), max_epochs=1, early_stopping=False)
    model.fit(X, draw(30, 24))
    standardize = model.backbone_.standardize
    axes = {None: None, "first": (0, 2), "last": (0, 1)}[channels]
    np.testing.assert_allclose(standardize.mean.numpy(), X.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(standardize.scale.numpy(), X.std(axes), rtol=1e-6)


# -- any operator of neuraloperator --------------------------------------------------------------


def operators():
    options = {"in_channels": 2, "out_channels": 3, "hidden_channels": 6, "n_layers": 2}
    for dimension, grid in GRIDS.items():
        for kind in (FNO, TFNO):
            name = f"{kind.__name__}-{dimension}d"
            yield pytest.param(kind, {**options, "n_modes": (4,) * dimension}, grid, id=name)
    uno = {"projection_channels": 12, "n_layers": 3, "uno_out_channels": [6, 6, 6]}
    uno |= {"channel_mlp_skip": "linear"}
    uno |= {"uno_n_modes": [[4, 4]] * 3, "uno_scalings": [[1, 1], [0.5, 0.5], [2, 2]]}
    yield pytest.param(UNO, {**options, **uno}, (12, 12), id="UNO-2d")


@pytest.mark.parametrize(("kind", "options", "grid"), [*operators()])
def test_last_map_of_any_operator_is_split_off_and_put_back_exactly(kind, options, grid):
    network = kind(**options).eval()
    X = torch.randn(3, 2, *grid)
    expected = network(X).detach()
    last = network.projection.fcs[-1]
    backbone = split_last_layer(network, X)
    assert backbone.removed == "projection.fcs.1" and backbone.channels_first
    assert backbone.feature_shape == (*grid, 12)
    linear = nn.Linear(12, 3)
    with torch.no_grad():
        linear.weight.copy_(last.weight[..., 0])
        linear.bias.copy_(last.bias)
    torch.testing.assert_close(linear(backbone.module(X)).movedim(-1, 1), expected)
    assert torch.equal(join_last_layer(backbone, linear)(X), expected)


@pytest.mark.parametrize(("kind", "options", "grid"), [*operators()])
def test_operator_brought_by_the_user_is_fitted_pickled_and_taken_to_torch(kind, options, grid):
    X, y = draw(12, 2, *grid), draw(12, 3, *grid, seed=1)
    model = regressor(backbone=kind(**options), max_epochs=1).fit(X, y)
    assert model.last_layer_coef_.shape == (3, 12)
    fine = draw(2, 2, *(2 * size for size in grid))
    prediction = model.predict(fine)
    assert prediction.shape == (2, 3, *fine.shape[2:])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(fine), prediction)
    with torch.no_grad():
        whole = model.to_torch()(torch.as_tensor(fine)).numpy()
    np.testing.assert_allclose(whole, prediction, rtol=1e-4, atol=1e-5)


# -- fields in and out ---------------------------------------------------------------------------


@pytest.mark.parametrize("dimension", GRIDS)
@pytest.mark.parametrize("channels", [None, "first", "last"])
def test_predictions_come_back_in_the_shape_of_y(dimension, channels):
    grid = GRIDS[dimension]
    X = {None: draw(12, *grid), "first": draw(12, 3, *grid), "last": draw(12, *grid, 3)}[channels]
    model = regressor(backbone=recipe(channels=channels), max_epochs=1)
    for y in (draw(12, *grid), draw(12, 2, *grid), draw(12, *grid, 2), draw(12, 1, *grid)):
        model.fit(X, y)
        assert model.predict(X[:5]).shape == (5, *y.shape[1:])
        assert model.last_layer_coef_.shape == (y[0].size // np.prod(grid), 12)
        assert model.features(X[:5]).shape == (5, *grid, 12)


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize("channels", [None, "first", "last"])
def test_another_grid_is_predicted_with_little_loss(dimension, channels):
    grid = (32,) if dimension == 1 else (16, 16)
    fine = tuple(4 * size for size in grid)

    def layout(fields):
        return {None: fields, "first": fields[:, None], "last": fields[..., None]}[channels]

    X, y = smooth_fields(60, *grid)
    X_fine, y_fine = smooth_fields(20, *fine)
    model = regressor(
        backbone=recipe(channels=channels),
        max_epochs=20,
        learning_rate=1e-2,
        ridge=1e-2,
        early_stopping=True,
    ).fit(layout(X), y)
    error = np.linalg.norm(model.predict(layout(X)) - y) / np.linalg.norm(y)
    prediction, std = model.predict(layout(X_fine), return_std=True)
    error_fine = np.linalg.norm(prediction - y_fine) / np.linalg.norm(y_fine)
    assert prediction.shape == std.shape == (20, *fine)
    assert error < 0.25 and error_fine < 1.2 * error
    assert model.score(layout(X_fine), y_fine) > 0.9


def test_validation_samples_may_come_on_another_grid():
    X, y = smooth_fields(40, 24)
    losses = []
    for grid in (24, 48):
        X_val, y_val = smooth_fields(20, grid, seed=1)
        model = regressor().fit(X, y, X_val=X_val, y_val=y_val)
        losses.append([row["valid_loss"] for row in model.history_])
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert losses[0][-1] < 0.7 * losses[0][0]


def test_final_ridge_of_a_few_fields_may_be_small_for_their_points_are_many():
    X, _ = smooth_fields(60, 32)
    model = regressor(max_epochs=10).fit(X, 2 * X + 1)
    path = model.ridge_path_
    assert model.final_ridge_ == path["ridge"][path["error"].argmin()] < 5e-4


def test_std_on_the_grid_covers_the_truth():
    X, y = smooth_fields(260, 24)
    model = regressor(max_epochs=5).fit(X[:200], y[:200])
    prediction, std = model.predict(X[200:], return_std=True)
    assert prediction.shape == std.shape == (60, 24)
    assert 0.5 < np.mean(((prediction - y[200:]) / std) ** 2) < 2
    assert (np.abs(prediction - y[200:]) < 3 * std).mean() > 0.95


def test_parameter_of_a_sample_is_a_constant_channel():
    X, y = smooth_fields(80, 24)
    factor = np.random.default_rng(1).uniform(0.5, 2.0, 80)
    parameter = np.broadcast_to(factor[:, None], X.shape)
    fields = np.stack([X, parameter], 1)
    y = factor[:, None] * y
    options = {"max_epochs": 30, "ridge": 1e-2, "early_stopping": False}
    options["learning_rate_schedule"] = "cosine"
    told = regressor(backbone=recipe(channels="first"), **options).fit(fields[:60], y[:60])
    untold = regressor(backbone=recipe(), **options).fit(X[:60], y[:60])
    assert told.score(fields[60:], y[60:]) > 0.95 > untold.score(X[60:], y[60:])


def test_weights_of_relative_error_help_the_small_fields():
    X, y = smooth_fields(60, 24)
    y = y + 0.5 * np.sin(3 * X)
    y[:30] *= 1e-2  # what decides: tiny outputs of inputs that are recognised by a channel
    fields = np.stack([X, np.repeat([[0.0], [1.0]], 30, 0) * np.ones(24)], 1)
    norm = np.linalg.norm(y, axis=1)
    options = {"backbone": recipe(channels="first"), "max_epochs": 15, "ridge": 1e-2}
    options |= {"early_stopping": False, "batch_size": 60}
    plain = regressor(**options).fit(fields, y)
    weighted = regressor(**options).fit(fields, y, sample_weight=1 / norm**2)

    def relative(model):
        return (np.linalg.norm(model.predict(fields) - y, axis=1) / norm).mean()

    assert relative(weighted) < 0.7 * relative(plain)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (draw(3, 2, 24), r"fitted on samples of\s+shape \(24,\)|X must have shape \(n, grid_1\)"),
        (draw(24), r"X must have shape \(n, grid_1\), got \(24,\)"),
    ],
)
def test_wrong_shape_at_prediction_names_the_expected_one(fitted, wrong, message):
    with pytest.raises(ValueError, match=message):
        fitted[0].predict(wrong)


def test_wrong_channels_at_prediction_name_the_expected_ones():
    model = regressor(backbone=recipe(channels="last"), max_epochs=1)
    model.fit(draw(12, 24, 2), draw(12, 24))
    with pytest.raises(ValueError, match=r"X must have shape \(n, grid_1, 2\), got \(4, 24, 3\)"):
        model.predict(draw(4, 24, 3))


@pytest.mark.parametrize("shape", [(12,), (12, 23), (12, 2, 23), (12, 2)])
def test_wrong_targets_name_the_grid(shape):
    with pytest.raises(ValueError, match=r"positions \(24\), so y must have shape\s+\(n, 24\)"):
        regressor().fit(draw(12, 24), draw(*shape))


# -- in scikit-learn's hands ---------------------------------------------------------------------


def test_grid_search_over_ridge_and_modes():
    X, _ = smooth_fields(40, 24)
    y = np.roll(X, 5, axis=1)  # a shift: out of reach for the mean and functions of a point
    model = regressor(backbone=recipe(positional_embedding=None), max_epochs=5)
    grid = {"ridge": [1e-2, 1e4], "backbone__n_modes": [1, 8]}
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"ridge": 1e-2, "backbone__n_modes": 8}
    assert search.best_estimator_.backbone_.operator.n_modes == (8,)


def test_clone_is_unfitted_with_the_same_parameters(fitted):
    copied = clone(fitted[0])
    assert copied.get_params(deep=False).keys() == fitted[0].get_params(deep=False).keys()
    assert copied.backbone is not fitted[0].backbone
    assert copied.backbone.get_params() == fitted[0].backbone.get_params()
    np.testing.assert_array_equal(
        copied.fit(*fitted[1:]).predict(fitted[1]), fitted[0].predict(fitted[1])
    )


@pytest.mark.parametrize("early_stopping", [True, False])
def test_pickled_and_saved_models_predict_the_same(tmp_path, early_stopping):
    X, y = smooth_fields(40, 12, 10)
    model = regressor(early_stopping=early_stopping).fit(X, y)
    model.save(tmp_path / "model.npz")
    fine = smooth_fields(3, 24, 20)[0]
    for other in (
        pickle.loads(pickle.dumps(model)),
        CFLLRegressor.load(tmp_path / "model.npz"),  # the recipe is in the file
    ):
        np.testing.assert_array_equal(other.predict(fine), model.predict(fine))
        other.partial_fit(X, y)


def test_torch_module_predicts_from_raw_fields(fitted):
    model, X, _ = fitted
    with torch.no_grad():
        output = model.to_torch()(torch.as_tensor(X)).numpy()
    np.testing.assert_allclose(output[..., 0], model.predict(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("order", "share"), [("last_layer_first", 0.7), ("backbone_first", 0.9)])
def test_burgers_is_learnt_sooner_than_by_adam_on_all_layers(order, share):
    X, y = make_burgers(120, 64, random_state=0)
    train, test, epochs = slice(0, 80), slice(80, None), 5
    backbone = FNOBackbone(n_modes=16, hidden_channels=12, n_layers=2)
    model = CFLLRegressor(
        backbone,
        batch_size=10,
        max_epochs=epochs,
        learning_rate=1e-2,
        ridge=1e-2,
        update_order=order,
        early_stopping=False,
        refit_last_layer=False,
        precision="float32",
        random_state=0,
    ).fit(X[train], y[train])

    def relative(prediction):
        return np.mean(
            np.linalg.norm(prediction - y[test], axis=1) / np.linalg.norm(y[test], axis=1)
        )

    adam = min(
        adam_on_all_layers(backbone, X, y, train, test, epochs, lr) for lr in (3e-3, 1e-2, 3e-2)
    )
    assert relative(model.predict(X[test])) < share * adam


def adam_on_all_layers(backbone, X, y, train, test, epochs, lr):
    """Test relative L2 of the whole network under Adam with the same batches and schedule."""
    torch.manual_seed(0)
    net = nn.Sequential(backbone.build(X.shape[1:]), nn.Linear(24, 1), nn.Flatten(-2))
    scale_X, scale_y = X[train].std(), y[train].std()
    inputs = torch.as_tensor(X / scale_X).float()
    targets = torch.as_tensor(y / scale_y).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    n_batches = len(X[train]) // 10
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * n_batches)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for rows in torch.randperm(n_batches * 10, generator=generator).chunk(n_batches):
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs[train][rows]), targets[train][rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        prediction = scale_y * net(inputs[test]).numpy()
    norms = np.linalg.norm(y[test], axis=1)
    return np.mean(np.linalg.norm(prediction - y[test], axis=1) / norms)
