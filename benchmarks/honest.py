"""The honest comparison: our defaults against the same network trained by Adam on all layers.

Same network (bins, widths), batches, schedule and number of epochs, same held-out rows, best
epoch kept by all. Adam's rate is the best of five on the held-out rows, task by task and split
by split. Beside it Adam with the same final refit of the last layer (exact, on all rows, its
ridge chosen on the held-out ones), Adam that is given as many epochs as our fit takes time for,
at the same five rates, and AdamW with the weight decay that our rule gives for each rate.

    python benchmarks/honest.py --data DIR           # about an hour on one core
    python benchmarks/honest.py --report             # print the stored records again
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, cells, geometric_mean, print_origin
from measures import mean_squared_error, stopwatch
from models import COLUMNS
from networks import Setting, in_features, keep_best, path_errors, predictor, train
from tasks import BUNDLED, UCI, Task, load_task
from torch import Tensor, nn

from sklearn_cfll import CFLLRegressor, EnsembleLastLayer
from sklearn_cfll.backbones.mlp import MemberLinear
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.linalg import RIDGES

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
OTHERS = ("Adam", "Adam + refit", "Adam, same time", "AdamW")


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
        self.last = MemberLinear(
            ours.resolved_["n_members"], ours.hidden_layer_sizes[-1], n_targets
        )

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.backbone(inputs)
        blocks = torch.stack(features.chunk(len(self.last.weight), -1))
        predictions = self.last(blocks)
        return predictions if self.training else predictions.mean(0)


def member_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Sum of the members' mean squared errors: each one's gradient is what it would be alone."""
    return (predictions - targets).square().mean((1, 2)).sum()


def best_adam(
    task: Task, ours: CFLLRegressor, epochs: int, seed: int, decays: bool = False
) -> tuple[Members, float, float]:
    """Adam on all layers at the rate of least held-out error; network, seconds an epoch, rate."""
    X, y = (torch.from_numpy(part) for part in task.train)
    batch_size = DEFAULTS.batch_size("auto", len(X), perceptron=True)
    runs = []
    for rate in RATES:
        net = Members(ours, y.shape[1], seed)
        setting = Setting("adam", rate, 0, batch_size, epochs, seed)
        options: dict[str, Any] = {}
        if decays:
            n_steps = epochs * math.ceil(len(X) / batch_size)
            options = {"weight_decay": DEFAULTS.weight_decay(rate, "cosine", n_steps)}
            setting = setting._replace(optimizer="adamw")
        loop = train(net, (X, y), setting, loss_of=member_error, **options)
        held_out = lambda net=net: mean_squared_error(predictor(net), task.valid)  # noqa: E731
        error, seconds = keep_best(loop, net, held_out, ours.n_iter_no_change)
        runs.append((error, net, seconds, rate))
    return min(runs, key=lambda run: run[0])[1:]


def refit_error(net: Members, task: Task) -> float:
    """Test error of the last layers solved on all rows, their ridge chosen on held-out ones."""
    parts = in_features(predictor(net.backbone), task)
    n_members, _, n_targets = net.last.weight.shape
    head = EnsembleLastLayer(
        parts[0][0].shape[1], n_targets, n_members=n_members, dtype=torch.float64
    ).refit(parts[:1])
    errors = path_errors(*head.ridge_path(torch.tensor(RIDGES)), parts[1])
    head.accumulate(*parts[1]).solve(RIDGES[int(errors.argmin())])
    return float((head(parts[2][0]) - parts[2][1]).square().mean())


def compare(task: Task, place: Record) -> Record:
    """Test errors, seconds and Adam's rates of one task and split."""
    seed, epochs = place["split"], DEFAULTS.epochs
    # What comes before the network is left out, so that it is the same one.
    ours = CFLLRegressor(
        random_state=seed, linear_part=False, local_part=False, **COLUMNS["unscaled"]
    )
    with stopwatch() as taken:
        ours.fit(*task.train, X_val=task.valid[0], y_val=task.valid[1])
    found = {"closed form": mean_squared_error(ours.predict, task.test)}
    net, per_epoch, found["rate"] = best_adam(task, ours, epochs, seed)
    found["seconds"] = taken["seconds"]
    found["Adam"] = mean_squared_error(predictor(net), task.test)
    found["Adam + refit"] = refit_error(net, task)
    net, *_ = best_adam(task, ours, epochs, seed, decays=True)
    found["AdamW"] = mean_squared_error(predictor(net), task.test)
    # As many epochs as our time buys, at most three times ours (patience ends most before).
    found["epochs"] = int(np.clip(taken["seconds"] / per_epoch, 1, 3 * epochs))
    net, *_ = best_adam(task, ours, found["epochs"], seed)
    found["Adam, same time"] = mean_squared_error(predictor(net), task.test)
    return found


def report(records: list[Record]) -> None:
    """Mean test errors of each task and the ratios to Adam's four forms."""
    print_origin(records)
    print("Test MSE (standardised targets)")
    print(f"{'':18s}{'splits':>7s}{'closed form':>13s}" + cells(OTHERS, ">17s"))
    ratios = []
    for task in dict.fromkeys(record["task"] for record in records):
        rows = [record for record in records if record["task"] == task]
        means = {name: np.mean([row[name] for row in rows]) for name in ("closed form", *OTHERS)}
        ratios.append([means["closed form"] / means[name] for name in OTHERS])
        line = "".join(
            f"{means[o]:10.4f} ({r:.2f})" for o, r in zip(OTHERS, ratios[-1], strict=True)
        )
        print(f"{task:18s}{len(rows):7d}{means['closed form']:13.4f}{line}")
    print(f"{'geometric mean':38s}" + cells(geometric_mean(ratios), "17.3f"))
    print(f"{'worst task':38s}" + cells(np.max(ratios, axis=0), "17.3f"))


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "honest", arguments, seeds=6, smallest={"tasks": ["diabetes"]})
    tasks = bench.grid((*BUNDLED, *UCI), load_task, ("task", "split"))
    bench.run(tasks, {None: compare}, ("task", "split", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
