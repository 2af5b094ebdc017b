"""Coverage of `predict_interval` and honesty of the predictive standard deviation.

Default settings. For each data set, averaged over splits: coverage of the 90% intervals; their
coverage on the third of the test rows that is predicted the least, and the most noisy; the mean
squared standardised residual; the mean log density of a normal with the predicted deviation,
and with one noise level for all rows ("constant"), in y's units.

    python benchmarks/intervals.py                 # bundled and simulated data, two minutes
    python benchmarks/intervals.py --data DIR      # with the UCI sets and their splits
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.model_selection import ShuffleSplit

from sklearn_cfll import CFLLRegressor

UCI = ("yacht", "energy", "concrete", "wine-quality-red", "kin8nm", "power-plant")


def simulated(seed: int, n: int = 2000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 4))
    signal = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]
    return {
        "even noise": (X, signal + 0.3 * rng.normal(size=n)),
        "uneven noise": (X, signal + (0.1 + 0.5 * np.abs(X[:, 0])) * rng.normal(size=n)),
        "heavy tails": (X, signal + 0.2 * rng.standard_t(2.5, size=n)),
        "friedman1": make_friedman1(n, noise=0.5, random_state=seed),
        "diabetes": load_diabetes(return_X_y=True),
    }


def splits(name: str, n: int, data: Path | None, count: int) -> list[np.ndarray]:
    """Row indices of the test sets."""
    if name in UCI and data is not None:
        return list(np.load(data / f"{name}.npz")["test"][:count])
    return [test for _, test in ShuffleSplit(count, test_size=0.3, random_state=0).split(range(n))]


def measure(X: np.ndarray, y: np.ndarray, test: np.ndarray, seed: int) -> list[float]:
    train = np.setdiff1d(np.arange(len(y)), test)
    model = CFLLRegressor(random_state=seed).fit(X[train], y[train])
    lower, upper = model.predict_interval(X[test], 0.9)
    mean, std = (part.astype(float) for part in model.predict(X[test], return_std=True))
    inside = (lower <= y[test]) & (y[test] <= upper)
    order = std.argsort()
    third = len(order) // 3
    level = np.sqrt(model.noise_variance_[0])
    return [
        inside.mean(),
        inside[order[:third]].mean(),
        inside[order[-third:]].mean(),
        np.mean(((y[test] - mean) / std) ** 2),
        norm.logpdf(y[test], mean, std).mean(),
        norm.logpdf(y[test], mean, level).mean(),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets")
    parser.add_argument("--splits", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tasks = simulated(0)
    if options.data is not None:
        for name in UCI:
            stored = np.load(options.data / f"{name}.npz")
            tasks[name] = stored["X"], stored["y"]
    print(
        f"{'':18s}{'coverage':>9s}{'quiet':>8s}{'noisy':>8s}{'z²':>8s}{'log p':>9s}{'constant':>9s}"
    )
    rows = []
    for name, (X, y) in tasks.items():
        tests = splits(name, len(y), options.data, options.splits)
        row = np.mean([measure(X, y, test, i) for i, test in enumerate(tests)], axis=0)
        rows.append(row)
        print(f"{name:18s}{row[0]:9.3f}" + "".join(f"{v:8.3f}" for v in row[1:4]), end="")
        print(f"{row[4]:9.3f}{row[5]:9.3f}", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"{'mean':18s}{mean[0]:9.3f}" + "".join(f"{v:8.3f}" for v in mean[1:4]))


if __name__ == "__main__":
    main()
