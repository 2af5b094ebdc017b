"""CFLLNet: the loop equals plain PyTorch, resumes exactly, and is a skorch net throughout."""

import copy
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.metrics import mean_squared_error
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    GradientNormClipping,
    LoadInitState,
    LRScheduler,
)
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sklearn_cfll import CFLLNet, ClosedFormLastLayer, WeightAveraging
from sklearn_cfll.training.batches import BatchIterator
from sklearn_cfll.training.schedules import SCHEDULES

N, D, WIDTH, K = 50, 3, 8, 2
ORDERS = ["last_layer_first", "backbone_first"]
SIZES = {"last_layer__in_features": WIDTH, "last_layer__out_features": K}

orders = pytest.mark.parametrize("order", ORDERS)
memories = pytest.mark.parametrize("memory", ["proximal", "statistics"])


class Tanh(nn.Module):
    """A small backbone; float64 so that equal steps give equal numbers."""

    def __init__(self, width=WIDTH, dtype=torch.float64, dropout=0.0):
        super().__init__()
        self.fc = nn.Linear(D, width, dtype=dtype)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs):
        return torch.tanh(self.dropout(self.fc(inputs)))


def make_data(dtype=np.float64):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(N, D))
    y = np.column_stack([np.sin(2 * X[:, 0]), X[:, 1] * X[:, 2]])
    return X.astype(dtype), y.astype(dtype)


def make_net(**options):
    settings = {"max_epochs": 3, "batch_size": 20, "lr": 0.01, "verbose": 0, "random_state": 0}
    return CFLLNet(options.pop("module", Tanh), **{**settings, **options})


def state_of(net):
    return {name: value.clone() for name, value in net.module_.state_dict().items()}


def assert_equal_states(actual, expected, tolerance=0.0):
    actual, expected = (
        net if isinstance(net, dict) else net.module_.state_dict() for net in (actual, expected)
    )
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance)


# -- the loop ----------------------------------------------------------------------------------


