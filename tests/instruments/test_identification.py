"""Identification: what is refused or named before a net is trained (FAULTS.md A9)."""

import warnings

import numpy as np
import pytest

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments.diagnostics import effective_f, rank_test, sanderson_windmeijer_f
from sklearn_cfll.instruments.identification import (
    RedundantInstrumentWarning,
    UnderidentifiedWarning,
)
from sklearn_cfll.instruments.report import WeakInstrumentWarning, preferred, slopes_disagree

TINY = {
    "treatment_hidden_sizes": (4,),
    "instrument_hidden_sizes": (8, 4),
    "covariate_hidden_sizes": (8, 4),
    "n_repeats": 1,
    "n_folds": 2,
    "max_epochs": 2,
    "random_state": 0,
}


def two_treatments(n=400, apart=1.0, seed=0):
    """Instruments that move both treatments together, and apart only if told so."""
    rng = np.random.default_rng(seed)
    Z, noise, hidden = rng.normal(size=(n, 2)), rng.normal(size=(n, 2)), rng.normal(size=n)
    together = Z.sum(1)
    X = np.column_stack([together + apart * Z[:, 0], together]) + hidden[:, None] + noise
    return X, 2 * X[:, 0] - X[:, 1] + hidden, Z


def no_training(monkeypatch):
    def fail(*_):
        raise AssertionError("a net was trained")

    monkeypatch.setattr("sklearn_cfll.instruments.run.train", fail)


def test_fewer_instruments_than_treatments_are_an_error_before_training(monkeypatch):
    no_training(monkeypatch)
    X, y, Z = two_treatments()
    with pytest.raises(ValueError, match="2 treatments need .* `Z` has 1 linearly independent"):
        CFLLIVRegressor().fit(X, y, Z=Z[:, :1])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_idle_columns_do_not_count_as_instruments():
    X, y, Z = two_treatments()
    for idle in (np.ones(len(y)), 2 * Z[:, 0] + 1):
        with pytest.raises(ValueError, match="has 1 linearly independent column beside"):
            CFLLIVRegressor().fit(X, y, Z=np.column_stack([Z[:, 0], idle]))
    with pytest.raises(ValueError, match="has 0 linearly independent columns"):
        CFLLIVRegressor().fit(X[:, :1], y, Z=Z[:, :1], C=Z)


@pytest.mark.filterwarnings("ignore:Direct regression", "ignore:Instruments are weak")
def test_constant_and_collinear_columns_are_named():
    pd = pytest.importorskip("pandas")
    X, y, Z = two_treatments()
    frame = pd.DataFrame({"a": Z[:, 0], "b": Z[:, 1], "one": 1.0, "sum": Z.sum(1)})
    with pytest.warns(RedundantInstrumentWarning) as caught:
        CFLLIVRegressor(**TINY).fit(X, y, Z=frame)
    named = [str(each.message) for each in caught if "Column" in str(each.message)]
    assert [text.split("`")[0] for text in named] == ["Column 'one' of ", "Column 'sum' of "]
    assert caught[0].filename == __file__
    with pytest.warns(UnderidentifiedWarning, match="Column 2 of `X` is constant"):
        CFLLIVRegressor(**TINY).fit(np.column_stack([X, X.sum(1)]), y, Z=Z)


