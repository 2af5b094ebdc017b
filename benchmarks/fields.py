"""Rate, epochs, schedule and batch size of the estimators on fields: a search on simulations.

Fits ``CFLLRegressor(FNOBackbone(...))`` with its own early stopping and final solve to small
samples of the package's simulators. Stage by stage: five rates, then more epochs at the three best,
then other batch sizes and schedules, most of them at the two best; the best seven settings of one
seed are fitted again with a second one. The measure is the mean over test samples of
‖prediction − y‖ / ‖y‖; settings are compared by its geometric mean over simulators.
With ``--data`` the estimator's defaults, which follow from the search, are fitted once to
neuraloperator's small Darcy set (DIR/darcy.npz: X, y on 16 × 16 points), which nothing was chosen
on, beside the former defaults. (``results/fields.txt`` has Adam on all layers beside them, too.)

    python benchmarks/fields.py                      # the search, half an hour on one core
    python benchmarks/fields.py --report             # print the stored records
    python benchmarks/fields.py --data DIR           # and what was chosen, on the shared file
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from fno import SIMULATORS
from harness import Bench, Record, cells, geometric_mean, means, print_origin, print_table
from measures import relative_l2, stopwatch

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone

TEST = 100  # samples


class Size(NamedTuple):
    simulator: str
    samples: int
    points: int  # along each axis
    modes: int
    width: int


TASKS = {
    "burgers": Size("burgers", 250, 64, 32, 32),
    "burgers, wide": Size("burgers", 250, 64, 32, 64),  # as the guide's: wide ones ask for less
    "darcy": Size("darcy", 200, 16, 8, 32),
    "navier_stokes": Size("navier_stokes", 200, 16, 8, 32),
}
SMALLEST = {"burgers": Size("burgers", 40, 32, 8, 8)}
SETTING = ("schedule", "batch_size", "rate", "epochs")
KEY = ("task", *SETTING, "seed", "model")
RATES = (0.001, 0.002, 0.005, 0.01, 0.02)
SCHEDULES = ("one_cycle", "linear")
BATCHES = (5, 10, 40, 256)
FINALISTS = 7
FILE = "darcy_file"
FORMER = {"learning_rate": 0.02, "max_epochs": 60}
CHOSEN: dict[str, dict[str, Any]] = {
    "defaults": {},
    "former defaults": FORMER | {"batch_size": 256},
    "former defaults, batches of 20": FORMER | {"batch_size": 20},
}


def stages(records: list[Record]) -> Iterator[tuple[int, list[tuple]]]:
    """Seed and settings of each stage, by what the stages before it found."""

    def best(n: int, **fixed: object) -> list[float]:
        """Rates of the n best settings of this kind."""
        found = [line for line in lines(records, {0}) if fixed.items() <= line[1].items()]
        return [setting["rate"] for _, setting, *_ in found[:n]]

    yield 0, [("cosine", 20, rate, 20) for rate in RATES]
    three = best(3, schedule="cosine", batch_size=20, epochs=20)
    yield 0, [("cosine", 20, rate, 40) for rate in three]
    two = best(2, schedule="cosine", batch_size=20, epochs=40)
    yield 0, list(product(("cosine",), BATCHES, two, (20,)))
    yield 0, list(product(("cosine",), (10,), two, (40,)))
    yield 0, list(product(SCHEDULES, (20,), two, (40,)))
    yield 0, [("one_cycle", 10, rate, 40) for rate in three]
    yield 0, [("cosine", 10, rate, 60) for rate in two]
    # One cycle was best at the end of the range: a higher rate, and fewer and more epochs.
    yield 0, [("one_cycle", 10, 0.04, 40), ("one_cycle", 10, 0.02, 20), ("one_cycle", 10, 0.02, 60)]
    yield 1, [tuple(setting.values()) for _, setting, *_ in lines(records, {0})[:FINALISTS]]


def fit(data: tuple[Size, np.ndarray, np.ndarray], place: Record) -> Record:
    """Error, the epoch that was kept and the processor's seconds."""
    size, X, y = data
    n = size.samples
    model = CFLLRegressor(
        FNOBackbone(size.modes, size.width),
        learning_rate=place["rate"],
        max_epochs=place["epochs"],
        learning_rate_schedule=place["schedule"],
        batch_size=place["batch_size"],
        precision="float32",
        random_state=place["seed"],
    )
    with stopwatch() as taken:
        try:
            model.fit(X[:n], y[:n])
            error, kept = relative_l2(model.predict(X[n:]), y[n:]), model.best_iteration_
        except FloatingPointError:  # diverged: worse than predicting zero
            error, kept = 1.0, 0
    return {"error": error, "kept": kept, "seconds": taken["cpu_seconds"]}


