"""Closed form beside its peers: one backbone, one data set, one run.

Seconds per epoch, peak memory, test error by epoch, and the time to the best peer's final
error, for CFLL in both update orders, a plain PyTorch loop (fused Adam, SGD), stock skorch and
scikit-learn's MLPRegressor. Each method's rate is chosen on validation rows. Speed is compared
within rounds that run every method in turn, so that a slow minute of the machine hits all.

    python benchmarks/harness.py                     # friedman1, 20,000 × 20, about 4 minutes
    python benchmarks/harness.py --task energy --data DIR
    python benchmarks/harness.py --speed             # seconds per epoch alone, 1 minute
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from common import (
    PLAIN,
    Epoch,
    Task,
    closed_form,
    load_task,
    mean_squared_error,
    network,
    raw_loop,
    refit_errors,
    stock_skorch,
)
from sklearn.neural_network import MLPRegressor

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator.defaults import DEFAULTS

SHOWN = (1, 2, 5, 10, 20, 50)
RATES = {"adam": (3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
Look = Callable[[Epoch], None]


def run_mlp(task: Task, lr: float, width: int, batch_size: int, epochs: int, seed: int, look: Look):
    """scikit-learn's own network, an epoch at a time."""
    X, y = task.train
    sizes = {"hidden_layer_sizes": (width, width), "batch_size": batch_size}
    net = MLPRegressor(**sizes, learning_rate_init=lr, alpha=0.0, random_state=seed)
    y = y.ravel() if y.shape[1] == 1 else y
    for _ in range(epochs):
        start = time.perf_counter()
        net.partial_fit(X, y)
        seconds = time.perf_counter() - start
        look((seconds, lambda X: net.predict(X).reshape(len(X), -1), None))


def run_raw(optimizer: str) -> Callable[..., None]:
    def run(task, lr, width, batch_size, epochs, seed, look) -> None:
        for epoch in raw_loop(task, optimizer, lr, width, batch_size, epochs, seed):
            look(epoch)

    return run


def run_closed(order: str, optimizer: str = "adam") -> Callable[..., None]:
    def run(task, lr, width, batch_size, epochs, seed, look) -> None:
        ridge = DEFAULTS.ridge("auto", (width,), batch_size, len(task.train[0]))
        options = {"update_order": order, "last_layer__ridge": ridge}
        closed_form(task, optimizer, lr, width, batch_size, epochs, seed, look, **options)

    return run


METHODS: dict[str, tuple[str, Callable[..., None]]] = {
    "PyTorch loop, fused Adam": ("adam", run_raw("adam")),
    "PyTorch loop, SGD": ("sgd", run_raw("sgd")),
    "skorch, Adam": ("adam", stock_skorch),
    "MLPRegressor, Adam": ("adam", run_mlp),
    "CFLL, last layer first": ("adam", run_closed("last_layer_first")),
    "CFLL, backbone first": ("adam", run_closed("backbone_first")),
    "CFLL, last layer first, SGD": ("sgd", run_closed("last_layer_first", "sgd")),
}
PEERS = [name for name in METHODS if not name.startswith("CFLL")]


