"""Going on after a fit: what more rows of the same distribution do to the score.

A model is fitted, then sees 1, 10 or 100 more rows by ``partial_fit``, 100 one by one, the
training rows once more, ten more by a warm ``fit`` or 100 by ``adapt``. Printed is the change of
its score on test rows (R², accuracy): mean and worst of ten seeds. MLPRegressor and
MLPClassifier, on standardised columns, beside it.

Below: streams from nothing, a row at a time and in chunks, beside SGDRegressor and MLPRegressor
with columns standardised by the first rows.

    python benchmarks/going_on.py [--data DIR]    # six minutes; concrete is in DIR
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.datasets import load_digits, load_iris, make_friedman1
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLClassifier, CFLLRegressor

SEEDS = 10
STEPS = ("1", "10", "100", "100 one by one", "training rows", "warm fit, 10", "adapt, 100")


def sets(data: Path | None) -> Iterator[tuple[str, Any, Any, np.ndarray, np.ndarray, int]]:
    """Name, our class, the peer's, all rows, and how many to fit."""
    X, y = make_friedman1(2500, 6, noise=0.5, random_state=0)
    yield "friedman1", CFLLRegressor, MLPRegressor, X, y, 300
    if data is not None:
        stored = np.load(data / "concrete.npz")
        yield "concrete", CFLLRegressor, MLPRegressor, stored["X"], stored["y"], 500
    yield "iris", CFLLClassifier, MLPClassifier, *load_iris(return_X_y=True), 75
    yield "digits", CFLLClassifier, MLPClassifier, *load_digits(return_X_y=True), 1000


def go_on(model: Any, step: str, X: np.ndarray, y: np.ndarray, n: int, n_more: int) -> Any:
    """A copy of the fitted model after one of ``STEPS``."""
    model = copy.deepcopy(model)
    more, y_more = X[n : n + n_more], y[n : n + n_more]
    if step == "100 one by one":
        for i in range(n_more):
            model.partial_fit(more[i : i + 1], y_more[i : i + 1])
        return model
    if step == "training rows":
        return model.partial_fit(X[:n], y[:n])
    if step.startswith("warm"):
        classes = np.unique(y) if is_classifier(model) else []
        first = [int(np.flatnonzero(y_more == c)[0]) for c in classes]
        rows = [*first, *(i for i in range(n_more) if i not in first)][: max(10, len(first))]
        model.set_params(warm_start=True)
        return model.fit(more[rows], y_more[rows])
    if step.startswith("adapt"):
        return model.adapt(more, y_more)
    return model.partial_fit(more[: int(step)], y_more[: int(step)])


def table(data: Path | None) -> None:
    for name, ours, peer, X, y, n in sets(data):
        print(f"{name}, {n} rows")
        for Estimator in (ours, peer):
            is_peer = Estimator is peer
            changes: dict[str, list[float]] = {}
            scores = []
            for seed in range(SEEDS):
                order = np.random.default_rng(seed).permutation(len(X))
                rows, targets = X[order], y[order]
                if is_peer:
                    rows = StandardScaler().fit(rows[:n]).transform(rows)
                n_more = min(100, (len(X) - n) // 3)
                test = slice(n + n_more, None)
                model = Estimator(random_state=seed).fit(rows[:n], targets[:n])
                scores.append(model.score(rows[test], targets[test]))
                for step in STEPS:
                    if is_peer and not step[0].isdigit() and step != "training rows":
                        continue  # MLP's warm fits want every class, and it has no adapt
                    after = go_on(model, step, rows, targets, n, n_more)
                    change = after.score(rows[test], targets[test]) - scores[-1]
                    changes.setdefault(step, []).append(change)
            print(f"  {Estimator.__name__:15s} score {np.mean(scores):.4f}", end="")
            for step, values in changes.items():
                print(f" | {step}: {np.mean(values):+.4f} ({np.min(values):+.4f})", end="")
            print(flush=True)


def streams() -> None:
    print("Streams of friedman1 (10 columns, noise 0.5), R2 on 1,000 rows; mean of 3 seeds")
    for chunk, n in ((1, 500), (10, 500), (100, 2000), (2000, 2000)):
        scores: dict[str, list[float]] = {}
        for seed in range(3):
            X, y = make_friedman1(n + 1000, 10, noise=0.5, random_state=seed)
            scaled = StandardScaler().fit(X[: max(100, chunk)]).transform(X)
            for model, rows in (
                (CFLLRegressor(random_state=seed), X),
                (CFLLRegressor(memory="statistics", random_state=seed), X),
                (SGDRegressor(random_state=seed), scaled),
                (MLPRegressor(random_state=seed), scaled),
            ):
                for start in range(0, n, chunk):
                    model.partial_fit(rows[start : start + chunk], y[start : start + chunk])
                name = type(model).__name__ + " statistics" * (
                    getattr(model, "memory", "") == "statistics"
                )
                scores.setdefault(name, []).append(model.score(rows[n:], y[n:]))
        shown = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in scores.items())
        print(f"  chunks of {chunk} of {n}: {shown}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    table(arguments.data)
    streams()
