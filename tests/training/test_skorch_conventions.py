"""CFLLNet keeps to what skorch documents, wherever the closed form allows it."""

import multiprocessing
import os
import time
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from sklearn.base import is_regressor
from sklearn.ensemble import BaggingRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, Checkpoint, LoadInitState
from skorch.dataset import Dataset as SkorchDataset
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_cfll import CFLLNet
from sklearn_cfll.training.batches import BatchIterator
from small_nets import (
    ORDERS,
    WIDTH,
    D,
    K,
    N,
    Tanh,
    assert_equal_states,
    make_data,
    make_net,
    orders,
)

# -- listeners and records --------------------------------------------------------------------


class Duck:
    """No subclass of skorch's Callback, and hooks that are made when asked for."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append(name)

    def initialize(self):
        return self

    def set_params(self, **kwargs):
        return self

    def get_params(self, deep=True):
        return {}


@pytest.mark.parametrize("make", [Duck, lambda: Mock(spec=Callback), Mock])
def test_what_behaves_like_a_callback_hears_of_batches(make):
    X, y = make_data()
    listener = make()
    if not isinstance(listener, Duck):
        listener.get_params.return_value = {}
    net = make_net(callbacks=[("listener", listener)], train_split=ValidSplit(3)).fit(X, y)
    n_batches = 3 * (2 + 1)
    for hook, expected in {
        "on_train_begin": 1,
        "on_epoch_end": 3,
        "on_batch_begin": n_batches,
        "on_batch_end": n_batches,
        "on_grad_computed": 3 * 2,
    }.items():
        if isinstance(listener, Duck):
            assert listener.calls.count(hook) == expected, hook
        else:
            assert getattr(listener, hook).call_count == expected, hook
    assert len(net.history[-1]["batches"]) == 3


class Counter(Callback):
    def on_train_begin(self, net, **kwargs):
        self.seen = 0


def test_hook_set_on_an_instance_and_callbacks_set_later_are_heard():
    X, y = make_data()
    counter = Counter()
    net = make_net(callbacks=[("counter", counter)]).initialize()
    seen = []
    counter.on_batch_end = lambda net, **kwargs: seen.append(kwargs["training"])
    net.partial_fit(X, y)
    assert seen == [True] * 9
    net.callbacks_ = []
    net.partial_fit(X, y)
    assert len(seen) == 9 and len(net.history[-1]["batches"]) <= 1


def test_gradients_are_on_a_callback_with_the_batch():
    X, y = make_data()

    class Listener(Callback):
        def on_grad_computed(self, net, named_parameters, batch, training, **kwargs):
            assert training and len(batch[0]) == 20
            assert all(p.grad is not None for _, p in named_parameters)
            assert list(named_parameters)  # it may be looked at more than once

        def on_batch_end(self, net, training, loss, **kwargs):
            assert loss.requires_grad == training

    make_net(callbacks=[Listener()], train_split=ValidSplit(5)).fit(X, y)


@pytest.mark.parametrize("callbacks", [[], [Mock(get_params=dict)]])
def test_history_holds_what_skorch_puts_there(callbacks):
    X, y = make_data()
    net = make_net(callbacks=callbacks, train_split=ValidSplit(5)).fit(X, y)
    assert net.history[:, "train_batch_count"] == [2] * 3
    assert net.history[:, "valid_batch_count"] == [1] * 3
    assert net.history[-1, "batches", -1, "valid_batch_size"] == 10
    for name in ("train_loss", "valid_loss"):
        best = np.minimum.accumulate([np.inf, *net.history[:, name]])
        assert net.history[:, f"{name}_best"] == list(net.history[:, name] < best[:-1])


def test_losses_are_callbacks_by_skorchs_names():
    X, y = make_data()
    net = make_net(train_split=ValidSplit(3), callbacks__valid_loss=None).fit(X, y)
    assert "train_loss" in net.history[-1] and "valid_loss" not in net.history[-1]
    with pytest.raises(ValueError, match="duplicate user-set callback name 'train_loss'"):
        make_net(callbacks=[("train_loss", Counter())]).initialize()
    net = make_net(callbacks="disable").fit(X, y)
    assert net.callbacks_ == [] and len(net.history) == 3


def test_step_of_a_subclass_finds_a_record_for_every_batch():
    steps = []

    class Accumulating(CFLLNet):
        """Gradients of two batches a step, as in skorch's documentation."""

        def train_step(self, batch, **fit_params):
            n_batches = len(self.history[-1, "batches"])
            step = self.train_step_single(batch, **fit_params)
            if n_batches % 2 == 0:
                self.optimizer_.step()
                self.optimizer_.zero_grad()
                steps.append(n_batches)
            return step

    X, y = make_data()
    for order in ORDERS:
        steps.clear()
        net = Accumulating(Tanh, max_epochs=20, batch_size=15, verbose=0, update_order=order)
        net.fit(X, y)
        assert steps == [2, 4] * 20
        assert net.score(X, y) > 0.5


