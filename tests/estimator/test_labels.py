"""Classes, labels and class weights in any container, and values that cannot be labels."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sklearn_cfll import CFLLClassifier
from small_tables import DATES, LABELS, SMALL, X


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: pd.Series(y).astype("category"),
        lambda y: pd.Series(y, dtype="string"),
        pd.Series,
        lambda y: pl.Series(y.tolist()),
        lambda y: pl.Series(y.tolist(), dtype=pl.Categorical),
        lambda y: pa.array(y.tolist()),
        lambda y: pa.array(y.tolist()).dictionary_encode(),
        list,
    ],
)
def test_labels_in_any_container(convert):
    model = CFLLClassifier(**SMALL).fit(X, convert(LABELS))
    expected = CFLLClassifier(**SMALL).fit(X, LABELS)
    np.testing.assert_array_equal(model.classes_.astype(str), expected.classes_)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    model.partial_fit(X, convert(LABELS), classes=convert(np.unique(LABELS)))


@pytest.mark.parametrize("labels", [LABELS, np.arange(60) % 2])
def test_classes_of_zero_weight_stay(labels):
    classes = np.unique(labels)
    weight = (labels != classes[-1]) * 1.0
    for options in ({"sample_weight": weight}, {}):
        by_class = {"class_weight": dict(zip(classes, [1, 1, 0][-len(classes) :], strict=True))}
        model = CFLLClassifier(**SMALL, **({} if options else by_class)).fit(X, labels, **options)
        np.testing.assert_array_equal(model.classes_, classes)
        share = model.predict_proba(X)
        assert share.shape == (60, len(classes)) and share[:, -1].max() < 0.1
        assert not (model.predict(X) == classes[-1]).any()


def test_other_classes_in_a_later_partial_fit():
    model = CFLLClassifier(**SMALL).partial_fit(X, LABELS, classes=["Wien", "Oslo", "Rome", "Bern"])
    model.partial_fit(X, LABELS, classes=["Bern", "Oslo", "Rome", "Wien"])
    before = model.decision_function(X)
    for other in (["Oslo", "Rome", "Wien"], ["Oslo", "Rome", "Wien", "Paris"]):
        with pytest.raises(ValueError, match="is not the same as on last call to partial_fit, was"):
            model.partial_fit(X, LABELS, classes=other)
    np.testing.assert_array_equal(model.decision_function(X), before)
    with pytest.raises(ValueError, match="is not the same as on last call"):
        CFLLClassifier(**SMALL).fit(X, LABELS).partial_fit(X, LABELS, classes=["Oslo", "Rome"])


MISSING = [None, np.nan, np.float32("nan"), complex("nan"), pd.NA, pd.NaT]
MISSING += [np.datetime64("NaT"), Decimal("nan"), Decimal("snan")]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_labels(missing):
    labels = LABELS.astype(object)
    labels[4] = missing
    numbers = np.arange(60).astype(object) % 2
    numbers[4] = missing
    given = [labels, pd.Series(labels), numbers]
    if any(missing is known for known in (None, np.nan, pd.NA, pd.NaT)):
        given.append(pd.Series(labels.tolist(), dtype="category"))
    if any(missing is known for known in (None, np.nan, pd.NA)):
        given.append(pd.Series(labels, dtype="string"))
    if isinstance(missing, np.datetime64):
        given = [np.where(np.arange(60) == 4, missing, DATES.to_numpy())]
    for y in given:
        for call in (CFLLClassifier().fit, CFLLClassifier().partial_fit):
            with pytest.raises(ValueError, match=r"Input y contains missing values: .* in row 4"):
                call(X, y)
    with pytest.raises(ValueError, match="Input classes contains missing values"):
        CFLLClassifier().partial_fit(X, LABELS, classes=labels)


def test_labels_that_are_no_labels():
    for value, kind in (
        (pd.Timestamp("2020", tz="UTC"), "Timestamp"),
        (pd.Period("2020", "D"), "Period"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (Decimal(1), r"decimal\.Decimal"),
        (True, "bool"),
    ):
        y = np.array([value] * 60, dtype=object)
        with pytest.raises(ValueError, match=rf"Unknown label type: y .*{kind}\).*astype\(str\)"):
            CFLLClassifier().fit(X, y)
    for classes in ([], np.array([]), 0, "Oslo", {"Oslo", "Rome"}, [["Oslo", "Rome", "Wien"]]):
        with pytest.raises(ValueError, match="`classes` must be a list of all labels"):
            CFLLClassifier().partial_fit(X, LABELS, classes=classes)
    with pytest.raises(ValueError, match="at least two classes, but `classes` holds one class"):
        CFLLClassifier().partial_fit(X, LABELS, classes=["Oslo"])


def test_labels_of_two_kinds():
    with pytest.raises(ValueError, match="y mixes strings and other labels: 'Oslo' and 3"):
        CFLLClassifier().fit(X, np.array(["Oslo", 3], dtype=object)[np.arange(60) % 2])


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1, "much", None])
def test_class_weights_that_are_no_weights(weight):
    with pytest.raises(ValueError, match="`class_weight` must hold finite, non-neg.*class 'Rome'"):
        CFLLClassifier(class_weight={"Oslo": 1, "Rome": weight, "Wien": 1}).fit(X, LABELS)


def test_class_weights_of_no_classes():
    with pytest.raises(ValueError, match=r"\['Bern'\], which are not classes, .* \['Rome'"):
        CFLLClassifier(class_weight={"Oslo": 1, "Bern": 2}).fit(X, LABELS)
    plain = CFLLClassifier(**SMALL).fit(X, LABELS).predict_proba(X)
    everything = dict.fromkeys([*np.unique(LABELS), "Bern"], 1)
    for weights in ({}, everything):  # as in scikit-learn
        model = CFLLClassifier(**SMALL, class_weight=weights).fit(X, LABELS)
        np.testing.assert_array_equal(model.predict_proba(X), plain)


def test_class_weights_of_several_labels():
    y = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    weights = [{0: 1, 1: 3}, {1: 2}]
    model = CFLLClassifier(**SMALL, class_weight=weights).fit(X, y)
    same = CFLLClassifier(**SMALL).fit(X, y, np.array([1, 3])[y[:, 0]] * np.array([1, 2])[y[:, 1]])
    np.testing.assert_array_equal(model.predict_proba(X), same.predict_proba(X))
    for wrong, message in (
        ({0: 1, 1: 3}, '"balanced" or a list of 2 dicts'),
        (weights[:1], "a list of 2 dicts"),
        ([{0: 1}, None], "must hold dicts, got None"),
        ([{0: 1}, {1: np.nan}], "finite, non-negative weights.*nan for class 1"),
    ):
        with pytest.raises(ValueError, match=f"`class_weight` {message}|`class_weight`.*{message}"):
            CFLLClassifier(class_weight=wrong).fit(X, y)
    with pytest.raises(ValueError, match="`class_weight` may be a list for multilabel targets"):
        CFLLClassifier(class_weight=weights).fit(X, LABELS)
