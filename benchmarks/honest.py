"""The honest comparison: our defaults against the same network trained by Adam on all layers.

Same network (bins, widths), batches, schedule and number of epochs, same held-out rows, best
epoch kept by all. Adam's rate is the best of five on the held-out rows, task by task and split
by split. Beside it Adam with the same final refit of the last layer (exact, on all rows, its
ridge chosen on the held-out ones), and Adam that is given as many epochs as our fit takes time
for, at the same five rates.

    python benchmarks/honest.py --data DIR           # about 40 minutes on one core
    python benchmarks/honest.py --report             # print the stored records again

Runs are stored as they end (``results/honest.jsonl``): an interrupted benchmark goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import BUNDLED, SHARED, Task, load_task
from torch import nn

from sklearn_cfll import CFLLRegressor, linalg
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.bins import bin_edges
from sklearn_cfll.backbones.mlp import Standardize
from sklearn_cfll.training.refit import RIDGES
from sklearn_cfll.training.schedules import cosine

RESULTS = Path(__file__).parent / "results"
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
Predict = Callable[[np.ndarray], np.ndarray]


def same_network(task: Task, defaults: CFLLRegressor, seed: int) -> nn.Sequential:
    """The estimator's own backbone and a linear layer, untrained, inputs standardised."""
    X, y = (torch.from_numpy(part) for part in task.train)
    edges = bin_edges(X, None, defaults.n_bins) if defaults.n_bins > 1 else None
    torch.manual_seed(seed)
    backbone = MLPBackbone(defaults.hidden_layer_sizes, defaults.activation, 0.0, edges)
    module = backbone.build(X.shape[1:]).float()
    for part in module.modules():
        if isinstance(part, Standardize):
            part.adapt_to(X.double().mean(0), X.double().std(0, correction=0))
    return nn.Sequential(module, nn.Linear(defaults.hidden_layer_sizes[-1], y.shape[1]))


def train_adam(
    task: Task, defaults: CFLLRegressor, rate: float, epochs: int, seed: int
) -> tuple[nn.Sequential, float, float]:
    """Adam on all layers; the network of the best epoch, its held-out error, seconds an epoch."""
    net = same_network(task, defaults, seed)
    X, y = (torch.from_numpy(part) for part in task.train)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    n_batches = -(-len(X) // defaults.batch_size)
    best, kept, since, step, spent = np.inf, copy.deepcopy(net), 0, 0, []
    for _ in range(epochs):
        start = time.perf_counter()
        net.train()
        for rows in torch.tensor_split(torch.randperm(len(X), generator=generator), n_batches):
            optimizer.param_groups[0]["lr"] = rate * cosine(step / (epochs * n_batches))
            loss = F.mse_loss(net(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        error = mean_squared_error(predictor(net), task.valid)
        spent.append(time.perf_counter() - start)
        if error < best:
            best, kept, since = error, copy.deepcopy(net), 0
        else:
            since += 1
        if since >= defaults.n_iter_no_change or not np.isfinite(error):
            break
    return kept, best, float(np.median(spent))


def refitted(net: nn.Sequential, task: Task) -> Predict:
    """The last layer solved exactly on all rows, its ridge chosen on the held-out ones."""
    features = predictor(net[0])
    blocks = [
        (torch.from_numpy(features(X)).double(), torch.from_numpy(y).double())
        for X, y in (task.train, task.valid)
    ]
    moments = [linalg.moments(*block) for block in blocks]
    weights, biases = linalg.ridge_path(moments[0], torch.tensor(RIDGES))
    phi, y = blocks[1]
    errors = (phi @ weights.mT + biases[:, None] - y).square().mean((1, 2))
    chosen = torch.tensor([RIDGES[int(errors.argmin())]])
    weights, biases = linalg.ridge_path(linalg.merge_moments(*moments), chosen)
    return lambda X: features(X).astype(float) @ weights[0].numpy().T + biases[0].numpy()


def predictor(module: nn.Module) -> Predict:
    """Array in, array out, in evaluation mode."""

    def predict(X: np.ndarray) -> np.ndarray:
        module.eval()
        with torch.no_grad():
            return module(torch.from_numpy(X)).numpy()

    return predict


def mean_squared_error(predict: Predict, rows: tuple[np.ndarray, np.ndarray]) -> float:
    X, y = rows
    return float(np.square(predict(X).reshape(y.shape) - y).mean())


def compare(task: Task, seed: int) -> dict[str, float]:
    """Test errors, seconds and Adam's rates of one task and split."""
    defaults = CFLLRegressor(random_state=seed)
    start = time.perf_counter()
    ours = defaults.fit(*task.train, X_val=task.valid[0], y_val=task.valid[1])
    seconds = time.perf_counter() - start
    record = {"closed form": mean_squared_error(ours.predict, task.test), "seconds": seconds}
    runs = [(*train_adam(task, ours, r, ours.max_epochs, seed), r) for r in RATES]
    net, _, per_epoch, record["rate"] = min(runs, key=lambda run: run[1])
    record["Adam"] = mean_squared_error(predictor(net), task.test)
    record["Adam + refit"] = mean_squared_error(refitted(net, task), task.test)
    # As many epochs as our time buys, at most three times ours (patience ends most before).
    record["epochs"] = int(np.clip(seconds / per_epoch, 1, 3 * ours.max_epochs))
    runs = [(*train_adam(task, ours, r, record["epochs"], seed), r) for r in RATES]
    net = min(runs, key=lambda run: run[1])[0]
    record["Adam, same time"] = mean_squared_error(predictor(net), task.test)
    return record


def report(records: list[dict]) -> None:
    """Mean test errors of each task and the ratios to Adam's three forms."""
    others = ("Adam", "Adam + refit", "Adam, same time")
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
    options.results.parent.mkdir(exist_ok=True)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    records = [json.loads(line) for line in lines]
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
            with options.results.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(f"split {split}, {name} done", file=sys.stderr)
    report(records)


if __name__ == "__main__":
    main()
