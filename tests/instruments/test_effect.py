"""The average effect and its confidence sets: against linearmodels and ivmodels, and identities."""

import numpy as np
import pytest
from scipy import stats

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments.confidence_sets import (
    anderson_rubin_set,
    describe,
    ivmodels_set,
    pieces,
    tf_factor,
)
from sklearn_cfll.instruments.data import InstrumentData, fold_labels
from sklearn_cfll.instruments.effect import control_residuals, report
from sklearn_cfll.instruments.partially_linear import (
    Residuals,
    cross_fitted_predictions,
    two_stage_effect,
)

QUICK = {"max_epochs": 5, "n_repeats": 1, "n_folds": 2, "random_state": 0}


def average_effect(y, X, Z, C):
    rows = InstrumentData(X, y, Z, C, None, float(len(y)))
    return report(control_residuals(CFLLIVRegressor(), rows, 0))


def data(n=300, p=1, q=2, strength=0.5, seed=0):
    rng = np.random.default_rng(seed)
    Z, hidden = rng.normal(size=(n, q)), rng.normal(size=n)
    X = strength * Z @ rng.uniform(0.5, 1, size=(q, p)) + hidden[:, None] + rng.normal(size=(n, p))
    return 0.5 * X.sum(1) + hidden + rng.normal(size=n), X, Z


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("clustered", [False, True])
def test_estimates_and_errors_are_those_of_linearmodels(p, q, clustered):
    iv = pytest.importorskip("linearmodels.iv")
    y, X, Z = data(p=p, q=q)
    groups = np.random.default_rng(1).integers(0, 30, len(y)) if clustered else None
    fit = two_stage_effect(Residuals.of(y, X, Z, None, groups))
    kind = {"cov_type": "clustered", "clusters": groups} if clustered else {"cov_type": "robust"}
    expected = iv.IV2SLS(y, np.ones((len(y), 1)), X, Z).fit(debiased=True, **kind)
    np.testing.assert_allclose(fit.estimate, expected.params[1:], rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.covariance)), expected.std_errors[1:], rtol=1e-9)
    if clustered:
        assert fit.df == 29


def test_without_instruments_the_effect_is_least_squares():
    sm = pytest.importorskip("statsmodels.api")
    y, X, _ = data(p=2)
    fit = two_stage_effect(Residuals.of(y, X, None))
    expected = sm.OLS(y, sm.add_constant(X)).fit(cov_type="HC1")
    np.testing.assert_allclose(fit.estimate, expected.params[1:], rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.covariance)), expected.bse[1:], rtol=1e-9)


