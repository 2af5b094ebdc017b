"""Data sets of fields, and one function for each way to train a Fourier neural operator on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from networks import OPTIMIZERS, Recorder, Setting, train
from tasks import Where
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sklearn_cfll import CFLLNet
from sklearn_cfll.backbones import FNOBackbone
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.datasets import make_burgers, make_darcy, make_navier_stokes
from sklearn_cfll.training.batches import RowsDataset

Pair = tuple[Tensor, Tensor]
Look = Callable[[float, nn.Module], None]  # seconds of the epoch, the network after it
# The amplitude is that of the generator that Li et al. released.
SIMULATORS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "burgers": (make_burgers, {}),
    "darcy": (make_darcy, {}),
    "navier_stokes": (make_navier_stokes, {"amplitude": 6.1}),
}
RESOLUTION = {"burgers": 128, "darcy": 32, "navier_stokes": 64, "darcy_file": 16}
FINER = {"burgers": 4, "darcy": 2, "navier_stokes": 2}  # the grid that nothing was trained on


class Samples(NamedTuple):
    """Numbers of samples, and whether there are test samples on a finer grid."""

    train: int = 1000
    valid: int = 100
    test: int = 200
    finer: bool = False


@dataclass
class Fields:
    """Standardised inputs and targets (n, grid...) and what y's units are."""

    train: Pair
    valid: Pair
    test: Pair
    fine: Pair | None
    mean: float
    std: float

    def relative_error(self, predict: Callable[[Tensor], Tensor], pair: Pair) -> float:
        """Mean over samples of ‖prediction - y‖ / ‖y‖ in y's own units."""
        X, y = pair
        parts = [predict(X[i : i + 50])[..., 0] for i in range(0, len(X), 50)]
        error = (torch.cat(parts) - y).flatten(1).norm(dim=1)
        return float((error / (y + self.mean / self.std).flatten(1).norm(dim=1)).mean())


def simulated(name: str, total: int, points: int, where: Where) -> tuple[np.ndarray, np.ndarray]:
    simulate, settings = SIMULATORS[name]
    return simulate(total, points, random_state=0, cache_dir=where.cache, **settings)


def load_fields(name: str, seed: int, where: Where, samples: Samples = Samples()) -> Fields:  # noqa: B008
    """Training, validation and test samples; all scaling by the training samples.

    ``darcy_file`` is neuraloperator's small Darcy set, ``darcy.npz`` in ``--data``: X, y on
    16 × 16 points, the first 1,000 of which train, and X_test32, y_test32 on 32 × 32.
    """
    fine = None
    n_rest = samples.train + samples.valid
    if name == "darcy_file":
        stored, n_rest = where.stored("darcy"), 1000
        X, y = stored["X"].astype(float), stored["y"]
        fine = (stored["X_test32"].astype(float), stored["y_test32"])
    else:
        total, points = n_rest + samples.test, RESOLUTION[name]
        X, y = simulated(name, total, points, where)
        if samples.finer:
            finer = simulated(name, total, points * FINER[name], where)
            fine = tuple(part[n_rest:] for part in finer)
    order = np.random.default_rng(seed).permutation(n_rest)
    held, chosen = order[: samples.valid], order[samples.valid :][: samples.train]
    (x_mean, x_std), (mean, std) = ((part.mean(), part.std()) for part in (X[chosen], y[chosen]))

    def scaled(X: np.ndarray, y: np.ndarray) -> Pair:
        parts = (X - x_mean) / x_std, (y - mean) / std
        return tuple(torch.as_tensor(part).float() for part in parts)

    return Fields(
        scaled(X[chosen], y[chosen]),
        scaled(X[held], y[held]),
        scaled(X[n_rest:], y[n_rest:]),
        None if fine is None else scaled(*fine),
        float(mean),
        float(std),
    )


def build(place: dict[str, Any], grid: tuple[int, ...]) -> nn.Module:
    """The FNO without its last map, the same weights for every method."""
    torch.manual_seed(place["seed"])
    return FNOBackbone(place["modes"], place["width"], place["layers"]).build(grid)


def whole_network(task: Fields, place: dict[str, Any]) -> nn.Module:
    """The same backbone with an ordinary last layer on it."""
    backbone = build(place, tuple(task.train[0].shape[1:]))
    with torch.no_grad():
        width = backbone(task.train[0][:1]).shape[-1]
    return nn.Sequential(backbone, nn.Linear(width, 1))


