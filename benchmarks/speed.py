"""Closed form beside its peers: one backbone, one data set, one run.

Seconds per epoch, test error by epoch, and the time to the best peer's final error, for CFLL in
both update orders, a plain PyTorch loop (fused Adam, SGD), stock skorch and scikit-learn's
MLPRegressor. Each method's rate is chosen on validation rows. Speed is compared within rounds that
run every method in turn, so that a slow minute of the machine hits all. ``results/speed.txt`` also
has peak memory and whole fits of 1,000 rows, ``results/variants.txt`` other backbones.

    python benchmarks/speed.py                     # friedman1, 20,000 × 20, about 4 minutes
    python benchmarks/speed.py --tasks energy --data DIR
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Bench, Record, cells, means, print_origin, print_table
from models import training_ridge
from networks import (
    Epoch,
    Look,
    Setting,
    closed_form,
    errors_of,
    plain_loop,
    refit_errors,
    scikit_mlp,
    stock_skorch,
)
from tasks import Task, large_task

SHOWN = (1, 2, 5, 10, 20, 50)
RATES = {"adam": (3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
KEY = ("part", "task", "seed", "epochs", "model")
Way = Callable[[Task, Setting, Look], Any]


def run_closed(task: Task, setting: Setting, look: Look, order: str) -> None:
    ridge = training_ridge(setting.width, setting.batch_size, len(task.train[0]))
    closed_form(task, setting, look, update_order=order, last_layer__ridge=ridge)


WAYS: dict[str, tuple[str, Way]] = {
    "PyTorch loop, fused Adam": ("adam", plain_loop),
    "PyTorch loop, SGD": ("sgd", plain_loop),
    "skorch, Adam": ("adam", stock_skorch),
    "MLPRegressor, Adam": ("adam", scikit_mlp),
    "CFLL, last layer first": ("adam", partial(run_closed, order="last_layer_first")),
    "CFLL, backbone first": ("adam", partial(run_closed, order="backbone_first")),
    "CFLL, last layer first, SGD": ("sgd", partial(run_closed, order="last_layer_first")),
}
COMPARED = ("PyTorch loop, fused Adam", "skorch, Adam", "MLPRegressor, Adam")
PEERS = [name for name in WAYS if not name.startswith("CFLL")]


def speed(task: Task, place: Record) -> Record:
    """Median seconds of an epoch, without the first."""
    seconds: list[float] = []
    optimizer, way = WAYS[place["model"]]
    setting = Setting(optimizer, RATES[optimizer][0], epochs=place["epochs"])
    way(task, setting, lambda epoch: seconds.append(epoch.seconds))
    return {"seconds": float(np.median(seconds[1:]))}


def curve(task: Task, place: Record) -> Record:
    """Errors by epoch at the rate that won on validation rows; time excludes looking."""
    optimizer, way = WAYS[place["model"]]
    best: Record = {"valid": np.inf}
    for rate in RATES[optimizer]:
        found: Record = {"rate": rate, "test": [], "seconds": [], "refit": []}

        def look(epoch: Epoch, found: Record = found) -> None:
            found["seconds"].append(epoch.seconds)
            found["valid"], test = errors_of(epoch.predict, task)
            found["test"].append(test)
            if len(found["test"]) in SHOWN and epoch.features is not None:
                found["refit"].append(refit_errors(epoch.features, task)[1])

        try:
            way(task, Setting(optimizer, rate, epochs=place["epochs"]), look)
        except FloatingPointError:
            continue
        best = min(best, found, key=lambda one: one["valid"])
    return best


def report(records: list[Record]) -> None:
    """Seconds per epoch, then the errors by epoch."""
    print_origin(records)
    rounds = means([r for r in records if r["part"] == "speed"], "seconds", ("task", "seed"))
    table = rounds.groupby(level="task").median().T
    for peer in (p for p in COMPARED if p in rounds):
        table[f"to {peer.split(',')[0]}"] = rounds.div(rounds[peer], axis=0).median()
    print_table("Seconds per epoch; medians over rounds of the ratios", table, ".3f")
    curves = {r["model"]: r for r in records if r["part"] == "curves"}
    shown = [e for e in SHOWN if e <= len(next(iter(curves.values()))["test"])]
    print(f"\nTest MSE (standardised) at epoch {'':8s}" + cells(shown, "9d"))
    for name, found in curves.items():
        errors = cells([found["test"][e - 1] for e in shown], "9.4f")
        print(f"{name:34s}{errors}   rate {found['rate']:g}")
        if name.startswith("CFLL"):
            print(f"{'  with the final refit':34s}" + cells(found["refit"], "9.4f"))
    target = min(curves[name]["test"][-1] for name in PEERS if name in curves)
    print(f"\nEpochs and seconds of training until the best peer's final error, {target:.4f}")
    for name, found in curves.items():
        below = np.flatnonzero(np.array(found["test"]) <= target)
        seconds = np.cumsum(found["seconds"])
        reached = f"{below[0] + 1:4d} {seconds[below[0]]:8.2f} s" if len(below) else "  not reached"
        print(f"{name:34s}{reached}")


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"]}
    bench = Bench(__doc__, "speed", arguments, seeds=5, smallest=small)
    names, epochs = ("friedman1-20k",), 2 if bench.small else 50
    rounds = bench.grid(names, large_task, part="speed", epochs=4)
    bench.run(rounds, dict.fromkeys(WAYS, speed), KEY)
    bench.options.seeds = 1
    tasks = bench.grid(names, large_task, part="curves", epochs=epochs)
    bench.run(tasks, dict.fromkeys(WAYS, curve), KEY)
    report(bench.records)


if __name__ == "__main__":
    main()
