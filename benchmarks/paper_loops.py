"""Many small networks side by side: the loops of the paper's experiments (``paper.py``).

A stack is m perceptrons of the same sizes; every tensor has m as its first dimension. Networks of
one seed start from the same weights and see the same batches; they differ in their learning rate
(and ridge). The updates of the last layer are those of ``sklearn_cfll.linalg``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_cfll import linalg
from sklearn_cfll.training.schedules import cosine

WIDEST = 1e6  # features beyond count as divergence
Loss = Callable[[Tensor, Tensor], Tensor]


class Method(NamedTuple):
    """How a network is trained; ``order`` None trains all layers by the optimiser."""

    optimizer: str  # "sgd", "momentum", "adam"
    order: str | None = None
    memory: str = "proximal"
    decay: float = 1.0
    loss: str = "squared"


class Stack:
    """Perceptrons with ReLU after every layer: the backbone."""

    def __init__(self, sizes: list[int], seeds: list[int], activation=torch.relu) -> None:
        self.activation, self.parameters = activation, []
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            self.parameters += linear(n_in, n_out, seeds, layer)

    def __call__(self, rows: Tensor) -> Tensor:
        for weight, bias in zip(self.parameters[::2], self.parameters[1::2], strict=True):
            rows = self.activation(torch.baddbmm(bias, rows, weight))
        return rows


def linear(n_in: int, n_out: int, seeds: list[int], layer: int) -> list[Tensor]:
    """torch's initialisation of a linear layer, one for each seed."""
    drawn = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(1000 * seed + layer)
        drawn.append((2 * torch.rand(n_in + 1, n_out, generator=generator) - 1) / n_in**0.5)
    both = torch.stack(drawn)
    return [both[:, :-1].clone().requires_grad_(), both[:, -1:].clone().requires_grad_()]


class Descent:
    """SGD, with momentum 0.9, or Adam; a learning rate (m,) for each network, a cosine schedule."""

    def __init__(self, parameters: list[Tensor], kind: str, rates: Tensor, steps: int) -> None:
        self.parameters, self.kind, self.steps, self.step_ = parameters, kind, steps, 0
        self.rates = rates[:, None, None]
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, loss: Tensor) -> None:
        gradients = torch.autograd.grad(loss, self.parameters)
        rates = self.rates * cosine(self.step_ / self.steps)
        self.step_ += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
                if self.kind == "momentum":
                    g = m.mul_(0.9).add_(g)
                elif self.kind == "adam":
                    m.lerp_(g, 0.1)
                    v.lerp_(g.square(), 0.001)
                    size = (v / (1 - 0.999**self.step_)).sqrt_().add_(1e-8)
                    g = m / (1 - 0.9**self.step_) / size
                p.addcmul_(rates, g, value=-1.0)


def alive(features: Tensor) -> Tensor:
    """The features, zero for networks that have diverged: they must not stop the others."""
    fine = (features.abs() < WIDEST).flatten(1).all(1)
    return torch.where(fine[:, None, None], features, 0.0)


class Trained:
    """A last layer that is trained by the optimiser as any other."""

    def __init__(self, d: int, k: int, seeds: list[int]) -> None:
        self.parameters = linear(d, k, seeds, 100)

    def __call__(self, features: Tensor) -> Tensor:
        return torch.baddbmm(self.parameters[1], features, self.parameters[0])


