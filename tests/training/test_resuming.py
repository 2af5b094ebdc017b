"""Training that is saved and resumed continues as if never interrupted."""

import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from skorch.callbacks import Checkpoint, LoadInitState
from skorch.dataset import ValidSplit

from small_nets import SIZES, Tanh, assert_equal_states, make_data, make_net, memories, orders


def files(folder):
    return {f"f_{name}": folder / f"{name}" for name in ("params", "optimizer", "history")}


@orders
@memories
def test_resumed_training_continues_as_if_never_interrupted(order, memory, tmp_path):
    X, y = make_data()
    # Dropout and shuffling draw random numbers: they must follow the epoch, not the process.
    module = partial(Tanh, dropout=0.3)
    options = {"module": module, "update_order": order, "last_layer__memory": memory}
    uninterrupted = make_net(max_epochs=5, **options).fit(X, y)

    make_net(max_epochs=2, **options).fit(X, y).save_params(**files(tmp_path))
    resumed = make_net(max_epochs=3, **options, **SIZES).initialize()
    resumed.load_params(**files(tmp_path))
    resumed.partial_fit(X, y)
    assert_equal_states(resumed, uninterrupted)
    for column in ("epoch", "train_loss", "learning_rate"):
        assert resumed.history[:, column] == uninterrupted.history[:, column]


@orders
def test_partial_fits_continue_as_one_long_fit(order):
    X, y = make_data()
    uninterrupted = make_net(max_epochs=5, update_order=order).fit(X, y)
    net = make_net(max_epochs=2, update_order=order).fit(X, y)
    net.set_params(max_epochs=3).partial_fit(X, y)
    assert_equal_states(net, uninterrupted)


def test_resumed_history_remembers_which_loss_was_best(tmp_path):
    # Checkpoint(monitor="valid_loss_best") saves a worse model over a better one otherwise.
    X, y = make_data()
    net = make_net(max_epochs=3, train_split=ValidSplit(3)).fit(X, y)
    net.save_params(**files(tmp_path))
    resumed = make_net(max_epochs=1, train_split=ValidSplit(3), **SIZES).initialize()
    resumed.load_params(**files(tmp_path))
    rubbish = 100.0 * y
    resumed.partial_fit(X, rubbish)
    assert resumed.history[-1, "valid_loss"] > min(net.history[:, "valid_loss"])
    assert not resumed.history[-1, "valid_loss_best"]
    assert not resumed.history[-1, "train_loss_best"]


@memories
def test_checkpoint_callback_and_load_init_state_resume_exactly(memory, tmp_path):
    X, y = make_data()
    options = {"last_layer__memory": memory}
    uninterrupted = make_net(max_epochs=5, **options).fit(X, y)
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
    make_net(max_epochs=2, callbacks=[checkpoint], **options).fit(X, y)
    resumed = make_net(max_epochs=3, callbacks=[LoadInitState(checkpoint)], **options)
    assert_equal_states(resumed.fit(X, y), uninterrupted)


def test_statistics_memory_is_restored_with_the_parameters(tmp_path):
    X, y = make_data()
    net = make_net(last_layer__memory="statistics").fit(X, y)
    net.save_params(**files(tmp_path))
    loaded = make_net(last_layer__memory="statistics", **SIZES).initialize()
    assert loaded.module_.last_layer.moments is None
    loaded.load_params(**files(tmp_path))
    for held, expected in zip(
        loaded.module_.last_layer.moments, net.module_.last_layer.moments, strict=True
    ):
        assert torch.equal(held, expected)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize(
    "copying",
    [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
    ids=["deepcopy", "pickle"],
)
def test_copies_of_a_fitted_net_predict_and_go_on_alike(copying, schedule):
    X, y = make_data()
    net = make_net(last_layer__memory="statistics", lr_schedule=schedule).fit(X, y)
    copied = copying(net)
    np.testing.assert_array_equal(copied.predict(X), net.predict(X))
    assert_equal_states(copied.partial_fit(X, y), net.partial_fit(X, y))


def test_safetensors_hold_the_last_layer(tmp_path):
    pytest.importorskip("safetensors")
    X, y = make_data()
    net = make_net().fit(X, y)
    net.save_params(f_params=tmp_path / "net.safetensors", use_safetensors=True)
    loaded = make_net(**SIZES).initialize()
    loaded.load_params(f_params=tmp_path / "net.safetensors", use_safetensors=True)
    np.testing.assert_array_equal(loaded.predict(X), net.predict(X))
