"""Going on after `fit`: a few more rows of the same kind never cost a model its quality."""

import copy
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_friedman1
from sklearn.linear_model import SGDRegressor
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn

from helpers import friedman
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder


def shuffled(X, y, seed=0):
    order = np.random.default_rng(seed).permutation(len(X))
    return X[order], y[order]


NARROW = {"hidden_layer_sizes": (32, 32), "random_state": 0}
SETS = {
    "friedman": (CFLLRegressor, friedman(1300), 300),
    "iris": (CFLLClassifier, shuffled(*load_iris(return_X_y=True)), 80),
    "digits": (CFLLClassifier, shuffled(*load_digits(return_X_y=True)), 500),
}


@pytest.fixture(scope="module", params=SETS)
def fitted(request):
    Estimator, (X, y), n = SETS[request.param]
    model = Estimator(max_epochs=20, **NARROW).fit(X[:n], y[:n])
    return model, (X, y), n


@pytest.mark.parametrize("n_rows", [1, 10, 50])
def test_partial_fit_on_rows_of_the_same_distribution_keeps_the_score(fitted, n_rows):
    model, (X, y), n = fitted
    X_test, y_test = X[n + 50 :], y[n + 50 :]
    after = copy.deepcopy(model).partial_fit(X[n : n + n_rows], y[n : n + n_rows])
    assert after.score(X_test, y_test) > model.score(X_test, y_test) - 0.011


def test_rows_one_by_one_keep_the_score(fitted):
    model, (X, y), n = fitted
    after = copy.deepcopy(model)
    for i in range(n, n + 30):
        after.partial_fit(X[i : i + 1], y[i : i + 1])
    X_test, y_test = X[n + 50 :], y[n + 50 :]
    assert after.score(X_test, y_test) > model.score(X_test, y_test) - 0.011


def test_the_same_rows_again_keep_the_score(fitted):
    model, (X, y), n = fitted
    after = copy.deepcopy(model).partial_fit(X[:n], y[:n])
    assert after.score(X[n:], y[n:]) > model.score(X[n:], y[n:]) - 0.02


@pytest.mark.parametrize("n_rows", [1, 10])
def test_a_warm_fit_to_few_more_rows_keeps_the_score(fitted, n_rows):
    model, (X, y), n = fitted
    if isinstance(model, CFLLClassifier):
        model = clone(model).set_params(early_stopping=False).fit(X[:n], y[:n])
    after = copy.deepcopy(model).set_params(warm_start=True)
    rows = slice(n, n + max(2, n_rows))
    after.fit(X[rows], y[rows])
    assert after.score(X[n + 50 :], y[n + 50 :]) > model.score(X[n + 50 :], y[n + 50 :]) - 0.02


def test_many_more_rows_improve_a_model():
    X, y = friedman(6000)
    model = CFLLRegressor(**NARROW).fit(X[:300], y[:300])
    before = model.score(X[5000:], y[5000:])
    assert model.partial_fit(X[300:5000], y[300:5000]).score(X[5000:], y[5000:]) > before


@pytest.mark.slow
def test_a_stream_of_single_rows_beats_a_linear_one():
    X, y = make_friedman1(1500, 10, noise=0.5, random_state=0)
    model = CFLLRegressor(random_state=0)
    scaler = StandardScaler().fit(X[:300])
    linear = SGDRegressor(random_state=0)
    for i in range(200):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
        linear.partial_fit(scaler.transform(X[i : i + 1]), y[i : i + 1])
    score = model.score(X[500:], y[500:])
    assert score > linear.score(scaler.transform(X[500:]), y[500:])
    assert score > 0.5


def test_a_stream_finds_the_ridge_that_its_noise_asks_for():
    X, y = make_friedman1(520, n_features=5, noise=0.0, random_state=0)
    y = (y - y.mean()) / y.std()
    ridges, scores = [], []
    for noise in (0.01, 4.0):
        noisy = y + noise * np.random.default_rng(0).normal(size=520)
        model = CFLLRegressor(random_state=0)
        for part in np.array_split(np.arange(120), 20):
            model.partial_fit(X[part], noisy[part])
        ridges.append(model.final_ridge_)
        scores.append(model.score(X[120:], noisy[120:]))
    assert ridges[0] < 0.1 < 1.0 < ridges[1]
    assert scores[0] > 0.85 and scores[1] > -0.1


def test_scales_follow_a_stream():
    """The first chunk has columns a thousand times as small as the rest."""
    X, y = friedman(1000)
    model, even = (CFLLRegressor(columns=ColumnEncoder(0), **NARROW) for _ in range(2))
    model.partial_fit(1e-3 * X[:20], y[:20])
    even.partial_fit(X[:20], y[:20])
    for start in range(20, 520, 20):
        model.partial_fit(X[start : start + 20], y[start : start + 20])
        even.partial_fit(X[start : start + 20], y[start : start + 20])
    assert model.score(X[520:], y[520:]) > even.score(X[520:], y[520:]) - 0.05


