"""Fourier neural operators: a closed-form last layer against training all layers.

The same FNO, samples, batches, epochs and cosine schedule for every method: the closed form
in both orders, with Adam and with SGD on the backbone, and with weights 1 / ‖y‖² that make its
loss relative, against SGD, SGD with momentum, Adam and AdamW on all layers, and against
neuraloperator's own Trainer with its relative L2 loss and AdamW. Each method's learning rate is
chosen first, on the validation samples of the first seed and a quarter of the epochs; the test
samples are looked at for the table alone. The ridge is what the estimators' "auto" gives
fields. The measure is the mean over samples of ‖prediction − y‖ / ‖y‖, in y's units.

    python benchmarks/operators.py --quick                      # Burgers, two minutes, one core
    python benchmarks/operators.py --tasks burgers darcy navier_stokes
    python benchmarks/operators.py --tasks darcy_file --data DIR
    python benchmarks/operators.py --table                      # print the stored records
    python benchmarks/operators.py --steps                      # cost of a step beside Adam's

``darcy_file`` is neuraloperator's small Darcy set as ``DIR/darcy.npz``: X, y on 16 × 16 points
(the first 1,000 samples train), X_test32, y_test32 on 32 × 32.
Runs are stored as they end (``results/operators.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from operators_runs import (
    METHODS,
    MODES,
    RATES,
    RESOLUTION,
    Task,
    build,
    load_task,
    make_net,
    run_one,
    whole_network,
)
from records import add_records, read_records

from sklearn_cfll.training.batches import Batch
from sklearn_cfll.training.update_orders import UPDATE_ORDERS

RESULTS = Path(__file__).parent / "results"
DIVERGED = 1e6


class Store:
    """Records of runs in a file, so that none is run twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = {self._key(record): record for record in read_records(path)}

    @staticmethod
    def _key(record: dict) -> tuple:
        result = {"valid", "curve", "fine", "seconds"}
        return tuple(sorted((k, str(v)) for k, v in record.items() if k not in result))

    def find(self, run: dict) -> dict | None:
        return self.records.get(self._key(run))

    def run(self, task: Task, config: dict, setting: dict, seed: int) -> dict:
        run = {**setting, "seed": seed, **config}
        if (known := self.find(run)) is not None:
            return known
        run |= run_one(task, config, setting, seed)
        self.records[self._key(run)] = run
        add_records(self.path, [run])
        return run


def rates_of(config: dict) -> list[dict]:
    return [{**config, "lr": lr} for lr in RATES[config["optimizer"]]]


def by_validation(store: Store, setting: dict, config: dict, seed: int) -> list[dict]:
    """The configuration at each rate, best validation error first; empty until all were tried."""
    runs = [store.find({**setting, "seed": seed, **one}) for one in rates_of(config)]
    if any(run is None for run in runs):
        return []
    order = sorted(range(len(runs)), key=lambda i: runs[i]["valid"])
    return [rates_of(config)[i] for i in order]


def full_runs(
    find: Callable[[dict, int], dict | None], ranked: list[dict], seeds: list[int]
) -> list[dict]:
    """Runs of all seeds at the best rate that diverges on none of them."""
    runs: list[dict] = []
    for config in ranked:
        runs = [run for run in (find(config, seed) for seed in seeds) if run is not None]
        if runs and all(run["curve"][-1] < DIVERGED for run in runs):
            break
    return runs


def print_table(title: str, cells: dict[str, list[dict]], epochs: int) -> None:
    """One line a method: its test errors averaged over the seeds that were run."""
    shown = [epoch for epoch in (1, 2, 5, 8, 10, 12, 20, 50, 100, 200) if epoch < epochs]
    shown.append(epochs)
    print(f"\n{title}: test relative L2, mean over seeds")
    header = "".join(f"{epoch:8d}" for epoch in shown)
    print(f"{'epoch':34s}{header}{'finer':>8s}{'s/epoch':>8s}{'as Adam':>8s}   rate  seeds")
    adam = cells.get("all layers, Adam")
    goal = None if adam is None else np.mean([run["curve"][-1] for run in adam])
    for name, runs in cells.items():
        curve = np.mean([run["curve"] for run in runs], axis=0)
        fine = [run["fine"] for run in runs if run["fine"] is not None]
        numbers = "".join(f"{curve[epoch - 1]:8.4f}" for epoch in shown)
        below = [] if goal is None else np.flatnonzero(curve <= goal)
        reached = str(below[0] + 1) if len(below) else "-"  # epochs to Adam's last error
        finer = f"{np.mean(fine):8.4f}" if fine else f"{'-':>8s}"
        seconds = np.mean([run["seconds"] for run in runs])
        print(
            f"{name:34s}{numbers}{finer}{seconds:8.2f}{reached:>8s}{runs[0]['lr']:7g}{len(runs):7d}"
        )