@orders
@memories
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("decay", [1.0, 0.8])
def test_training_equals_a_plain_loop(order, memory, schedule, decay):
    X, y = make_data()
    backbone = Tanh()
    options = {"ridge": 0.5, "decay": decay, "memory": memory}
    net = make_net(
        module=copy.deepcopy(backbone),
        update_order=order,
        lr_schedule=schedule,
        optimizer=torch.optim.Adam,
        **{f"last_layer__{name}": value for name, value in options.items()},
    ).fit(X, y)

    head = ClosedFormLastLayer(WIDTH, K, **options, dtype=torch.float64)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=0.01)
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    batches = BatchIterator(data, 20, shuffle=True, seed=0)
    n_steps, step, losses = 3 * len(batches), 0, []
    for _ in range(3):
        epoch = []
        for x_batch, y_batch in batches:
            optimizer.param_groups[0]["lr"] = 0.01 * SCHEDULES[schedule](step / n_steps)
            step += 1
            if order == "last_layer_first":
                prediction = head.update(backbone(x_batch), y_batch)
            else:
                prediction = head(backbone(x_batch))
            loss = F.mse_loss(prediction, y_batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if order == "backbone_first":
                with torch.no_grad():
                    head.update(backbone(x_batch), y_batch)
            epoch.append((loss.item(), len(x_batch)))
        if order == "last_layer_first" and memory == "proximal":
            with torch.no_grad():  # the last layer follows the epoch's last step
                head.update(backbone(x_batch), y_batch)
        values, sizes = zip(*epoch, strict=True)
        losses.append(np.average(values, weights=sizes))
    expected = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    expected |= {f"last_layer.{name}": value for name, value in head.state_dict().items()}
    assert_equal_states(net, expected, tolerance=1e-12)
    np.testing.assert_allclose(net.history[:, "train_loss"], losses, rtol=1e-12)


@orders
def test_weights_enter_the_solve_and_the_gradient(order):
    # A row of weight zero is absent from both: what it holds does not matter.
    X, y = map(torch.from_numpy, make_data())
    weight = torch.ones(N, dtype=torch.float64)
    weight[::3] = 0.0
    nets = []
    for garbage in (0.0, 100.0):
        changed = y + garbage * (weight == 0).double()[:, None]
        data = TensorDataset(X, changed, weight)
        nets.append(make_net(update_order=order).fit(data))
    assert_equal_states(*nets, tolerance=1e-10)
    unweighted = make_net(update_order=order).fit(TensorDataset(X, y))
    assert not torch.allclose(
        unweighted.module_.last_layer.weight, nets[0].module_.last_layer.weight
    )


def test_backbone_without_parameters_trains_the_last_layer_alone():
    X, y = make_data()
    net = make_net(
        module=nn.Identity(),
        iterator_train__shuffle=False,
        last_layer__memory="statistics",
        last_layer__dtype=torch.float64,
        max_epochs=1,
    ).fit(X.astype(np.float32).astype(np.float64), y)
    head = ClosedFormLastLayer(D, K, dtype=torch.float64)
    head.refit([(torch.from_numpy(X), torch.from_numpy(y))], ridge=head.ridge)
    torch.testing.assert_close(net.module_.last_layer.weight, head.weight, rtol=1e-5, atol=1e-5)


# -- saving and resuming -----------------------------------------------------------------------


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


# -- callbacks ---------------------------------------------------------------------------------


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


# -- data --------------------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index], self.y[index]


def on_disk(X, folder):
    written = np.memmap(folder / "X.bin", dtype=X.dtype, mode="w+", shape=X.shape)
    written[:] = X
    written.flush()
    return np.memmap(folder / "X.bin", dtype=X.dtype, mode="r", shape=X.shape)


def collate_pairs(samples):
    """A tuple of tensors, targets in a dtype of their own, as a user's function may give."""
    X, y = zip(*samples, strict=True)
    return torch.as_tensor(np.stack(X)), torch.as_tensor(np.stack(y)).float()


SOURCES = {
    "tensors": lambda X, y, _: (torch.from_numpy(X), torch.from_numpy(y)),
    "sparse": lambda X, y, _: (scipy.sparse.csr_array(X), y),
    "memmap": lambda X, y, folder: (on_disk(X, folder), y),
    "dataset": lambda X, y, _: (Pairs(X, y), None),
    "float32_dataset": lambda X, y, _: (Pairs(X.astype(np.float32), y), None),
    "tensor_dataset": lambda X, y, _: (
        TensorDataset(torch.from_numpy(X), torch.from_numpy(y)),
        None,
    ),
    "loader": lambda X, y, _: (DataLoader(Pairs(X, y), batch_size=25), None),
    "tuple_loader": lambda X, y, _: (
        DataLoader(Pairs(X, y), batch_size=25, collate_fn=collate_pairs),
        None,
    ),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@orders
def test_all_sources_of_data_train_alike(source, order, tmp_path):
    # float32 numbers, so that casting them somewhere on the way changes nothing.
    X, y = (part.astype(np.float32).astype(np.float64) for part in make_data())
    options = {"batch_size": 25, "iterator_train__shuffle": False, "update_order": order}
    expected = make_net(**options).fit(X, y)
    net = make_net(**options).fit(*source(X, y, tmp_path))
    assert_equal_states(net, expected)
    np.testing.assert_array_equal(net.predict(source(X, y, tmp_path)[0]), expected.predict(X))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left = nn.Linear(1, WIDTH, dtype=torch.float64)
        self.right = nn.Linear(D - 1, WIDTH, dtype=torch.float64)

    def forward(self, a, b):
        return torch.tanh(self.left(a) + self.right(b))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_dict_of_named_inputs_feeds_the_backbone(dtype):
    X, y = make_data(dtype)
    inputs = {"a": X[:, :1], "b": X[:, 1:]}
    net = make_net(module=TwoInputs, max_epochs=30).fit(inputs, y)
    prediction = net.predict(inputs)
    assert prediction.shape == (N, K)
    assert net.history[-1, "train_loss"] < 0.8 * net.history[1, "train_loss"]
    assert net.features(inputs).shape == (N, WIDTH)


def test_train_loss_is_the_mean_over_rows_whatever_the_form_of_the_inputs():
    # Batches of 40 and 10 rows: a mean over batches would be another number.
    X, y = make_data()
    inputs = {"a": X[:, :1], "b": X[:, 1:]}
    options = {
        "module": TwoInputs,
        "iterator_train": DataLoader,
        "iterator_train__shuffle": False,
        "batch_size": 40,
    }
    quiet = make_net(**options).fit(inputs, y)
    heard = make_net(**options, callbacks=[SeesDicts()]).fit(inputs, y)
    np.testing.assert_allclose(
        quiet.history[:, "train_loss"], heard.history[:, "train_loss"], rtol=1e-12
    )


class SeesDicts(Callback):
    def on_batch_end(self, net, batch, **kwargs):
        assert isinstance(batch[0], dict)


def test_torch_data_loader_serves_as_iterator():
    X, y = make_data()
    net = make_net(
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        train_split=ValidSplit(5),
        max_epochs=10,
    ).fit(X, y)
    assert net.history[-1, "valid_loss"] < net.history[0, "valid_loss"]
    again = clone(net).fit(X, y)
    assert_equal_states(again, net)
    assert net.predict(X).shape == y.shape


@orders
def test_single_target_may_come_with_or_without_its_own_dimension(order):
    X, y = make_data()
    flat = make_net(update_order=order, train_split=ValidSplit(5)).fit(X, y[:, 0])
    column = make_net(update_order=order, train_split=ValidSplit(5)).fit(X, y[:, :1])
    assert_equal_states(flat, column)
    assert flat.history[:, "valid_loss"] == column.history[:, "valid_loss"]
    assert flat.predict(X).shape == (N, 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_dtype_of_the_data_yields_to_that_of_the_module(dtype):
    X, y = make_data()
    net = make_net(module=Tanh, module__dtype=torch.float32).fit((10 * X).astype(dtype), y)
    prediction = net.predict((10 * X).astype(dtype))
    assert prediction.dtype == np.float32 and np.isfinite(prediction).all()
    assert net.module_.last_layer.weight.dtype == torch.float32


def test_skorch_splits_off_validation_rows():
    X, y = make_data()
    fixed = make_net(train_split=ValidSplit(5)).fit(X, y)
    assert len(fixed.history[:, "valid_loss"]) == 3
    random = ValidSplit(0.2, random_state=0)
    assert "valid_loss" in make_net(train_split=random).fit(X, y).history[-1]
    assert "valid_loss" not in make_net().fit(X, y).history[-1]


def test_features_are_the_backbones_output_in_evaluation_mode():
    X, y = make_data()
    net = make_net(module=Tanh, module__dropout=0.5).fit(X, y)
    fc = net.module_.backbone.fc
    expected = torch.tanh(torch.from_numpy(X) @ fc.weight.T + fc.bias)
    torch.testing.assert_close(net.features(X), expected, rtol=1e-12, atol=1e-12)
    layer = net.module_.last_layer
    np.testing.assert_allclose(net.predict(X), layer(expected).detach(), rtol=1e-10)


# -- random numbers ----------------------------------------------------------------------------


def loaded(X, y):
    return DataLoader(Pairs(X, y), batch_size=20, shuffle=True), None


@pytest.mark.parametrize("data", [lambda X, y: (X, y), loaded], ids=["arrays", "loader"])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("random_state", [0, None])
def test_global_random_states_are_left_alone(data, method, random_state):
    X, y = data(*make_data())
    torch.manual_seed(7)
    if random_state is None:
        torch.randint(2**31 - 1, ())  # the one draw that gives the net its seed
    expected = torch.get_rng_state()
    torch.manual_seed(7)
    numpy_state = np.random.get_state()[1].copy()
    module = partial(Tanh, dropout=0.3)
    net = make_net(module=module, random_state=random_state, train_split=None)
    getattr(net, method)(X, y)
    assert torch.equal(torch.get_rng_state(), expected)
    net.partial_fit(X, y)  # the seed is drawn once
    assert torch.equal(torch.get_rng_state(), expected)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("data", [lambda X, y: (X, y), loaded], ids=["arrays", "loader"])
def test_same_random_state_gives_the_same_weights(data):
    nets = []
    for global_seed, random_state in ((0, 5), (1, 5), (1, 6)):
        torch.manual_seed(global_seed)
        net = make_net(module=partial(Tanh, dropout=0.3), random_state=random_state)
        nets.append(net.fit(*data(*make_data())))
    assert_equal_states(nets[0], nets[1])
    assert not torch.equal(nets[1].module_.backbone.fc.weight, nets[2].module_.backbone.fc.weight)


def test_without_random_state_torchs_global_seed_decides():
    nets = []
    for global_seed in (3, 3, 4):
        torch.manual_seed(global_seed)
        nets.append(make_net(random_state=None).fit(*make_data()))
    assert_equal_states(nets[0], nets[1])
    assert not torch.equal(nets[1].module_.backbone.fc.weight, nets[2].module_.backbone.fc.weight)


# -- ends of all kinds -------------------------------------------------------------------------


class InterruptedAt(nn.Module):
    """Ctrl-C in the middle of a batch's forward pass."""

    def __init__(self, call):
        super().__init__()
        self.backbone, self.calls, self.call = Tanh(), 0, call

    def forward(self, inputs):
        self.calls += self.training
        if self.training and self.calls == self.call:
            raise KeyboardInterrupt
        return self.backbone(inputs)


@orders
def test_interruption_warns_and_keeps_a_usable_net(order):
    X, y = make_data()
    net = make_net(module=InterruptedAt(8), max_epochs=100, update_order=order)
    with pytest.warns(UserWarning, match="interrupted"):
        net.fit(X, y)
    assert len(net.history) < 100
    assert np.isfinite(net.predict(X)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and it goes on, without a second warning
        net.set_params(max_epochs=1).partial_fit(X, y)


class InterruptsABatch(Callback):
    def on_batch_end(self, net, training, **kwargs):
        self.seen = getattr(self, "seen", 0) + 1
        if self.seen == 4:  # the first batch of the second epoch
            raise KeyboardInterrupt


def test_interruption_while_a_callback_handles_a_batch_warns_too():
    # An early stop comes between epochs: within a batch it is a user who lost patience.
    X, y = make_data()
    net = make_net(max_epochs=100, callbacks=[InterruptsABatch()])
    with pytest.warns(UserWarning, match="interrupted"):
        net.fit(X, y)
    # The epoch that was cut short leaves no row.
    assert len(net.history) == 1 and np.isfinite(net.predict(X)).all()


class Rectified(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(D, WIDTH)

    def forward(self, inputs):
        return self.fc(inputs) ** 3


@orders
def test_divergence_names_what_to_change(order):
    X, y = make_data(np.float32)
    net = make_net(module=Rectified, optimizer=torch.optim.SGD, lr=1e30, update_order=order)
    with pytest.raises(FloatingPointError, match="diverged.*`learning_rate`.*1e.30.*`ridge`"):
        net.fit(X, y)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("inputs", FloatingPointError, "loss is not finite"),
        ("targets", ValueError, "`targets` must be finite, but 1 of"),
    ],
)
def test_rows_that_are_not_finite_stop_training(where, error, message):
    X, y = make_data()
    (X if where == "inputs" else y)[3, 0] = np.nan
    with pytest.raises(error, match=message):
        make_net().fit(X, y)


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_order": "both"}, "`update_order` must be one of .*backbone_first.*'both'"),
        ({"lr_schedule": "warm"}, "`lr_schedule` must be one of .*cosine.*'warm'"),
        ({"last_layer__memory": "none"}, "`memory` must be one of .*statistics.*'none'"),
        ({"last_layer__ridge": -2.0}, "`ridge` must be zero or positive.*-2.0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_net(**options).fit(*make_data())


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="last_layr__ridge"):
        make_net(last_layr__ridge=1.0).fit(*make_data())


def test_clone_of_a_net_is_unfitted_with_equal_parameters():
    net = make_net(last_layer__ridge=3.0, module__width=5, optimizer__weight_decay=0.1)
    net.fit(*make_data())
    copied = clone(net)
    assert not copied.initialized_
    assert {"last_layer__ridge", "module__width", "update_order"} <= copied.get_params().keys()
    for name, value in net.get_params(deep=False).items():
        assert copied.get_params()[name] is value or copied.get_params()[name] == value
    assert_equal_states(copied.fit(*make_data()), net)


def test_parameters_set_before_a_fit_take_effect():
    net = make_net().set_params(
        lr=0.002,
        update_order="last_layer_first",
        last_layer__ridge=7.0,
        module__width=5,
        optimizer__weight_decay=0.25,
        optimizer=torch.optim.AdamW,
    )
    net.fit(*make_data())
    group = net.optimizer_.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.002, 0.25)
    assert (net.module_.last_layer.ridge, net.module_.last_layer.in_features) == (7.0, 5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_rate_set_on_a_fitted_net_is_the_rate_of_the_next_epochs(schedule):
    X, y = make_data()
    net = make_net(lr=0.5, lr_schedule=schedule, max_epochs=2).fit(X, y)
    net.set_params(lr=0.01, max_epochs=1).partial_fit(X, y)
    assert 0 < net.history[-1, "learning_rate"] <= 0.01


def test_ridge_set_on_a_fitted_net_reaches_the_last_layer():
    X, y = make_data()
    net = make_net(last_layer__ridge=1.0).fit(X, y)
    net.set_params(last_layer__ridge=50.0).partial_fit(X, y)
    assert net.module_.last_layer.ridge == 50.0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedule_scales_the_rate_over_all_steps(schedule):
    X, y = make_data()
    rates = []

    class Listener(Callback):
        def on_batch_end(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    make_net(lr_schedule=schedule, callbacks=[Listener()]).fit(X, y)
    expected = [0.01 * SCHEDULES[schedule](step / 9) for step in range(9)]
    np.testing.assert_allclose(rates, expected)
