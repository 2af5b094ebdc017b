"""A net, its rows and its states, for the tests of CFLLNet."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from sklearn_cfll import CFLLNet

N, D, WIDTH, K = 50, 3, 8, 2
ORDERS = ["last_layer_first", "backbone_first"]
SIZES = {"last_layer__in_features": WIDTH, "last_layer__out_features": K}
orders = pytest.mark.parametrize("order", ORDERS)
memories = pytest.mark.parametrize("memory", ["proximal", "statistics"])


class Tanh(nn.Module):
    """A small backbone; float64 so that equal steps give equal numbers."""

    def __init__(self, width=WIDTH, dtype=torch.float64, dropout=0.0, squeeze=False):
        super().__init__()
        self.fc = nn.Linear(D, 1 if squeeze else width, dtype=dtype)
        self.dropout, self.squeeze = nn.Dropout(dropout), squeeze

    def forward(self, inputs, scale=1.0):
        features = torch.tanh(scale * self.dropout(self.fc(inputs)))
        return features.squeeze(-1) if self.squeeze else features


def make_data(dtype=np.float64):
    generator = np.random.default_rng(0)
    X = generator.normal(size=(N, D))
    y = np.column_stack([np.sin(2 * X[:, 0]), X[:, 1] * X[:, 2]])
    return X.astype(dtype), y.astype(dtype)


def make_net(module=Tanh, **options):
    settings = {"max_epochs": 3, "batch_size": 20, "lr": 0.01, "verbose": 0, "random_state": 0}
    return CFLLNet(module, **{**settings, **options})


def state_of(net):
    return {name: value.clone() for name, value in net.module_.state_dict().items()}


def assert_equal_states(actual, expected, tolerance=0.0):
    actual, expected = (
        net if isinstance(net, dict) else net.module_.state_dict() for net in (actual, expected)
    )
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=tolerance, atol=tolerance)


class Pairs(Dataset):
    def __init__(self, X, y):
        self.X, self.y = X, y

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return self.X[index], self.y[index]
