"""Closed-form last layer against Adam, in one command.

Three models with the same network (two hidden layers of 256 ReLU units), the same batches,
epochs and rows: ``CFLLRegressor``, the network with Adam on all layers through skorch, and
scikit-learn's ``MLPRegressor``. Two tasks: measurements of cell nuclei (real data that come
with scikit-learn; the largest area from the other 29 measurements) and a smooth function with
hardly any noise. Validation rows choose Adam's learning rate and the epoch that each method
keeps; test rows are for the table.

Prints test errors by epoch and by second, and draws the curves to ``demo.png``::

    python examples/demo.py
"""

from __future__ import annotations

import time

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from sklearn_cfll import CFLLRegressor, ColumnEncoder

matplotlib.use("Agg")
import matplotlib.pyplot as plt

EPOCHS, BATCH_SIZE, WIDTH, SPLITS = 50, 256, 256, 5
SHOWN = (1, 2, 5, 10, 20, 50)
RATES = (1e-3, 3e-3, 1e-2)


class Curve(Callback):
    """Validation and test error after each epoch, and the seconds of training until then."""

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, net, **kwargs):
        self.rows, self.trained_ = [], 0.0

    def on_epoch_begin(self, net, **kwargs):
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net, **kwargs):
        self.trained_ += time.perf_counter() - self.start_
        self.rows.append((self.trained_, *self.look(net.predict)))


def tasks():
    """Name and X, y of each task."""
    cells = load_breast_cancer()
    area = list(cells.feature_names).index("worst area")
    X = np.random.default_rng(0).uniform(-1, 1, (3000, 4))
    y = np.sin(3 * X[:, 0] * X[:, 1]) + np.cos(4 * X[:, 2]) * X[:, 3] + X[:, 0] ** 2
    return {
        "cell nuclei: worst area": (np.delete(cells.data, area, axis=1), cells.data[:, area]),
        "smooth function": (X, y),
    }


def split(X, y, seed):
    """Standardised (X, y) pairs for training, validation and test."""
    X, X_test, y, y_test = train_test_split(X, y[:, None], test_size=0.25, random_state=seed)
    X, X_valid, y, y_valid = train_test_split(X, y, test_size=0.2, random_state=seed)
    scale_X, scale_y = StandardScaler().fit(X), StandardScaler().fit(y)
    return [
        (scale_X.transform(X).astype("float32"), scale_y.transform(y).astype("float32"))
        for X, y in ((X, y), (X_valid, y_valid), (X_test, y_test))
    ]


def error(predict, rows):
    X, y = rows
    return float(np.square(predict(X).reshape(y.shape) - y).mean())


def closed_form(train, valid, look):
    """CFLLRegressor with its default ridge, rate and order of updates."""
    curve = Curve(look)
    model = CFLLRegressor(
        hidden_layer_sizes=(WIDTH, WIDTH),
        n_members=1,  # the same network and the same loss for all
        columns=ColumnEncoder(n_bins=0, importance=False),
        linear_part=False,
        weight_decay=0.0,
        batch_size=BATCH_SIZE,
        max_epochs=EPOCHS,
        n_iter_no_change=EPOCHS,
        precision="float32",
        normalize_y=False,
        callbacks=[curve],
        random_state=0,
    ).fit(*train, X_val=valid[0], y_val=valid[1])
    return curve.rows, look(model.predict)[1]


