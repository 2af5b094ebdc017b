"""Networks side by side: an ensemble's last layer is its members', exactly."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from helpers import draw
from sklearn_cfll import CFLLNet, ClosedFormLastLayer, EnsembleLastLayer
from sklearn_cfll.heads import Head

M, D, K = 3, 5, 2


def rows(n=40, width=M * D, seed=0):
    return draw(n, width, seed=seed)


def pair(**options):
    """An ensemble and its members on their own."""
    options = {"ridge": 0.7, "dtype": torch.float64} | options
    alone = [ClosedFormLastLayer(D, K, **options) for _ in range(M)]
    return EnsembleLastLayer(M * D, K, n_members=M, **options), alone


def blocks(features):
    return features.split(D, -1)


@pytest.mark.parametrize("n", [40, 4], ids=["primal", "dual"])
@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_members_are_solved_as_if_alone(n, memory, weighted, fit_intercept):
    together, alone = pair(memory=memory, fit_intercept=fit_intercept)
    weights = torch.rand(n, dtype=torch.float64) + 0.1 if weighted else None
    for seed in range(3):
        features, targets = rows(n, seed=seed), rows(n, K, seed=seed + 10)
        together.step(features, targets, weights)
        for layer, block in zip(alone, blocks(features), strict=True):
            layer.step(block, targets, weights)
    expected = torch.stack([m(b) for m, b in zip(alone, blocks(features), strict=True)])
    torch.testing.assert_close(together.member_predictions(features), expected)
    torch.testing.assert_close(together(features), expected.mean(0))


def test_wide_members_are_solved_as_if_alone():
    """From 128 features on one by one, by conjugate gradients."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(256, 2 * 128, generator=generator)
    targets = torch.randn(256, 1, generator=generator)
    together = EnsembleLastLayer(256, 1, n_members=2, ridge=10.0)
    alone = ClosedFormLastLayer(128, 1, ridge=10.0)
    together.step(features, targets)
    alone.step(features[:, 128:], targets)
    torch.testing.assert_close(together.members[1].weight, alone.weight)


def test_from_outside_it_is_one_linear_layer():
    together, _ = pair()
    features, targets = rows(), rows(width=K)
    together.step(features, targets)
    linear = together.to_linear()
    torch.testing.assert_close(linear(features), together(features))
    torch.testing.assert_close(linear.weight, together.weight)
    torch.testing.assert_close(linear.bias, together.bias)


def test_refit_path_and_left_out_rows_are_means_of_the_members():
    together, alone = pair()
    features, targets = rows(), rows(width=K)
    together.refit([(features[:30], targets[:30]), (features[30:], targets[30:])], ridge=0.1)
    for layer, block in zip(alone, blocks(features), strict=True):
        layer.refit([(block, targets)], ridge=0.1)
    parts = list(zip(alone, blocks(features), strict=True))
    mean = torch.stack([layer(block) for layer, block in parts]).mean(0)
    torch.testing.assert_close(together(features), mean)
    left_out = torch.stack([m.leave_one_out_residuals(b, targets) for m, b in parts]).mean(0)
    torch.testing.assert_close(together.leave_one_out_residuals(features, targets), left_out)
    weights, biases = together.ridge_path(torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(features @ weights[0].T + biases[0], mean)
    together.solve(3.0)
    torch.testing.assert_close(features @ weights[1].T + biases[1], together(features))


def test_left_out_residual_of_the_ensemble_is_a_refit_without_the_row():
    together, _ = pair()
    features, targets = rows(20), rows(20, K)
    together.refit([(features, targets)], ridge=0.5)
    shrinkage = torch.tensor([0.3, 0.8], dtype=torch.float64)
    together.solve(0.5, shrinkage)
    found = together.leave_one_out_residuals(features, targets)[0]
    members = []
    for block in blocks(features):
        centred = block - block.mean(0)
        penalty = 0.5 * centred.square().sum() / centred.numel() * len(block)
        ridge = Ridge(alpha=float(penalty)).fit(block[1:].numpy(), targets[1:].numpy())
        members.append(ridge.predict(block[:1].numpy())[0])
    expected = targets[0].numpy() - shrinkage.numpy() * np.mean(members, axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_spread_of_the_members_adds_to_the_variance():
    together, alone = pair()
    features, targets = rows(), rows(width=K)
    together.refit([(features, targets)])
    for layer, block in zip(alone, blocks(features), strict=True):
        layer.refit([(block, targets)])
    own = torch.stack([m.variance(b, 2.0) for m, b in zip(alone, blocks(features), strict=True)])
    spread = together.member_predictions(features).var(0, correction=0)
    torch.testing.assert_close(together.variance(features, 2.0), own.mean(0) + spread)


def test_uneven_blocks_are_refused():
    with pytest.raises(ValueError, match="`in_features` must be a multiple of `n_members`"):
        EnsembleLastLayer(10, 1, n_members=3)


# -- in a net ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["last_layer_first", "backbone_first"])
def test_a_net_of_two_members_trains_each_as_if_alone(order):
    """SGD on both: nothing but the sum of errors joins them."""
    X, y = rows(60, 4), rows(60, 1, seed=1)
    torch.manual_seed(0)
    backbones = [nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double() for _ in range(2)]

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(backbones)

        def forward(self, inputs):
            return torch.cat([part(inputs) for part in self.parts], 1)

    settings = {
        "optimizer": torch.optim.SGD,
        "lr": 0.1,
        "batch_size": 20,
        "max_epochs": 3,
        "update_order": order,
        "last_layer__ridge": 1.0,
        "random_state": 0,
        "verbose": 0,
    }
    alone = [CFLLNet(b, **settings).fit(X, y).predict(X) for b in map(copy_of, backbones)]
    both = CFLLNet(Both(), last_layer=EnsembleLastLayer, last_layer__n_members=2, **settings).fit(
        X, y
    )
    np.testing.assert_allclose(both.predict(X), np.mean(alone, axis=0), rtol=1e-10)


def copy_of(module):
    fresh = nn.Sequential(nn.Linear(4, 6), nn.Tanh()).double()
    fresh.load_state_dict(module.state_dict())
    return fresh


# -- as a head --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ClosedFormLastLayer, EnsembleLastLayer])
def test_both_last_layers_are_heads(make):
    head = make(4, 2)
    assert isinstance(head, Head)
    features = torch.randn(6, 5, 4)
    found = head.member_predictions(features)
    assert found.shape == (head.n_members, 6, 5, 2)
    torch.testing.assert_close(found.mean(0), head(features))
