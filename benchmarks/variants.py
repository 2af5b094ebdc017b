"""Ways to a cheaper step that are not the default: compiled and half-precision backbones.

Seconds per epoch relative to a plain PyTorch loop with fused Adam, in one run.

    python benchmarks/variants.py                    # about 1 minute
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from common import Task, network, raw_loop
from torch import nn

from sklearn_cfll import CFLLNet


class HalfPrecision(nn.Module):
    """The backbone under bfloat16 autocast; features come out in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(20, 256, 0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(inputs).float()


def epochs(X: np.ndarray, y: np.ndarray, backbone: nn.Module, **options: object) -> float:
    net = CFLLNet(
        backbone,
        optimizer__fused=True,
        batch_size=256,
        max_epochs=5,
        last_layer__ridge=30.0,
        random_state=0,
        verbose=0,
        **options,
    ).fit(X, y)
    return statistics.median(net.history[1:, "dur"])


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 20)).astype("float32")
    y = (np.sin(X[:, :1]) + X[:, 1:2] ** 2).astype("float32")
    task = Task("speed", (X, y), (X[:1], y[:1]), (X[:1], y[:1]))
    rounds = []
    for _ in range(5):
        plain = [epoch[0] for epoch in raw_loop(task, "adam", 1e-2, 256, 256, 5, 0)]
        times = {
            "last layer first": epochs(X, y, network(20, 256, 0)),
            "compiled backbone": epochs(X, y, network(20, 256, 0), compile=True),
            "bfloat16 backbone": epochs(X, y, HalfPrecision()),
        }
        base = statistics.median(plain[1:])
        rounds.append({name: seconds / base for name, seconds in times.items()})
    print("Seconds per epoch relative to a plain PyTorch loop, fused Adam (d = B = 256)")
    for name in rounds[0]:
        print(f"{name:20s}{statistics.median(row[name] for row in rounds):6.2f}")


if __name__ == "__main__":
    main()
