"""Frames with categories, text, booleans and gaps are fitted as they come."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import StackingRegressor
from sklearn.inspection import partial_dependence, permutation_importance
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.training.batches import RowsDataset

SMALL = {"hidden_layer_sizes": (16,), "n_members": 4, "max_epochs": 5, "random_state": 0}
TOWNS = np.array(["Bonn", "Kiel", "Ulm", "Jena"])
EFFECTS = np.array([2.0, -1.0, 0.0, 1.0])


def table(n=240, seed=0):
    """A frame with columns of every kind, and a target that depends on four of them."""
    rng = np.random.default_rng(seed)
    size, town, grade = rng.normal(size=n), rng.integers(0, 4, n), rng.integers(0, 3, n)
    is_open = rng.random(n) < 0.5
    y = size + EFFECTS[town] + 0.5 * grade + is_open + 0.1 * rng.normal(size=n)
    frame = pd.DataFrame(
        {
            "size": np.where(rng.random(n) < 0.15, np.nan, size),
            "rank": pd.array(rng.integers(0, 9, n), dtype="Int64"),
            "open": is_open,
            "town": TOWNS[town],
            "grade": pd.Categorical(np.array(["low", "mid", "top"])[grade], ["low", "mid", "top"]),
            "code": np.array([f"c{i}" for i in rng.integers(0, n, n)]),  # says nothing
        }
    )
    frame.loc[rng.random(n) < 0.1, "rank"] = pd.NA
    frame.loc[rng.random(n) < 0.1, "town"] = None
    frame["grade"] = frame["grade"].cat.as_ordered()
    return frame, y


def target(Estimator, y):
    return (y > np.median(y)).astype(int) if Estimator is CFLLClassifier else y


def outputs(model, X):
    return model.predict_proba(X) if hasattr(model, "predict_proba") else model.predict(X)


@BOTH
def test_a_raw_frame_is_fitted_and_scored_in_one_line(Estimator):
    X, y = table(600)
    new, y_new = table(300, seed=1)
    y, y_new = target(Estimator, y), target(Estimator, y_new)
    score = Estimator(random_state=0).fit(X, y).score(new, y_new)
    assert score > (0.85 if Estimator is CFLLClassifier else 0.8)


@BOTH
def test_the_same_table_in_every_library_and_order_gives_the_same_predictions(Estimator):
    X, y = table()
    y = target(Estimator, y)
    model = Estimator(**SMALL).fit(X, y)
    expected = outputs(model, X)
    turned = X[X.columns[::-1]]
    in_polars = pl.from_pandas(X).with_columns(pl.col("grade").cast(pl.Enum(["low", "mid", "top"])))
    for other in (X, in_polars):
        np.testing.assert_array_equal(outputs(Estimator(**SMALL).fit(other, y), other), expected)
    plain = X.assign(grade=X["grade"].astype(str))  # pyarrow has no ordered categories
    model_of_text = Estimator(**SMALL).fit(plain, y)
    in_arrow = pa.Table.from_pandas(plain)
    np.testing.assert_array_equal(
        outputs(Estimator(**SMALL).fit(in_arrow, y), in_arrow), outputs(model_of_text, plain)
    )
    for other in (turned, in_polars, in_polars.select(X.columns[::-1].tolist())):
        np.testing.assert_array_equal(outputs(model, other), expected)


@BOTH
def test_row_by_row_as_in_one_batch(Estimator):
    X, y = table(150)
    options = {**SMALL, "hidden_layer_sizes": (64, 32)}
    model = Estimator(**options).fit(X, target(Estimator, y))
    expected = outputs(model, X)
    for size in (1, 7, 33, 149):
        parts = [outputs(model, X.iloc[i : i + size]) for i in range(0, len(X), size)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


@BOTH
def test_listed_levels_are_learnt_from_later_rows(Estimator):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"town": rng.choice(["Bonn", "Ulm"], 400), "size": rng.normal(size=400)})
    X.loc[200:, "town"] = rng.choice(["Rom", "Ulm"], 200)
    y = target(Estimator, 3.0 * (X["town"] == "Rom") + 0.1 * X["size"])
    options = {**SMALL, "columns": ColumnEncoder(0)}
    gaps = X.iloc[200:].assign(town=None)
    for categories, learns in ((None, False), ({"town": ["Rom", "Ulm", "Bonn"]}, True)):
        model = Estimator(**options)
        first = {} if Estimator is CFLLRegressor else {"classes": np.unique(y)}
        model.partial_fit(X[:200], y[:200], categories=categories, **first)
        for _ in range(3):
            model.partial_fit(X[200:], y[200:], categories=categories)
        rom = (X["town"] == "Rom")[200:].to_numpy()
        differ = outputs(model, X.iloc[200:])[rom] != outputs(model, gaps)[rom]
        assert differ.all() if learns else not differ.any()
    with pytest.raises(ValueError, match="for column 'town', unlike the first call"):
        model.partial_fit(X, y, categories={"town": ["Rom"]})


def test_categories_that_are_not_right_are_named():
    X, y = table(60)
    for categories, message in (
        ({"town": ["Ulm"]}, "'town' of `X` holds .* which `categories` does not list"),
        ({"twon": ["Ulm"]}, "`categories` names 'twon', but the columns"),
        ({9: ["Ulm"]}, "`categories` holds the index 9, but X has"),
        ({"grade": ["top", "low", "mid"]}, "another order than its dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            CFLLRegressor(**SMALL).partial_fit(X, y, categories=categories)
    with pytest.raises(TypeError, match="must be a dict"):
        CFLLRegressor(**SMALL).partial_fit(X, y, categories=["Ulm"])
    with pytest.raises(ValueError, match="`categories`=.* needs a frame or an array"):
        CFLLRegressor(**SMALL, backbone=nn.Linear(2, 4)).partial_fit(
            np.zeros((9, 2)), np.arange(9), categories={0: [1, 2]}
        )


def test_listed_numbers_and_many_levels_are_saved_and_given_again(tmp_path):
    X = pd.DataFrame({"k": [0, 1, 2] * 20, "x": np.arange(60.0)})
    model = CFLLRegressor(**SMALL)
    for _ in range(2):
        model.partial_fit(X, X["x"], categories={"k": range(400)})
    model.save(tmp_path / "model")
    again = CFLLRegressor.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    for wrong in ("abc", 5, ["a", None], [1.0, np.nan], [1, "a"], [2**60]):
        with pytest.raises(ValueError, match="`categories` must list|beyond 2"):
            CFLLRegressor(**SMALL).partial_fit(X, X["x"], categories={"k": wrong})
    with pytest.raises(ValueError, match="'k' twice"):
        CFLLRegressor(**SMALL).partial_fit(X, X["x"], categories={"k": [0], 0: [0]})


@BOTH
def test_saved_and_loaded(Estimator, tmp_path):
    X, y = table()
    model = Estimator(**SMALL).fit(X, target(Estimator, y))
    model.save(tmp_path / "model")
    again = Estimator.load(tmp_path / "model")
    np.testing.assert_array_equal(outputs(again, X), outputs(model, X))
    np.testing.assert_array_equal(again.feature_importances_, model.feature_importances_)
    again.partial_fit(X[:20], target(Estimator, y)[:20])


def test_an_exported_module_takes_encoded_rows():
    X, y = table()
    for options in ({}, {"linear_part": True}, {"columns": ColumnEncoder(0)}):
        model = CFLLRegressor(**SMALL, **options).fit(X, y)
        with torch.no_grad():
            found = model.to_torch()(torch.as_tensor(model.encode(X))).numpy()
        np.testing.assert_allclose(found.ravel(), model.predict(X), rtol=1e-6)


def test_encoded_rows_of_plain_numbers_are_the_rows():
    X = np.random.default_rng(0).normal(size=(60, 3))
    np.testing.assert_array_equal(CFLLRegressor(**SMALL).fit(X, X[:, 0]).encode(X), X)


def test_importances_are_by_column_of_the_table():
    X, y = table(600)
    model = CFLLRegressor(random_state=0).fit(X, y)
    found = dict(zip(X.columns, model.feature_importances_, strict=True))
    assert found["code"] < 0.02 and found["rank"] < 0.02
    assert min(found["size"], found["town"]) > 0.2 and min(found["open"], found["grade"]) > 0.02
    assert sum(found.values()) == pytest.approx(1.0)


def test_gaps_among_objects_after_a_fit_to_numbers():
    X = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 2)), columns=["a", "b"])
    model = CFLLRegressor(**SMALL).fit(X, X["a"])
    gaps = X.where(X["a"] < 1)
    expected = model.predict(gaps)
    for absent in (pd.NA, None):
        objects = X.astype(object).where(X["a"] < 1, absent)
        np.testing.assert_array_equal(model.predict(objects), expected)
    with pytest.raises(ValueError, match="'b' of `X` holds 'x', but held numbers"):
        model.predict(X.assign(b="x").astype(object))
    with pytest.raises(ValueError, match="X has no columns"):
        CFLLRegressor().fit(X[[]], X["a"])


def test_levels_that_were_not_seen_and_gaps_are_predicted():
    X, y = table()
    X["town"] = X["town"].fillna("Bonn")
    model = CFLLRegressor(**SMALL).fit(X, y)
    new = X.iloc[:3].assign(town=["Rom", None, "Ulm"])
    predicted = model.predict(new)
    assert np.isfinite(predicted).all() and predicted[0] == model.predict(
        X.iloc[:1].assign(town="Oslo")
    )
    everything = pd.DataFrame({name: [None] for name in X}).astype({"size": float})
    assert np.isfinite(model.predict(everything)).all()


def test_a_gap_says_something_if_it_does():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    gone = rng.random(400) < 0.3
    y = 3.0 * gone + X[:, 1]
    X[gone, 0] = np.nan
    assert CFLLRegressor(max_epochs=20, random_state=0).fit(X[:300], y[:300]).score(
        X[300:], y[300:]
    ) > 0.95  # fmt: skip


@BOTH
def test_weights_are_repetitions_of_rows_with_gaps_and_levels(Estimator):
    X, y = table(60)
    y = target(Estimator, y)
    weights = np.random.default_rng(0).integers(0, 3, len(y))
    options = {**SMALL, "early_stopping": False, "batch_size": "full", "precision": "float64"}
    weighted = Estimator(**options).fit(X, y, sample_weight=weights)
    repeated = Estimator(**options).fit(X.loc[X.index.repeat(weights)], y.repeat(weights))
    # The threshold of rare levels counts weights relative to their mean.
    if weighted.encode(X).shape == repeated.encode(X).shape:
        np.testing.assert_allclose(outputs(weighted, X), outputs(repeated, X), rtol=1e-5)


@BOTH
def test_streams_keep_the_levels_of_their_first_rows(Estimator):
    X, y = table(600)
    y = target(Estimator, y)
    model = Estimator(**SMALL)
    for start in range(0, 500, 100):
        part = slice(start, start + 100)
        model.partial_fit(X[part], y[part])
    later = X[500:].assign(town="Rom")
    model.partial_fit(later, y[500:])
    assert np.isfinite(outputs(model, X)).all()
    model.adapt(X[:50], y[:50])
    assert model.feature_importances_.shape == (6,)


def test_validation_rows_are_read_like_the_others():
    X, y = table(400)
    model = CFLLRegressor(**SMALL).fit(X[:300], y[:300], X_val=X[300:], y_val=y[300:])
    with pytest.raises(ValueError, match=r"In `X_val` and `y_val`.*Column 'size' .* 'small'"):
        model.fit(X[:300], y[:300], X_val=X[300:].assign(size="small"), y_val=y[300:])


def test_other_names_than_at_fit_are_named():
    X, y = table()
    model = CFLLRegressor(**SMALL).fit(X, y)
    with pytest.raises(ValueError, match=r"(?s)feature names should match.*city"):
        model.predict(X.rename(columns={"town": "city"}))


def test_only_categories_and_only_gaps():
    X, y = table()
    model = CFLLRegressor(**SMALL).fit(X[["town", "code"]], y)
    assert model.score(X[["town", "code"]], y) > 0.2
    model = CFLLRegressor(**SMALL).fit(X.assign(size=np.nan), y)
    assert model.score(X, y) > 0.2 and np.isfinite(model.predict(X.assign(size=3.0))).all()


def test_numbers_may_be_declared_categories():
    rng = np.random.default_rng(0)
    X = np.stack([rng.integers(0, 8, 400) * 1e6, rng.normal(size=400)], 1)
    y = rng.permutation(8)[(X[:, 0] / 1e6).astype(int)] + X[:, 1]
    model = CFLLRegressor(max_epochs=20, categorical_features=[0], random_state=0)
    model.fit(X[:300], y[:300])
    assert model.score(X[300:], y[300:]) > 0.97
    assert model.encode(X).shape == (400, 9)


def test_a_frame_reaches_a_network_of_the_users_own():
    X, y = table()
    own = torch.nn.Sequential(torch.nn.LazyLinear(16), torch.nn.ReLU())
    model = CFLLRegressor(own, columns=ColumnEncoder(0), max_epochs=5, random_state=0).fit(X, y)
    assert model.score(X, y) > 0.3
    with pytest.raises(ValueError, match=r"Column 'town' .* holds .*columns.*ColumnEncoder"):
        CFLLRegressor(own, max_epochs=5).fit(X[["open", "town"]].fillna("Rom"), y)


def test_a_recipe_of_a_perceptron_takes_frames_as_the_default_does():
    X, y = table(60)
    named = CFLLRegressor(MLPBackbone((16,), n_members=4), max_epochs=5, random_state=0)
    np.testing.assert_array_equal(
        named.fit(X, y).predict(X), CFLLRegressor(**SMALL).fit(X, y).predict(X)
    )


def test_scikit_learn_tools_take_frames():
    X, y = table(300)
    grid = GridSearchCV(
        CFLLRegressor(**SMALL, columns=ColumnEncoder()), {"columns__n_bins": [0, 8]}, cv=2
    ).fit(X, y)
    found = permutation_importance(grid.best_estimator_, X, y, n_repeats=2, random_state=0)
    assert found.importances_mean.argmax() in (0, 3)
    known = X.dropna(subset="town")
    curve = partial_dependence(grid.best_estimator_, known, ["town"], categorical_features=["town"])
    assert curve["average"].shape[1] >= 4
    labels = (y > 0).astype(int)
    probabilities = CalibratedClassifierCV(CFLLClassifier(**SMALL), cv=2).fit(X, labels)
    assert probabilities.predict_proba(X).shape == (300, 2)
    numbers = X[["size", "rank"]].astype(float)
    stack = StackingRegressor([("net", CFLLRegressor(**SMALL))], RidgeCV(), cv=2)
    assert np.isfinite(stack.fit(numbers, y).predict(numbers)).all()
    scaled = make_pipeline(StandardScaler(), CFLLRegressor(**SMALL)).set_output(transform="pandas")
    assert np.isfinite(cross_val_score(scaled, numbers, y, cv=2)).all()


def test_many_levels_take_bounded_memory():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"id": rng.integers(0, 2000, 4000).astype(str), "x": rng.random(4000)})
    model = CFLLRegressor(**{**SMALL, "max_epochs": 1}).fit(X, X["x"])
    assert model.encode(X[:5]).shape[1] <= 2 + 256
    rows = model._model.plan.rows(np.zeros((5, 3)), lazy=False)  # the third is of means
    assert len(RowsDataset(rows)) == 5


def test_tags_say_what_is_taken():
    def tags(**options):
        return CFLLRegressor(**options).__sklearn_tags__().input_tags

    assert tags().allow_nan and tags().categorical
    assert not tags(columns="passthrough").allow_nan
    assert not tags(backbone=torch.nn.Linear(2, 2)).allow_nan
    assert tags(backbone=torch.nn.Linear(2, 2), columns=ColumnEncoder()).allow_nan


def test_a_lazy_frame_is_refused():
    X, y = table(60)
    lazy = pl.from_pandas(X.drop(columns="grade")).lazy()
    with pytest.raises(TypeError, match=r"lazy frame.*collect\(\)"):
        CFLLRegressor(**SMALL).fit(lazy, y)


def test_text_that_is_mostly_numbers_is_warned_of():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"x": rng.random(60).round(3).astype(str)})
    X.loc[3, "x"] = "?"
    with pytest.warns(UserWarning, match=r"Column 'x' of `X` is text.*'\?'.*to_numeric"):
        CFLLRegressor(**SMALL).fit(X, rng.random(60))


def test_categories_of_rows_that_are_not_read_are_refused():
    X = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(float)
    own = {"categorical_features": [0]}
    with pytest.raises(ValueError, match="`categorical_features`.* X is a csr_matrix"):
        CFLLRegressor(**SMALL, **own).fit(scipy.sparse.csr_matrix(X), X[:, 0])
    with pytest.raises(ValueError, match="`categorical_features`.* but they are not"):
        CFLLRegressor(**SMALL, **own, columns="passthrough").fit(X, X[:, 0])


def test_infinity_and_names_that_columns_share_are_named():
    X, y = table(60)
    with pytest.raises(ValueError, match=r"contains infinity in column 'size', row 3"):
        CFLLRegressor(**SMALL).fit(X.assign(size=np.where(np.arange(60) == 3, np.inf, 1.0)), y)
    with pytest.raises(ValueError, match="Several columns of X are named 'q'"):
        CFLLRegressor(**SMALL).fit(X[["size", "town"]].set_axis(["q", "q"], axis=1), y)


def test_parameters_of_columns_need_an_encoder():
    with pytest.raises(ValueError, match=r"`columns__n_bins` .* `columns` is None.*ColumnEncoder"):
        CFLLRegressor().set_params(columns__n_bins=4)
    model = CFLLRegressor(**SMALL).fit(*table(60))
    assert (
        model.resolved_["columns"]
        == "ColumnEncoder(importance=True, n_bins=16, quantiles=False, target_means=True, "
        "values_as_levels=True)"
    )


@BOTH
@pytest.mark.parametrize("n_levels", [8, 400])
def test_a_level_that_was_not_seen_is_no_gap(Estimator, n_levels):
    """Gaps say something here, and a new town nothing."""
    rng = np.random.default_rng(0)
    town = np.array([f"t{each}" for each in rng.integers(0, n_levels, 1500)], dtype=object)
    y = rng.normal(size=1500)
    town[:150], y[:150] = None, y[:150] + 10
    if Estimator is CFLLClassifier:
        y = (y > 3).astype(int)
    X = pd.DataFrame({"town": town, "x": rng.normal(size=1500)})
    model = Estimator(**SMALL | {"max_epochs": 10}).fit(X, y)
    new = pd.DataFrame({"town": ["nowhere", None, "t1"], "x": [0.0, 0, 0]})
    unknown, gap, known = outputs(model, new).reshape(3, -1)[:, -1]
    assert abs(unknown - known) < 0.3 * abs(gap - known)


def test_an_ordered_level_that_was_not_seen_is_the_middle_one():
    rng = np.random.default_rng(0)
    grades = ["low", "middle", "high"]
    code = rng.integers(0, 3, 600)
    order = pd.CategoricalDtype([*grades, "top"], ordered=True)
    X = pd.DataFrame({"grade": pd.Series(np.array(grades)[code]).astype(order)})
    model = CFLLRegressor(**SMALL | {"max_epochs": 10}).fit(X, 5.0 * code)
    other = pd.CategoricalDtype([*grades, "top", "none"], ordered=True)
    new = pd.DataFrame({"grade": pd.Series(["none", "middle"]).astype(other)})
    found, middle = model.predict(new)
    assert -1 < found < 11 and abs(found - middle) < 4


def test_columns_say_how_they_are_used():
    rng = np.random.default_rng(0)
    shop = rng.integers(0, 90, 900)
    frame = pd.DataFrame(
        {
            "key": [f"k{each}" for each in rng.integers(0, 700, 900)],
            "size": rng.normal(size=900),
            "shop": shop,
            "town": rng.choice(["a", "b", None], 900),
            "empty": np.nan,
        }
    )
    y = 3 * rng.normal(size=90)[shop] + frame["size"]
    model = CFLLRegressor(**SMALL).fit(frame, y)
    assert model.columns_ == {
        "size": "number",
        "shop": "number, and category of 90 values",
        "town": "category of 2 levels",
        "key": f"category of {frame['key'].nunique()} levels, by mean targets",
        "empty": "only gaps",
    }
    gaps = frame[["size"]].to_numpy().copy()
    gaps[::9] = np.nan
    assert CFLLRegressor(**SMALL).fit(gaps, y).columns_ == {0: "number"}
    with pytest.raises(AttributeError, match="not encoded"):
        _ = CFLLRegressor(**SMALL, columns="passthrough").fit(frame[["size"]], y).columns_
