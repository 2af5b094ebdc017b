"""Bad input: errors name the argument and the remedy, and an earlier fit survives them."""

import copy

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.datasets import make_classification, make_friedman1
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import MLPBackbone

BOTH = pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])


def small(Estimator, **parameters):
    defaults = {"max_epochs": 5, "random_state": 0}
    if "backbone" not in parameters:
        defaults["hidden_layer_sizes"] = (16,)
    return Estimator(**{**defaults, **parameters})


def data_for(Estimator, n_rows=60):
    if Estimator is CFLLRegressor:
        return make_friedman1(n_rows, n_features=6, random_state=0)
    return make_classification(n_rows, n_features=6, n_informative=4, random_state=0)


def with_value(array, value):
    array = np.array(array, dtype=np.float64)
    array.flat[7] = value
    return array


# -- X ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_inputs_that_are_not_finite(Estimator, value, name):
    X, y = data_for(Estimator)
    bad = with_value(X, value)
    with pytest.raises(ValueError, match=f"Input X contains {name}"):
        small(Estimator).fit(bad, y)
    model = small(Estimator).fit(X, y)
    for call in (model.predict, model.features):
        with pytest.raises(ValueError, match=f"Input X contains {name}"):
            call(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["tensor", "sparse", "dataset"])
def test_inputs_that_are_not_finite_in_other_containers(kind, value):
    X, y = data_for(CFLLRegressor)
    bad = with_value(X, value)
    if kind == "tensor":
        bad = torch.as_tensor(bad)
    elif kind == "sparse":
        bad = scipy.sparse.csr_matrix(bad)
    else:
        bad = TensorDataset(torch.as_tensor(bad), torch.as_tensor(y))
    # A data set is read batch by batch: there the loss shows it, at that batch.
    with pytest.raises((ValueError, FloatingPointError), match=r"NaN|infinity|not finite"):
        small(CFLLRegressor).fit(bad, y)


@BOTH
def test_inputs_of_one_dimension(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"(?s)Expected 2D array.*reshape\(-1, 1\)"):
        small(Estimator).fit(X[:, 0], y)


@BOTH
def test_images_without_a_backbone(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match="3"):
        small(Estimator).fit(X.reshape(-1, 2, 3), y)


def test_images_with_a_perceptron_recipe():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(
        ValueError, match=r"An MLP needs samples of shape.*\(2, 3\).*`backbone` for images"
    ):
        CFLLRegressor(MLPBackbone((4,))).fit(X.reshape(-1, 2, 3), y)


@BOTH
@pytest.mark.parametrize("method", ["predict", "features", "score", "partial_fit", "adapt"])
def test_another_number_of_columns_than_at_fit(Estimator, method):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(X, y)
    arguments = (X[:, :4], y) if method in ("score", "partial_fit", "adapt") else (X[:, :4],)
    with pytest.raises(ValueError, match=r"X has 4 features.*expecting 6 features"):
        getattr(model, method)(*arguments)


@BOTH
def test_no_rows(Estimator):
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 2 is required"):
        small(Estimator).fit(np.empty((0, 3)), np.empty(0))


@BOTH
def test_no_columns(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"0 feature\(s\).*minimum of 1 is required"):
        small(Estimator).fit(X[:, :0], y)


@BOTH
def test_one_row(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"1 sample.*minimum of 2 is required"):
        small(Estimator).fit(X[:1], y[:1])


def test_empty_dataset():
    empty = TensorDataset(torch.empty(0, 3), torch.empty(0))
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 2"):
        small(CFLLRegressor).fit(empty, np.empty(0))


@BOTH
def test_no_rows_to_predict(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"0 sample\(s\).*minimum of 1"):
        small(Estimator).fit(X, y).predict(X[:0])


@BOTH
def test_columns_of_words(Estimator):
    X, y = data_for(Estimator)
    words = pd.DataFrame(X).astype(object)
    words[2] = "Oslo"
    with pytest.raises(ValueError, match="could not convert string to float: 'Oslo'"):
        small(Estimator).fit(words, y)


