"""Labels of a classifier: checks, encoding as indicators, and weights of classes."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import Any

import numpy as np
from sklearn.exceptions import DataConversionWarning
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils import check_array, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .._warnings import user_level
from .arrays import as_targets, check_labels

__all__ = ["check_classes", "checked_labels", "class_weights", "classes_of", "indicators"]


def checked_labels(y: Any, estimator: Any) -> tuple[np.ndarray, str]:
    """Labels and their kind, see :func:`sklearn.utils.multiclass.type_of_target`."""
    if y.ndim == 2 and y.shape[1] == 1:
        warnings.warn(
            "A column-vector y was passed when a 1d array was expected. Please change the "
            "shape of y to (n_samples,), for example using ravel().",
            DataConversionWarning,
            stacklevel=user_level(),
        )
        y = y.ravel()
    if y.dtype.kind in "fc":
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y", estimator=estimator)
    y = check_labels(y, "y")
    check_classification_targets(y)
    kind = type_of_target(y, input_name="y")
    if kind == "multiclass-multioutput":
        raise ValueError(
            "y holds several columns of classes. Fit one classifier per column (for example "
            "sklearn.multioutput.MultiOutputClassifier); columns of 0 and 1 are multilabel."
        )
    return y, kind


def classes_of(y: np.ndarray, given: np.ndarray | None, multilabel: bool) -> np.ndarray:
    """Sorted unique labels: those ``given``, or those of y."""
    classes: np.ndarray = unique_labels(y) if given is None else given
    if len(classes) < 2 and not multilabel:
        source = "y" if given is None else "`classes`"
        raise ValueError(
            f"CFLLClassifier needs at least two classes, but {source} holds one class: "
            f"{classes[0]!r}."
        )
    return classes


def indicators(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Indicators of the classes; of two classes that of the second, as one column."""
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(
            f"y holds classes {unknown.tolist()} that are not in classes_ {classes.tolist()}. "
            "Drop these rows, or `fit` on rows of all classes. In a stream, pass all of them as "
            "`classes` to the first `partial_fit`."
        )
    found = LabelBinarizer().fit(classes).transform(y)
    return found[:, 0] * 1.0 if len(classes) == 2 else found * 1.0


def check_classes(classes: Any) -> np.ndarray:
    """Sorted unique labels of ``partial_fit(classes=)``."""
    given = as_targets(classes, "classes")
    if given.ndim != 1 or not len(given):
        raise ValueError(
            f"`classes` must be a list of all labels that will occur in y, got {classes!r}."
        )
    return unique_labels(check_labels(given, "classes"))


def class_weights(
    estimator: Any, y: np.ndarray, sample_weight: np.ndarray | None
) -> np.ndarray | None:
    """Sample weights times the weights of each row's class, by the parameter ``class_weight``."""
    if estimator.class_weight is None:
        return sample_weight
    if estimator.class_weight != "balanced":
        weights = _given_weights(estimator, y)
        return weights if sample_weight is None else weights * sample_weight
    if estimator.class_weight == "balanced" and sample_weight is not None and y.ndim == 1:
        # Weights are numbers of repetitions, so balance the weighted class sizes.
        codes = np.unique(y, return_inverse=True)[1]
        sizes = np.bincount(codes, sample_weight)
        present = np.count_nonzero(sizes)
        share = np.divide(sample_weight.sum(), present * sizes, where=sizes > 0, out=sizes * 0)
        return sample_weight * share[codes]
    weights = compute_sample_weight(estimator.class_weight, y)
    return weights if sample_weight is None else weights * sample_weight


def _given_weights(estimator: Any, y: np.ndarray) -> np.ndarray:
    """Weight of each row from a dict, or from one dict per label for multilabel targets."""
    given = estimator.class_weight
    if not estimator.multilabel_ and isinstance(given, dict):
        return _weights_of(given, estimator.classes_)[np.searchsorted(estimator.classes_, y)]
    if not estimator.multilabel_:
        raise ValueError(
            f"`class_weight` may be a list for multilabel targets only, got {given!r}, but y "
            "has one column. Pass one dict."
        )
    k = y.shape[1]
    if not isinstance(given, list) or len(given) != k:
        raise ValueError(
            f'`class_weight` must be "balanced" or a list of {k} dicts, one for each label of '
            f"the multilabel y, such as [{{0: 1, 1: 5}}, ...], got {given!r}."
        )
    labels = [_weights_of(each, np.arange(2)) for each in given]
    columns = zip(labels, y.astype(np.int64).T, strict=True)
    return np.prod([weights[column] for weights, column in columns], axis=0)


def _weights_of(given: Any, classes: np.ndarray) -> np.ndarray:
    """Weight of each class; one where none is given, as in scikit-learn."""
    if not isinstance(given, dict):
        raise ValueError(f"`class_weight` must hold dicts, got {given!r}.")
    for label, weight in given.items():
        if not isinstance(weight, Real) or not 0 <= float(weight) < np.inf:
            raise ValueError(
                "`class_weight` must hold finite, non-negative weights, got "
                f"{weight!r} for class {label!r}."
            )
    known = classes.tolist()
    unknown = [label for label in given if label not in known]
    missing = [label for label in known if label not in given]
    if unknown and missing:
        raise ValueError(
            f"`class_weight` holds weights of {unknown}, which are not classes, but none of "
            f"the classes {missing}. The classes are {known}."
        )
    return np.array([float(given.get(label, 1.0)) for label in known])
