"""Single training runs on fields: the data, and one function for each way to train an FNO."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from skorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sklearn_cfll import CFLLNet
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.datasets import make_burgers, make_darcy, make_navier_stokes
from sklearn_cfll.training.batches import RowsDataset, as_rows
from sklearn_cfll.training.schedules import cosine

SIMULATORS = {"burgers": make_burgers, "darcy": make_darcy, "navier_stokes": make_navier_stokes}
# Points on an axis and Fourier modes of the full runs; the literature's for Burgers and Darcy.
RESOLUTION = {"burgers": 128, "darcy": 32, "navier_stokes": 64, "darcy_file": 16}
MODES = {"burgers": 32, "darcy": 12, "navier_stokes": 16, "darcy_file": 8}
FINER = {"burgers": 4, "darcy": 2, "navier_stokes": 2}  # the grid that nothing was trained on
RATES = {
    "sgd": (0.03, 0.1, 0.3, 1.0),
    "momentum": (0.01, 0.03, 0.1, 0.3),
    "adam": (1e-3, 3e-3, 1e-2, 3e-2),
    "adamw": (1e-3, 3e-3, 1e-2, 3e-2),
}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 1e-4}),
}
Pair = tuple[Tensor, Tensor]
Look = Callable[[float, nn.Module], None]  # seconds of the epoch, the network after it


@dataclass
class Task:
    """Standardised inputs and targets (n, grid...) and what y's units are."""

    train: Pair
    valid: Pair
    test: Pair
    fine: Pair | None
    mean: float
    std: float

    def relative_error(self, predict: Callable[[Tensor], Tensor], pair: Pair) -> float:
        X, y = pair
        parts = [predict(X[i : i + 50])[..., 0] for i in range(0, len(X), 50)]
        return float(self.relative(torch.cat(parts), y).mean())

    def relative(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Relative L2 of each sample in y's own units."""
        error = (prediction - y).flatten(1).norm(dim=1)
        return error / (y + self.mean / self.std).flatten(1).norm(dim=1)


def load_task(name: str, options: argparse.Namespace, seed: int) -> Task:
    """Training, validation and test samples; all scaling by the training samples."""
    n, n_valid, n_test = options.samples, options.valid, options.test
    fine = None
    if name == "darcy_file":
        stored = np.load(options.data / "darcy.npz")
        X, y = stored["X"].astype(float), stored["y"]
        rest, test = (X[:1000], y[:1000]), (X[1000:], y[1000:])
        fine = (stored["X_test32"].astype(float), stored["y_test32"])
        order = np.random.default_rng(seed).permutation(1000)
    else:
        resolution = options.resolution or RESOLUTION[name]
        settings = {"random_state": 0, "cache_dir": options.cache}
        if name == "burgers":
            settings["viscosity"] = options.viscosity
        elif name == "navier_stokes":
            settings["amplitude"] = 6.1  # as the generator that Li et al. released
        simulate, total = SIMULATORS[name], n + n_valid + n_test
        X, y = simulate(total, resolution, **settings)
        rest, test = (X[:-n_test], y[:-n_test]), (X[-n_test:], y[-n_test:])
        if options.finer:
            X, y = simulate(total, resolution * FINER[name], **settings)
            fine = (X[-n_test:], y[-n_test:])
        order = np.random.default_rng(seed).permutation(n + n_valid)
    held, chosen = order[:n_valid], order[n_valid:][:n]
    train = (rest[0][chosen], rest[1][chosen])
    (x_mean, x_std), (mean, std) = ((part.mean(), part.std()) for part in train)

    def scaled(pair) -> Pair:
        X, y = ((pair[0] - x_mean) / x_std, (pair[1] - mean) / std)
        return torch.as_tensor(X).float(), torch.as_tensor(y).float()

    valid = (rest[0][held], rest[1][held])
    return Task(
        scaled(train),
        scaled(valid),
        scaled(test),
        None if fine is None else scaled(fine),
        float(mean),
        float(std),
    )


METHODS = {  # by name in the table: who trains, the optimiser, the loss
    "all layers, SGD": ("all layers", "sgd", "squared"),
    "all layers, SGD + momentum": ("all layers", "momentum", "squared"),
    "all layers, Adam": ("all layers", "adam", "squared"),
    "all layers, AdamW": ("all layers", "adamw", "squared"),
    "neuraloperator's Trainer": ("trainer", "adamw", "relative L2"),
    "last layer first, SGD": ("last_layer_first", "sgd", "squared"),
    "last layer first, Adam": ("last_layer_first", "adam", "squared"),
    "last layer first, Adam, relative": ("last_layer_first", "adam", "squared relative"),
    "backbone first, SGD": ("backbone_first", "sgd", "squared"),
    "backbone first, Adam": ("backbone_first", "adam", "squared"),
}


def build(setting: dict, seed: int, grid: tuple[int, ...]) -> nn.Module:
    """The FNO without its last map, the same weights for every method."""
    torch.manual_seed(seed)
    recipe = FNOBackbone(setting["modes"], setting["width"], setting["layers"])
    return recipe.build(grid)


def whole_network(task: Task, setting: dict, seed: int) -> nn.Module:
    """The same backbone with an ordinary last layer on it."""
    backbone = build(setting, seed, tuple(task.train[0].shape[1:]))
    with torch.no_grad():
        width = backbone(task.train[0][:1]).shape[-1]
    return nn.Sequential(backbone, nn.Linear(width, 1))


def all_layers(task: Task, config: dict, setting: dict, seed: int, look: Look) -> None:
    """A plain loop on all layers."""
    X, y = task.train
    net = whole_network(task, setting, seed)
    kind, extra = OPTIMIZERS[config["optimizer"]]
    optimizer = kind(net.parameters(), lr=config["lr"], **extra)
    generator = torch.Generator().manual_seed(seed)
    n_batches, epochs = -(-len(X) // setting["batch_size"]), setting["epochs"]
    step = 0
    for _ in range(epochs):
        start = time.perf_counter()
        for rows in torch.tensor_split(torch.randperm(len(X), generator=generator), n_batches):
            optimizer.param_groups[0]["lr"] = config["lr"] * cosine(step / (epochs * n_batches))
            loss = F.mse_loss(net(X[rows])[..., 0], y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if not np.isfinite(loss.item()):  # the product looks at each loss too
                raise FloatingPointError
        look(time.perf_counter() - start, net)


def trainer(task: Task, config: dict, setting: dict, seed: int, look: Look) -> None:
    """neuraloperator's Trainer: relative L2 loss in y's own units, cosine by epoch."""
    from neuralop.losses import LpLoss
    from neuralop.training import Trainer

    net = whole_network(task, setting, seed)
    shift = task.mean / task.std

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x)[..., 0] + shift

    class LookingTrainer(Trainer):
        def train_one_epoch(self, epoch: int, *args):
            result = super().train_one_epoch(epoch, *args)
            if not np.isfinite(result[0]):
                raise FloatingPointError
            look(result[-1], net)
            return result

    X, y = task.train
    samples = [{"x": one, "y": other + shift} for one, other in zip(X, y, strict=True)]
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(samples, setting["batch_size"], shuffle=True, generator=generator)
    kind, extra = OPTIMIZERS[config["optimizer"]]
    optimizer = kind(net.parameters(), lr=config["lr"], **extra)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting["epochs"])
    measure = LpLoss(d=X.ndim - 1, p=2)

    def loss(output: Tensor, y: Tensor, **inputs: Tensor) -> Tensor:
        return measure(output, y)

    LookingTrainer(model=Model(), n_epochs=setting["epochs"]).train(
        loader, {}, optimizer, schedule, training_loss=loss
    )


class Recorder(Callback):
    """Times epochs and looks at the net between them, outside the measured time."""

    def __init__(self, look: Look) -> None:
        self.look = look

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net, **kwargs) -> None:
        self.look(time.perf_counter() - self.start_, net.module_)


