"""What CFLLRegressor and CFLLClassifier promise: parameters, methods, attributes, silence."""

import dataclasses
import inspect
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_iris,
    make_classification,
    make_friedman1,
    make_multilabel_classification,
    make_regression,
)
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.utils import compute_sample_weight
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.training.schedules import SCHEDULES

BOTH = pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])


def small(Estimator, **parameters):
    """One small network; members and the linear part have tests of their own."""
    defaults = {"hidden_layer_sizes": (32,), "max_epochs": 8, "random_state": 0, "n_members": 1}
    if issubclass(Estimator, CFLLRegressor):
        defaults["linear_part"] = False
    return Estimator(**{**defaults, **parameters})


def data_for(Estimator, n_rows=120):
    if issubclass(Estimator, CFLLRegressor):
        return make_friedman1(n_rows, n_features=6, noise=0.3, random_state=0)
    return make_classification(n_rows, n_features=6, n_informative=4, n_classes=3, random_state=0)


def raw(model, X):
    """Predictions before a classifier turns them into labels."""
    return model.predict(X) if isinstance(model, CFLLRegressor) else model.decision_function(X)


def penalty(model, features):
    """The absolute ridge penalty that a relative ridge means on these features."""
    centred = features - features.mean(0)
    power = np.square(centred).sum() / features.size
    return model.final_ridge_ * len(features) * power


# -- attributes and methods -----------------------------------------------------------------


@BOTH
def test_every_parameter_is_documented_and_constrained(Estimator):
    parameters = set(inspect.signature(Estimator).parameters)
    assert parameters == set(Estimator._parameter_constraints)
    for name in parameters:
        assert f"{name} : " in Estimator.__doc__


