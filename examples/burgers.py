"""A surrogate of Burgers' equation: a Fourier neural operator with a closed-form last layer.

Learns the map from the initial state to the state at time 1, for viscosities between 0.01 and
0.1 that come beside the field as a constant channel. Trained on 64 points, it predicts on 256.
Prints the relative L2 error on both grids and draws truth, prediction, error and predictive
standard deviation to ``burgers.png``: errors grow with small viscosities and steep fronts, and so
does the deviation.
Needs ``pip install sklearn-cfll[operators,plot]``::

    python examples/burgers.py
"""

from __future__ import annotations

import time

import matplotlib
import numpy as np

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.datasets import make_burgers
from sklearn_cfll.inspection import FieldDisplay

matplotlib.use("Agg")

VISCOSITIES = (0.01, 0.02, 0.04, 0.1)
PER_VISCOSITY, RESOLUTION, FINER = 150, 64, 4


def simulate(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples as (n, channels, grid): the initial state and its viscosity's logarithm."""
    inputs, outputs = [], []
    for seed, viscosity in enumerate(VISCOSITIES):
        start, end = make_burgers(PER_VISCOSITY, resolution, viscosity, random_state=seed)
        inputs.append(np.stack([start, np.full_like(start, np.log(viscosity))], axis=1))
        outputs.append(end)
    order = np.random.default_rng(0).permutation(len(VISCOSITIES) * PER_VISCOSITY)
    return np.concatenate(inputs)[order], np.concatenate(outputs)[order]


def relative_error(prediction: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean(np.linalg.norm(prediction - y, axis=1) / np.linalg.norm(y, axis=1)))


def main() -> tuple[float, float]:
    X, y = simulate(RESOLUTION)
    X_fine, y_fine = simulate(RESOLUTION * FINER)  # the same functions on a finer grid
    train, test = slice(0, 500), slice(500, None)
    model = CFLLRegressor(
        FNOBackbone(n_modes=32, hidden_channels=24, channels="first"),
        batch_size=20,
        max_epochs=40,
        learning_rate=1e-2,
        ridge=1e-2,
        precision="float32",
        random_state=0,
    )
    start = time.perf_counter()
    model.fit(X[train], y[train])
    print(f"fitted in {time.perf_counter() - start:.1f} s, {model.n_iter_} epochs")

    prediction, std = model.predict(X_fine[test], return_std=True)
    coarse = relative_error(model.predict(X[test]), y[test])
    fine = relative_error(prediction, y_fine[test])
    print(f"relative L2 error on {RESOLUTION} points, as in training: {coarse:.4f}")
    print(f"relative L2 error on {RESOLUTION * FINER} points:                 {fine:.4f}")
    draw(X_fine[test], y_fine[test], prediction, std)
    return coarse, fine


def draw(X: np.ndarray, y: np.ndarray, prediction: np.ndarray, std: np.ndarray) -> None:
    """One sample of each viscosity: the state at time 1, and the error."""
    display = FieldDisplay.from_predictions(
        y,
        prediction,
        std,
        sample=[np.flatnonzero(np.isclose(X[:, 1, 0], np.log(v)))[0] for v in VISCOSITIES],
        labels=[f"viscosity {v:g}" for v in VISCOSITIES],
        extent=(0, 1),
    )
    display.figure_.savefig("burgers.png", dpi=110)
    print("picture: burgers.png")


if __name__ == "__main__":
    main()
