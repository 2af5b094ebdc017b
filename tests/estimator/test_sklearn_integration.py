"""Estimators within scikit-learn: pipelines, searches, meta-estimators, names, routing."""

import functools
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor, make_column_selector
from sklearn.datasets import load_iris
from sklearn.ensemble import (
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    StackingClassifier,
    StackingRegressor,
    VotingClassifier,
)
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.frozen import FrozenEstimator
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import (
    GridSearchCV,
    RandomizedSearchCV,
    cross_val_predict,
    cross_validate,
    learning_curve,
)
from sklearn.multioutput import MultiOutputClassifier, RegressorChain
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from skorch.callbacks import Callback

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import MLPBackbone
from small_tables import friedman_or_iris, quick

X, y = friedman_or_iris(CFLLRegressor)
X_iris, LABELS = friedman_or_iris(CFLLClassifier)
y_iris = load_iris().target
small = functools.partial(quick, max_epochs=15, n_members=4)  # as few as are cross-fitted


# -- pipelines --------------------------------------------------------------------------------


@BOTH
def test_pipeline_with_a_scaler(Estimator):
    data, target = friedman_or_iris(Estimator)
    model = make_pipeline(StandardScaler(), small(Estimator)).fit(data[::2], target[::2])
    assert model.score(data[1::2], target[1::2]) > 0.85
    assert model.predict(data).shape == target.shape


@BOTH
def test_standardising_before_changes_nothing(Estimator):
    data, target = friedman_or_iris(Estimator)
    scaled = make_pipeline(StandardScaler(), small(Estimator)).fit(data, target)
    plain = small(Estimator).fit(data, target)
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(scaled.predict(data), plain.predict(data), rtol=1e-7)
    else:
        # The calibration is found by an optimiser, which magnifies rounding.
        np.testing.assert_allclose(scaled.predict_proba(data), plain.predict_proba(data), rtol=1e-5)


def mixed_frame(library):
    generator = np.random.default_rng(0)
    columns = {
        "size": generator.normal(size=120),
        "rooms": generator.integers(1, 6, 120),
        "town": generator.choice(["Bonn", "Cork", "Oslo"], 120),
    }
    prices = columns["size"] + columns["rooms"] + 3 * (columns["town"] == "Oslo")
    frame = pd.DataFrame(columns) if library == "pandas" else pl.DataFrame(columns)
    return frame, prices


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("sparse", [False, True])
def test_column_transformer_on_a_frame_of_mixed_types(library, sparse):
    frame, prices = mixed_frame(library)
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["size", "rooms"]),
            ("names", OneHotEncoder(sparse_output=sparse), ["town"]),
        ],
        sparse_threshold=float(sparse),
    )
    model = make_pipeline(columns, small(CFLLRegressor, max_epochs=40))
    model.fit(frame[:80], prices[:80])
    assert model.score(frame[80:], prices[80:]) > 0.98
    assert model[-1].n_features_in_ == 5


def test_column_transformer_by_dtype_and_class_labels_from_a_frame():
    frame, prices = mixed_frame("pandas")
    columns = ColumnTransformer(
        [
            ("numbers", "passthrough", make_column_selector(dtype_include="number")),
            ("names", OneHotEncoder(), make_column_selector(dtype_exclude="number")),
        ]
    )
    classes = pd.Series(np.where(prices > 4, "dear", "cheap"), dtype="category")
    model = make_pipeline(columns, small(CFLLClassifier, max_epochs=40))
    model.fit(frame[:80], classes[:80])
    assert set(model.predict(frame)) == {"dear", "cheap"}
    assert model.score(frame[80:], classes[80:]) > 0.85


