"""Estimators on uninformative columns, and with weights of any range."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1
from sklearn.feature_selection import SequentialFeatureSelector
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor

NARROW = {"hidden_layer_sizes": (16, 16), "random_state": 0}


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("n", [6, 400])
@pytest.mark.parametrize("options", [{}, {"n_members": 3}, {"precision": "float32"}], ids=str)
def test_class_frequencies_for_uninformative_columns(value, n, options):
    X, y = np.full((n, 2), value), (np.arange(n) % 5 == 0).astype(int)
    model = CFLLClassifier(max_epochs=5, early_stopping=False, **NARROW, **options)
    model.fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X)[:, 1], y.mean(), atol=0.02)
    assert float(model.net_.module_.last_layer.weight.abs().max()) < 1e-3


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n", [60, 200])
def test_class_frequencies_with_held_out_rows_in_float64(n, n_classes):
    y = np.minimum(np.random.default_rng(1).geometric(0.8, n) - 1, n_classes - 1)
    model = CFLLClassifier(max_epochs=3, **NARROW).fit(np.ones((n, 1)), y)
    found = model.predict_proba(np.ones((1, 1)))[0]
    np.testing.assert_allclose(found, np.bincount(y) / n, atol=0.05)


@pytest.mark.parametrize("n", [60, 300, 600])
@pytest.mark.parametrize("value", [1.0, -1e3, 0.1])
def test_deviations_for_uninformative_columns(value, n):
    y = np.random.default_rng(0).normal(size=n)
    model = CFLLRegressor(max_epochs=3, **NARROW).fit(np.full((n, 2), value), y)
    _, std = model.predict(np.full((1, 2), value), return_std=True)
    lower, upper = model.predict_interval(np.full((1, 2), value))
    assert 0.9 < std[0] < 1.5 and 2.7 < upper[0] - lower[0] < 4.8


@pytest.mark.parametrize("value", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("n", [2, 6, 50, 400])
@pytest.mark.parametrize("options", [{}, {"n_members": 1}, {"precision": "float32"}], ids=str)
def test_the_mean_for_uninformative_columns(value, n, options):
    X, y = np.full((n, 3), value), np.random.default_rng(0).normal(3, 2, n)
    model = CFLLRegressor(max_epochs=5, **NARROW, **options).fit(X, y)
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
    assert model.score(X, y) > 0.9


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
    model = Estimator(max_epochs=8, **NARROW).fit(X, y, w)
    assert np.isfinite(model.predict(X)).all()
    assert model.score(X, y, w) > 0.8


def test_sequential_selection_passes_a_constant_column():
    X, y = make_friedman1(120, n_features=5, random_state=0)
    X[:, 4] = 3.0
    model = CFLLRegressor(max_epochs=5, **NARROW)
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
