"""Memories of a last layer: what they promise, and two that come from outside the package."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from helpers import OwnMemory, draw
from sklearn_cfll import CFLLNet, ClosedFormLastLayer, EnsembleLastLayer, linalg
from sklearn_cfll.heads import MEMORIES, Memory

D, K = 5, 2
members = pytest.mark.parametrize("n_members", [1, 3])


class MeanOfFits:
    """The mean of the fits to each batch alone; their number is its state."""

    holds_rows = False
    state = ("n_batches",)

    def update(self, members, rows):
        for member, features in zip(members, rows.features, strict=True):
            weight, bias = linalg.solve_moments(linalg.moments(features, rows.targets), 0.1)
            n_batches = torch.ones(()) if member.n_batches is None else member.n_batches + 1
            share = float(1 / n_batches)
            member.assign(member.weight.lerp(weight, share), member.bias.lerp(bias, share))
            member.remember(n_batches=n_batches)


def make_layer(n_members, **options):
    options = {"ridge": 0.3, "dtype": torch.float64} | options
    if n_members == 1:
        return ClosedFormLastLayer(D, K, **options)
    return EnsembleLastLayer(n_members * D, K, n_members=n_members, **options)


def batches(n_members, n=4):
    return [(draw(20, n_members * D, seed=i), draw(20, K, seed=100 + i)) for i in range(n)]


@pytest.mark.parametrize(
    "memory", [*MEMORIES.values(), OwnMemory()], ids=lambda m: type(m).__name__
)
def test_all_are_memories(memory):
    assert isinstance(memory, Memory)


@members
@pytest.mark.parametrize("memory", MEMORIES)
def test_rows_are_held_as_the_memory_says(memory, n_members):
    layer = make_layer(n_members, memory=memory)
    for batch in batches(n_members):
        layer.step(*batch)
    assert layer.holds_rows == layer.holds_moments == MEMORIES[memory].holds_rows
    assert float(layer.moments_total or 0.0) == 80.0 * layer.holds_rows


@members
def test_one_line_in_the_table_adds_a_memory(n_members, monkeypatch):
    monkeypatch.setitem(MEMORIES, "nothing", OwnMemory())
    layer, scratch = make_layer(n_members, memory="nothing"), make_layer(n_members, decay=0.0)
    for batch in batches(n_members):
        layer.step(*batch)
        scratch.step(*batch)
        torch.testing.assert_close(layer.weight, scratch.weight)
        torch.testing.assert_close(layer.bias, scratch.bias)


@members
def test_a_memory_may_be_an_object_with_state(n_members):
    layer = make_layer(n_members, memory=MeanOfFits())
    first, *later = batches(n_members)
    layer.step(*first)
    restored, copied = make_layer(n_members, memory=MeanOfFits()), copy.deepcopy(layer)
    restored.load_state_dict(layer.state_dict())
    for batch in later:
        for each in (layer, restored, copied):
            each.step(*batch)
    fits = [make_layer(n_members, decay=0.0, ridge=0.1) for _ in range(4)]
    for fit, batch in zip(fits, [first, *later], strict=True):
        fit.step(*batch)
    expected = torch.stack([fit.weight for fit in fits]).mean(0)
    for each in (layer, restored, copied):
        torch.testing.assert_close(each.weight, expected)


def test_a_net_trains_with_it(monkeypatch):
    monkeypatch.setitem(MEMORIES, "nothing", OwnMemory())
    X = np.linspace(-1, 1, 200).reshape(-1, 1)
    backbone = nn.Sequential(nn.Linear(1, 16), nn.Tanh()).double()
    settings = {"max_epochs": 5, "batch_size": 50, "verbose": 0, "random_state": 0}
    nets = [
        CFLLNet(copy.deepcopy(backbone), last_layer__memory="nothing", **settings),
        CFLLNet(copy.deepcopy(backbone), last_layer__decay=0.0, **settings),
    ]
    ours, scratch = (net.fit(X, np.sin(4 * X)).predict(X) for net in nets)
    np.testing.assert_allclose(ours, scratch, rtol=1e-6, atol=1e-8)


def test_what_is_no_memory_is_named():
    with pytest.raises(ValueError, match=r"`memory` must be one of .*'statistics'.*got 3"):
        make_layer(1, memory=3)
