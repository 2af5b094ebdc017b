"""Inputs with heavy tails and wrong entries, left as they are.

Friedman's first function of 4,000 rows, its columns put through increasing functions or given
wrong entries: what could be known from the values stays the same in the upper part of the table.
Below, a linear function of such columns, where drawing in what lies far out costs something.

    python benchmarks/outliers.py      # all defaults; six minutes
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.datasets import make_friedman1
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLClassifier, CFLLRegressor

SEEDS = range(3)


def regressors(seed: int, **changed: Any) -> list[Any]:
    """Ours as it is and with a setting changed, then peers; all at their defaults."""
    return [
        CFLLRegressor(random_state=seed),
        CFLLRegressor(**changed, random_state=seed),
        make_pipeline(StandardScaler(), MLPRegressor(random_state=seed)),
        HistGradientBoostingRegressor(random_state=seed),
        make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))),
    ]


def classifiers(seed: int) -> list[Any]:
    return [
        CFLLClassifier(random_state=seed),
        make_pipeline(StandardScaler(), MLPClassifier(random_state=seed)),
        HistGradientBoostingClassifier(random_state=seed),
    ]


def columns(Z: np.ndarray, rng: np.random.RandomState) -> dict[str, np.ndarray]:
    """Standard normal columns and what else they could have been recorded as."""

    def wrong(share: float, value: float) -> np.ndarray:
        return np.where(rng.random_sample(Z.shape) < share, value * np.sign(Z), Z)

    return {
        "normal": Z,
        "lognormal, s = 1": np.exp(Z),
        "cubed": Z**3,
        "Cauchy": np.tan(np.pi * (norm.cdf(Z) - 0.5)),
        "lognormal, s = 3": np.exp(3 * Z),
        "0.1% are 1e6": wrong(0.001, 1e6),
        "1% are 1e3": wrong(0.01, 1e3),
    }


def error(model: Any, X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: np.ndarray) -> str:
    """Test MSE over the variance of the test targets."""
    try:
        found = np.mean(np.square(model.fit(X, y).predict(X_test) - y_test)) / y_test.var()
    except FloatingPointError:
        return "diverged"
    return f"{found:.4f}" if found < 100 else f"{found:.0e}"


def accuracy(model: Any, X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: Any) -> str:
    try:
        return f"{model.fit(X, y).score(X_test, y_test):.3f}"
    except FloatingPointError:
        return "diverged"


def median(cells: list[list[str]]) -> list[str]:
    """The middle one of each column; a run that diverged counts as the worst."""
    return [
        sorted(column, key=lambda c: float(c) if c[0].isdigit() else np.inf)[1]
        for column in zip(*cells, strict=True)
    ]


def rows_of(task: str, shape: str, seed: int) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test; a quarter is tested on."""
    rng = np.random.RandomState(seed)
    if task == "friedman1":
        uniform, y = make_friedman1(4000, noise=0.5, random_state=seed)
        X = columns(norm.ppf(uniform.clip(1e-9, 1 - 1e-9)), rng)[shape]
    else:
        X = columns(rng.standard_normal((4000, 6)), rng)[shape]
        y = X @ np.arange(1, 7)
        y = y + 0.5 * np.subtract(*np.quantile(y, [0.75, 0.25])) * rng.standard_normal(len(y))
    return train_test_split(X, y, test_size=0.25, random_state=seed)


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of MLPRegressor's iterations
    heads = ["CFLL", "no bins", "MLP", "HistGradBoost", "RidgeCV"]
    kinds = ["CFLL", "MLP", "HistGradBoost"]
    print(f"Median of {len(SEEDS)} seeds, all defaults. Test MSE over the targets' variance of")
    print("CFLLRegressor, the same without bins, MLPRegressor, HistGradientBoosting, RidgeCV;")
    print("then accuracy of the classifiers (target above its median)")
    for task, shapes in (
        ("friedman1", tuple(columns(np.zeros((1, 1)), np.random.RandomState(0)))),
        ("linear", ("normal", "lognormal, s = 1", "cubed")),
    ):
        print(f"\n{task:18s}" + "".join(f"{h:>14s}" for h in [*heads, *kinds]))
        for shape in shapes:
            cells = []
            for seed in SEEDS:
                X, X_test, y, y_test = rows_of(task, shape, seed)
                middle = np.median(y)
                cells.append(
                    [error(m, X, y, X_test, y_test) for m in regressors(seed, n_bins=0)]
                    + [
                        accuracy(m, X, y > middle, X_test, y_test > middle)
                        for m in classifiers(seed)
                    ]
                )
            print(f"{shape:18s}" + "".join(f"{c:>14s}" for c in median(cells)), flush=True)


if __name__ == "__main__":
    main()
