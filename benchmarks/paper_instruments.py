"""Deep features in both stages of an instrumental-variable regression, in mini-batches.

As in Xu et al. (2021): features ψ(x) of the treatment, φ(z) of the instruments. Stage 1 predicts
ψ(x) from φ(z), stage 2 the outcome from these predictions. V, which maps φ to predictions of ψ, is
solved for on all first-stage rows whenever stage 2 needs it, for every method: without it there is
no gradient for ψ. What is compared is how the last layer of each stage's loss is found: trained by
the optimiser, or solved for on each batch (in either order). Curves are those of Bennett, Kallus &
Schnabel (2019), as in ``instruments.py``.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from harness import Record
from paper_loops import Descent, Method, Solved, Stack, Trained, alive
from sklearn.utils import Bunch
from torch import Tensor

from instruments import make_curve
from sklearn_cfll import linalg

CURVES = ("abs", "sin", "step")
ROWS, HELD, D = 1000, 200, 8  # of each stage; features of each
PENALTY, RIDGE = 1e-3, 1.0  # of exact solves; of batches, relative to the feature power
RATES = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3),
    "momentum": (0.001, 0.003, 0.01, 0.03, 0.1),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
}


def load_curve(task: str, n_seeds: int) -> list[Bunch]:
    return [make_curve(task, 2 * ROWS + HELD, 100 + seed) for seed in range(n_seeds)]


def exact(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge fit (m, k, d) and intercept (m, 1, k); gradients pass it."""
    features = alive(features)
    mean, target_mean = features.mean(1, keepdim=True), targets.mean(1, keepdim=True)
    rows, wanted = features - mean, targets - target_mean
    penalty = PENALTY * rows.square().mean((1, 2)) + 1e-9
    zero = wanted.new_zeros(len(rows), wanted.shape[2], rows.shape[2])
    weight = linalg.primal_update(rows, wanted, zero, penalty)
    return weight, target_mean - mean @ weight.mT


def fit_instruments(data: list[Bunch], place: Record, methods: dict[str, Method]) -> Record | None:
    """Structural error at the epoch with the least held-out second-stage loss."""
    method = methods[place["method"]]
    rates = RATES[method.optimizer]
    s, g, size, epochs = len(data), len(rates), place["batch_size"], place["epochs"]
    seeds = [seed for seed in range(s) for _ in rates]

    def rows(of: list[np.ndarray]) -> Tensor:
        return torch.as_tensor(np.stack(of)).float().repeat_interleave(g, 0)

    X, Z = rows([one.X for one in data]), rows([one.Z for one in data]) / 3**0.5
    y = rows([one.y[:, None] for one in data])
    grid, truth = rows([one.grid.X for one in data]), rows([one.grid.y[:, None] for one in data])
    first, second, held = (slice(0, ROWS), slice(ROWS, 2 * ROWS), slice(2 * ROWS, None))
    treatment, instrument = Stack([1, 32, D], seeds), Stack([2, 32, 32], seeds)

    def head(d: int, k: int) -> Trained | Solved:
        if method.order is None:
            return Trained(d, k, seeds)
        return Solved(d, k, torch.full((len(seeds),), RIDGE), method)

    heads = head(32, D), head(D, 1)
    steps = epochs * (ROWS // size)
    rates = torch.tensor(rates).repeat(s)
    optimizers = [
        Descent([*net.parameters, *one.parameters], method.optimizer, rates, steps)
        for net, one in zip((instrument, treatment), heads, strict=True)
    ]

    def predicted(part: slice | Tensor, anchor: slice | Tensor) -> Tensor:
        """ψ as the instruments predict it; V from the rows of ``anchor``, through ψ."""
        with torch.no_grad():
            of_anchor, of_part = instrument(Z[:, anchor]), instrument(Z[:, part])
        weight, bias = exact(of_anchor, treatment(X[:, anchor]))
        return torch.baddbmm(bias, of_part, weight.mT)

    def step(stage: int, features, targets: Tensor) -> None:
        """One step on a batch; ``features()`` is the forward pass."""
        one = heads[stage]
        now = features()
        if method.order == "last_layer_first":
            one.step(now.detach(), targets)
        optimizers[stage].step((one(now) - targets).square().mean((1, 2)).sum())
        if method.order == "backbone_first":
            with torch.no_grad():
                one.step(features(), targets)

    valid, test, seconds = [], [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        start = time.process_time()
        order = torch.randperm(ROWS, generator=generator)
        for chosen in order.split(size):
            with torch.no_grad():
                wanted = treatment(X[:, chosen])
            step(0, lambda chosen=chosen: instrument(Z[:, chosen]), wanted)
            other = chosen + ROWS
            step(1, lambda other=other: predicted(other, first), y[:, other])
        seconds.append(time.process_time() - start)
        with torch.no_grad():
            # Every method ends with the same exact solve of stage 2.
            weight, bias = exact(predicted(second, first), y[:, second])
            missed = y[:, held] - torch.baddbmm(bias, predicted(held, first), weight.mT)
            off = truth - torch.baddbmm(bias, treatment(grid), weight.mT)
        for curve, value in ((valid, missed), (test, off)):
            error = torch.nan_to_num(value.square().mean((1, 2)), nan=torch.inf)
            curve.append(error.reshape(s, g).double().numpy())
    valid, test = np.array(valid), np.array(test)
    best = int(np.argmin(valid.min(0).mean(0)))
    at = [valid[: e + 1, :, best].argmin(0) for e in range(epochs)]
    curve = [test[row, np.arange(s), best].tolist() for row in at]
    chosen = RATES[method.optimizer]
    return {
        "rate": chosen[best],
        "ridge": RIDGE,
        "curve": curve,
        "seconds": float(np.median(seconds)),
        "diverged": float(np.isinf(valid[-1]).mean()),
        "edge": chosen[best] in (min(chosen), max(chosen)),
    }
