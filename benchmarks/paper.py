"""The paper's kinds of experiments at sizes for two cores; writes docs/paper.md.

CFLL (arXiv 2510.04606) in both orders against SGD, SGD with momentum and Adam on all layers: the
same networks, batches, epochs and cosine schedule. The learning rate of each method is chosen on
validation rows for each task and batch size (mean over seeds); test rows are looked at for the
tables alone, at the epoch with the least validation error. The ridge is that of the estimators'
"auto" and is not tuned, except in the comparison of memories, where each gets the same grid.
Operators and instruments have fixed ridges (0.1 and 1); for operators the rate is chosen on the
first seed, and the last epoch counts.

- ``regression``: tables, batch sizes from 8 to 512; ``classification``: squared loss and
  cross-entropy, test error; ``memories``: what the last layer keeps of earlier batches.
- ``operators``: a Fourier neural operator on Burgers' equation.
- ``instruments``: deep features in both stages, curves with a confounder.
- ``times``: processor seconds of an epoch of one network on one thread.

    make paper                                # all, from what is stored; half an hour without it
    python benchmarks/paper.py --kinds regression --tasks smooth
    python benchmarks/paper.py --report --page docs/paper.md --csv paper.csv
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fno import Samples, load_fields, run_one
from harness import Bench, Place, Record, print_origin
from paper_instruments import CURVES, fit_instruments, load_curve
from paper_loops import Data, Method, run
from paper_report import draw_pictures, report, write_page
from tasks import Task, Where, load_classes, load_task

SEEDS, EPOCHS, WIDTHS, MOST_ROWS = 3, 20, (64, 64), 640
BATCH_SIZES = (8, 32, 128, 512)
RATES = {
    "sgd": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0),
    "momentum": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "adam": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 0.3, 1.0),
}
ORDERS = {"all layers": None, "last layer first": "last_layer_first"}
ORDERS |= {"backbone first": "backbone_first"}
OPTIMIZERS = {"SGD": "sgd", "momentum": "momentum", "Adam": "adam"}
METHODS = {
    f"{order}, {name}": Method(OPTIMIZERS[name], ORDERS[order])
    for order in ORDERS
    for name in OPTIMIZERS
}
ENTROPY = {
    f"cross-entropy, {name}": Method(kind, loss="cross-entropy")
    for name, kind in OPTIMIZERS.items()
}
MEMORIES = {
    "previous weights (proximal)": ("proximal", 1.0),
    "previous weights, decay 0.9": ("proximal", 0.9),
    "nothing": ("proximal", 0.0),
    "average of fits to one batch, 0.9": ("average", 0.9),
    "statistics, decay 0.9": ("statistics", 0.9),
    "statistics, decay 0.99": ("statistics", 0.99),
}
REMEMBERING = {
    f"{memory}, {name}": Method(OPTIMIZERS[name], "last_layer_first", *MEMORIES[memory])
    for memory in MEMORIES
    for name in ("SGD", "Adam")
}
RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)
TABLES = ("smooth", "friedman1", "diabetes", "energy", "concrete")
CLASSES = ("digits", "breast cancer", "segment")
FNO = {"samples": 100, "modes": 16, "width": 16, "layers": 4, "epochs": 15, "ridge": 0.1}
FNO_BATCHES = (5, 20)


def auto_ridge(width: int, batch_size: int) -> float:
    """The estimators' default for one network."""
    return 0.12 * width * min(1.0, width / batch_size) ** 2


# -- tables ---------------------------------------------------------------------------------------


def stacked(tasks: list[Task], classes: bool) -> Data:
    """The seeds of one task, cut to a common number of rows, inputs standardised."""
    parts = []
    for name in ("train", "valid", "test"):
        rows = [getattr(task, name) for task in tasks]
        n = min(min(len(X) for X, _ in rows), MOST_ROWS)
        parts.append([(X[:n], y[:n]) for X, y in rows])
    found = []
    for part in parts:
        inputs, targets = [], []
        for (X, y), (X_train, y_train) in zip(part, parts[0], strict=True):
            std = X_train.std(0)
            scaled = (X - X_train.mean(0)) / np.where(std > 1e-6, std, 1.0)
            inputs.append(torch.as_tensor(scaled.clip(-8, 8)).float())
            wanted = np.eye(1 + int(y_train.max()))[y] if classes else y
            targets.append(torch.as_tensor(wanted).float())
        found.append((torch.stack(inputs), torch.stack(targets)))
    return Data(*found)


