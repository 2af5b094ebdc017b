"""Labels, probabilities and class weights of CFLLClassifier."""

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, make_classification, make_multilabel_classification
from sklearn.utils import compute_sample_weight

from helpers import small, string_labels
from sklearn_cfll import CFLLClassifier, ColumnEncoder


def binary():
    return load_breast_cancer(return_X_y=True)


@pytest.mark.parametrize("dataset", [binary, string_labels])
def test_classifier_predicts_its_own_labels(dataset):
    X, y = dataset()
    model = small(CFLLClassifier, max_epochs=20).fit(X[::2], y[::2])
    np.testing.assert_array_equal(model.classes_, np.unique(y))
    assert model.predict(X).dtype == model.classes_.dtype
    assert model.score(X[1::2], y[1::2]) > 0.93


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
    X, y = make_multilabel_classification(600, n_classes=4, random_state=0)
    model = small(CFLLClassifier, max_epochs=20).fit(X[:300], y[:300])
    probabilities = model.predict_proba(X)
    assert model.predict(X).shape == probabilities.shape == y.shape
    assert model.n_outputs_ == 4
    np.testing.assert_array_equal(model.predict(X), probabilities > 0.5)
    commonest = np.maximum(y.mean(0), 1 - y.mean(0)).mean()
    assert (model.predict(X) == y)[300:].mean() > commonest + 0.2


def test_probabilities_are_calibrated_on_fresh_rows():
    X, y = make_classification(3000, n_features=8, n_informative=5, flip_y=0.3, random_state=0)
    model = small(CFLLClassifier, max_epochs=15, columns=ColumnEncoder(0)).fit(X[:2000], y[:2000])
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
