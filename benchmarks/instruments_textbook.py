"""Two textbook data sets of instrumental variables, all defaults, several random states.

    python benchmarks/instruments_textbook.py --seeds 10
    python benchmarks/instruments_textbook.py --report

``card``: log wages of 3,010 men on schooling, nearness of a college as instrument, experience and
12 indicators as controls; two-stage least squares with experience squared 0.132 (standard error
0.055), least squares 0.075. ``mroz``: log wages of 428 married women on schooling, parents'
schooling as instruments, experience as control; 0.061 (0.031) and 0.108. Columns: the average
effect, its robust error and Anderson-Rubin set, the average slope of the curve, the effective F of
the linear and of the learned first stage, the advice, seconds of the process.
Needs ``pip install linearmodels``.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from harness import Bench, Record, print_origin
from measures import stopwatch
from sklearn.utils import Bunch

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.instruments.confidence_sets import describe

INDICATORS = ["black", "south", "smsa", "smsa66", *(f"reg66{i}" for i in range(1, 9))]
COLUMNS = {
    "card": ("lwage", ["nearc4"], ["exper", *INDICATORS]),
    "mroz": ("lwage", ["motheduc", "fatheduc"], ["exper"]),
}


def load(name: str) -> Bunch:
    """Outcome, schooling, instruments and controls."""
    from linearmodels.datasets import card, mroz

    outcome, instruments, controls = COLUMNS[name]
    table = {"card": card, "mroz": mroz}[name].load().dropna(subset=[outcome])
    X, Z, C = (table[names].astype(float) for names in (["educ"], instruments, controls))
    return Bunch(y=table[outcome].to_numpy(float), X=X, Z=Z, C=C)


def fit(data: Bunch, place: Record, **parameters: int) -> Record:
    """Effect, strength and advice of one fit."""
    with stopwatch() as taken:
        model = CFLLIVRegressor(random_state=place["seed"], **parameters)
        model.fit(data.X, data.y, Z=data.Z, C=data.C)
    effect, report = model.effect_, model.diagnostics_
    numbers = ("estimate", "std_error", "curve_estimate", "curve_std_error")
    return {
        **{name: float(effect[name][0]) for name in numbers},
        "anderson_rubin": np.clip(effect.anderson_rubin[0], -1e300, 1e300).tolist(),
        "effective_f": float(report["linear_effective_f"][0]),
        "learned_f": float(report["learned_effective_f"][0]),
        "preferred": model.preferred_,
        "seconds": round(taken["cpu_seconds"], 2),
    }


def print_task(name: str, records: list[Record]) -> None:
    """One line per random state."""
    print(f"\n{name}")
    print(
        f"{'seed':>4s}{'effect':>9s}{'error':>8s}{'Anderson-Rubin':>18s}{'curve':>9s}"
        f"{'error':>8s}{'F':>8s}{'learned F':>11s}  {'advice':12s}{'seconds':>8s}"
    )
    for run in sorted(records, key=lambda each: each["seed"]):
        found = describe(np.array(run["anderson_rubin"]).reshape(-1, 2), ".3f")
        print(
            f"{run['seed']:4d}{run['estimate']:9.4f}{run['std_error']:8.4f}{found:>18s}"
            f"{run['curve_estimate']:9.4f}{run['curve_std_error']:8.4f}{run['effective_f']:8.1f}"
            f"{run['learned_f']:11.1f}  {run['preferred']:12s}{run['seconds']:8.1f}"
        )


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(
        __doc__, "instruments_textbook", arguments, seeds=10, smallest={"tasks": ["mroz"]}
    )
    names = bench.options.tasks or list(COLUMNS)
    quick = {"max_epochs": 2, "n_repeats": 1, "n_folds": 2} if bench.small else {}
    places = [
        ({"task": name, "seed": seed}, partial(load, name))
        for name in names
        for seed in range(bench.options.seeds)
    ]
    bench.run(places, {"cfll_iv": partial(fit, **quick)}, ("task", "seed", "model"))
    print_origin(bench.records)
    for name in names:
        found = [record for record in bench.records if record["task"] == name]
        if found:
            print_task(name, found)


if __name__ == "__main__":
    main()