def search(bench: Bench) -> None:
    def load(name: str) -> tuple[Size, np.ndarray, np.ndarray]:
        size = (SMALLEST if bench.small else TASKS)[name]
        simulate, _ = SIMULATORS[size.simulator]
        total, cache = size.samples + TEST, bench.where.cache
        return size, *simulate(total, size.points, random_state=0, cache_dir=cache)

    for seed, settings in (
        [(0, [("cosine", 20, 0.01, 2)])] if bench.small else stages(bench.records)
    ):
        tasks = []
        for setting, name in product(settings, bench.options.tasks or TASKS):
            place = {"task": name, **dict(zip(SETTING, setting, strict=True)), "seed": seed}
            tasks.append((place, lambda name=name: load(name)))
        bench.run(tasks, {None: fit}, KEY)


def lines(records: list[Record], seeds: set[int]) -> list[tuple]:
    """(error, setting, error of each simulator, seconds, seeds), least error first.

    Of settings that every simulator has seen.
    """
    found: dict[tuple, list[Record]] = {}
    for record in records:
        if record["task"] in TASKS and record["seed"] in seeds:
            found.setdefault(tuple(record[key] for key in SETTING), []).append(record)
    table = []
    for values, runs in found.items():
        errors = [[run["error"] for run in runs if run["task"] == name] for name in TASKS]
        if n_seeds := min(map(len, errors)):
            each = [float(geometric_mean(some)) for some in errors]
            setting = dict(zip(SETTING, values, strict=True))
            seconds = float(np.mean([run["seconds"] for run in runs]))
            table.append((float(geometric_mean(each)), setting, each, seconds, n_seeds))
    return sorted(table, key=lambda line: line[0])


def report(records: list[Record]) -> None:
    """One line per setting, best first."""
    print_origin(records)
    head = f"{'schedule':10s}{'batch':>6s}{'rate':>7s}{'epochs':>7s}{'all':>9s}"
    print(f"{head}{cells(TASKS, '>15s')}{'s':>6s} seeds")
    for overall, setting, each, seconds, n_seeds in lines(records, {0, 1}):
        schedule, batch, rate, epochs = setting.values()
        print(
            f"{schedule:10s}{batch:6d}{rate:7g}{epochs:7d}{overall:9.4f}{cells(each, '15.4f')}"
            f"{seconds:6.1f}{n_seeds:6d}"
        )
    if chosen := [record for record in records if record["task"] == FILE]:
        for value in ("error", "seconds"):
            print_table(f"{FILE}: {value}", means(chosen, value).T)


def on_file(stored: dict[str, np.ndarray], place: Record) -> Record:
    """Former or present defaults on the shared Darcy file: 8 modes, width 24."""
    X, y = stored["X"].astype(float), stored["y"]
    with stopwatch() as taken:
        model = CFLLRegressor(FNOBackbone(8, 24), random_state=0, **CHOSEN[place["model"]])
        model.fit(X[:1000], y[:1000])  # a tenth of them is held out
    error = relative_l2(model.predict(X[1000:]), y[1000:])
    return {"error": error, "seconds": taken["cpu_seconds"]}


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "fields", arguments, smallest={"tasks": ["burgers"]})
    search(bench)
    if bench.where.data:
        place = {"task": FILE, "seed": 0}
        tasks = [(place, partial(bench.where.stored, "darcy"))]
        bench.run(tasks, dict.fromkeys(CHOSEN, on_file), ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