@BOTH
def test_every_promised_attribute_is_set(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, early_stopping=True).fit(X, y)
    k = 1 if Estimator is CFLLRegressor else 3
    assert model.last_layer_coef_.shape == (k, 32)
    assert model.last_layer_intercept_.shape == (k,)
    assert model.noise_variance_.shape == (k,)
    assert np.all(model.noise_variance_ > 0)
    assert model.n_outputs_ == k
    assert model.n_features_in_ == 6
    assert isinstance(model.final_ridge_, float)
    assert model.decay_ == 1.0
    assert model.device_ == torch.device("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(model.backbone_, nn.Module)
    assert model.net_.module_.backbone is model.backbone_
    assert model.n_iter_ == len(model.history_)
    assert 1 <= model.best_iteration_ <= model.n_iter_


@BOTH
def test_attributes_are_absent_before_fit(Estimator):
    model = Estimator()
    for name in (
        "last_layer_coef_",
        "last_layer_intercept_",
        "backbone_",
        "net_",
        "history_",
        "n_outputs_",
    ):
        assert not hasattr(model, name), name


@BOTH
@pytest.mark.parametrize(
    "call",
    [
        lambda model, X, y: model.predict(X),
        lambda model, X, y: model.features(X),
        lambda model, X, y: model.score(X, y),
        lambda model, X, y: model.adapt(X, y),
        lambda model, X, y: model.to_torch(),
        lambda model, X, y: model.save("never_written"),
    ],
    ids=["predict", "features", "score", "adapt", "to_torch", "save"],
)
def test_methods_ask_for_fit_first(Estimator, call):
    with pytest.raises(NotFittedError, match="not fitted"):
        call(Estimator(), *data_for(Estimator))


@BOTH
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("update_order", ["backbone_first", "last_layer_first"])
@pytest.mark.parametrize("batch_size", [32, "full"])
def test_every_way_of_training_learns(Estimator, memory, update_order, batch_size):
    X, y = data_for(Estimator, 300)
    model = small(
        Estimator, memory=memory, update_order=update_order, batch_size=batch_size, max_epochs=20
    )
    assert model.fit(X[:200], y[:200]).score(X[200:], y[200:]) > 0.6


@BOTH
def test_features_times_coef_plus_intercept_predict(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X, y)
    outputs = model.features(X) @ model.last_layer_coef_.T + model.last_layer_intercept_
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(outputs[:, 0], model.predict(X), rtol=1e-10)
    else:  # one-hot targets, centred by the decision function
        np.testing.assert_allclose(outputs - 0.5, model.decision_function(X), atol=1e-10)


@BOTH
def test_to_torch_maps_raw_inputs_to_predictions(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(100 * X + 3, y)
    module = model.to_torch()
    assert not module.training
    assert isinstance(list(module.modules())[-1], nn.Linear)
    with torch.no_grad():
        outputs = module(torch.as_tensor(100 * X + 3)).numpy()
    np.testing.assert_allclose(outputs.squeeze(), raw(model, 100 * X + 3), atol=1e-9)


@BOTH
def test_to_torch_is_independent_of_the_estimator(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X, y)
    before = raw(model, X)
    with torch.no_grad():
        for parameter in model.to_torch().parameters():
            parameter.zero_()
    np.testing.assert_array_equal(raw(model, X), before)


@BOTH
def test_save_and_load_round_trip(Estimator, tmp_path):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X, y)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(raw(Estimator.load(tmp_path / "model"), X), raw(model, X))


@BOTH
def test_history_has_a_row_per_epoch(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, max_epochs=4, early_stopping=True).fit(X, y)
    assert len(model.history_) == model.n_iter_ == 4
    for epoch, row in enumerate(model.history_, start=1):
        assert set(row) == {"epoch", "train_loss", "valid_loss", "learning_rate", "seconds"}
        assert row["epoch"] == epoch
        assert row["seconds"] >= 0
        assert np.isfinite([row["train_loss"], row["valid_loss"], row["learning_rate"]]).all()


@BOTH
def test_history_has_no_validation_loss_without_held_out_rows(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, early_stopping=False).fit(X, y)
    assert all(row["valid_loss"] is None for row in model.history_)
    assert model.best_iteration_ == model.n_iter_ == 8


# -- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("trailing", [(), (1,), (3,)])
def test_targets_come_back_in_their_own_shape(trailing):
    X, y = make_regression(80, 5, n_targets=3, random_state=0)
    y = y[:, 0] if trailing == () else y[:, : trailing[0]]
    model = small(CFLLRegressor).fit(X, y)
    assert model.predict(X[:7]).shape == (7, *trailing)
    assert model.predict(X[:7], return_std=True)[1].shape == (7, *trailing)
    assert model.n_outputs_ == (trailing[0] if trailing else 1)


def wrong_entries(X, value):
    """A copy in which one entry of a thousand is ``value``."""
    spoilt = np.random.default_rng(0).random(X.shape) < 0.001
    return np.where(spoilt, value, X)


@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_a_few_wrong_inputs_do_no_harm(Estimator):
    X, y = make_friedman1(900, noise=0.5, random_state=0)
    y = y > np.median(y) if Estimator is CFLLClassifier else y
    model = Estimator(max_epochs=30, random_state=0)
    clean = model.fit(X[:600], y[:600]).score(X[600:], y[600:])
    spoilt = model.fit(wrong_entries(X[:600], 1e6), y[:600]).score(X[600:], y[600:])
    assert spoilt > clean - 0.06


def test_predictions_far_outside_the_training_rows_are_bounded():
    X, y = make_friedman1(300, random_state=0)
    model = CFLLRegressor(max_epochs=10, random_state=0).fit(X, y)
    far = model.predict(np.sign(X - 0.5) * 1e12)
    assert np.abs(far - y.mean()).max() < 300 * y.std()  # 30 deviations in each of ten columns


def test_multi_output_regression_learns_each_target():
    X, y = make_regression(300, 5, n_targets=3, noise=5.0, random_state=0)
    y *= [1.0, 1e3, 1e-3]  # a target of small variance must not be neglected
    model = small(CFLLRegressor, max_epochs=30).fit(X[:200], y[:200])
    assert model.last_layer_coef_.shape == (3, 32)
    errors = np.square(y[200:] - model.predict(X[200:])).mean(0)
    assert np.all(errors < 0.1 * y[200:].var(0))


@BOTH
@pytest.mark.parametrize(
    ("n_rows", "precision", "expected"),
    [
        (100, "auto", np.float64),
        (300, "auto", np.float64),
        (301, "auto", np.float32),
        (100, "float32", np.float32),
        (1001, "float64", np.float64),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="float32 throughout on a GPU")
def test_predictions_have_the_precision_they_were_computed_in(
    Estimator, n_rows, precision, expected
):
    X, y = data_for(Estimator, n_rows)
    model = small(Estimator, max_epochs=1, precision=precision).fit(X, y)
    assert raw(model, X).dtype == expected
    if Estimator is CFLLClassifier:
        assert model.predict_proba(X).dtype == expected
    else:
        assert model.predict(X, return_std=True)[1].dtype == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="float32 up to the limit on a CPU only")
def test_columns_and_targets_far_from_zero_are_not_blurred():
    X, y = make_friedman1(800, noise=0.5, random_state=0)
    model = CFLLRegressor(max_epochs=10, random_state=0)
    plain = model.fit(X[:600], y[:600]).score(X[600:], y[600:])
    assert model.predict(X).dtype == np.float32
    for far_X, far_y in ((X + 1e9, y), (X, y + 1e9), (X * [1e9] + 1e9, y * 1e9)):
        score = model.fit(far_X[:600], far_y[:600]).score(far_X[600:], far_y[600:])
        assert abs(score - plain) < 0.03
    assert model.predict(far_X).dtype == np.float32  # far in absolute terms only
    first = CFLLClassifier(max_epochs=10, random_state=0).fit(X[:600] + 1e9, y[:600] > 14)
    assert first.score(X[600:] + 1e9, y[600:] > 14) > 0.85
    # What comes in float32 has nothing finer, and another precision may be asked for.
    assert model.fit((X + 1e6).astype(np.float32), y).predict(X + 1e6).dtype == np.float32
    model.set_params(precision="float32")
    assert model.fit(X, y + 1e9).predict(X).dtype == np.float32


def test_normalize_y_makes_the_scale_of_targets_irrelevant():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor)
    first, scaled = model.fit(X, y).predict(X), model.fit(X, 1e6 * y + 1e7).predict(X)
    np.testing.assert_allclose((scaled - 1e7) / 1e6, first, rtol=1e-6)
    assert model.history_[0]["train_loss"] < 10
    model.set_params(normalize_y=False).fit(X, 1e6 * y + 1e7)
    assert model.history_[0]["train_loss"] > 1e10


# -- classification ---------------------------------------------------------------------------


def binary():
    return load_breast_cancer(return_X_y=True)


def string_labels():
    X, y = load_iris(return_X_y=True)
    return X, load_iris().target_names[y]


