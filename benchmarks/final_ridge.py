"""The ridge of the final solve where no rows are held out to choose it.

Tables: networks are trained on all rows (early_stopping=False). Then the last layer is left as it
is, or refitted to all rows with the ridge that each rule chooses. Test errors relative to no refit,
geometric means over the seeds.

- fixed: 0.1 below 200 rows, else 0.001.
- GCV: generalised cross-validation. x1.4, x2, x3: each parameter counts so often.
- few: x2, below ten rows per feature at most 0.32.
- rule: few, and below ten rows per feature no larger than leaves one and a half times the residuals
  of training (linalg.final_ridge), what the estimators do.
- best: the ridge with the least test error.

``results/final_ridge.txt`` also has refits that are pulled towards the trained weights.
Fields: a Fourier neural operator on Burgers' equation, 800 samples; held-out rows choose epoch and
final ridge, or none are held out. (``operators.py`` compares it with Adam on all layers.)

    python benchmarks/final_ridge.py --data DIR            # about 20 minutes on an idle core
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Bench, Place, Record, geometric_mean, means, print_origin, print_table
from measures import relative_l2, stopwatch
from models import PLAIN
from pandas import DataFrame
from sklearn.datasets import load_breast_cancer, make_friedman1
from tasks import Where, rows_of
from torch import Tensor

from sklearn_cfll import CFLLRegressor, linalg
from sklearn_cfll.backbones import FNOBackbone
from sklearn_cfll.datasets import make_burgers

RIDGES = torch.tensor(linalg.RIDGES, dtype=torch.float64)
SETS = ("diabetes", "friedman1, noise 0.5", "friedman1, noise 1", "digits", "breast cancer")
SETS += ("concrete", "energy")
SIZES = {20: 6, 40: 6, 60: 6, 120: 6, 300: 4, 1000: 3, 5000: 2}  # rows and seeds
TEST_ROWS = 1000
NETWORKS = {"four networks of 64-64, the defaults": {}, "one network of 256-256": PLAIN}
RULES = ("fixed", "GCV", "x1.4", "x2", "x3", "few", "rule", "best")
Rows = list[np.ndarray]


def load(name: str, n_rows: int, seed: int, where: Where) -> Rows | None:
    """Training and test rows of a set, or None where it has too few."""
    if name.startswith("friedman1"):
        noise = float(name.split()[-1])
        X, y = make_friedman1(n_rows + TEST_ROWS, 10, noise=noise, random_state=seed)
    elif name == "breast cancer":
        X, y = load_breast_cancer(return_X_y=True)
    else:
        X, y = rows_of(name, where, np.random.RandomState(0))
    y = y.reshape(len(y), -1).astype(float)
    if len(X) < n_rows + 100:
        return None
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:n_rows], order[n_rows:][:TEST_ROWS]
    return [X[train], y[train], X[test], y[test]]


def errors(rows: Rows | None, place: Record) -> Record | None:
    """Test errors of no refit and of RULES, in units of the targets' variances."""
    if rows is None:
        return None
    X, y, X_test, y_test = rows
    mean, std = y.mean(0), np.where(y.std(0) > 0, y.std(0), 1.0)
    targets, wanted = (torch.as_tensor((part - mean) / std) for part in (y, y_test))
    settings = NETWORKS[place["model"]] | {"early_stopping": False, "random_state": place["seed"]}

    def fit(**refit: bool) -> CFLLRegressor:
        return CFLLRegressor(**settings, **refit).fit(X, y if y.shape[1] > 1 else y[:, 0])

    def own_error(model: CFLLRegressor) -> float:
        found = (model.predict(X_test).reshape(y_test.shape) - mean) / std
        return float(np.square(found - wanted.numpy()).mean())

    trained, refitted = fit(refit_last_layer=False), fit()
    n, n_members = len(X), trained.resolved_["n_members"]
    features, test = (
        torch.as_tensor(trained.features(part)).double().chunk(n_members, 1) for part in (X, X_test)
    )
    blocks = [linalg.moments(part, targets) for part in features]

    def error(ridge: float) -> float:
        fits = [linalg.solve_moments(block, ridge) for block in blocks]
        outputs = [part @ w.T + b for part, (w, b) in zip(test, fits, strict=True)]
        return float((torch.stack(outputs).mean(0) - wanted).square().mean())

    def least(optimism: float) -> Tensor:
        found = [linalg.cross_validation_errors(b, RIDGES, optimism=optimism)[0] for b in blocks]
        return RIDGES[int(torch.stack(found).sum(0).argmin())]

    path = [error(float(ridge)) for ridge in RIDGES]
    at = {float(ridge): value for ridge, value in zip(RIDGES, path, strict=True)}
    fixed = min(at, key=lambda ridge: abs(np.log(ridge / (0.1 if n < 200 else 0.001))))
    gcv = [at[float(least(optimism))] for optimism in (1.0, 1.4, 2.0, 3.0)]
    few = at[linalg.final_ridge(blocks, n)]
    values = [at[fixed], *gcv, few, own_error(refitted), min(path)]
    return {"no refit": own_error(trained)} | dict(zip(RULES, values, strict=True))


