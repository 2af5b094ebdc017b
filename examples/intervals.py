"""Prediction intervals three ways: built in, by MAPIE and by crepes, where noise is uneven.

pip install mapie crepes
python examples/intervals.py            # half a minute; writes intervals.png
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from crepes import WrapRegressor
from mapie.regression import SplitConformalRegressor
from sklearn.model_selection import train_test_split

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.inspection import PredictionIntervalDisplay

COVERAGE = 0.9


def simulate(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A wave whose noise grows along x."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 3, n)
    return x[:, None], np.sin(3 * x) + (0.05 + 0.25 * x) * rng.normal(size=n)


class Difficulty:
    """What crepes divides residuals by: the predictive standard deviation."""

    def __init__(self, model: CFLLRegressor) -> None:
        self.model = model

    def apply(self, X: np.ndarray) -> np.ndarray:
        return self.model.predict(X, return_std=True)[1]


def intervals(X: np.ndarray, y: np.ndarray, X_test: np.ndarray) -> dict[str, np.ndarray]:
    """(n, 2) lower and upper ends by name."""
    settings = {"hidden_layer_sizes": (64, 64), "max_epochs": 40, "random_state": 0}
    model = CFLLRegressor(**settings, validation_fraction=0.25).fit(X, y)
    found = {"predict_interval": np.stack(model.predict_interval(X_test, COVERAGE), axis=1)}

    proper, held, y_proper, y_held = train_test_split(X, y, test_size=0.25, random_state=0)
    fitted = CFLLRegressor(**settings).fit(proper, y_proper)
    mapie = SplitConformalRegressor(fitted, confidence_level=COVERAGE, prefit=True)
    mapie.conformalize(held, y_held)
    found["MAPIE, absolute residuals"] = mapie.predict_interval(X_test)[1][:, :, 0]

    crepes = WrapRegressor(fitted)
    crepes.calibrate(held, y_held, de=Difficulty(fitted))
    found["crepes, over our std"] = crepes.predict_int(X_test, confidence=COVERAGE)
    return found


def main() -> dict[str, tuple[float, float, float]]:
    X, y = simulate(2000, seed=0)
    X_test, y_test = simulate(5000, seed=1)
    order = X_test[:, 0].argsort()
    X_test, y_test = X_test[order], y_test[order]
    quiet, loud = slice(0, 1500), slice(-1500, None)

    measured = {}
    found = intervals(X, y, X_test)
    figure, axes = plt.subplots(1, len(found), figsize=(14, 4), sharey=True, layout="constrained")
    print(f"{'':28s}covered   where quiet   where loud   mean width")
    for ax, (name, ends) in zip(axes, found.items(), strict=True):
        lower, upper = ends.T
        inside = (lower <= y_test) & (y_test <= upper)
        measured[name] = inside.mean(), inside[quiet].mean(), inside[loud].mean()
        overall, low, high = measured[name]
        width = np.mean(upper - lower)
        print(f"{name:28s}{overall:7.3f}{low:14.3f}{high:13.3f}{width:13.3f}")
        shown = slice(None, None, 10)
        PredictionIntervalDisplay.from_predictions(
            X_test[shown, 0],
            (lower + upper)[shown] / 2,
            lower[shown],
            upper[shown],
            y_test[shown],
            ax=ax,
        )
        ax.set(title=name, xlabel="x")
    figure.savefig("intervals.png", dpi=110)
    print("picture: intervals.png")
    return measured


if __name__ == "__main__":
    main()