@pytest.mark.parametrize("dataset", [binary, string_labels])
def test_classifier_predicts_its_own_labels(dataset):
    X, y = dataset()
    model = small(CFLLClassifier, max_epochs=20).fit(X, y)
    np.testing.assert_array_equal(model.classes_, np.unique(y))
    assert model.predict(X).dtype == model.classes_.dtype
    assert model.score(X, y) > 0.93


@pytest.mark.parametrize("dataset", [binary, string_labels])
def test_probabilities_sum_to_one_and_agree_with_predict(dataset):
    X, y = dataset()
    model = small(CFLLClassifier, precision="float64").fit(X, y)
    probabilities = model.predict_proba(X)
    assert probabilities.shape == (len(X), len(model.classes_))
    assert np.all((probabilities >= 0) & (probabilities <= 1))
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-12)
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(1)], model.predict(X))
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), probabilities)


def test_decision_function_is_one_column_for_two_classes():
    X, y = binary()
    scores = small(CFLLClassifier).fit(X, y).decision_function(X)
    assert scores.shape == (len(X),)


def test_multilabel_targets_get_a_column_each():
    X, y = make_multilabel_classification(300, n_classes=4, random_state=0)
    model = small(CFLLClassifier, max_epochs=20).fit(X, y)
    probabilities = model.predict_proba(X)
    assert model.predict(X).shape == probabilities.shape == y.shape
    assert model.n_outputs_ == 4
    np.testing.assert_array_equal(model.predict(X), probabilities > 0.5)
    assert (model.predict(X) == y).mean() > 0.8


def test_probabilities_are_calibrated_on_fresh_rows():
    X, y = make_classification(3000, n_features=8, n_informative=5, flip_y=0.3, random_state=0)
    model = small(CFLLClassifier, max_epochs=15).fit(X[:2000], y[:2000])
    confidence = model.predict_proba(X[2000:]).max(1)
    assert abs(confidence.mean() - model.score(X[2000:], y[2000:])) < 0.05


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1.0, 1: 5.0}])
def test_class_weight_equals_the_sample_weight_it_stands_for(class_weight):
    X, y = make_classification(150, n_features=6, weights=[0.8], random_state=0)
    weighted = small(CFLLClassifier, class_weight=class_weight).fit(X, y)
    expected = small(CFLLClassifier).fit(X, y, compute_sample_weight(class_weight, y))
    np.testing.assert_allclose(
        weighted.decision_function(X), expected.decision_function(X), rtol=1e-9, atol=1e-12
    )


def test_class_weight_multiplies_sample_weight():
    X, y = make_classification(150, n_features=6, weights=[0.8], random_state=0)
    weights = np.random.default_rng(0).uniform(0.5, 2, 150)
    both = small(CFLLClassifier, class_weight={0: 1, 1: 5}).fit(X, y, weights)
    product = small(CFLLClassifier).fit(X, y, weights * np.where(y == 1, 5, 1))
    np.testing.assert_allclose(
        both.decision_function(X), product.decision_function(X), rtol=1e-9, atol=1e-12
    )


def test_class_weight_takes_the_labels_of_string_classes():
    X, y = string_labels()
    model = small(CFLLClassifier, class_weight={"setosa": 1, "versicolor": 9, "virginica": 1})
    more = (model.fit(X, y).predict(X) == "versicolor").sum()
    plain = (model.set_params(class_weight=None).fit(X, y).predict(X) == "versicolor").sum()
    assert more > plain


