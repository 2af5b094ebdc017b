"""The shared perceptron and the ways to train it: what comparisons on one network are made of."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from measures import mean_squared_error
from sklearn.neural_network import MLPRegressor
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from tasks import Task
from torch import Tensor, nn

from sklearn_cfll import CFLLNet, linalg
from sklearn_cfll.linalg import RIDGES
from sklearn_cfll.training.schedules import cosine

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 1e-4}),
}
Predict = Callable[[np.ndarray], np.ndarray]


class Setting(NamedTuple):
    """How a perceptron of two layers of ``width`` units is trained."""

    optimizer: str = "adam"
    lr: float = 1e-2
    width: int = 256
    batch_size: int = 256
    epochs: int = 50
    seed: int = 0
    depth: int = 2

    @classmethod
    def of(cls, place: dict[str, Any]) -> Setting:
        """Those fields of a record that are settings."""
        return cls(**{name: place[name] for name in cls._fields if name in place})


class Epoch(NamedTuple):
    """What a way to train shows after an epoch; features are None if it has none to show."""

    seconds: float
    predict: Predict
    features: Predict | None


Look = Callable[[Epoch], None]


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


def train(
    net: nn.Module,
    rows: tuple[Tensor, Tensor],
    setting: Setting,
    schedule: Callable[[float], float] = cosine,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    **options: float,
) -> Iterator[float]:
    """A plain PyTorch loop on all layers: fused optimiser, index batches, a schedule.

    Yields the seconds of each epoch after it; raises FloatingPointError if the loss is not finite.
    """
    X, y = rows
    kind, extra = OPTIMIZERS[setting.optimizer]
    opt = kind(net.parameters(), lr=setting.lr, **({"fused": True} | extra | options))
    generator = torch.Generator().manual_seed(setting.seed)
    n_batches = -(-len(X) // setting.batch_size)
    step = 0
    for _ in range(setting.epochs):
        start = time.perf_counter()
        for chosen in torch.tensor_split(torch.randperm(len(X), generator=generator), n_batches):
            opt.param_groups[0]["lr"] = setting.lr * schedule(step / (setting.epochs * n_batches))
            loss = loss_of(net(X[chosen]), y[chosen])
            opt.zero_grad()
            loss.backward()
            opt.step()
            step += 1
            if not np.isfinite(loss.item()):  # the product looks at each loss, too
                raise FloatingPointError("the loss is not finite")
        yield time.perf_counter() - start


def keep_best(
    loop: Iterator[float], net: nn.Module, error: Callable[[], float], patience: int
) -> tuple[float, float]:
    """Run :func:`train` on ``net`` until nothing improves, and go back to its best epoch.

    Returns the least ``error()`` and the median seconds of an epoch, ``error()`` included.
    """
    best, since, spent = np.inf, 0, []
    state = copy.deepcopy(net.state_dict())
    with contextlib.suppress(FloatingPointError):
        for seconds in loop:
            start = time.perf_counter()
            found = error()
            spent.append(seconds + time.perf_counter() - start)
            since += 1
            if found < best:
                best, since, state = found, 0, copy.deepcopy(net.state_dict())
            if since >= patience:
                break
    net.load_state_dict(state)
    return best, float(np.median(spent or [np.inf]))


class Recorder(Callback):
    """Times epochs and looks at the net between them, outside the measured time."""

    def __init__(self, look: Callable[[float, Any], None]) -> None:
        self.look = look

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.look(time.perf_counter() - self.start_, net)


def predictor(module: nn.Module) -> Predict:
    """Array in, array out, in evaluation mode."""

    def predict(X: np.ndarray) -> np.ndarray:
        training = module.training
        module.eval()
        with torch.no_grad():
            out = module(torch.from_numpy(X)).numpy()
        module.train(training)
        return out

    return predict


# -- ways to train: way(task, setting, look) calls `look` after each epoch ----------------------


def plain_loop(
    task: Task, setting: Setting, look: Look, schedule: Callable[[float], float] = cosine
) -> None:
    """:func:`train` on the perceptron."""
    X, y = (torch.from_numpy(part) for part in task.train)
    net = network(X.shape[1], setting.width, setting.seed, y.shape[1], setting.depth)
    for seconds in train(net, (X, y), setting, schedule):
        look(Epoch(seconds, predictor(net), predictor(net[:-1])))


def closed_form(task: Task, setting: Setting, look: Look, **options: Any) -> CFLLNet:
    """CFLLNet on the same backbone, batches and schedule."""
    kind, extra = OPTIMIZERS[setting.optimizer]

    def show(seconds: float, net: CFLLNet) -> None:
        look(Epoch(seconds, predictor(net.module_), predictor(net.module_.backbone)))

    return CFLLNet(
        network(task.train[0].shape[1], setting.width, setting.seed),
        optimizer=kind,
        optimizer__fused=True,
        **{f"optimizer__{name}": value for name, value in extra.items()},
        lr=setting.lr,
        lr_schedule="cosine",
        batch_size=setting.batch_size,
        max_epochs=setting.epochs,
        random_state=setting.seed,
        verbose=0,
        callbacks=[Recorder(show)],
        **options,
    ).fit(*task.train)


def stock_skorch(task: Task, setting: Setting, look: Look) -> None:
    """skorch's own regressor with Adam, as its documentation shows it."""
    X, y = task.train
    NeuralNetRegressor(
        network(X.shape[1], setting.width, setting.seed, y.shape[1]),
        optimizer=torch.optim.Adam,
        lr=setting.lr,
        batch_size=setting.batch_size,
        max_epochs=setting.epochs,
        train_split=None,
        iterator_train__shuffle=True,
        verbose=0,
        callbacks=[Recorder(lambda s, net: look(Epoch(s, predictor(net.module_), None)))],
    ).fit(X, y)


def scikit_mlp(task: Task, setting: Setting, look: Look) -> None:
    """scikit-learn's own network, an epoch at a time."""
    X, y = task.train
    net = MLPRegressor(
        hidden_layer_sizes=(setting.width, setting.width),
        batch_size=setting.batch_size,
        learning_rate_init=setting.lr,
        alpha=0.0,
        random_state=setting.seed,
    )
    y = y.ravel() if y.shape[1] == 1 else y
    for _ in range(setting.epochs):
        start = time.perf_counter()
        net.partial_fit(X, y)
        seconds = time.perf_counter() - start
        look(Epoch(seconds, lambda X: net.predict(X).reshape(len(X), -1), None))


# -- the exact refit of a last layer ------------------------------------------------------------


def path_errors(weights: Tensor, biases: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared error of each last layer of a path."""
    features, y = rows
    return (features @ weights.mT + biases[:, None] - y).square().mean((1, 2))


def in_features(features: Predict, task: Task) -> list[tuple[Tensor, Tensor]]:
    """Features and targets of the training, validation and test rows, in float64."""
    return [
        (torch.from_numpy(features(X)).double(), torch.from_numpy(y).double())
        for X, y in (task.train, task.valid, task.test)
    ]


def refit_errors(features: Predict, task: Task) -> tuple[float, float]:
    """Validation and test error after an exact refit whose ridge is chosen on validation."""
    train, valid, test = in_features(features, task)
    path = linalg.ridge_path(linalg.moments(*train), torch.tensor(RIDGES))
    errors = path_errors(*path, valid)
    best = int(errors.argmin())
    return float(errors[best]), float(path_errors(*path, test)[best])


def errors_of(predict: Predict, task: Task) -> tuple[float, float]:
    """Validation and test error."""
    return mean_squared_error(predict, task.valid), mean_squared_error(predict, task.test)
