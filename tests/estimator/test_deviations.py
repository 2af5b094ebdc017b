"""Standard deviations and intervals of predictions, and what they ask for."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, make_friedman1
from torch import nn

from helpers import data_for, penalty, small
from sklearn_cfll import CFLLRegressor
from small_tables import SMALL, X, Y


def test_predictive_deviation_grows_far_from_the_data():
    X, y = data_for(CFLLRegressor)
    model = CFLLRegressor(nn.Identity(), early_stopping=False).fit(X, y)
    prediction, near = model.predict(X, return_std=True)
    far = model.predict(20 * X, return_std=True)[1]
    np.testing.assert_allclose(prediction, model.predict(X), rtol=1e-12)
    assert near.shape == y.shape
    assert np.all(near**2 >= model.noise_variance_[0])
    assert far.mean() > 5 * near.mean()


def test_predictive_deviation_is_bayesian_linear_regression():
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(nn.Identity(), max_epochs=1, early_stopping=False).fit(X, y)
    centred = X - X.mean(0)
    inverse = np.linalg.inv(centred.T @ centred + penalty(model, X) * np.eye(X.shape[1]))
    leverage = 1 / len(X) + np.einsum("nd,de,ne->n", centred, inverse, centred)
    expected = np.sqrt(model.noise_variance_[0] * (1 + leverage))
    found = model.predict(X, return_std=True)[1]
    np.testing.assert_allclose(found / expected, found[0] / expected[0], rtol=1e-6)
    # One factor for all rows: residuals of rows left out, and 20 of mean square 1.5.
    squares = np.square(model.loo_residuals_ / expected).sum()
    inflation = np.sqrt((squares + 20 * 1.5) / (len(X) + 20))
    np.testing.assert_allclose(found, inflation * expected, rtol=1e-3)


def test_predictive_deviation_covers_fresh_rows():
    X, y = make_friedman1(1000, n_features=6, noise=2.0, random_state=0)
    model = small(CFLLRegressor, max_epochs=20).fit(X[:600], y[:600])
    prediction, std = model.predict(X[600:], return_std=True)
    assert 0.92 < (np.abs(prediction - y[600:]) < 1.96 * std).mean() < 0.985


def test_predictive_deviation_without_moments_says_how_to_keep_them():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor, refit_last_layer=False).fit(X, y)
    with pytest.raises(ValueError, match=r"`return_std` needs the moments.*refit_last_layer=True"):
        model.predict(X, return_std=True)


# -- what an interval asks for --------------------------------------------------------------------


def test_error_of_an_interval_after_partial_fit_names_partial_fit():
    model = CFLLRegressor(**SMALL).partial_fit(X, Y)
    with pytest.raises(
        ValueError, match=r"`partial_fit` holds none out\. Call `fit` first, on at least 10 rows"
    ):
        model.predict_interval(X)
    few = CFLLRegressor(**SMALL).fit(X[:8], Y[:8]).partial_fit(X, Y)
    with pytest.raises(ValueError, match=r"`fit` holds none out of fewer than 10 rows"):
        few.predict_interval(X)
    alone = CFLLRegressor(cross_fit=False, **SMALL).fit(X[:30], Y[:30])
    with pytest.raises(ValueError, match=r"`fit` holds none out of fewer than 40 rows"):
        alone.predict_interval(X)
    fitted = CFLLRegressor(**SMALL).fit(X, Y).partial_fit(X, Y)
    lower, upper = fitted.predict_interval(X)  # those of `fit` speak of the model still
    assert np.all(lower < upper)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"refit_last_layer": False}, "Fit with refit_last_layer=True"),
        ({"early_stopping": False}, "early_stopping=True and `validation_fraction` above 0"),
        ({"validation_fraction": 0}, "`validation_fraction` above 0"),
    ],
)
def test_interval_names_what_is_not_the_default(parameters, remedy):
    model = CFLLRegressor(**SMALL, **parameters).fit(X, Y)
    with pytest.raises(ValueError, match=remedy):
        model.predict_interval(X)
