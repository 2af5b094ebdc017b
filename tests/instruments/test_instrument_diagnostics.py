"""Diagnostics of instruments: against linearmodels, under weights and units, in limiting cases."""

import numpy as np
import pytest

from sklearn_cfll.instruments.diagnostics import (
    confounding_size,
    effective_f,
    first_stage_f,
    hansen,
    wu_hausman,
)


def linear_data(n=300, n_treatments=1, strength=1.0, seed=0):
    rng = np.random.default_rng(seed)
    C, Z, hidden = rng.normal(size=(n, 2)), rng.normal(size=(n, 4)), rng.normal(size=n)
    loadings = rng.uniform(0.3, 1, size=(4, n_treatments)) * strength
    X = Z @ loadings + C[:, :1] + hidden[:, None] + rng.normal(size=(n, n_treatments))
    y = X.sum(1) - C[:, 1] + hidden + rng.normal(size=n)
    return X, y, Z, C


@pytest.mark.parametrize("n_treatments", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_first_stage_f_equals_that_of_linearmodels(n_treatments, weighted):
    iv = pytest.importorskip("linearmodels.iv")
    X, y, Z, C = linear_data(n_treatments=n_treatments)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y)) if weighted else None
    if weighted:
        weights *= len(y) / weights.sum()  # linearmodels normalises them so
    exogenous = np.column_stack([np.ones(len(y)), C])
    model = iv.IV2SLS(y, exogenous, X, Z, weights=weights)
    result = model.fit(cov_type="unadjusted", debiased=True)
    expected = result.first_stage.diagnostics["f.stat"]
    found = [test.statistic for test in first_stage_f(X, Z, C, weights)]
    np.testing.assert_allclose(found, expected.astype(float), rtol=1e-8)


@pytest.mark.parametrize("n_treatments", [1, 2])
@pytest.mark.parametrize("clustered", [False, True])
def test_robust_tests_equal_those_of_linearmodels(n_treatments, clustered):
    iv = pytest.importorskip("linearmodels.iv")
    X, y, Z, _ = linear_data(n_treatments=n_treatments)
    y = y + 2 * Z[:, 0] * np.random.default_rng(1).normal(size=len(y))  # heteroscedastic
    clusters = np.arange(len(y)) // 10 if clustered else None
    # Without controls and a constant, whose moments linearmodels weights too.
    X, y, Z = (part - part.mean(0) for part in (X, y, Z))
    kind = {"weight_type": "robust"}
    if clustered:
        kind = {"weight_type": "clustered", "clusters": clusters}
    theirs = iv.IVGMM(y, None, X, Z, **kind).fit(iter_limit=2).j_stat
    ours = hansen(X, y, Z, None, None, clusters)
    assert ours.statistic == pytest.approx(theirs.stat, rel=1e-6)
    assert ours.p_value == pytest.approx(theirs.pval, rel=1e-6)
    if not clustered:
        result = iv.IV2SLS(y, np.ones((len(y), 1)), X, Z).fit(cov_type="robust")
        found, df = wu_hausman(X, y, Z), len(y) - 1 - 2 * n_treatments
        expected = result.wooldridge_regression.stat * df / len(y) / n_treatments
        assert found.statistic == pytest.approx(expected, rel=1e-6)


def test_effective_f_of_one_instrument_is_the_robust_f():
    sm = pytest.importorskip("statsmodels.api")
    X, _, Z, C = linear_data()
    design = sm.add_constant(np.column_stack([Z[:, :1], C]))
    fit = sm.OLS(X[:, 0], design).fit(cov_type="HC1")
    (strength,) = effective_f(X, Z[:, :1], C)
    assert strength.effective_f == pytest.approx(fit.tvalues[1] ** 2, rel=1e-8)
    # Table 1 of Montiel Olea and Pflueger (2013), one instrument, a tenth of the worst case.
    assert strength.critical_value == pytest.approx(23.11, abs=0.01)


def test_effective_f_is_close_to_the_classical_one_under_homoskedasticity():
    X, _, Z, C = linear_data(n=20_000)
    ratio = effective_f(X, Z, C)[0].effective_f / first_stage_f(X, Z, C)[0].statistic
    assert ratio == pytest.approx(1.0, abs=0.05)


ALL = {
    "first_stage_f": lambda X, y, Z, C, w: first_stage_f(X, Z, C, w)[0].statistic,
    "effective_f": lambda X, y, Z, C, w: effective_f(X, Z, C, w)[0].effective_f,
    "hansen": lambda X, y, Z, C, w: hansen(X, y, Z, C, w).statistic,
    "wu_hausman": lambda X, y, Z, C, w: wu_hausman(X, y, Z, C, w).statistic,
}


@pytest.mark.parametrize("name", ALL)
def test_weights_are_repetitions(name):
    data = linear_data()
    counts = np.random.default_rng(2).integers(1, 4, len(data[1]))
    repeated = [np.repeat(part, counts, axis=0) for part in data]
    assert ALL[name](*data, counts) == pytest.approx(ALL[name](*repeated, None), rel=1e-8)


@pytest.mark.parametrize("name", ALL)
def test_units_order_and_idle_columns_do_not_matter(name):
    X, y, Z, C = linear_data()
    expected = ALL[name](X, y, Z, C, None)
    order = np.random.default_rng(3).permutation(len(y))
    changed = [
        1e3 * X[order] + 5,
        -0.01 * y[order] + 7,
        np.column_stack([1e-4 * Z[order][:, ::-1] - 2, np.ones(len(y)), C[order][:, 0]]),
        np.column_stack([C[order] @ [[1, 1], [0, 1]], C[order][:, 0]]),
    ]
    assert ALL[name](*changed, None) == pytest.approx(expected, rel=1e-6)


def test_exactly_identified_models_leave_nothing_to_test():
    X, y, Z, C = linear_data()
    assert np.isnan(hansen(X, y, Z[:, :1], C).statistic)
    assert hansen(X, y, Z[:, :1], C).df == (0,)


def test_hansen_finds_an_instrument_that_acts_on_the_outcome():
    X, y, Z, C = linear_data()
    assert hansen(X, y, Z, C).p_value > 0.01
    assert hansen(X, y + Z[:, 3], Z, C).p_value < 1e-6


def test_instruments_without_content_are_weak_and_raise_nothing():
    X, y, _, C = linear_data()
    noise = np.random.default_rng(4).normal(size=(len(y), 2))
    assert effective_f(X, noise, C)[0].effective_f < 10
    constant = np.ones((len(y), 1))
    assert effective_f(X, constant, C)[0].effective_f == 0
    assert first_stage_f(X, constant, C)[0].statistic == 0
    assert np.isnan(hansen(X, y, constant, C).statistic)


def test_size_weighs_bias_against_variance():
    rng = np.random.default_rng(5)
    truth = rng.normal(size=200)

    def folds(bias, noise):
        return truth + bias + noise * rng.normal(size=(2, 5, 200))

    biased = confounding_size(folds(0, 0.1), folds(1.0, 0.05))
    assert biased.preferred == "instrument"
    assert biased.squared_bias == pytest.approx(1.0, rel=0.1)
    harmless = confounding_size(folds(0, 0.5), folds(0.01, 0.02))
    assert harmless.preferred == "direct"
    assert harmless.squared_bias < 0.1