@pytest.mark.parametrize("output", ["pandas", "polars"])
def test_pipeline_with_set_output_hands_on_names(output):
    frame = pd.DataFrame(X, columns=[f"column_{i}" for i in range(6)])
    model = make_pipeline(StandardScaler(), SelectKBest(f_regression, k=3), small(CFLLRegressor))
    model.set_output(transform=output).fit(frame, y)
    assert model[-1].n_features_in_ == 3
    assert set(model[-1].feature_names_in_) < set(frame.columns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of names that come and go
        assert model.predict(frame).shape == (150,)


# -- searches ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.slow
def test_grid_search_in_two_processes(Estimator):
    data, target = friedman_or_iris(Estimator)
    grid = {"ridge": [0.1, 10.0], "decay": [0.5, 1.0], "hidden_layer_sizes": [(8,), (16, 16)]}
    search = GridSearchCV(
        small(Estimator, max_epochs=3), grid, cv=2, n_jobs=2, error_score="raise"
    ).fit(data, target)
    scores = search.cv_results_["mean_test_score"]
    assert len(set(scores)) > 1
    assert search.best_score_ == scores.max()
    assert search.best_estimator_.get_params()["ridge"] == search.best_params_["ridge"]
    serial = GridSearchCV(small(Estimator, max_epochs=3), grid, cv=2).fit(data, target)
    np.testing.assert_allclose(serial.cv_results_["mean_test_score"], scores, rtol=1e-6)


@pytest.mark.slow
def test_randomized_search_over_a_recipe_in_two_processes():
    search = RandomizedSearchCV(
        CFLLRegressor(MLPBackbone((8,)), max_epochs=3, random_state=0),
        {
            "learning_rate": loguniform(1e-3, 1e-1),
            "backbone__hidden_layer_sizes": [(8,), (16,)],
            "backbone__activation": ["tanh", "silu"],
        },
        n_iter=4,
        cv=2,
        n_jobs=2,
        random_state=0,
        error_score="raise",
    ).fit(X, y)
    assert len(set(search.cv_results_["mean_test_score"])) == 4
    assert search.best_estimator_.backbone.activation in ("tanh", "silu")


def test_search_through_a_pipeline():
    model = make_pipeline(StandardScaler(), small(CFLLRegressor, max_epochs=2))
    search = GridSearchCV(model, {"cfllregressor__learning_rate": [1e-4, 0.03]}, cv=2).fit(X, y)
    assert search.best_params_ == {"cfllregressor__learning_rate": 0.03}


@BOTH
def test_clone_takes_parameters_and_no_fit(Estimator):
    data, target = friedman_or_iris(Estimator)
    model = small(Estimator, ridge=3.0, callbacks=[Callback()]).fit(data, target)
    copy = clone(model)
    assert copy.ridge == 3.0
    assert not hasattr(copy, "net_")
    assert isinstance(copy.callbacks[0], Callback)


@BOTH
def test_set_params_is_heard_by_the_next_fit(Estimator):
    data, target = friedman_or_iris(Estimator)
    model = small(Estimator).fit(data, target)
    if Estimator is CFLLRegressor:
        model.set_params(linear_part=False)
    model.set_params(n_members=1)
    model.set_params(hidden_layer_sizes=(5,), max_epochs=2, memory="statistics").fit(data, target)
    assert model.features(data).shape[1] == 5
    assert model.n_iter_ == 2
    assert model.net_.module_.last_layer.memory == "statistics"


# -- meta-estimators --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: BaggingRegressor(model, n_estimators=3, random_state=0),
        lambda model: AdaBoostRegressor(model, n_estimators=3, random_state=0),
        lambda model: TransformedTargetRegressor(model, func=np.log1p, inverse_func=np.expm1),
        lambda model: TransformedTargetRegressor(model, transformer=StandardScaler()),
        # Both predict nearly the same on few rows: their weights must not be of opposite sign.
        lambda model: StackingRegressor(
            [("a", model), ("b", RidgeCV())], LinearRegression(positive=True), cv=2
        ),
        lambda model: RegressorChain(model),
        lambda model: make_pipeline(model),
    ],
    ids=["bagging", "adaboost", "log_target", "scaled_target", "stacking", "chain", "pipeline"],
)
def test_meta_regressors(wrap):
    chain = isinstance(wrap(CFLLRegressor()), RegressorChain)
    target = np.column_stack([y, -y]) if chain else y
    model = wrap(small(CFLLRegressor)).fit(X[:100], target[:100])
    assert model.predict(X).shape == target.shape
    assert model.score(X[100:], target[100:]) > 0.75


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_transformed_target_keeps_the_shape_of_y(shape):
    target = y.reshape(shape)
    model = TransformedTargetRegressor(small(CFLLRegressor), transformer=StandardScaler())
    assert model.fit(X, target).predict(X).shape == target.shape


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: BaggingClassifier(model, n_estimators=3, random_state=0),
        lambda model: CalibratedClassifierCV(model, cv=2),
        lambda model: CalibratedClassifierCV(model, cv=2, method="isotonic"),
        lambda model: StackingClassifier([("a", model)], LogisticRegression(), cv=2),
        lambda model: VotingClassifier([("a", model), ("b", GaussianNB())], voting="soft"),
    ],
    ids=["bagging", "sigmoid", "isotonic", "stacking", "voting"],
)
def test_meta_classifiers(wrap):
    model = wrap(small(CFLLClassifier)).fit(X_iris[::2], LABELS[::2])
    np.testing.assert_allclose(model.predict_proba(X_iris).sum(1), 1, atol=1e-6)
    assert model.score(X_iris[1::2], LABELS[1::2]) > 0.9


