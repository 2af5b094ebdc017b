"""Targets far beyond all others: errors with the rule that clips them, and what the rule costs.

A few training targets are replaced by values up to 1e6 deviations away; test rows are clean. Below,
correct targets with heavy tails, where a rule that clips targets could do harm. Errors are the
median and the mean absolute error on the test rows, over the interquartile range of y.
``results/wild_targets.txt`` also has fits without the rule and with another gap, a constant of the
package.

    python benchmarks/wild_targets.py      # all defaults; seven minutes
"""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
from harness import Bench, Record, means, print_origin, print_table
from models import REGRESSORS
from sklearn.datasets import load_diabetes, make_friedman1, make_friedman3

from sklearn_cfll.estimator.wild_targets import wild_bounds

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # X, y, X_test, y_test
HONEST = (
    *("lognormal, s = 1.5", "lognormal, s = 2.3", "zero or exponential", "Cauchy noise"),
    *("t(1.5) noise", "claims", "Pareto(1.2)"),
)
CLIPPED = (
    *("lognormal, s = 2.3", "zero or exponential", "Cauchy noise", "claims"),
    *("zero or lognormal", "rare event"),
)
TASKS = (("friedman1", 300), ("friedman1", 1000), ("friedman3", 1000), ("diabetes", 300))


def clean(task: str, n_rows: int, seed: int) -> Rows:
    if task == "diabetes":
        X, y = load_diabetes(return_X_y=True)
        order = np.random.default_rng(seed).permutation(len(y))
        X, y = X[order], y[order]
    elif task == "friedman1":
        X, y = make_friedman1(n_rows + 1000, n_features=8, noise=1.0, random_state=seed)
    else:
        X, y = make_friedman3(n_rows + 1000, noise=0.1, random_state=seed)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def with_wild(task: str, n_rows: int, seed: int, count: int, farthest: float) -> Rows:
    """Of any sign, the farthest of them so many deviations away, the others up to a tenth of it."""
    X, y, X_test, y_test = clean(task, n_rows, seed)
    if not count:
        return X, y, X_test, y_test
    rng = np.random.default_rng(seed)
    y, chosen = y.copy(), rng.choice(len(y), count, replace=False)
    size = farthest * 10 ** -rng.random(count)
    size[0] = farthest
    y[chosen] = y.mean() + y.std() * size * rng.choice([-1, 1], count)
    return X, y, X_test, y_test


def honest(kind: str, n_rows: int, seed: int) -> Rows:
    """A function of two columns and noise with a heavy tail."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows + 1000, 5))
    signal, normal = X[:, 0] + 0.5 * X[:, 1], rng.normal(size=len(X))
    y = {
        "lognormal, s = 1.5": lambda: np.exp(signal + normal),
        "lognormal, s = 2.3": lambda: np.exp(signal + 2 * normal),
        "zero or exponential": lambda: np.where(
            rng.random(len(X)) < 0.3, rng.exponential(size=len(X)) * np.exp(signal), 0.0
        ),
        "Cauchy noise": lambda: 3 * signal + rng.standard_cauchy(len(X)),
        "t(1.5) noise": lambda: 3 * signal + rng.standard_t(1.5, len(X)),
        "zero or lognormal": lambda: np.where(rng.random(len(X)) < 0.05, np.exp(2 * normal), 0.0),
        "rare event": lambda: np.where(rng.random(len(X)) < 0.01, 100.0, 0.0),
        "claims": lambda: np.where(
            rng.random(len(X)) < 0.1, np.exp(6 + signal + 1.5 * normal), 50 + 10 * signal
        ),
        "Pareto(1.2)": lambda: np.exp(signal) * (1 + rng.pareto(1.2, len(X))),
    }[kind]()
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def errors(rows: Rows, place: Record) -> Record:
    X, y, X_test, y_test = rows
    name = place["model"]
    if name == "rows left out":
        low, high = wild_bounds(y, np.ones(len(y)))
        kept = (low <= y) & (y <= high)
        X, y, name = X[kept], y[kept], "CFLLRegressor"
    missed = np.abs(REGRESSORS[name](place["seed"]).fit(X, y).predict(X_test) - y_test)
    width = np.subtract(*np.quantile(y_test, [0.75, 0.25])) or y_test.std()
    return {"median": float(np.median(missed) / width), "mean": float(missed.mean() / width)}


def share_clipped(kind: str, n_rows: int, samples: int) -> float:
    """Share of honest samples in which a target is clipped."""
    draws = (honest(kind, n_rows, seed)[1] for seed in range(samples))
    return float(np.mean([wild_bounds(y, np.ones(len(y))) != (y.min(), y.max()) for y in draws]))


def main(arguments: list[str] | None = None) -> None:
    small = {"models": ["CFLLRegressor", "rows left out"]}
    bench = Bench(__doc__, "wild_targets", arguments, smallest=small)
    models = ("CFLLRegressor", "rows left out", "MLP, 500 epochs", "HistGradBoost")
    cells = {}
    for task, n_rows in TASKS:
        for count, farthest in ((0, 0.0), (1, 1e3), (1, 1e6), (3, 1e6), (n_rows // 100, 1e5)):
            name = (
                f"{task}, {n_rows} rows, {f'{count} at {farthest:.0e}' if count else 'none wild'}"
            )
            cells[name] = partial(with_wild, task, n_rows, count=count, farthest=farthest)
    for kind, n_rows in product(HONEST, (300, 1000)):
        cells[f"{kind}, {n_rows} rows"] = partial(honest, kind, n_rows)
    if bench.small:
        cells = dict(list(cells.items())[1:2])
    tasks = [
        ({"task": name, "seed": seed}, partial(draw, seed=seed))
        for seed, (name, draw) in product(range(bench.options.seeds), cells.items())
    ]
    bench.run(tasks, dict.fromkeys(models, errors), ("task", "seed", "model"))
    print_origin(bench.records)
    for value in ("median", "mean"):
        table = means(bench.records, value, how="median")
        print_table(f"{value} absolute error, median of the seeds, all defaults", table, ".3g")
    samples = 20 if bench.small else 1000
    print(f"\nShare of {samples} samples in which a target is clipped")
    for kind, n_rows in product(CLIPPED, (300, 1000)):
        print(f"{kind:24s}{n_rows:6d} rows{share_clipped(kind, n_rows, samples):9.3f}")


if __name__ == "__main__":
    main()