def load_tables(task: str, n_seeds: int, where: Where, classes: bool) -> Data:
    load = load_classes if classes else load_task
    return stacked([load(task, seed, where) for seed in range(n_seeds)], classes)


def errors(outputs: torch.Tensor, targets: torch.Tensor, classes: bool) -> np.ndarray:
    """Of each network (seeds, settings): mean squared error, or share of wrong classes."""
    targets = targets.repeat_interleave(len(outputs) // len(targets), 0)
    if classes:
        finite = outputs.isfinite().all(2).all(1)
        wrong = (outputs.argmax(2) != targets.argmax(2)).double().mean(1)
        return torch.where(finite, wrong, torch.inf).numpy()
    found = (outputs - targets).double().square().mean((1, 2))
    return torch.nan_to_num(found, nan=torch.inf).numpy()


def train_tables(data: Data, place: Record, methods: dict[str, Method]) -> Record:
    """The curve of the setting that has the least validation error, mean over seeds."""
    method, size = methods[place["method"]], place["batch_size"]
    classes, n_seeds = place["kind"] == "classification", len(data.train[0])
    ridges = RIDGES if place["kind"] == "memories" else (auto_ridge(WIDTHS[-1], size),)
    rates = RATES[method.optimizer]
    if place["kind"] == "memories":
        rates = rates[2:8:2]
    grid = [(rate, ridge) for rate in rates for ridge in ridges]
    valid, test = [], []
    options = {"widths": WIDTHS, "batch_size": size, "epochs": place["epochs"]}
    for _, predict in run(data, method, grid, **options):
        for curve, (X, y) in ((valid, data.valid), (test, data.test)):
            curve.append(errors(predict(X), y, classes).reshape(n_seeds, -1))
    valid, test = np.array(valid), np.array(test)  # (epochs, seeds, settings)
    best = int(np.argmin(valid.min(0).mean(0)))
    kept = np.minimum.accumulate(valid[:, :, best], 0)
    at = [
        np.where(valid[: e + 1, :, best] == kept[e], np.arange(e + 1)[:, None], 0).max(0)
        for e in range(len(valid))
    ]
    curve = [test[row, np.arange(n_seeds), best].tolist() for row in at]
    lost = float(np.isinf(valid[-1]).mean())
    rate, ridge = grid[best]
    found = {"rate": rate, "ridge": ridge, "curve": rounded(curve), "diverged": lost}
    return found | {"edge": rate in (min(rates), max(rates))}


def rounded(values: list[list[float]]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values]


def time_step(data: Data, place: Record) -> Record:
    """Median processor seconds of an epoch of one network."""
    method = (METHODS | ENTROPY)[place["method"]]
    one = Data(*((X[:1], y[:1]) for X, y in data))
    ridge = auto_ridge(WIDTHS[-1], place["batch_size"])
    options = {"widths": WIDTHS, "batch_size": place["batch_size"], "epochs": 12}
    seconds = [took for took, _ in run(one, method, [(1e-3, ridge)], **options)]
    return {"seconds": float(np.median(seconds[2:]))}


# -- operators ------------------------------------------------------------------------------------

FNO_RATES = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
}


def train_operator(data: Callable[[int], Any], place: Record) -> Record:
    """All rates on the first seed; on the others the best of them that diverges on none."""
    method = METHODS[place["method"]]
    setting = FNO | {"optimizer": method.optimizer, "loss": "squared"}
    setting |= {"batch_size": place["batch_size"], "epochs": place["epochs"]}
    setting |= {"method": method.order or "all layers"}

    def once(rate: float, seed: int) -> Record:
        return run_one(data(seed), setting | {"lr": rate, "seed": seed})

    tried = {rate: once(rate, 0) for rate in FNO_RATES[method.optimizer]}
    for rate in sorted(tried, key=lambda rate: tried[rate]["valid"]):
        runs = [tried[rate], *(once(rate, seed) for seed in range(1, place["seeds"]))]
        if all(np.isfinite(one["valid"]) for one in runs):
            break
    lost = np.mean([not np.isfinite(one["valid"]) for one in tried.values()])
    return {
        "rate": rate,
        "ridge": FNO["ridge"],
        "curve": np.array([one["curve"] for one in runs]).T.tolist(),
        "seconds": float(np.median([one["seconds"] for one in runs])),
        "diverged": float(lost),
        "edge": rate in (min(tried), max(tried)),
    }


