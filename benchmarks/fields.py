"""Rate, epochs, schedule and batch size of the estimators on fields: a search on simulations.

Fits ``CFLLRegressor(FNOBackbone(...))`` with its own early stopping and final solve to small
samples of the package's simulators. Stage by stage: five rates, then more epochs at the three best,
then other batch sizes and schedules, most of them at the two best; the best seven settings of one
seed are fitted again with a second one. The measure is the mean over test samples of
‖prediction − y‖ / ‖y‖; settings are compared by its geometric mean over simulators.
``--report`` fits the estimator's defaults, which follow from the search, once to
neuraloperator's small Darcy set, which no choice has seen, beside the former defaults and Adam on
all layers in batches of 20 for as many epochs, at the rate that ``operators.py`` chose for it.

    python benchmarks/fields.py                      # the search, half an hour on one core
    python benchmarks/fields.py --table              # print the stored records
    python benchmarks/fields.py --report --data DIR  # DIR/darcy.npz: X, y on 16 × 16 points

Runs are stored as they end (``results/fields.jsonl``): an interrupted search goes on.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from operators_runs import SIMULATORS, load_task
from operators_runs import run_one as run_network
from records import add_records, read_records

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.estimator.defaults import DEFAULTS

RESULTS = Path(__file__).parent / "results" / "fields.jsonl"
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
SETTING = ("schedule", "batch_size", "rate", "epochs")
RATES = (0.001, 0.002, 0.005, 0.01, 0.02)
SCHEDULES = ("one_cycle", "linear")
BATCHES = (5, 10, 40, 256)
FINALISTS = 7


def stages(records: list[dict]) -> Iterator[tuple[int, list[tuple]]]:
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


def relative_error(prediction: np.ndarray, y: np.ndarray) -> float:
    error, size = ((part**2).reshape(len(y), -1).sum(1) for part in (prediction - y, y))
    return float(np.sqrt(error / size).mean())


def run_one(run: dict, data: tuple[np.ndarray, np.ndarray], size: Size) -> dict:
    """The run with its error, the epoch that was kept and the processor's seconds."""
    X, y = data
    n = size.samples
    model = CFLLRegressor(
        FNOBackbone(size.modes, size.width),
        learning_rate=run["rate"],
        max_epochs=run["epochs"],
        learning_rate_schedule=run["schedule"],
        batch_size=run["batch_size"],
        precision="float32",
        random_state=run["seed"],
    )
    start = time.process_time()
    try:
        model.fit(X[:n], y[:n])
        error, kept = relative_error(model.predict(X[n:]), y[n:]), model.best_iteration_
    except FloatingPointError:  # diverged: worse than predicting zero
        error, kept = 1.0, 0
    return {**run, "error": error, "kept": kept, "seconds": time.process_time() - start}


def run_search(options: argparse.Namespace) -> None:
    records = read_records(options.results)
    data = {
        name: SIMULATORS[size.simulator](
            size.samples + TEST, size.points, random_state=0, cache_dir=options.cache
        )
        for name, size in TASKS.items()
    }
    for seed, settings in stages(records):
        for setting, task in product(settings, TASKS):
            run = {"task": task, **dict(zip(SETTING, setting, strict=True)), "seed": seed}
            if any(run.items() <= record.items() for record in records):
                continue
            record = run_one(run, data[task], TASKS[task])
            records.append(record)
            add_records(options.results, [record])
            print(record, file=sys.stderr, flush=True)


def lines(records: list[dict], seeds: set[int]) -> list[tuple]:
    """(error, setting, error of each simulator, seconds, seeds), least error first.

    Of settings that every simulator has seen.
    """
    cells: dict[tuple, list[dict]] = {}
    for record in records:
        if record["task"] in TASKS and record["seed"] in seeds:
            cells.setdefault(tuple(record[key] for key in SETTING), []).append(record)
    found = []
    for values, runs in cells.items():
        errors = [[run["error"] for run in runs if run["task"] == name] for name in TASKS]
        if n_seeds := min(map(len, errors)):
            means = [geometric_mean(some) for some in errors]
            setting = dict(zip(SETTING, values, strict=True))
            seconds = float(np.mean([run["seconds"] for run in runs]))
            found.append((geometric_mean(means), setting, means, seconds, n_seeds))
    return sorted(found, key=lambda line: line[0])


def geometric_mean(values: list[float]) -> float:
    return float(np.exp(np.log(values).mean()))


def print_table(records: list[dict]) -> None:
    """One line a setting, best first."""
    head = "".join(f"{name:>15s}" for name in TASKS)
    print(
        f"{'schedule':10s}{'batch':>6s}{'rate':>7s}{'epochs':>7s}{'all':>9s}{head}{'s':>6s} seeds"
    )
    for overall, setting, means, seconds, n_seeds in lines(records, {0, 1}):
        schedule, batch, rate, epochs = setting.values()
        each = "".join(f"{mean:15.4f}" for mean in means)
        print(
            f"{schedule:10s}{batch:6d}{rate:7g}{epochs:7d}{overall:9.4f}{each}{seconds:6.1f}"
            f"{n_seeds:6d}"
        )


def report(options: argparse.Namespace) -> None:
    """Defaults, former defaults and Adam on the shared Darcy file, one seed."""
    name, (modes, width) = "darcy_file", (8, 24)
    vars(options).update(samples=900, valid=100, test=0)
    task = load_task(name, options, seed=0)
    stored = np.load(options.data / "darcy.npz")
    X, y = stored["X"].astype(float), stored["y"]
    former = {"learning_rate": 0.02, "max_epochs": 60}
    models = {
        "defaults": {},
        "former defaults": {**former, "batch_size": 256},
        "former defaults, batches of 20": {**former, "batch_size": 20},
    }
    print(f"\n{name}, width {width}, {modes} modes: test relative L2, processor's seconds")
    for title, settings in models.items():
        start = time.process_time()
        model = CFLLRegressor(FNOBackbone(modes, width), random_state=0, **settings)
        model.fit(X[:1000], y[:1000])  # a tenth of them is held out
        seconds = time.process_time() - start
        error = relative_error(model.predict(X[1000:]), y[1000:])
        print(f"{title:34s}{error:8.4f}{seconds:8.1f}", flush=True)
    setting = {"modes": modes, "width": width, "layers": 4, "batch_size": 20}
    setting["epochs"] = DEFAULTS.field_epochs
    config = {"method": "all layers", "optimizer": "adam", "lr": 0.01, "loss": "squared"}
    start = time.process_time()
    error = run_network(task, config, setting, seed=0)["curve"][-1]
    print(f"{'Adam on all layers':34s}{error:8.4f}{time.process_time() - start:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with darcy.npz")
    parser.add_argument("--cache", type=Path, help="folder to keep simulated samples in")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--report", action="store_true", help="what was chosen, on --data")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.report:
        report(options)
        return
    if not options.table:
        run_search(options)
    print_table(read_records(options.results))


if __name__ == "__main__":
    main()