def test_a_frozen_backbone_makes_partial_fit_exact():
    """Fixed features: fit, then the rest row by row, equals the ridge fit to all rows."""
    X, y = friedman(60)
    options = {
        "backbone": nn.Identity(),
        "normalize_y": False,
        "ridge": 0.1,
        "precision": "float64",
    }
    model = CFLLRegressor(**options, early_stopping=False, max_epochs=1).fit(X[:40], y[:40])
    whole = clone(model).fit(X, y)
    for i in range(40, 60):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
    np.testing.assert_allclose(model.predict(X), whole.predict(X), rtol=1e-9)


@pytest.mark.parametrize("container", [np.asarray, pd.DataFrame])
def test_a_first_chunk_with_gaps_alone_is_named(container):
    X, y = friedman(50)
    X[:, 1] = np.nan
    with pytest.warns(UserWarning, match="Column '?1'? of `X` holds only gaps in these first rows"):
        CFLLRegressor(**NARROW).partial_fit(container(X), y)


def test_a_first_chunk_that_covers_little_of_a_column_is_named():
    X, y = friedman(400)
    model = CFLLRegressor(**NARROW).partial_fit(1e-3 * X[:50], y[:50])
    with pytest.warns(
        UserWarning, match=r"cover only part of the range of column \d.*ColumnEncoder\(n_bins=0\)"
    ):
        model.partial_fit(X[50:200], y[50:200])
    even = CFLLRegressor(**NARROW).partial_fit(X[:50], y[:50])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        even.partial_fit(X[50:200], y[50:200])


