"""What "auto" stands for: ridge, batch size, weight decay, thresholds."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1
from torch import nn

from helpers import data_for
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.training.schedules import SCHEDULES


@pytest.mark.parametrize(
    ("feature_shape", "batch_size", "expected"),
    [
        ((256,), 256, 30.72),
        ((64,), 256, 0.48),
        ((64,), 32, 7.68),
        ((64,), "full", 0.01),
        ((16, 16, 32), 8, 0.1),
        ((2, 64), 32, 7.68),
    ],
)
def test_automatic_ridge_follows_features_over_rows_squared(feature_shape, batch_size, expected):
    assert DEFAULTS.ridge("auto", feature_shape, batch_size, 1000) == pytest.approx(expected)
    assert DEFAULTS.ridge(3, feature_shape, batch_size, 1000) == 3.0


@pytest.mark.parametrize(
    ("batch_size", "n_rows", "expected"),
    [
        ("auto", 10, 256),
        ("auto", 2048, 256),
        ("auto", 2049, 257),
        ("auto", 8192, 1024),
        ("auto", 10**6, 1024),
        ("full", 777, 777),
        (32, 777, 32),
    ],
)
def test_automatic_batches_are_an_eighth_of_the_rows_within_bounds(batch_size, n_rows, expected):
    assert DEFAULTS.batch_size(batch_size, n_rows, perceptron=True) == expected
    assert DEFAULTS.batch_size("auto", n_rows, perceptron=False) == 256


def test_networks_of_the_users_have_batches_of_256():
    X, y = data_for(CFLLRegressor, 3000)
    own = CFLLRegressor(nn.Linear(6, 4), max_epochs=1).fit(X, y)
    ours = CFLLRegressor(max_epochs=1, validation_fraction=0.1).fit(X, y)
    assert own.net_.batch_size == 256
    assert ours.net_.batch_size == 338  # an eighth of nine tenths


def test_automatic_ridge_is_the_same_for_any_number_of_few_rows():
    assert DEFAULTS.ridge("auto", (64,), 256, 15) == DEFAULTS.ridge("auto", (64,), 256, 39) == 7.68


def test_each_threshold_names_its_script_and_reason():
    scripts = {field.metadata["script"] for field in dataclasses.fields(DEFAULTS)} - {None}
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    if benchmarks.is_dir():  # not in an installed package
        assert all((benchmarks / script).exists() for script in scripts)
    assert all(field.metadata["why"] for field in dataclasses.fields(DEFAULTS))


def test_a_subclass_may_have_thresholds_of_its_own():
    class Eager(CFLLRegressor):
        defaults = dataclasses.replace(DEFAULTS, folds_from=6, epochs=3, members=5)

    X, y = make_friedman1(8, random_state=0)
    resolved = [kind(random_state=0).fit(X, y).resolved_ for kind in (CFLLRegressor, Eager)]
    assert [each["n_folds"] for each in resolved] == [0, 5]
    assert [each["max_epochs"] for each in resolved] == [60, 3]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear", "one_cycle"])
def test_automatic_weight_decay_shrinks_by_the_same_factor_in_any_number_of_steps(schedule):
    def log_shrinkage(n_steps, rate):
        decay = DEFAULTS.weight_decay(rate, schedule, n_steps)
        factors = [SCHEDULES[schedule](step / n_steps) for step in range(n_steps)]
        return np.log1p(-decay * rate * np.array(factors)).sum()

    for n_steps, rate in ((400, 0.02), (400, 0.001), (5000, 0.02)):
        assert log_shrinkage(n_steps, rate) == pytest.approx(-3.0, rel=0.03)
    assert -0.4 < log_shrinkage(10, 0.02) < -0.2  # few steps have little to undo


def decay_in_force(**parameters):
    X, y = data_for(CFLLRegressor)
    parameters = {"max_epochs": 4, "warm_start": True, "batch_size": 32} | parameters
    return CFLLRegressor(**parameters).fit(X, y).net_.optimizer_.param_groups[0]["weight_decay"]


def test_automatic_weight_decay_is_of_the_perceptron_under_adamw():
    expected = DEFAULTS.weight_decay(0.02, "cosine", 4 * 3)  # 90 of 120 rows, in batches of 32
    assert decay_in_force() == pytest.approx(expected)
    assert decay_in_force(optimizer=torch.optim.AdamW) == pytest.approx(expected)
    assert decay_in_force(optimizer="adam") == 0.0
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    assert decay_in_force(backbone=backbone) == 0.0
    assert decay_in_force(weight_decay=0.25) == 0.25


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_outlives_the_reset_of_the_optimizer(optimizer):
    assert decay_in_force(weight_decay=0.25, warm_start=False, optimizer=optimizer) == 0.25


def test_automatic_weight_decay_leaves_a_stream_alone():
    X, y = data_for(CFLLRegressor)
    one, other = (
        CFLLRegressor(weight_decay=decay, random_state=0).partial_fit(X, y).partial_fit(X, y)
        for decay in ("auto", 0.0)
    )
    np.testing.assert_array_equal(one.predict(X), other.predict(X))
