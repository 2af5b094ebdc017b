"""The product equals the method in plain PyTorch, in both orders and with both memories."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reference
from helpers import draw
from sklearn_cfll import CFLLNet, CFLLRegressor, ClosedFormLastLayer

ROWS, WIDTH, K, LR = 60, 7, 2, 0.05
MEMORIES = {"proximal": reference.Proximal, "statistics": reference.Statistics}
orders = pytest.mark.parametrize("order", ["last_layer_first", "backbone_first"])
memories = pytest.mark.parametrize("memory", MEMORIES)
decays = pytest.mark.parametrize("decay", [1.0, 0.6])
sizes = pytest.mark.parametrize("batch_size", [5, 20, ROWS], ids=["dual", "primal", "full"])


def problem():
    X = draw(ROWS, 3)
    Y = torch.stack([torch.sin(2 * X[:, 0]), X[:, 1] * X[:, 2] + 4.0], 1)
    return X, Y, nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh()).double()


def expect(backbone, X, Y, batch_size, n_epochs=3, **settings):
    """Trained backbone and last layer of the reference."""
    backbone = copy.deepcopy(backbone)
    batches = list(zip(X.split(batch_size), Y.split(batch_size), strict=True))
    weight = reference.train(backbone, [batches] * n_epochs, d=WIDTH, k=K, lr=LR, **settings)
    return backbone, weight


def assert_equal(backbone, head, expected):
    other, weight = expected
    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(torch.cat([head.weight, head.bias[:, None]], 1).T, weight, **close)
    for ours, theirs in zip(backbone.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, **close)


@orders
@memories
@decays
@sizes
def test_the_net_equals_the_reference(order, memory, decay, batch_size):
    X, Y, backbone = problem()
    net = CFLLNet(
        copy.deepcopy(backbone),
        optimizer=torch.optim.SGD,
        lr=LR,
        update_order=order,
        last_layer__ridge=0.3,
        last_layer__decay=decay,
        last_layer__memory=memory,
        batch_size=batch_size,
        iterator_train__shuffle=False,
        max_epochs=3,
        verbose=0,
    ).fit(X, Y)
    settings = {"ridge": 0.3, "decay": decay, "order": order, "memory": MEMORIES[memory]()}
    expected = expect(backbone, X, Y, batch_size, **settings)
    assert_equal(net.module_.backbone, net.module_.last_layer, expected)


@orders
@memories
def test_a_loop_with_the_layer_equals_the_reference(order, memory):
    X, Y, backbone = problem()
    settings = {"ridge": 0.3, "decay": 0.8, "order": order, "memory": MEMORIES[memory]()}
    expected = expect(backbone, X, Y, ROWS, n_epochs=5, **settings)
    head = ClosedFormLastLayer(WIDTH, K, ridge=0.3, decay=0.8, memory=memory, dtype=X.dtype)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=LR)
    for _ in range(5):
        optimizer.zero_grad()
        first = order == "last_layer_first"
        F.mse_loss(head.update(backbone(X), Y) if first else head(backbone(X)), Y).backward()
        optimizer.step()
        if not first:
            head.update(backbone(X).detach(), Y)
    assert_equal(backbone, head, expected)


def test_the_estimator_in_full_batches_equals_the_reference():
    X, Y, backbone = problem()
    epochs = 10
    model = CFLLRegressor(
        copy.deepcopy(backbone),
        columns="passthrough",
        batch_size="full",
        ridge=1e-3,
        optimizer="sgd",
        learning_rate=LR,
        learning_rate_schedule="constant",
        weight_decay=0.0,
        max_epochs=epochs,
        early_stopping=False,
        refit_last_layer=False,
        normalize_y=False,
        precision="float64",
    ).fit(X.numpy(), Y.numpy())
    settings = {"ridge": 1e-3, "decay": 0.0, "order": "last_layer_first"}
    memory = reference.Proximal()
    expected = expect(backbone, X, Y, ROWS, n_epochs=epochs, memory=memory, **settings)
    assert_equal(model.net_.module_.backbone, model.net_.module_.last_layer, expected)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_reference_minimises_what_the_paper_writes(memory):
    features, targets, before = draw(9, 4), draw(9, K, seed=1), draw(5, K, seed=2)
    ridge, decay = 0.7, 0.6
    weight = MEMORIES[memory]().solve(before, features, targets, ridge, decay).requires_grad_()
    power = (features - features.mean(0)).square().mean()
    anchor = decay * before[:-1] if memory == "proximal" else 0.0
    error = (targets - features @ weight[:-1] - weight[-1]).square().sum() / len(features)
    objective = error + ridge * power * (weight[:-1] - anchor).square().sum()
    (slope,) = torch.autograd.grad(objective, weight)
    assert float(slope.abs().max()) < 1e-12
