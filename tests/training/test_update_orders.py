"""Update orders: one class and one line in the table add another."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_cfll import CFLLNet, ClosedFormLastLayer
from sklearn_cfll.training.update_orders import UPDATE_ORDERS


class Both:
    """Solve before the backbone's step and after it."""

    def update(self, module, batch, features):
        if features is None:
            with torch.no_grad():
                features = module.features(batch.inputs)
        module.last_layer.step(*batch.rows(module, features))
        return True


def test_one_line_in_the_table_adds_an_order(monkeypatch):
    monkeypatch.setitem(UPDATE_ORDERS, "both", Both())
    X = np.random.default_rng(0).normal(size=(40, 3))
    y = np.sin(X.sum(1, keepdims=True))
    backbone = nn.Sequential(nn.Linear(3, 8), nn.Tanh()).double()
    net = CFLLNet(
        copy.deepcopy(backbone),
        update_order="both",
        optimizer=torch.optim.SGD,
        lr=0.1,
        batch_size=20,
        iterator_train__shuffle=False,
        max_epochs=3,
        verbose=0,
    ).fit(X, y)
    head = ClosedFormLastLayer(8, 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    for _ in range(3):
        for part in (slice(0, 20), slice(20, 40)):
            inputs, targets = torch.from_numpy(X[part]), torch.from_numpy(y[part])
            optimizer.zero_grad()
            F.mse_loss(head.update(backbone(inputs), targets), targets).backward()
            optimizer.step()
            head.update(backbone(inputs), targets)
    torch.testing.assert_close(net.module_.last_layer.weight, head.weight)
    torch.testing.assert_close(net.module_.backbone[0].weight, backbone[0].weight)


def test_an_unknown_order_is_named():
    net = CFLLNet(nn.Linear(1, 2), update_order="neither", verbose=0)
    with pytest.raises(ValueError, match=r"`update_order` must be one of .*backbone_first"):
        net.fit(np.zeros((4, 1)), np.zeros((4, 1)))
