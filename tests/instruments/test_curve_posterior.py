"""The band of the structural function: what instruments leave open, and what it assumes."""

import warnings

import numpy as np
import pytest
import torch

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments import curve_posterior as posterior
from sklearn_cfll.instruments.data import InstrumentData, fold_labels
from small_fits import SMALL

KNOTS = [np.linspace(-2, 2, 7), np.array([0.0, 1.0])]


def curve_data(n=400, strength=1.0, seed=0):
    rng = np.random.default_rng(seed)
    Z, hidden = rng.uniform(-2, 2, (n, 1)), rng.normal(size=n)
    X = strength * Z + hidden[:, None] + 0.3 * rng.normal(size=(n, 1))
    return X, np.abs(X[:, 0]) + hidden + 0.1 * rng.normal(size=n), Z


def test_splines_are_one_at_their_knot_and_straight_beyond():
    x = np.column_stack([np.linspace(-5, 5, 41), np.linspace(-1, 2, 41)])
    found = posterior.functions(x, KNOTS)
    np.testing.assert_allclose(found[:, 1:8] @ (3 * KNOTS[0] - 1), 3 * x[:, 0] - 1, atol=1e-12)
    np.testing.assert_allclose(found[:, 8:] @ [0.0, 1.0], x[:, 1], atol=1e-12)
    at_knots = np.column_stack([KNOTS[0], np.zeros(7)])
    np.testing.assert_allclose(posterior.functions(at_knots, KNOTS)[:, 1:8], np.eye(7), atol=1e-12)


def test_covariance_is_that_of_bayesian_linear_regression(monkeypatch):
    monkeypatch.setattr(posterior, "LENGTHS", (0.8,))
    monkeypatch.setattr(posterior, "AMPLITUDES", (0.4,))
    rng = np.random.default_rng(0)
    slopes, moment = rng.normal(size=(12, 8)), rng.normal(size=12)
    knots = KNOTS[:1]
    expected = np.linalg.inv(
        np.linalg.inv(posterior.curve_prior(knots, 0.8, 0.4)) + slopes.T @ slopes
    )
    np.testing.assert_allclose(
        posterior._mixture(slopes, moment, knots), expected, rtol=1e-5, atol=1e-8
    )


def test_without_information_the_prior_is_left():
    found = posterior._mixture(np.zeros((3, 10)), np.zeros(3), KNOTS)
    priors = [
        posterior.curve_prior(KNOTS, length, amplitude)
        for length in posterior.LENGTHS
        for amplitude in posterior.AMPLITUDES
    ]
    np.testing.assert_allclose(found, np.mean(priors, axis=0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_interval_is_symmetric_and_grows_with_its_coverage():
    X, y, Z = curve_data()
    model = CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=Z)
    mean, std = model.predict(X, return_std=True)
    lower, upper = model.predict_interval(X, coverage=0.9)
    np.testing.assert_allclose((lower + upper) / 2, mean, rtol=1e-6)
    np.testing.assert_allclose(upper - mean, 1.6448536 * std, rtol=1e-5)
    wider = model.predict_interval(X, coverage=0.99)
    assert (wider[0] < lower).all() and (wider[1] > upper).all()
    with pytest.raises(ValueError, match=r"`coverage` must lie between 0 and 1, got 90"):
        model.predict_interval(X, coverage=90)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_band_is_never_narrower_than_the_jackknife_over_folds():
    X, y, Z = curve_data()
    model = CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=Z)
    std = model.predict(X, return_std=True)[1]
    fitted = model._model
    jackknife = np.sqrt(fitted.models.variance(fitted.plan.rows(X, None, None)).numpy())
    assert (std >= jackknife * fitted.scale.scale * (1 - 1e-6)).all()
    assert np.median(std / (jackknife * fitted.scale.scale)) > 1.2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_clusters_of_copies_count_once(monkeypatch):
    monkeypatch.setattr(posterior, "LENGTHS", (0.8,))
    monkeypatch.setattr(posterior, "AMPLITUDES", (0.4,))
    X, y, Z = (np.repeat(part, 3, axis=0) for part in curve_data(200))
    model = CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=Z)._model
    data = InstrumentData(X, y, Z, None, None, float(len(X)))
    labels = torch.as_tensor(fold_labels(data, 4, 1, model.plan.seed)[0])
    rows = model.plan.rows(X, Z, None, model.scale.transform(y[:, None]))
    found = [
        posterior.curve_posterior(model.models, rows, labels, None, groups)
        for groups in (None, np.arange(len(X)), np.repeat(np.arange(200), 3))
    ]
    np.testing.assert_allclose(found[1].covariance, found[0].covariance, rtol=1e-6, atol=1e-9)
    plain, _, clustered = (np.median(each.variance(rows.treatment.numpy())) for each in found)
    assert clustered > 1.2 * plain


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_curve_without_features_of_the_treatment():
    X, y, Z = curve_data(100)
    for options in ({"treatment_backbone": "identity"}, {"feature_scale": 0.0}):
        model = CFLLIVRegressor(**SMALL | options, diagnose=False).fit(X, y, Z=Z)
        assert model._model.curve is None
        assert model.predict_interval(X)[0].shape == y.shape


