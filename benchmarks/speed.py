"""Closed form beside its peers: one backbone, one data set, one run.

Seconds per epoch, peak memory, test error by epoch, and the time to the best peer's final
error, for CFLL in both update orders, a plain PyTorch loop (fused Adam, SGD), stock skorch and
scikit-learn's MLPRegressor; seconds per epoch with compiled and with half-precision backbones; and
whole fits of small data. Each method's rate is chosen on validation rows. Speed is compared
within rounds that run every method in turn, so that a slow minute of the machine hits all.

    python benchmarks/speed.py                     # friedman1, 20,000 × 20, about 4 minutes
    python benchmarks/speed.py --tasks energy --data DIR
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, cells, means, print_origin, print_table
from measures import stopwatch
from models import PLAIN, training_ridge
from networks import (
    Epoch,
    Look,
    Setting,
    closed_form,
    errors_of,
    network,
    plain_loop,
    refit_errors,
    scikit_mlp,
    stock_skorch,
)
from sklearn.neural_network import MLPRegressor
from tasks import Task, large_task
from torch import nn

from sklearn_cfll import CFLLNet, CFLLRegressor

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
COMPARED = ("PyTorch loop, fused Adam", "skorch, Adam", "MLPRegressor, Adam", "MLPRegressor")
PEERS = [name for name in WAYS if not name.startswith("CFLL")]


class HalfPrecision(nn.Module):
    """The backbone under bfloat16 autocast; features come out in float32."""

    def __init__(self, n_inputs: int) -> None:
        super().__init__()
        self.inner = network(n_inputs, 256, 0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(inputs).float()


def cheaper(task: Task, place: Record, compile: bool) -> Record:
    """Seconds per epoch with a compiled, or else a half-precision, backbone."""
    n_inputs = task.train[0].shape[1]
    net = CFLLNet(
        network(n_inputs, 256, 0) if compile else HalfPrecision(n_inputs),
        optimizer__fused=True,
        batch_size=256,
        max_epochs=place["epochs"],
        last_layer__ridge=30.0,
        compile=compile,
        random_state=0,
        verbose=0,
    ).fit(*task.train)
    return {"seconds": float(np.median(net.history[1:, "dur"]))}


def speed(task: Task, place: Record) -> Record:
    """Median seconds of an epoch, without the first."""
    seconds: list[float] = []
    optimizer, way = WAYS[place["model"]]
    setting = Setting(optimizer, RATES[optimizer][0], epochs=place["epochs"])
    way(task, setting, lambda epoch: seconds.append(epoch.seconds))
    return {"seconds": float(np.median(seconds[1:]))}


def memory(task: Task, place: Record) -> Record:
    """Megabytes that two epochs by this method add at their peak to a loaded process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_memory, args=(task, place["model"], queue))
    process.start()
    megabytes = queue.get()
    process.join()
    return {"megabytes": megabytes}


def _measure_memory(task: Task, name: str, queue: Any) -> None:
    torch.set_num_threads(1)
    network(1, 1, 0)(torch.zeros(1, 1)).sum().backward()  # torch's own start-up is not theirs
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    optimizer, way = WAYS[name]
    way(task, Setting(optimizer, RATES[optimizer][0], epochs=2), lambda epoch: None)
    queue.put(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    """Megabytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


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


def whole_fit(rows: Any, place: Record) -> Record:
    """Seconds of a fit of 1,000 x 10 rows, 20 epochs: small data must not drown in overhead."""
    X = np.random.default_rng(0).normal(size=(1000, 10))
    shared = {"hidden_layer_sizes": (256, 256), "batch_size": 256, "random_state": 0}
    with stopwatch() as taken:
        FITS[place["model"]](**shared).fit(X, X[:, 0] ** 2)
    return {"seconds": taken["seconds"]}


def our_fit(order: str, **shared: Any) -> CFLLRegressor:
    return CFLLRegressor(**PLAIN | shared | {"max_epochs": 20}, update_order=order)


def scikit_fit(**shared: Any) -> MLPRegressor:
    return MLPRegressor(**shared, max_iter=20, learning_rate_init=0.01, n_iter_no_change=20)


FITS = {
    "MLPRegressor": scikit_fit,
    "CFLLRegressor": partial(our_fit, "last_layer_first"),
    "CFLLRegressor, backbone first": partial(our_fit, "backbone_first"),
}


def report(records: list[Record]) -> None:
    """Speed, whole fits, error by epoch; the first round warms up."""
    print_origin(records)
    parts = {part: [r for r in records if r["part"] == part] for part in ("speed", "fits")}
    for part, title in (("speed", "Seconds per epoch"), ("fits", "Seconds of a whole fit")):
        rounds = means(parts[part], "seconds", ("task", "seed"))
        table = rounds.groupby(level="task").median().T
        for peer in (p for p in COMPARED if p in rounds):
            table[f"to {peer.split(',')[0]}"] = rounds.div(rounds[peer], axis=0).median()
        print_table(f"{title}; medians over rounds of the ratios", table, ".3f")
    if megabytes := [r for r in records if r["part"] == "memory"]:
        print_table("Peak megabytes", means(megabytes, "megabytes").T, ".0f")
    curves = {r["model"]: r for r in records if r["part"] == "curves"}
    if not curves:
        return
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
    small = {"tasks": ["diabetes"], "seeds": 2}
    bench = Bench(__doc__, "speed", arguments, seeds=6, smallest=small)
    names, epochs = ("friedman1-20k",), 5 if bench.small else 50
    models: dict[str, Any] = dict.fromkeys(WAYS, speed)
    if not bench.small:  # compiling takes a minute
        models["CFLL, compiled backbone"] = partial(cheaper, compile=True)
    models["CFLL, bfloat16 backbone"] = partial(cheaper, compile=False)
    bench.run(bench.grid(names, large_task, part="speed", epochs=5), models, KEY)
    place = {"part": "fits", "task": "1,000 x 10", "epochs": 20}
    rounds = [(place | {"seed": seed}, lambda: None) for seed in range(bench.options.seeds)]
    bench.run(rounds, dict.fromkeys(FITS, whole_fit), KEY)
    bench.options.seeds = 1
    if not bench.small:  # a process per model
        tasks = bench.grid(names, large_task, part="memory", epochs=2)
        bench.run(tasks, dict.fromkeys(WAYS, memory), KEY)
    tasks = bench.grid(names, large_task, part="curves", epochs=epochs)
    bench.run(tasks, dict.fromkeys(WAYS, curve), KEY)
    report(bench.records)


if __name__ == "__main__":
    main()
