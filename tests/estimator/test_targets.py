"""Targets of a regression: shapes, scales, precision, and wrong inputs beside them."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1, make_regression

from helpers import BOTH, data_for, raw, small
from sklearn_cfll import CFLLClassifier, CFLLRegressor


@pytest.mark.parametrize("trailing", [(), (1,), (3,)])
def test_targets_come_back_in_their_own_shape(trailing):
    X, y = make_regression(80, 5, n_targets=3, random_state=0)
    y = y[:, 0] if trailing == () else y[:, : trailing[0]]
    model = small(CFLLRegressor).fit(X, y)
    assert model.predict(X[:7]).shape == (7, *trailing)
    assert model.predict(X[:7], return_std=True)[1].shape == (7, *trailing)
    assert model.n_outputs_ == (trailing[0] if trailing else 1)


def wrong_entries(X, value):
    """A copy in which one entry of a thousand is ``value``."""
    spoilt = np.random.default_rng(0).random(X.shape) < 0.001
    return np.where(spoilt, value, X)


@BOTH
def test_a_few_wrong_inputs_do_no_harm(Estimator):
    X, y = make_friedman1(900, noise=0.5, random_state=0)
    y = y > np.median(y) if Estimator is CFLLClassifier else y
    model = Estimator(hidden_layer_sizes=(32, 32), n_members=4, max_epochs=30, random_state=0)
    clean = model.fit(X[:600], y[:600]).score(X[600:], y[600:])
    spoilt = model.fit(wrong_entries(X[:600], 1e6), y[:600]).score(X[600:], y[600:])
    # Of 900 rows of a random half: the accuracy of one fit varies by 0.02.
    assert spoilt > clean - (0.02 if Estimator is CFLLRegressor else 0.05)


def test_predictions_far_outside_the_training_rows_are_bounded():
    X, y = make_friedman1(300, random_state=0)
    model = CFLLRegressor(max_epochs=10, random_state=0).fit(X, y)
    far = model.predict(np.sign(X - 0.5) * 1e12)
    # Columns are clipped softly, and a network of rectified units is linear beyond its rows.
    assert np.abs(far - y.mean()).max() < 30 * y.std()


def test_multi_output_regression_learns_each_target():
    X, y = make_regression(300, 5, n_targets=3, noise=5.0, random_state=0)
    y *= [1.0, 1e3, 1e-3]  # a target of small variance must not be neglected
    model = small(CFLLRegressor, max_epochs=30).fit(X[:200], y[:200])
    assert model.last_layer_coef_.shape == (3, 32)
    errors = np.square(y[200:] - model.predict(X[200:])).mean(0)
    assert np.all(errors < 0.05 * y[200:].var(0))


@BOTH
@pytest.mark.parametrize(
    ("n_rows", "precision", "expected"),
    [
        (100, "auto", np.float64),
        (300, "auto", np.float64),
        (301, "auto", np.float32),
        (100, "float32", np.float32),
        (1001, "float64", np.float64),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="float32 throughout on a GPU")
def test_predictions_have_the_precision_they_were_computed_in(
    Estimator, n_rows, precision, expected
):
    X, y = data_for(Estimator, n_rows)
    model = small(Estimator, max_epochs=1, precision=precision).fit(X, y)
    assert raw(model, X).dtype == expected
    if Estimator is CFLLClassifier:
        assert model.predict_proba(X).dtype == expected
    else:
        assert model.predict(X, return_std=True)[1].dtype == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="float32 up to the limit on a CPU only")
def test_columns_and_targets_far_from_zero_keep_their_precision():
    X, y = make_friedman1(800, noise=0.5, random_state=0)
    narrow = {"hidden_layer_sizes": (32,), "n_members": 2, "max_epochs": 10, "random_state": 0}
    model = CFLLRegressor(**narrow)
    plain = model.fit(X[:600], y[:600]).score(X[600:], y[600:])
    assert model.predict(X).dtype == np.float32
    for far_X, far_y in ((X + 1e9, y), (X, y + 1e9), (X * [1e9] + 1e9, y * 1e9)):
        score = model.fit(far_X[:600], far_y[:600]).score(far_X[600:], far_y[600:])
        assert abs(score - plain) < 0.01
    assert model.predict(far_X).dtype == np.float32  # far in absolute terms only
    first = CFLLClassifier(**narrow).fit(X[:600] + 1e9, y[:600] > 14)
    assert first.score(X[600:] + 1e9, y[600:] > 14) > 0.85
    # What comes in float32 has nothing finer, and another precision may be asked for.
    assert model.fit((X + 1e6).astype(np.float32), y).predict(X + 1e6).dtype == np.float32
    model.set_params(precision="float32")
    assert model.fit(X, y + 1e9).predict(X).dtype == np.float32


def test_normalize_y_makes_the_scale_of_targets_irrelevant():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor)
    first, scaled = model.fit(X, y).predict(X), model.fit(X, 1e6 * y + 1e7).predict(X)
    np.testing.assert_allclose((scaled - 1e7) / 1e6, first, rtol=1e-6)
    assert model.history_[0]["train_loss"] < 10
    model.set_params(normalize_y=False).fit(X, 1e6 * y + 1e7)
    assert model.history_[0]["train_loss"] > 1e10