# -- optimisers -------------------------------------------------------------------------------


@orders
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_optimiser_with_a_closure_trains(order, memory):
    X, y = make_data()
    net = make_net(
        optimizer=torch.optim.LBFGS,
        optimizer__line_search_fn="strong_wolfe",
        lr=1.0,
        batch_size=-1,
        max_epochs=15,
        update_order=order,
        last_layer__memory=memory,
        last_layer__decay=0.5,
        last_layer__ridge=0.01,
    ).fit(X, y)
    assert net.history[-1, "train_loss"] < 0.5 * net.history[1, "train_loss"]
    assert net.score(X, y) > 0.9


@orders
def test_optimiser_that_evaluates_again_finds_the_last_layer_held(order):
    class Thrice(torch.optim.SGD):
        def step(self, closure=None):
            losses.append([float(super(Thrice, self).step(closure)) for _ in range(3)])

    X, y = make_data()
    losses, nets = [], []
    for kind, lr in ((Thrice, 0.0), (torch.optim.SGD, 0.0)):
        options = {"last_layer__memory": "statistics", "update_order": order}
        nets.append(make_net(optimizer=kind, lr=lr, **options).fit(X, y))
    assert all(len(set(each)) == 1 for each in losses)  # nothing moved in between
    assert_equal_states(*nets)


# -- scikit-learn -----------------------------------------------------------------------------


def test_net_is_a_regressor_with_a_score():
    X, y = make_data()
    net = make_net(max_epochs=20).fit(X, y)
    assert is_regressor(net)
    weight = np.linspace(0, 1, N)
    for options in ({}, {"sample_weight": weight}):
        expected = r2_score(y, net.predict(X), **options)
        np.testing.assert_allclose(net.score(X, y, **options), expected)
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    for rows in (data, DataLoader(data, 7)):
        np.testing.assert_allclose(net.score(rows), net.score(X, y), rtol=1e-6)
    fields = make_net(max_epochs=1).fit(np.stack([X, X], 1), np.stack([y, y], 1))
    assert fields.score(np.stack([X, X], 1), np.stack([y, y], 1)) <= 1.0


def test_search_and_bagging_need_no_scoring():
    X, y = make_data()
    search = GridSearchCV(make_net(), {"lr": [0.01, 0.1], "module__width": [4, 8]}, cv=2)
    assert search.fit(X, y).best_score_ > 0.0
    bagging = BaggingRegressor(make_net(max_epochs=50, module__squeeze=True), 2, random_state=0)
    assert bagging.fit(X, y[:, 0]).predict(X).shape == (N,)
    assert bagging.score(X, y[:, 0]) > 0.2


# -- shapes and data --------------------------------------------------------------------------


@orders
def test_single_feature_may_come_without_its_dimension(order):
    X, y = make_data()
    options = {"update_order": order, "train_split": ValidSplit(3)}
    flat = make_net(module__squeeze=True, **options).fit(X, y[:, 0])
    column = make_net(module__width=1, **options).fit(X, y[:, 0])
    assert_equal_states(flat, column)
    assert flat.history[:, "valid_loss"] == column.history[:, "valid_loss"]
    assert flat.predict(X).shape == (N,) and column.predict(X).shape == (N, 1)
    np.testing.assert_array_equal(flat.predict(X), column.predict(X)[:, 0])
    assert make_net(module__squeeze=True, **options).fit(X, y).predict(X).shape == (N, K)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, WIDTH)

    def forward(self, a, b, shift=0.0):
        return torch.tanh(self.fc(torch.cat([a, b], 1)) + shift)


class DictItems(torch.utils.data.Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, i):
        return {"a": self.X[i, :1], "b": self.X[i, 1:]}, self.y[i]


