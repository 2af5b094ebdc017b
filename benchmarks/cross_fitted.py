"""What cross-fitting gives, and what the closed form gives: the same members trained by Adam.

Eight networks beside each other, each holding out its own fold: (64, 64) on the columns and bins of
``CFLLRegressor`` for regression, (128, 128) on those of ``CFLLClassifier`` for classification; the
same folds, batches of the same size, at most as many epochs, a cosine schedule. Ours are the
estimators at their defaults. Adam trains all layers, by squared error or by cross-entropy; its rate
is chosen by the pooled out-of-fold loss, and so is the epoch. The prediction is the mean of the
members, of their probabilities for classes, with a temperature from out-of-fold rows. In regression
Adam is also given as many epochs as our fit takes time for ("same time", one rate's time counted).
"CFLL, no folds" are our members with a tenth of the rows held out for all of them.

    python benchmarks/cross_fitted.py --data DIR --seeds 3        # an hour on one core
    python benchmarks/cross_fitted.py --report
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from calibration import fitted_logits
from harness import Bench, Model, Record, geometric_mean, print_origin, print_table
from measures import of_classes, of_regression, stopwatch
from networks import Setting, keep_best, train
from scipy.special import softmax
from tasks import CLASSES, UCI, Where, load_classes, uci_split
from torch import Tensor, nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.mlp import MemberLinear
from sklearn_cfll.estimator.split import draw_folds

RATES = (1e-3, 3e-3, 1e-2)
MEMBERS = 8
KEY = ("part", "set", "seed", "run")
OTHERS = ("friedman1", "smooth", "diabetes")  # with UCI, those of honest.py that have one target
Loss = Callable[[Tensor, Tensor], Tensor]  # outputs (m, n, k) and targets (n, k), to (m, n)


class Members(nn.Module):
    """Networks side by side, from rows to outputs (m, n, k)."""

    def __init__(
        self, columns: nn.Module, sizes: tuple[int, ...], n_outputs: int, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.columns = columns
        recipe = MLPBackbone(sizes, n_members=MEMBERS)
        width = len(columns.column)
        self.backbone = recipe.build((width,), generator, columns.widths)
        self.last = MemberLinear(MEMBERS, sizes[-1], n_outputs, generator)

    def forward(self, rows: Tensor) -> Tensor:
        features = self.backbone(self.columns(rows).float())
        return self.last(features.unflatten(1, (MEMBERS, -1)).movedim(0, 1))


def all_outputs(net: nn.Module, X: np.ndarray) -> Tensor:
    """Outputs (m, n, k) in evaluation mode."""
    net.eval()
    with torch.no_grad():
        parts = [net(part) for part in torch.as_tensor(X).split(1024)]
    net.train()
    return torch.cat(parts, 1)


def by_adam(
    model: Any,
    X: np.ndarray,
    targets: Tensor,
    folds: Tensor,
    loss: Loss,
    sizes: tuple[int, ...],
    rates: tuple[float, ...] = RATES,
    epochs: int | None = None,
) -> tuple[nn.Module, float]:
    """The members at the rate with the least out-of-fold loss, which is returned too.

    ``model`` is one of ours, fitted: its columns, batches and seed are used, and its number of
    epochs if there is no other.
    """
    rows, n_outputs = torch.as_tensor(X), targets.shape[1]
    held = folds == torch.arange(MEMBERS)[:, None]
    marked = torch.cat([targets, folds[:, None].to(targets)], 1)

    def weighted(outputs: Tensor, wanted: Tensor) -> Tensor:
        seen = wanted[:, -1] != torch.arange(MEMBERS)[:, None]
        return (loss(outputs, wanted[:, :-1]) * seen).sum() / seen.sum()

    best, chosen = np.inf, nn.Module()
    settings = model.resolved_
    for rate in rates:
        net = Members(model.backbone_.columns, sizes, n_outputs, model.random_state)
        net.columns.requires_grad_(False)
        setting = Setting(
            "adam",
            rate,
            batch_size=settings["batch_size"],
            epochs=epochs or settings["max_epochs"],
            seed=model.random_state,
        )

        def out_of_fold(net: nn.Module = net) -> float:
            return float(loss(all_outputs(net, X), targets)[held].mean())

        loop = train(net, (rows, marked), setting, loss_of=weighted)
        found = keep_best(loop, net, out_of_fold, model.n_iter_no_change)[0]
        if found < best:
            best, chosen = found, net
    return chosen, best


def squares(outputs: Tensor, wanted: Tensor) -> Tensor:
    return (outputs - wanted).square().mean(-1)


class Regression:
    """A split on which ours is fitted; Adam's members for its columns and folds."""

    def __init__(self, rows: list[np.ndarray], seed: int) -> None:
        self.X, self.X_test, y, self.y_test = rows
        with stopwatch() as self.taken:
            self.model = CFLLRegressor(random_state=seed, linear_part=False, local_part=False).fit(
                self.X, y
            )
        self.coded, self.coded_test = map(self.model.encode, (self.X, self.X_test))
        self.mean, self.std = y.mean(), y.std()
        self.targets = torch.as_tensor((y - self.mean) / self.std).float()[:, None]
        self.folds = torch.as_tensor(draw_folds(MEMBERS, y[:, None], None, seed))

    def train(self, **options: Any) -> nn.Module:
        sizes = (64, 64)
        return by_adam(self.model, self.coded, self.targets, self.folds, squares, sizes, **options)[
            0
        ]

    def record(self, net: nn.Module, name: str, seconds: float) -> Record:
        standard = all_outputs(net, self.coded_test).mean(0)[:, 0].numpy()
        found = of_regression(self.y_test, self.mean + self.std * standard)
        return {"model": name, "seconds": seconds, **found}


