"""feature_importances_: which input columns move the predictions; and what "auto" stood for."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.feature_selection import RFE, SelectFromModel
from torch import nn

from helpers import BOTH, friedman
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator.defaults import DEFAULTS


def rotated(X, y):
    """Informative columns last, so that the first are no answer by chance."""
    return X[:, ::-1].copy(), y


@BOTH
def test_rfe_keeps_the_informative_columns(Estimator):
    X, y = rotated(*friedman(400, 10))
    y = y if Estimator is CFLLRegressor else y > np.median(y)
    model = Estimator(hidden_layer_sizes=(32, 32), max_epochs=15, random_state=0)
    chosen = RFE(model, n_features_to_select=4, step=3)
    assert set(np.flatnonzero(chosen.fit(X, y).support_)) <= {5, 6, 7, 8, 9}


def test_select_from_model_on_many_columns_chooses_the_right_ones():
    X, y = rotated(*friedman(600, 100))
    model = CFLLRegressor(hidden_layer_sizes=(32,), max_epochs=15, random_state=0)
    chosen = SelectFromModel(model, threshold=-np.inf, max_features=4).fit(X, y)
    assert not hasattr(chosen.estimator_, "coef_")  # it would be read as one number per column
    assert set(np.flatnonzero(chosen.get_support())) <= {95, 96, 97, 98, 99}


def test_importances_of_a_linear_model_are_its_squared_slopes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)) * [1.0, 10.0, 100.0]
    slopes = np.array([[2.0, 0.3, 0.0], [0.0, 0.1, 0.02]])
    model = CFLLRegressor(nn.Identity(), ridge=0.0, normalize_y=False, early_stopping=False)
    found = model.fit(X, X @ slopes.T).feature_importances_
    squares = np.square(slopes * X.std(0)).sum(0)
    np.testing.assert_allclose(found, squares / squares.sum(), rtol=1e-4)
    assert found.sum() == pytest.approx(1)


def test_a_column_that_is_mostly_zero_counts_by_what_it_changes():
    """Between its narrow bins slopes are steep; the few rows there change little."""
    rng = np.random.default_rng(0)
    gain = np.where(rng.random(2000) < 0.04, rng.uniform(900, 1100, 2000), 0.0)
    X = np.stack([gain, rng.normal(size=2000)], 1)
    y = (gain > 1000) + X[:, 1]
    found = CFLLRegressor(max_epochs=20, random_state=0).fit(X, y).feature_importances_
    assert found[0] < 0.1 and found[1] > 0.9


def test_importances_with_a_linear_part_are_those_of_both():
    X, y = friedman(300, 5)
    X = np.c_[X, X[:, 0] > 2]  # a column of zeros
    model = CFLLRegressor(linear_part=True, max_epochs=5, random_state=0).fit(
        X, 10 * X[:, 3] + 0 * y
    )
    assert model.feature_importances_[3] > 0.95 and model.feature_importances_[5] == 0.0


@pytest.mark.parametrize("factor", [1e-4, 1e5])
def test_units_of_a_column_do_not_matter(factor):
    X, y = friedman(200, 5)
    model = CFLLRegressor(hidden_layer_sizes=(8,), max_epochs=4, random_state=0).fit(X, y)
    moved = clone(model).fit(X * [1, factor, 1, 1, 1], y)
    np.testing.assert_allclose(moved.feature_importances_, model.feature_importances_, rtol=1e-6)


def test_importances_where_there_are_none():
    X, y = friedman(60, 5)
    with pytest.raises(AttributeError, match="before it is fitted"):
        _ = CFLLRegressor().feature_importances_
    images = CFLLRegressor(nn.Flatten(), max_epochs=1).fit(X[:, None], y)
    assert not hasattr(images, "feature_importances_")

    class Detached(nn.Module):
        def forward(self, inputs):
            return inputs.detach()

    assert not hasattr(CFLLRegressor(Detached(), max_epochs=1).fit(X, y), "feature_importances_")
    constant = CFLLRegressor(max_epochs=1, random_state=0).fit(X, np.ones(60))
    assert constant.feature_importances_.sum() == pytest.approx(1)


def test_importances_are_equal_for_weights_and_repetitions():
    X, y = friedman(15, 5)
    times = np.random.default_rng(0).integers(1, 3, 15)
    model = CFLLRegressor(max_epochs=3, random_state=0)
    weighted = clone(model).fit(X, y, times)
    repeated = clone(model).fit(X.repeat(times, 0), y.repeat(times))
    np.testing.assert_allclose(
        weighted.feature_importances_, repeated.feature_importances_, rtol=1e-5
    )


def test_importances_of_a_stream_settle_on_the_informative_columns():
    X, y = rotated(*friedman(1000, 8))
    model = CFLLRegressor(random_state=0)
    for start in range(0, 1000, 50):
        model.partial_fit(X[start : start + 50], y[start : start + 50])
    assert set(model.feature_importances_.argsort()[-4:]) <= {3, 4, 5, 6, 7}


def test_resolved_says_what_auto_stood_for():
    X, y = friedman(500, 5)
    model = CFLLRegressor(max_epochs=2, random_state=0).fit(X, y)
    resolved = model.resolved_
    assert resolved["ridge"] == pytest.approx(0.012 * 64 * (64 / 256) ** 2)
    assert resolved["batch_size"] == 256 and resolved["n_folds"] == 8
    assert resolved["precision"] == "float32" and resolved["linear_part"] is True
    assert resolved["max_epochs"] == 2
    assert resolved["weight_decay"] == DEFAULTS.weight_decay(0.02, "cosine", 2 * 2)
    assert torch.device(resolved["device"]) == model.device_
    given = clone(model).set_params(ridge=3.0, batch_size=50, precision="float64").fit(X, y)
    assert [given.resolved_[name] for name in ("ridge", "batch_size", "precision")] == [
        3.0,
        50,
        "float64",
    ]


def test_a_network_that_squeezes_its_output_can_be_fitted():
    class Squeezes(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(5, 8), nn.Linear(8, 1)

        def forward(self, inputs):
            return self.out(torch.relu(self.hidden(inputs))).squeeze()

    X, y = friedman(120, 5)
    CFLLRegressor(Squeezes(), max_epochs=2, random_state=0).fit(X, y)


def test_slopes_that_are_zero_everywhere_are_no_importances():
    class Sign(nn.Module):
        def forward(self, X):
            return torch.sign(X)

    X = np.random.default_rng(0).normal(size=(80, 3))
    model = CFLLRegressor(Sign(), random_state=0).fit(X, X[:, 0])
    with pytest.raises(AttributeError, match="no `feature_importances_`"):
        model.feature_importances_  # noqa: B018
