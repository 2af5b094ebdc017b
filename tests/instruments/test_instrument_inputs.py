"""Inputs of people's own data: gaps, wild values, weights, clusters, outcomes without errors."""

import warnings

import numpy as np
import pandas as pd
import pytest

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments.confidence_sets import ivmodels_set
from sklearn_cfll.instruments.diagnostics import effective_f, sanderson_windmeijer_f
from sklearn_cfll.instruments.partially_linear import Residuals, two_stage_effect
from sklearn_cfll.instruments.summary import Summary

QUICK = {"max_epochs": 2, "n_repeats": 1, "n_folds": 2, "random_state": 0}


def sample(n=200, seed=0):
    rng = np.random.default_rng(seed)
    Z, C, hidden = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), rng.normal(size=n)
    X = Z.sum(1) + C[:, 0] + hidden + rng.normal(size=n)
    return X[:, None], X + C[:, 1] + hidden + rng.normal(size=n), Z, C


@pytest.mark.parametrize("argument", ["X", "Z", "C"])
def test_columns_with_gaps_are_named(argument):
    X, y, Z, C = sample()
    given = {"X": pd.DataFrame(X, columns=["x"]), "Z": pd.DataFrame(Z, columns=["a", "b"])}
    given["C"] = pd.DataFrame(C, columns=["c", "d"])
    frame = given[argument]
    frame.iloc[[3, 7], -1] = np.nan
    last = frame.columns[-1]
    with pytest.raises(
        ValueError, match=f"Input {argument} .* column '{last}' in 2 of 200 .* row 3"
    ):
        CFLLIVRegressor(**QUICK).fit(y=y, **given)


def test_pandas_gaps_are_named():
    X, y, Z, _ = sample()
    C = pd.DataFrame({"c": pd.array([1, None, *range(198)], dtype="Int64")})
    with pytest.raises(ValueError, match="column 'c' in 1 of 200 rows, first in row 1"):
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C)


@pytest.mark.parametrize("argument", ["X", "Z", "C"])
def test_categories_are_not_taken_for_amounts(argument):
    X, y, Z, C = sample()
    codes = pd.Series(np.arange(200) % 4 + 1970, dtype="category", name="year")
    for value in (codes, pd.DataFrame({"year": codes})):
        given = {"X": X, "Z": Z, "C": C} | {argument: value}
        with pytest.raises(ValueError, match=f"Column 'year' of `{argument}` is a category"):
            CFLLIVRegressor(**QUICK).fit(y=y, **given)


def test_words_and_infinite_values_are_named_with_what_to_do():
    X, y, Z, C = sample()
    words = pd.DataFrame({"c": C[:, 0], "region": ["north", "south"] * 100})
    with pytest.raises(ValueError, match=r"'region' of `C` .*`pandas.get_dummies\(C, drop_first"):
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=words)
    Z[[4, 9], 1] = np.inf
    with pytest.raises(ValueError, match="Z contains infinity: column 1 in 2 of 200 .* row 4"):
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C)


def test_categories_at_predict_are_not_taken_for_amounts():
    X, y, Z, C = sample()
    model = CFLLIVRegressor(**QUICK, diagnose=False).fit(X, y, Z=Z, C=C)
    years = pd.DataFrame({"c": C[:, 0], "year": pd.Series(np.arange(200) % 4, dtype="category")})
    with pytest.raises(ValueError, match="Column 'year' of `C` is a category"):
        model.predict(X, years)
    with pytest.raises(ValueError, match="Column 'year' of `Z` is a category"):
        model.score(X, y, years, C)


def test_wild_values_of_controls_are_named():
    X, y, Z, C = sample()
    C = pd.DataFrame(C, columns=["c", "d"])
    C.loc[5, "d"] = 1e6
    with pytest.warns(UserWarning, match=r"Column 'd' of `C` is 1e\+06 in row 5"):
        CFLLIVRegressor(**QUICK, diagnose=False).fit(X, y, Z=Z, C=C)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("constant", [True, False])