def test_multi_output_classifier_takes_one_estimator_a_column():
    target = np.column_stack([y_iris, 2 - y_iris])
    model = MultiOutputClassifier(small(CFLLClassifier)).fit(X_iris, target)
    assert model.predict(X_iris).shape == target.shape


def test_calibration_of_a_frozen_classifier():
    fitted = small(CFLLClassifier).fit(X_iris[::3], LABELS[::3])
    model = CalibratedClassifierCV(FrozenEstimator(fitted)).fit(X_iris[1::3], LABELS[1::3])
    assert model.score(X_iris[2::3], LABELS[2::3]) > 0.9


@BOTH
def test_cross_val_predict_gives_a_prediction_a_row(Estimator):
    data, target = friedman_or_iris(Estimator)
    predictions = cross_val_predict(small(Estimator), data, target, cv=3)
    assert predictions.shape == target.shape
    if Estimator is CFLLRegressor:
        assert r2_score(target, predictions) > 0.8
    else:
        assert (predictions == target).mean() > 0.9
        probabilities = cross_val_predict(
            small(Estimator), data, target, cv=3, method="predict_proba"
        )
        assert probabilities.shape == (150, 3)


def test_cross_validation_and_inspection_tools():
    model = small(CFLLRegressor, max_epochs=5)
    scores = cross_validate(model, X, y, cv=2, scoring=["r2", "neg_mean_absolute_error"])
    assert scores["test_r2"].min() > 0.7
    few, many = learning_curve(model, X, y, cv=2, train_sizes=[0.3, 1.0])[2].mean(1)
    assert few < many
    importances = permutation_importance(model.fit(X, y), X, y, n_repeats=2, random_state=0)
    assert importances.importances_mean[:4].min() > abs(importances.importances_mean[5])


def test_scikit_learn_knows_what_they_are():
    assert is_regressor(CFLLRegressor())
    assert is_classifier(CFLLClassifier())


@BOTH
def test_html_representation(Estimator):
    data, target = friedman_or_iris(Estimator)
    for model in (small(Estimator), small(Estimator).fit(data, target)):
        page = model._repr_html_()
        assert Estimator.__name__ in page
        assert "hidden_layer_sizes" in page
    assert MLPBackbone.__name__ in Estimator(MLPBackbone((3,)))._repr_html_()


# -- names of columns -------------------------------------------------------------------------


@pytest.mark.parametrize("library", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize("method", ["predict", "features", "partial_fit", "adapt"])
def test_columns_by_other_names_are_refused(library, method):
    def frame(names):
        return library(dict(zip(names, X.T, strict=True)))

    model = small(CFLLRegressor).fit(frame("abcdef"), y)
    assert list(model.feature_names_in_) == list("abcdef")
    arguments = (y,) if method in ("partial_fit", "adapt") else ()
    for names in ("abcdeg", "fedcba"):
        with pytest.raises(ValueError, match="feature names should match"):
            getattr(model, method)(frame(names), *arguments)
    getattr(model, method)(frame("abcdef"), *arguments)


def test_missing_names_warn():
    model = small(CFLLRegressor).fit(pd.DataFrame(X, columns=list("abcdef")), y)
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)


# -- metadata routing -------------------------------------------------------------------------


def test_sample_weight_is_routed_through_a_pipeline_and_a_search():
    weights = np.random.default_rng(0).uniform(0.1, 5, 150)
    direct = small(CFLLRegressor).fit(X, y, weights).predict(X)
    with config_context(enable_metadata_routing=True):
        model = small(CFLLRegressor).set_fit_request(sample_weight=True)
        piped = make_pipeline(model).fit(X, y, sample_weight=weights)
        np.testing.assert_array_equal(piped.predict(X), direct)
        model.set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"ridge": ["auto"]}, cv=2).fit(X, y, sample_weight=weights)
        np.testing.assert_array_equal(search.predict(X), direct)
        assert not np.isnan(search.best_score_)


def test_weights_that_were_not_requested_are_refused():
    with config_context(enable_metadata_routing=True):
        model = make_pipeline(small(CFLLRegressor))
        with pytest.raises(ValueError, match=r"sample_weight.*are passed but are not explicitly"):
            model.fit(X, y, sample_weight=np.ones(150))


def test_partial_fit_and_return_std_can_be_requested():
    with config_context(enable_metadata_routing=True):
        CFLLRegressor().set_partial_fit_request(sample_weight=True)
        CFLLClassifier().set_partial_fit_request(classes=True, sample_weight=False)
        model = small(CFLLRegressor).set_predict_request(return_std=True)
        prediction, std = make_pipeline(model).fit(X, y).predict(X, return_std=True)
    assert prediction.shape == std.shape == y.shape
