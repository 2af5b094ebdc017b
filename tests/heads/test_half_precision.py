"""Last layers in half precision and under autocast."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import make_friedman1
from torch import nn

from helpers import draw
from sklearn_cfll import ClosedFormLastLayer
from small_layers import D, K, make_layer, members

halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


@halves
@members
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_features_in_half_precision_are_solved_in_float32(half, members, memory):
    features, targets = draw(60, members * D).to(half), draw(60, K)
    low, full = (make_layer(members, ridge=0.3, memory=memory) for _ in "ab")
    low.step(features, targets)
    full.step(features.float(), targets.float())
    torch.testing.assert_close(low.weight, full.weight)
    assert low.weight.dtype == torch.float32
    torch.testing.assert_close(low(features), full(features.float()))
    low.refit([(features, targets)])
    full.refit([(features.float(), targets.float())])
    torch.testing.assert_close(low.weight, full.weight)
    assert low.variance(features).dtype == torch.float32
    torch.testing.assert_close(low.variance(features), full.variance(features.float()))


@halves
def test_gradients_reach_features_in_half_precision(half):
    features = draw(40, D).to(half).requires_grad_()
    layer = ClosedFormLastLayer(D, K, ridge=0.3)
    F.mse_loss(layer.update(features, draw(40, K)), draw(40, K).float()).backward()
    assert features.grad.dtype == half and bool((features.grad != 0).all(1).any())


@members
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_under_autocast_the_solve_is_as_exact_as_outside(members, memory):
    features, targets = draw(60, members * D).float() + 3, draw(60, K).float()
    inside, outside = (make_layer(members, ridge=1e-3, memory=memory) for _ in "ab")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.step(features, targets)
        assert inside(features).dtype == torch.bfloat16
    outside.step(features, targets)
    assert torch.equal(inside.weight, outside.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside.refit([(features, targets)])
        leverage = inside.leverage(features)
    outside.refit([(features, targets)])
    assert torch.equal(inside.weight, outside.weight)
    assert torch.equal(leverage, outside.leverage(features))


def test_a_loop_under_autocast_learns():
    X, y = make_friedman1(300, n_features=5, random_state=0)
    X, y = torch.as_tensor(X).float(), torch.as_tensor((y - y.mean()) / y.std()).float()[:, None]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(5, 32), nn.ReLU())
    head = ClosedFormLastLayer(32, 1, ridge=1.0)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        for rows in torch.arange(300).split(50):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.mse_loss(head.update(backbone(X[rows]), y[rows]).float(), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert np.mean(losses[-6:]) < 0.5 * np.mean(losses[:6])
    assert head.weight.dtype == torch.float32


@halves
def test_a_layer_in_half_precision_keeps_its_dtype(half):
    layer = ClosedFormLastLayer(D, K, ridge=0.3, dtype=half)
    features, targets = draw(60, D).to(half), draw(60, K)
    assert layer.update(features, targets).dtype == half
    layer.refit([(features, targets)])
    assert layer.weight.dtype == layer.bias.dtype == half
    assert bool(torch.isfinite(layer.variance(features)).all())
