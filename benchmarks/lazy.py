"""Wide networks below a narrow last layer, and their equation in feature space (docs/theory.md).

All networks of a batch (s of them, one for each seed or rate) are stepped at once, in float64. Rows
are (s, n, ·); the loss is half the sum of squared residuals, without ridge, with an intercept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SQRT_PI = math.sqrt(math.pi)


class Rows(NamedTuple):
    """Inputs (s, n, p), the last of them constant, and centred targets (s, n, k)."""

    inputs: Tensor
    targets: Tensor


class Network(NamedTuple):
    """``φ(x) = V erf(A x) / √m``: A is (s, m, p), V is (s, d, m), normal entries at the start."""

    first: Tensor
    second: Tensor

    def hidden(self, inputs: Tensor) -> Tensor:
        """erf(A x), (s, n, m)."""
        return torch.erf(inputs @ self.first.mT)

    def features(self, inputs: Tensor) -> Tensor:
        return self.hidden(inputs) @ self.second.mT / math.sqrt(self.second.shape[-1])

    def repeated(self, times: int) -> Network:
        return Network(*(part.repeat_interleave(times, 0) for part in self))


def draw_rows(seeds: range, n: int, n_inputs: int) -> Rows:
    """Directions in space and a smooth function of them, centred and of variance one."""
    parts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(n, n_inputs, generator=generator, dtype=torch.float64)
        x = x / x.norm(dim=1, keepdim=True)
        y = torch.sin(4 * x[:, :1]) + 3 * x[:, 1:2] * x[:, 2:3]
        y = (y - y.mean(0)) / y.std(0)
        parts.append((torch.cat([x, torch.ones(n, 1, dtype=torch.float64)], 1), y))
    return Rows(*(torch.stack(part) for part in zip(*parts, strict=True)))


def draw_networks(seeds: range, n_inputs: int, width: int, d: int) -> Network:
    parts = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(1000 + seed)
        parts.append(
            [
                torch.randn(*shape, generator=generator, dtype=torch.float64)
                for shape in ((width, n_inputs + 1), (d, width))
            ]
        )
    return Network(*(torch.stack(part) for part in zip(*parts, strict=True)))


def centered(rows: Tensor) -> Tensor:
    return rows - rows.mean(-2, keepdim=True)


def solved(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """``W* = Φ⁺Y`` (s, d, k) of centred features, and the residuals ``E = Y - ΦW*`` (s, n, k)."""
    features = centered(features)
    gram = features.mT @ features
    weights = torch.linalg.solve(gram, features.mT @ targets)
    return weights, targets - features @ weights


def loss_of(residuals: Tensor) -> Tensor:
    return residuals.square().sum((-2, -1)) / 2


def step(
    network: Network, rows: Rows, hidden: Tensor, slope: Tensor, rates: Tensor | float
) -> Network:
    """A gradient step, given ``∂L/∂Φ`` (s, n, d): the chain rule, written out."""
    size = math.sqrt(network.second.shape[-1])
    bent = (2 / SQRT_PI) * torch.exp(-(rows.inputs @ network.first.mT).square())
    of_second = slope.mT @ hidden / size
    of_first = ((slope @ network.second) * bent).mT @ rows.inputs / size
    return Network(network.first - rates * of_first, network.second - rates * of_second)


def closed_form_run(network: Network, rows: Rows, rate: Tensor | float, steps: int, least: float):
    """Residuals of every step, until all losses are below ``least``."""
    found = []
    for _ in range(steps):
        hidden = network.hidden(rows.inputs)
        features = hidden @ network.second.mT / math.sqrt(network.second.shape[-1])
        weights, residuals = solved(features, rows.targets)
        found.append(residuals)
        if bool((loss_of(residuals) < least).all()):
            break
        network = step(network, rows, hidden, -residuals @ weights.mT, rate)
    return torch.stack(found, 1)


def all_layers_run(
    network: Network, weights: Tensor, rows: Rows, rates: Tensor, steps: int
) -> Tensor:
    """Losses (s, steps) of gradient descent on all layers, the intercept solved for."""
    found = []
    for _ in range(steps):
        hidden = network.hidden(rows.inputs)
        features = centered(hidden @ network.second.mT / math.sqrt(network.second.shape[-1]))
        residuals = rows.targets - features @ weights
        found.append(loss_of(residuals))
        network = step(network, rows, hidden, -residuals @ weights.mT, rates)
        weights = weights + rates * features.mT @ residuals
    return torch.stack(found, 1)


# -- kernels of features, (s, d, n, d, n) as matrices (s, d n, d n) ------------------------------


def own_kernel(network: Network, inputs: Tensor) -> Tensor:
    """``⟨∂φ_a(x_i), ∂φ_b(x_j)⟩`` of these networks."""
    s, d, m = network.second.shape
    n = inputs.shape[1]
    hidden = network.hidden(inputs)
    bent = (2 / SQRT_PI) * torch.exp(-(inputs @ network.first.mT).square())
    products = inputs @ inputs.mT
    inner = (network.second[:, :, None] * bent[:, None]).reshape(s, d * n, m)
    kernel = (inner @ inner.mT / m).reshape(s, d, n, d, n) * products[:, None, :, None]
    shared = hidden @ hidden.mT / m
    for a in range(d):
        kernel[:, a, :, a] += shared
    return kernel.reshape(s, d * n, d * n)


def limit_kernel(inputs: Tensor, d: int) -> Tensor:
    """Its limit for infinite width, K ⊗ I (Williams 1997 gives both expectations)."""
    products = inputs @ inputs.mT
    spread = 1 + 2 * products.diagonal(dim1=-2, dim2=-1)
    scale = spread[:, :, None] * spread[:, None, :]
    values = (2 / math.pi) * torch.asin(2 * products / scale.sqrt())
    slopes = (4 / math.pi) / (scale - 4 * products.square()).sqrt()
    scalar = values + slopes * products
    eye = torch.eye(d, dtype=inputs.dtype)
    return torch.einsum("sij,ab->saibj", scalar, eye).flatten(3, 4).flatten(1, 2)


def equation_run(
    features: Tensor, targets: Tensor, kernel: Tensor, rate: float, steps: int
) -> Tensor:
    """``dΦ/dt = K[E W*ᵀ]`` in steps of ``rate``: residuals (s, steps, n, k)."""
    found = []
    s, n, d = features.shape
    for _ in range(steps):
        weights, residuals = solved(features, targets)
        found.append(residuals)
        pushed = (residuals @ weights.mT).mT.reshape(s, d * n, 1)
        features = features + rate * (kernel @ pushed).reshape(s, d, n).mT
    return torch.stack(found, 1)
