"""Fourier neural operators: a closed-form last layer against training all layers.

The same FNO, samples, batches, epochs and cosine schedule for every method: the closed form
in both orders, with Adam and with SGD on the backbone, and with weights 1 / ‖y‖² that make its
loss relative, against SGD, SGD with momentum, Adam and AdamW on all layers, and against
neuraloperator's own Trainer with its relative L2 loss and AdamW. Each method's learning rate is
chosen first, on the validation samples of the first seed and a quarter of the epochs; the test
samples are looked at for the table alone. The ridge is what the estimators' "auto" gives
fields. The measure is the mean over samples of ‖prediction − y‖ / ‖y‖, in y's units.

    python benchmarks/operators.py --tasks burgers darcy navier_stokes      # see CASES
    python benchmarks/operators.py --tasks darcy_file --data DIR
    python benchmarks/operators.py --report                     # print the stored records
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fno import RESOLUTION, WAYS, Samples, load_fields, run_one
from harness import Bench, Record, cells, print_origin

RATES = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
}
METHODS = {  # by name in the table: who trains, the optimiser, the loss
    "all layers, SGD": ("all layers", "sgd", "squared"),
    "all layers, SGD + momentum": ("all layers", "momentum", "squared"),
    "all layers, Adam": ("all layers", "adam", "squared"),
    "all layers, AdamW": ("all layers", "adamw", "squared"),
    "neuraloperator's Trainer": ("trainer", "adamw", "relative L2"),
    "last layer first, SGD": ("last_layer_first", "sgd", "squared"),
    "last layer first, Adam": ("last_layer_first", "adam", "squared"),
    "last layer first, Adam, relative": ("last_layer_first", "adam", "squared relative"),
    "backbone first, SGD": ("backbone_first", "sgd", "squared"),
    "backbone first, Adam": ("backbone_first", "adam", "squared"),
}
SIZES = ("samples", "modes", "width", "batch_size", "epochs")
CASES = {  # (task, *SIZES), by what --tasks calls them
    "burgers": ("burgers", 1000, 32, 64, 20, 50),
    "darcy": ("darcy", 300, 12, 24, 20, 15),
    "darcy_file": ("darcy_file", 900, 8, 24, 20, 20),
    "navier_stokes": ("navier_stokes", 200, 12, 16, 20, 15),
    "burgers-5": ("burgers", 300, 32, 32, 5, 20),
    "burgers-20": ("burgers", 300, 32, 32, 20, 20),
    "burgers-100": ("burgers", 300, 32, 32, 100, 20),
    "smallest": ("burgers", 40, 8, 8, 20, 4),
}
SMALLEST_METHODS = ("all layers, Adam", "neuraloperator's Trainer", "last layer first, Adam")
FINER = ("burgers", "darcy")  # cases that are also tested on a finer grid
IDENTITY = ("task", "samples", "resolution", "modes", "width", "layers", "batch_size", "epochs")
KEY = (*IDENTITY, "viscosity", "seed", "optimizer", "loss", "ridge", "lr", "method")
RIDGE = 0.1  # "auto" for fields
DIVERGED = 1e6


def setting_of(case: str) -> Record:
    task, *sizes = CASES[case]
    found = dict(zip(SIZES, sizes, strict=True))
    setting = {"task": task, "resolution": RESOLUTION[task], "layers": 4} | found
    setting = {name: setting[name] for name in IDENTITY}
    return setting | ({"viscosity": 0.1} if task == "burgers" else {})


def config_of(name: str, lr: float | None = None) -> Record:
    method, optimizer, loss = METHODS[name]
    config = {"method": method, "optimizer": optimizer, "loss": loss}
    if method.endswith("first"):
        config["ridge"] = RIDGE
    return config | ({} if lr is None else {"lr": lr})


def of(records: list[Record], place: Record) -> list[Record]:
    """Records of this place, in the order of seeds."""
    found = [r for r in records if place.items() <= r.items()]
    return sorted(found, key=lambda record: record["seed"])


def ranked_rates(records: list[Record], setting: Record, name: str) -> list[float]:
    """The rates, best validation error first; empty until all were tried."""
    short = setting | {"epochs": max(1, setting["epochs"] // 4), "seed": 0} | config_of(name)
    runs = {r["lr"]: r["valid"] for r in of(records, short)}
    rates = RATES[METHODS[name][1]]
    return sorted(rates, key=runs.__getitem__) if set(rates) <= set(runs) else []


def diverged(runs: list[Record]) -> bool:
    return any(run["curve"][-1] >= DIVERGED for run in runs)


def full_runs(records: list[Record], setting: Record, name: str) -> list[Record]:
    """Runs of all seeds at the best rate that diverges on none of them."""
    runs: list[Record] = []
    for lr in ranked_rates(records, setting, name):
        runs = of(records, setting | config_of(name, lr))
        if runs and not diverged(runs):
            break
    return runs


def measure(bench: Bench, case: str) -> None:
    """Rates of all methods, then their full runs at the best rate that diverges on no seed."""
    setting = setting_of(case)
    sizes = Samples(setting["samples"], finer=case in FINER)
    if bench.small:
        sizes = Samples(setting["samples"], 10, 20)

    def tasks(seeds: range, epochs: int, configs: list[Record]) -> Any:
        for seed in seeds:
            load: Any = lambda seed=seed: load_fields(setting["task"], seed, bench.where, sizes)  # noqa: E731
            for config in configs:
                yield setting | {"epochs": epochs, "seed": seed} | config, load

    models: dict[str, Any] = dict.fromkeys(WAYS, run_one)
    names = SMALLEST_METHODS if bench.small else METHODS
    for name in names:
        rates = [config_of(name, lr) for lr in RATES[METHODS[name][1]]]
        bench.run(tasks(range(1), max(1, setting["epochs"] // 4), rates), models, KEY)
        for lr in ranked_rates(bench.records, setting, name):
            config, seeds = config_of(name, lr), range(bench.options.seeds)
            bench.run(tasks(seeds, setting["epochs"], [config]), models, KEY)
            if not diverged(of(bench.records, setting | config)):
                break


def report(records: list[Record], case: str) -> None:
    """One line per method: its test errors averaged over the seeds that were run."""
    setting = setting_of(case)
    found = {name: full_runs(records, setting, name) for name in METHODS}
    found = {name: runs for name, runs in found.items() if runs}
    if not found:
        return
    epochs = setting["epochs"]
    shown = [epoch for epoch in (1, 2, 5, 8, 10, 12, 20, 50, 100, 200) if epoch < epochs]
    shown.append(epochs)
    title = ", ".join(f"{key} {value}" for key, value in setting.items())
    print(f"\n{title}: test relative L2, mean over seeds")
    head = f"{'finer':>8s}{'s/epoch':>8s}{'as Adam':>8s}   rate  seeds"
    print(f"{'epoch':34s}" + cells(shown, "8d") + head)
    adam = found.get("all layers, Adam")
    goal = -np.inf if adam is None else np.mean([run["curve"][-1] for run in adam])
    for name, runs in found.items():
        curve = np.mean([run["curve"] for run in runs], axis=0)
        fine = [run["fine"] for run in runs if run["fine"] is not None]
        below = np.flatnonzero(curve <= goal)
        reached = str(below[0] + 1) if len(below) else "-"  # epochs to Adam's last error
        finer = f"{np.mean(fine):8.4f}" if fine else f"{'-':>8s}"
        seconds = np.mean([run["seconds"] for run in runs])
        print(
            f"{name:34s}{cells(curve[[epoch - 1 for epoch in shown]], '8.4f')}{finer}{seconds:8.2f}"
            f"{reached:>8s}{runs[0]['lr']:7g}{len(runs):7d}"
        )


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "operators", arguments, smallest={"tasks": ["smallest"]})
    cases = bench.options.tasks or [case for case in CASES if case != "smallest"]
    for case in cases:
        measure(bench, case)
    print_origin(bench.records)
    for case in cases:
        report(bench.records, case)


if __name__ == "__main__":
    main()
