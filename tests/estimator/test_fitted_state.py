"""A fitted estimator holds all that it needs, whatever its parameters are set to afterwards."""

import contextlib
import copy
import functools
import io
import pickle
import warnings

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from skorch.callbacks import Callback
from torch import nn

import sklearn_cfll
from helpers import OwnSGD
from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import FNOBackbone, MLPBackbone
from sklearn_cfll.estimator.fitted import FittedModel

rng = np.random.default_rng(0)
X = rng.normal(size=(100, 3))
X[:, 2] = np.exp(2 * X[:, 2])
Y = X[:, 0] + np.abs(X[:, 1]) + 0.1 * rng.normal(size=100)
LABELS = np.array(["no", "yes", "perhaps"])[(X[:, 0] > 0) + 1 * (X[:, 1] > 1)]
IMAGES = rng.normal(size=(60, 1, 4, 4))


class Recipe(BaseEstimator):
    """A recipe outside the package."""

    def __init__(self, width=4):
        self.width = width

    def build(self, input_shape):
        return nn.Sequential(nn.Linear(input_shape[0], self.width), nn.Tanh())


class Plain:
    """A callable with a state of its own."""

    width = 4

    def __call__(self, input_shape):
        return Recipe(self.width).build(input_shape)


def build(input_shape, width=4):
    return Recipe(width).build(input_shape)


# Of every parameter legal values, others than those that are fitted with.
OTHERS = {
    "categorical_features": [None, [0], "from_dtype"],
    "backbone": [
        MLPBackbone((5,)),
        FNOBackbone(2),
        nn.Linear(3, 2),
        build,
        functools.partial(build, width=3),
        Recipe(3),
        None,
    ],
    "hidden_layer_sizes": [(3,), 7, [4, 4, 4], np.array([5, 5]), range(8, 10)],
    "activation": ["tanh", "identity"],
    "dropout": [0.5],
    "n_members": [1, 2, 5],
    "columns": [ColumnEncoder(0), ColumnEncoder(3, True, False), "passthrough"],
    "ridge": [0, 3.0, np.float32(0.5)],
    "decay": [0.0, 0.7],
    "memory": ["proximal", "statistics"],
    "update_order": ["backbone_first"],
    "optimizer": ["sgd", "rmsprop", torch.optim.NAdam, torch.optim.Adamax, OwnSGD],
    "learning_rate": [0.5, 1e-5],
    "weight_decay": [0.0, 0.2, "auto"],
    "learning_rate_schedule": ["constant", "one_cycle"],
    "batch_size": [1, 13, "auto", "full"],
    "max_epochs": [1, 1000],
    "cross_fit": [True, False],
    "early_stopping": [True, False],
    "validation_fraction": [0.0, 0.4, "auto"],
    "n_iter_no_change": [1, 50],
    "tol": [1.0],
    "refit_last_layer": [False, True],
    "local_part": [False, True],
    "device": ["cuda", "mps", "meta", torch.device("cuda:1"), torch.device("cpu"), "cpu"],
    "precision": ["float32", "float64"],
    "compile": [True],
    "n_threads": [1, 2],
    "callbacks": [[], [Callback()]],
    "warm_start": [True],
    "random_state": [None, 7, np.random.RandomState(3)],
    "verbose": [1],
    "normalize_y": [False],
    "linear_part": [True, False],
    "class_weight": ["balanced", {"no": 2.0, "yes": 1.0, "perhaps": 0.5}],
}
WITH_CODE = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten())
SMALL = {"hidden_layer_sizes": (6, 4), "max_epochs": 3, "random_state": 0}
FITTED = {
    "regressor": lambda: CFLLRegressor(**SMALL).fit(X, Y),
    "statistics": lambda: CFLLRegressor(
        **SMALL, memory="statistics", refit_last_layer=False, precision="float32", warm_start=True
    ).fit(X, np.column_stack([Y, -Y])),
    "stream": lambda: CFLLRegressor(**SMALL, optimizer=OwnSGD).partial_fit(X, Y),
    "classifier": lambda: CFLLClassifier(**SMALL, n_members=3, columns=ColumnEncoder(4)).fit(
        X, LABELS
    ),
    "images": lambda: CFLLClassifier(WITH_CODE, **SMALL).fit(IMAGES, np.tile([0, 1], 30)),
    "function": lambda: CFLLRegressor(build, **SMALL).fit(X, Y),
    "recipe": lambda: CFLLRegressor(Recipe(), **SMALL).fit(X, Y),
}


def outputs(model):
    """Everything that is predicted, as bytes."""
    if isinstance(model, CFLLClassifier):
        rows = IMAGES if model.n_features_in_ == 1 else X
        return b"".join(part(rows).tobytes() for part in (model.predict, model.predict_proba))
    parts = [model.predict(X)]
    with contextlib.suppress(ValueError):  # no moments, or no rows held out
        parts += model.predict(X, return_std=True)
        parts += model.predict_interval(X, 0.8)
    return b"".join(part.tobytes() for part in parts)


