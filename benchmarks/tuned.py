"""CFLL against gradient training of all layers: same backbone, batches, epochs, schedule.

Each method's learning rate is chosen on validation rows, task by task and seed by seed; test
rows are looked at once, for the table. "kept" follows every method: at epoch e the iterate
with the least validation error so far. "+refit" ends with an exact ridge fit of the last
layer on the training rows, its ridge chosen on validation rows. Runs of fewer epochs, whose
schedules end sooner, show how much of the time of Adam's 50 epochs its test error takes.

    python benchmarks/tuned.py --data DIR            # about 15 minutes on one core
    python benchmarks/tuned.py --report              # print the stored records again
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from itertools import product
from typing import Any

import numpy as np
from harness import Bench, Record, geometric_mean, print_origin
from networks import Epoch, Setting, closed_form, errors_of, plain_loop, refit_errors
from tasks import BUNDLED, Task, load_task

SHOWN = (1, 2, 5, 10, 16, 20, 50)
ORDERS = ("last_layer_first", "backbone_first")
RIDGES = (1.0, 10.0, 30.0, 100.0)
RATES = {"adam": (1e-3, 3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
CLOSED_RATES = {"adam": (3e-3, 1e-2, 3e-2), "sgd": (0.03, 0.1, 0.3)}
SIZES = {"batch_size": 256, "width": 256, "epochs": 50}
SHORTER, DEFAULT_RIDGE = (5, 10, 16, 20), 30.0  # epochs, of those shown
KEY = ("task", "seed", "optimizer", "order", "ridge", "lr", *SIZES, "method")


def variants() -> list[Record]:
    """Every method, optimiser, order, ridge and rate of the comparison."""
    found: list[Record] = []
    for optimizer in RATES:
        plain = {"method": "all layers", "optimizer": optimizer}
        found += [plain | {"lr": lr} for lr in RATES[optimizer]]
        closed = {"method": "closed form", "optimizer": optimizer}
        for order, ridge, lr in product(ORDERS, RIDGES, CLOSED_RATES[optimizer]):
            found.append(closed | {"order": order, "ridge": ridge, "lr": lr})
    found = [variant | SIZES for variant in found]
    for variant in list(found):
        default = variant.get("ridge", DEFAULT_RIDGE) == DEFAULT_RIDGE
        if variant["optimizer"] == "adam" and default and variant.get("order") != ORDERS[1]:
            found += [variant | {"epochs": epochs} for epochs in SHORTER]
    return found


def run_one(task: Task, place: Record) -> Record:
    """Validation and test errors of each epoch, plain and refitted."""
    rows: list[tuple[float, ...]] = []
    seconds, of_refit = [], 0.0

    def look(epoch: Epoch) -> None:
        seconds.append(epoch.seconds)
        nonlocal of_refit
        shown, begun = len(seconds) in SHOWN, time.perf_counter()
        refit = refit_errors(epoch.features, task) if shown else (np.inf, np.inf)
        of_refit = time.perf_counter() - begun
        rows.append((*errors_of(epoch.predict, task), *refit))

    epochs = place["epochs"]
    way, options = plain_loop, {}
    if place["method"] == "closed form":
        way = closed_form
        options = {"update_order": place["order"], "last_layer__ridge": place["ridge"]}
    with contextlib.suppress(FloatingPointError):  # diverged: the rest counts as infinitely bad
        way(task, Setting.of(place), look, **options)
    rows += [(np.inf,) * 4] * (epochs - len(rows))
    table = np.nan_to_num(np.array(rows), nan=np.inf)
    best = np.array([table[: e + 1, 0].argmin() for e in range(epochs)])
    shown = [e for e in SHOWN if e <= epochs]
    return {
        "kept": [table[best[e - 1], 1] for e in shown],
        "plain": [table[e - 1, 1] for e in shown],
        "refit": [table[e - 1, 3] for e in shown],
        "curve": [round(float(table[i, 1]), 6) for i in best],
        "valid": float(table[best[-1], 0]),
        "valid_refit": float(table[epochs - 1, 2]),
        "seconds": float(np.median(seconds)) if seconds else np.inf,
        "seconds_of_refit": of_refit,
    }


def tuned(records: list[Record], refit: bool) -> dict[Any, dict[str, Any]]:
    """For each (task, method) the runs whose rate won on validation, averaged over seeds."""
    grouped: Any = defaultdict(lambda: defaultdict(list))
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


def report(records: list[Record]) -> None:
    tasks = list(dict.fromkeys(record["task"] for record in records))
    kept, refitted = tuned(records, False), tuned(records, True)
    methods = list(dict.fromkeys(key for _, key in kept))
    print(f"Test MSE (standardised targets), mean of {len({r['seed'] for r in records})} seeds")
    for optimizer in RATES:
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
                    ratios[name + suffix].append(cell["errors"] / kept[task, base]["errors"])
                    numbers = " ".join(f"{value:8.4f}" for value in cell["errors"])
                    print(f"  {name + suffix:38s}{numbers}   rates {cell['rates']}")
        print(f"\nRatio to all layers by {optimizer}, geometric mean over tasks; wins at 50")
        for name, rows in ratios.items():
            rows = np.array(rows)
            means = " ".join(f"{value:6.3f}" for value in geometric_mean(rows))
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


def report_times(records: list[Record]) -> None:
    """When runs reach the test error of 50 epochs of Adam on all layers, in shares of their time.

    A run is looked at where it ends, or, one of 50 epochs, on the way.
    """
    full, tasks = SIZES["epochs"], list(dict.fromkeys(record["task"] for record in records))
    base = ("all layers", "adam", None, None)
    ours = ("closed form", "adam", ORDERS[0], DEFAULT_RIDGE)
    at = {n: [r for r in records if r["epochs"] == n] for n in (*SHORTER, full)}
    wanted = tuned(at[full], False)
    short = [record for n in SHORTER for record in at[n]]

    def seconds(task: str, method: str, field: str = "seconds") -> float:
        return float(
            np.median([r[field] for r in short if (r["task"], r["method"]) == (task, method)])
        )

    print(f"\nError | time, relative to all layers by adam in {full} epochs: {', '.join(tasks)}")
    for key, refit in product((base, ours), (False, True)):
        name = "all layers" if key is base else f"{key[2]}, ridge {key[3]:g}"
        runs = {(n, n): tuned(at[n], refit) for n in SHORTER}
        runs |= {(n, full): tuned(at[full], refit) for n in SHOWN if n < full}
        reached = dict.fromkeys(tasks, np.inf)
        for (epoch, epochs), found in runs.items():
            cells = []
            for task in tasks:
                taken = epoch * seconds(task, key[0])
                taken += refit * seconds(task, key[0], "seconds_of_refit")
                share = taken / (full * seconds(task, base[0]))
                error = found[task, key]["errors"][SHOWN.index(epoch)]
                error /= wanted[task, base]["errors"][-1]
                cells.append(f"{error:5.2f} |{share:5.2f}")
                if error <= 1:
                    reached[task] = min(reached[task], share)
            label = f"{name}{' +refit' * refit}, epoch {epoch} of {epochs}"
            print(f"  {label:48s}" + "  ".join(cells))
        found = [reached[task] for task in tasks]
        shown = ", ".join(f"{share:.2f}" for share in found)
        print(f"  error first at most 1 after: {shown}; median {np.median(found):.2f}")


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "tuned", arguments, smallest={"tasks": ["diabetes"]})
    chosen = variants()
    if bench.small:
        first = [v for v in chosen if v.get("ridge", 30.0) == 30.0 and v["optimizer"] == "adam"]
        chosen = first[:5]
    tasks = bench.grid((*BUNDLED, "energy", "concrete"), load_task, variants=chosen)
    bench.run(tasks, dict.fromkeys(("all layers", "closed form"), run_one), KEY)
    print_origin(bench.records)
    print(SIZES)
    report([r for r in bench.records if all(r[name] == value for name, value in SIZES.items())])
    if not bench.small:
        report_times(bench.records)


if __name__ == "__main__":
    main()
