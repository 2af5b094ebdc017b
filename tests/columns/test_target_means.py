"""Mean targets of levels: shrinkage, folds, and what they are worth in a fit."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.target_means import TargetMeans, folds_of_rows, out_of_fold_means

SMALL = {"hidden_layer_sizes": (16, 8), "n_members": 4, "max_epochs": 8, "random_state": 0}


def rows(n=400, n_levels=30, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_levels, n).astype(float)
    effects = rng.normal(size=n_levels)
    return codes, (effects[codes.astype(int)] + 0.5 * rng.normal(size=n))[:, None]


def test_means_are_the_best_predictions_of_random_effects():
    codes, y = rows()
    found = TargetMeans.fit(codes, 30, y, np.ones(len(y))).means[:30, 0]
    count = np.bincount(codes.astype(int), minlength=30)
    of_level = np.bincount(codes.astype(int), y[:, 0], 30) / np.maximum(count, 1)
    share = (found - y.mean()) / (of_level - y.mean())
    # n τ² / (n τ² + σ²): the variance components are the same for all levels.
    ratio = share / (1 - share) / count
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    assert 2 < ratio[0] < 8  # τ² / σ² = 4


def test_a_balanced_table_gives_the_estimate_of_analysis_of_variance():
    codes = np.repeat(np.arange(6.0), 5)
    y = np.random.default_rng(0).normal(size=30) + codes
    found = TargetMeans.fit(codes, 6, y[:, None], np.ones(30)).means[:6, 0]
    groups = y.reshape(6, 5)
    within = groups.var(1, ddof=1).mean()
    between = groups.mean(1).var(ddof=1) - within / 5
    share = between / (between + within / 5)
    expected = y.mean() + share * (groups.mean(1) - y.mean())
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_levels_that_say_nothing_have_the_mean_of_all_rows():
    codes = np.repeat(np.arange(6.0), 5)
    y = np.tile([1.0, 2, 3, 4, 5], 6)[:, None]
    np.testing.assert_allclose(TargetMeans.fit(codes, 6, y, np.ones(30)).means, 3.0)


def test_weights_are_repetitions():
    codes, y = rows()
    weight = np.random.default_rng(1).integers(1, 4, len(y))
    several = np.repeat(np.arange(len(y)), weight)
    weighted = TargetMeans.fit(codes, 30, y, weight.astype(float)).means
    repeated = TargetMeans.fit(codes[several], 30, y[several], np.ones(len(several))).means
    np.testing.assert_allclose(weighted, repeated, rtol=1e-10)


def test_copies_of_a_row_are_in_all_folds():
    """Otherwise rows with one target would get means of rows with the others."""
    codes, y = np.repeat(np.arange(20.0), 50)[:, None], np.tile([0.0, 1.0], 500)[:, None]
    folds = folds_of_rows(codes, y)
    for level in range(20):
        for target in (0.0, 1.0):
            own = folds[(codes[:, 0] == level) & (y[:, 0] == target)]
            np.testing.assert_array_equal(np.bincount(own), 5)
    order = np.random.default_rng(0).permutation(1000)
    again = np.column_stack([codes[order], y[order], folds_of_rows(codes[order], y[order])])
    expected = np.column_stack([codes, y, folds])
    np.testing.assert_array_equal(np.unique(again, axis=0), np.unique(expected, axis=0))


def test_no_row_has_part_in_its_own_mean():
    codes, y = rows()
    folds, ones = folds_of_rows(codes[:, None], y), np.ones(len(y))
    found = out_of_fold_means(codes, 30, y, ones, folds)
    changed = y.copy()
    changed[7] += 100.0
    again = out_of_fold_means(codes, 30, changed, ones, folds)
    same = folds == folds[7]
    np.testing.assert_array_equal(again[same], found[same])
    assert not np.array_equal(again[~same], found[~same])


def test_rows_of_a_group_share_a_fold():
    groups = np.repeat(np.arange(40), 10)
    folds = folds_of_rows(
        *map(np.atleast_2d, (np.arange(400.0)[:, None], np.zeros((400, 1)))), groups
    )
    assert all(len(set(folds[groups == each])) == 1 for each in range(40))


def test_gaps_and_unknown_levels():
    codes, y = rows()
    full = TargetMeans.fit(codes, 30, y, np.ones(len(y)))
    assert full(np.array([np.nan]))[0, 0] == pytest.approx(y.mean())
    codes[:50], y[:50] = np.nan, 9.0
    with_gaps = TargetMeans.fit(codes, 30, y, np.ones(len(y)))
    assert with_gaps(np.array([np.nan]))[0, 0] > 8


# -- in a fit -------------------------------------------------------------------------------


def table(n=900, n_levels=400, seed=0):
    rng = np.random.default_rng(seed)
    level, x = rng.integers(0, n_levels, n), rng.normal(size=n)
    y = 2 * rng.normal(size=n_levels)[level] + x + 0.3 * rng.normal(size=n)
    return pd.DataFrame({"town": [f"t{each}" for each in level], "x": x}), y


def target(Estimator, y):
    return (y > 0).astype(int) if Estimator is CFLLClassifier else y


@BOTH
def test_levels_of_few_rows_are_told_apart(Estimator):
    X, y = table()
    y, train = target(Estimator, y), slice(0, 700)
    scores = [
        Estimator(**SMALL, columns=ColumnEncoder(target_means=means))
        .fit(X[train], y[train])
        .score(X[700:], y[700:])
        for means in (False, True)
    ]
    assert scores[1] > scores[0] + 0.02


def test_scores_of_rows_held_out_are_those_of_new_rows():
    rng = np.random.default_rng(1)
    level = rng.integers(0, 340, 3000)
    y = rng.normal(size=340)[level] + 3 * rng.normal(size=3000)
    X = pd.DataFrame({"town": [f"t{each}" for each in level], "x": rng.normal(size=3000)})
    model = CFLLRegressor(**SMALL).fit(X[:1500], y[:1500])
    assert model.oof_score_ == pytest.approx(model.score(X[1500:], y[1500:]), abs=0.06)
    lower, upper = model.predict_interval(X[1500:])
    assert ((lower <= y[1500:]) & (y[1500:] <= upper)).mean() > 0.86


def test_weights_change_means_as_repetitions_do():
    X, y = table(2000)
    weight = np.random.default_rng(1).integers(0, 4, len(y)).astype(float)
    rows = np.repeat(np.arange(len(y)), weight.astype(int))
    weighted = CFLLRegressor(**SMALL).fit(X, y, sample_weight=weight)._model.plan.reader
    repeated = CFLLRegressor(**SMALL).fit(X.iloc[rows], y[rows])._model.plan.reader
    known = [weighted.contents[0].levels.index(each) for each in repeated.contents[0].levels]
    found = weighted.means[0].means[:-2][known]
    np.testing.assert_allclose(found, repeated.means[0].means[:-2], rtol=1e-9)


def test_rows_of_weight_zero_change_nothing():
    X, y = table()
    X.loc[::3, "town"] = [f"only{i}" for i in range(300)]
    weight = np.where(np.arange(len(y)) % 3 == 0, 0.0, 1.0)
    kept = weight > 0
    with_them = CFLLRegressor(**SMALL).fit(X, y, sample_weight=weight).predict(X[kept])
    without = CFLLRegressor(**SMALL).fit(X[kept], y[kept]).predict(X[kept])
    np.testing.assert_allclose(with_them, without, rtol=1e-6, atol=1e-9)


def test_means_need_levels_that_have_no_indicators():
    for n_levels, has_means in ((260, False), (400, True)):
        X, y = table(2000, n_levels)
        assert bool(CFLLRegressor(**SMALL).fit(X, y)._model.plan.reader.means) == has_means


def test_levels_within_groups_have_no_means():
    X, y = table()
    assert not CFLLRegressor(**SMALL).fit(X, y, groups=X["town"])._model.plan.reader.means
    other = np.arange(len(y)) % 20
    assert CFLLRegressor(**SMALL).fit(X, y, groups=other)._model.plan.reader.means


def test_a_warm_start_on_other_rows_has_their_means():
    X, y = table()
    model = CFLLRegressor(**SMALL, warm_start=True).fit(X, y)
    before = model._model.plan.reader.means[0].means
    model.fit(X, -y)
    assert np.corrcoef(before[:, 0], model._model.plan.reader.means[0].means[:, 0])[0, 1] < -0.9


@BOTH
def test_means_are_saved_and_count_for_their_column(Estimator, tmp_path):
    X, y = table()
    y = target(Estimator, y)
    model = Estimator(**SMALL).fit(X, y)
    model.save(tmp_path / "model")
    again = Estimator.load(tmp_path / "model")
    new = X.iloc[:40].assign(town=["t1", "never", None, "t2"] * 10)
    np.testing.assert_array_equal(again.predict(new), model.predict(new))
    assert len(model.feature_importances_) == 2 and model.feature_importances_[0] > 0.3
    assert model.n_features_in_ == 2
    again.partial_fit(X[:30], y[:30])
    model.adapt(X[:30], y[:30])


def test_a_column_of_random_levels_is_not_believed():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"id": [f"i{each}" for each in rng.integers(0, 400, 1000)]})
    X["x"] = rng.normal(size=1000)
    y = np.sin(2 * X["x"]) + 0.3 * rng.normal(size=1000)
    model = CFLLRegressor(random_state=0).fit(X[:700], y[:700])
    without = CFLLRegressor(random_state=0).fit(X[["x"]][:700], y[:700])
    assert model.score(X[700:], y[700:]) > without.score(X[["x"]][700:], y[700:]) - 0.02
    assert model.oof_score_ == pytest.approx(model.score(X[700:], y[700:]), abs=0.05)


def test_a_warm_start_on_the_same_rows_keeps_means_out_of_fold():
    X, y = table()
    model = CFLLRegressor(**SMALL, warm_start=True).fit(X, y)
    first = model.oof_score_
    model.fit(X, y)
    assert model.oof_score_ < first + 0.1  # in-sample means would lift it to that of training rows


PEAK = """
import resource
import numpy as np, pandas as pd
from sklearn_cfll import CFLLRegressor

