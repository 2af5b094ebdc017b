"""Training that goes on after a fit: `warm_start`, `partial_fit`, `adapt`."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch import nn

from helpers import BOTH, data_for, penalty, raw, small, string_labels
from sklearn_cfll import CFLLClassifier, CFLLRegressor


@BOTH
def test_warm_start_goes_on_from_the_previous_fit(Estimator):
    X, y = data_for(Estimator)
    model = small(
        Estimator,
        warm_start=True,
        refit_last_layer=False,
        learning_rate_schedule="constant",
        max_epochs=10,
        early_stopping=False,
    ).fit(X, y)
    first = list(model.history_)
    model.fit(X, y)
    assert model.history_[:10] == first
    assert model.n_iter_ == len(model.history_) == 20
    assert [row["epoch"] for row in model.history_] == list(range(1, 21))
    assert model.history_[10]["train_loss"] < 1.5 * first[-1]["train_loss"]
    assert model.history_[10]["train_loss"] < 0.8 * first[0]["train_loss"]


@BOTH
def test_warm_start_in_two_halves_equals_one_run(Estimator):
    X, y = data_for(Estimator)
    options = {
        "learning_rate_schedule": "constant",
        "refit_last_layer": False,
        "batch_size": 32,
        "early_stopping": False,
    }
    halves = small(Estimator, warm_start=True, max_epochs=4, **options).fit(X, y).fit(X, y)
    whole = small(Estimator, max_epochs=8, **options).fit(X, y)
    np.testing.assert_array_equal(raw(halves, X), raw(whole, X))


@BOTH
def test_fit_without_warm_start_forgets(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, batch_size=32)
    first = raw(model.fit(X, y), X)
    np.testing.assert_array_equal(raw(model.fit(X, y), X), first)
    assert model.n_iter_ == 8


@BOTH
def test_partial_fit_improves_epoch_by_epoch(Estimator):
    X, y = data_for(Estimator, 420)
    model = small(Estimator)
    for _ in range(20):
        assert model.partial_fit(X[:120], y[:120]) is model
    assert model.n_iter_ == len(model.history_) == 20
    assert model.history_[-1]["train_loss"] < 0.7 * model.history_[0]["train_loss"]
    assert model.score(X[120:], y[120:]) > 0.8


@BOTH
def test_partial_fit_after_fit_goes_on(Estimator):
    X, y = data_for(Estimator, 420)
    model = small(Estimator, early_stopping=True, learning_rate=0.005, max_epochs=20)
    model.fit(X[:120], y[:120])
    score, n_epochs = model.score(X[120:], y[120:]), model.n_iter_
    model.partial_fit(X[:120], y[:120])
    assert model.n_iter_ == n_epochs + 1
    assert model.score(X[120:], y[120:]) > score - 0.02


def test_partial_fit_learns_classes_given_in_the_first_call():
    X, y = string_labels()
    model = small(CFLLClassifier)
    model.partial_fit(X[y == "setosa"], y[y == "setosa"], classes=np.unique(y))
    for _ in range(20):
        model.partial_fit(X[::2], y[::2])
    assert model.score(X[1::2], y[1::2]) > 0.9


@pytest.mark.parametrize("splits", [1, 3, 10])
@pytest.mark.parametrize("batch_size", [16, "full"])
def test_stream_with_statistics_memory_is_ridge_on_all_rows_seen(splits, batch_size):
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(
        nn.Identity(),
        memory="statistics",
        ridge=0.2,
        batch_size=batch_size,
        normalize_y=False,
        precision="float64",
    )
    for rows in np.array_split(np.random.default_rng(splits).permutation(len(X)), splits):
        model.partial_fit(X[rows], y[rows])
    ridge = Ridge(alpha=penalty(model, X)).fit(X, y)
    assert model.final_ridge_ == 0.2
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-8)


def test_weights_on_a_stream_mean_repetitions():
    X, y = load_diabetes(return_X_y=True)
    # Light rows first: what a weight means must not depend on the rows it comes with.
    weights = np.sort(np.random.default_rng(0).integers(0, 4, len(X)))
    model = CFLLRegressor(nn.Identity(), memory="statistics", ridge=0.2, normalize_y=False)
    for rows in np.array_split(np.flatnonzero(weights), 3):
        model.partial_fit(X[rows], y[rows], weights[rows])
    X_repeated = X.repeat(weights, axis=0)
    ridge = Ridge(alpha=penalty(model, X_repeated)).fit(X_repeated, y.repeat(weights))
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-8)


@pytest.mark.parametrize("normalize_y", [False, True])
@pytest.mark.parametrize("refit", [True, False])
def test_adapt_equals_a_fit_to_all_rows(normalize_y, refit):
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(
        nn.Identity(),
        early_stopping=False,
        normalize_y=normalize_y,
        refit_last_layer=refit,
        memory="proximal" if refit else "statistics",
        max_epochs=1,
        random_state=0,
    ).fit(X[:300], y[:300])
    assert model.adapt(X[300:350], y[300:350]) is model
    model.adapt(X[350:], y[350:])
    ridge = Ridge(alpha=penalty(model, X)).fit(X, y)
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-7)


@BOTH
def test_adapt_leaves_the_backbone_alone(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X[:80], y[:80])
    features, outputs, history = model.features(X), raw(model, X), list(model.history_)
    model.adapt(X[80:], y[80:])
    np.testing.assert_array_equal(model.features(X), features)
    assert not np.allclose(raw(model, X), outputs)
    assert model.history_ == history


@BOTH
def test_adapt_weights_equal_repetitions(Estimator):
    X, y = data_for(Estimator)
    weights = np.random.default_rng(0).integers(0, 4, 40)
    fit = small(Estimator).fit(X[:80], y[:80])
    weighted = raw(fit.adapt(X[80:], y[80:], weights), X)
    fit = small(Estimator).fit(X[:80], y[:80])
    repeated = raw(fit.adapt(X[80:].repeat(weights, axis=0), y[80:].repeat(weights)), X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)


@BOTH
def test_adapt_without_moments_says_how_to_keep_them(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, refit_last_layer=False).fit(X, y)
    with pytest.raises(ValueError, match=r"`adapt` needs the moments.*refit_last_layer=True"):
        model.adapt(X, y)