@BOTH
def test_columns_of_objects_that_are_numbers_work(Estimator):
    X, y = data_for(Estimator)
    plain = small(Estimator).fit(X, y).predict(X)
    np.testing.assert_array_equal(small(Estimator).fit(X.astype(object), y).predict(X), plain)


@BOTH
def test_complex_inputs(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match="Complex data not supported"):
        small(Estimator).fit(X * 1j, y)


@BOTH
@pytest.mark.parametrize("value", [0.0, 1.0, 1e8, 0.1])
def test_constant_column_may_shift_at_prediction(Estimator, value):
    X, y = data_for(Estimator)
    # A mean of equal values is rounded: what is left must not pass for a deviation.
    X = np.column_stack([X, np.full(len(X), value)])
    model = small(Estimator).fit(X, y)
    shifted = X + np.array([0, 0, 0, 0, 0, 0, 1e-3 * max(value, 1)])
    raw = model.predict if Estimator is CFLLRegressor else model.decision_function
    assert np.isfinite(raw(X)).all()
    spread = np.ptp(raw(X))
    # A shift by one part in a thousand moves predictions, but does not blow them up.
    assert np.abs(raw(shifted) - raw(X)).max() < (spread if value < 1e6 else 1e6 * spread)


def test_nearly_constant_column_does_not_blow_up():
    X, y = data_for(CFLLRegressor)
    noise = np.random.default_rng(0).normal(size=len(X))
    X = np.column_stack([X, 1e6 + 1e-11 * noise])  # constant to within rounding
    model = small(CFLLRegressor).fit(X, y)
    shifted = X + np.array([0, 0, 0, 0, 0, 0, 1.0])
    assert np.abs(model.predict(shifted) - model.predict(X)).max() < np.ptp(y)


@BOTH
def test_all_columns_constant(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator).fit(np.ones_like(X), y)
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(model.predict(np.ones_like(X)), y.mean(), rtol=1e-6)
    else:
        share = model.predict_proba(np.ones_like(X))
        assert np.all(share == share[0])


@BOTH
def test_huge_inputs_work(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, precision="float64")
    plain, huge = model.fit(X, y).predict(X), model.fit(1e100 * X, y).predict(1e100 * X)
    if Estimator is CFLLRegressor:
        np.testing.assert_allclose(huge, plain, rtol=1e-6)
    else:
        np.testing.assert_array_equal(huge, plain)


# -- y ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_no_targets(Estimator, method):
    X, _ = data_for(Estimator)
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        getattr(small(Estimator), method)(X, None)


@BOTH
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_targets_that_are_not_finite(Estimator, value, name):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=f"Input y contains {name}"):
        small(Estimator).fit(X, with_value(y, value))


@BOTH
def test_targets_of_another_length(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[60, 59\]"):
        small(Estimator).fit(X, y[:-1])


def test_targets_of_another_length_than_the_dataset():
    X, y = data_for(CFLLRegressor)
    dataset = TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    with pytest.raises(ValueError, match="X has 60 samples, y has 59"):
        small(CFLLRegressor).fit(dataset, y[:-1])


def test_targets_of_words_in_regression():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(ValueError, match="could not convert string to float"):
        small(CFLLRegressor).fit(X, np.where(y > y.mean(), "high", "low"))


def test_continuous_targets_in_classification():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        small(CFLLClassifier).fit(X, y)


def test_one_class():
    X, y = data_for(CFLLClassifier)
    with pytest.raises(ValueError, match="at least two classes, but y holds one class"):
        small(CFLLClassifier).fit(X, np.ones_like(y))


def test_several_columns_of_classes():
    X, y = data_for(CFLLClassifier)
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        small(CFLLClassifier).fit(X, np.column_stack([y, np.arange(60) % 3]))


def test_class_unknown_to_the_first_partial_fit():
    X, y = data_for(CFLLClassifier)
    model = small(CFLLClassifier).partial_fit(X, y)
    before = model.decision_function(X)
    with pytest.raises(ValueError, match=r"classes \[2\] that are not in classes_.*`classes`"):
        model.partial_fit(X, y + 1)
    np.testing.assert_array_equal(model.decision_function(X), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: (with_value(X, np.nan), y), "Input X contains NaN"),
        (lambda X, y: (X[:, 1:], y), "X has 5 features"),
        (lambda X, y: (X, y[1:]), "inconsistent numbers of samples"),
        (
            lambda X, y: (X, y + 1),
            r"\[2\] that are not in classes_.*Drop these rows",
        ),
        (lambda X, y: (X, np.array([None] * len(y))), "missing values"),
    ],
)
def test_faults_of_held_out_rows_are_told_as_theirs(change, message):
    X, y = data_for(CFLLClassifier)
    X_val, y_val = change(X, y)
    with pytest.raises(ValueError, match=rf"^In `X_val` and `y_val`.*: .*{message}"):
        small(CFLLClassifier).fit(X, y, X_val=X_val, y_val=y_val)


