"""Few rows with heavy-tailed columns: the linear part that such fits are built on.

Five independent columns; test MSE over that of predicting the mean, mean and worst of 16 seeds,
for the default, the same without its linear part, and ridge regression. Where the truth is a
line along heavy-tailed columns (where the mean says nothing) the square of the median error.

    python benchmarks/heavy_tails.py      # ten minutes
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import numpy as np
from harness import Bench, Record, means, print_origin, print_table
from models import REGRESSORS, ours
from outliers import SHAPES

COLUMNS = {name: SHAPES[name] for name in ("normal", "lognormal, s = 1", "Cauchy")} | {
    "lognormal, s = 2": lambda Z, rng: np.exp(2 * Z)
}
TRUTHS: dict[str, Any] = {
    "line along the scores": lambda X, Z: Z[:, 0] + 0.5 * Z[:, 1],
    "tanh of the scores": lambda X, Z: np.tanh(Z[:, 0]) + np.tanh(Z[:, 1]),
    "square of a score": lambda X, Z: Z[:, 0] ** 2,
    "line along the columns": lambda X, Z: X[:, 0] + 0.5 * X[:, 1],
}
SIZES = (39, 40, 80)  # 39 rows have no linear part
MODELS = {
    "default": ours(),
    "no linear part": ours(linear_part=False),
    "RidgeCV": REGRESSORS["RidgeCV"],
}
FIELDS = ("columns", "truth", "rows", "seed")


def draw(columns: str, truth: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 5))
    X = COLUMNS[columns](Z, None)
    y = TRUTHS[truth](X, Z)
    return X, y + 0.1 * y.std() * rng.normal(size=n)


def error(rows: tuple[np.ndarray, np.ndarray], place: Record) -> Record:
    X, y = rows
    seed = place["seed"]
    X_test, y_test = draw(place["columns"], place["truth"], 1000, seed + 1000)
    size = np.median if place["truth"].endswith("columns") else np.mean
    base = size(np.square(y_test - y.mean()))
    model = MODELS[place["model"]](seed).fit(X, y)
    return {"error": float(size(np.square(model.predict(X_test) - y_test)) / base)}


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "heavy_tails", arguments, seeds=16)
    cells = list(product(COLUMNS, TRUTHS, SIZES))
    tasks = [
        (dict(zip(FIELDS, (*cell, seed), strict=True)), partial(draw, *cell, seed))
        for seed, cell in product(range(bench.options.seeds), cells[:2] if bench.small else cells)
    ]
    bench.run(tasks, dict.fromkeys(MODELS, error), (*FIELDS, "model"))
    print_origin(bench.records)
    for how in ("mean", "max"):
        table = means(bench.records, "error", FIELDS[:3], how=how)
        print_table(
            f"Test error over that of the mean of the targets, {how} of seeds", table, ".3f"
        )


if __name__ == "__main__":
    main()
