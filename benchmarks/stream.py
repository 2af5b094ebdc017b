"""Streams that drift: each chunk of rows is predicted before it is learnt (prequential).

    python benchmarks/stream.py                       # river's models need river

The target is Friedman's first function of five of ten columns. In "steady" it stays; in "gradual"
other columns take over little by little; in "abrupt" at a third and at two thirds of the stream.
All models see the rows in the same order. ``partial_fit`` learns a chunk at a time, river's models
a row at a time. Of sklearn_cfll, "statistics" keeps the moments of all rows with a forgetting
``decay``, "proximal" the weights. No model's settings were chosen on these streams.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Bench, Record, means, print_origin, print_table
from measures import stopwatch
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLRegressor

CHUNK, FIRST = 100, 200  # rows; the first ones are learnt only
STREAMS = ("steady", "gradual", "abrupt")


def friedman(columns: np.ndarray) -> np.ndarray:
    a, b, c, d, e = columns.T
    return 10 * np.sin(np.pi * a * b) + 20 * (c - 0.5) ** 2 + 10 * d + 5 * e


def stream(name: str, seed: int, where: Any, n_rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X, share = rng.uniform(size=(n_rows, 10)), np.linspace(0.0, 1.0, n_rows)
    first, second, third = friedman(X[:, :5]), friedman(X[:, 5:]), friedman(X[:, 4::-1])
    if name == "abrupt":
        y = np.where(share < 1 / 3, first, np.where(share < 2 / 3, second, third))
    elif name == "gradual":
        y = (1 - share) * first + share * second
    else:
        y = first
    return X, y + rng.normal(size=n_rows)


class Chunks:
    """A model of scikit-learn's form that learns a chunk at a time, in one or several passes."""

    def __init__(self, model: Any, *, scales: bool = False, passes: int = 1) -> None:
        self.model, self.scaler = model, StandardScaler() if scales else None
        self.passes = passes

    def _scaled(self, X: np.ndarray) -> np.ndarray:
        return X if self.scaler is None else self.scaler.transform(X)

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        if self.scaler is not None:
            self.scaler.partial_fit(X)
        for _ in range(self.passes):
            self.model.partial_fit(self._scaled(X), y)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(self._scaled(X)))


class Mean:
    """The mean of the last five chunks."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        self.seen = [*self.seen[-4:], y]

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.full(len(X), np.concatenate(self.seen).mean())


class Rows:
    """One of river's models, which learns a row at a time."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def learn(self, X: np.ndarray, y: np.ndarray) -> None:
        for row, target in zip(X.tolist(), y.tolist(), strict=True):
            self.model.learn_one(dict(enumerate(row)), target)

    def predict(self, X: np.ndarray) -> np.ndarray:
        return np.array([self.model.predict_one(dict(enumerate(row))) for row in X.tolist()])


def rivers(name: str, seed: int) -> Rows:
    from river import forest, linear_model, preprocessing, tree

    scale = preprocessing.StandardScaler
    if name == "linear":
        return Rows(scale() | linear_model.LinearRegression())
    if name == "tree":
        return Rows(tree.HoeffdingAdaptiveTreeRegressor(seed=seed))
    return Rows(forest.ARFRegressor(seed=seed))


def ours(seed: int, **parameters: Any) -> Chunks:
    return Chunks(CFLLRegressor(random_state=seed, **parameters))


MAKERS: dict[str, Callable[[int], Any]] = {
    "CFLL, statistics, decay 0.99": partial(ours, memory="statistics", decay=0.99),
    "CFLL, statistics, decay 1": partial(ours, memory="statistics", decay=1.0),
    "CFLL, proximal": ours,
    "MLPRegressor": lambda seed: Chunks(MLPRegressor(random_state=seed), scales=True),
    "MLPRegressor, 50 passes": lambda seed: Chunks(
        MLPRegressor(random_state=seed), scales=True, passes=50
    ),
    "SGDRegressor": lambda seed: Chunks(SGDRegressor(random_state=seed), scales=True),
    "river, adaptive random forest": partial(rivers, "forest"),
    "river, Hoeffding adaptive tree": partial(rivers, "tree"),
    "river, linear": partial(rivers, "linear"),
    "mean of 500 rows": lambda seed: Mean(),
}


def prequential(rows: tuple[np.ndarray, np.ndarray], place: Record) -> Record:
    """Root mean squared error of the predictions, of all rows and of the last third."""
    X, y = rows
    model, errors = MAKERS[place["model"]](place["seed"]), []
    with stopwatch() as taken:
        model.learn(X[:FIRST], y[:FIRST])
        for start, stop in itertools.pairwise([*range(FIRST, len(y), CHUNK), len(y)]):
            errors.append((model.predict(X[start:stop]) - y[start:stop]) ** 2)
            model.learn(X[start:stop], y[start:stop])
    squares = np.concatenate(errors)
    return {
        "error": float(np.sqrt(squares.mean())),
        "error at the end": float(np.sqrt(squares[-len(squares) // 3 :].mean())),
        "milliseconds per chunk": 1e3 * taken["seconds"] / len(errors),
    }


def main(arguments: list[str] | None = None) -> None:
    n_rows = {"type": int, "default": 4000}
    small = {"rows": 400, "models": ["SGDRegressor", "CFLL, proximal"], "tasks": ["steady"]}
    bench = Bench(__doc__, "stream", arguments, seeds=2, smallest=small, rows=n_rows)
    tasks = bench.grid(STREAMS, partial(stream, n_rows=bench.options.rows))
    bench.run(tasks, dict.fromkeys(MAKERS, prequential), ("task", "seed", "model"))
    print_origin(bench.records)
    for value in ("error", "error at the end", "milliseconds per chunk"):
        table = means(bench.records, value, ("model",), "task")
        print_table(f"{value}, mean over seeds (noise: 1)", table, ".2f")


if __name__ == "__main__":
    main()
