"""A perceptron of several members: each is a network of its own."""

import pytest
import torch
from torch import nn

from helpers import draw
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.mlp import MemberLinear

M = 3


@pytest.mark.parametrize("binned", [False, True])
def test_members_are_networks_of_their_own(binned):
    X = draw(30, 4)
    widths = (1, 3) if binned else ()
    together = MLPBackbone((8, 6), "tanh", n_members=M).build((4,), widths=widths).double()
    features = together(X)
    assert features.shape == (30, M * 6)
    one = MLPBackbone((8, 6), "tanh").build((4,), widths=widths).double()
    layers = [part for part in together.modules() if isinstance(part, MemberLinear)]
    own = [part for part in one.modules() if isinstance(part, nn.Linear)]
    for member in range(M):
        with torch.no_grad():
            for mine, all_members in zip(own, layers, strict=True):
                mine.weight.copy_(all_members.weight[member].T)
                mine.bias.copy_(all_members.bias[member, 0])
        torch.testing.assert_close(features[:, 6 * member : 6 * (member + 1)], one(X))


def test_member_layers_start_as_linear_layers_do():
    torch.manual_seed(0)
    layer = MemberLinear(50, 16, 30)
    for parameter in (layer.weight, layer.bias):
        assert float(parameter.detach().abs().max()) <= 0.25
        assert float(parameter.detach().std()) == pytest.approx(0.25 / 3**0.5, rel=0.05)
