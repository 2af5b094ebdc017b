"""Optimisers, schedules, the shape of the network, callbacks."""

import shutil

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from helpers import BOTH, data_for, raw, small
from sklearn_cfll import CFLLRegressor, ColumnEncoder


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
    X, y = data_for(CFLLRegressor, 420)
    model = small(CFLLRegressor, activation=activation).fit(X[:120], y[:120])
    assert model.features(X).shape == (420, 32)
    assert model.score(X[120:], y[120:]) > 0.8


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