# -- sample weights ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{}, {"batch_size": "full"}, {"memory": "statistics"}])
def test_weights_equal_repetitions(Estimator, options):
    X, y = data_for(Estimator, 60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    model = small(Estimator, early_stopping=False, **options)
    weighted = raw(model.fit(X, y, sample_weight=weights), X)
    repeated = raw(model.fit(X.repeat(weights, axis=0), y.repeat(weights)), X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)


@BOTH
@pytest.mark.parametrize("early_stopping", [False, True])
def test_scaling_all_weights_changes_nothing(Estimator, early_stopping):
    X, y = data_for(Estimator)
    weights = np.random.default_rng(1).uniform(0.2, 2, len(X))
    model = small(Estimator, batch_size=32, early_stopping=early_stopping)
    first = raw(model.fit(X, y, weights), X)
    for factor in (1e-6, 1e6):
        np.testing.assert_allclose(
            raw(model.fit(X, y, factor * weights), X), first, rtol=1e-6, atol=1e-9
        )


@BOTH
def test_equal_weights_are_no_weights(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, batch_size=32)
    plain = raw(model.fit(X, y), X)
    np.testing.assert_array_equal(raw(model.fit(X, y, np.full(len(X), 7.0)), X), plain)


@BOTH
def test_weights_count_in_the_fit(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator)
    weights = np.where(np.arange(len(X)) < 60, 100.0, 1.0)
    plain = raw(model.fit(X, y), X)
    assert not np.allclose(raw(model.fit(X, y, weights), X), plain)


# -- full batch -------------------------------------------------------------------------------


@BOTH
def test_full_batch_does_not_depend_on_the_order_of_rows(Estimator):
    X, y = data_for(Estimator)
    order = np.random.default_rng(0).permutation(len(X))
    model = small(Estimator, batch_size="full", max_epochs=30, early_stopping=False)
    first = raw(model.fit(X, y), X)
    np.testing.assert_allclose(raw(model.fit(X[order], y[order]), X), first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_full_batch_last_layer_is_ridge_on_the_features(refit, weighted):
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:150], y[:150]
    weights = np.random.default_rng(0).uniform(0.5, 2, 150) if weighted else np.ones(150)
    # Last layer first would leave a solve on the features before the last step.
    model = small(
        CFLLRegressor,
        batch_size="full",
        refit_last_layer=refit,
        update_order="backbone_first",
        ridge=0.3,
        early_stopping=False,
    ).fit(X, y, weights)
    features = model.features(X)
    centred = features - np.average(features, axis=0, weights=weights)
    power = (weights[:, None] * centred**2).sum() / (weights.sum() * features.shape[1])
    ridge = Ridge(alpha=0.3 * weights.sum() * power).fit(features, y, weights)
    assert model.final_ridge_ == 0.3
    np.testing.assert_allclose(model.last_layer_coef_[0], ridge.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.predict(X), ridge.predict(features), rtol=1e-7)


# -- held-out rows ----------------------------------------------------------------------------


@BOTH
def test_early_stopping_keeps_the_best_epoch(Estimator):
    X, y = data_for(Estimator, 300)
    if Estimator is CFLLRegressor:  # noise to overfit
        y = y + np.random.default_rng(0).normal(0, 5, len(y))
    X_val, y_val = X[200:], y[200:]
    model = small(
        Estimator,
        max_epochs=40,
        early_stopping=True,
        refit_last_layer=False,
        n_iter_no_change=6,
        learning_rate=0.1,
        learning_rate_schedule="constant",
    ).fit(X[:200], y[:200], X_val=X_val, y_val=y_val)
    losses = [row["valid_loss"] for row in model.history_]
    assert model.best_iteration_ == 1 + int(np.argmin(losses))
    assert model.best_iteration_ < model.n_iter_  # else this shows nothing
    if Estimator is CFLLRegressor:
        scale = y[:200].var()
        loss = np.square(model.predict(X_val) - y_val).mean() / scale
    else:
        loss = np.square(model.decision_function(X_val) + 0.5 - np.eye(3)[y_val]).mean()
    np.testing.assert_allclose(loss, min(losses), rtol=1e-6)


@BOTH
def test_training_ends_after_epochs_without_improvement(Estimator):
    X, y = data_for(Estimator, 300)
    model = small(Estimator, max_epochs=60, early_stopping=True, n_iter_no_change=2, tol=10.0).fit(
        X, y
    )
    assert model.n_iter_ <= 4  # a tolerance that no epoch meets


@BOTH
@pytest.mark.parametrize(("n_rows", "held_out"), [(39, False), (40, True)])
def test_early_stopping_auto_goes_by_the_number_of_rows(Estimator, n_rows, held_out):
    X, y = data_for(Estimator, n_rows)
    row = small(Estimator, max_epochs=2).fit(X, y).history_[0]
    assert (row["valid_loss"] is not None) == held_out


@pytest.mark.parametrize(
    ("n_rows", "n_held"), [(40, 10), (100, 25), (200, 40), (400, 40), (1000, 100)]
)
def test_a_tenth_is_held_out_and_more_of_few_rows(n_rows, n_held):
    X, y = data_for(CFLLRegressor, n_rows)
    model = small(CFLLRegressor, max_epochs=1, validation_fraction="auto").fit(X, y)
    assert model.resolved_["n_held_out"] == n_held


@BOTH
def test_validation_fraction_zero_holds_nothing_out(Estimator):
    X, y = data_for(Estimator, 250)
    model = small(Estimator, max_epochs=2, validation_fraction=0.0).fit(X, y)
    assert model.history_[0]["valid_loss"] is None


@BOTH
def test_early_stopping_false_holds_nothing_out(Estimator):
    X, y = data_for(Estimator, 250)
    model = small(Estimator, max_epochs=2, early_stopping=False).fit(X, y)
    assert model.history_[0]["valid_loss"] is None


def test_refit_ridge_is_the_best_on_held_out_rows():
    X, y = make_friedman1(300, n_features=6, noise=3.0, random_state=0)
    X, X_val, y, y_val = X[:200], X[200:], y[:200], y[200:]
    model = small(CFLLRegressor, max_epochs=5, early_stopping=False).fit(
        X, y, X_val=X_val, y_val=y_val
    )
    features, features_val = model.features(X), model.features(X_val)
    power = np.square(features - features.mean(0)).sum() / features.size
    ridges = np.logspace(-6, 3, 19)
    errors = [
        np.square(
            Ridge(alpha=ridge * len(X) * power).fit(features, y).predict(features_val) - y_val
        ).mean()
        for ridge in ridges
    ]
    best = int(np.argmin(errors))
    assert 0 < best < len(ridges) - 1
    np.testing.assert_allclose(model.final_ridge_, ridges[best], rtol=1e-6)
    np.testing.assert_allclose(model.noise_variance_[0], errors[best], rtol=1e-5)


def test_final_fit_uses_the_held_out_rows_too():
    X, y = make_friedman1(300, n_features=6, noise=1.0, random_state=0)
    model = small(CFLLRegressor, max_epochs=5).fit(X, y)
    features = model.features(X)
    ridge = Ridge(alpha=penalty(model, features)).fit(features, y)
    np.testing.assert_allclose(model.predict(X), ridge.predict(features), rtol=1e-6)


# -- going on ---------------------------------------------------------------------------------


@BOTH
def test_warm_start_goes_on_from_the_previous_fit(Estimator):
    X, y = data_for(Estimator)
    model = small(
        Estimator,
        warm_start=True,
        refit_last_layer=False,
        learning_rate_schedule="constant",
        max_epochs=10,
        early_stopping=False,
    ).fit(X, y)
    first = list(model.history_)
    model.fit(X, y)
    assert model.history_[:10] == first
    assert model.n_iter_ == len(model.history_) == 20
    assert [row["epoch"] for row in model.history_] == list(range(1, 21))
    assert model.history_[10]["train_loss"] < 1.5 * first[-1]["train_loss"]
    assert model.history_[10]["train_loss"] < 0.8 * first[0]["train_loss"]


@BOTH
def test_warm_start_in_two_halves_equals_one_run(Estimator):
    X, y = data_for(Estimator)
    options = {
        "learning_rate_schedule": "constant",
        "refit_last_layer": False,
        "batch_size": 32,
        "early_stopping": False,
    }
    halves = small(Estimator, warm_start=True, max_epochs=4, **options).fit(X, y).fit(X, y)
    whole = small(Estimator, max_epochs=8, **options).fit(X, y)
    np.testing.assert_array_equal(raw(halves, X), raw(whole, X))


@BOTH
def test_fit_without_warm_start_forgets(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, batch_size=32)
    first = raw(model.fit(X, y), X)
    np.testing.assert_array_equal(raw(model.fit(X, y), X), first)
    assert model.n_iter_ == 8


@BOTH
def test_partial_fit_improves_epoch_by_epoch(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator)
    for _ in range(20):
        assert model.partial_fit(X, y) is model
    assert model.n_iter_ == len(model.history_) == 20
    assert model.history_[-1]["train_loss"] < 0.7 * model.history_[0]["train_loss"]
    assert model.score(X, y) > 0.7


@BOTH
def test_partial_fit_after_fit_goes_on(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, early_stopping=True, learning_rate=0.005, max_epochs=20).fit(X, y)
    score, n_epochs = model.score(X, y), model.n_iter_
    model.partial_fit(X, y)
    assert model.n_iter_ == n_epochs + 1
    assert model.score(X, y) > score - 0.1


def test_partial_fit_learns_classes_given_in_the_first_call():
    X, y = string_labels()
    model = small(CFLLClassifier)
    model.partial_fit(X[y == "setosa"], y[y == "setosa"], classes=np.unique(y))
    for _ in range(20):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9


@pytest.mark.parametrize("splits", [1, 3, 10])
@pytest.mark.parametrize("batch_size", [16, "full"])
def test_stream_with_statistics_memory_is_ridge_on_all_rows_seen(splits, batch_size):
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(
        nn.Identity(),
        memory="statistics",
        ridge=0.2,
        batch_size=batch_size,
        normalize_y=False,
        precision="float64",
    )
    for rows in np.array_split(np.random.default_rng(splits).permutation(len(X)), splits):
        model.partial_fit(X[rows], y[rows])
    ridge = Ridge(alpha=penalty(model, X)).fit(X, y)
    assert model.final_ridge_ == 0.2
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-8)