rng, n = np.random.default_rng(0), 100_000
X = pd.DataFrame(rng.normal(size=(n, 19)), columns=[f"x{i}" for i in range(19)])
level = rng.integers(0, 50_000, n)
X["town"] = np.array([f"town {i}" for i in range(50_000)], dtype=object)[level]
y = X["x0"] + rng.normal(size=50_000)[level] + 0.3 * rng.normal(size=n)
CFLLRegressor(max_epochs=1).fit(np.eye(20), np.arange(20.0))  # imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
score = CFLLRegressor(max_epochs=2, random_state=0).fit(X, y).oof_score_
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, score)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in other units there")
def test_fifty_thousand_levels_fit_into_a_gibibyte():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    gibibytes, score = map(float, done.stdout.split())
    assert gibibytes < 1
    assert score > 0.5  # a level has two rows on average


@pytest.mark.parametrize("coded", [False, True])
def test_means_point_the_right_way_if_rows_repeat(coded):
    """A table of a name, or of a code, alone: rows of a name and a class are copies."""
    rng = np.random.default_rng(0)
    share, name = rng.beta(2, 2, 300), rng.integers(0, 300, 4000)
    y = (rng.random(4000) < share[name]).astype(int)
    X = pd.DataFrame({"shop": name if coded else [f"s{each}" for each in name]})
    model = CFLLClassifier(**SMALL | {"max_epochs": 20}).fit(X[:2500], y[:2500])
    best = roc_auc_score(y[2500:], share[name[2500:]])
    assert roc_auc_score(y[2500:], model.predict_proba(X[2500:])[:, 1]) > best - 0.08
    assert abs(model.oof_score_ - model.score(X[2500:], y[2500:])) < 0.08


