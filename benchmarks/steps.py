"""Training steps on a CPU beside those of a plain PyTorch loop with fused Adam.

The same networks, batches and rows, on one thread. The loop trains all layers, last layers
included. Each record is a round of one process in which epochs of all ways alternate, so that other
work on the machine hits all of them; ratios are of the medians of a round. The default ensemble is
that of a fit, with the encoding of its columns.

    python benchmarks/steps.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gpu_steps import (
    Epoch,
    Task,
    ensemble_task,
    field_task,
    our_epochs,
    perceptron_task,
    plain_loop,
)
from harness import Bench, Record, means, print_origin, print_table
from large import rows

from sklearn_cfll import CFLLRegressor

EPOCHS = 7  # of each way in a round, without the first
WAYS: dict[str, Callable[[Task], Epoch]] = {
    "PyTorch loop, fused Adam": plain_loop,
    "CFLL, last layer first": our_epochs,
    "CFLL, last layer first, bf16": lambda task: our_epochs(task, autocast=torch.bfloat16),
    "CFLL, backbone first": lambda task: our_epochs(task, update_order="backbone_first"),
}


def default_ensemble(n_rows: int) -> Task:
    X, y = rows(0, n_rows)
    model = CFLLRegressor(max_epochs=1, random_state=0).fit(X, (y - y.mean()) / y.std())
    return ensemble_task(model, X, (y - y.mean()) / y.std(), "cpu")


TASKS: dict[str, Callable[[], Task]] = {
    "MLP 256-256, batch 256": lambda: perceptron_task(256, 256, 1, "cpu"),
    "MLP 1024-1024, batch 256": lambda: perceptron_task(1024, 256, 1, "cpu", 10),
    "default ensemble, 20,000 rows": lambda: default_ensemble(20_000),
    "default ensemble, 2,000 rows": lambda: default_ensemble(2000),
    "FNO, 32 x 32, batch 20": lambda: field_task(20, "cpu", 5, 32),
}


def round_of(make: Callable[[], Task], place: Record) -> list[Record]:
    """Milliseconds of the CPU per step of each way."""
    ways = {name: (task := make(), way(task)) for name, way in WAYS.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(EPOCHS + 1):
        for name, (task, run) in ways.items():
            begun = time.process_time()
            run()
            taken = 1e3 * (time.process_time() - begun) / task.n_steps
            found[name] += [taken] if epoch else []
    return [{"way": name, "ms": float(np.median(each))} for name, each in found.items()]


def report(records: list[Record]) -> None:
    print_origin(records)
    rounds = means(records, "ms", ("task", "seed"), "way")
    table = rounds.groupby(level="task", sort=False).median().T
    print_table("CPU milliseconds per step", table.T, ".2f")
    ratios = rounds.div(rounds["PyTorch loop, fused Adam"], axis=0)
    table = ratios.groupby(level="task", sort=False).median()
    print_table("To the PyTorch loop, medians of the rounds", table, ".2f")


def main(arguments: list[str] | None = None) -> None:
    small: dict[str, Any] = {"tasks": ["default ensemble, 2,000 rows"]}
    bench = Bench(__doc__, "steps", arguments, seeds=5, smallest=small)
    tasks = bench.grid(TASKS, lambda name, seed, where: TASKS[name])
    bench.run(tasks, {"all": round_of}, ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