def tables(bench: Bench) -> Iterator[Place]:
    for n_rows, n_seeds in SIZES.items():
        for seed in range(min(n_seeds, bench.options.seeds)):
            for name in bench.options.tasks or SETS:
                place = {"task": name, "rows": n_rows, "seed": seed}
                yield place, partial(load, name, n_rows, seed, bench.where)


def report_tables(records: list[Record]) -> None:
    for network in dict.fromkeys(record["model"] for record in records):
        found = DataFrame([record for record in records if record["model"] == network])
        ratios = found[list(RULES)].div(found["no refit"], axis=0)
        by_set = ratios.groupby([found["rows"], found["task"]], sort=False).agg(geometric_mean)
        print_table(f"Test error relative to no refit: {network}", by_set, ".3f")
        by_rows = by_set.groupby(level="rows")
        print_table("Geometric means by rows", by_rows.agg(geometric_mean), ".3f")
        print_table("Worst sets by rows", by_rows.max(), ".3f")


# -- fields -----------------------------------------------------------------------------------

RECIPE = FNOBackbone(n_modes=16, hidden_channels=16, n_layers=3)
Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def burgers(samples: int) -> Data:
    X, y = make_burgers(samples + samples // 4, 64, random_state=0)
    return X[:samples], y[:samples], X[samples:], y[samples:]


def on_field(data: Data, place: Record) -> Record:
    X, y, X_test, y_test = data
    n_epochs = place["epochs"]
    model = CFLLRegressor(
        RECIPE,
        max_epochs=n_epochs,
        batch_size=20,
        random_state=0,
        learning_rate=0.005,
        n_iter_no_change=n_epochs,
        precision="float32",
        **FIELDS[place["model"]],
    )
    with stopwatch() as taken:
        model.fit(X, y)
    error = relative_l2(model.predict(X_test), y_test)
    return {"relative L2": error, "seconds": taken["seconds"]}


FIELDS: dict[str, dict[str, Any]] = {
    "held-out rows choose both": {"early_stopping": True, "validation_fraction": 0.1},
    "no rows held out, no refit": {"early_stopping": False, "refit_last_layer": False},
    "no rows held out, the rule": {"early_stopping": False},
}


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"], "models": [*NETWORKS][:1] + [*FIELDS][2:]}
    bench = Bench(__doc__, "final_ridge", arguments, seeds=6, smallest=small)
    places = list(tables(bench))[: 1 if bench.small else None]
    key = ("task", "rows", "seed", "model")
    bench.run(places, dict.fromkeys(NETWORKS, errors), key)
    samples, epochs = (40, 2) if bench.small else (800, 10)
    place = {"task": "burgers", "rows": samples, "seed": 0, "epochs": epochs}
    bench.run([(place, partial(burgers, samples))], dict.fromkeys(FIELDS, on_field), key)
    print_origin(bench.records)
    report_tables([record for record in bench.records if "rule" in record])
    fields = [record for record in bench.records if record["task"] == "burgers"]
    print_table("Burgers' equation: relative L2", means(fields, "relative L2").T)
    print_table("Seconds", means(fields, "seconds").T, ".0f")


if __name__ == "__main__":
    main()