def test_instruments_that_move_one_direction_of_two_are_named():
    X, y, Z = two_treatments(apart=0.0, seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = CFLLIVRegressor(**TINY).fit(X, y, Z=Z)
    kinds = {each.category for each in caught}
    assert {UnderidentifiedWarning, WeakInstrumentWarning} <= kinds
    report = model.diagnostics_
    assert report["rank_test"][2] > 0.05
    assert max(report["linear_effective_f"]) < 5
    assert report["effective_f"] < report["critical_value"]
    assert model.preferred_ == "neither"
    (text,) = [str(each.message) for each in caught if each.category is WeakInstrumentWarning]
    assert "by treatment, net of the others: 0: " in text


@pytest.mark.filterwarnings("ignore:Direct regression")
def test_instruments_that_move_both_are_not():
    X, y, Z = two_treatments()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnderidentifiedWarning)
        warnings.simplefilter("error", WeakInstrumentWarning)
        model = CFLLIVRegressor(**TINY).fit(X, y, Z=Z)
    assert min(model.diagnostics_["linear_effective_f"]) > 23.1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_over_identification_needs_more_instruments_than_treatments():
    X, y, Z = two_treatments()
    report = CFLLIVRegressor(**TINY).fit(X[:, :1], y, Z=Z[:, :1]).diagnostics_
    assert np.isnan(report["overidentification"][0])
    report = CFLLIVRegressor(**TINY).fit(X[:, :1], y, Z=Z).diagnostics_
    assert report["overidentification"][1] == (1,)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_strength_of_the_linear_first_stage_does_not_depend_on_the_random_state():
    X, y, Z = two_treatments()
    reports = [
        CFLLIVRegressor(**{**TINY, "random_state": seed}).fit(X, y, Z=Z).diagnostics_
        for seed in (0, 1)
    ]
    assert reports[0]["linear_effective_f"] == reports[1]["linear_effective_f"]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reordered_columns_are_put_back_and_other_names_are_errors():
    pd = pytest.importorskip("pandas")
    X, y, Z = two_treatments(150)
    rng = np.random.default_rng(1)
    treatment = pd.DataFrame(X, columns=["x1", "x2"])
    Z = pd.DataFrame(Z, columns=["z1", "z2"])
    C = pd.DataFrame(rng.normal(size=(len(y), 2)), columns=["age", "size"])
    model = CFLLIVRegressor(**TINY).fit(treatment, y, Z=Z, C=C)
    expected = model.predict(treatment, C)
    np.testing.assert_array_equal(model.predict(treatment, C[["size", "age"]]), expected)
    same = model.score(treatment, y, Z=Z, C=C)
    assert model.score(treatment, y, Z=Z[["z2", "z1"]], C=C[["size", "age"]]) == same
    with pytest.raises(ValueError, match=r"`C` lacks \['age'\] and also has \['Age'\]"):
        model.predict(treatment, C.rename(columns={"age": "Age"}))
    with pytest.raises(ValueError, match="must be in the same order"):
        model.predict(treatment[["x2", "x1"]], C)
    np.testing.assert_array_equal(model.predict(X, C.to_numpy()), expected)


def test_conditional_f_is_that_of_the_treatment_net_of_the_others():
    iv = pytest.importorskip("linearmodels.iv")
    X, _, Z = two_treatments(apart=0.3)
    Z = np.column_stack([Z, np.random.default_rng(1).normal(size=len(Z))])
    ones = np.ones((len(X), 1))
    for j, found in enumerate(sanderson_windmeijer_f(X, Z)):
        slope = iv.IV2SLS(X[:, j], ones, X[:, [1 - j]], Z).fit().params.iloc[-1]
        rest = X[:, j] - slope * X[:, 1 - j]
        design = np.hstack([ones, Z])
        square = np.sum((rest - design @ np.linalg.lstsq(design, rest, rcond=None)[0]) ** 2)
        explained = np.sum((rest - rest.mean()) ** 2) - square
        assert found.df == (2, len(X) - 4)
        assert found.statistic == pytest.approx(explained / 2 / (square / (len(X) - 4)))


def test_conditional_f_of_one_treatment_is_the_first_stage_f():
    X, _, Z = two_treatments()
    robust, classical = effective_f(X[:, :1], Z)[0], sanderson_windmeijer_f(X[:, :1], Z)[0]
    assert robust.effective_f == pytest.approx(classical.statistic, rel=0.1)


def test_rank_test_is_that_of_ivmodels():
    ivmodels = pytest.importorskip("ivmodels.tests")
    for apart in (0.0, 0.3):
        X, _, Z = two_treatments(apart=apart)
        C = np.random.default_rng(2).normal(size=(len(X), 2))
        statistic, p_value = ivmodels.rank_test(Z, X, C)
        found = rank_test(X, Z, C)
        assert found.statistic == pytest.approx(statistic, rel=1e-6)
        assert found.p_value == pytest.approx(p_value, rel=1e-6)


def effect(estimate, curve, error=0.1):
    errors = {"std_error": np.full(2, error), "curve_std_error": np.full(2, error)}
    return {"estimate": np.array(estimate), "curve_estimate": np.array(curve)} | errors


def test_slopes_disagree_only_in_sign_and_beyond_their_errors():
    assert slopes_disagree(effect([1.0, 1.0], [1.0, -1.0]))
    assert not slopes_disagree(effect([1.0, 1.0], [3.0, -0.1]))
    assert not slopes_disagree(effect([1.0, -0.1], [1.0, 1.0]))
    assert not slopes_disagree(None)


@pytest.mark.parametrize(
    ("strength", "smaller", "disagree", "expected"),
    [
        (50.0, "instrument", False, "instrument"),
        (50.0, "direct", True, "direct"),
        (50.0, "instrument", True, "neither"),
        (10.0, "instrument", False, "neither"),
        (10.0, "direct", False, "neither"),
        (float("nan"), "instrument", False, "neither"),
    ],
)
def test_what_is_preferred(strength, smaller, disagree, expected):
    report = {"effective_f": strength, "critical_value": 23.1, "slopes_disagree": disagree}
    assert preferred(report | {"preferred": smaller}) == expected