def test_weights_are_repetitions():
    y, X, Z = data(n=60)
    counts = np.random.default_rng(2).integers(1, 4, len(y))
    weighted = Residuals.of(y, X, Z, counts)
    repeated = Residuals.of(*(np.repeat(part, counts, axis=0) for part in (y, X, Z)))
    for ours, theirs in zip(two_stage_effect(weighted), two_stage_effect(repeated), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(
        anderson_rubin_set(weighted), anderson_rubin_set(repeated), rtol=1e-7
    )


def test_clusters_of_one_row_are_robust_errors_up_to_the_correction():
    y, X, Z = data()
    robust = two_stage_effect(Residuals.of(y, X, Z))
    clustered = two_stage_effect(Residuals.of(y, X, Z, None, np.arange(len(y))))
    np.testing.assert_allclose(clustered.covariance, robust.covariance, rtol=1e-9)


# -- confidence sets ------------------------------------------------------------------


@pytest.mark.parametrize("q", [1, 3])
@pytest.mark.parametrize("strength", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("clustered", [False, True])
def test_anderson_rubin_set_inverts_the_test(q, strength, clustered):
    y, X, Z = data(q=q, strength=strength)
    groups = np.arange(len(y)) % 25 if clustered else None
    rows = Residuals.of(y, X, Z, None, groups)
    found = anderson_rubin_set(rows)
    units = 25 if clustered else len(y)
    critical = units * stats.beta.ppf(0.95, q / 2, (units - q) / 2)

    def accepted(theta):
        total, terms = rows.sums(rows.Z * (rows.y - theta * rows.X[:, 0])[:, None])
        return total @ np.linalg.solve(terms.T @ terms, total) <= critical

    for theta in np.concatenate([np.linspace(-3, 3, 61), [-50, 50, -1e4, 1e4]]):
        inside = any(low <= theta <= high for low, high in found)
        assert inside == accepted(theta)
    for end in found[np.isfinite(found)]:
        assert accepted(end - 1e-6) != accepted(end + 1e-6)


def test_anderson_rubin_set_is_close_to_that_of_ivmodels():
    pytest.importorskip("ivmodels")
    rows = Residuals.of(*data(n=5000))  # errors are of one variance
    (ours,), (theirs,) = anderson_rubin_set(rows), ivmodels_set("anderson_rubin", rows, 0)
    np.testing.assert_allclose(ours, theirs, atol=0.005)


def test_sets_of_weak_and_of_contradictory_instruments_are_unbounded_and_empty():
    y, X, Z = data(q=1, strength=0.0)
    assert np.isinf(anderson_rubin_set(Residuals.of(y, X, Z))).any()
    y, X, Z = data(q=2, n=2000)
    assert len(anderson_rubin_set(Residuals.of(y + Z[:, 0] - Z[:, 1], X, Z))) == 0
    assert describe(np.empty((0, 2))) == "empty"
    assert describe(np.array([[-np.inf, 0.1], [2, np.inf]])) == "(-inf, 0.1] or [2, inf)"


def test_pieces_join_where_they_touch():
    joined = pieces(np.array([0.0, 1.0, 2.0]), lambda value: value > 0)
    np.testing.assert_array_equal(joined, [[0, np.inf]])


def test_tf_errors_are_those_of_the_paper():
    # Lee et al. (2022): at F = 10 the 5% critical value is 3.43, from 104.7 on it is 1.96.
    assert 1.96 * tf_factor(10.0) == pytest.approx(3.43, abs=0.02)
    assert tf_factor(104.7) == pytest.approx(1.0, abs=0.01) and tf_factor(1e6) == 1.0
    assert tf_factor(3.9) == np.inf


# -- cross-fitted residuals -----------------------------------------------------------


def test_predictions_of_noise_do_not_know_the_row():
    rng = np.random.default_rng(0)
    C, noise = rng.normal(size=(300, 5)), rng.normal(size=(300, 3))
    told = cross_fitted_predictions(noise, C, n_repeats=1, seed=0, max_epochs=20)[0]
    assert np.mean((told - told.mean(0)) * noise) < 0.01


def test_few_rows_and_no_controls_are_partialled_out_linearly():
    iv = pytest.importorskip("linearmodels.iv")
    y, X, Z = data(n=39)
    C = np.random.default_rng(3).normal(size=(39, 2))
    found = average_effect(y + C[:, 0], X + C[:, :1], Z, C)
    exogenous = np.column_stack([np.ones(39), C])
    expected = iv.IV2SLS(y + C[:, 0], exogenous, X + C[:, :1], Z).fit()
    np.testing.assert_allclose(found["estimate"], expected.params[3:], rtol=1e-9)
    y, X, Z = data()
    expected = iv.IV2SLS(y, np.ones((300, 1)), X, Z).fit()
    np.testing.assert_allclose(average_effect(y, X, Z, None)["estimate"], expected.params[1:])


def test_curved_controls_are_taken_off():
    rng = np.random.default_rng(0)
    C, noise = rng.normal(size=(600, 2)), rng.normal(size=(600, 4))
    z = C[:, 0] ** 2 + noise[:, 0]
    x = z + noise[:, 1] + noise[:, 2]
    y = 0.5 * x + 2 * C[:, 0] ** 2 + noise[:, 1] + noise[:, 3]
    found = average_effect(y, x[:, None], z[:, None], C)
    assert abs(found["estimate"][0] - 0.5) < 3 * found["std_error"][0] < 0.4
    assert found["n_instruments"] == 1


# -- in the estimator -----------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    y, X, Z = data()
    C = np.random.default_rng(4).normal(size=(300, 2))
    return CFLLIVRegressor(**QUICK).fit(X, y, Z=Z, C=C, groups=np.arange(300) // 10)


def test_the_effect_is_clustered_by_groups(fitted, tmp_path):
    effect = fitted.effect_
    assert effect.covariance_type == "clustered" and effect.n_clusters == 30 and effect.df == 29
    assert effect.treatment_names == ["x0"] and effect.interval.shape == (1, 2)
    assert abs(effect.estimate[0] - 0.5) < 4 * effect.std_error[0]
    assert effect.conditional_likelihood_ratio is None  # its test assumes independent rows
    assert effect.curve_estimate.shape == effect.curve_std_error.shape == (1,)
    fitted.save(tmp_path / "model")
    opened = CFLLIVRegressor.load(tmp_path / "model").effect_
    np.testing.assert_array_equal(opened.anderson_rubin[0], effect.anderson_rubin[0])


def test_rows_of_a_group_stay_in_one_fold():
    y, X, Z = data(n=120)
    groups = np.repeat(np.arange(12), 10)
    plain = InstrumentData(X, y, Z, None, None, 120.0)
    labels, halves = fold_labels(plain._replace(groups=groups), 4, 2, 0)
    for each in (*labels, *halves):
        assert all(len(set(each[groups == group])) == 1 for group in range(12))
    assert all(len(set(label)) == 4 for label in labels)


def test_groups_are_checked():
    y, X, Z = data(n=50)
    with pytest.raises(ValueError, match="one label for each of the 50 rows"):
        CFLLIVRegressor().fit(X, y, Z=Z, groups=[1, 2])
    with pytest.raises(ValueError, match="holds 2 groups .* at least 8 groups"):
        CFLLIVRegressor().fit(X, y, Z=Z, groups=np.arange(50) % 2)


def test_without_diagnosis_there_is_no_effect():
    y, X, Z = data(n=60)
    model = CFLLIVRegressor(**QUICK, diagnose=False).fit(X, y, Z=Z)
    with pytest.raises(AttributeError, match="diagnose=True"):
        model.effect_  # noqa: B018


def test_without_instruments_there_are_no_sets_and_binary_treatments_are_named():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, size=(200, 1))
    y = 3.0 * X[:, 0] + rng.normal(size=200)
    model = CFLLIVRegressor(**QUICK).fit(X, y)
    effect = model.effect_
    difference = y[X[:, 0] == 1].mean() - y[X[:, 0] == 0].mean()
    np.testing.assert_allclose(effect.estimate, [difference], rtol=1e-9)
    assert effect.is_binary == [True] and effect.anderson_rubin is None
    low, high = model.predict([[0.0], [1.0]])
    np.testing.assert_allclose(effect.curve_estimate, [high - low], rtol=1e-6)