def regression(rows: list[np.ndarray], place: Record) -> list[Record]:
    """Test errors of both on one split."""
    case = Regression(rows, place["seed"])
    with stopwatch() as theirs:
        net = case.train()
    found = of_regression(case.y_test, case.model.predict(case.X_test))
    ours = {"model": "CFLL", "seconds": case.taken["seconds"], **found}
    return [ours, case.record(net, "Adam", theirs["seconds"])]


def same_time(rows: list[np.ndarray], place: Record) -> Record:
    """Adam with as many epochs as our fit takes time for, at most three times ours."""
    case = Regression(rows, place["seed"])
    epochs = case.model.resolved_["max_epochs"]
    with stopwatch() as one_rate:
        case.train(rates=RATES[1:2])
    ratio = case.taken["seconds"] / one_rate["seconds"]
    bought = int(np.clip(round(ratio * epochs), 1, 3 * epochs))
    with stopwatch() as theirs:
        net = case.train(epochs=bought)
    return case.record(net, "Adam, same time", theirs["seconds"]) | {"epochs": bought}


def regression_without_folds(rows: list[np.ndarray], place: Record) -> Record:
    X, X_test, y, y_test = rows
    with stopwatch() as taken:
        model = CFLLRegressor(
            random_state=place["seed"], linear_part=False, local_part=False, cross_fit=False
        )
        model.fit(X, y)
    found = of_regression(y_test, model.predict(X_test))
    return {"model": "CFLL, no folds", "seconds": taken["seconds"], **found}


def classification_without_folds(task: Any, place: Record) -> Record:
    with stopwatch() as taken:
        model = CFLLClassifier(random_state=place["seed"], cross_fit=False).fit(*task.known)
    found = of_classes(model.predict_proba(task.test[0]), task.test[1])
    return {"model": "CFLL, no folds", "seconds": taken["seconds"], **found}


