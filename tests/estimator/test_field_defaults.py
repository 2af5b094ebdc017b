"""Rate, schedule, epochs and batch size that are left to "auto": tables and fields."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.estimator.defaults import DEFAULTS

TABLE = {CFLLRegressor: 60, CFLLClassifier: 100}


def table(Estimator, n=80):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 3))
    y = np.sin(X[:, 0]) + X[:, 1]
    return X, y > 0 if Estimator is CFLLClassifier else y


def fields(n=50, points=12):
    X = np.random.default_rng(0).normal(size=(n, 1, points))
    return X, np.roll(X[:, 0], 1, axis=1) ** 2


def pointwise():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv1d(6, 1, 1))


def small(Estimator, **parameters):
    return Estimator(hidden_layer_sizes=(8,), n_members=1, random_state=0, **parameters)


@pytest.mark.parametrize("Estimator", TABLE)
def test_tables_keep_their_rate_and_epochs(Estimator):
    X, y = table(Estimator)
    auto = small(Estimator).fit(X, y)
    settings = {"learning_rate": 0.02, "learning_rate_schedule": "cosine"}
    given = small(Estimator, max_epochs=TABLE[Estimator], **settings).fit(X, y)
    assert auto.net_.max_epochs == TABLE[Estimator]
    assert auto.history_[0]["learning_rate"] == given.history_[0]["learning_rate"]
    assert auto.net_.optimizer__weight_decay == given.net_.optimizer__weight_decay
    np.testing.assert_array_equal(auto.predict(X), given.predict(X))


@pytest.mark.parametrize("last", [[], [nn.Linear(6, 1)]])
def test_networks_without_positions_count_as_tables(last):
    X, y = table(CFLLRegressor)
    network = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), *last)
    net = CFLLRegressor(network, random_state=0).fit(X, y).net_
    assert (net.lr, net.max_epochs, net.batch_size) == (0.02, 60, 256)
    assert net.lr_schedule == "cosine"


def test_fields_take_what_was_found_for_them():
    X, y = fields()
    auto = CFLLRegressor(pointwise(), random_state=0).fit(X, y)
    net = auto.net_
    assert (net.lr, net.max_epochs, net.batch_size) == (
        DEFAULTS.field_learning_rate,
        DEFAULTS.field_epochs,
        DEFAULTS.field_batch,
    )
    assert net.lr_schedule == DEFAULTS.field_schedule
    found = {
        "learning_rate": DEFAULTS.field_learning_rate,
        "max_epochs": DEFAULTS.field_epochs,
        "batch_size": DEFAULTS.field_batch,
    }
    found["learning_rate_schedule"] = DEFAULTS.field_schedule
    given = CFLLRegressor(pointwise(), random_state=0, **found).fit(X, y)
    np.testing.assert_array_equal(auto.predict(X), given.predict(X))


def test_fields_take_what_is_given():
    X, y = fields()
    settings = {"learning_rate": 0.03, "max_epochs": 3, "batch_size": 7}
    net = CFLLRegressor(pointwise(), learning_rate_schedule="linear", **settings).fit(X, y).net_
    assert (net.lr, net.max_epochs, net.batch_size) == (0.03, 3, 7)
    assert net.lr_schedule == "linear"


def test_classes_of_positions_keep_the_rate_of_tables():
    X, y = fields()  # the search was for regression
    net = CFLLClassifier(pointwise(), random_state=0).fit(X, (y > 1).astype(int)).net_
    assert (net.lr, net.max_epochs, net.lr_schedule) == (0.02, 100, "cosine")


def test_partial_fit_takes_the_rate_of_the_kind_of_sample():
    X, y = fields()
    model = CFLLRegressor(pointwise(), random_state=0).partial_fit(X, y)
    full = min(1.0, len(X) / model.net_.batch_size)
    assert model.history_[0]["learning_rate"] == pytest.approx(
        DEFAULTS.field_learning_rate * full**0.5
    )
    X, y = table(CFLLRegressor)
    rate = small(CFLLRegressor).partial_fit(X, y).history_[0]["learning_rate"]
    assert rate == pytest.approx(0.02 * (len(X) / 256) ** 0.5)  # less than a full batch


def test_warm_start_goes_on_with_them():
    X, y = fields()
    model = CFLLRegressor(pointwise(), warm_start=True, random_state=0, n_iter_no_change=1000)
    assert model.fit(X, y).fit(X, y).n_iter_ == 2 * DEFAULTS.field_epochs


def test_parameters_stay_as_given_and_are_kept(tmp_path):
    X, y = table(CFLLRegressor)
    model = small(CFLLRegressor).fit(X, y)
    model.save(tmp_path / "model")
    for copy in (model, clone(model), CFLLRegressor.load(tmp_path / "model")):
        assert copy.learning_rate == copy.max_epochs == "auto"
        assert copy.learning_rate_schedule == "auto"


@pytest.mark.parametrize("name", ["learning_rate", "learning_rate_schedule", "max_epochs"])
@pytest.mark.parametrize("value", ["fast", 0, -1, None])
def test_other_values_are_refused_by_name(name, value):
    X, y = table(CFLLRegressor)
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        small(CFLLRegressor, **{name: value}).fit(X, y)


def test_callbacks_of_scikit_learn_know_the_number_of_epochs():
    pytest.importorskip("sklearn.callback", reason="scikit-learn < 1.9")

    class Watcher:
        def setup(self, estimator, context):
            self.max_subtasks = context.max_subtasks

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            pass

        def teardown(self, estimator, context):
            pass

    for model, data, epochs in [
        (CFLLRegressor(pointwise()), fields(), DEFAULTS.field_epochs),
        (small(CFLLRegressor), table(CFLLRegressor), 60),
        (small(CFLLRegressor, max_epochs=2), table(CFLLRegressor), 2),
    ]:
        watcher = Watcher()
        model.set_callbacks(watcher).fit(*data)
        assert watcher.max_subtasks == epochs


@pytest.mark.slow
def test_defaults_of_fields_are_better_than_those_of_tables():
    pytest.importorskip("neuralop")
    from sklearn_cfll.backbones import FNOBackbone
    from sklearn_cfll.datasets import make_burgers

    X, y = make_burgers(300, 64, random_state=0)
    errors = []
    of_tables = {"learning_rate": 0.02, "learning_rate_schedule": "cosine", "max_epochs": 60}
    for settings in [{}, {**of_tables, "batch_size": 20}]:
        model = CFLLRegressor(FNOBackbone(32, 48), precision="float32", random_state=0, **settings)
        prediction = model.fit(X[:200], y[:200]).predict(X[200:])
        error = np.linalg.norm(prediction - y[200:], axis=1) / np.linalg.norm(y[200:], axis=1)
        errors.append(error.mean())
    assert errors[0] < 0.8 * errors[1]