def test_weights_that_are_all_zero_together():
    X, y = data_for(CFLLClassifier)
    model = small(CFLLClassifier, class_weight={0: 0.0})
    with pytest.raises(ValueError, match=r"`sample_weight` \(times .*\) is zero in every row"):
        model.fit(X, y, sample_weight=1.0 - y)


def test_class_not_among_those_given():
    X, y = data_for(CFLLClassifier)
    with pytest.raises(ValueError, match=r"\[1\] that are not in classes_ \[0, 5\]"):
        small(CFLLClassifier).partial_fit(X, y, classes=[0, 5])


@pytest.mark.parametrize("value", [0.0, 3.25, -1e9])
@pytest.mark.parametrize("options", [{}, {"batch_size": "full"}, {"memory": "statistics"}])
def test_constant_targets_are_predicted(value, options):
    X, _ = data_for(CFLLRegressor)
    model = small(CFLLRegressor, **options).fit(X, np.full(len(X), value))
    prediction, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(prediction, value, rtol=1e-9, atol=1e-9)
    assert np.isfinite(std).all()


def test_one_constant_target_among_others():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor).fit(X, np.column_stack([y, np.full(60, 7.0)]))
    np.testing.assert_allclose(model.predict(X)[:, 1], 7.0, rtol=1e-9)


def test_number_of_targets_that_changes():
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor).fit(X, y)
    for method in (model.partial_fit, model.adapt):
        with pytest.raises(ValueError, match=r"y has shape \(60, 2\).*fitted on targets"):
            method(X, np.column_stack([y, y]))


@pytest.mark.parametrize("method", ["partial_fit", "adapt", "X_val"])
@pytest.mark.parametrize("trailing", [(), (1,)])
def test_a_target_that_was_a_row_and_is_a_column(method, trailing):
    X, y = data_for(CFLLRegressor)
    model = small(CFLLRegressor).fit(X, y.reshape(60, *trailing))
    other = y if trailing else y[:, None]
    call = {
        "partial_fit": lambda: model.partial_fit(X, other),
        "adapt": lambda: model.adapt(X, other),
        "X_val": lambda: model.fit(X, y.reshape(60, *trailing), X_val=X, y_val=other),
    }[method]
    with pytest.raises(ValueError, match="y has shape"):
        call()


# -- numbers of rows --------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("n_rows", [2, 3, 5])
def test_fewer_rows_than_a_batch_work(Estimator, n_rows):
    X, _ = data_for(Estimator)
    y = np.arange(n_rows) % 2
    model = small(Estimator, batch_size=256).fit(X[:n_rows], y)
    assert model.predict(X).shape == (60,)


@BOTH
def test_fewer_than_ten_rows_with_early_stopping(Estimator):
    X, _ = data_for(Estimator)
    y = np.arange(9) % 2
    with pytest.raises(ValueError, match=r"`early_stopping`=True.*at least 10.*n_samples=9.*auto"):
        small(Estimator, early_stopping=True).fit(X[:9], y)
    small(Estimator, early_stopping=True).fit(X[:10], np.arange(10) % 2)


