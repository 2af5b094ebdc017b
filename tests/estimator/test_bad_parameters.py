"""Bad backbones, devices and parameters: errors name the argument and the remedy."""

import pytest
import torch
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor
from small_tables import Returns, few_rows, quick

# -- backbones --------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", [3, "mlp", [nn.Linear(6, 2)], object()])
def test_backbone_that_is_no_module(backbone):
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(TypeError, match=r"`backbone` must be None, a torch.nn.Module, a recipe"):
        CFLLRegressor(backbone).fit(X, y)


def test_callable_that_builds_no_module():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(TypeError, match=r"`backbone` must build a torch.nn.Module.*built a int"):
        CFLLRegressor(lambda input_shape: 3).fit(X, y)


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
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=f"backbone's output must.*{message}|{message}"):
        quick(Estimator, backbone=Returns(function)).fit(X, y)


def test_backbone_for_samples_of_another_shape():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(ValueError, match=r"backbone cannot take samples of shape \(6,\)"):
        CFLLRegressor(nn.Linear(5, 4)).fit(X, y)


@pytest.mark.parametrize("backbone", [nn.Identity(), nn.Tanh()])
def test_backbone_without_parameters_works(backbone):
    X, y = few_rows(CFLLRegressor, 360)
    model = quick(CFLLRegressor, backbone=backbone).fit(X[:60], y[:60])
    assert model.score(X[60:], y[60:]) > 0.65


# -- devices ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_cuda_asked_for_where_there_is_none(Estimator, device):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match=r'`device`=.*cuda.*no usable CUDA.*device="cpu"'):
        quick(Estimator, device=device).fit(X, y)


def test_unknown_device():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(ValueError, match="`device`='abacus' is neither .* nor a torch device"):
        quick(CFLLRegressor, device="abacus").fit(X, y)


# -- parameters -------------------------------------------------------------------------------

BAD_PARAMETERS = {
    "hidden_layer_sizes": 0,
    "activation": "step",
    "dropout": 1.0,
    "n_members": 0,
    "columns": "some",
    "categorical_features": 1.5,
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
    "cross_fit": "some",
    "early_stopping": "sometimes",
    "validation_fraction": 1.0,
    "n_iter_no_change": 0,
    "tol": -1e-3,
    "refit_last_layer": "yes",
    "local_part": "yes",
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
    X, y = few_rows(Estimator)
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
    X, y = few_rows(Estimator)
    with pytest.raises(InvalidParameterError, match=f"The '{name}' parameter"):
        Estimator(**{name: value}).fit(X, y)


@BOTH
@pytest.mark.parametrize("sizes", [(), (3, 0), (-1,), (2.5,), ("a",)])
def test_hidden_layer_sizes_that_are_no_widths(Estimator, sizes):
    X, y = few_rows(Estimator)
    with pytest.raises(ValueError, match="`hidden_layer_sizes` must hold at least one positive"):
        Estimator(hidden_layer_sizes=sizes).fit(X, y)


@pytest.mark.parametrize("optimizer", [int, nn.Linear])
def test_class_that_is_no_optimizer(optimizer):
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(ValueError, match=r"`optimizer` must be .* a subclass of torch\.optim\.Opt"):
        quick(CFLLRegressor, optimizer=optimizer).fit(X, y)
