"""Rows that are held out, by the estimator or by the user: what they decide."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import sklearn
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_friedman1
from sklearn.linear_model import Ridge

from helpers import BOTH, caught, data_for, penalty, small
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator.validation_scale import warn_of_useless_validation
from sklearn_cfll.training.batches import RowsDataset
from small_tables import BIG_X, BIG_Y, X


@BOTH
def test_early_stopping_keeps_the_best_epoch(Estimator):
    X, y = data_for(Estimator, 300)
    if Estimator is CFLLRegressor:  # noise to overfit
        y = y + np.random.default_rng(0).normal(0, 5, len(y))
    X_val, y_val = X[200:], y[200:]
    model = small(
        Estimator,
        max_epochs=40,
        early_stopping=True,
        refit_last_layer=False,
        n_iter_no_change=6,
        learning_rate=0.1,
        learning_rate_schedule="constant",
    ).fit(X[:200], y[:200], X_val=X_val, y_val=y_val)
    losses = [row["valid_loss"] for row in model.history_]
    assert model.best_iteration_ == 1 + int(np.argmin(losses))
    assert model.best_iteration_ < model.n_iter_  # else this shows nothing
    if Estimator is CFLLRegressor:
        scale = y[:200].var()
        loss = np.square(model.predict(X_val) - y_val).mean() / scale
    else:
        loss = np.square(model.decision_function(X_val) + 0.5 - np.eye(3)[y_val]).mean()
    np.testing.assert_allclose(loss, min(losses), rtol=1e-6)


@BOTH
def test_training_ends_after_epochs_without_improvement(Estimator):
    X, y = data_for(Estimator, 300)
    model = small(Estimator, max_epochs=60, early_stopping=True, n_iter_no_change=2, tol=10.0).fit(
        X, y
    )
    assert model.n_iter_ <= 4  # a tolerance that no epoch meets


@BOTH
@pytest.mark.parametrize(("n_rows", "held_out"), [(39, False), (40, True)])
def test_early_stopping_auto_goes_by_the_number_of_rows(Estimator, n_rows, held_out):
    X, y = data_for(Estimator, n_rows)
    row = small(Estimator, max_epochs=2).fit(X, y).history_[0]
    assert (row["valid_loss"] is not None) == held_out


@pytest.mark.parametrize(
    ("n_rows", "n_held"), [(40, 10), (100, 25), (200, 40), (400, 40), (1000, 100)]
)
def test_a_tenth_is_held_out_and_more_of_few_rows(n_rows, n_held):
    X, y = data_for(CFLLRegressor, n_rows)
    model = small(CFLLRegressor, max_epochs=1, validation_fraction="auto").fit(X, y)
    assert model.resolved_["n_held_out"] == n_held


@BOTH
def test_validation_fraction_zero_holds_nothing_out(Estimator):
    X, y = data_for(Estimator, 250)
    model = small(Estimator, max_epochs=2, validation_fraction=0.0).fit(X, y)
    assert model.history_[0]["valid_loss"] is None


@BOTH
def test_early_stopping_false_holds_nothing_out(Estimator):
    X, y = data_for(Estimator, 250)
    model = small(Estimator, max_epochs=2, early_stopping=False).fit(X, y)
    assert model.history_[0]["valid_loss"] is None


def test_refit_ridge_is_the_best_on_held_out_rows():
    X, y = make_friedman1(300, n_features=6, noise=3.0, random_state=0)
    X, X_val, y, y_val = X[:200], X[200:], y[:200], y[200:]
    model = small(CFLLRegressor, max_epochs=5, early_stopping=False).fit(
        X, y, X_val=X_val, y_val=y_val
    )
    features, features_val = model.features(X), model.features(X_val)
    power = np.square(features - features.mean(0)).sum() / features.size
    ridges = np.logspace(-6, 3, 19)
    errors = [
        np.square(
            Ridge(alpha=ridge * len(X) * power).fit(features, y).predict(features_val) - y_val
        ).mean()
        for ridge in ridges
    ]
    best = int(np.argmin(errors))
    assert 0 < best < len(ridges) - 1
    np.testing.assert_allclose(model.final_ridge_, ridges[best], rtol=1e-6)
    np.testing.assert_allclose(model.noise_variance_[0], errors[best], rtol=1e-5)


def test_final_fit_uses_the_held_out_rows_too():
    X, y = make_friedman1(300, n_features=6, noise=1.0, random_state=0)
    model = small(CFLLRegressor, max_epochs=5).fit(X, y)
    features = model.features(X)
    ridge = Ridge(alpha=penalty(model, features)).fit(features, y)
    np.testing.assert_allclose(model.predict(X), ridge.predict(features), rtol=1e-6)


# -- held-out rows of one's own ---------------------------------------------------------------


def fit_with(X_val, y_val, inputs=BIG_X, y=BIG_Y, Estimator=CFLLRegressor):
    model = Estimator(random_state=0, max_epochs=8, hidden_layer_sizes=(16,))
    return lambda: model.fit(inputs[:300], y[:300], X_val=X_val, y_val=y_val)


@pytest.mark.parametrize("unit", [(1000, 50), (0, 1), (0, 1e4), (-5, 1e-3)])
@BOTH
def test_validation_rows_that_a_pipeline_left_as_they_are(unit, Estimator):
    raw = unit[0] + unit[1] * BIG_X
    standardised = (raw - raw[:300].mean(0)) / raw[:300].std(0)
    y = BIG_Y if Estimator is CFLLRegressor else BIG_Y > 14
    found = caught(fit_with(raw[300:], y[300:], standardised, y, Estimator))
    assert len(found) == 1
    assert "`X_val` is on another scale than `X`: the 5-95% range of column 0" in found[0]
    assert 'transform_input=["X_val"]' in found[0]
    assert caught(fit_with(standardised[300:], y[300:], standardised, y, Estimator)) == []


def test_the_pipeline_of_the_guide_transforms_validation_rows():
    guide = Path(__file__).parents[2] / "docs" / "guide.md"
    block = next(part for part in guide.read_text().split("```") if "transform_input=" in part)
    raw = 1000 + 50 * BIG_X
    names = {"X_train": raw[:300], "y_train": BIG_Y[:300], "X_val": raw[300:], "y_val": BIG_Y[300:]}
    names["CFLLRegressor"] = partial(CFLLRegressor, max_epochs=10)
    with sklearn.config_context():
        assert caught(lambda: exec(block.removeprefix("python"), names)) == []
    assert names["pipeline"].score(raw[300:], BIG_Y[300:]) > 0.95


def test_validation_targets_in_other_units():
    model = TransformedTargetRegressor(
        CFLLRegressor(random_state=0, max_epochs=5), func=np.log, inverse_func=np.exp
    )
    y = np.exp(BIG_Y / 2)
    found = caught(lambda: model.fit(BIG_X[:300], y[:300], X_val=BIG_X[300:], y_val=y[300:]))
    assert len(found) == 1 and "`y_val` is on another scale than `y`" in found[0]


@pytest.mark.parametrize("seed", range(8))
def test_validation_rows_of_pure_noise_raise_no_warning(seed):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal, rng.lognormal, rng.standard_cauchy, rng.random][seed % 4](size=(400, 4))
    y = [rng.normal, rng.lognormal, lambda size: rng.lognormal(0, 2, size), rng.random][seed // 2](
        size=400
    )
    assert caught(fit_with(inputs[300:], y[300:], inputs, y)) == []


def test_validation_rows_of_which_the_training_rows_say_the_opposite():
    # On the scale of the training rows: only the losses tell. Its columns are in another order.
    inputs = np.random.default_rng(0).normal(size=(400, 2))
    y = np.where(np.arange(400) < 300, 1, -1) * 10 * inputs[:, 0]
    train, valid = slice(0, 300), slice(300, 400)
    y[valid] *= 0.02
    found = caught(
        lambda: warn_of_useless_validation(
            torch.as_tensor(-50 * y[valid, None]),
            8,
            RowsDataset(None, torch.as_tensor(y[train, None])),
            RowsDataset(None, torch.as_tensor(y[valid, None])),
        )
    )
    assert len(found) == 1 and "Of 8 epochs the first was the best" in found[0]


@pytest.mark.parametrize("fraction", [0.999, 0.99])
@BOTH
def test_validation_fraction_that_leaves_nothing(fraction, Estimator):
    with pytest.raises(ValueError, match=r"`validation_fraction` holds out \d+ of 60 rows"):
        Estimator(validation_fraction=fraction).fit(X, np.arange(60) % 2)
