"""Coverage of `predict_interval` and honesty of the predictive standard deviation.

Default settings. For each data set, averaged over splits: coverage of the 90% intervals; their
coverage on the third of the test rows that is predicted the least, and the most noisy; the mean
squared standardised residual; the mean log density of a normal with the predicted deviation,
and with one noise level for all rows ("constant"), in y's units.

    python benchmarks/intervals.py                 # bundled and simulated data, two minutes
    python benchmarks/intervals.py --data DIR      # with the UCI sets and their splits
"""

from __future__ import annotations

import numpy as np
from harness import Bench, Record, print_origin, print_table
from measures import of_regression
from pandas import DataFrame
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.model_selection import ShuffleSplit
from tasks import UCI, Where

from sklearn_cfll import CFLLRegressor

SPLITS = 5
SIMULATED = ("even noise", "uneven noise", "heavy tails", "friedman1", "diabetes")


def simulated(n: int = 2000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    signal = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]
    return {
        "even noise": (X, signal + 0.3 * rng.normal(size=n)),
        "uneven noise": (X, signal + (0.1 + 0.5 * np.abs(X[:, 0])) * rng.normal(size=n)),
        "heavy tails": (X, signal + 0.2 * rng.standard_t(2.5, size=n)),
        "friedman1": make_friedman1(n, noise=0.5, random_state=0),
        "diabetes": load_diabetes(return_X_y=True),
    }


def load(name: str, split: int, where: Where) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and the rows of the test set."""
    if name in UCI:
        stored = where.stored(name)
        return stored["X"], stored["y"], stored["test"][split]
    X, y = simulated()[name]
    parts = ShuffleSplit(SPLITS, test_size=0.3, random_state=0).split(X)
    return X, y, [test for _, test in parts][split]


def measure(rows: tuple[np.ndarray, np.ndarray, np.ndarray], place: Record) -> Record:
    X, y, test = rows
    train = np.setdiff1d(np.arange(len(y)), test)
    model = CFLLRegressor(random_state=place["seed"]).fit(X[train], y[train])
    interval = model.predict_interval(X[test], 0.9)
    mean, std = model.predict(X[test], return_std=True)
    found = of_regression(y[test], mean, std, interval)
    inside = (interval[0] <= y[test]) & (y[test] <= interval[1])
    order = std.argsort()
    third = len(order) // 3
    level = np.full(len(mean), np.sqrt(model.noise_variance_[0]))
    return {
        "coverage": found["coverage"],
        "quiet": float(inside[order[:third]].mean()),
        "noisy": float(inside[order[-third:]].mean()),
        "z²": found["squared_z"],
        "log p": found["log_likelihood"],
        "constant": of_regression(y[test], mean, level)["log_likelihood"],
    }


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"]}
    bench = Bench(__doc__, "intervals", arguments, seeds=SPLITS, smallest=small)
    tasks = bench.grid((*SIMULATED, *UCI), load)
    bench.run(tasks, {"CFLLRegressor": measure}, ("task", "seed", "model"))
    print_origin(bench.records)
    names = ["coverage", "quiet", "noisy", "z²", "log p", "constant"]
    table = DataFrame(bench.records).groupby("task", sort=False)[names].mean()
    table.loc["mean"] = table.mean()
    print_table(f"Means over splits of {len(table) - 1} sets", table, ".3f")


if __name__ == "__main__":
    main()