@pytest.mark.parametrize("n_classes", [12, 40])
def test_many_classes_have_means(n_classes, tmp_path):
    """Of more than 32 classes, random sums."""
    rng = np.random.default_rng(1)
    name, classes = rng.integers(0, 400, 5000), rng.integers(0, n_classes, 400)
    y = np.where(rng.random(5000) < 0.7, classes[name], rng.integers(0, n_classes, 5000))
    X = pd.DataFrame({"town": [f"t{each}" for each in name], "x": rng.normal(size=5000)})
    model = CFLLClassifier(**SMALL | {"max_epochs": 20}).fit(X[:4000], y[:4000])
    assert model._model.plan.reader.means
    assert model.score(X[4000:], y[4000:]) > 0.5
    model.save(tmp_path / "model")
    loaded = CFLLClassifier.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(X[:9]), model.predict(X[:9]))


def test_a_level_that_was_not_seen_does_not_change_the_others():
    """In a warm start, means are those of the rows of now, with the levels of the first fit."""
    X, y = table()
    model = CFLLRegressor(**SMALL | {"max_epochs": 10, "warm_start": True}).fit(X, y)
    before = model.score(X, y)
    X.loc[0, "town"] = "nowhere"
    with pytest.warns(UserWarning, match="other rows or folds"):
        model.fit(X, y)
    assert model.score(X, y) > before - 0.1
