"""How a proximal update is solved: time of each solver, and what conjugate gradients leave.

Features, targets and previous weights come from a network in the middle of its training, so
that conjugate gradients start where they start in practice. "left" is the distance to the
exact new weights, in the norm of the predictions, relative to the length of the update.

    python benchmarks/solvers.py                     # about 1 minute
"""

from __future__ import annotations

import time

import torch
from common import network

from sklearn_cfll import CFLLNet, linalg

RIDGES = (0.1, 1.0, 10.0, 30.0, 100.0)
STEPS = (1, 2, 3, 4, 6, 8)


def training_state(width: int, batch_size: int, n_targets: int, ridge: float):
    """Features and targets of the next batch, and the weights that earlier ones left."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(8 * batch_size, 20, generator=generator)
    mixing = torch.randn(20, n_targets, generator=generator)
    y = torch.sin(X @ mixing) + X[:, :1].square()
    net = CFLLNet(
        network(20, width, 0),
        lr=1e-2,
        optimizer__fused=True,
        batch_size=batch_size,
        max_epochs=3,
        last_layer__ridge=ridge,
        random_state=0,
        verbose=0,
    ).fit(X[batch_size:], y[batch_size:])
    with torch.no_grad():
        features = net.module_.backbone(X[:batch_size])
    return features, y[:batch_size], net.module_.last_layer.weight


def microseconds(update) -> float:
    """Best of five of the mean time of a call."""
    update()
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(30):
            update()
        best = min(best, (time.perf_counter() - start) / 30)
    return 1e6 * best


def main() -> None:
    torch.set_num_threads(1)
    print("Conjugate gradients: part of the update left after n steps (d = B = 256, k = 1)")
    print(f"{'ridge':>8s}" + "".join(f"{n:>9d}" for n in STEPS))
    for ridge in RIDGES:
        features, targets, weight = (part.double() for part in training_state(256, 256, 1, ridge))
        rows = linalg.center_rows(features, targets)
        penalty = ridge * linalg.feature_power(
            rows.features.square().sum(), 256, rows.total, rows.feature_mean
        )
        exact = linalg.primal_update(rows.features, rows.targets, weight, penalty)

        def length(step: torch.Tensor, rows=rows) -> float:
            return float((rows.features @ step.T).norm())

        left = [
            length(
                linalg.SOLVERS["cg"](rows.features, rows.targets, weight, penalty, n_steps=n)
                - exact
            )
            / length(exact - weight)
            for n in STEPS
        ]
        print(f"{ridge:8g}" + "".join(f"{value:9.4f}" for value in left))
    print("\nMicroseconds of one update at ridge 30, float32, one thread")
    print(f"{'d':>6s}{'B':>6s}{'k':>4s}{'primal':>9s}{'dual':>9s}{'cg':>9s}   auto")
    for width in (50, 128, 256, 512):
        for batch_size in (32, 128, 256, 1024):
            for n_targets in (1, 10):
                features, targets, weight = training_state(width, batch_size, n_targets, 30.0)
                cells = [
                    microseconds(
                        lambda solver=solver, f=features, t=targets, w=weight: linalg.proximal_step(
                            f, t, w, ridge=30.0, solver=solver
                        )
                    )
                    for solver in ("primal", "dual", "cg")
                ]
                chosen = linalg.choose_solver(batch_size, width, n_targets, 30.0)
                print(
                    f"{width:6d}{batch_size:6d}{n_targets:4d}"
                    + "".join(f"{cell:9.0f}" for cell in cells)
                    + f"   {chosen}"
                )


if __name__ == "__main__":
    main()
