"""Arrays, data sets, loaders and dicts train a CFLLNet alike."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from skorch.dataset import ValidSplit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import on_disk
from small_nets import WIDTH, D, K, N, Pairs, Tanh, assert_equal_states, make_data, make_net, orders


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