# -- all of them ----------------------------------------------------------------------------------


def places(bench: Bench) -> Iterator[Place]:
    """Every task of every kind, in the order in which they are measured."""
    small, where, n_seeds = bench.small, bench.where, bench.options.seeds
    kinds = bench.options.kinds or KINDS
    shared = {"seeds": n_seeds, "epochs": 2 if small else EPOCHS}

    def wanted(tasks: tuple[str, ...]) -> list[str]:
        tasks = tasks[:1] if small else tasks
        return [task for task in tasks if task in (bench.options.tasks or tasks)]

    sizes = (512,) if small else BATCH_SIZES
    for kind, tasks in (
        ("times", ("smooth",)),
        ("regression", TABLES),
        ("classification", CLASSES),
        ("memories", ("smooth", "friedman1")),
    ):
        for task in wanted(tasks) if kind in kinds else ():
            load = cache(partial(load_tables, task, n_seeds, where, kind == "classification"))
            for size in sizes[:3] if kind == "memories" else sizes:
                yield {"kind": kind, "task": task, "batch_size": size} | shared, load
    for task in wanted(tuple(CURVES)) if "instruments" in kinds else ():
        yield (
            {"kind": "instruments", "task": task, "batch_size": 100}
            | shared
            | {"seeds": 2 * n_seeds},
            partial(load_curve, task, 2 * n_seeds),
        )
    for task in wanted(("burgers",)) if "operators" in kinds and not small else ():
        fields = cache(
            lambda seed: load_fields("burgers", seed, where, Samples(FNO["samples"], 50, 100))
        )
        for size in FNO_BATCHES:
            place = {"kind": "operators", "task": task, "batch_size": size, "seeds": n_seeds}
            yield place | {"epochs": FNO["epochs"]}, lambda fields=fields: fields


BY_KIND: dict[str, tuple[dict[str, Method], Callable[..., Record]]] = {
    "times": (METHODS, time_step),
    "regression": (METHODS, partial(train_tables, methods=METHODS)),
    "classification": (METHODS | ENTROPY, partial(train_tables, methods=METHODS | ENTROPY)),
    "memories": (REMEMBERING, partial(train_tables, methods=REMEMBERING)),
    "instruments": (METHODS, partial(fit_instruments, methods=METHODS)),
    "operators": (METHODS, train_operator),
}
KINDS = tuple(BY_KIND)
KEY = ("kind", "task", "batch_size", "seeds", "epochs", "method")


def measure(data: Any, place: Record) -> Record | None:
    methods, fit = BY_KIND[place["kind"]]
    return fit(data, place) if place["method"] in methods else None


def curves(records: list[Record]) -> pd.DataFrame:
    """A line for each epoch and seed."""
    names = ("kind", "task", "batch_size", "method", "rate", "ridge")
    return pd.DataFrame(
        {name: record[name] for name in names} | {"seed": seed, "epoch": epoch, "error": error}
        for record in records
        for epoch, errors_of in enumerate(record.get("curve", ()), 1)
        for seed, error in enumerate(errors_of)
    )


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(
        __doc__,
        "paper",
        arguments,
        seeds=SEEDS,
        smallest={"models": ["last layer first, Adam", "all layers, SGD"]},
        kinds={"nargs": "+", "choices": KINDS, "help": "only these kinds of experiments"},
        page={"type": Path, "help": "write the page, and pictures beside it"},
        csv={"type": Path, "help": "write the error of every epoch and seed"},
    )
    names = METHODS | ENTROPY | REMEMBERING
    bench.run(places(bench), dict.fromkeys(names, measure), KEY)
    print_origin(bench.records)
    report(bench.records)
    if bench.options.csv:
        curves(bench.records).to_csv(bench.options.csv, index=False)
    if bench.options.page:
        draw_pictures(bench.records, bench.options.page.parent)
        write_page(bench.records, bench.options.page)


if __name__ == "__main__":
    main()