def test_rows_in_other_units_than_the_fit_are_named():
    X, y = friedman(400)
    model = CFLLRegressor(max_epochs=3, **NARROW).fit(X[:300], y[:300])
    with pytest.warns(UserWarning, match=r"Column 0 of the new rows has mean .* Check the units"):
        copy.deepcopy(model).partial_fit(1000 * X[300:], y[300:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.partial_fit(X[300:], y[300:])


def test_deviations_after_partial_fit_are_those_of_new_rows():
    """Rows of a noise three times as large: the level follows what they show before learning.

    It is a mean over all rows, those of the fit included.
    """
    X, y = friedman(300)
    noisy_X, noisy_y = friedman(2300, seed=1, noise=1.5)
    model = CFLLRegressor(max_epochs=20, **NARROW).fit(X, y)
    model.partial_fit(noisy_X[:2000], noisy_y[:2000])
    mean, std = model.predict(noisy_X[2000:], return_std=True)
    assert 0.85 < (np.abs(mean - noisy_y[2000:]) < 2 * std).mean() < 0.995


def test_deviations_of_a_stream_are_not_too_small():
    X, y = friedman(700, noise=1.0)
    model = CFLLRegressor(**NARROW)
    for start in range(0, 400, 20):
        model.partial_fit(X[start : start + 20], y[start : start + 20])
    mean, std = model.predict(X[400:], return_std=True)
    assert (np.abs(mean - y[400:]) < 2 * std).mean() > 0.9


@pytest.mark.parametrize("options", [{}, {"backbone": nn.Sequential(nn.Linear(6, 16), nn.Tanh())}])
def test_one_more_row_does_no_harm_where_no_moments_are_held(options):
    X, y = friedman(700)
    model = CFLLRegressor(refit_last_layer=False, max_epochs=15, **NARROW, **options)
    before = model.fit(X[:400], y[:400]).score(X[450:], y[450:])
    for n_rows in (1, 10):
        after = copy.deepcopy(model).partial_fit(X[400 : 400 + n_rows], y[400 : 400 + n_rows])
        assert after.score(X[450:], y[450:]) > before - 0.01
    warm = copy.deepcopy(model).set_params(warm_start=True).fit(X[400:402], y[400:402])
    assert warm.score(X[450:], y[450:]) > before - 0.01


@pytest.mark.parametrize("n_rows", [20, 45])
def test_a_warm_fit_that_holds_rows_out_adds_to_what_is_known(n_rows):
    X, y = friedman(1300, noise=1.0)
    model = CFLLRegressor(warm_start=True, early_stopping=True, **NARROW)
    before = model.fit(X[:300], y[:300]).score(X[400:], y[400:])
    assert model.fit(X[300 : 300 + n_rows], y[300 : 300 + n_rows]).score(X[400:], y[400:]) > (
        before - 0.01
    )


def test_probabilities_survive_a_warm_fit_to_few_rows():
    X, y = SETS["digits"][1]
    model = CFLLClassifier(warm_start=True, max_epochs=15, **NARROW).fit(X[:500], y[:500])
    before = log_loss(y[600:], model.predict_proba(X[600:]))
    model.fit(X[500:530], y[500:530])
    assert log_loss(y[600:], model.predict_proba(X[600:])) < before + 0.02


def test_rows_seen_before_do_not_change_the_noise():
    X, y = friedman(800, noise=1.0)
    model = CFLLRegressor(**NARROW).fit(X[:300], y[:300])
    for _ in range(10):
        model.partial_fit(X[:300], y[:300])
    lower, upper = model.predict_interval(X[300:])
    assert ((lower <= y[300:]) & (y[300:] <= upper)).mean() > 0.75
    none_held_out = CFLLRegressor(max_epochs=3, early_stopping=False, **NARROW)
    none_held_out.fit(X[:300], y[:300]).partial_fit(X[:300], y[:300])
    with pytest.raises(ValueError, match="`return_std` needs rows"):
        none_held_out.predict(X, return_std=True)


def test_a_wild_target_among_few_new_rows_is_named_and_clipped():
    X, y = friedman(403)
    model = CFLLRegressor(max_epochs=8, warm_start=True, **NARROW).fit(X[:300], y[:300])
    before = model.score(X[303:], y[303:])
    wild = y[300:303].copy()
    for value in (1e6, -1e100):
        wild[0] = value
        for method in ("adapt", "partial_fit", "fit"):
            for n_rows in (1, 3) if method != "fit" else (3,):
                after = copy.deepcopy(model)
                named = re.escape(f"y[0] = {value:g} lies more than 100 times as far")
                with pytest.warns(UserWarning, match=f"{named}.*clipped"):
                    getattr(after, method)(X[300 : 300 + n_rows], wild[:n_rows])
                assert after.score(X[303:], y[303:]) > before - 0.05


def test_many_far_targets_are_only_named_and_too_far_ones_refused():
    X, y = friedman(350)
    model = CFLLRegressor(max_epochs=2, precision="float32", **NARROW).fit(X[:300], y[:300])
    before = model.predict(X)
    for method in ("adapt", "partial_fit"):
        with pytest.warns(UserWarning, match=r"\(50 of 50 rows do\).*distort the model"):
            getattr(copy.deepcopy(model), method)(X[300:], 1e4 * y[300:])
        with (
            pytest.warns(UserWarning, match="distort the model"),
            pytest.raises(ValueError, match=r"y\[\d+\] = .*too far for float32.*Check its units"),
        ):
            getattr(model, method)(X[300:], 1e100 * y[300:])
    with pytest.raises(ValueError, match=r"`sample_weight` goes up to 1e\+308.*repetitions"):
        model.adapt(X[300:], y[300:], sample_weight=np.full(50, 1e308))
    np.testing.assert_array_equal(model.predict(X), before)


def test_resolved_follows_the_last_run():
    X, y = friedman(310)
    model = CFLLRegressor(max_epochs=3, **NARROW).fit(X[:300], y[:300])
    model.partial_fit(X[300:], y[300:])
    assert model.resolved_["max_epochs"] == 1
    assert model.resolved_["learning_rate"] < 1e-4


def test_a_stream_warns_of_far_targets_once():
    X, y = make_friedman1(300, n_features=5, random_state=0)
    model = CFLLRegressor(hidden_layer_sizes=(16,), columns=ColumnEncoder(0), random_state=0)
    model.partial_fit(X[:30], y[:30] * 1e-3)  # in other units
    with pytest.warns(UserWarning, match="standard deviations from"):
        model.partial_fit(X[30:60], y[30:60])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for start in range(60, 180, 30):
            model.partial_fit(X[start : start + 30], y[start : start + 30])


def test_adapt_names_columns_in_other_units():
    X, y = make_friedman1(80, n_features=5, random_state=0)
    model = CFLLRegressor(max_epochs=2, **NARROW).fit(X[:60], y[:60])
    with pytest.warns(UserWarning, match="Column 0 of the new rows has mean"):
        model.adapt(1e6 * X[60:], y[60:])


def test_adapt_leaves_no_leave_one_out_scores_of_earlier_rows():
    X, y = friedman(300)
    model = CFLLRegressor(nn.Identity(), random_state=0).fit(X[:200], y[:200])
    assert model.loo_residuals_.shape == (200,)
    model.adapt(X[200:], y[200:])
    assert not hasattr(model, "loo_score_") and not hasattr(model, "loo_residuals_")


def test_a_linear_part_that_a_stream_cannot_have_is_named():
    X, y = friedman(60)
    with pytest.warns(UserWarning, match="`linear_part`=True has no effect in `partial_fit`"):
        CFLLRegressor(linear_part=True, random_state=0).partial_fit(X, y)


def test_a_stream_may_begin_with_a_single_row():
    X, y = friedman(20)
    model = CFLLRegressor(**NARROW)
    for i in range(20):
        model.partial_fit(X[i : i + 1], y[i : i + 1])
    assert np.isfinite(model.predict(X)).all()
