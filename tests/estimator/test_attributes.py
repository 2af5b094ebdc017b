"""Attributes and methods that both estimators promise."""

import inspect

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from helpers import BOTH, data_for, raw, small
from sklearn_cfll import CFLLRegressor


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
    spread = y.var() if k == 1 else np.eye(3)[y].var(0)
    assert np.all((0.01 * spread < model.noise_variance_) & (model.noise_variance_ < spread / 2))
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
    assert model.fit(X[:200], y[:200]).score(X[200:], y[200:]) > 0.8


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
