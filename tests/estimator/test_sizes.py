"""Sizes and units of columns, targets and weights."""

import functools
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import TensorDataset

from helpers import BOTH, caught, raw
from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.bins import PiecewiseLinear
from sklearn_cfll.columns.scaling import RobustStandardize
from small_tables import BIG_X, BIG_Y, LABELS, NAMES, QUICK, SMALL, X, Y


@functools.cache
def unscaled(n_rows, **options):
    """The model of rows as they are, which no test may change."""
    return CFLLRegressor(**QUICK, **options).fit(BIG_X[:n_rows], BIG_Y[:n_rows])


@pytest.mark.parametrize("n_rows", [200, 400])
@pytest.mark.parametrize("size", [1e37, 1e100, 1e-39, 1e-44, 1e-100])
def test_the_size_of_a_column_does_not_matter(n_rows, size):
    scaled = BIG_X * [1, size, 1, 1, 1]
    expected = unscaled(n_rows).predict(BIG_X[400:])
    found = CFLLRegressor(**QUICK).fit(scaled[:n_rows], BIG_Y[:n_rows]).predict(scaled[400:])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1000.0, 0.01, 3.0])
@BOTH
def test_units_of_columns_do_not_matter_in_float32(factor, Estimator):
    y = BIG_Y if Estimator is CFLLRegressor else BIG_Y > 14
    other = BIG_X * [1, factor, 1, 1, factor] + [0, 0, 7, 0, 0]

    def outputs(inputs):
        return raw(Estimator(**QUICK).fit(inputs[:400], y[:400]), inputs)

    expected = outputs(BIG_X)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(outputs(other), expected, rtol=1e-4, atol=1e-4)


def test_columns_far_from_zero_need_no_float64():
    offset = np.array([0, 1.6e12, 0, 0, 0])  # milliseconds since 1970
    moved = BIG_X + offset
    shifted = moved - offset  # as far as float64 kept it
    # The short runs that scale columns enlarge a difference that rounding has begun.
    options = QUICK | {"columns": ColumnEncoder(importance=False)}
    found = CFLLRegressor(**options).fit(moved[:400], BIG_Y[:400]).predict(moved)
    expected = CFLLRegressor(**options).fit(shifted[:400], BIG_Y[:400]).predict(shifted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.1)  # their mean is rounded to 1e-4


@pytest.mark.parametrize("n_rows", [200, 400])
@pytest.mark.parametrize("size", [1e38, -1e100, 1e-38, 1e-45, 1e-100])
def test_the_size_of_targets_does_not_matter(n_rows, size):
    # Folds are drawn by the order of y, which a negative factor reverses.
    options = {"cross_fit": size > 0}
    expected = unscaled(n_rows, **options)
    model = CFLLRegressor(**QUICK, **options).fit(BIG_X[:n_rows], size * BIG_Y[:n_rows])
    for one, other in zip(
        model.predict(BIG_X, return_std=True), expected.predict(BIG_X, return_std=True), strict=True
    ):
        assert one.dtype == np.float64
        np.testing.assert_allclose(np.abs(one / size), np.abs(other), rtol=1e-4)
    assert all(np.isfinite(end).all() for end in model.predict_interval(BIG_X))
    assert model.score(BIG_X, size * BIG_Y) == pytest.approx(expected.score(BIG_X, BIG_Y), abs=1e-3)


@pytest.mark.parametrize("size", [1e154, 1e300, 1e-160, 1e-310])
def test_squares_that_float64_cannot_hold_are_refused(size):
    frame = pd.DataFrame(X * [1, size, 1], columns=NAMES)
    for inputs in (frame, pl.from_pandas(frame)):
        with pytest.raises(ValueError, match=r"Column 'dose' of `X` holds .*e[+-].*Rescale"):
            CFLLRegressor().fit(inputs, Y)
    with pytest.raises(ValueError, match=r"Column 1 of `X` holds .*Rescale"):
        CFLLClassifier().fit(scipy.sparse.csr_matrix(frame.to_numpy()), LABELS)
    with pytest.raises(ValueError, match=r"`y` holds .*Rescale"):
        CFLLRegressor().fit(X, size * Y)
    for name in ("X", "y", "Z", "C"):
        arguments = {"X": X, "y": Y, "Z": X, "C": X}
        arguments[name] = arguments[name] * size
        with pytest.raises(ValueError, match=f"`{name}` holds .*Rescale"):
            CFLLIVRegressor().fit(**arguments)


def test_a_users_network_gets_what_it_can_hold():
    huge = (BIG_X * [1, 1e32, 1, 1, 1])[:400]
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    own = {"max_epochs": 3, "random_state": 0}
    assert CFLLRegressor(net, **own).fit(huge, BIG_Y[:400]).predict(huge).dtype == np.float64
    with pytest.raises(ValueError, match=r'Column 1 of `X` holds .*e\+3.*"float64"'):
        CFLLRegressor(net, precision="float32", **own).fit(huge, BIG_Y[:400])


def own_network(tail=nn.Tanh, **options):
    net = nn.Sequential(nn.Linear(5, 8), tail())
    return CFLLRegressor(net, max_epochs=2, random_state=0, **options)


