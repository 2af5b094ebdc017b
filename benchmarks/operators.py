"""Fourier neural operators: a closed-form last layer against training all layers.

The same FNO, samples, batches, epochs and cosine schedule for every method: the closed form
in both orders, with AdamW and with SGD on the backbone, against SGD, SGD with momentum, Adam
and AdamW on all layers, and against Adam on neuraloperator's relative L2 loss. Each method's
learning rate is chosen on validation samples (relative L2 at the last epoch), seed by seed;
the test samples are looked at for the table alone. The measure is the mean over samples of
‖prediction − y‖ / ‖y‖, in y's units.

    python benchmarks/operators.py --quick                      # Burgers, two minutes, one core
    python benchmarks/operators.py --tasks burgers darcy navier_stokes
    python benchmarks/operators.py --tasks darcy_file --data DIR
    python benchmarks/operators.py --table                      # print the stored records

``darcy_file`` is neuraloperator's small Darcy set as ``DIR/darcy.npz``: X, y on 16 × 16 points
(the first 1,000 samples train), X_test32, y_test32 on 32 × 32.
Runs are stored as they end (``results/operators.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklearn_cfll import CFLLNet
from sklearn_cfll.backbones.fno import FNOBackbone
from sklearn_cfll.datasets import make_burgers, make_darcy, make_navier_stokes
from sklearn_cfll.training.batches import RowsDataset, as_rows
from sklearn_cfll.training.schedules import cosine

RESULTS = Path(__file__).parent / "results"
SIMULATORS = {"burgers": make_burgers, "darcy": make_darcy, "navier_stokes": make_navier_stokes}
# Points on an axis and Fourier modes of the full runs; the literature's for Burgers and Darcy.
RESOLUTION = {"burgers": 128, "darcy": 32, "navier_stokes": 64, "darcy_file": 16}
MODES = {"burgers": 32, "darcy": 12, "navier_stokes": 16, "darcy_file": 8}
FINER = {"burgers": 4, "darcy": 2, "navier_stokes": 2}  # the grid that nothing was trained on
RATES = {
    "sgd": (0.03, 0.1, 0.3),
    "momentum": (0.003, 0.01, 0.03, 0.1),
    "adam": (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2),
    "adamw": (3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 5e-2),
}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 1e-4}),
}
IDENTITY = ("method", "optimizer", "ridge", "loss")
Pair = tuple[Tensor, Tensor]


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


def configurations(options: argparse.Namespace) -> list[dict]:
    """Every (method, optimiser, ridge, loss, rate) of the comparison."""
    runs = []
    for optimizer, rates in RATES.items():
        for lr in rates:
            runs.append({"method": "all layers", "optimizer": optimizer, "loss": "squared"})
            runs[-1]["lr"] = lr
    for lr in RATES["adam"]:
        runs.append({"method": "all layers", "optimizer": "adam", "loss": "relative L2", "lr": lr})
    for method in ("last_layer_first", "backbone_first"):
        for optimizer in ("adam", "sgd"):
            for ridge in options.ridges:
                for loss in ("squared", "squared relative"):
                    if loss != "squared" and (optimizer == "sgd" or not options.relative):
                        continue
                    for lr in RATES[optimizer]:
                        run = {"method": method, "optimizer": optimizer, "ridge": ridge}
                        runs.append({**run, "loss": loss, "lr": lr})
    wanted = options.methods
    return [run for run in runs if wanted is None or run["method"].replace(" ", "_") in wanted]


def build(setting: dict, seed: int, grid: tuple[int, ...]) -> nn.Module:
    """The FNO without its last map, the same weights for every method."""
    torch.manual_seed(seed)
    recipe = FNOBackbone(setting["modes"], setting["width"], setting["layers"])
    return recipe.build(grid)


def all_layers(
    task: Task, config: dict, setting: dict, seed: int
) -> Iterator[tuple[float, Callable[[Tensor], Tensor]]]:
    """A plain loop on all layers; yields seconds and the network after each epoch."""
    from neuralop.losses import LpLoss

    X, y = task.train
    backbone = build(setting, seed, tuple(X.shape[1:]))
    with torch.no_grad():
        width = backbone(X[:1]).shape[-1]
    net = nn.Sequential(backbone, nn.Linear(width, 1))
    kind, extra = OPTIMIZERS[config["optimizer"]]
    optimizer = kind(net.parameters(), lr=config["lr"], **extra)
    relative = LpLoss(d=X.ndim - 1, p=2, reduction="mean").rel
    shift = task.mean / task.std  # the relative loss is taken in y's own units

    generator = torch.Generator().manual_seed(seed)
    n_batches, epochs = -(-len(X) // setting["batch_size"]), setting["epochs"]
    step = 0
    for _ in range(epochs):
        start = time.perf_counter()
        for rows in torch.tensor_split(torch.randperm(len(X), generator=generator), n_batches):
            optimizer.param_groups[0]["lr"] = config["lr"] * cosine(step / (epochs * n_batches))
            output = net(X[rows])[..., 0]
            if config["loss"] == "squared":
                loss = F.mse_loss(output, y[rows])
            else:
                loss = relative(output + shift, y[rows] + shift)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if not np.isfinite(loss.item()):  # the product looks at each loss too
                raise FloatingPointError
        yield time.perf_counter() - start, net


class Recorder(Callback):
    """Times epochs and looks at the net between them, outside the measured time."""

    def __init__(self, look: Callable[[float, nn.Module], None]) -> None:
        self.look = look

    def on_epoch_begin(self, net, **kwargs) -> None:
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net, **kwargs) -> None:
        self.look(time.perf_counter() - self.start_, net.module_)


def closed_form(
    task: Task, config: dict, setting: dict, seed: int, look: Callable[[float, nn.Module], None]
) -> None:
    """CFLLNet on the same backbone, batches and schedule."""
    X, y = task.train
    weights = None
    if config["loss"] == "squared relative":  # a weight 1 / ‖y‖² a sample, one on average
        weights = 1 / (y + task.mean / task.std).flatten(1).square().mean(1)
        weights = weights / weights.mean()
    kind, extra = OPTIMIZERS[config["optimizer"]]
    net = CFLLNet(
        build(setting, seed, tuple(X.shape[1:])),
        optimizer=kind,
        **{f"optimizer__{name}": value for name, value in extra.items()},
        lr=config["lr"],
        lr_schedule="cosine",
        batch_size=setting["batch_size"],
        max_epochs=setting["epochs"],
        update_order=config["method"],
        last_layer__ridge=config["ridge"],
        last_layer__out_features=1,
        last_layer__in_features=int(2 * setting["width"]),
        random_state=seed,
        verbose=0,
        callbacks=[Recorder(look)],
    )
    net.fit(RowsDataset(as_rows(X, "cpu", torch.float32), y[..., None], weights))


def run_one(task: Task, config: dict, setting: dict, seed: int) -> dict:
    """Validation and test error of each epoch, the error on the finer grid, seconds."""
    curve: list[tuple[float, float]] = []
    seconds: list[float] = []
    fine: list[float] = []

    def look(took: float, net: nn.Module) -> None:
        seconds.append(took)
        net.eval()
        with torch.no_grad():
            errors = [task.relative_error(net, pair) for pair in (task.valid, task.test)]
            if task.fine is not None and len(seconds) == setting["epochs"]:
                fine.append(task.relative_error(net, task.fine))
        net.train()
        curve.append((errors[0], errors[1]))

    try:
        if config["method"] == "all layers":
            for took, net in all_layers(task, config, setting, seed):
                look(took, net)
        else:
            closed_form(task, config, setting, seed, look)
    except FloatingPointError:
        pass  # diverged: what is left counts as infinitely bad
    curve += [(np.inf, np.inf)] * (setting["epochs"] - len(curve))
    valid, test = np.nan_to_num(np.array(curve), nan=np.inf).T
    return {
        "valid": float(valid[-1]),
        "curve": [round(float(value), 6) for value in test],
        "fine": fine[0] if fine else None,
        "seconds": float(np.median(seconds)) if seconds else np.inf,
    }


def tuned(records: list[dict]) -> dict[tuple, dict]:
    """For each method the runs whose rate won on validation, averaged over seeds."""
    grouped: dict = defaultdict(lambda: defaultdict(list))
    for record in records:
        grouped[tuple(record.get(name) for name in IDENTITY)][record["seed"]].append(record)
    chosen = {}
    for key, seeds in grouped.items():
        best = [min(runs, key=lambda run: run["valid"]) for runs in seeds.values()]
        fine = [run["fine"] for run in best if run["fine"] is not None]
        chosen[key] = {
            "curve": np.mean([run["curve"] for run in best], axis=0),
            "fine": np.mean(fine) if fine else np.nan,
            "seconds": np.mean([run["seconds"] for run in best]),
            "rates": sorted({run["lr"] for run in best}),
        }
    return chosen


def print_table(title: str, records: list[dict]) -> None:
    chosen, epochs = tuned(records), len(records[0]["curve"])
    shown = [epoch for epoch in (1, 2, 5, 8, 10, 12, 20, 50, 100, 200) if epoch < epochs]
    shown.append(epochs)
    seeds = len({record["seed"] for record in records})
    print(f"\n{title}: test relative L2, mean of {seeds} seeds")
    header = "".join(f"{epoch:8d}" for epoch in shown)
    print(f"{'epoch':48s}{header}{'finer':>8s}{'s/epoch':>8s}{'as Adam':>8s}  rates")
    adam = chosen.get(("all layers", "adam", None, "squared"))
    for (method, optimizer, ridge, loss), cell in chosen.items():
        name = f"{method.replace('_', ' ')}, {optimizer}"
        name += f", ridge {ridge:g}" if ridge is not None else ""
        name += f", {loss}" if loss != "squared" else ""
        numbers = "".join(f"{cell['curve'][epoch - 1]:8.4f}" for epoch in shown)
        reached = "-"
        if adam is not None:  # epochs until Adam's error at its last epoch
            below = np.flatnonzero(cell["curve"] <= adam["curve"][-1])
            reached = str(below[0] + 1) if len(below) else "-"
        print(
            f"{name:48s}{numbers}{cell['fine']:8.4f}{cell['seconds']:8.2f}{reached:>8s}  "
            f"{cell['rates']}"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["burgers"], choices=RESOLUTION)
    parser.add_argument("--data", type=Path, help="folder with darcy.npz")
    parser.add_argument("--cache", type=Path, help="folder to keep simulated samples in")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--valid", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--resolution", type=int, help="points on an axis; default by task")
    parser.add_argument("--finer", action="store_true", help="also test on a finer grid")
    parser.add_argument("--viscosity", type=float, default=0.1, help="of Burgers' equation")
    parser.add_argument("--modes", type=int, help="Fourier modes on an axis; default by task")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[20])
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--ridges", type=float, nargs="+", default=[1e-4, 1e-2, 1.0])
    parser.add_argument("--relative", action="store_true", help="also weights 1/‖y‖²")
    parser.add_argument("--methods", nargs="+", help="only these, words joined by _")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small Burgers configuration")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument("--results", type=Path, default=RESULTS / "operators.jsonl")
    options = parser.parse_args()
    if options.quick:
        small = {"samples": 100, "valid": 40, "test": 100, "resolution": 64, "modes": 16}
        small |= {"width": 16, "layers": 2, "epochs": 10, "seeds": [0], "ridges": [1e-2]}
        vars(options).update(small, tasks=["burgers"], finer=True)
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    options.results.parent.mkdir(exist_ok=True)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    records = [json.loads(line) for line in lines]
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    for name in options.tasks:
        if name == "darcy_file" and not (options.data and (options.data / "darcy.npz").exists()):
            print("darcy_file: no darcy.npz in --data, left out", file=sys.stderr)
            continue
        for batch_size in options.batch_sizes:
            setting = {
                "task": name,
                "samples": min(options.samples, 900) if name == "darcy_file" else options.samples,
                "resolution": options.resolution or RESOLUTION[name],
                "modes": options.modes or MODES[name],
                "width": options.width,
                "layers": options.layers,
                "batch_size": batch_size,
                "epochs": options.epochs,
            }
            if name == "burgers":
                setting["viscosity"] = options.viscosity
            same = [r for r in records if all(r.get(key) == setting[key] for key in setting)]
            done = {tuple(r.get(key) for key in (*IDENTITY, "lr", "seed")) for r in same}
            for seed in [] if options.table else options.seeds:
                task = load_task(name, options, seed)
                for config in configurations(options):
                    if (*(config.get(key) for key in (*IDENTITY, "lr")), seed) in done:
                        continue
                    run = {**setting, "seed": seed, **config}
                    run |= run_one(task, config, setting, seed)
                    same.append(run)
                    with options.results.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                print(f"{name}, batch size {batch_size}, seed {seed} done", file=sys.stderr)
            if same:
                print_table(", ".join(f"{key} {value}" for key, value in setting.items()), same)


if __name__ == "__main__":
    main()
