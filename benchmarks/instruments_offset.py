"""The linear fit below the networks: what it gives on linear truths, what it costs on curves.

Median structural mean squared error, coverage of the 90% band over the grid, and seconds of the
process (one thread), of CFLLIVRegressor with all defaults (``cfll_iv``), with ``linear_part=False``
(``without``), and of two-stage least squares (``2sls``). Linear truths with one, two and three
treatments and three controls; curves, the demand design (rho 0.1 and 0.9; ``demand_5000`` is rho
0.5 with 5,000 rows) and sprites of ``instruments.py``, whose seeds they share.

    python benchmarks/instruments_offset.py --tasks linear_1 linear_2 linear_3
    python benchmarks/instruments_offset.py --report
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from harness import Bench, Record, print_origin
from instruments_peers import two_stage
from measures import stopwatch
from sklearn.utils import Bunch
from tasks import Where

from instruments import CURVES, FIRST_SEED, NORMAL_90, make, short
from sklearn_cfll import CFLLIVRegressor

LINEAR = {f"linear_{p}": p for p in (1, 2, 3)}
DEMAND = {"demand_10": (1000, 0.1), "demand_90": (1000, 0.9), "demand_5000": (5000, 0.5)}
TASKS = (*LINEAR, *CURVES, *DEMAND, "sprites")
OPTIONS = {"cfll_iv": {}, "without": {"linear_part": False}}
MODELS = (*OPTIONS, "2sls")


def make_linear(n_treatments: int, seed: int, n: int = 1000) -> Bunch:
    """Confounded treatments, one more instrument than treatments, all effects linear."""
    rng = np.random.default_rng(seed)
    Z, C = rng.normal(size=(n, n_treatments + 1)), rng.normal(size=(n, 3))
    hidden, noise = rng.normal(size=n), rng.normal(size=(n, n_treatments))
    X = 0.7 * Z @ rng.uniform(0.2, 1, (n_treatments + 1, n_treatments)) + Z[:, :n_treatments]
    X = X + C[:, :1] + hidden[:, None] + noise

    def truth(X: np.ndarray, C: np.ndarray) -> np.ndarray:
        return X @ np.arange(1.0, n_treatments + 1) + C @ np.arange(3.0)

    y = truth(X, C) + 2 * hidden + rng.normal(size=n)
    shuffled, others = X[rng.permutation(n)], C[rng.permutation(n)]
    return Bunch(X=X, y=y, Z=Z, C=C, grid=Bunch(X=shuffled, C=others, y=truth(shuffled, others)))


def load(task: str, seed: int, where: Where) -> Bunch:
    if task in LINEAR:
        return make_linear(LINEAR[task], FIRST_SEED + seed)
    if task in CURVES:
        return make(task, {"n": 2000}, FIRST_SEED + seed)
    if task == "sprites":
        return make(task, {"n": 2000}, FIRST_SEED + seed)
    n, rho = DEMAND[task]
    cell = {"n": n, "rho": rho, "noise_scale": 158.0, "strength": 1.0}
    return make("demand", cell, FIRST_SEED + seed)


def run_one(data: Bunch, place: Record) -> Record:
    """Error, seconds, and of our estimator the coverage of its band and its advice."""
    found: Record = {}
    grid, method = data.grid, place["model"]
    with stopwatch() as taken:
        if method == "2sls":
            prediction = two_stage(data.X, data.y, data.Z, data.C)(grid.X, grid.C)
        else:
            model = CFLLIVRegressor(random_state=FIRST_SEED + place["seed"], **OPTIONS[method])
            model.fit(data.X, data.y, Z=data.Z, C=data.C)
    if method != "2sls":
        prediction, std = model.predict(grid.X, C=grid.C, return_std=True)
        found["coverage"] = float(np.mean(np.abs(prediction - grid.y) <= NORMAL_90 * std))
        found["preferred"] = model.preferred_
    error = np.square(np.ravel(prediction) - grid.y).mean()
    return {"mse": float(error), "seconds": round(taken["cpu_seconds"], 2)} | found


def report(records: list[Record]) -> None:
    table: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        table[record["task"]][record["model"]].append(record)
    print_origin(records)
    print(
        f"\n{'':12s}{'':10s}{'seeds':>6s}{'median':>10s}{'to 2sls':>9s}{'band':>6s}{'seconds':>9s}"
    )
    for task in (task for task in TASKS if task in table):
        linear = np.median([run["mse"] for run in table[task].get("2sls", [])] or [np.nan])
        for model in (model for model in MODELS if model in table[task]):
            runs = table[task][model]
            middle = np.median([run["mse"] for run in runs])
            line = f"{task:12s}{model:10s}{len(runs):6d}{short(middle):>10s}{middle / linear:9.2f}"
            if model != "2sls":
                line += f"{np.mean([run['coverage'] for run in runs]):6.2f}"
                line += f"{np.median([run['seconds'] for run in runs]):9.1f}"
            print(line)


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["linear_1"], "models": ["2sls"]}
    bench = Bench(__doc__, "instruments_offset", arguments, seeds=20, smallest=small)
    bench.run(bench.grid(TASKS, load), dict.fromkeys(MODELS, run_one), ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
