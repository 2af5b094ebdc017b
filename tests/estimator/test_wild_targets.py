"""Targets far from all others are named, and clipped if they are few."""

import re
import warnings

import numpy as np
import pytest
from sklearn.datasets import make_friedman1

from helpers import caught
from sklearn_cfll import CFLLIVRegressor, CFLLRegressor
from sklearn_cfll.estimator.checks import Checked
from sklearn_cfll.estimator.wild_targets import tame_targets, wild_bounds
from sklearn_cfll.instruments.data import check_instrument_data
from small_tables import BIG_X, BIG_Y, SMALL


def median_error(y, n_rows=300):
    model = CFLLRegressor(hidden_layer_sizes=(32, 32), max_epochs=15, random_state=0)
    model.fit(BIG_X[:n_rows], y)
    return np.median(np.abs(model.predict(BIG_X[n_rows:]) - BIG_Y[n_rows:]))


@pytest.mark.parametrize("values", [[1e6], [-1e6], [1e6, -3e4, 1e5], [-99999.0] * 5])
def test_a_few_wild_targets_are_named_and_do_not_dominate_the_fit(values):
    y = BIG_Y[:300].copy()
    y[7 : 7 + len(values)] = values
    named = re.escape(f"{values[0]:.6g}")
    with pytest.warns(UserWarning, match=rf"y\[7\] = {named}.*TransformedTargetRegressor"):
        assert median_error(y) < 1.0


def test_wild_targets_of_several_columns_and_validation_rows():
    y = np.column_stack([BIG_Y, BIG_Y])[:300]
    y[3, 1] = 1e7
    weight = np.ones(300)
    weight[0] = 0.0
    with pytest.warns(UserWarning, match=r"y\[3, 1\] = 1e\+07"):
        CFLLRegressor(**SMALL).fit(BIG_X[:300], y, weight)
    y_val = BIG_Y[300:400].copy()
    y_val[99] = 1e9
    with pytest.warns(UserWarning, match=r"y_val\[99\] = 1e\+09"):
        CFLLRegressor(**SMALL).fit(BIG_X[:300], BIG_Y[:300], X_val=BIG_X[300:400], y_val=y_val)
    with pytest.warns(UserWarning, match=r"y\[3\] = 1e\+07"):
        CFLLRegressor(**SMALL).partial_fit(BIG_X[:300], y[:, 1])


def test_wild_targets_by_weight_and_by_repetition():
    y = BIG_Y[:60].copy()
    y[5] = 1e6
    weight = np.ones(60)
    for times, wild in ((1, True), (3, False)):  # three of 62 are no accident
        weight[5] = times
        repeated = np.repeat(np.arange(60), weight.astype(int))
        for arguments in ((BIG_X[:60], y, weight), (BIG_X[repeated], y[repeated])):
            found = caught(CFLLRegressor(**SMALL).fit, *arguments)
            assert any("clips them" in text for text in found) is wild


@pytest.mark.parametrize(
    "targets",
    [
        lambda rng: rng.normal(size=1000),
        lambda rng: rng.lognormal(0, 2, 1000),
        lambda rng: np.where(rng.random(1000) < 0.05, rng.exponential(size=1000) * 10, 0.0),
        lambda rng: np.where(rng.random(1000) < 0.004, rng.lognormal(9, 1, 1000), 0.0),
        lambda rng: rng.poisson(0.02, 1000) * 1.0,
        lambda rng: np.where(rng.random(1000) < 0.05, rng.lognormal(0, 2, 1000), 0.0),
        lambda rng: np.where(rng.random(1000) < 0.01, 100.0, 0.0),
        lambda rng: rng.standard_t(2, 1000),
        lambda rng: 1e6 + rng.normal(size=1000),
    ],
    ids=["normal", "lognormal", "inflated", "rare", "counts", "rarer", "events", "t", "offset"],
)
def test_heavy_tails_are_left_unchanged(targets):
    for seed in range(20):
        y = targets(np.random.default_rng(seed))
        assert wild_bounds(y, np.ones(len(y))) == (y.min(), y.max())


def tamed(y, **rows):
    """Targets with these rows replaced, as training sees them, and what is said of them."""
    y = y.copy()
    for row, value in rows.items():
        y[int(row[1:])] = value
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        kept = tame_targets(Checked(None, None, y, None, 1.0, False)).y
    return kept, y, "; ".join(str(warning.message) for warning in found)


def test_wild_targets_of_any_kind_are_clipped():
    mostly_zero = np.where(np.arange(600) % 30, 0.0, BIG_Y[:600])
    for y, rows in (
        (mostly_zero, {"r1": 1e6}),
        (BIG_Y[:300], {"r3": 1e3, "r4": -1e5, "r5": 1e7}),  # a ladder
        (BIG_Y[:300, None, None] * np.linspace(0, 1, 4)[:, None], {"r7": 1e6}),  # fields
    ):
        kept, given, said = tamed(y, **rows)
        assert np.abs(kept).max() < 40 and "Training clips them" in said
        same = [i for i in range(len(y)) if f"r{i}" not in rows]
        np.testing.assert_array_equal(kept[same], given[same])
    assert "y[7, 0, 0] = 1e+06" in said
    _, _, said = tamed(1e6 + 1e-3 * BIG_Y[:300], r7=1.5e6)
    low, high = re.search(r"between (\S+) and (\S+)\.", said).groups()
    assert 1e6 < float(low) < float(high)


def test_targets_that_may_be_right_are_named_and_left():
    many = {f"r{i}": 1e6 for i in range(13)}
    for y, rows, match in (
        (BIG_Y[:600], many, r"and 10 more: .* left unchanged"),
        (np.full(300, 5.0), {"r7": 1e6}, r"y\[7\] = 1000000 is the only target that is not 5:"),
    ):
        kept, given, said = tamed(y, **rows)
        assert re.search(match, said)
        np.testing.assert_array_equal(kept, given)
    y, weight = tamed(BIG_Y[:300], r7=1e6)[1], np.ones(300)
    weight[0] = 0.0
    for sample_weight in (None, weight):
        with pytest.warns(UserWarning, match=r"y\[7\] = 1e\+06.*left unchanged"):
            data = check_instrument_data(
                CFLLIVRegressor(), BIG_X[:300, :1], y, BIG_X[:300, 1:3], None, sample_weight
            )
        assert data.y.max() == 1e6


def test_a_wild_held_out_target_does_not_choose_epoch_and_ridge():
    X, y = make_friedman1(200, 5, random_state=0)
    options = {"max_epochs": 8, "random_state": 0}
    held, wild = y[100:140].copy(), y[100:140].copy()
    wild[2] = 1e6
    found = []
    for y_val in (held, wild):
        model = CFLLRegressor(**options)
        said = caught(model.fit, X[:100], y[:100], X_val=X[100:140], y_val=y_val)
        assert any("y_val[2] = 1e+06" in text for text in said) == (y_val is wild)
        found.append(model)
    without = np.delete(np.arange(100, 140), 2)
    left_out = CFLLRegressor(**options)
    left_out.fit(X[:100], y[:100], X_val=X[without], y_val=y[without])
    assert found[1].best_iteration_ == left_out.best_iteration_
    assert found[1].final_ridge_ == left_out.final_ridge_
    assert found[1].score(X[140:], y[140:]) > found[0].score(X[140:], y[140:]) - 0.01