@BOTH
@pytest.mark.parametrize("given", ["X_val", "y_val"])
def test_half_a_validation_set(Estimator, given):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match="Give both `X_val` and `y_val`, or neither"):
        small(Estimator).fit(X, y, **{given: X if given == "X_val" else y})


@BOTH
def test_validation_set_of_another_width(Estimator):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r"X has 5 features.*expecting 6"):
        small(Estimator).fit(X, y, X_val=X[:, :5], y_val=y)


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
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=message):
        getattr(small(Estimator), method)(X, y, sample_weight=weights)


@pytest.mark.parametrize("class_weight", [{0: 1, 9: 2}, {0: -1, 1: 1}])
def test_class_weights_that_make_no_sense(class_weight):
    X, y = data_for(CFLLClassifier)
    with pytest.raises(ValueError, match=r"class_weight|9|[Nn]egative"):
        small(CFLLClassifier, class_weight=class_weight).fit(X, y)


# -- backbones --------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [3, "mlp", [nn.Linear(6, 2)], object()])
def test_backbone_that_is_no_module(backbone):
    X, y = data_for(CFLLRegressor)
    with pytest.raises(TypeError, match=r"`backbone` must be None, a torch.nn.Module, a recipe"):
        CFLLRegressor(backbone).fit(X, y)


def test_callable_that_builds_no_module():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(TypeError, match=r"`backbone` must build a torch.nn.Module.*built a int"):
        CFLLRegressor(lambda input_shape: 3).fit(X, y)


