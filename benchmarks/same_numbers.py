"""Whether a change of the code left every number as it was.

The defaults and their variants are fitted to eight data sets; predictions, deviations, intervals
and probabilities are stored, or compared with those stored before.

    python benchmarks/same_numbers.py store FILE.npz     # before the change
    python benchmarks/same_numbers.py compare FILE.npz   # after it; about two minutes

Differences are relative to the standard deviation of the stored numbers: at most 1e-6 where the
model computes in float64, 1e-4 in float32.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    make_friedman1,
)
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import FNOBackbone
from sklearn_cfll.datasets import make_burgers, make_demand_design

Arrays = dict[str, np.ndarray]
LIMITS = {"float64": 1e-6, "float32": 1e-4}


def thin(X: np.ndarray, y: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(0).permutation(len(X))[:n]
    return X[rows], y[rows]


def two_targets() -> tuple[np.ndarray, np.ndarray]:
    X, y = make_friedman1(150, 6, noise=0.5, random_state=1)
    return X, np.column_stack([y, X[:, 0] - 3 * X[:, 1]])


TABLES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "diabetes": lambda: thin(*load_diabetes(return_X_y=True), 200),
    "friedman1": lambda: make_friedman1(700, 8, noise=1.0, random_state=0),
    "two targets": two_targets,
}
CLASSES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "iris": lambda: load_iris(return_X_y=True),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "digits": lambda: thin(*load_digits(return_X_y=True), 500),
}
BRIEF = {"max_epochs": 8, "random_state": 0}


def own_network(n_columns: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(n_columns, 24), nn.Tanh(), nn.Linear(24, 12), nn.Tanh())


SHARED: dict[str, dict[str, Any]] = {
    "defaults": {},
    "one network": {"n_members": 1},
    "two layers, three networks": {"n_members": 3, "hidden_layer_sizes": (20, 10)},
    "no bins": {"columns": dict(n_bins=0)},
    "bins": {"columns": dict(n_bins=6)},
    "quantiles": {"columns": dict(quantiles=True)},
    "columns as they are": {"columns": dict(n_bins=0, importance=False)},
    "no held-out rows": {"early_stopping": False},
    "no final solve": {"refit_last_layer": False},
    "statistics": {"memory": "statistics", "decay": 0.9},
    "last layer first": {"update_order": "last_layer_first", "decay": 0.5},
    "full batch": {"batch_size": "full", "ridge": 0.01},
    "dropout, sgd": {"dropout": 0.2, "optimizer": "sgd", "activation": "tanh"},
    "float32": {"precision": "float32", "weight_decay": 0.1},
}
REGRESSION = SHARED | {
    "linear part": {"linear_part": True},
    "no linear part": {"linear_part": False},
    "raw targets": {"normalize_y": False},
}
CLASSIFICATION = SHARED | {"balanced": {"class_weight": "balanced"}}


def of_regressor(model: CFLLRegressor, X: np.ndarray) -> Arrays:
    found = {"prediction": model.predict(X), "coef": model.last_layer_coef_}
    if model.refit_last_layer and model.early_stopping is not False:
        found["deviation"] = model.predict(X, return_std=True)[1]
        found["lower"], found["upper"] = model.predict_interval(X, coverage=0.8)
    if hasattr(model, "loo_residuals_"):
        found["loo"] = model.loo_residuals_
    return found


def of_classifier(model: CFLLClassifier, X: np.ndarray) -> Arrays:
    return {"probability": model.predict_proba(X), "coef": model.last_layer_coef_}


def runs() -> Iterator[tuple[str, Any, Callable[[], Arrays]]]:
    """Each case's name, the estimator, and what fits it and gives its numbers."""
    for table, load in TABLES.items():
        yield from on_table(table, *load(), CFLLRegressor, REGRESSION, of_regressor)
    for table, load in CLASSES.items():
        yield from on_table(table, *load(), CFLLClassifier, CLASSIFICATION, of_classifier)
    X, y = make_burgers(60, 32, random_state=0)
    recipe = FNOBackbone(n_modes=6, hidden_channels=8, n_layers=2)
    for name, settings in {"defaults": {}, "no held-out rows": {"early_stopping": False}}.items():
        model = CFLLRegressor(recipe, **BRIEF | {"max_epochs": 4} | settings)
        yield f"burgers, {name}", model, lambda m=model: of_regressor(m.fit(X, y), X[:10])
    data = make_demand_design(300, random_state=0)
    for name, settings in {"defaults": {}, "given ridge": {"stage2_ridge": 0.01}}.items():
        model = CFLLIVRegressor(random_state=0, **settings)
        yield f"demand, {name}", model, lambda m=model: of_instrument(m, data)


def on_table(
    table: str,
    X: np.ndarray,
    y: np.ndarray,
    kind: type,
    variants: dict[str, dict[str, Any]],
    numbers: Callable[[Any, np.ndarray], Arrays],
) -> Iterator[tuple[str, Any, Callable[[], Arrays]]]:
    """The variants of an estimator on one table."""
    for name, settings in variants.items():
        columns = settings.get("columns")
        if columns is not None:
            own = {} if kind is CFLLRegressor else {"n_bins": 0, "quantiles": True}
            settings = settings | {"columns": ColumnEncoder(**own | columns)}
        model = kind(**BRIEF | settings)
        yield f"{table}, {name}", model, lambda m=model: numbers(m.fit(X, y), X[:60])
    weights = np.random.default_rng(1).integers(1, 4, len(X)).astype(float)
    own, weighted, grown = kind(own_network(X.shape[1]), **BRIEF), kind(**BRIEF), kind(**BRIEF)
    yield f"{table}, own network", own, lambda: numbers(own.fit(X, y), X[:60])
    yield f"{table}, weights", weighted, lambda: numbers(weighted.fit(X, y, weights), X[:60])
    yield f"{table}, going on", grown, lambda: numbers(go_on(grown, X, y), X[:60])


def go_on(model: Any, X: np.ndarray, y: np.ndarray) -> Any:
    """Begin, add rows in several ways."""
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    half, more = len(X) // 2, len(X) // 2 + 40
    model.fit(X[:half], y[:half])
    return model.partial_fit(X[half:more], y[half:more]).adapt(X[more:], y[more:])


def of_instrument(model: Any, data: Any) -> Arrays:
    model.fit(data.X, data.y, Z=data.Z, C=data.C)
    mean, deviation = model.predict(data.X[:60], data.C[:60], return_std=True)
    return {"prediction": mean, "deviation": deviation}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["store", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = np.load(options.file) if options.do == "compare" else {}
    kept: Arrays = {}
    worst, wrong = {"float64": 0.0, "float32": 0.0}, 0
    for case, model, numbers in runs():
        if options.only not in case:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = numbers()
        net = getattr(model, "net_", None)
        dtype = "float64" if net is None else str(net.module_.last_layer.weight.dtype)[6:]
        for name, value in found.items():
            key = f"{case}: {name}"
            kept[key] = value
            if options.do == "store":
                continue
            before = stored[key]
            gap = np.abs(value - before).max() / max(before.std(), 1e-12)
            worst[dtype] = max(worst[dtype], gap)
            if not gap <= LIMITS[dtype]:
                wrong += 1
                print(f"{key}: {gap:.2g} ({dtype})", flush=True)
    if options.do == "store":
        np.savez_compressed(options.file, **kept)
        print(f"{len(kept)} arrays stored")
        return 0
    print(f"{len(kept)} arrays compared, {wrong} differ; largest differences {worst}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