def dumped_by_joblib(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


def saved(model, path, needed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is code
        model.save(path)
    return type(model).load(path, **needed)


def copies(model, path, routes=("pickle", "deepcopy", "joblib", "save"), **needed):
    """Of a model, by every way of keeping it."""
    ways = {
        "pickle": lambda: pickle.loads(pickle.dumps(model)),
        "deepcopy": lambda: copy.deepcopy(model),
        "joblib": lambda: dumped_by_joblib(model),
        "save": lambda: saved(model, path, needed),
    }
    for route in routes:
        yield route, ways[route]()


NEEDED = {
    "stream": {"optimizer": OwnSGD},
    "images": {"backbone": WITH_CODE},
    "function": {"backbone": build},
    "recipe": {"backbone": Recipe()},
}


def fitted(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FITTED[name]()


def assert_kept(model, before, path, name, routes=("pickle", "deepcopy", "joblib", "save")):
    assert outputs(model) == before
    for route, copied in copies(model, path, routes, **NEEDED.get(name, {})):
        assert outputs(copied) == before, route


FEW = ("regressor", "classifier", "recipe")  # of the others among the slow tests


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in FITTED]
)
def test_parameters_set_after_fit_change_nothing_that_is_fitted(name, tmp_path):
    model = fitted(name)
    before, names = outputs(model), set(model.get_params(deep=False))
    assert names <= set(OTHERS)
    for i in range(max(map(len, OTHERS.values()))):
        others = {key: values[i % len(values)] for key, values in OTHERS.items() if key in names}
        model.set_params(**others)
        assert_kept(model, before, tmp_path / "model", name, ("pickle", "save"))
    assert_kept(model, before, tmp_path / "model", name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_each_parameter_set_after_fit_changes_nothing_that_is_fitted(name, tmp_path):
    model = fitted(name)
    before, given = outputs(model), model.get_params(deep=False)
    for parameter in set(given) & set(OTHERS):
        for value in OTHERS[parameter]:
            model.set_params(**{parameter: value})
            assert_kept(model, before, tmp_path / "model", name, ("pickle", "save"))
        model.set_params(**{parameter: given[parameter]})


@pytest.mark.parametrize("parameter", [name for name in OTHERS if name != "backbone"])
def test_what_was_fitted_with_another_value_does_not_need_it(parameter, tmp_path):
    kind = CFLLClassifier if parameter == "class_weight" else CFLLRegressor
    for value in OTHERS[parameter]:
        if parameter in ("device", "compile", "verbose", "max_epochs"):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = kind(**{**SMALL, "n_members": 3, parameter: value})
            model.fit(X, LABELS if kind is CFLLClassifier else Y)
        before, default = outputs(model), kind().get_params()[parameter]
        needed = {"optimizer": value} if isinstance(value, type) else {}
        model.set_params(**{parameter: default})
        for route, copied in copies(model, tmp_path / "model", ("pickle", "save"), **needed):
            assert outputs(copied) == before, (value, route)


@pytest.mark.parametrize("backbone", [Recipe(), Plain(), nn.Sequential(nn.Linear(3, 4), nn.Tanh())])
def test_a_backbone_that_changes_after_fit_changes_nothing(backbone):
    model = CFLLRegressor(copy.deepcopy(backbone), **SMALL).fit(X, Y)
    before = outputs(model)
    if isinstance(backbone, nn.Module):
        model.backbone[0] = nn.Linear(3, 9)
    else:
        model.backbone.width = 9
    for copied in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert outputs(copied) == before


def test_instruments_hold_what_they_need(tmp_path):
    Z, other = X[:, :1], {"treatment_backbone": "identity", "activation": "relu"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CFLLIVRegressor(
            instrument_backbone=Recipe(), n_folds=2, n_repeats=1, max_epochs=2, random_state=0
        ).fit(X[:, :1], Y, Z=Z, C=X[:, 1:])
    before = [part.tobytes() for part in model.predict(X[:, :1], X[:, 1:], return_std=True)]
    model.instrument_backbone.width = 9
    other |= {"instrument_hidden_sizes": range(3, 5), "covariate_hidden_sizes": (2,)}
    other |= {"precision": "float32", "device": torch.device("cuda"), "n_folds": 5}
    other |= {"covariate_backbone": nn.Linear(2, 2), "random_state": np.random.RandomState(0)}
    model.set_params(**other)
    for route, copied in copies(model, tmp_path / "model", instrument_backbone=Recipe()):
        after = copied.predict(X[:, :1], X[:, 1:], return_std=True)
        assert [part.tobytes() for part in after] == before, route


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_all_tensors_of_an_opened_model_are_on_its_device():
    packed = CFLLRegressor(**SMALL).fit(X, Y)._model.pack()
    opened = FittedModel.unpack(packed, torch.device("meta"))
    tensors = [*opened.module.state_dict().values(), *opened.noise]
    assert {each.device.type for each in tensors} == {"meta"}


def test_the_state_names_the_version():
    state = CFLLRegressor(**SMALL).fit(X, Y).__getstate__()
    assert state["_packed"]["version"] == sklearn_cfll.__version__
    state["_packed"]["format"] = 1
    with pytest.raises(ValueError, match=r"sklearn_cfll 0.*format 1.*fit again"):
        CFLLRegressor().__setstate__(state)


# -- going on ---------------------------------------------------------------------------------

SETTLED = {
    "backbone": MLPBackbone((6, 4)),
    "hidden_layer_sizes": (6, 5),
    "activation": "tanh",
    "dropout": 0.5,
    "n_members": 1,
    "columns": ColumnEncoder(3),
    "precision": "float32",
    "normalize_y": False,
    "linear_part": False,
}


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
@pytest.mark.parametrize("parameter", SETTLED)
def test_what_a_fitted_model_cannot_follow_is_named(parameter, method):
    model = CFLLRegressor(**SMALL, warm_start=True).fit(X, Y)
    before = outputs(model)
    model.set_params(**{parameter: SETTLED[parameter]})
    with pytest.raises(ValueError, match=rf"`{parameter}` has changed .*warm_start=False"):
        getattr(model, method)(X, Y)
    assert outputs(model) == before
    model.set_params(warm_start=False).fit(X, Y)
    assert outputs(model) != before


@pytest.mark.parametrize("make", [lambda: Recipe(4), lambda: MLPBackbone((4,))])
def test_parameters_of_a_recipe_are_settled_too(make):
    model = CFLLRegressor(make(), **SMALL).fit(X, Y)
    model.backbone = make()  # equal, as after `clone`
    model.partial_fit(X, Y)
    name = next(iter(model.backbone.get_params()))
    model.set_params(**{f"backbone__{name}": (9,) if name != "width" else 9})
    with pytest.raises(ValueError, match="`backbone` has changed"):
        model.partial_fit(X, Y)


def test_equal_values_of_another_type_are_no_change():
    model = CFLLRegressor(**SMALL, n_members=8).fit(X, Y)
    for sizes in ([6, 4], np.array([6, 4]), (np.int64(6), 4)):
        model.set_params(hidden_layer_sizes=sizes, n_members=np.int64(8)).partial_fit(X, Y)


@pytest.mark.parametrize("route", ["memory", "pickle", "save"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", torch.optim.Adagrad, OwnSGD])
def test_a_new_optimizer_takes_over(optimizer, route, tmp_path):
    model = CFLLRegressor(**SMALL).fit(X, Y).set_params(optimizer=optimizer)
    if route == "pickle":
        model = pickle.loads(pickle.dumps(model))
    elif route == "save":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save(tmp_path / "model")
        given = {"optimizer": optimizer} if optimizer is OwnSGD else {}
        model = CFLLRegressor.load(tmp_path / "model", **given)
    model.partial_fit(X, Y)
    expected = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}.get(optimizer, optimizer)
    assert type(model.net_.optimizer_) is expected
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert outputs(pickle.loads(pickle.dumps(model))) == outputs(model)


def test_a_failed_fit_leaves_the_former_optimizer():
    model = CFLLRegressor(**SMALL).fit(X, Y).partial_fit(X, Y)
    net, before = model.net_, outputs(model)
    settings = net.optimizer_, net.optimizer_.state_dict(), net.optimizer
    layer = net.module_.last_layer.ridge, net.module_.last_layer.memory
    model.set_params(ridge=9.0, memory="statistics")
    model.set_params(optimizer="sgd", callbacks=[("stop", Interrupt())])
    with pytest.raises(RuntimeError, match="stop"):
        model.partial_fit(X, Y)
    assert outputs(model) == before
    assert (net.optimizer_, net.optimizer) == settings[::2]
    assert str(net.optimizer_.state_dict()) == str(settings[1])
    assert (net.module_.last_layer.ridge, net.module_.last_layer.memory) == layer
    model.set_params(optimizer="adamw", callbacks=None).partial_fit(X, Y)


class Interrupt(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise RuntimeError("stop")


def test_partial_fit_checks_parameters_that_were_set_since():
    model = CFLLRegressor(**SMALL).fit(X, Y)
    for name, value in {"ridge": -1.0, "optimizer": "bogus", "memory": "none"}.items():
        given = getattr(model, name)
        with pytest.raises(ValueError, match=f"'{name}' parameter"):
            model.set_params(**{name: value}).partial_fit(X, Y)
        model.set_params(**{name: given})


def test_settings_of_training_are_followed():
    model = CFLLRegressor(**SMALL, n_members=1).fit(X, Y)
    model.set_params(learning_rate=0.004, weight_decay=0.3, ridge=2.0, decay=0.5, batch_size=17)
    model.set_params(memory="statistics", update_order="backbone_first").partial_fit(X, Y)
    net = model.net_
    layer, group = net.module_.last_layer, net.optimizer_.param_groups[0]
    # A share of the rate: 24 more rows, two steps, beside those that the model knows.
    assert group["initial_lr"] == pytest.approx(0.004 * net.n_batches_ / 100)
    assert group["weight_decay"] == 0.3
    # The ridge of the solve stays that of the fit: the rows are added to its moments.
    assert (layer.ridge, layer.decay, layer.memory) == (model.final_ridge_, 0.5, "statistics")
    assert (net.batch_size, net.update_order) == (17, "backbone_first")
