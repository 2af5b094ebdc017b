"""CFLLNet: the loop equals plain PyTorch; seeds, parameters, and ends of all kinds."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_cfll import ClosedFormLastLayer
from sklearn_cfll.training.batches import BatchIterator
from sklearn_cfll.training.schedules import SCHEDULES
from small_nets import (
    WIDTH,
    D,
    K,
    N,
    Pairs,
    Tanh,
    assert_equal_states,
    make_data,
    make_net,
    memories,
    orders,
)

# -- the loop ---------------------------------------------------------------------------------


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


# -- data -------------------------------------------------------------------------------------


# -- random numbers ---------------------------------------------------------------------------


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


# -- ends of all kinds ------------------------------------------------------------------------


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
    with pytest.warns(UserWarning, match="interrupted after .* epoch"):
        net.fit(X, y)
    assert len(net.history) in (1, 2)  # two passes a batch where the backbone goes first
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
    with pytest.warns(UserWarning, match="interrupted after 1 epoch"):
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


# -- parameters -------------------------------------------------------------------------------


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