def classification(task: Any, place: Record) -> list[Record]:
    """Accuracy, log loss and calibration of both on one split."""
    X, labels = task.known
    with stopwatch() as ours:
        model = CFLLClassifier(random_state=place["seed"], local_part=False).fit(X, labels)
    folds = torch.as_tensor(draw_folds(MEMBERS, labels[:, None], None, place["seed"]))
    indicators = F.one_hot(torch.as_tensor(labels)).float()

    def entropy(outputs: Tensor, wanted: Tensor) -> Tensor:
        return -(wanted * outputs.log_softmax(-1)).sum(-1)

    with stopwatch() as theirs:
        coded, coded_test = model.encode(X), model.encode(task.test[0])
        net, _ = by_adam(model, coded, indicators, folds, entropy, (128, 128))
        seen = all_outputs(net, coded).numpy()
        own = seen[folds.numpy(), np.arange(len(X))]
        calibrate = fitted_logits("temperature", own.astype(float) / 4, labels)
        test = all_outputs(net, coded_test).double().numpy()
    plain = softmax(test, axis=2).mean(0)
    calibrated = np.mean([calibrate(each / 4) for each in test], axis=0)
    found = {
        "CFLL": (model.predict_proba(task.test[0]), ours),
        "cross-entropy": (plain, theirs),
        "cross-entropy, temperature": (calibrated, theirs),
    }
    return [
        {"model": name, "seconds": taken["seconds"], **of_classes(p, task.test[1])}
        for name, (p, taken) in found.items()
    ]


PARTS: dict[str, dict[str, Model]] = {
    "regression": {
        "both": regression,
        "no folds": regression_without_folds,
        "same time": same_time,
    },
    "classification": {"both": classification, "no folds": classification_without_folds},
}


def load(name: str, seed: int, where: Where) -> Any:
    """A split of a regression set, or a task of classification."""
    return load_classes(name, seed, where) if name in CLASSES else uci_split(name, seed, where)


def report(records: list[Record]) -> None:
    print_origin(records)
    if not records:
        return
    frame = pd.DataFrame(records)
    if "rmse" in frame:
        frame["mse"] = frame["rmse"] ** 2
    for part, measures in (
        ("regression", ["rmse", "mse"]),
        ("classification", ["accuracy", "log_loss", "ece"]),
    ):
        chosen = frame[frame["part"] == part]
        if chosen.empty:
            continue
        print(f"\n{part}, mean of {chosen['seed'].nunique()} splits")
        for measure in (*measures, "seconds"):
            table = chosen.pivot_table(index="set", columns="model", values=measure, sort=False)
            if measure != "mse":
                print_table(measure, table, ".4f")
            if measure == "seconds":  # what was fitted in one call, and so under one load
                both = [name for name in table if name in ("CFLL", "Adam", "cross-entropy")]
                compare(table[both], "seconds (three rates of the other's)")
            elif measure == "accuracy":
                ahead = (table.rsub(table["CFLL"], axis=0) > 0).sum()
                print("sets where ours is higher: " + listed(ahead, "d") + f" of {len(table)}")
            elif measure != "rmse":
                compare(table, measure)


def listed(values: pd.Series, form: str) -> str:
    return "; ".join(f"{name} {value:{form}}" for name, value in values.items() if name != "CFLL")


def compare(table: pd.DataFrame, measure: str) -> None:
    """Ours over the others, geometric mean over sets, and on how many it is below."""
    ratios = table.rdiv(table["CFLL"], axis=0)
    print(f"ours over others, {measure}: " + listed(geometric_mean(ratios), ".3f"))
    if set(OTHERS) <= set(table.index):
        print("  on UCI sets alone: " + listed(geometric_mean(ratios.drop([*OTHERS])), ".3f"))
    print("sets where ours is lower: " + listed((ratios < 1).sum(), "d") + f" of {len(table)}")


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"], "parts": ["regression"]}
    parts = {"nargs": "+", "choices": list(PARTS), "default": list(PARTS)}
    bench = Bench(__doc__, "cross_fitted", arguments, seeds=3, smallest=small, parts=parts)
    CFLLRegressor(max_epochs=1).fit([[0.0], [1.0], [2.0]], [0, 1, 2])  # imports
    sets = {"regression": [*UCI, *OTHERS], "classification": [*CLASSES]}
    for part in bench.options.parts:
        tasks = bench.grid(sets[part], load, ("set", "seed"), part=part)
        bench.run(tasks, PARTS[part], KEY)
    report(bench.records)


if __name__ == "__main__":
    main()
