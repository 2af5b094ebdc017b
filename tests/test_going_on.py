"""Going on after `fit`: a few more rows of the same kind never cost a model its quality."""

import copy

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_friedman1
from sklearn.linear_model import SGDRegressor
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor


def friedman(n, seed=0, noise=0.5):
    return make_friedman1(n, 6, noise=noise, random_state=seed)


def shuffled(X, y, seed=0):
    order = np.random.default_rng(seed).permutation(len(X))
    return X[order], y[order]


SETS = {
    "friedman": (CFLLRegressor, friedman(1300), 300),
    "iris": (CFLLClassifier, shuffled(*load_iris(return_X_y=True)), 80),
    "digits": (CFLLClassifier, shuffled(*load_digits(return_X_y=True)), 500),
}


@pytest.fixture(scope="module", params=SETS)
def fitted(request):
    Estimator, (X, y), n = SETS[request.param]
    model = Estimator(max_epochs=20, random_state=0).fit(X[:n], y[:n])
    return model, (X, y), n


@pytest.mark.parametrize("n_rows", [1, 10, 50])
def test_partial_fit_on_rows_of_the_same_distribution_keeps_the_score(fitted, n_rows):
    model, (X, y), n = fitted
    X_test, y_test = X[n + 50 :], y[n + 50 :]
    after = copy.deepcopy(model).partial_fit(X[n : n + n_rows], y[n : n + n_rows])
    assert after.score(X_test, y_test) > model.score(X_test, y_test) - 0.011


def test_rows_one_by_one_keep_the_score(fitted):
    model, (X, y), n = fitted
    after = copy.deepcopy(model)
    for i in range(n, n + 30):
        after.partial_fit(X[i : i + 1], y[i : i + 1])
    X_test, y_test = X[n + 50 :], y[n + 50 :]
    assert after.score(X_test, y_test) > model.score(X_test, y_test) - 0.011


def test_the_same_rows_again_keep_the_score(fitted):
    model, (X, y), n = fitted
    after = copy.deepcopy(model).partial_fit(X[:n], y[:n])
    assert after.score(X[n:], y[n:]) > model.score(X[n:], y[n:]) - 0.02


@pytest.mark.parametrize("n_rows", [1, 10])
def test_a_warm_fit_to_few_more_rows_keeps_the_score(fitted, n_rows):
    model, (X, y), n = fitted
    if isinstance(model, CFLLClassifier):
        model = clone(model).set_params(early_stopping=False).fit(X[:n], y[:n])
    after = copy.deepcopy(model).set_params(warm_start=True)
    rows = slice(n, n + max(2, n_rows))
    after.fit(X[rows], y[rows])
    assert after.score(X[n + 50 :], y[n + 50 :]) > model.score(X[n + 50 :], y[n + 50 :]) - 0.02


def test_many_more_rows_improve_a_model():
    X, y = friedman(6000)
    model = CFLLRegressor(random_state=0).fit(X[:300], y[:300])
    before = model.score(X[5000:], y[5000:])
    assert model.partial_fit(X[300:5000], y[300:5000]).score(X[5000:], y[5000:]) > before


def test_a_stream_of_single_rows_beats_a_linear_one():
    X, y = make_friedman1(1500, 10, noise=0.5, random_state=0)
    model = CFLLRegressor(random_state=0)
    scaler = StandardScaler().fit(X[:300])
    linear = SGDRegressor(random_state=0)
    for i in range(300):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
        linear.partial_fit(scaler.transform(X[i : i + 1]), y[i : i + 1])
    score = model.score(X[500:], y[500:])
    assert score > linear.score(scaler.transform(X[500:]), y[500:])
    assert score > 0.5


def test_scales_follow_a_stream():
    """The first chunk has columns a thousand times as small as the rest."""
    X, y = friedman(1000)
    model, even = CFLLRegressor(n_bins=0, random_state=0), CFLLRegressor(n_bins=0, random_state=0)
    model.partial_fit(1e-3 * X[:20], y[:20])
    even.partial_fit(X[:20], y[:20])
    for start in range(20, 520, 20):
        model.partial_fit(X[start : start + 20], y[start : start + 20])
        even.partial_fit(X[start : start + 20], y[start : start + 20])
    assert model.score(X[520:], y[520:]) > even.score(X[520:], y[520:]) - 0.1


def test_a_frozen_backbone_makes_partial_fit_exact():
    """Fixed features: fit, then the rest row by row, equals the ridge fit to all rows."""
    X, y = friedman(60)
    options = {
        "backbone": nn.Identity(),
        "normalize_y": False,
        "ridge": 0.1,
        "precision": "float64",
    }
    model = CFLLRegressor(**options, early_stopping=False, max_epochs=1).fit(X[:40], y[:40])
    whole = clone(model).fit(X, y)
    for i in range(40, 60):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
    np.testing.assert_allclose(model.predict(X), whole.predict(X), rtol=1e-9)
