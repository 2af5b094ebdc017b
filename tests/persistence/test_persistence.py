"""Pickle, joblib, copies, save and load: the same model to the last bit, and no code in files."""

import copy
import functools
import io
import pickle
import zipfile

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_friedman1, make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor, persistence
from sklearn_cfll.backbones import MLPBackbone

X_friedman, y_friedman = make_friedman1(150, noise=0.5, random_state=0)
X_iris, y_iris = load_iris(return_X_y=True)
LABELS = load_iris().target_names[y_iris]


def build_network(input_shape, width=12):
    return nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh())


def whole_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 1))


def small(Estimator, backbone=None, **parameters):
    defaults = {"max_epochs": 4, "random_state": 0}
    if backbone is None:
        defaults["hidden_layer_sizes"] = (16,)
    return Estimator(backbone, **{**defaults, **parameters})


regressor, classifier = (functools.partial(small, kind) for kind in (CFLLRegressor, CFLLClassifier))


FRIEDMAN = (X_friedman, y_friedman)
MULTILABEL = make_multilabel_classification(150, n_features=6, random_state=0)
IMAGES = (load_digits().images[:200, None], load_digits().target[:200])
CASES = {
    "regressor": (regressor, FRIEDMAN),
    "float32": (lambda: regressor(precision="float32"), FRIEDMAN),
    "two_targets": (regressor, (X_friedman, np.column_stack([y_friedman, -y_friedman]))),
    "column_target": (regressor, (X_friedman, y_friedman[:, None])),
    "statistics": (lambda: regressor(memory="statistics", refit_last_layer=False), FRIEDMAN),
    "full_batch": (lambda: regressor(batch_size="full"), FRIEDMAN),
    "proximal_only": (lambda: regressor(refit_last_layer=False), FRIEDMAN),
    "dropout": (lambda: regressor(hidden_layer_sizes=(16, 16), dropout=0.3), FRIEDMAN),
    "frame": (regressor, (pd.DataFrame(X_friedman, columns=list("abcdefghij")), y_friedman)),
    "recipe": (lambda: regressor(MLPBackbone((12, 8), "silu")), FRIEDMAN),
    "optimizer_class": (lambda: regressor(optimizer=torch.optim.SGD), FRIEDMAN),
    "no_seed": (lambda: regressor(random_state=None), FRIEDMAN),
    "seed_instance": (lambda: regressor(random_state=np.random.RandomState(0)), FRIEDMAN),
    "numpy_parameters": (
        lambda: regressor(ridge=np.float64(2.0), hidden_layer_sizes=np.array([16, 8])),
        FRIEDMAN,
    ),
    "classifier": (classifier, (X_iris, y_iris)),
    "string_classes": (classifier, (X_iris, LABELS)),
    "object_classes": (classifier, (X_iris, LABELS.astype(object))),
    "binary": (classifier, (X_iris[:100], LABELS[:100])),
    "boolean_classes": (classifier, (X_iris, y_iris == 1)),
    "class_weight": (lambda: classifier(class_weight={0: 1.0, 1: 2.0, 2: 3.0}), (X_iris, y_iris)),
    "balanced": (lambda: classifier(class_weight="balanced"), (X_iris, LABELS)),
    "multilabel": (classifier, MULTILABEL),
}
WITH_CODE = {
    "module": (lambda: regressor(nn.Sequential(nn.Linear(10, 12), nn.Tanh())), FRIEDMAN),
    "whole_network": (lambda: regressor(whole_network()), FRIEDMAN),
    "lazy": (lambda: regressor(nn.Sequential(nn.LazyLinear(12), nn.Tanh())), FRIEDMAN),
    "function": (lambda: regressor(build_network), FRIEDMAN),
    "function_with_options": (
        lambda: regressor(functools.partial(build_network, width=7)),
        FRIEDMAN,
    ),
    "images": (
        lambda: classifier(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten())),
        IMAGES,
    ),
}
SLOW = pytest.mark.slow
ALL_CASES = {**CASES, **WITH_CODE}

ROUTES = {
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "joblib": lambda model: joblib_round_trip(model),
    "deepcopy": copy.deepcopy,
}