def test_wild_treatments_and_instruments_are_named_by_column():
    pandas = pytest.importorskip("pandas")
    X, y, Z = curve_data(250)
    X[7], Z[9] = 1e6, -1e6
    C = np.random.default_rng(1).normal(size=(250, 1))
    table, instruments = pandas.DataFrame(X, columns=["dose"]), pandas.DataFrame(Z, columns=["far"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CFLLIVRegressor(**SMALL, diagnose=False).fit(table, y, Z=instruments, C=C)
    texts = [str(each.message) for each in caught]
    assert any("Column 'dose' of `X` is 1e+06 in row 7: at least" in text for text in texts)
    assert any("Column 'far' of `Z` is -1e+06 in row 9: at least" in text for text in texts)
    assert not any("y[" in text for text in texts)


def test_display_of_intervals_takes_the_band():
    pytest.importorskip("matplotlib").use("agg")
    from sklearn_cfll.inspection import PredictionIntervalDisplay

    X, y, Z = curve_data(100)
    model = CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=Z)
    display = PredictionIntervalDisplay.from_estimator(model, X, coverage=0.8)
    np.testing.assert_allclose(display.upper, model.predict_interval(X, coverage=0.8)[1])


def test_sup_t_of_a_line_is_that_of_working_and_hotelling():
    # Errors of a line with two uncertain values: at all doses at once χ² with two degrees.
    curve = posterior.CurvePosterior([np.array([-1.0, 1.0])], np.diag([0.0, 1.0, 4.0]))
    doses = np.linspace(-200, 200, 4001)[:, None]
    largest = np.abs(curve.paths(doses, 20_000, 0)).max(0)
    assert np.quantile(largest, 0.9) == pytest.approx(2.146, abs=0.03)
    paths = curve.paths(doses[::1000], 20_000, 0)
    np.testing.assert_allclose(paths.std(1), 1.0, atol=0.02)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_paths_of_networks_have_the_correlations_of_their_posterior():
    X, y, Z = curve_data()
    model = CFLLIVRegressor(**SMALL, diagnose=False, feature_scale=0).fit(X, y, Z=Z)._model
    rows = model.plan.rows(X[:5], None, None)
    paths = model.models.paths(rows, 20_000, 0).numpy()
    np.testing.assert_allclose(paths.std(1), 1.0, atol=0.02)
    # Errors of single folds add up: level and slope, which are uncorrelated in each.
    again = model.models.paths(rows.take(slice(2, 5)), 20_000, 0).numpy()
    np.testing.assert_allclose(again, paths[2:], atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_simultaneous_band_is_wider_and_depends_on_the_rows():
    X, y, Z = curve_data()
    model = CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=Z)
    doses = np.linspace(-2, 2, 30)[:, None]
    mean, std = model.predict(doses, return_std=True)

    def width(rows):
        upper = model.predict_interval(rows, coverage=0.9, simultaneous=True)[1]
        return (upper - model.predict(rows))[0] / model.predict(rows, return_std=True)[1][0]

    upper = model.predict_interval(doses, coverage=0.9, simultaneous=True)[1]
    ratio = (upper - mean) / std
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert 2.0 < ratio[0] < 3.5
    assert width(doses[:1]) == pytest.approx(1.645, abs=0.1)
    assert width(np.repeat(doses, 100, axis=0)) == pytest.approx(ratio[0], rel=1e-4)  # in blocks
    assert width(doses[:10]) < ratio[0]
