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
from functools import partial
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
from skorch.callbacks import Callback

from sklearn_cfll import CFLLRegressor

EPOCHS = 7  # of each way in a round, without the first


class Clock(Callback):
    """CPU seconds of the last epoch."""

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.begun_ = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.seconds_ = time.process_time() - self.begun_


def loop(task: Task) -> Epoch:
    epoch = plain_loop(task)

    def timed() -> float:
        begun = time.process_time()
        epoch()
        return time.process_time() - begun

    return timed


def ours(task: Task, **settings: Any) -> Epoch:
    clock = Clock()
    epoch = our_epochs(task, callbacks=[clock], **settings)

    def timed() -> float:
        epoch()
        return clock.seconds_

    return timed


WAYS: dict[str, Callable[[Task], Epoch]] = {
    "PyTorch loop, fused Adam": loop,
    "CFLL, last layer first": ours,
    "CFLL, last layer first, bf16": partial(ours, autocast=torch.bfloat16),
    "CFLL, backbone first": partial(ours, update_order="backbone_first"),
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
            taken = 1e3 * run() / task.n_steps
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


def run_rounds(
    doc: str | None, name: str, of_round: Callable[..., list[Record]], arguments: list[str] | None
) -> list[Record]:
    """Rounds of all tasks, stored under this name."""
    small: dict[str, Any] = {"tasks": ["default ensemble, 2,000 rows"]}
    bench = Bench(doc, name, arguments, seeds=5, smallest=small)
    tasks = bench.grid(TASKS, lambda name, seed, where: TASKS[name])
    bench.run(tasks, {"all": of_round}, ("task", "seed", "model"))
    return bench.records


def main(arguments: list[str] | None = None) -> None:
    report(run_rounds(__doc__, "steps", round_of, arguments))


if __name__ == "__main__":
    main()