def speed(task: Task, options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Median seconds of an epoch, and its median ratio to the plain Adam loop's."""
    rounds = []
    for _ in range(options.rounds):
        medians = {}
        for name, (optimizer, run) in METHODS.items():
            seconds: list[float] = []
            rate = RATES[optimizer][0]
            sizes = (options.width, options.batch_size, 4, 0)
            run(task, rate, *sizes, lambda epoch, seconds=seconds: seconds.append(epoch[0]))
            medians[name] = statistics.median(seconds[1:])
        rounds.append(medians)
    base = next(iter(METHODS))
    return {
        name: (
            statistics.median(r[name] for r in rounds),
            statistics.median(r[name] / r[base] for r in rounds),
        )
        for name in METHODS
    }


def peak_memory(name: str, options: argparse.Namespace) -> float:
    """Megabytes that two epochs by this method add at their peak to a loaded process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure_memory, args=(name, options, queue))
    process.start()
    megabytes = queue.get()
    process.join()
    return megabytes


def _measure_memory(name: str, options: argparse.Namespace, queue: Any) -> None:
    torch.set_num_threads(1)
    task = load_data(options)
    optimizer, run = METHODS[name]
    network(1, 1, 0)(torch.zeros(1, 1)).sum().backward()  # torch's own start-up is not theirs
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run(task, RATES[optimizer][0], options.width, options.batch_size, 2, 0, lambda epoch: None)
    queue.put(_resident("VmHWM") - before)


def _resident(field: str) -> float:
    """Megabytes of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def curves(task: Task, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Errors by epoch at the rate that won on validation rows; time excludes looking."""
    optimizer, run = METHODS[name]
    best: dict[str, Any] = {"valid": np.inf, "rate": None, "test": [], "seconds": [], "refit": []}
    for rate in RATES[optimizer]:
        found: dict[str, Any] = {"valid": [], "rate": rate, "test": [], "seconds": [], "refit": []}

        def look(epoch: Epoch, found: dict[str, Any] = found) -> None:
            seconds, predict, features = epoch
            found["seconds"].append(seconds)
            found["valid"].append(mean_squared_error(predict, task.valid))
            found["test"].append(mean_squared_error(predict, task.test))
            if len(found["test"]) in SHOWN and features is not None:
                found["refit"].append(refit_errors(features, task)[1])

        try:
            run(task, rate, options.width, options.batch_size, options.epochs, 0, look)
        except FloatingPointError:
            continue
        found["valid"] = found["valid"][-1]
        if found["valid"] < best["valid"]:
            best = found
    return best


def load_data(options: argparse.Namespace) -> Task:
    if options.task == "friedman1-20k":
        from sklearn.datasets import make_friedman1

        X, y = make_friedman1(24_000, n_features=20, noise=0.5, random_state=0)
        X = ((X - X[:20_000].mean(0)) / X[:20_000].std(0)).astype(np.float32)
        y = ((y - y[:20_000].mean()) / y[:20_000].std()).astype(np.float32)[:, None]
        parts = (slice(20_000), slice(20_000, 22_000), slice(22_000, None))
        return Task("friedman1-20k", *((X[part], y[part]) for part in parts))
    return load_task(options.task, 0, options.data)


def small_fits(rounds: int) -> None:
    """Whole fits on 1,000 x 10 rows, 20 epochs: small data must not drown in overhead."""
    X = np.random.default_rng(0).normal(size=(1000, 10))
    y = X[:, 0] ** 2
    shared = {"hidden_layer_sizes": (256, 256), "batch_size": 256, "random_state": 0}
    same = PLAIN | shared | {"max_epochs": 20}  # MLPRegressor's network
    fits = {
        "MLPRegressor": lambda: MLPRegressor(
            **shared, max_iter=20, learning_rate_init=0.01, n_iter_no_change=20
        ).fit(X, y),
        "CFLLRegressor": lambda: CFLLRegressor(**same).fit(X, y),
        "CFLLRegressor, backbone first": lambda: CFLLRegressor(
            **same, update_order="backbone_first"
        ).fit(X, y),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLPRegressor has not converged after 20 epochs
        times = []
        for _ in range(rounds + 1):  # the first warms up
            times.append({})
            for name, fit in fits.items():
                start = time.perf_counter()
                fit()
                times[-1][name] = time.perf_counter() - start
    print(
        "\nSeconds of a whole fit, 1,000 x 10 rows, 20 epochs, float64 (validation and refit too)"
    )
    for name in fits:
        seconds = statistics.median(row[name] for row in times[1:])
        ratio = statistics.median(row[name] / row["MLPRegressor"] for row in times[1:])
        print(f"{name:30s}{seconds:9.3f}{ratio:9.2f} x MLPRegressor")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="friedman1-20k")
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--speed", action="store_true", help="seconds per epoch alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_data(options)
    rows, columns = task.train[0].shape
    print(
        f"{options.task}: {rows} x {columns} training rows, MLP {options.width}-{options.width}, "
        f"batches of {options.batch_size}, float32, one thread\n"
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}\n"
    )
    timed = speed(task, options)
    reference = timed["MLPRegressor, Adam"][0], timed["skorch, Adam"][0]
    print(
        f"{'':30s}{'s/epoch':>9s}{'to raw':>9s}{'to MLP':>9s}{'to skorch':>10s}{'peak MB +':>10s}"
    )
    for name, (seconds, ratio) in timed.items():
        memory = f"{peak_memory(name, options):10.0f}" if not options.speed else ""
        print(
            f"{name:30s}{seconds:9.4f}{ratio:9.2f}{seconds / reference[0]:9.2f}"
            f"{seconds / reference[1]:10.2f}{memory}",
            flush=True,
        )
    small_fits(options.rounds)
    if options.speed:
        return
    found = {name: curves(task, name, options) for name in METHODS}
    shown = [epoch for epoch in SHOWN if epoch <= options.epochs]
    print(f"\nTest MSE (standardised) at epoch {'':8s}" + "".join(f"{e:9d}" for e in shown))
    for name, result in found.items():
        cells = "".join(f"{result['test'][e - 1]:9.4f}" for e in shown)
        print(f"{name:34s}{cells}   rate {result['rate']:g}")
        if name.startswith("CFLL"):
            cells = "".join(f"{value:9.4f}" for value in result["refit"])
            print(f"{'  with the final refit':34s}{cells}")
    target = min(found[name]["test"][-1] for name in PEERS)
    print(f"\nEpochs and seconds of training until the best peer's final error, {target:.4f}")
    for name, result in found.items():
        below = np.flatnonzero(np.array(result["test"]) <= target)
        seconds = np.cumsum(result["seconds"])
        reached = f"{below[0] + 1:4d} {seconds[below[0]]:8.2f} s" if len(below) else "  not reached"
        print(f"{name:34s}{reached}")


if __name__ == "__main__":
    main()
