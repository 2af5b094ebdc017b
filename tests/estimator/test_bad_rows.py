"""Bad rows, targets and weights: errors name the argument and the remedy."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from torch.utils.data import TensorDataset

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import MLPBackbone
from small_tables import few_rows, quick, with_value

# -- X ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_inputs_that_are_not_finite(Estimator, value, name):
    X, y = few_rows(Estimator)
    bad = with_value(X, value)
    # NaN is a gap where the columns are encoded.
    options = {} if name == "infinity" else {"columns": "passthrough"}
    with pytest.raises(ValueError, match=f"Input X contains {name}"):
        quick(Estimator, **options).fit(bad, y)
    model = quick(Estimator, **options).fit(X, y)
    for call in (model.predict, model.features):
        with pytest.raises(ValueError, match=f"Input X contains {name}"):
            call(bad)


@pytest.mark.parametrize("kind", ["tensor", "sparse", "dataset"])
def test_infinite_inputs_in_other_containers(kind):
    X, y = few_rows(CFLLRegressor)
    value = np.inf
    bad = with_value(X, value)
    if kind == "tensor":
        bad = torch.as_tensor(bad)
    elif kind == "sparse":
        bad = scipy.sparse.csr_matrix(bad)
    else:
        bad = TensorDataset(torch.as_tensor(bad), torch.as_tensor(y))
    # A data set is read batch by batch: there the loss shows it, at that batch.
    with pytest.raises((ValueError, FloatingPointError), match=r"NaN|infinity|not finite"):
        quick(CFLLRegressor).fit(bad, y)


@BOTH
def test_inputs_of_one_dimension(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"(?s)Expected 2D array.*reshape\(-1, 1\)"):
        quick(Estimator).fit(X[:, 0], y)


@BOTH
def test_images_without_a_backbone(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match="Found array with dim 3"):
        quick(Estimator).fit(X.reshape(-1, 2, 3), y)


def test_images_with_a_perceptron_recipe():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(
        ValueError, match=r"An MLP needs samples of shape.*\(2, 3\).*`backbone` for images"
    ):
        CFLLRegressor(MLPBackbone((4,))).fit(X.reshape(-1, 2, 3), y)


@BOTH
@pytest.mark.parametrize("method", ["predict", "features", "score", "partial_fit", "adapt"])
def test_another_number_of_columns_than_at_fit(Estimator, method):
    X, y = few_rows(Estimator)
    model = quick(Estimator).fit(X, y)
    arguments = (X[:, :4], y) if method in ("score", "partial_fit", "adapt") else (X[:, :4],)
    with pytest.raises(ValueError, match=r"X has 4 features.*expecting 6 features"):
        getattr(model, method)(*arguments)


@pytest.mark.parametrize("method", ["predict", "features", "score", "adapt"])
def test_a_few_plain_numbers_are_seen_as_in_any_other_container(method):
    X, y = few_rows(CFLLRegressor)
    model = quick(CFLLRegressor).fit(X, y)
    given = {
        "list": X[:3].tolist(),
        "fortran": np.asfortranarray(X[:3]),
        "swapped": X[:3].astype(">f8"),
    }

    def seen(rows):
        found = copy.deepcopy(model)
        arguments = (rows, y[:3]) if method in ("score", "adapt") else (rows,)
        result = getattr(found, method)(*arguments)
        return found.predict(X) if method == "adapt" else result

    for rows in given.values():  # plain arrays of a few rows are predicted in NumPy
        np.testing.assert_allclose(seen(rows), seen(X[:3].copy()), rtol=1e-12)


@BOTH
@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinity_in_one_row_to_predict(Estimator, value):
    X, y = few_rows(Estimator)
    model, row = quick(Estimator).fit(X, y), X[:1].copy()
    row[0, 2] = value
    with pytest.raises(ValueError, match="Input X contains infinity in column 2, row 0"):
        model.predict(row)


@BOTH
def test_no_rows(Estimator):
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 2 is required"):
        quick(Estimator).fit(np.empty((0, 3)), np.empty(0))


@BOTH
def test_no_columns(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"0 feature\(s\).*minimum of 1 is required"):
        quick(Estimator).fit(X[:, :0], y)


@BOTH
def test_one_row(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"1 sample.*minimum of 2 is required"):
        quick(Estimator).fit(X[:1], y[:1])


def test_empty_dataset():
    empty = TensorDataset(torch.empty(0, 3), torch.empty(0))
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 2"):
        quick(CFLLRegressor).fit(empty, np.empty(0))


@BOTH
def test_no_rows_to_predict(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 1"):
        quick(Estimator).fit(X, y).predict(X[:0])


@BOTH
def test_columns_of_strings(Estimator):
    X, y = few_rows(Estimator)
    words = pd.DataFrame(X).astype(object)
    words[2] = "Oslo"
    for options in ({"columns": "passthrough"}, {"categorical_features": None}):
        with pytest.raises(ValueError, match="'Oslo'"):
            quick(Estimator, **options).fit(words, y)


@BOTH
def test_columns_of_objects_that_are_numbers_work(Estimator):
    X, y = few_rows(Estimator)
    plain = quick(Estimator).fit(X, y).predict(X)
    np.testing.assert_array_equal(quick(Estimator).fit(X.astype(object), y).predict(X), plain)


@BOTH
def test_complex_inputs(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match="Complex data not supported"):
        quick(Estimator).fit(X * 1j, y)


@BOTH
@pytest.mark.parametrize("value", [0.0, 1.0, 1e8, 0.1])
def test_constant_column_may_shift_at_prediction(Estimator, value):
    X, y = few_rows(Estimator)
    # A mean of equal values is rounded: what is left must not pass for a deviation.
    X = np.column_stack([X, np.full(len(X), value)])
    model = quick(Estimator).fit(X, y)
    shifted = X + np.array([0, 0, 0, 0, 0, 0, 1e-3 * max(value, 1)])
    raw = model.predict if Estimator is CFLLRegressor else model.decision_function
    assert np.isfinite(raw(X)).all()
    spread = np.ptp(raw(X))
    # A shift by one part in a thousand moves predictions, but does not blow them up.
    assert np.abs(raw(shifted) - raw(X)).max() < (0.01 if value < 1e6 else 20) * spread


def test_nearly_constant_column_does_not_blow_up():
    X, y = few_rows(CFLLRegressor)
    noise = np.random.default_rng(0).normal(size=len(X))
    X = np.column_stack([X, 1e6 + 1e-11 * noise])  # constant to within rounding
    model = quick(CFLLRegressor).fit(X, y)
    shifted = X + np.array([0, 0, 0, 0, 0, 0, 1.0])
    assert np.abs(model.predict(shifted) - model.predict(X)).max() < np.ptp(y)


@BOTH
def test_all_columns_constant(Estimator):
    X, y = few_rows(Estimator)
    model = quick(Estimator).fit(np.ones_like(X), y)
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(model.predict(np.ones_like(X)), y.mean(), rtol=1e-6)
    else:
        share = model.predict_proba(np.ones_like(X))
        assert np.all(share == share[0])


@BOTH
def test_huge_inputs_work(Estimator):
    X, y = few_rows(Estimator)
    model = quick(Estimator, precision="float64")
    plain, huge = model.fit(X, y).predict(X), model.fit(1e100 * X, y).predict(1e100 * X)
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(huge, plain, rtol=1e-6)
    else:
        np.testing.assert_array_equal(huge, plain)


# -- y ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_no_targets(Estimator, method):
    X, _ = few_rows(Estimator)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        getattr(quick(Estimator), method)(X, None)


@BOTH
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_targets_that_are_not_finite(Estimator, value, name):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=f"Input y contains {name}"):
        quick(Estimator).fit(X, with_value(y, value))


@BOTH
def test_targets_of_another_length(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        quick(Estimator).fit(X, y[:-1])


def test_targets_of_another_length_than_the_dataset():
    X, y = few_rows(CFLLRegressor)
    dataset = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    with pytest.raises(ValueError, match="X has 60 samples, y has 59"):
        quick(CFLLRegressor).fit(dataset, y[:-1])


def test_targets_of_strings_in_regression():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(ValueError, match="could not convert string to float"):
        quick(CFLLRegressor).fit(X, np.where(y > y.mean(), "high", "low"))


def test_continuous_targets_in_classification():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        quick(CFLLClassifier).fit(X, y)


def test_one_class():
    X, y = few_rows(CFLLClassifier)
    with pytest.raises(ValueError, match="at least two classes, but y holds one class"):
        quick(CFLLClassifier).fit(X, np.ones_like(y))


def test_several_columns_of_classes():
    X, y = few_rows(CFLLClassifier)
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        quick(CFLLClassifier).fit(X, np.column_stack([y, np.arange(60) % 3]))


def test_class_unknown_to_the_first_partial_fit():
    X, y = few_rows(CFLLClassifier)
    model = quick(CFLLClassifier).partial_fit(X, y)
    before = model.decision_function(X)
    with pytest.raises(ValueError, match=r"classes \[2\] that are not in classes_.*`classes`"):
        model.partial_fit(X, y + 1)
    np.testing.assert_array_equal(model.decision_function(X), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (with_value(X, np.inf), y), "Input X contains infinity"),
        (lambda X, y: (X[:, 1:], y), "X has 5 features"),
        (lambda X, y: (X, y[1:]), "inconsistent numbers of samples"),
        (
            lambda X, y: (X, y + 1),
            r"\[2\] that are not in classes_.*Drop these rows",
        ),
        (lambda X, y: (X, np.array([None] * len(y))), "missing values"),
    ],
)
def test_errors_in_held_out_rows_name_them(change, message):
    X, y = few_rows(CFLLClassifier)
    X_val, y_val = change(X, y)
    with pytest.raises(ValueError, match=rf"^In `X_val` and `y_val`.*: .*{message}"):
        quick(CFLLClassifier).fit(X, y, X_val=X_val, y_val=y_val)


def test_weights_that_are_all_zero_together():
    X, y = few_rows(CFLLClassifier)
    model = quick(CFLLClassifier, class_weight={0: 0.0})
    with pytest.raises(ValueError, match=r"`sample_weight` \(times .*\) is zero in every row"):
        model.fit(X, y, sample_weight=1.0 - y)


def test_class_not_among_those_given():
    X, y = few_rows(CFLLClassifier)
    with pytest.raises(ValueError, match=r"\[1\] that are not in classes_ \[0, 5\]"):
        quick(CFLLClassifier).partial_fit(X, y, classes=[0, 5])


@pytest.mark.parametrize("value", [0.0, 3.25, -1e9])
@pytest.mark.parametrize("options", [{}, {"batch_size": "full"}, {"memory": "statistics"}])
def test_constant_targets_are_predicted(value, options):
    X, _ = few_rows(CFLLRegressor)
    model = quick(CFLLRegressor, **options).fit(X, np.full(len(X), value))
    prediction, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(prediction, value, rtol=1e-9, atol=1e-9)
    assert np.isfinite(std).all()


def test_one_constant_target_among_others():
    X, y = few_rows(CFLLRegressor)
    model = quick(CFLLRegressor).fit(X, np.column_stack([y, np.full(60, 7.0)]))
    np.testing.assert_allclose(model.predict(X)[:, 1], 7.0, rtol=1e-9)


def test_number_of_targets_that_changes():
    X, y = few_rows(CFLLRegressor)
    model = quick(CFLLRegressor).fit(X, y)
    for method in (model.partial_fit, model.adapt):
        with pytest.raises(ValueError, match=r"y has shape \(60, 2\).*fitted on targets"):
            method(X, np.column_stack([y, y]))


@pytest.mark.parametrize("method", ["partial_fit", "adapt", "X_val"])
@pytest.mark.parametrize("trailing", [(), (1,)])
def test_a_target_that_was_a_row_and_is_a_column(method, trailing):
    X, y = few_rows(CFLLRegressor)
    model = quick(CFLLRegressor).fit(X, y.reshape(60, *trailing))
    other = y if trailing else y[:, None]
    call = {
        "partial_fit": lambda: model.partial_fit(X, other),
        "adapt": lambda: model.adapt(X, other),
        "X_val": lambda: model.fit(X, y.reshape(60, *trailing), X_val=X, y_val=other),
    }[method]
    with pytest.raises(ValueError, match=r"y has shape \(60.* was fitted on targets of shape \(n"):
        call()


# -- numbers of rows --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("n_rows", [2, 3, 5])
def test_fewer_rows_than_a_batch_work(Estimator, n_rows):
    X, _ = few_rows(Estimator)
    y = np.arange(n_rows) % 2
    model = quick(Estimator, batch_size=256).fit(X[:n_rows], y)
    assert model.predict(X).shape == (60,)


@BOTH
def test_fewer_than_ten_rows_with_early_stopping(Estimator):
    X, _ = few_rows(Estimator)
    y = np.arange(9) % 2
    with pytest.raises(ValueError, match=r"`early_stopping`=True.*at least 10.*n_samples=9.*auto"):
        quick(Estimator, early_stopping=True).fit(X[:9], y)
    quick(Estimator, early_stopping=True).fit(X[:10], np.arange(10) % 2)


@BOTH
@pytest.mark.parametrize("given", ["X_val", "y_val"])
def test_half_a_validation_set(Estimator, given):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match="Give both `X_val` and `y_val`, or neither"):
        quick(Estimator).fit(X, y, **{given: X if given == "X_val" else y})


@BOTH
def test_validation_set_of_another_width(Estimator):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r"X has 5 features.*expecting 6"):
        quick(Estimator).fit(X, y, X_val=X[:, :5], y_val=y)


# -- weights ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.zeros(60), "(?i)sample.weight.*zero"),
        (-np.ones(60), "Negative values in data passed to `sample_weight`"),
        (np.ones(59), r"sample_weight.shape == \(59,\), expected \(60,\)"),
        (np.ones((60, 2)), "Sample weights must be 1D"),
        (np.full(60, np.nan), "sample_weight contains NaN"),
        (np.full(60, np.inf), "sample_weight contains infinity"),
    ],
    ids=["zero", "negative", "short", "matrix", "nan", "inf"],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_weights_that_make_no_sense(Estimator, weights, message, method):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=message):
        getattr(quick(Estimator), method)(X, y, sample_weight=weights)


@pytest.mark.parametrize("class_weight", [{0: 1, 9: 2}, {0: -1, 1: 1}])
def test_class_weights_that_make_no_sense(class_weight):
    X, y = few_rows(CFLLClassifier)
    with pytest.raises(ValueError, match=r"class_weight|9|[Nn]egative"):
        quick(CFLLClassifier, class_weight=class_weight).fit(X, y)