def step_ratios(options: argparse.Namespace) -> None:
    """Seconds of a training step beside Adam's on all layers, taken in turns."""
    print(f"\n{'task':14s}{'width':>6s}{'batch':>6s}{'Adam, ms':>10s}  last first  backbone first")
    for name in options.tasks:
        task = load_task(name, options, 0)
        for batch_size in options.batch_sizes:
            setting = setting_of(name, options, batch_size)
            X, y = (part[:batch_size] for part in task.train)
            net = whole_network(task, setting, 0)
            optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

            def adam(net=net, optimizer=optimizer, X=X, y=y) -> None:
                loss = F.mse_loss(net(X)[..., 0], y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            steps = [adam]
            for order in ("last_layer_first", "backbone_first"):
                config = {"method": order, "optimizer": "adam", "lr": 1e-3, "ridge": 0.1}
                closed = make_net(config, setting, build(setting, 0, tuple(X.shape[1:])), [])
                closed.initialize()
                closed.lr_schedule = "constant"
                batch = Batch(X, y[..., None], None)
                steps.append(lambda closed=closed, batch=batch: closed.train_step(batch))
            seconds = [[] for _ in steps]
            for _ in range(options.repeats):
                for step, taken in zip(steps, seconds, strict=True):
                    start = time.perf_counter()
                    step()
                    taken.append(time.perf_counter() - start)
            base, last, back = (float(np.median(taken[2:])) for taken in seconds)
            print(
                f"{name:14s}{setting['width']:6d}{batch_size:6d}{1e3 * base:10.1f}"
                f"{last / base:12.2f}{back / base:16.2f}"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["burgers"], choices=RESOLUTION)
    parser.add_argument("--data", type=Path, help="folder with darcy.npz")
    parser.add_argument("--cache", type=Path, help="folder to keep simulated samples in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--valid", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--resolution", type=int, help="points on an axis; default by task")
    parser.add_argument("--finer", action="store_true", help="also test on a finer grid")
    parser.add_argument("--viscosity", type=float, default=0.1, help="of Burgers' equation")
    parser.add_argument("--modes", type=int, help="Fourier modes on an axis; default by task")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--ridge", type=float, default=0.1, help='0.1 is "auto" for fields')
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--repeats", type=int, default=15, help="of each step with --steps")
    parser.add_argument("--steps", action="store_true", help="only the cost of single steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small Burgers configuration")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--results", type=Path, default=RESULTS / "operators.jsonl")
    options = parser.parse_args()
    if options.quick:
        small = {"samples": 100, "valid": 40, "test": 100, "resolution": 64, "modes": 16}
        small |= {"width": 16, "layers": 2, "epochs": 10, "seeds": [0]}
        vars(options).update(small, tasks=["burgers"], finer=True)
    return options


def setting_of(name: str, options: argparse.Namespace, batch_size: int) -> dict:
    setting = {
        "task": name,
        "samples": min(options.samples, 900) if name == "darcy_file" else options.samples,
        "resolution": options.resolution or RESOLUTION[name],
        "modes": options.modes or MODES[name],
        "width": options.width,
        "layers": options.layers,
        "batch_size": batch_size,
        "epochs": options.epochs,
    }
    return setting | ({"viscosity": options.viscosity} if name == "burgers" else {})


def _stored(store: Store, setting: dict, config: dict, seed: int) -> dict | None:
    return store.find({**setting, "seed": seed, **config})


def compare(name: str, batch_size: int, options: argparse.Namespace, store: Store) -> None:
    """Rates of all methods, then their full runs seed by seed, then the table."""
    setting = setting_of(name, options, batch_size)
    short = {**setting, "epochs": max(1, options.epochs // 4)}
    configs = {}
    for key in options.methods or METHODS:
        method, optimizer, loss = METHODS[key]
        configs[key] = {"method": method, "optimizer": optimizer, "loss": loss}
        if method in UPDATE_ORDERS:
            configs[key]["ridge"] = options.ridge
    first = options.seeds[0]
    find = partial(_stored, store, setting)
    if not options.table:
        tasks = {seed: load_task(name, options, seed) for seed in options.seeds}
        for key, config in configs.items():
            for one in rates_of(config):
                store.run(tasks[first], one, short, first)
            print(f"{name}, {batch_size} a batch: rate of {key}", file=sys.stderr)

        def find(config: dict, seed: int) -> dict:
            print(f"{name}, {batch_size} a batch, seed {seed}: {config}", file=sys.stderr)
            return store.run(tasks[seed], config, setting, seed)

    cells = {}
    for key, config in configs.items():
        runs = full_runs(find, by_validation(store, short, config, first), options.seeds)
        if runs:
            cells[key] = runs
    if cells:
        print_table(", ".join(f"{k} {v}" for k, v in setting.items()), cells, options.epochs)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    store = Store(options.results)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    if options.steps:
        step_ratios(options)
        return
    for name in options.tasks:
        if name == "darcy_file" and not (options.data and (options.data / "darcy.npz").exists()):
            print("darcy_file: no darcy.npz in --data, left out", file=sys.stderr)
            continue
        for batch_size in options.batch_sizes:
            compare(name, batch_size, options, store)


if __name__ == "__main__":
    main()