def test_sizes_that_a_users_network_sees_unscaled():
    many, y = BIG_X[:320], BIG_Y[:320]
    model = own_network(nn.ReLU).fit(1e20 * many, y)
    assert model.resolved_["precision"] == "float64"
    assert model.score(1e20 * BIG_X[320:], BIG_Y[320:]) > 0.6
    with pytest.raises(FloatingPointError, match="row 0 of `X` reach .*e.20.*StandardScaler"):
        own_network(nn.ReLU, precision="float32").fit(1e21 * many, y)
    with pytest.raises(ValueError, match=r"Column 0 of `X` holds .*e\+99.*StandardScaler"):
        own_network().fit(1e100 * many, y)
    with pytest.warns(UserWarning, match=r"same features for all rows.* up to .*e-21 in column"):
        own_network().fit(1e-20 * many, y)
    assert not caught(lambda: own_network().fit(np.ones((320, 5)), y))  # nothing there to lose
    for size in (1e38, 1e-39):
        model = CFLLRegressor(normalize_y=False, max_epochs=2, random_state=0)
        assert model.fit(many, size * y).resolved_["precision"] == "float64"
        assert model.score(BIG_X[320:], size * BIG_Y[320:]) > 0.85
        model.set_params(precision="float32")
        with pytest.raises(ValueError, match=r"`y` holds .*`normalize_y`=True"):
            model.fit(many, size * y)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, X):
        return self.layer(X) + X[:, :1].log()


def test_rows_whose_features_are_not_finite_before_training_are_named():
    positive, y = BIG_X[:60] + 1.0, BIG_Y[:60]
    positive[41, 0], weight = -1.0, np.ones(60)
    weight[:5] = 0.0
    for sample_weight in (None, weight):
        for method in ("fit", "partial_fit"):
            model = CFLLRegressor(Logarithm(), max_epochs=2, random_state=0)
            with pytest.raises(FloatingPointError, match="row 41 of `X` are not finite before"):
                getattr(model, method)(positive, y, sample_weight)
    with pytest.raises(FloatingPointError, match="row 1 of `X_val` are not finite before"):
        model.fit(positive[:40], y[:40], X_val=positive[40:], y_val=y[40:])


def test_weights_near_the_end_of_the_range():
    w = np.where(np.arange(60) % 2, 1e308, 5e307)
    for Estimator in (CFLLRegressor, CFLLClassifier):
        y = Y if Estimator is CFLLRegressor else LABELS
        with warnings.catch_warnings(action="error", category=RuntimeWarning):  # overflows
            pair = [Estimator(**SMALL).fit(X, y, part) for part in (w, w / 1e308)]
        np.testing.assert_array_equal(*(model.predict(X) for model in pair))
        assert pair[0].oof_score_ == pytest.approx(pair[1].oof_score_, rel=1e-12)
    quick = {"max_epochs": 2, "n_repeats": 1, "n_folds": 2, "diagnose": False, "random_state": 0}
    given = {"X": X[:, :1], "y": Y, "Z": X[:, 1:]}
    for scales in ((1.0, 1e-200), (1e-308, 1e-315)):  # beyond a number of rows, and shares
        with warnings.catch_warnings(action="error", category=RuntimeWarning):
            pair = [
                CFLLIVRegressor(**quick).fit(**given, sample_weight=scale * w) for scale in scales
            ]
        np.testing.assert_allclose(*(model.predict(X[:, :1]) for model in pair), rtol=1e-6)


def test_values_that_only_a_data_set_holds_are_named():
    bad = torch.as_tensor(X * [1, 1e200, 1])
    with pytest.raises(ValueError, match="Column 1 of X holds values"):
        CFLLRegressor(**SMALL).fit(TensorDataset(bad, torch.as_tensor(Y)))


def test_predictions_for_far_rows_stay_near_the_targets():
    model = CFLLRegressor(**QUICK).fit(BIG_X[:400], BIG_Y[:400])
    far = model.predict(BIG_X[:3] * 1e300)
    assert np.abs(far - BIG_Y.mean()).max() < 30 * BIG_Y.std()


def test_predictions_that_overflow_say_so():
    narrow = BIG_X[:400].astype("f4")
    model = CFLLRegressor(nn.Linear(5, 8), max_epochs=3, random_state=0).fit(narrow, BIG_Y[:400])
    with pytest.warns(RuntimeWarning, match="2 of 3 predictions are not finite, the first .* 1"):
        model.predict(np.array([[0.0] * 5, [1e300] * 5, [-1e300] * 5]))


def test_exact_buffers_stay_in_float64():
    bins = PiecewiseLinear()
    bins.set_edges([np.array([0.0, 1.0]), np.array([1e9, 1e9 + 1])])
    for module in (RobustStandardize(2), bins):
        cast = module.float().half().to("cpu", torch.float32)
        inputs = torch.tensor([[0.25, 1e9 + 0.25]], dtype=torch.float64)
        assert cast(inputs).dtype == torch.float32
        assert {getattr(cast, name).dtype for name in cast.exact} == {torch.float64}
    np.testing.assert_allclose(cast(inputs), [[-0.5, -0.5]])


def test_bins_narrower_than_any_float32():
    encode = PiecewiseLinear().float()
    encode.set_edges([np.array([0.0, 1e-44, 1.0])])
    assert torch.isfinite(encode(torch.tensor([[0.0], [1e-44], [0.5]]))).all()
    wide = np.exp(50 * np.random.default_rng(0).normal(size=(400, 1)))
    prediction = CFLLRegressor(**QUICK).fit(wide, BIG_Y[:400]).predict(wide)
    assert np.abs(prediction - BIG_Y.mean()).max() < BIG_Y.std()  # the column says nothing


def test_integers_that_float64_rounds_are_warned_of():
    ids = np.arange(60)[:, None] + np.array([2**60, 0])
    with pytest.warns(UserWarning, match=r"Column 0 of `?X`? holds integers beyond 2\*\*53"):
        CFLLRegressor(max_epochs=1).fit(ids, Y[:60] if len(Y) >= 60 else np.arange(60.0))