@pytest.mark.parametrize("iterator", [BatchIterator, DataLoader])
def test_items_may_be_dicts_and_keywords_reach_forward(iterator):
    X, y = make_data()
    options = {"iterator_train": iterator, "iterator_train__shuffle": False, "max_epochs": 2}
    named = {"a": X[:, :1], "b": X[:, 1:]}
    expected = make_net(TwoInputs, **options).fit(named, y, shift=0.5)
    assert_equal_states(make_net(TwoInputs, **options).fit(DictItems(X, y), shift=0.5), expected)
    plain = make_net(TwoInputs, **options).fit(named, y)
    assert not torch.equal(plain.module_.fc.weight, expected.module_.fc.weight)
    with pytest.raises(ValueError, match="duplicate keys: b"):
        make_net(TwoInputs).fit(named, y, b=1)


@orders
def test_keywords_of_fit_reach_the_module_and_the_split(order):
    X, y = make_data()
    seen = []

    def split(dataset, y=None, **fit_params):
        seen.append(fit_params)
        return dataset, dataset

    net = make_net(update_order=order, train_split=split).fit(X, y, scale=0.0)
    assert seen == [{"scale": 0.0}]
    np.testing.assert_allclose(net.module_.last_layer.weight, 0.0)  # tanh(0) says nothing
    constant = net.module_.last_layer.bias.numpy()
    expected = np.square(y - constant).mean()
    np.testing.assert_allclose(net.history[-1, "valid_loss"], expected, rtol=1e-5)


class Doubling(SkorchDataset):
    def __init__(self, X, y=None, factor=1.0):
        super().__init__(X, y)
        self.factor = factor

    def transform(self, X, y):
        return super().transform(self.factor * X, y)


def test_data_set_of_the_users_own_is_taken():
    X, y = make_data()
    net = make_net(dataset=Doubling, dataset__factor=2.0).fit(X, y)
    assert_equal_states(net, make_net().fit(2 * X, y))
    np.testing.assert_allclose(net.predict(X), make_net().fit(2 * X, y).predict(2 * X))
    with pytest.raises(TypeError, match="initialized Dataset"):
        make_net(dataset=Doubling(X, y), dataset__factor=2.0).fit(X, y)


def test_missing_targets_are_named():
    X, _ = make_data()
    with pytest.raises(ValueError, match="needs targets"):
        make_net().fit(X)


def test_epochs_given_to_partial_fit_are_those_of_the_schedule():
    X, y = make_data()
    net = make_net(max_epochs=100, lr_schedule="linear")
    net.partial_fit(X, y, epochs=4)
    expected = make_net(max_epochs=4, lr_schedule="linear").fit(X, y)
    assert net.history[:, "learning_rate"] == expected.history[:, "learning_rate"]


# -- files ------------------------------------------------------------------------------------


def saves_until_killed(net, checkpoint):
    while True:
        checkpoint.save_model(net)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
@pytest.mark.slow
def test_run_killed_while_it_saves_can_be_resumed(tmp_path):
    X, y = make_data()
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
    options = {"module__width": 2000, "max_epochs": 1}
    net = make_net(callbacks=[checkpoint], **options).fit(X, y)
    context = multiprocessing.get_context("fork")
    for delay in np.linspace(0.0, 0.1, 20):
        process = context.Process(target=saves_until_killed, args=(net, checkpoint))
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        resumed = make_net(callbacks=[LoadInitState(checkpoint)], **options).fit(X, y)
        assert len(resumed.history) == 2
    again = make_net(**options).initialize()
    again.load_params(checkpoint=checkpoint)
    np.testing.assert_array_equal(again.predict(X), net.predict(X))


@pytest.mark.parametrize("name", ["f_params", "f_optimizer", "f_history"])
def test_failure_while_saving_leaves_the_old_file_and_nothing_else(name, tmp_path, monkeypatch):
    X, y = make_data()
    net = make_net().fit(X, y)
    file = tmp_path / "checkpoint"
    net.save_params(**{name: str(file)})
    before = file.read_bytes()

    def half(*args):
        target = args[-1]
        with open(target, "wb") as written:
            written.write(before[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    monkeypatch.setattr(type(net.history), "to_file", half)
    with pytest.raises(OSError, match="No space"):
        net.save_params(**{name: str(file)})
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint"]


def test_parameters_go_to_open_files_and_through_links(tmp_path):
    X, y = make_data()
    net = make_net().fit(X, y)
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    net.save_params(f_params=link)
    assert link.is_symlink() and target.stat().st_size > 3
    with open(tmp_path / "open", "wb") as file:
        net.save_params(f_params=file)
    for path in (target, tmp_path / "open"):
        loaded = make_net().initialize()
        loaded.load_params(f_params=path)
        assert_equal_states(loaded, net)