def make_net(config: dict, setting: dict, backbone: nn.Module, callbacks: list) -> CFLLNet:
    kind, extra = OPTIMIZERS[config["optimizer"]]
    return CFLLNet(
        backbone,
        optimizer=kind,
        **{f"optimizer__{name}": value for name, value in extra.items()},
        lr=config["lr"],
        batch_size=setting["batch_size"],
        max_epochs=setting["epochs"],
        update_order=config["method"],
        last_layer__ridge=config["ridge"],
        last_layer__out_features=1,
        last_layer__in_features=int(2 * setting["width"]),
        verbose=0,
        callbacks=callbacks,
        random_state=setting.get("seed", 0),
        lr_schedule="cosine",
    )


def closed_form(task: Task, config: dict, setting: dict, seed: int, look: Look) -> None:
    """CFLLNet on the same backbone, batches and schedule."""
    X, y = task.train
    weights = None
    if config["loss"] == "squared relative":  # a weight 1 / ‖y‖² a sample, one on average
        weights = 1 / (y + task.mean / task.std).flatten(1).square().mean(1)
        weights = weights / weights.mean()
    backbone = build(setting, seed, tuple(X.shape[1:]))
    net = make_net(config, {**setting, "seed": seed}, backbone, [Recorder(look)])
    net.fit(RowsDataset(as_rows(X, "cpu", torch.float32), y[..., None], weights))


def run_one(task: Task, config: dict, setting: dict, seed: int) -> dict:
    """Test error of each epoch, validation error of the last, the finer grid's, seconds."""
    curve: list[float] = []
    seconds: list[float] = []
    last: dict[str, float] = {}

    def look(took: float, net: nn.Module) -> None:
        seconds.append(took)
        net.eval()
        with torch.no_grad():
            curve.append(task.relative_error(net, task.test))
            if len(seconds) == setting["epochs"]:
                last["valid"] = task.relative_error(net, task.valid)
                if task.fine is not None:
                    last["fine"] = task.relative_error(net, task.fine)
        net.train()

    train = {"all layers": all_layers, "trainer": trainer}.get(config["method"], closed_form)
    with contextlib.suppress(FloatingPointError):  # diverged: the rest counts as infinitely bad
        train(task, config, setting, seed, look)
    curve += [np.inf] * (setting["epochs"] - len(curve))
    return {
        "valid": float(np.nan_to_num(last.get("valid", np.inf), nan=np.inf, posinf=np.inf)),
        "curve": [
            round(float(value), 6) for value in np.nan_to_num(curve, nan=np.inf, posinf=np.inf)
        ],
        "fine": last.get("fine"),
        "seconds": float(np.median(seconds)) if seconds else np.inf,
    }
