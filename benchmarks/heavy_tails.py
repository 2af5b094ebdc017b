"""Few rows with heavy-tailed columns: the linear part that such fits are built on.

Five independent columns; test MSE over that of predicting the mean, mean and worst of 16 seeds,
for the default, the same without its linear part, and ridge regression. Where the truth is a
line along heavy-tailed columns (where the mean says nothing) the square of the median error.

    python benchmarks/heavy_tails.py      # ten minutes
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLRegressor

SEEDS = 16
COLUMNS = {
    "normal": lambda Z: Z,
    "lognormal": np.exp,
    "lognormal, s = 2": lambda Z: np.exp(2 * Z),
    "Cauchy": lambda Z: np.tan(np.pi * (norm.cdf(Z) - 0.5)),
}
TRUTHS: dict[str, Any] = {
    "line along the scores": lambda X, Z: Z[:, 0] + 0.5 * Z[:, 1],
    "tanh of the scores": lambda X, Z: np.tanh(Z[:, 0]) + np.tanh(Z[:, 1]),
    "square of a score": lambda X, Z: Z[:, 0] ** 2,
    "line along the columns": lambda X, Z: X[:, 0] + 0.5 * X[:, 1],
}


def draw(columns: str, truth: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 5))
    X = COLUMNS[columns](Z)
    y = TRUTHS[truth](X, Z)
    return X, y + 0.1 * y.std() * rng.normal(size=n)


def main() -> None:
    print("default / linear_part=False / RidgeCV: mean (worst)")
    for columns in COLUMNS:
        for truth in TRUTHS:
            for n in (39, 40, 80):
                errors = []
                for seed in range(SEEDS):
                    X, y = draw(columns, truth, n, seed)
                    X_test, y_test = draw(columns, truth, 1000, seed + 1000)
                    size = np.median if truth.endswith("columns") else np.mean
                    base = size(np.square(y_test - y.mean()))
                    errors.append(
                        [
                            size(np.square(model.fit(X, y).predict(X_test) - y_test)) / base
                            for model in (
                                CFLLRegressor(random_state=seed),
                                CFLLRegressor(linear_part=False, random_state=seed),
                                make_pipeline(StandardScaler(), RidgeCV(np.logspace(-3, 4, 15))),
                            )
                        ]
                    )
                means, worst = np.mean(errors, 0), np.max(errors, 0)
                shown = " / ".join(f"{m:.3f} ({w:.2f})" for m, w in zip(means, worst, strict=True))
                print(f"{columns}, {truth}, {n} rows: {shown}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
