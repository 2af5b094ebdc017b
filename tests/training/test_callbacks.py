"""Callbacks of skorch and our own hear, steer and record the training of a CFLLNet."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LRScheduler,
)
from skorch.dataset import ValidSplit

from sklearn_cfll import WeightAveraging
from small_nets import N, Tanh, assert_equal_states, make_data, make_net, orders


class BatchCounter(Callback):
    def on_train_begin(self, net, **kwargs):
        self.rows, self.losses = {True: 0, False: 0}, []

    def on_batch_end(self, net, batch, training, loss, y_pred, **kwargs):
        assert len(batch[0]) == len(y_pred)
        self.rows[training] += len(y_pred)
        self.losses.append(float(loss))


class EpochCounter(Callback):
    def on_epoch_end(self, net, **kwargs):
        self.epochs = getattr(self, "epochs", 0) + 1


@orders
def test_listener_to_batches_sees_every_row_and_the_net_records_them(order):
    X, y = make_data()
    counter = BatchCounter()
    net = make_net(update_order=order, callbacks=[counter], train_split=ValidSplit(5)).fit(X, y)
    assert counter.rows == {True: 3 * 40, False: 3 * 10}
    records = net.history[-1]["batches"]
    assert [row["train_batch_size"] for row in records if "train_batch_size" in row] == [20, 20]
    assert np.isfinite(counter.losses).all()


def test_batches_are_recorded_only_for_a_listener():
    X, y = make_data()
    quiet = make_net(callbacks=[EpochCounter()], train_split=ValidSplit(5)).fit(X, y)
    heard = make_net(callbacks=[BatchCounter()], train_split=ValidSplit(5)).fit(X, y)
    # Checkpoint reads the last batch's record, so one may stand there; never one a batch.
    assert all(len(row["batches"]) <= 1 for row in quiet.history)
    assert all(len(row["batches"]) == 2 + 1 for row in heard.history)
    # The records per epoch are the same either way, and so is the training.
    for column in ("train_loss", "valid_loss", "learning_rate", "train_loss_best"):
        assert quiet.history[:, column] == heard.history[:, column]
    assert_equal_states(quiet, heard)


@pytest.mark.parametrize("batch_size", [50, 5])
def test_a_record_of_an_epoch_does_not_grow_with_its_batches(batch_size):
    X, y = make_data()
    net = make_net(max_epochs=4, batch_size=batch_size).fit(X, y)
    assert len(net.history) == 4 and len(net.history[-1]["batches"]) <= 1
    losses = {"train_loss", "train_loss_best", "train_batch_count"}
    assert {frozenset(row) for row in net.history} == {
        frozenset({"batches", "epoch", "learning_rate", "dur"} | losses)
    }
    assert net.history[:, "train_batch_count"] == [N // batch_size] * 4


def test_early_stopping_loads_the_best_weights_and_ends_quietly():
    X, y = make_data()
    stopping = EarlyStopping(patience=2, load_best=True, threshold=0.0)
    net = make_net(
        lr=0.5, max_epochs=100, train_split=ValidSplit(3), callbacks=[("stop", stopping)]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an early stop is no interruption
        net.fit(X, y)
    losses = net.history[:, "valid_loss"]
    assert len(losses) < 100 and np.argmin(losses) == len(losses) - 1 - 2
    _, valid = net.get_split_datasets(X, y)
    kept = torch.cat([batch[1] for batch in net.get_iterator(valid)])
    error = mean_squared_error(kept, net.predict(valid))
    np.testing.assert_allclose(error, min(losses), rtol=1e-10)


class EveryEpoch(Callback):
    def on_train_begin(self, net, **kwargs):
        self.states = []

    def on_epoch_end(self, net, **kwargs):
        self.states.append(copy.deepcopy(net.module_.state_dict()))


@pytest.mark.parametrize("n_epochs", [1, 3, 10])
def test_weights_end_as_the_mean_of_the_last_epochs(n_epochs):
    X, y = make_data()
    seen = EveryEpoch()
    net = make_net(max_epochs=5, callbacks=[seen, WeightAveraging(n_epochs)]).fit(X, y)
    last = seen.states[-n_epochs:]
    for name, value in net.module_.state_dict().items():
        torch.testing.assert_close(value, torch.stack([state[name] for state in last]).mean(0))
    net.partial_fit(X, y)  # five more, averaged on their own
    weight = torch.stack([state["last_layer.weight"] for state in seen.states[-n_epochs:]])
    torch.testing.assert_close(net.module_.last_layer.weight, weight.mean(0))
    assert len(seen.states) == 5


def test_weights_stay_where_training_ends_before_there_is_anything_to_average():
    X, y = make_data()
    stop = EarlyStopping(monitor="train_loss", patience=1, threshold=1e9, threshold_mode="abs")
    averaged = make_net(max_epochs=50, callbacks=[stop, WeightAveraging(2)]).fit(X, y)
    plain = make_net(max_epochs=50, callbacks=[stop]).fit(X, y)
    assert len(averaged.history) < 10
    np.testing.assert_array_equal(averaged.predict(X), plain.predict(X))


def test_weight_averaging_wants_an_epoch():
    X, y = make_data()
    with pytest.raises(ValueError, match="`n_epochs` must be at least 1, got 0"):
        make_net(callbacks=[WeightAveraging(0)]).fit(X, y)


def test_checkpoint_keeps_the_best_epoch(tmp_path):
    X, y = make_data()
    checkpoint = Checkpoint(dirname=tmp_path, load_best=True)  # monitors valid_loss_best
    net = make_net(lr=0.3, max_epochs=8, train_split=ValidSplit(3), callbacks=[checkpoint]).fit(
        X, y
    )
    _, valid = net.get_split_datasets(X, y)
    targets = torch.cat([batch[1] for batch in net.get_iterator(valid)])
    error = mean_squared_error(targets, net.predict(valid))
    np.testing.assert_allclose(error, min(net.history[:, "valid_loss"]), rtol=1e-10)


@pytest.mark.parametrize("step_every", ["epoch", "batch"])
def test_learning_rate_scheduler_sets_the_rate(step_every):
    X, y = make_data()
    scheduler = LRScheduler(
        torch.optim.lr_scheduler.ExponentialLR, gamma=0.5, step_every=step_every
    )
    net = make_net(callbacks=[scheduler]).fit(X, y)
    n_steps = 3 * {"epoch": 1, "batch": 3}[step_every]
    np.testing.assert_allclose(net.optimizer_.param_groups[0]["lr"], 0.01 * 0.5**n_steps)


@orders
def test_gradient_clipping_bounds_the_step(order):
    X, y = make_data()
    moves = []
    for callbacks in ([], [GradientNormClipping(1e-6)]):
        net = make_net(
            module=Tanh(),
            optimizer=torch.optim.SGD,
            lr=1.0,
            max_epochs=1,
            update_order=order,
            callbacks=callbacks,
        )
        start = net.module.fc.weight.detach().clone()
        moves.append((net.fit(X, y).module_.backbone.fc.weight - start).norm().item())
    assert moves[1] <= 3e-6 * (1 + 1e-6) < moves[0]


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("on_train", [True, False])
def test_epoch_scoring_reports_the_score_of_the_epoch(use_caching, on_train):
    X, y = make_data()
    scoring = EpochScoring(
        "neg_mean_squared_error",
        name="score",
        use_caching=use_caching,
        on_train=on_train,
        lower_is_better=False,
    )
    net = make_net(
        callbacks=[scoring], train_split=ValidSplit(5), update_order="last_layer_first"
    ).fit(X, y)
    assert len(net.history[:, "score"]) == 3
    if use_caching or not on_train:
        # Cached, and on fixed validation rows, the score is the recorded loss.
        name = "train_loss" if on_train else "valid_loss"
        np.testing.assert_allclose(
            np.negative(net.history[:, "score"]), net.history[:, name], rtol=1e-9
        )


def test_gradients_are_those_of_the_backbone():
    X, y = make_data()
    seen = set()

    class Listener(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            seen.update(name for name, p in named_parameters if p.grad is not None)

    make_net(callbacks=[Listener()]).fit(X, y)
    assert seen == {"backbone.fc.weight", "backbone.fc.bias"}