def test_weights_on_a_stream_mean_repetitions():
    X, y = load_diabetes(return_X_y=True)
    # Light rows first: what a weight means must not depend on the rows it comes with.
    weights = np.sort(np.random.default_rng(0).integers(0, 4, len(X)))
    model = CFLLRegressor(nn.Identity(), memory="statistics", ridge=0.2, normalize_y=False)
    for rows in np.array_split(np.flatnonzero(weights), 3):
        model.partial_fit(X[rows], y[rows], weights[rows])
    X_repeated = X.repeat(weights, axis=0)
    ridge = Ridge(alpha=penalty(model, X_repeated)).fit(X_repeated, y.repeat(weights))
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-8)


@pytest.mark.parametrize("normalize_y", [False, True])
@pytest.mark.parametrize("refit", [True, False])
def test_adapt_equals_a_fit_to_all_rows(normalize_y, refit):
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(
        nn.Identity(),
        early_stopping=False,
        normalize_y=normalize_y,
        refit_last_layer=refit,
        memory="proximal" if refit else "statistics",
        max_epochs=1,
        random_state=0,
    ).fit(X[:300], y[:300])
    assert model.adapt(X[300:350], y[300:350]) is model
    model.adapt(X[350:], y[350:])
    ridge = Ridge(alpha=penalty(model, X)).fit(X, y)
    np.testing.assert_allclose(model.predict(X), ridge.predict(X), rtol=1e-7)


@BOTH
def test_adapt_leaves_the_backbone_alone(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X[:80], y[:80])
    features, outputs, history = model.features(X), raw(model, X), list(model.history_)
    model.adapt(X[80:], y[80:])
    np.testing.assert_array_equal(model.features(X), features)
    assert not np.allclose(raw(model, X), outputs)
    assert model.history_ == history


@BOTH
def test_adapt_weights_equal_repetitions(Estimator):
    X, y = data_for(Estimator)
    weights = np.random.default_rng(0).integers(0, 4, 40)
    fit = small(Estimator).fit(X[:80], y[:80])
    weighted = raw(fit.adapt(X[80:], y[80:], weights), X)
    fit = small(Estimator).fit(X[:80], y[:80])
    repeated = raw(fit.adapt(X[80:].repeat(weights, axis=0), y[80:].repeat(weights)), X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)


@BOTH
def test_adapt_without_moments_says_how_to_keep_them(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, refit_last_layer=False).fit(X, y)
    with pytest.raises(ValueError, match=r"`adapt` needs the moments.*refit_last_layer=True"):
        model.adapt(X, y)


# -- uncertainty ------------------------------------------------------------------------------


