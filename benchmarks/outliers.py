"""Inputs with heavy tails and wrong entries, left as they are.

Friedman's first function of 4,000 rows, its columns transformed by increasing functions or given
wrong entries: the information in the columns stays the same in the upper part of the table. Below,
a linear function of such columns, for which soft-clipping of outliers costs something.

    python benchmarks/outliers.py      # all defaults; six minutes
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
from harness import Bench, means, print_origin, print_table
from models import CLASSIFIERS, COLUMNS, REGRESSORS, classification, ours, regressions
from scipy.stats import norm
from sklearn.datasets import make_friedman1
from sklearn.model_selection import train_test_split

Rows = list[np.ndarray]


def wrong(share: float, value: float) -> Callable[..., np.ndarray]:
    def entries(Z: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        return np.where(rng.random_sample(Z.shape) < share, value * np.sign(Z), Z)

    return entries


# What standard normal columns could have been recorded as.
SHAPES: dict[str, Callable[[np.ndarray, np.random.RandomState], np.ndarray]] = {
    "normal": lambda Z, rng: Z,
    "lognormal, s = 1": lambda Z, rng: np.exp(Z),
    "cubed": lambda Z, rng: Z**3,
    "Cauchy": lambda Z, rng: np.tan(np.pi * (norm.cdf(Z) - 0.5)),
    "lognormal, s = 3": lambda Z, rng: np.exp(3 * Z),
    "0.1% are 1e6": wrong(0.001, 1e6),
    "1% are 1e3": wrong(0.01, 1e3),
}
CELLS = [*product(["friedman1"], SHAPES), *product(["linear"], list(SHAPES)[:3])]
REGRESSION = regressions(
    {"CFLL": ours(), "no bins": ours(**COLUMNS["no bins"])}
    | {name: REGRESSORS[name] for name in ("MLP, raw targets", "HistGradBoost", "RidgeCV")}
)
CLASSIFICATION = {
    name: classification(CLASSIFIERS[name])
    for name in ("CFLL", "MLPClassifier", "HistGradientBoosting")
}


def rows_of(task: str, shape: str, seed: int, classes: bool) -> Rows:
    """X_train, X_test, y_train, y_test; classes are targets above the median or not."""
    rng = np.random.RandomState(seed)
    if task == "friedman1":
        uniform, y = make_friedman1(4000, noise=0.5, random_state=seed)
        X = SHAPES[shape](norm.ppf(uniform.clip(1e-9, 1 - 1e-9)), rng)
    else:
        X = SHAPES[shape](rng.standard_normal((4000, 6)), rng)
        y = X @ np.arange(1, 7)
        y = y + 0.5 * np.subtract(*np.quantile(y, [0.75, 0.25])) * rng.standard_normal(len(y))
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, random_state=seed)
    middle = np.median(y)
    if classes:
        y, y_test = (np.where(part > middle, 1, 0) for part in (y, y_test))
    return [X, X_test, y, y_test]


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "outliers", arguments, smallest={"models": ["CFLL", "RidgeCV"]})
    cells = [("linear", "cubed")] if bench.small else CELLS
    key = ("part", "task", "shape", "seed", "model")
    for part, models in (("regression", REGRESSION), ("classes", CLASSIFICATION)):
        tasks = []
        for seed, (task, shape) in product(range(bench.options.seeds), cells):
            place = {"part": part, "task": task, "shape": shape, "seed": seed}
            tasks.append((place, partial(rows_of, task, shape, seed, part == "classes")))
        bench.run(tasks, models, key)
    print_origin(bench.records)
    print("All defaults, medians of the seeds; a run that diverged has an infinite error")
    for part, value, title in (
        ("regression", "mse", "Test MSE over the targets' variance"),
        ("classes", "error", "Share of wrong classes, target above its median or not"),
    ):
        records = [record for record in bench.records if record["part"] == part]
        print_table(title, means(records, value, ("task", "shape"), how="median"), ".4g")


if __name__ == "__main__":
    main()
