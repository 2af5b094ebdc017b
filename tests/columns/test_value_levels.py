"""Integers whose values are names: when they are found, and what that is worth in a fit."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch.utils.data import TensorDataset

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.reader import TableReader
from sklearn_cfll.columns.target_means import folds_of_rows
from sklearn_cfll.columns.value_levels import _few, are_names, level_codes

SMALL = {"hidden_layer_sizes": (16, 8), "n_members": 4, "max_epochs": 8, "random_state": 0}


def shops(n=1500, n_values=90, seed=0):
    """A column of shop numbers whose effects have no order, and a number."""
    rng = np.random.default_rng(seed)
    shop, x = rng.integers(0, n_values, n), rng.normal(size=n)
    y = rng.normal(size=n_values)[shop] + 0.5 * x + 0.2 * rng.normal(size=n)
    return np.column_stack([100.0 + 7 * shop, x]), y


def found(values, y, weight=None, groups=None):
    targets = y[:, None]
    folds = folds_of_rows(values[:, None], targets, groups)
    weight = np.ones(len(y)) if weight is None else weight
    return are_names(values, targets, weight, folds, groups)


def test_names_are_told_from_numbers():
    X, y = shops()
    rng = np.random.default_rng(1)
    years = rng.integers(0, 90, len(y)).astype(float)
    assert found(X[:, 0], y)
    assert not found(years, y)  # says nothing
    assert not found(years, np.sin(years / 15) + 0.1 * rng.normal(size=len(y)))  # a function
    assert not found(X[:, 0] + 0.5, y)  # no integers
    assert not found(np.arange(len(y)), y)  # a value for each row
    assert not found(np.full(len(y), 3.0), y)
    assert not found(np.full(len(y), np.nan), y)


def test_gaps_say_nothing_of_values():
    X, y = shops()
    X[::5, 0] = np.nan
    assert found(X[:, 0], y)


def test_weights_are_repetitions():
    X, y = shops(300, 60)
    weight = np.random.default_rng(2).integers(0, 4, len(y))
    rows = np.repeat(np.arange(len(y)), weight)
    for noise in (0.0, 3.0, 5.0):
        targets = y + noise * np.random.default_rng(3).normal(size=len(y))
        weighted = found(X[:, 0], targets, weight.astype(float), np.arange(len(y)))
        assert weighted == found(X[rows, 0], targets[rows], groups=rows)


def test_targets_are_standardised_by_their_weights():
    rng = np.random.default_rng(0)
    targets, weight = rng.normal(size=(50, 2)) * [1, 9], rng.integers(1, 5, 50)
    weighted = _few(targets, weight.astype(float))
    repeated = _few(np.repeat(targets, weight, 0), np.ones(weight.sum()))
    np.testing.assert_allclose(np.repeat(weighted, weight, 0), repeated, rtol=1e-9)


def test_values_of_one_group_say_nothing_of_other_groups():
    X, y = shops()
    assert not found(X[:, 0], y, groups=X[:, 0])
    assert found(X[:, 0], y, groups=np.arange(len(y)) % 40)


def test_level_codes():
    codes = level_codes(np.array([3.0, 7, np.nan, 5, 1, 9]), np.array([3.0, 7.0]))
    np.testing.assert_array_equal(codes, [0, 1, np.nan, -1, -1, -1])


# -- in a fit -------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", ["array", "frame"])
def test_shops_are_told_apart(Estimator, kind):
    X, y = shops()
    y = (y > 0).astype(int) if Estimator is CFLLClassifier else y
    X = pd.DataFrame(X, columns=["shop", "x"]) if kind == "frame" else X
    scores = [
        Estimator(**SMALL, columns=ColumnEncoder(values_as_levels=levels))
        .fit(X[:1000], y[:1000])
        .score(X[1000:], y[1000:])
        for levels in (False, True)
    ]
    assert scores[1] > scores[0] + 0.04


def test_many_values_have_mean_targets():
    X, y = shops(3000, 600)
    model = CFLLRegressor(**SMALL).fit(X[:2400], y[:2400])
    reader = model._model.plan.reader
    assert list(reader.values) == [0] and list(reader.means) == [2]
    assert model.score(X[2400:], y[2400:]) > 0.8
    assert model.feature_importances_.shape == (2,) and model.n_features_in_ == 2


@BOTH
@pytest.mark.parametrize("n_values", [90, 600])
def test_files_and_new_values(Estimator, n_values, tmp_path):
    X, y = shops(1500, n_values)
    y = (y > 0).astype(int) if Estimator is CFLLClassifier else y
    model = Estimator(**SMALL).fit(X, y)
    assert model._model.plan.reader.values
    new = np.array([[X[0, 0], 0.5], [101.0, 0.5], [1e6, 0.5], [np.nan, 0.5]])
    known = model._outputs(new)
    assert np.isfinite(known).all()
    np.testing.assert_allclose(model._outputs(new[1:2]), known[1:2], rtol=1e-5)  # odd widths
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(Estimator.load(tmp_path / "model")._outputs(new), known)


def test_a_fit_that_goes_on_keeps_its_columns():
    X, y = shops(2000, 90)
    model = CFLLRegressor(**SMALL, warm_start=True).fit(X[:1200], y[:1200])
    before = model._model.plan.reader.values[0]
    np.testing.assert_array_equal(before, np.unique(X[:1200, 0]))
    for n in (1200, 2000, 300):
        model.fit(X[:n], np.roll(y[:n], 1))  # values no longer say anything
        np.testing.assert_array_equal(model._model.plan.reader.values[0], before)
    model.partial_fit(X[:50], y[:50]).adapt(X[:5], y[:5])


def test_rows_of_weight_zero_change_nothing():
    X, y = shops()
    X[::3, 0] = 1e6 + np.arange(500)
    weight = np.where(np.arange(len(y)) % 3 == 0, 0.0, 1.0)
    kept = weight > 0
    with_them = CFLLRegressor(**SMALL).fit(X, y, sample_weight=weight).predict(X[kept])
    without = CFLLRegressor(**SMALL).fit(X[kept], y[kept])
    assert without._model.plan.reader.values
    np.testing.assert_allclose(with_them, without.predict(X[kept]), rtol=1e-6, atol=1e-9)


def test_importances_are_of_the_column():
    X, y = shops()
    X = np.column_stack([X, np.random.default_rng(5).normal(size=len(y))])
    importances = CFLLRegressor(**SMALL).fit(X, y).feature_importances_
    assert importances.argmax() == 0 and importances[0] > 2 * importances[1]


def test_no_bins_and_no_importance():
    X, y = shops()
    columns = ColumnEncoder(n_bins=0, importance=False)
    assert CFLLRegressor(**SMALL, columns=columns).fit(X, y)._model.plan.reader.values


def test_rows_in_other_containers():
    X, y = shops(600)
    model = CFLLRegressor(**SMALL).fit(X, y)
    expected = model.predict(X)
    sparse = scipy.sparse.csr_array(X)
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    for rows in (sparse, data, X.tolist(), X.astype(object), pd.DataFrame(X)):
        np.testing.assert_allclose(model.predict(rows), expected, rtol=1e-6)
    model.adapt(sparse, y).partial_fit(data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda X: np.stack([X, X], 2), "Found array with dim 3"),
        (lambda X: X[:, 0], "Expected 2D array"),
        (lambda X: X * 1j, "Complex data not supported"),
        (lambda X: X[:, :1], "X has 1 features"),
        (lambda X: X * np.inf, "infinity in column 0, row 0"),
    ],
)
def test_bad_rows_are_named_as_without_levels(change, match):
    X, y = shops(600)
    model = CFLLRegressor(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match=match):
        model.predict(change(X))


def test_columns_that_hold_no_integers_are_not_copied(monkeypatch):
    X, y = shops(600)
    monkeypatch.setattr(TableReader, "of_numbers", None)
    CFLLRegressor(**SMALL).fit(X + 0.5, y)
    CFLLRegressor(**SMALL).fit(np.sign(X), y)


def test_codes_are_found_among_many_columns():
    """With forty columns or more, there are too few bins for an edge at each of fifty values."""
    rng = np.random.default_rng(0)
    code = rng.integers(0, 50, 2400)
    y = rng.normal(size=50)[code] + 0.5 * rng.normal(size=2400)
    X = np.column_stack([rng.normal(size=(2400, 60)), code])
    model = CFLLRegressor(hidden_layer_sizes=(16,), max_epochs=15, random_state=0)
    assert model.fit(X[:1600], y[:1600]).score(X[1600:], y[1600:]) > 0.5