def adam(train, look, rate):
    """The same network, all layers by Adam with a cosine schedule, through skorch."""
    X, y = train
    torch.manual_seed(0)
    curve = Curve(look)
    layers = [nn.Linear(X.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    NeuralNetRegressor(
        nn.Sequential(*layers, nn.Linear(WIDTH, 1)),
        optimizer=torch.optim.Adam,
        lr=rate,
        batch_size=BATCH_SIZE,
        max_epochs=EPOCHS,
        iterator_train__shuffle=True,
        train_split=None,
        verbose=0,
        callbacks=[LRScheduler(CosineAnnealingLR, T_max=EPOCHS), curve],
    ).fit(X, y)
    return curve.rows


def multilayer_perceptron(train, look, rate):
    """scikit-learn's MLPRegressor, an epoch at a time."""
    X, y = train
    sizes = {"hidden_layer_sizes": (WIDTH, WIDTH), "batch_size": BATCH_SIZE}
    net = MLPRegressor(**sizes, learning_rate_init=rate, alpha=0.0, random_state=0)
    rows, trained = [], 0.0
    for _ in range(EPOCHS):
        start = time.perf_counter()
        net.partial_fit(X, y.ravel())
        trained += time.perf_counter() - start
        rows.append((trained, *look(net.predict)))
    return rows


def compare(X, y):
    """For each method its rows (seconds, validation, test error) and the error it keeps.

    Means over splits; Adam's rate is chosen split by split.
    """
    results = {"CFLLRegressor": [], "Adam, skorch": [], "MLPRegressor": []}
    for seed in range(SPLITS):
        train, valid, test = split(X, y, seed)

        def look(predict, valid=valid, test=test):
            return error(predict, valid), error(predict, test)

        rows, kept = closed_form(train, valid, look)
        results["CFLLRegressor"].append((np.array(rows), kept))
        for label, fit in (("Adam, skorch", adam), ("MLPRegressor", multilayer_perceptron)):
            runs = [np.array(fit(train, look, rate)) for rate in RATES]
            rows = min(runs, key=lambda rows: rows[:, 1].min())
            results[label].append((rows, rows[rows[:, 1].argmin(), 2]))
    return {
        label: (np.mean([rows for rows, _ in found], axis=0), np.mean([k for _, k in found]))
        for label, found in results.items()
    }


def print_table(results):
    print(f"{'test MSE at epoch':32s}" + "".join(f"{e:9d}" for e in SHOWN) + "     kept")
    for label, (rows, kept) in results.items():
        cells = "".join(f"{rows[e - 1, 2]:9.4f}" for e in SHOWN)
        print(f"{label:32s}{cells}{kept:9.4f}")
    slowest = max(rows[-1, 0] for rows, _ in results.values())
    marks = [share * slowest for share in (0.1, 0.2, 0.4, 0.7, 1.0)]
    print(f"{'test MSE at second':32s}" + "".join(f"{mark:9.2f}" for mark in marks))
    for label, (rows, _) in results.items():
        done = [np.searchsorted(rows[:, 0], mark, side="right") - 1 for mark in marks]
        cells = "".join(f"{rows[i, 2]:9.4f}" if i >= 0 else f"{'-':>9s}" for i in done)
        print(f"{label:32s}{cells}")


def main() -> None:
    torch.set_num_threads(1)
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), constrained_layout=True)
    for row, (name, (X, y)) in zip(axes, tasks().items(), strict=True):
        results = compare(X, y)
        rows, columns = X.shape
        print(f"\n{name}: {rows} x {columns}, mean of {SPLITS} splits into train/valid/test")
        print_table(results)
        for axis, x_label in zip(row, ("epochs", "seconds of training"), strict=True):
            for label, (rows, kept) in results.items():
                x = np.arange(1, EPOCHS + 1) if x_label == "epochs" else rows[:, 0]
                (line,) = axis.plot(x, rows[:, 2], label=label)
                axis.plot(x[-1], kept, "o", color=line.get_color())
            axis.set(xlabel=x_label, ylabel="test mean squared error", yscale="log", title=name)
            axis.legend(fontsize=8)
    figure.suptitle("The same network with a closed-form last layer and with Adam (dots: kept)")
    figure.savefig("demo.png", dpi=110)
    print('\nCurves: demo.png. "kept" is the epoch that is best on validation rows; for')
    print("CFLLRegressor with its final exact fit of the last layer.")


if __name__ == "__main__":
    main()
