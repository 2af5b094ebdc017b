"""Coverage of `predict_interval` and honesty of the predictive standard deviation.

Default settings. For each data set, averaged over splits: coverage of the 90% intervals; their
coverage on the third of the test rows that is predicted the least, and the most noisy; the mean
squared standardised residual; the mean log density of a normal with the predicted deviation,
and with one noise level for all rows ("constant"), in y's units.

Beside them the width of MAPIE's CV+ intervals around the same model, which is fitted once more on
each of eight folds, on the smaller UCI sets, three splits.

    python benchmarks/intervals.py                 # bundled and simulated data, two minutes
    python benchmarks/intervals.py --data DIR      # with the UCI sets and their splits
"""

from __future__ import annotations

import numpy as np
from harness import Bench, Record, geometric_mean, print_origin, print_table
from measures import of_regression, stopwatch
from pandas import DataFrame
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.model_selection import KFold, ShuffleSplit
from tasks import UCI, Where

from sklearn_cfll import CFLLRegressor

SPLITS = 5
PEER = "MAPIE CV+"
PEER_SETS = ("yacht", "energy", "concrete", "wine-quality-red")  # eight more fits each
PEER_SPLITS = 3
COVERAGE = 0.9
SIMULATED = ("even noise", "uneven noise", "heavy tails", "friedman1", "diabetes")


def simulated(n: int = 2000) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    signal = np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]
    return {
        "even noise": (X, signal + 0.3 * rng.normal(size=n)),
        "uneven noise": (X, signal + (0.1 + 0.5 * np.abs(X[:, 0])) * rng.normal(size=n)),
        "heavy tails": (X, signal + 0.2 * rng.standard_t(2.5, size=n)),
        "friedman1": make_friedman1(n, noise=0.5, random_state=0),
        "diabetes": load_diabetes(return_X_y=True),
    }


def load(name: str, split: int, where: Where) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y and the rows of the test set."""
    if name in UCI:
        stored = where.stored(name)
        return stored["X"], stored["y"], stored["test"][split]
    X, y = simulated()[name]
    parts = ShuffleSplit(SPLITS, test_size=0.3, random_state=0).split(X)
    return X, y, [test for _, test in parts][split]


def of_interval(interval: tuple[np.ndarray, np.ndarray], y: np.ndarray) -> Record:
    """Coverage, mean width and the interval score (Gneiting & Raftery 2007, equation 43).

    The last is the width and a penalty for each row outside; less is better.
    """
    lower, upper = interval
    outside = np.maximum(lower - y, 0.0) + np.maximum(y - upper, 0.0)
    return {
        "coverage": float(np.mean((lower <= y) & (y <= upper))),
        "width": float(np.mean(upper - lower)),
        "interval score": float(np.mean(upper - lower + 2.0 / (1.0 - COVERAGE) * outside)),
    }


def cross_validation_plus(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], place: Record
) -> Record | None:
    """Intervals of MAPIE around ``CFLLRegressor()`` fitted on each of eight folds."""
    if place["task"] not in PEER_SETS or place["seed"] >= PEER_SPLITS:
        return None
    from mapie.regression import CrossConformalRegressor  # `pip install mapie`

    X, y, test = rows
    train = np.setdiff1d(np.arange(len(y)), test)
    with stopwatch() as taken:
        model = CrossConformalRegressor(
            CFLLRegressor(random_state=place["seed"]),
            confidence_level=COVERAGE,
            method="plus",
            cv=KFold(8, shuffle=True, random_state=place["seed"]),
        ).fit_conformalize(X[train], y[train])
    _, found = model.predict_interval(X[test])
    return of_interval((found[:, 0, 0], found[:, 1, 0]), y[test]) | {"seconds": taken["seconds"]}


def report_peer(records: list[Record]) -> None:
    """Coverage and width of both on the splits that MAPIE was run on."""
    frame = DataFrame(records)
    values = frame.pivot_table(
        ["coverage", "width", "interval score", "seconds"], ["task", "seed"], "model", sort=False
    ).dropna()
    if PEER not in frame["model"].values or values.empty:
        return
    means = values.groupby(level="task", sort=False).mean()
    print(f"\nBeside MAPIE's CV+ of eight folds around CFLLRegressor(), {PEER_SPLITS} splits")
    print(
        f"{'':18s}{'coverage':>18s}{'mean width, ratio':>30s}{'score, ratio':>16s}{'seconds':>18s}"
    )
    ratios = {
        name: means[name]["CFLLRegressor"] / means[name][PEER]
        for name in ("width", "interval score")
    }
    for task, row in means.iterrows():
        ours, peer = (row.xs(model, level="model") for model in ("CFLLRegressor", PEER))
        print(
            f"{task:18s}{ours['coverage']:9.3f}{peer['coverage']:9.3f}"
            f"{ours['width']:11.3f}{peer['width']:11.3f}{ratios['width'][task]:8.3f}"
            f"{ratios['interval score'][task]:16.3f}{ours['seconds']:9.1f}{peer['seconds']:9.1f}"
        )
    print(
        f"{'geometric mean':18s}{'':40s}{geometric_mean(ratios['width']):8.3f}"
        f"{geometric_mean(ratios['interval score']):16.3f}"
    )


def measure(rows: tuple[np.ndarray, np.ndarray, np.ndarray], place: Record) -> Record:
    X, y, test = rows
    train = np.setdiff1d(np.arange(len(y)), test)
    with stopwatch() as taken:
        model = CFLLRegressor(random_state=place["seed"]).fit(X[train], y[train])
    interval = model.predict_interval(X[test], COVERAGE)
    mean, std = model.predict(X[test], return_std=True)
    found = of_regression(y[test], mean, std, interval)
    inside = (interval[0] <= y[test]) & (y[test] <= interval[1])
    order = std.argsort()
    third = len(order) // 3
    level = np.full(len(mean), np.sqrt(model.noise_variance_[0]))
    return {
        **of_interval(interval, y[test]),
        "seconds": taken["seconds"],
        "quiet": float(inside[order[:third]].mean()),
        "noisy": float(inside[order[-third:]].mean()),
        "z²": found["squared_z"],
        "log p": found["log_likelihood"],
        "constant": of_regression(y[test], mean, level)["log_likelihood"],
    }


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"]}
    bench = Bench(__doc__, "intervals", arguments, seeds=SPLITS, smallest=small)
    tasks = bench.grid((*SIMULATED, *UCI), load)
    models = {"CFLLRegressor": measure, PEER: cross_validation_plus}
    bench.run(tasks, models, ("task", "seed", "model"))
    print_origin(bench.records)
    names = ["coverage", "quiet", "noisy", "z²", "log p", "constant"]
    ours = [record for record in bench.records if record["model"] == "CFLLRegressor"]
    table = DataFrame(ours).groupby("task", sort=False)[names].mean()
    table.loc["mean"] = table.mean()
    print_table(f"Means over splits of {len(table) - 1} sets", table, ".3f")
    report_peer(bench.records)


if __name__ == "__main__":
    main()