@functools.cache
def fitted(case):
    """The model of a case, which no test may change, and its rows."""
    make, (X, y) = ALL_CASES[case]
    return make().fit(X, y), X


def joblib_round_trip(model):
    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return joblib.load(file)


def save_and_load(model, path, **options):
    model.save(path)
    return type(model).load(path, **options)


def assert_same_model(first, second, X):
    """Everything a user can see, to the last bit."""
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    assert first.predict(X).dtype == second.predict(X).dtype
    assert first.predict(X).shape == second.predict(X).shape
    np.testing.assert_array_equal(first.features(X), second.features(X))
    for name in ("last_layer_coef_", "last_layer_intercept_", "noise_variance_"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for name in (
        "history_",
        "final_ridge_",
        "decay_",
        "n_iter_",
        "best_iteration_",
        "n_features_in_",
        "n_outputs_",
        "device_",
    ):
        assert getattr(first, name) == getattr(second, name), name
    assert list(getattr(first, "feature_names_in_", ())) == list(
        getattr(second, "feature_names_in_", ())
    )
    if isinstance(first, CFLLClassifier):
        np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
        np.testing.assert_array_equal(first.classes_, second.classes_)
        assert first.classes_.dtype == second.classes_.dtype
    elif first.net_.module_.last_layer.holds_moments:
        for one, other in zip(first.predict(X, True), second.predict(X, True), strict=True):
            np.testing.assert_array_equal(one, other)


# -- pickle, joblib, copies -------------------------------------------------------------------


@pytest.mark.parametrize("case", ALL_CASES)
def test_round_trips_are_equal_to_the_last_bit(case):
    model, X = fitted(case)
    for copied in ROUTES.values():
        assert_same_model(model, copied(model), X)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("make", [regressor, classifier])
def test_unfitted_estimators_stay_unfitted(make, route):
    model = ROUTES[route](make(ridge=3.0))
    assert model.ridge == 3.0
    assert not hasattr(model, "net_")
    with pytest.raises(NotFittedError):
        model.predict(X_iris)
    model.fit(X_iris, y_iris)


@pytest.mark.parametrize("case", ["regressor", "string_classes", "recipe", "function"])
def test_clone_of_a_fitted_estimator_fits_the_same(case):
    model, X = fitted(case)
    y = ALL_CASES[case][1][1]
    copied = clone(ROUTES["pickle"](model))
    assert not hasattr(copied, "net_")
    np.testing.assert_array_equal(copied.fit(X, y).predict(X), model.predict(X))


# joblib and deepcopy take the same state as pickle does.
@pytest.mark.parametrize(
    "route",
    ["pickle", "save", *(pytest.param(name, marks=SLOW) for name in ("joblib", "deepcopy"))],
)
@pytest.mark.parametrize("method", ["partial_fit", "warm_start", "adapt"])
@pytest.mark.parametrize(
    "case", ["regressor", "float32", "dropout", "string_classes", "optimizer_class", "recipe"]
)
def test_training_goes_on_as_if_nothing_had_been(case, method, route, tmp_path):
    make, (X, y) = CASES[case]
    model = make().set_params(batch_size=50, warm_start=method == "warm_start").fit(X, y)
    if method == "partial_fit":
        model.partial_fit(X, y)  # an optimiser with moments of its own
    copied = save_and_load(model, tmp_path / "model") if route == "save" else ROUTES[route](model)
    for each in (model, copied):
        getattr(each, "fit" if method == "warm_start" else method)(X, y)
    np.testing.assert_array_equal(model.last_layer_coef_, copied.last_layer_coef_)
    np.testing.assert_array_equal(model.predict(X), copied.predict(X))
    losses = [[row["train_loss"] for row in each.history_] for each in (model, copied)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_a_stream_can_be_pickled_between_chunks(memory):
    whole, pickled = regressor(memory=memory), regressor(memory=memory)
    for rows in np.array_split(np.arange(len(X_friedman)), 4):
        whole.partial_fit(X_friedman[rows], y_friedman[rows])
        pickled = ROUTES["pickle"](pickled.partial_fit(X_friedman[rows], y_friedman[rows]))
    np.testing.assert_array_equal(whole.predict(X_friedman), pickled.predict(X_friedman))


@pytest.mark.parametrize("route", ROUTES)
def test_copies_are_independent(route):
    model = regressor().fit(*FRIEDMAN)
    before = model.predict(X_friedman)
    copied = ROUTES[route](model)
    copied.adapt(*FRIEDMAN).partial_fit(*FRIEDMAN)
    assert not np.array_equal(copied.predict(X_friedman), before)
    np.testing.assert_array_equal(model.predict(X_friedman), before)
    assert len(model.history_) == 4


def test_pickling_leaves_the_estimator_as_it_was():
    model = regressor().fit(*FRIEDMAN)
    before, net = model.predict(X_friedman), model.net_
    names = set(vars(model))
    pickle.dumps(model)
    assert model.net_ is net
    assert set(vars(model)) == names
    assert isinstance(model.device_, torch.device)
    np.testing.assert_array_equal(model.predict(X_friedman), before)


def test_pipelines_round_trip():
    model = make_pipeline(StandardScaler(), classifier()).fit(X_iris, LABELS)
    copied = ROUTES["pickle"](model)
    np.testing.assert_array_equal(copied.predict_proba(X_iris), model.predict_proba(X_iris))


# -- what is inside ---------------------------------------------------------------------------


def torch_objects(value, path="state"):
    """Where tensors, modules, optimisers or devices hide in nested plain data."""
    if isinstance(value, nn.Module) or type(value).__module__.split(".")[0] in ("torch", "skorch"):
        return [(path, value)]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        parts = vars(value).items()
    else:
        parts = ()
    return [found for key, part in parts for found in torch_objects(part, f"{path}[{key!r}]")]


@pytest.mark.parametrize("case", [name for name in CASES if name != "optimizer_class"])
def test_state_holds_arrays_and_no_torch_object(case):
    state = fitted(case)[0].__getstate__()
    assert torch_objects(state) == []
    assert b"torch" not in pickle.dumps(state)


def test_state_of_a_users_module_holds_nothing_of_torch_but_that_module():
    model = regressor(nn.Sequential(nn.Linear(10, 12), nn.Tanh())).fit(*FRIEDMAN)
    found = torch_objects(model.__getstate__())
    assert found
    for path, value in found:  # the same tensors throughout, so that they are stored once
        assert {*map(id, value.parameters())} == {*map(id, model.backbone.parameters())}, path


def test_pickles_are_no_larger_than_their_arrays():
    model = regressor(hidden_layer_sizes=(64, 64), refit_last_layer=False).fit(*FRIEDMAN)
    n_weights = sum(p.numel() for p in model.net_.module_.state_dict().values())
    # Weights and two moments of the optimiser at 8 bytes, and some names.
    assert len(pickle.dumps(model)) < 8 * 3 * n_weights + 20_000


@pytest.mark.slow
def test_history_does_not_hold_batches():
    model = regressor(max_epochs=30, batch_size=10).fit(*FRIEDMAN)
    short = regressor(max_epochs=1, batch_size=10).fit(*FRIEDMAN)
    per_epoch = (len(pickle.dumps(model)) - len(pickle.dumps(short))) / 29
    assert per_epoch < 600


# -- save and load ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_save_and_load_are_equal_to_the_last_bit(case, tmp_path):
    model, X = fitted(case)
    loaded = save_and_load(model, tmp_path / "model.cfll")
    assert_same_model(model, loaded, X)
    assert isinstance(loaded, type(model))


@pytest.mark.parametrize("case", WITH_CODE)
def test_users_code_is_passed_again_at_load(case, tmp_path):
    model, X = fitted(case)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"fitted with (an|the) .* as `backbone`.*pass"):
        type(model).load(tmp_path / "model")
    loaded = type(model).load(tmp_path / "model", backbone=model.backbone)
    assert_same_model(model, loaded, X)
    assert loaded.backbone is model.backbone


def test_parameters_survive_saving(tmp_path):
    model = regressor(
        MLPBackbone((9, 8), "gelu", 0.1),
        ridge=2.0,
        decay=0.9,
        optimizer=torch.optim.NAdam,
        batch_size=64,
        verbose=0,
        early_stopping=False,
    ).fit(*FRIEDMAN)
    loaded = save_and_load(model, tmp_path / "model")
    first, second = model.get_params(), loaded.get_params()
    assert repr(first.pop("backbone")) == repr(second.pop("backbone"))
    assert first == second
    np.testing.assert_array_equal(
        clone(loaded).fit(*FRIEDMAN).predict(X_friedman), model.predict(X_friedman)
    )


def test_a_users_optimizer_is_named_at_load(tmp_path):
    class OwnSGD(torch.optim.SGD):
        """Not in torch.optim."""

    model = regressor(build_network, optimizer=OwnSGD).fit(*FRIEDMAN)
    # It is no backbone: what is passed as one must not be taken for it.
    with pytest.raises(ValueError, match="`optimizer`"):
        save_and_load(model, tmp_path / "model", backbone=build_network)


def test_callbacks_are_not_saved(tmp_path):
    model = regressor(callbacks=[Callback()]).fit(*FRIEDMAN)
    loaded = save_and_load(model, tmp_path / "model")
    assert loaded.callbacks is None
    np.testing.assert_array_equal(loaded.predict(X_friedman), model.predict(X_friedman))


@pytest.mark.parametrize("make_path", [str, lambda path: path], ids=["str", "Path"])
def test_the_file_has_the_name_asked_for(make_path, tmp_path):
    path = make_path(tmp_path / "model.anything")
    model = regressor().fit(*FRIEDMAN)
    model.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.anything"]
    CFLLRegressor.load(path)


@pytest.mark.parametrize("case", CASES)
def test_the_file_opens_without_pickle(case, tmp_path):
    fitted(case)[0].save(tmp_path / "model")
    with np.load(tmp_path / "model", allow_pickle=False) as file:
        assert "content" in file.files
        for name in file.files:
            assert file[name].dtype != object
    assert zipfile.ZipFile(tmp_path / "model").testzip() is None


def test_saving_asks_for_fit_first(tmp_path):
    with pytest.raises(NotFittedError):
        regressor().save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_loading_by_the_wrong_class_says_which(tmp_path):
    regressor().fit(*FRIEDMAN).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds a CFLLRegressor; open it with CFLLRegressor.load"):
        CFLLClassifier.load(tmp_path / "model")


@pytest.mark.parametrize("kind", ["npz", "npy", "pickle", "text", "empty"])
def test_a_file_of_another_kind_is_refused(kind, tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        if kind == "npz":
            np.savez(file, weights=np.zeros(3))
        elif kind == "npy":
            np.save(file, np.zeros(3))
        elif kind == "pickle":
            pickle.dump(Ridge(), file)
        elif kind == "text":
            file.write(b"not a model")
    with pytest.raises(ValueError, match="was not written by `save`"):
        CFLLRegressor.load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        CFLLRegressor.load(tmp_path / "nowhere")


def test_a_file_by_a_newer_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(persistence, "FORMAT", persistence.FORMAT + 1)
    regressor().fit(*FRIEDMAN).save(tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="newer version of sklearn_cfll"):
        CFLLRegressor.load(tmp_path / "model")


def test_a_model_from_a_gpu_opens_on_a_machine_without():
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    model = regressor().fit(*FRIEDMAN)
    state = model.__getstate__()
    opened = CFLLRegressor.__new__(CFLLRegressor)
    opened.__setstate__({**state, "device_": "cuda:0"})
    assert opened.device_ == torch.device("cpu")
    np.testing.assert_array_equal(opened.predict(X_friedman), model.predict(X_friedman))


def test_skops_takes_the_state_too():
    skops = pytest.importorskip("skops.io")
    model = regressor().fit(*FRIEDMAN)
    data = skops.dumps(model)
    loaded = skops.loads(data, trusted=skops.get_untrusted_types(data=data))
    np.testing.assert_array_equal(loaded.predict(X_friedman), model.predict(X_friedman))
