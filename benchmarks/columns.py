"""Uninformative features and category codes, beside peers; all models at their defaults.

Friedman's first function of the first 5 of 10 to 1,000 columns; four classes in clusters of the
first 6; codes of categories in random order beside four columns. ``results/columns.txt`` also has
other constants of scales and bins, measured when they could be replaced.

    python benchmarks/columns.py                                       # seven minutes
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from harness import Bench, Place, means, print_origin, print_table
from models import (
    CLASSIFIERS,
    COLUMNS,
    REGRESSORS,
    classification,
    our_classifier,
    ours,
    regressions,
)
from sklearn.datasets import make_classification, make_friedman1
from sklearn.model_selection import train_test_split

# Rows and columns.
SIZES = ((2000, 10), (800, 30), (2000, 30), (2000, 100), (2000, 300), (2000, 1000))
CODES = (25, 50, 100, 200)
PEERS = {name: REGRESSORS[name] for name in ("MLP, raw targets", "HistGradBoost", "RidgeCV")}
MODELS = {
    "Friedman": regressions(
        {"CFLL": ours(), "columns unscaled": ours(**COLUMNS["unscaled"])} | PEERS
    ),
    "4 classes": {
        name: classification(make)
        for name, make in (
            CLASSIFIERS | {"columns unscaled": our_classifier(**COLUMNS["classifier, unscaled"])}
        ).items()
    },
    "codes": regressions({"CFLL": ours(), "32 bins": ours(**COLUMNS["32 bins"])} | PEERS),
}
SMALLEST = ["columns unscaled", "RidgeCV", "LogisticRegression"]


def rows_of(part: str, size: tuple[int, int], seed: int) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test of so many rows and columns, or rows and codes."""
    if part == "Friedman":
        X, y = make_friedman1(*size, noise=0.5, random_state=seed)
    elif part == "4 classes":
        kinds = {"n_informative": 6, "n_redundant": 0, "n_classes": 4}
        X, y = make_classification(*size, **kinds, random_state=seed)
    else:
        rng = np.random.RandomState(seed)
        n_rows, n_codes = size
        code, Z = rng.randint(n_codes, size=n_rows), rng.standard_normal((n_rows, 4))
        y = rng.standard_normal(n_codes)[code] + Z[:, 0] * np.sin(Z[:, 1])
        y = y + 0.3 * rng.standard_normal(n_rows)
        X = np.column_stack([code, Z])
    test_size = 0.5 if part == "codes" else 0.25
    return train_test_split(X, y, test_size=test_size, random_state=seed)


def tasks(part: str, bench: Bench) -> Iterator[Place]:
    sizes = [(4000, n) for n in CODES] if part == "codes" else SIZES
    if bench.small:
        sizes = [(400, 10)]
    for seed in range(bench.options.seeds):
        for size in sizes:
            place = {"part": part, "task": " x ".join(map(str, size)), "seed": seed}
            yield place, partial(rows_of, part, size, seed)


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "columns", arguments, smallest={"models": SMALLEST})
    for part, models in MODELS.items():
        bench.run(tasks(part, bench), models, ("part", "task", "seed", "model"))
    print_origin(bench.records)
    for part, value in (("Friedman", "mse"), ("4 classes", "log_loss"), ("codes", "mse")):
        records = [record for record in bench.records if record["part"] == part]
        print_table(f"{part}: {value}, mean of seeds", means(records, value))


if __name__ == "__main__":
    main()