def test_predictive_deviation_grows_far_from_the_data():
    X, y = data_for(CFLLRegressor)
    model = CFLLRegressor(nn.Identity(), early_stopping=False).fit(X, y)
    prediction, near = model.predict(X, return_std=True)
    far = model.predict(20 * X, return_std=True)[1]
    np.testing.assert_allclose(prediction, model.predict(X), rtol=1e-12)
    assert near.shape == y.shape
    assert np.all(near**2 >= model.noise_variance_[0])
    assert far.mean() > 3 * near.mean()


def test_predictive_deviation_is_bayesian_linear_regression():
    X, y = load_diabetes(return_X_y=True)
    model = CFLLRegressor(nn.Identity(), max_epochs=1, early_stopping=False).fit(X, y)
    centred = X - X.mean(0)
    inverse = np.linalg.inv(centred.T @ centred + penalty(model, X) * np.eye(X.shape[1]))
    leverage = 1 / len(X) + np.einsum("nd,de,ne->n", centred, inverse, centred)
    expected = np.sqrt(model.noise_variance_[0] * (1 + leverage))
    expected *= model._model.scores.inflation  # by rows left out, one by one
    np.testing.assert_allclose(model.predict(X, return_std=True)[1], expected, rtol=1e-6)


def test_predictive_deviation_covers_fresh_rows():
    X, y = make_friedman1(1000, n_features=6, noise=2.0, random_state=0)
    model = small(CFLLRegressor, max_epochs=20).fit(X[:600], y[:600])
    prediction, std = model.predict(X[600:], return_std=True)
    assert 0.85 < (np.abs(prediction - y[600:]) < 1.96 * std).mean() < 0.995


def test_predictive_deviation_without_moments_says_how_to_keep_them():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor, refit_last_layer=False).fit(X, y)
    with pytest.raises(ValueError, match=r"`return_std` needs the moments.*refit_last_layer=True"):
        model.predict(X, return_std=True)


# -- optimiser, schedule, network ---------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "optimizer",
    ["adam", "adamw", "adagrad", "nadam", "rmsprop", "sgd", torch.optim.Adam, torch.optim.SGD],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_optimizers_by_name_and_by_class(Estimator, optimizer):
    X, y = data_for(Estimator)
    model = small(Estimator, optimizer=optimizer, refit_last_layer=False).fit(X, y)
    assert model.history_[-1]["train_loss"] < model.history_[0]["train_loss"]
    expected = torch.optim.Optimizer if isinstance(optimizer, str) else optimizer
    assert isinstance(model.net_.optimizer_, expected)


def test_optimizer_by_name_is_the_class_by_that_name():
    X, y = data_for(CFLLRegressor)
    first = small(CFLLRegressor, optimizer="adam").fit(X, y).predict(X)
    second = small(CFLLRegressor, optimizer=torch.optim.Adam).fit(X, y).predict(X)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "one_cycle"])
def test_learning_rate_schedules_shape_the_rate(schedule):
    X, y = data_for(CFLLRegressor)
    model = small(
        CFLLRegressor, learning_rate=0.02, learning_rate_schedule=schedule, max_epochs=20
    ).fit(X, y)
    rates = np.array([row["learning_rate"] for row in model.history_])
    assert rates.max() <= 0.02 + 1e-12
    if schedule == "constant":
        np.testing.assert_allclose(rates, 0.02)
    elif schedule == "one_cycle":
        assert rates[0] < rates[2] > rates[-1]
    else:
        assert rates[0] == pytest.approx(0.02)
        assert np.all(np.diff(rates) < 0)
        assert rates[-1] < 0.003


def test_weight_decay_shrinks_the_backbone():
    X, y = data_for(CFLLRegressor)

    def size(weight_decay):
        model = small(CFLLRegressor, weight_decay=weight_decay, max_epochs=20).fit(X, y)
        return sum(float(p.detach().square().sum()) for p in model.backbone_.parameters())

    assert size(5.0) < 0.7 * size(0.0)


@pytest.mark.parametrize(
    ("feature_shape", "batch_size", "expected"),
    [
        ((256,), 256, 30.72),
        ((64,), 256, 0.48),
        ((64,), 32, 7.68),
        ((64,), "full", 0.01),
        ((16, 16, 32), 8, 0.1),
        ((2, 64), 32, 7.68),
    ],
)
def test_automatic_ridge_follows_features_over_rows_squared(feature_shape, batch_size, expected):
    assert DEFAULTS.ridge("auto", feature_shape, batch_size, 1000) == pytest.approx(expected)
    assert DEFAULTS.ridge(3, feature_shape, batch_size, 1000) == 3.0


@pytest.mark.parametrize(
    ("batch_size", "n_rows", "expected"),
    [
        ("auto", 10, 256),
        ("auto", 2048, 256),
        ("auto", 2049, 257),
        ("auto", 8192, 1024),
        ("auto", 10**6, 1024),
        ("full", 777, 777),
        (32, 777, 32),
    ],
)
def test_automatic_batches_are_an_eighth_of_the_rows_within_bounds(batch_size, n_rows, expected):
    assert DEFAULTS.batch_size(batch_size, n_rows, perceptron=True) == expected
    assert DEFAULTS.batch_size("auto", n_rows, perceptron=False) == 256


def test_networks_of_the_users_have_batches_of_256():
    X, y = data_for(CFLLRegressor, 3000)
    own = CFLLRegressor(nn.Linear(6, 4), max_epochs=1).fit(X, y)
    ours = CFLLRegressor(max_epochs=1, validation_fraction=0.1).fit(X, y)
    assert own.net_.batch_size == 256
    assert ours.net_.batch_size == 338  # an eighth of nine tenths