class Returns(nn.Module):
    """A module whose output is what it is told."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(6, 4), function

    def forward(self, inputs):
        return self.function(self.linear(inputs))


@BOTH
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda out: out.long(), "must be a floating-point tensor.*torch.int64"),
        (lambda out: out.to(torch.complex128), "must be a floating-point tensor.*complex128"),
        (lambda out: (out, out), "must be a floating-point tensor.*got tuple"),
        (lambda out: {"features": out}, "must be a floating-point tensor.*got dict"),
        (lambda out: out.mean(), r"one row per sample: 2 samples gave shape \(\)"),
        (lambda out: out.sum(0), r"one row per sample: 2 samples gave shape \(4,\)"),
        (lambda out: out.relu().sum(1), r"at least one column of features.*shape \(2,\)"),
        (lambda out: out.relu()[:, :0], r"at least one column of features.*shape \(2, 0\)"),
    ],
    ids=["int", "complex", "tuple", "dict", "scalar", "no_rows", "one_dim", "no_columns"],
)
def test_backbone_whose_output_cannot_be_features(Estimator, function, message):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=f"backbone's output must.*{message}|{message}"):
        small(Estimator, backbone=Returns(function)).fit(X, y)


def test_backbone_for_samples_of_another_shape():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(ValueError, match=r"backbone cannot take samples of shape \(6,\)"):
        CFLLRegressor(nn.Linear(5, 4)).fit(X, y)


@pytest.mark.parametrize("backbone", [nn.Identity(), nn.Tanh()])
def test_backbone_without_parameters_works(backbone):
    X, y = data_for(CFLLRegressor)
    assert small(CFLLRegressor, backbone=backbone).fit(X, y).score(X, y) > 0.5


# -- devices ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_asked_for_where_there_is_none(Estimator, device):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match=r'`device`=.*cuda.*no usable CUDA.*device="cpu"'):
        small(Estimator, device=device).fit(X, y)


def test_device_nobody_has_heard_of():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(ValueError, match="`device`='abacus' is neither .* nor a torch device"):
        small(CFLLRegressor, device="abacus").fit(X, y)


# -- parameters -------------------------------------------------------------------------------


BAD_PARAMETERS = {
    "hidden_layer_sizes": 0,
    "activation": "step",
    "dropout": 1.0,
    "n_members": 0,
    "columns": "some",
    "ridge": -1.0,
    "decay": 1.5,
    "memory": "elephant",
    "update_order": "both",
    "optimizer": "newton",
    "learning_rate": 0.0,
    "weight_decay": -0.1,
    "learning_rate_schedule": "stairs",
    "batch_size": "half",
    "max_epochs": 0,
    "early_stopping": "sometimes",
    "validation_fraction": 1.0,
    "n_iter_no_change": 0,
    "tol": -1e-3,
    "refit_last_layer": "yes",
    "device": 3.5,
    "precision": "float16",
    "compile": "yes",
    "n_threads": 0,
    "callbacks": "progress",
    "warm_start": "yes",
    "random_state": "seed",
    "verbose": -1,
}


@BOTH
@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_parameters_that_are_not_allowed_are_named(Estimator, name):
    X, y = data_for(Estimator)
    with pytest.raises(
        InvalidParameterError, match=f"The '{name}' parameter of {Estimator.__name__}"
    ):
        Estimator(**{name: BAD_PARAMETERS[name]}).fit(X, y)


def test_every_parameter_has_a_bad_value_above():
    own = {"normalize_y", "linear_part", "class_weight"}
    parameters = {*CFLLRegressor().get_params(), *CFLLClassifier().get_params()}
    assert parameters - own - {"backbone"} == set(BAD_PARAMETERS)


@pytest.mark.parametrize(
    ("Estimator", "name", "value"),
    [(CFLLRegressor, "normalize_y", "yes"), (CFLLClassifier, "class_weight", "fair")],
)
def test_own_parameters_that_are_not_allowed_are_named(Estimator, name, value):
    X, y = data_for(Estimator)
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter"):
        Estimator(**{name: value}).fit(X, y)


@BOTH
@pytest.mark.parametrize("sizes", [(), (3, 0), (-1,), (2.5,), ("a",)])
def test_hidden_layer_sizes_that_are_no_widths(Estimator, sizes):
    X, y = data_for(Estimator)
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        Estimator(hidden_layer_sizes=sizes).fit(X, y)


@pytest.mark.parametrize("optimizer", [int, nn.Linear])
def test_class_that_is_no_optimizer(optimizer):
    X, y = data_for(CFLLRegressor)
    with pytest.raises((TypeError, ValueError), match="optimizer"):
        small(CFLLRegressor, optimizer=optimizer).fit(X, y)


# -- divergence -------------------------------------------------------------------------------


DIVERGES = {
    "optimizer": "sgd",
    "learning_rate": 1e12,
    "hidden_layer_sizes": (16, 16),
    "batch_size": 20,
    "early_stopping": False,
    "learning_rate_schedule": "constant",
    "max_epochs": 50,
}


@BOTH
@pytest.mark.parametrize("update_order", ["backbone_first", "last_layer_first"])
@pytest.mark.parametrize("refit", [True, False])
def test_divergence_stops_at_that_batch_and_names_the_rate(Estimator, update_order, refit):
    X, y = data_for(Estimator)
    model = small(Estimator, **DIVERGES, update_order=update_order, refit_last_layer=refit)
    with pytest.raises(
        FloatingPointError, match=r"diverged in epoch \d+: .*Lower `learning_rate` \(now 1e\+12\)"
    ):
        model.fit(X, y)
    assert not hasattr(model, "net_")


def test_divergence_stops_before_the_epochs_are_done():
    X, y = data_for(CFLLRegressor)
    with pytest.raises(FloatingPointError) as error:
        small(CFLLRegressor, **DIVERGES).fit(X, y)
    assert int(str(error.value).split("epoch ")[1].split(":")[0]) < 10


# -- an earlier fit survives --------------------------------------------------------------------


def state_of(model, X):
    """All that a fit leaves behind, to the last bit."""
    raw = model.predict if isinstance(model, CFLLRegressor) else model.decision_function
    state = {
        name: value
        for name, value in model.__getstate__().items()
        if name not in ("callbacks", "backbone") and name not in model.get_params()
    }
    return copy.deepcopy(
        {"outputs": raw(X), "features": model.features(X), "coef": model.last_layer_coef_, **state}
    )


def assert_same(one, other):
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "get_params"):
        assert_same(one.get_params(), other.get_params())
    else:
        assert one == other


def nan_in_the_middle(X, y):
    """Passes all checks and breaks training at the second batch."""
    bad = X.copy()
    bad[30] = 1e308
    return TensorDataset(torch.as_tensor(np.where(bad > 1e300, np.nan, bad)), torch.as_tensor(y))


FAILURES = {
    "fit_on_nan": lambda model, X, y: model.fit(with_value(X, np.nan), y),
    "fit_on_another_width": lambda model, X, y: model.fit(with_value(X[:, :4], np.inf), y),
    "fit_on_short_targets": lambda model, X, y: model.fit(X, y[:-1]),
    "fit_on_zero_weights": lambda model, X, y: model.fit(X, y, np.zeros(len(X))),
    "fit_on_half_a_validation_set": lambda model, X, y: model.fit(X, y, X_val=X),
    "fit_with_a_bad_parameter": lambda model, X, y: model.set_params(ridge=-1).fit(X, y),
    "fit_with_a_bad_backbone": lambda model, X, y: model.set_params(backbone=nn.Linear(3, 3)).fit(
        X, y
    ),
    "fit_with_a_bad_output": lambda model, X, y: model.set_params(
        backbone=Returns(lambda out: out.long())
    ).fit(X, y),
    "fit_diverges": lambda model, X, y: model.set_params(**DIVERGES).fit(X, y),
    "fit_diverges_after_a_warm_start": lambda model, X, y: model.set_params(
        warm_start=True, learning_rate=1e200, batch_size=20
    ).fit(X, y),
    "fit_meets_nan_in_a_dataset": lambda model, X, y: model.set_params(batch_size=20).fit(
        nan_in_the_middle(X, y), y
    ),
    "partial_fit_on_nan": lambda model, X, y: model.partial_fit(with_value(X, np.nan), y),
    "partial_fit_on_another_width": lambda model, X, y: model.partial_fit(X[:, :4], y),
    "partial_fit_on_nan_targets": lambda model, X, y: model.partial_fit(X, with_value(y, np.nan)),
    "partial_fit_on_zero_weights": lambda model, X, y: model.partial_fit(
        X, y, sample_weight=np.zeros(len(X))
    ),
    "partial_fit_diverges": lambda model, X, y: model.set_params(
        learning_rate=1e200, batch_size=10
    ).partial_fit(X, y),
    "partial_fit_meets_nan_in_a_dataset": lambda model, X, y: model.set_params(
        batch_size=20
    ).partial_fit(nan_in_the_middle(X, y), y),
    "adapt_on_nan": lambda model, X, y: model.adapt(with_value(X, np.nan), y),
    "adapt_on_another_width": lambda model, X, y: model.adapt(X[:, :4], y),
    "adapt_on_short_targets": lambda model, X, y: model.adapt(X, y[:-1]),
    "adapt_meets_nan_in_a_dataset": lambda model, X, y: model.adapt(nan_in_the_middle(X, y), y),
}


@BOTH
@pytest.mark.parametrize("failure", FAILURES)
def test_an_earlier_fit_survives(Estimator, failure):
    X, y = data_for(Estimator)
    model = small(Estimator, optimizer="sgd", learning_rate=0.01, hidden_layer_sizes=(16, 16))
    model.fit(X, y)
    before = state_of(model, X)
    with pytest.raises((ValueError, FloatingPointError)):
        FAILURES[failure](model, X, y)
    assert_same(state_of(model, X), before)


@BOTH
def test_training_goes_on_after_a_failure_as_if_it_had_not_been(Estimator):
    X, y = data_for(Estimator)
    clean, failed = small(Estimator).fit(X, y), small(Estimator).fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        failed.partial_fit(with_value(X, np.nan), y)
    with pytest.raises(FloatingPointError):
        failed.set_params(batch_size=20).partial_fit(nan_in_the_middle(X, y), y)
    failed.set_params(batch_size=256)
    clean.partial_fit(X, y)
    failed.partial_fit(X, y)
    np.testing.assert_array_equal(clean.last_layer_coef_, failed.last_layer_coef_)
    assert len(clean.history_) == len(failed.history_) == 6
