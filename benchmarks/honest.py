"""The honest comparison: our defaults against the same network trained by Adam on all layers.

Same network (bins, widths), batches, schedule and number of epochs, same held-out rows, best
epoch kept by all. Adam's rate is the best of five on the held-out rows, task by task and split
by split. Beside it Adam with the same final refit of the last layer (exact, on all rows, its
ridge chosen on the held-out ones), Adam that is given as many epochs as our fit takes time for,
at the same five rates, and AdamW with the weight decay that our rule gives for each rate.

    python benchmarks/honest.py --data DIR           # about an hour on one core
    python benchmarks/honest.py --report             # print the stored records again

Runs are stored as they end (``results/honest.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import copy
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    BUNDLED,
    SHARED,
    Task,
    keep_best,
    load_task,
    mean_squared_error,
    path_errors,
    predictor,
    train,
)
from records import add_records, read_records
from torch import nn

from sklearn_cfll import CFLLRegressor, EnsembleLastLayer
from sklearn_cfll.backbones.mlp import MemberLinear
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.linalg import RIDGES

RESULTS = Path(__file__).parent / "results"
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


class Members(nn.Module):
    """A fitted estimator's networks, untrained, each with a linear last layer of its own.

    Called it predicts by their mean; while training it gives each member's prediction
    (m, n, k), which is what they are trained on, as ours are.
    """

    def __init__(self, ours: CFLLRegressor, n_targets: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = copy.deepcopy(ours.backbone_).float()
        for part in self.backbone.modules():
            if isinstance(part, nn.Linear | MemberLinear):
                part.reset_parameters()
        layer = ours.net_.module_.last_layer
        self.last = MemberLinear(layer.n_members, layer.in_features // layer.n_members, n_targets)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.backbone(inputs)
        blocks = torch.stack(features.chunk(len(self.last.weight), -1))
        predictions = self.last(blocks)
        return predictions if self.training else predictions.mean(0)


def member_error(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum of the members' mean squared errors: each one's gradient is what it would be alone."""
    return (predictions - targets).square().mean((1, 2)).sum()


def train_adam(
    task: Task, ours: CFLLRegressor, rate: float, epochs: int, seed: int, decays: bool = False
) -> tuple[Members, float, float]:
    """Adam on all layers; the network of the best epoch, its held-out error, seconds an epoch."""
    rows = tuple(torch.from_numpy(part) for part in task.train)
    net = Members(ours, rows[1].shape[1], seed)
    options: dict[str, Any] = {"loss_of": member_error}
    if decays:
        n_steps = epochs * math.ceil(len(rows[0]) / ours.net_.batch_size)
        options["weight_decay"] = DEFAULTS.weight_decay(rate, "cosine", n_steps)
    kind = "adamw" if decays else "adam"
    loop = train(net, rows, kind, rate, ours.net_.batch_size, epochs, seed, **options)
    held_out = lambda: mean_squared_error(predictor(net), task.valid)  # noqa: E731
    return net, *keep_best(loop, net, held_out, ours.n_iter_no_change)


def refit_error(net: Members, task: Task) -> float:
    """Test error of the last layers solved on all rows, their ridge chosen on held-out ones."""
    features = predictor(net.backbone)
    parts = [
        (torch.from_numpy(features(X)).double(), torch.from_numpy(y).double())
        for X, y in (task.train, task.valid, task.test)
    ]
    n_members, _, n_targets = net.last.weight.shape
    head = EnsembleLastLayer(
        parts[0][0].shape[1], n_targets, n_members=n_members, dtype=torch.float64
    ).refit(parts[:1])
    errors = path_errors(*head.ridge_path(torch.tensor(RIDGES)), parts[1])
    head.accumulate(*parts[1]).solve(RIDGES[int(errors.argmin())])
    return float((head(parts[2][0]) - parts[2][1]).square().mean())


def compare(task: Task, seed: int) -> dict[str, float]:
    """Test errors, seconds and Adam's rates of one task and split."""
    start = time.perf_counter()
    # What comes before the network is left out, so that it is the same one.
    ours = CFLLRegressor(random_state=seed, linear_part=False, scale_columns=False)
    ours.fit(*task.train, X_val=task.valid[0], y_val=task.valid[1])
    seconds = time.perf_counter() - start
    record = {"closed form": mean_squared_error(ours.predict, task.test), "seconds": seconds}
    runs = [(*train_adam(task, ours, r, ours.net_.max_epochs, seed), r) for r in RATES]
    net, _, per_epoch, record["rate"] = min(runs, key=lambda run: run[1])
    record["Adam"] = mean_squared_error(predictor(net), task.test)
    record["Adam + refit"] = refit_error(net, task)
    runs = [(*train_adam(task, ours, r, ours.net_.max_epochs, seed, decays=True), r) for r in RATES]
    net = min(runs, key=lambda run: run[1])[0]
    record["AdamW"] = mean_squared_error(predictor(net), task.test)
    # As many epochs as our time buys, at most three times ours (patience ends most before).
    record["epochs"] = int(np.clip(seconds / per_epoch, 1, 3 * ours.net_.max_epochs))
    runs = [(*train_adam(task, ours, r, record["epochs"], seed), r) for r in RATES]
    net = min(runs, key=lambda run: run[1])[0]
    record["Adam, same time"] = mean_squared_error(predictor(net), task.test)
    return record


def report(records: list[dict]) -> None:
    """Mean test errors of each task and the ratios to Adam's four forms."""
    others = ("Adam", "Adam + refit", "Adam, same time", "AdamW")
    tasks = list(dict.fromkeys(record["task"] for record in records))
    print(f"Test MSE (standardised targets); {platform.machine()}, torch {torch.__version__}")
    print(f"{'':18s}{'splits':>7s}{'closed form':>13s}" + "".join(f"{o:>17s}" for o in others))
    ratios = []
    for task in tasks:
        rows = [record for record in records if record["task"] == task]
        means = {name: np.mean([row[name] for row in rows]) for name in ("closed form", *others)}
        ratios.append([means["closed form"] / means[name] for name in others])
        cells = "".join(
            f"{means[o]:10.4f} ({r:.2f})" for o, r in zip(others, ratios[-1], strict=True)
        )
        print(f"{task:18s}{len(rows):7d}{means['closed form']:13.4f}{cells}")
    gm, worst = np.exp(np.log(ratios).mean(0)), np.max(ratios, axis=0)
    print(f"{'geometric mean':38s}" + "".join(f"{v:17.3f}" for v in gm))
    print(f"{'worst task':38s}" + "".join(f"{v:17.3f}" for v in worst))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--tasks", nargs="+", default=[*BUNDLED, *SHARED])
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--results", type=Path, default=RESULTS / "honest.jsonl")
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = read_records(options.results)
    done = {(record["task"], record["split"]) for record in records}
    for split in range(0 if options.report else options.splits):
        for name in options.tasks:
            if (name, split) in done:
                continue
            try:
                task = load_task(name, split, options.data)
            except FileNotFoundError:
                print(f"{name}: no {name}.npz in --data, left out", file=sys.stderr)
                continue
            record = {"task": name, "split": split, **compare(task, split)}
            records.append(record)
            add_records(options.results, [record])
            print(f"split {split}, {name} done", file=sys.stderr)
    report(records)


if __name__ == "__main__":
    main()