def test_automatic_ridge_is_the_same_for_any_number_of_few_rows():
    assert DEFAULTS.ridge("auto", (64,), 256, 15) == DEFAULTS.ridge("auto", (64,), 256, 39) == 7.68


def test_each_threshold_says_what_it_rests_on():
    scripts = {field.metadata["script"] for field in dataclasses.fields(DEFAULTS)} - {None}
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    if benchmarks.is_dir():  # not in an installed package
        assert all((benchmarks / script).exists() for script in scripts)
    assert all(field.metadata["why"] for field in dataclasses.fields(DEFAULTS))


def test_a_subclass_may_have_thresholds_of_its_own():
    class Eager(CFLLRegressor):
        defaults = dataclasses.replace(DEFAULTS, held_out_from=20, epochs=3)

    X, y = make_friedman1(30, random_state=0)
    resolved = [kind(random_state=0).fit(X, y).resolved_ for kind in (CFLLRegressor, Eager)]
    assert [each["n_held_out"] for each in resolved] == [0, 7]
    assert [each["max_epochs"] for each in resolved] == [60, 3]


@pytest.mark.parametrize("schedule", ["cosine", "constant", "linear", "one_cycle"])
def test_automatic_weight_decay_shrinks_by_the_same_factor_in_any_number_of_steps(schedule):
    def log_shrinkage(n_steps, rate):
        decay = DEFAULTS.weight_decay(rate, schedule, n_steps)
        factors = [SCHEDULES[schedule](step / n_steps) for step in range(n_steps)]
        return np.log1p(-decay * rate * np.array(factors)).sum()

    for n_steps, rate in ((400, 0.02), (400, 0.001), (5000, 0.02)):
        assert log_shrinkage(n_steps, rate) == pytest.approx(-3.0, rel=0.03)
    assert -0.4 < log_shrinkage(10, 0.02) < -0.2  # few steps have little to undo


def decay_in_force(**parameters):
    X, y = data_for(CFLLRegressor)
    parameters = {"max_epochs": 4, "warm_start": True, "batch_size": 32} | parameters
    return CFLLRegressor(**parameters).fit(X, y).net_.optimizer_.param_groups[0]["weight_decay"]


def test_automatic_weight_decay_is_of_the_perceptron_under_adamw():
    expected = DEFAULTS.weight_decay(0.02, "cosine", 4 * 3)  # 90 of 120 rows, in batches of 32
    assert decay_in_force() == pytest.approx(expected)
    assert decay_in_force(optimizer=torch.optim.AdamW) == pytest.approx(expected)
    assert decay_in_force(optimizer="adam") == 0.0
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    assert decay_in_force(backbone=backbone) == 0.0
    assert decay_in_force(weight_decay=0.25) == 0.25


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_outlives_the_reset_of_the_optimizer(optimizer):
    assert decay_in_force(weight_decay=0.25, warm_start=False, optimizer=optimizer) == 0.25


def test_automatic_weight_decay_leaves_a_stream_alone():
    X, y = data_for(CFLLRegressor)
    one, other = (
        CFLLRegressor(weight_decay=decay, random_state=0).partial_fit(X, y).partial_fit(X, y)
        for decay in ("auto", 0.0)
    )
    np.testing.assert_array_equal(one.predict(X), other.predict(X))


@BOTH
def test_dropout_changes_training_but_not_prediction(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, hidden_layer_sizes=(32, 32), dropout=0.5).fit(X, y)
    np.testing.assert_array_equal(raw(model, X), raw(model, X))
    without = small(Estimator, hidden_layer_sizes=(32, 32)).fit(X, y)
    assert not np.allclose(raw(model, X), raw(without, X))
    again = small(Estimator, hidden_layer_sizes=(32, 32), dropout=0.5).fit(X, y)
    np.testing.assert_array_equal(raw(model, X), raw(again, X))


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu", "gelu", "elu", "identity"])
def test_activations_by_name(activation):
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor, activation=activation).fit(X, y)
    assert model.features(X).shape == (120, 32)
    assert model.score(X, y) > 0.4


def test_hidden_layer_sizes_shape_the_perceptron():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor, hidden_layer_sizes=[24, 12], columns=ColumnEncoder(0)).fit(X, y)
    widths = [m.out_features for m in model.backbone_.modules() if isinstance(m, nn.Linear)]
    assert widths == [24, 12]
    assert small(CFLLRegressor, hidden_layer_sizes=9).fit(X, y).features(X).shape == (120, 9)


@pytest.mark.slow
@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("c++", "g++", "clang++", "cl")),
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_backbone_predicts_the_same():
    X, y = data_for(CFLLRegressor)
    compiled = small(CFLLRegressor, compile=True, max_epochs=3).fit(X, y)
    plain = small(CFLLRegressor, max_epochs=3).fit(X, y)
    np.testing.assert_allclose(compiled.predict(X), plain.predict(X), rtol=1e-6)


class CountEpochs(Callback):
    """Counts what it hears."""

    def on_train_begin(self, net, **kwargs):
        self.epochs_ = self.batches_ = 0

    def on_epoch_end(self, net, **kwargs):
        self.epochs_ += 1

    def on_batch_end(self, net, **kwargs):
        self.batches_ += 1


