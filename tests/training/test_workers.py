"""Two or four processes fit one model, and each step's last layer is that of the joint batch."""

import os
import pickle
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn

from helpers import friedman, small
from launching import cut, launch, start
from sklearn_cfll import CFLLClassifier, CFLLRegressor, TrainingCheckpoint
from sklearn_cfll.estimator import shares
from sklearn_cfll.training.batches import BatchIterator, fetch
from sklearn_cfll.training.seeding import mix_seed

EXACT = {"precision": "float64", "max_epochs": 4}
ENSEMBLE = {"n_members": 4, "hidden_layer_sizes": (16,), "batch_size": 64, **EXACT}
WIDE = {"hidden_layer_sizes": (128,), "ridge": 5.0, "batch_size": 150, **EXACT}  # solved by "cg"
STEPS = {
    "members": ENSEMBLE,
    "one network": {"batch_size": 50, **EXACT},
    "gradients": WIDE,
    "backbone first": {"update_order": "backbone_first", "batch_size": 50, **EXACT},
    "statistics": {"memory": "statistics", "decay": 0.9, "batch_size": 50, **EXACT},
}
WHOLE = {
    "members in full batches": {
        "batch_size": "full",
        "n_members": 4,
        "hidden_layer_sizes": (16,),
        "linear_part": True,
        **EXACT,
    },
    "one network in full batches": {"batch_size": "full", **EXACT},
}

SAMPLES = ["sample", "sample, one network", "sample, one without weight"]


class Recorder(Callback):
    """Keeps the weights after each step; the short runs before training have no callbacks."""

    training = False

    def on_train_begin(self, net, **kwargs):
        self.weights, Recorder.training = [], True

    def on_train_end(self, net, **kwargs):
        Recorder.training = False

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            layer = net.module_.last_layer
            self.weights.append(torch.cat([layer.weight.flatten(), layer.bias]).numpy().copy())


def rows():
    X, y = friedman(300)
    return X, y, np.random.default_rng(0).integers(1, 4, len(y)).astype(float)


def state(model):
    return {name: value.numpy() for name, value in model.net_.module_.state_dict().items()}


def recorded(given, **parameters):
    """A fit, and its weights after each step."""
    recorder = Recorder()
    model = small(CFLLRegressor, callbacks=[recorder], **parameters).fit(*given)
    return state(model), recorder.weights


def table(n):
    X, y = friedman(n)
    frame = pd.DataFrame(X[:, :4], columns=list("abcd"))
    frame["kind"] = pd.Categorical(np.where(X[:, 4] < 0.3, "low", np.where(y > 18, "top", "mid")))
    return frame, np.array(["no", "yes", "perhaps"])[np.digitize(y, [10, 19])]


def classified(X, y):
    """A classifier of a table, and what it says of all rows."""
    model = small(CFLLClassifier, batch_size="full", n_members=4, **EXACT).fit(X, y)
    return model.classes_, model.predict_proba(table(200)[0]), state(model)


def failing(X, y, message, Estimator=CFLLRegressor, **parameters):
    with pytest.raises((ValueError, RuntimeError), match=message):
        small(Estimator, **parameters).fit(X, y)


def of_two(rank):
    """All that two workers do, in one launch."""
    own = cut([0, 70, 300], *rows())[rank]
    found = {name: recorded(own, **each) for name, each in STEPS.items()}
    found |= {name: recorded(own, **each) for name, each in WHOLE.items()}
    # A frame whose categories, and classes, are not all known to each worker.
    frame, y = table(200)
    order = np.argsort(y, kind="stable")
    part = order[:40] if rank == 0 else order[40:]
    frame = frame.iloc[part]
    frame["kind"] = frame["kind"].cat.remove_unused_categories()
    found["table"] = classified(frame, y[part])
    # What cannot be fitted raises in all of them.
    X, y, _ = own
    failing(X[:, : 5 + rank], y, "rows of shape")
    failing(X, y, "`ridge` is", ridge=1.0 + rank)
    failing(X, y, "'ridge' parameter of CFLLRegressor", ridge=1.0 - 2 * rank)
    failing(X, y, "`device`='abacus'", device="abacus" if rank else "cpu")
    failing(X if rank else X[:, 0], y, "")
    failing(X, y[: len(y) - rank], "rows, `y` has")
    labels = (y > 15).astype(int).astype(str if rank else int)
    failing(X, labels, "`y` has the dtype", Estimator=CFLLClassifier)
    checkpoints = [TrainingCheckpoint("training.pt")] if rank else None
    failing(X, y, "`callbacks` is . TrainingCheckpoint", callbacks=checkpoints)
    failing(X, y, "normalises by the rows", backbone=nn.Sequential(nn.BatchNorm1d(6)))
    with pytest.raises(RuntimeError, match="does not train on several workers"):
        small(CFLLRegressor).partial_fit(X, y)
    # Rows that are too many to be known by all.
    shares.MOST_BYTES = 4000
    found["sample"] = recorded(own, **{**ENSEMBLE, "max_epochs": 15})
    X, y, weight = own
    found["sample, one without weight"] = recorded((X, y, rank * weight), **ENSEMBLE)
    found["sample, one network"] = recorded(own, **STEPS["one network"])
    return found


