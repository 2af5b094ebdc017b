"""CFLL against gradient training of all layers: same backbone, batches, epochs, schedule.

Each method's learning rate is chosen on validation rows, task by task and seed by seed; test
rows are looked at once, for the table. "kept" follows every method: at epoch e the iterate
with the least validation error so far. "+refit" ends with an exact ridge fit of the last
layer on the training rows, its ridge chosen on validation rows.

    python benchmarks/tuned.py --data DIR            # about 15 minutes on one core
    python benchmarks/tuned.py --table               # print the stored records again

Runs are stored as they end (``results/tuned.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from common import (
    BUNDLED,
    closed_form,
    load_task,
    mean_squared_error,
    raw_loop,
    refit_errors,
)
from records import add_records, read_records

RESULTS = Path(__file__).parent / "results"
SHOWN = (1, 2, 5, 10, 16, 20, 50)
ORDERS = ("last_layer_first", "backbone_first")
RATES = {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
CLOSED_RATES = {"adam": (3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}


def configurations(ridges: list[float]) -> list[dict]:
    """Every (method, optimiser, order, ridge, rate) of the comparison."""
    runs = []
    for optimizer in ("adam", "sgd"):
        for lr in RATES[optimizer]:
            runs.append({"method": "all layers", "optimizer": optimizer, "lr": lr})
        for order in ORDERS:
            for ridge in ridges:
                for lr in CLOSED_RATES[optimizer]:
                    runs.append(
                        {
                            "method": "closed form",
                            "optimizer": optimizer,
                            "order": order,
                            "ridge": ridge,
                            "lr": lr,
                        }
                    )
    return runs


def run_one(task, config: dict, width: int, batch_size: int, epochs: int, seed: int) -> dict:
    """Validation and test errors of each epoch, plain and refitted."""
    rows: list[tuple[float, float, float, float]] = []
    seconds: list[float] = []

    def look(epoch) -> None:
        took, predict, features = epoch
        seconds.append(took)
        plain = (mean_squared_error(predict, task.valid), mean_squared_error(predict, task.test))
        if len(rows) + 1 in SHOWN:
            rows.append((*plain, *refit_errors(features, task)))
        else:
            rows.append((*plain, np.inf, np.inf))

    arguments = (task, config["optimizer"], config["lr"], width, batch_size, epochs, seed)
    try:
        if config["method"] == "all layers":
            for epoch in raw_loop(*arguments):
                look(epoch)
        else:
            closed_form(
                *arguments,
                look,
                update_order=config["order"],
                last_layer__ridge=config["ridge"],
            )
    except FloatingPointError:
        pass  # diverged: what is left counts as infinitely bad
    rows += [(np.inf,) * 4] * (epochs - len(rows))
    table = np.nan_to_num(np.array(rows), nan=np.inf)
    best = np.array([table[: e + 1, 0].argmin() for e in range(epochs)])
    return {
        "kept": [table[best[e - 1], 1] for e in SHOWN],
        "plain": [table[e - 1, 1] for e in SHOWN],
        "refit": [table[e - 1, 3] for e in SHOWN],
        "curve": [round(float(table[i, 1]), 6) for i in best],
        "valid": float(table[best[-1], 0]),
        "valid_refit": float(table[epochs - 1, 2]),
        "seconds": float(np.median(seconds)) if seconds else np.inf,
    }


def tuned(records: list[dict], refit: bool) -> dict:
    """For each (task, method) the runs whose rate won on validation, averaged over seeds."""
    grouped = defaultdict(lambda: defaultdict(list))
    for record in records:
        key = (record["method"], record["optimizer"], record.get("order"), record.get("ridge"))
        grouped[record["task"], key][record["seed"]].append(record)
    chosen = {}
    for key, seeds in grouped.items():
        criterion = "valid_refit" if refit else "valid"
        best = [min(runs, key=lambda run: run[criterion]) for runs in seeds.values()]
        chosen[key] = {
            "errors": np.mean([run["refit" if refit else "kept"] for run in best], axis=0),
            "curve": np.mean([run["curve"] for run in best], axis=0),
            "rates": sorted({run["lr"] for run in best}),
        }
    return chosen


def print_tables(records: list[dict]) -> None:
    tasks = list(dict.fromkeys(record["task"] for record in records))
    kept, refitted = tuned(records, False), tuned(records, True)
    methods = list(dict.fromkeys(key for _, key in kept))
    print(f"Test MSE (standardised targets), mean of {len({r['seed'] for r in records})} seeds")
    for optimizer in ("adam", "sgd"):
        base = ("all layers", optimizer, None, None)
        ratios = defaultdict(list)
        for task in tasks:
            print(f"\n{task}, {optimizer}: epochs {SHOWN}")
            for key in methods:
                if key[1] != optimizer:
                    continue
                name = key[0] if key[2] is None else f"{key[2]}, ridge {key[3]:g}"
                for table, suffix in ((kept, ""), (refitted, " +refit")):
                    cell = table[task, key]
                    ratio = cell["errors"] / kept[task, base]["errors"]
                    ratios[name + suffix].append(ratio)
                    numbers = " ".join(f"{value:8.4f}" for value in cell["errors"])
                    print(f"  {name + suffix:38s}{numbers}   rates {cell['rates']}")
        print(f"\nRatio to all layers by {optimizer}, geometric mean over tasks; wins at 50")
        for name, rows in ratios.items():
            rows = np.array(rows)
            means = " ".join(f"{value:6.3f}" for value in np.exp(np.log(rows).mean(0)))
            print(
                f"  {name:38s}{means}   wins {(rows[:, -1] < 1).sum()}/{len(rows)}, "
                f"worst {rows[:, -1].max():.2f}; wins at 5/10/20/50 "
                f"{[int((rows[:, i] < 1).sum()) for i in (2, 3, 5, 6)]}"
            )
        print(f"\nEpochs until the 50-epoch error of all layers by {optimizer} (kept)")
        for key in methods:
            if key[1] != optimizer or key[2] is None:
                continue
            reached = []
            for task in tasks:
                target = kept[task, base]["errors"][-1]
                below = np.flatnonzero(kept[task, key]["curve"] <= target)
                reached.append(f"{task} {below[0] + 1 if len(below) else '-'}")
            print(f"  {key[2]}, ridge {key[3]:g}: " + ", ".join(reached))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--tasks", nargs="+", default=[*BUNDLED, "energy", "concrete"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ridges", type=float, nargs="+", default=[1.0, 10.0, 30.0, 100.0])
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--results", type=Path, default=RESULTS / "tuned.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = read_records(options.results)
    setting = {"batch_size": options.batch_size, "width": options.width, "epochs": options.epochs}
    identity = ("task", "seed", "method", "optimizer", "order", "ridge", "lr", *setting)
    done = {tuple(record.get(name) for name in identity) for record in records}
    for seed in [] if options.table else options.seeds:
        for name in options.tasks:
            try:
                task = load_task(name, seed, options.data)
            except FileNotFoundError:
                print(f"{name}: no {name}.npz in --data, left out", file=sys.stderr)
                continue
            for config in configurations(options.ridges):
                run = {"task": name, "seed": seed, **config, **setting}
                if tuple(run.get(key) for key in identity) in done:
                    continue
                run |= run_one(
                    task, config, options.width, options.batch_size, options.epochs, seed
                )
                records.append(run)
                add_records(options.results, [run])
            print(f"seed {seed}, {name} done", file=sys.stderr)
    chosen = [r for r in records if all(r[key] == value for key, value in setting.items())]
    print(f"{platform.machine()}, torch {torch.__version__}, one thread; {setting}")
    print_tables(chosen)


if __name__ == "__main__":
    main()