@BOTH
def test_skorch_callbacks_hear_epochs_and_batches(Estimator):
    X, y = data_for(Estimator)
    counter = CountEpochs()
    silent = small(Estimator, batch_size=30).fit(X, y)
    heard = small(Estimator, batch_size=30, callbacks=[counter]).fit(X, y)
    assert counter.epochs_ == 8
    assert counter.batches_ == 8 * 4
    np.testing.assert_allclose(raw(heard, X), raw(silent, X), rtol=1e-12)


def test_skorch_callbacks_may_have_names():
    X, y = data_for(CFLLRegressor)
    counter = CountEpochs()
    small(CFLLRegressor, callbacks=[("counter", counter)]).fit(X, y)
    assert counter.epochs_ == 8


def test_skorch_scoring_lands_in_the_history_of_the_net():
    X, y = data_for(CFLLRegressor)
    scoring = EpochScoring(lambda net, X, y: 42.0, name="answer", on_train=True, use_caching=False)
    model = small(CFLLRegressor, callbacks=[scoring]).fit(X, y)
    assert model.net_.history[:, "answer"] == [42.0] * 8


# -- randomness -------------------------------------------------------------------------------


@BOTH
def test_same_seed_same_result_to_the_last_bit(Estimator):
    X, y = data_for(Estimator, 250)
    options = {"batch_size": 50, "dropout": 0.2, "hidden_layer_sizes": (16, 16)}
    first = raw(small(Estimator, random_state=3, **options).fit(X, y), X)
    np.random.seed(torch.randint(99, ()).item())
    np.testing.assert_array_equal(
        raw(small(Estimator, random_state=3, **options).fit(X, y), X), first
    )
    other = raw(small(Estimator, random_state=4, **options).fit(X, y), X)
    assert not np.allclose(other, first)


@BOTH
def test_random_state_instance_advances(Estimator):
    X, y = data_for(Estimator)
    generator = np.random.RandomState(0)
    first = raw(small(Estimator, random_state=generator).fit(X, y), X)
    second = raw(small(Estimator, random_state=generator).fit(X, y), X)
    again = raw(small(Estimator, random_state=np.random.RandomState(0)).fit(X, y), X)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


@BOTH
def test_no_random_state_means_fresh_seeds(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, random_state=None)
    np.random.seed(0)
    torch.manual_seed(0)
    first = raw(model.fit(X, y), X)
    np.random.seed(0)
    torch.manual_seed(0)
    assert not np.allclose(raw(model.fit(X, y), X), first)


def rebuild(model, X, y):
    model.__setstate__(model.__getstate__())


METHODS = {
    "fit": lambda model, X, y: model.fit(X, y),
    "fit_without_seed": lambda model, X, y: model.set_params(random_state=None).fit(X, y),
    "partial_fit": lambda model, X, y: model.partial_fit(X, y),
    "predict": lambda model, X, y: model.predict(X),
    "score": lambda model, X, y: model.score(X, y),
    "features": lambda model, X, y: model.features(X),
    "adapt": lambda model, X, y: model.adapt(X, y),
    "to_torch": lambda model, X, y: model.to_torch(),
    "pickling": rebuild,
}


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_global_state_of_torch_and_numpy_is_left_alone(Estimator, method):
    X, y = data_for(Estimator, 220)
    model = small(Estimator, dropout=0.3, hidden_layer_sizes=(16, 16), batch_size=40, max_epochs=2)
    model.fit(X, y)

    def state():
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
        )

    before = state()
    METHODS[method](model, X, y)
    assert state() == before


def test_global_state_is_left_alone_where_fit_fails():
    X, y = data_for(CFLLRegressor)
    before = torch.get_rng_state(), str(np.random.get_state())
    with pytest.raises(FloatingPointError):
        small(
            CFLLRegressor,
            hidden_layer_sizes=(32, 32),
            optimizer="sgd",
            learning_rate=1e12,
            batch_size=32,
        ).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


# -- silence and progress -----------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_said_at_verbose_0(Estimator, method, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    X, y = data_for(Estimator, 220)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(Estimator, max_epochs=2).fit(X, y)
        METHODS[method](model, X, y)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not list(tmp_path.iterdir())


@BOTH
def test_verbose_1_shows_one_bar_on_stderr(Estimator, capfd):
    X, y = data_for(Estimator, 220)
    small(Estimator, verbose=1, max_epochs=3).fit(X, y)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "3/3" in captured.err
    for word in ("epoch", "train=", "valid=", "rate="):
        assert word in captured.err


@BOTH
def test_verbose_2_prints_the_table_of_skorch(Estimator, capfd):
    X, y = data_for(Estimator, 220)
    small(Estimator, verbose=2, max_epochs=3).fit(X, y)
    lines = capfd.readouterr().out.splitlines()
    for column in ("epoch", "train_loss", "valid_loss", "learning_rate", "dur"):
        assert column in lines[0]
    assert len(lines) == 2 + 3


@pytest.mark.parametrize("n_rows", [60, 400], ids=["float64", "float32"])
def test_read_only_arrays_pass_without_a_warning(n_rows):
    """As joblib's memory maps are; torch warns once a process unless asked to do so always."""
    X, y = make_regression(n_rows, 4, random_state=0)
    weights = np.ones(n_rows)
    for array in (X, y, weights):
        array.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = CFLLRegressor(max_epochs=1, normalize_y=False, random_state=0)
            model.fit(X, y, sample_weight=weights).predict(X)
    finally:
        torch.set_warn_always(always)
