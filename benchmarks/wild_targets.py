"""Targets far beyond all others: what they cost, and what the rule against them costs elsewhere.

A few training targets are replaced by values up to 1e6 deviations away; test rows are clean. Below,
honest targets with heavy tails, where a rule that draws targets in could do harm. Cells are the
median and the mean absolute error on the test rows, over the interquartile range of y.

    python benchmarks/wild_targets.py      # all defaults; seven minutes
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_diabetes, make_friedman1, make_friedman3
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.estimator import wild_targets as _wild_targets

SEEDS = range(3)
GAPS = (10.0, 100.0)  # times as far from the median as the next target
HEADS = ("no rule", *(f"gap {gap:.0f}" for gap in GAPS), "left out", "MLP", "HistGradBoost")
Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def friedman1(n_rows: int, seed: int) -> Rows:
    X, y = make_friedman1(n_rows + 1000, n_features=8, noise=1.0, random_state=seed)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def friedman3(n_rows: int, seed: int) -> Rows:
    X, y = make_friedman3(n_rows + 1000, noise=0.1, random_state=seed)
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def diabetes(n_rows: int, seed: int) -> Rows:
    X, y = load_diabetes(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    X, y = X[order], y[order]
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def with_wild(rows: Rows, count: int, farthest: float, seed: int) -> Rows:
    """Of any sign, the farthest of them so many deviations away, the others up to a tenth of it."""
    X, y, X_test, y_test = rows
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


def errors(model: Any, X: Any, y: Any, X_test: Any, y_test: Any) -> tuple[float, float]:
    missed = np.abs(model.fit(X, y).predict(X_test) - y_test)
    width = np.subtract(*np.quantile(y_test, [0.75, 0.25])) or y_test.std()
    return float(np.median(missed) / width), float(missed.mean() / width)


def compare(rows: Rows, seed: int) -> list[tuple[float, float]]:
    """Errors of all models; ours is fitted once for each of the targets that rules leave."""
    X, y, X_test, y_test = rows
    ours = CFLLRegressor(random_state=seed)
    rule, _wild_targets.GAP = _wild_targets.GAP, np.inf
    drawn_in = [y]
    for gap in GAPS:
        _wild_targets.GAP = gap
        drawn_in.append(y.clip(*_wild_targets.wild_bounds(y, np.ones(len(y)))))
    _wild_targets.GAP = np.inf  # what follows is done already
    found: list[Any] = []
    for i, targets in enumerate(drawn_in):
        same = [j for j in range(i) if np.array_equal(drawn_in[j], targets)]
        found.append(found[same[0]] if same else errors(ours, X, targets, X_test, y_test))
    kept = drawn_in[-1] == y
    found.append(found[0] if kept.all() else errors(ours, X[kept], y[kept], X_test, y_test))
    _wild_targets.GAP = rule
    mlp = make_pipeline(StandardScaler(), MLPRegressor(max_iter=500, random_state=seed))
    for peer in (mlp, HistGradientBoostingRegressor(random_state=seed)):
        found.append(errors(peer, X, y, X_test, y_test))
    return found


def show(name: str, make: Callable[[int], Rows]) -> None:
    """Medians over seeds."""
    cells = np.median([compare(make(seed), seed) for seed in SEEDS], axis=0)
    print(f"{name:36s}" + "".join(f"{a:>9.3g}/{b:<9.3g}" for a, b in cells), flush=True)


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of MLPRegressor's iterations, and ours of the targets
    print(f"Median of {len(SEEDS)} seeds, all defaults: median / mean absolute error")
    print("CFLLRegressor without a rule, with targets clipped, with these rows left out; peers\n")
    head = f"{'':36s}" + "".join(f"{head:^19s}" for head in HEADS)
    print(head)
    for task, sizes in ((friedman1, (300, 1000)), (friedman3, (1000,)), (diabetes, (300,))):
        for n_rows in sizes:
            name = f"{task.__name__}, {n_rows} rows"
            show(f"{name}, none wild", lambda seed: task(n_rows, seed))  # noqa: B023
            for count, farthest in ((1, 1e3), (1, 1e6), (3, 1e6), (n_rows // 100, 1e5)):
                if count == 3 == n_rows // 100 and farthest == 1e5:
                    continue
                show(
                    f"{name}, {count} at {farthest:.0e}",
                    lambda seed: with_wild(task(n_rows, seed), count, farthest, seed),  # noqa: B023
                )
    print(f"\n{head}")
    for kind in (
        *("lognormal, s = 1.5", "lognormal, s = 2.3", "zero or exponential", "Cauchy noise"),
        *("t(1.5) noise", "claims", "Pareto(1.2)"),
    ):
        for n_rows in (300, 1000):
            show(f"{kind}, {n_rows} rows", lambda seed: honest(kind, n_rows, seed))  # noqa: B023

    print(
        f"\nShare of 1,000 samples in which a target is clipped: gap {GAPS[0]:.0f}, {GAPS[1]:.0f}"
    )
    for kind in (
        *("lognormal, s = 2.3", "zero or exponential", "Cauchy noise", "claims"),
        *("zero or lognormal", "rare event"),
    ):
        for n_rows in (300, 1000):
            moved = []
            for gap in GAPS:
                _wild_targets.GAP = gap
                samples = (honest(kind, n_rows, seed)[1] for seed in range(1000))
                moved.append(
                    np.mean(
                        [
                            _wild_targets.wild_bounds(y, np.ones(len(y))) != (y.min(), y.max())
                            for y in samples
                        ]
                    )
                )
            print(f"{kind:24s}{n_rows:6d} rows{moved[0]:9.3f}{moved[1]:9.3f}", flush=True)


if __name__ == "__main__":
    main()