class Solved:
    """A last layer that is solved for; ``ridges`` (m,) are relative to the feature power."""

    parameters: tuple[Tensor, ...] = ()

    def __init__(self, d: int, k: int, ridges: Tensor, method: Method) -> None:
        self.ridges, self.method = ridges, method
        self.weight = torch.zeros(len(ridges), k, d)
        self.bias = torch.zeros(len(ridges), 1, k)
        self.moments: Tensor | None = None

    def __call__(self, features: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, features, self.weight.mT)

    @torch.no_grad()
    def step(self, features: Tensor, targets: Tensor) -> None:
        features = alive(features)
        mean, target_mean = features.mean(1, keepdim=True), targets.mean(1, keepdim=True)
        if self.method.memory == "statistics":
            mean, target_mean = self.solve_moments(features, targets)
        else:
            rows, wanted = features - mean, targets - target_mean
            penalty = self.ridges * rows.square().mean((1, 2)) + 1e-9
            update = linalg.dual_update if rows.shape[1] < rows.shape[2] else linalg.primal_update
            if self.method.memory == "proximal":
                self.weight = update(rows, wanted, self.weight, penalty, self.method.decay)
            else:  # an exponential average of ridge fits to one batch each
                alone = update(rows, wanted, torch.zeros_like(self.weight), penalty)
                self.weight = self.method.decay * self.weight + (1 - self.method.decay) * alone
        self.bias = target_mean - mean @ self.weight.mT

    def solve_moments(self, features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Ridge fit to the decayed moments of all batches so far; the means."""
        joint = torch.cat([features, targets, torch.ones_like(features[..., :1])], 2).double()
        old = 0.0 if self.moments is None else self.method.decay * self.moments
        self.moments, d = old + joint.mT @ joint, features.shape[2]
        mass = self.moments[:, -1:, -1:]
        means = self.moments[:, -1:, :-1] / mass
        inner = self.moments[:, :-1, :-1] / mass - means.mT @ means
        gram, means = inner[:, :d, :d], means.float()
        penalty = self.ridges * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
        self.weight = linalg.solve_symmetric(gram, penalty, inner[:, d:, :d]).float()
        return means[..., :d], means[..., d:]


class Data(NamedTuple):
    """Rows of each seed: (s, n, p) and (s, n, k), to train, to choose and to test."""

    train: tuple[Tensor, Tensor]
    valid: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean((1, 2))


def entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return -(targets * F.log_softmax(outputs, 2)).sum(2).mean(1)


LOSSES: dict[str, Loss] = {"squared": squared, "cross-entropy": entropy}


def run(
    data: Data,
    method: Method,
    grid: list[tuple[float, float]],
    *,
    widths: tuple[int, ...],
    batch_size: int,
    epochs: int,
) -> Iterator[tuple[float, Callable[[Tensor], Tensor]]]:
    """Train one network for each seed and each (rate, ridge); after each epoch its seconds and
    ``predict``, which maps rows (s, n, p) to outputs (s · g, n, k)."""
    X, Y = data.train
    s, n, p = X.shape
    k, g = Y.shape[2], len(grid)
    seeds = [seed for seed in range(s) for _ in grid]
    rates, ridges = (torch.tensor(part).repeat(s) for part in zip(*grid, strict=True))
    backbone = Stack([p, *widths], seeds)
    if method.order is None:
        head = Trained(widths[-1], k, seeds)
    else:
        head = Solved(widths[-1], k, ridges, method)
    n_batches = -(-n // batch_size)
    parameters = [*backbone.parameters, *head.parameters]
    optimizer = Descent(parameters, method.optimizer, rates, n_batches * epochs)
    generator, loss_of = torch.Generator().manual_seed(0), LOSSES[method.loss]

    @torch.no_grad()
    def predict(rows: Tensor) -> Tensor:
        return head(backbone(rows.repeat_interleave(g, 0)))

    for _ in range(epochs):
        start = time.process_time()
        order = torch.rand(s, n, generator=generator).argsort(1)
        for chosen in order.tensor_split(n_batches, 1):
            x, y = (
                part.gather(1, chosen[:, :, None].expand(-1, -1, part.shape[2])).repeat_interleave(
                    g, 0
                )
                for part in (X, Y)
            )
            features = backbone(x)
            if method.order == "last_layer_first":
                head.step(features.detach(), y)
            optimizer.step(loss_of(head(features), y).sum())
            if method.order == "backbone_first":
                with torch.no_grad():
                    head.step(backbone(x), y)
        if method.order == "last_layer_first" and method.memory != "statistics":
            with torch.no_grad():  # the last layer follows the epoch's last step, as in CFLLNet
                head.step(backbone(x), y)
        yield time.process_time() - start, predict