def all_layers(task: Fields, place: dict[str, Any], look: Look) -> None:
    """A plain loop on all layers."""
    net = whole_network(task, place)
    loss_of = lambda output, y: F.mse_loss(output[..., 0], y)  # noqa: E731
    # A fused optimiser cannot take the complex weights.
    for seconds in train(net, task.train, Setting.of(place), loss_of=loss_of, fused=False):
        look(seconds, net)


def trainer(task: Fields, place: dict[str, Any], look: Look) -> None:
    """neuraloperator's Trainer: relative L2 loss in y's own units, cosine by epoch."""
    from neuralop.losses import LpLoss
    from neuralop.training import Trainer

    net = whole_network(task, place)
    shift = task.mean / task.std

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.net(x)[..., 0] + shift

    class LookingTrainer(Trainer):
        def train_one_epoch(self, epoch: int, *args: Any) -> Any:
            result = super().train_one_epoch(epoch, *args)
            if not np.isfinite(result[0]):
                raise FloatingPointError
            look(result[-1], net)
            return result

    X, y = task.train
    samples = [{"x": one, "y": other + shift} for one, other in zip(X, y, strict=True)]
    generator = torch.Generator().manual_seed(place["seed"])
    loader = DataLoader(samples, place["batch_size"], shuffle=True, generator=generator)
    kind, extra = OPTIMIZERS[place["optimizer"]]
    optimizer = kind(net.parameters(), lr=place["lr"], **extra)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, place["epochs"])
    measure = LpLoss(d=X.ndim - 1, p=2)

    def loss(output: Tensor, y: Tensor, **inputs: Tensor) -> Tensor:
        return measure(output, y)

    LookingTrainer(model=Model(), n_epochs=place["epochs"]).train(
        loader, {}, optimizer, schedule, training_loss=loss
    )


def closed_form(task: Fields, place: dict[str, Any], look: Look) -> None:
    """CFLLNet on the same backbone, batches and schedule."""
    X, y = task.train
    weights = None
    if place["loss"] == "squared relative":  # a weight 1 / ‖y‖² per sample, one on average
        weights = 1 / (y + task.mean / task.std).flatten(1).square().mean(1)
        weights = weights / weights.mean()
    kind, extra = OPTIMIZERS[place["optimizer"]]
    CFLLNet(
        build(place, tuple(X.shape[1:])),
        optimizer=kind,
        **{f"optimizer__{name}": value for name, value in extra.items()},
        lr=place["lr"],
        lr_schedule="cosine",
        batch_size=place["batch_size"],
        max_epochs=place["epochs"],
        update_order=place["method"],
        last_layer__ridge=place["ridge"],
        last_layer__out_features=1,
        last_layer__in_features=int(2 * place["width"]),
        random_state=place["seed"],
        verbose=0,
        callbacks=[Recorder(lambda seconds, net: look(seconds, net.module_))],
    ).fit(RowsDataset(as_rows(X, "cpu", torch.float32), y[..., None], weights))


WAYS = {
    "all layers": all_layers,
    "trainer": trainer,
    "last_layer_first": closed_form,
    "backbone_first": closed_form,
}


def run_one(task: Fields, place: dict[str, Any]) -> dict[str, Any]:
    """Test error of each epoch, validation error of the last, the finer grid's, seconds."""
    curve: list[float] = []
    seconds: list[float] = []
    last: dict[str, float] = {}

    def look(took: float, net: nn.Module) -> None:
        seconds.append(took)
        net.eval()
        with torch.no_grad():
            curve.append(task.relative_error(net, task.test))
            if len(seconds) == place["epochs"]:
                last["valid"] = task.relative_error(net, task.valid)
                if task.fine is not None:
                    last["fine"] = task.relative_error(net, task.fine)
        net.train()

    with contextlib.suppress(FloatingPointError):  # diverged: the rest counts as infinitely bad
        WAYS[place["method"]](task, place, look)
    curve += [np.inf] * (place["epochs"] - len(curve))
    finite = np.nan_to_num([last.get("valid", np.inf), *curve], nan=np.inf, posinf=np.inf)
    return {
        "valid": float(finite[0]),
        "curve": [round(float(value), 6) for value in finite[1:]],
        "fine": last.get("fine"),
        "seconds": float(np.median(seconds)) if seconds else np.inf,
    }