def test_a_treatment_that_does_not_vary_beside_the_controls_is_an_error(constant):
    X, y, Z, C = sample()
    X = np.ones_like(X) if constant else C[:, :1] - C[:, 1:]
    with pytest.raises(ValueError, match="No column of `X` varies beside `C`"):
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C)


@pytest.mark.parametrize("case", ["constant", "exact", "large", "few"])
def test_outcomes_on_which_a_test_has_no_solution(case):
    X, y, Z, C = sample(4 if case == "few" else 200)
    y = {"constant": np.ones(200), "exact": X[:, 0], "large": 1e30 * y, "few": y}[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C)
    assert "Preferred" in str(model.summary())
    if case == "exact":
        assert model.effect_.estimate[0] == pytest.approx(1.0)


def test_sets_of_ivmodels_do_not_depend_on_units():
    pytest.importorskip("ivmodels")
    X, y, Z, _ = sample()
    found = [
        ivmodels_set("conditional_likelihood_ratio", Residuals.of(y * a, X * b, Z), 0) * b / a
        for a, b in ((1.0, 1.0), (1e30, 1.0), (1e-20, 1e12))
    ]
    for each in found[1:]:
        np.testing.assert_allclose(each, found[0], rtol=1e-6)


def test_weights_count_as_rows_where_networks_of_the_controls_need_many():
    X, y, Z, C = sample(150)
    curve = 2 * np.square(C[:, 1])
    Z, X, y = Z + curve[:, None], X + curve[:, None], y + curve
    errors = [
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C, sample_weight=weight).effect_.std_error[0]
        for weight in (None, np.full(150, 2.0))
    ]
    # 300 rows, and a curve that is taken off: linear controls leave it among the instruments.
    assert errors[1] > 1.5 * errors[0] / np.sqrt(2)


def test_weights_that_are_shares_count_rows():
    X, y, Z, C = sample()
    errors = [
        CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C, sample_weight=weight).effect_.std_error[0]
        for weight in (None, np.full(200, 1 / 200))
    ]
    assert errors[0] == errors[1]


def test_effective_f_is_clustered():
    rng = np.random.default_rng(0)
    groups = np.arange(400) // 20
    Z = rng.normal(size=20)[groups, None]  # varies between clusters alone
    X = 0.5 * Z + rng.normal(size=20)[groups, None] + rng.normal(size=(400, 1))
    (robust,), (clustered,) = effective_f(X, Z), effective_f(X, Z, clusters=groups)
    rows = Residuals.of(X[:, 0], X, Z, clusters=groups)
    assert clustered.effective_f == pytest.approx(two_stage_effect(rows).first_stage_f[0], rel=0.01)
    assert clustered.effective_f < robust.effective_f / 4
    (own,) = effective_f(X, Z, clusters=np.arange(400))
    assert own.effective_f == pytest.approx(robust.effective_f)


def test_first_stage_f_is_net_of_the_other_treatments():
    rng = np.random.default_rng(0)
    Z = rng.normal(size=(500, 3))
    X = Z.sum(1)[:, None] + 0.05 * Z[:, :2] + rng.normal(size=(500, 2))
    found = two_stage_effect(Residuals.of(X.sum(1), X, Z)).first_stage_f
    expected = [test.statistic for test in sanderson_windmeijer_f(X, Z)]
    np.testing.assert_allclose(found, expected, rtol=0.1)  # errors have one variance here
    assert max(found) < 10


def test_infinite_ends_in_latex():
    effect = {
        name: np.array([1.0])
        for name in ("estimate", "std_error", "first_stage_f", "curve_estimate", "curve_std_error")
    } | {
        "interval": np.array([[0.0, 2.0]]),
        "anderson_rubin": [np.array([[-np.inf, 0.5], [2.0, np.inf]])],
        "conditional_likelihood_ratio": None,
        "treatment_names": ["inflation"],
        "covariance_type": "robust",
        "n_clusters": None,
        "n_samples": 100.0,
        "n_instruments": 1,
    }
    text = Summary("", [], effect=effect).to_latex()
    assert r"($-\infty$, 0.5] or [2, $\infty$)" in text and "inflation" in text
