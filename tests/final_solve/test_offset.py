"""The linear part below a network: its fit, and how much the network is shrunk beside it."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_diabetes
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers import friedman
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.final_solve.offset import LinearOffset
from sklearn_cfll.final_solve.refit import shrinkage_factor
from sklearn_cfll.training.batches import RowsDataset

NARROW = {"hidden_layer_sizes": (32, 32), "random_state": 0}


def test_linear_part_is_ridge_regression():
    X, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    data = RowsDataset(as_rows(X, "cpu", torch.float64), torch.as_tensor(y[:, None]))
    part = LinearOffset(10, 1, torch.float64)
    part.fit(data.subset(range(300)), data.subset(range(300, 442)))
    fine = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 5, 200))).fit(X, y)
    found = part(torch.as_tensor(X)).numpy()[:, 0]
    assert np.abs(found - fine.predict(X)).max() < 0.03  # its scales are those of the first part


def test_a_linear_part_of_as_many_rows_as_columns_is_not_wild():
    errors = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        alike = rng.normal(size=(220, 2)) @ rng.normal(size=(2, 6))
        alike += 0.05 * rng.normal(size=(220, 6))
        X = np.hstack([alike, 1.0 * (rng.random((220, 9)) < 0.15)])
        y = X[:, 0] + rng.normal(size=220)
        rows = RowsDataset(as_rows(X[:16], "cpu", torch.float64), torch.as_tensor(y[:16, None]))
        part = LinearOffset(15, 1, torch.float64).fit(rows)
        found = part(torch.as_tensor(X[16:])).numpy()[:, 0]
        errors.append(np.mean((found - y[16:]) ** 2) / y[16:].var())
    assert max(errors) < 1.3  # with any ridge it was up to 8.6


@pytest.mark.parametrize("n_rows", [120, 599, 600])
def test_few_rows_take_a_linear_part(n_rows):
    X, y = friedman(n_rows)
    model = CFLLRegressor(max_epochs=2, **NARROW).fit(X, y)
    assert model.resolved_["linear_part"] == (n_rows < 600)
    off = CFLLRegressor(linear_part=False, max_epochs=2, **NARROW).fit(X, y)
    assert not off.resolved_["linear_part"]
    assert model.features(X).shape[1] == off.features(X).shape[1] + (6 if n_rows < 600 else 0)


@pytest.mark.parametrize(("n_rows", "doubt"), [(200, 2.0), (20, 8.0)])
def test_a_part_is_shrunk_according_to_its_evidence_on_held_out_rows(n_rows, doubt):
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(n_rows, 2))
    targets = predicted * [0.7, 0.0] + rng.normal(size=(n_rows, 2))
    power = np.square(predicted).sum(0)
    share = np.clip((predicted * targets).sum(0) / power, 0, 1)
    error = np.square(predicted * (targets - share * predicted)).sum(0) / power**2
    expected = share**3 / (share**2 + doubt * error)
    found = shrinkage_factor(torch.as_tensor(predicted), torch.as_tensor(targets), None).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found[1] < 0.2 < found[0] < 0.8


def test_a_linear_target_is_left_to_the_linear_part():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 5))
    y = X @ np.arange(5.0) + rng.normal(size=80)
    X_test = rng.normal(size=(1000, 5))
    truth = X_test @ np.arange(5.0)
    model = CFLLRegressor(**NARROW).fit(X, y)
    ridge = make_pipeline(StandardScaler(), RidgeCV()).fit(X, y)
    error, least = (np.square(m.predict(X_test) - truth).mean() for m in (model, ridge))
    alone = CFLLRegressor(linear_part=False, **NARROW).fit(X, y)
    assert error < least + 0.1  # of a noise variance of 1
    assert error < 0.5 * np.square(alone.predict(X_test) - truth).mean()


def test_linear_part_survives_adapting_streaming_and_warm_starts():
    X, y = friedman(150)
    more, y_more = friedman(60, seed=1)
    model = CFLLRegressor(max_epochs=3, **NARROW).fit(X, y)
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
    model = CFLLRegressor(max_epochs=5, **NARROW).fit(X, y)
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
def test_errors_on_forty_rows_with_heavy_tails_are_bounded(kind):
    errors = []
    for seed in range(4):
        X, y = heavy_tailed(kind, 1040, seed)
        model = CFLLRegressor(hidden_layer_sizes=(32, 32), random_state=seed).fit(X[:40], y[:40])
        error = np.square(model.predict(X[40:]) - y[40:]).mean()
        errors.append(error / np.square(y[40:] - y[:40].mean()).mean())
    assert np.mean(errors) < 0.3 and np.max(errors) < 0.6