@pytest.fixture(scope="module")
def two():
    return launch(2, of_two)


def joint_batches(self):
    """Batches of the rows that two workers have in theirs."""
    if not self.shuffle or not Recorder.training:
        yield from ITERATE(self)
        return
    n_rows, n_batches = len(self.dataset), len(self)
    orders = []
    for rank in range(2):
        own = torch.arange(rank, n_rows, 2)
        seed = mix_seed(self.seed, rank) if rank else self.seed
        generator = torch.Generator().manual_seed(mix_seed(seed, self.epoch))
        orders.append(own[torch.randperm(len(own), generator=generator)])
    self.epoch += 1
    for i in range(n_batches):
        parts = []
        for turn, own in zip((0, n_batches // 2), orders, strict=True):
            start, stop = ((len(own) * edge + turn) // n_batches for edge in (i, i + 1))
            parts.append(own[start:stop])
        yield fetch(self.dataset, torch.cat(parts))


ITERATE = BatchIterator.__iter__


@pytest.mark.parametrize("name", STEPS)
def test_each_step_of_two_workers_is_that_of_one_on_the_joint_batch(two, name, monkeypatch):
    monkeypatch.setattr(BatchIterator, "__iter__", joint_batches)
    _, wanted = recorded(rows(), **STEPS[name])
    first, second = (found[name][1] for found in two)
    assert len(wanted) == len(first) == len(second) >= 8
    for step, (own, other, joint) in enumerate(zip(first, second, wanted, strict=True)):
        assert np.array_equal(own, other), step
        np.testing.assert_allclose(own, joint, rtol=1e-6, atol=1e-9, err_msg=str(step))


@pytest.mark.parametrize("name", [*STEPS, *WHOLE, *SAMPLES])
def test_both_workers_end_with_the_same_bits(two, name):
    first, second = (found[name][0] for found in two)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", WHOLE)
def test_the_model_of_full_batches_is_that_of_one_worker(two, name):
    wanted, _ = recorded(rows(), **WHOLE[name])
    for key, value in wanted.items():
        np.testing.assert_allclose(two[0][name][0][key], value, rtol=1e-6, atol=1e-8)


def test_levels_and_classes_are_those_of_all_workers(two):
    frame, y = table(200)
    order = np.argsort(y, kind="stable")
    classes, wanted, _ = classified(frame.iloc[order], y[order])
    for found in two:
        assert found["table"][0].tolist() == classes.tolist()
        np.testing.assert_allclose(found["table"][1], wanted, atol=1e-6)


# -- processes that end ------------------------------------------------------------------


class Killed(Callback):
    """Kills this process, or lets it fail, at a batch of an epoch."""

    def __init__(self, epoch, how):
        self.epoch, self.how = epoch, how

    def on_batch_end(self, net, training=False, **kwargs):
        if training and not net.provisional_ and len(net.history) == self.epoch:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError


def interrupted(rank, epoch, how, path, victim=1):
    """What a worker says when another one ends, and seconds until it does."""
    X, y, _ = cut([0, 70, 300], *rows())[rank]
    callbacks = [Killed(epoch, how)] if rank == victim and how else []
    callbacks = [*callbacks, TrainingCheckpoint(path)]
    begun = time.monotonic()
    try:
        model = small(CFLLRegressor, callbacks=callbacks, **ENSEMBLE).fit(X, y)
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - begun
    return state(model)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "failed"])
def test_the_others_raise_soon_and_the_checkpoint_goes_on(how, tmp_path):
    path = tmp_path / "training.pt"
    processes, files = start(2, interrupted, 3, how, path, CFLL_TIMEOUT="30")
    for each in processes:
        each.join(60)
        assert not each.is_alive()
    kind, message, _ = pickle.loads(files[0].read_bytes())
    assert kind == "RuntimeError" and "lost another one" in message
    resumed = launch(2, interrupted, 0, None, path)
    whole = launch(2, interrupted, 0, None, tmp_path / "other.pt")
    for key, value in whole[0].items():
        assert np.array_equal(resumed[0][key], value)


def of_four(rank):
    """An empty share, a share of three rows, and more workers than batches have rows."""
    own = cut([0, 0, 3, 100, 300], *rows())[rank]
    found = [recorded(own, **{**ENSEMBLE, "max_epochs": 2})[0]]
    shares.MOST_BYTES = 4000
    found.append(recorded(own, **{**ENSEMBLE, "max_epochs": 2})[0])
    shares.MOST_BYTES = 2**28
    few = tuple(each[: 12 if rank == 3 else 0] for each in own)
    return [*found, recorded(few, **{**EXACT, "batch_size": 2})[0]]


@pytest.mark.slow
def test_four_workers_with_empty_shares_end_with_one_model():
    found = launch(4, of_four)
    for others in found[1:]:
        for own, other in zip(found[0], others, strict=True):
            assert all(np.array_equal(own[key], other[key]) for key in own)
