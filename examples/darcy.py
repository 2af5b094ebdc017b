"""A surrogate of Darcy flow: the pressure in a porous block from its permeability.

A Fourier neural operator with a closed-form last layer, and the same network with Adam on all
layers: the same batches, epochs and cosine schedule, each with the best of three settings on
samples that are not used here (Adam: learning rates 0.01, 0.02 and 0.04). Prints the relative L2
error on 100 fresh permeabilities, and the same network's on a grid twice as fine, which it was
not trained on. Draws truth, prediction, error and predictive standard deviation to ``darcy.png``.
Needs ``pip install sklearn-cfll[operators,plot]``::

    python examples/darcy.py
"""

from __future__ import annotations

import time

import matplotlib
import numpy as np
import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import LRScheduler
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.datasets import make_darcy
from sklearn_cfll.inspection import FieldDisplay

matplotlib.use("Agg")

SAMPLES, TEST, RESOLUTION, EPOCHS, BATCH_SIZE = 340, 100, 24, 12, 10
RECIPE = FNOBackbone(n_modes=8, hidden_channels=16)


def relative_error(prediction: np.ndarray, y: np.ndarray) -> float:
    """Mean over samples of ‖prediction − y‖ / ‖y‖."""
    error = np.linalg.norm(prediction - y, axis=(1, 2))
    return float(np.mean(error / np.linalg.norm(y, axis=(1, 2))))


def adam_on_all_layers(X: np.ndarray, y: np.ndarray, X_test: np.ndarray) -> np.ndarray:
    """What the closed form replaces: predictions of the same network, its last map trained too."""
    torch.manual_seed(0)
    backbone = RECIPE.build(X.shape[1:])
    net = NeuralNetRegressor(
        nn.Sequential(backbone, nn.Linear(32, 1), nn.Flatten(-2)),
        optimizer=torch.optim.Adam,
        lr=1e-2,
        batch_size=BATCH_SIZE,
        max_epochs=EPOCHS,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[LRScheduler(CosineAnnealingLR, T_max=EPOCHS)],
        verbose=0,
    )
    net.fit(
        ((X - X.mean()) / X.std()).astype("float32"), ((y - y.mean()) / y.std()).astype("float32")
    )
    return net.predict(((X_test - X.mean()) / X.std()).astype("float32")) * y.std() + y.mean()


def main() -> dict[str, float]:
    torch.set_num_threads(1)
    X, y = make_darcy(SAMPLES, RESOLUTION, random_state=0)
    X_test, y_test, X, y = X[:TEST], y[:TEST], X[TEST:], y[TEST:]
    model = CFLLRegressor(
        RECIPE,
        batch_size=BATCH_SIZE,
        max_epochs=EPOCHS,
        learning_rate=4e-2,
        learning_rate_schedule="cosine",
        ridge=1e-2,
        precision="float32",
        random_state=0,
    )
    start = time.perf_counter()
    model.fit(X, y)
    middle = time.perf_counter()
    by_adam = adam_on_all_layers(X, y, X_test)
    end = time.perf_counter()
    X_fine, y_fine = make_darcy(TEST, 2 * RESOLUTION, random_state=0)  # the same functions
    errors = {
        "closed form": relative_error(model.predict(X_test), y_test),
        "adam": relative_error(by_adam, y_test),
        "finer grid": relative_error(model.predict(X_fine), y_fine),
    }
    print(f"closed-form last layer: {errors['closed form']:.4f} in {middle - start:.1f} s")
    print(f"Adam on all layers:     {errors['adam']:.4f} in {end - middle:.1f} s")
    print(f"closed form at {2 * RESOLUTION} x {2 * RESOLUTION}:   {errors['finer grid']:.4f}")

    display = FieldDisplay.from_estimator(
        model, X_test, y_test, sample=[0, 1, 2], extent=(0, 1, 0, 1)
    )
    display.figure_.suptitle(
        f"Darcy flow: pressure, relative L2 error {errors['closed form']:.1%} "
        f"(Adam on all layers {errors['adam']:.1%})"
    )
    display.figure_.savefig("darcy.png", dpi=110)
    print("picture: darcy.png")
    return errors


if __name__ == "__main__":
    main()
