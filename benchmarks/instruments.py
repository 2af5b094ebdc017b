"""Instrumental-variable regression: structural error against known truths, defaults only.

Every method sees the same samples; the error is the mean squared error of the structural function
at the design's own points outside the sample, in the outcome's units. Seconds are of the
process (one thread), so that a busy machine does not change them much.

    python benchmarks/instruments.py --tasks demand --models cfll_iv direct told_sieve
    python benchmarks/instruments.py --seeds 5 --models dfiv
    python benchmarks/instruments.py --report                # print the stored records

Designs: the demand design with the outcome's noise on the scale of the outcome (``demand``),
nearly without (``demand_quiet``) and with a weaker instrument (``demand_weak``); four curves
of one treatment (``abs``, ``sin``, ``step``, ``linear``: Bennett, Kallus & Schnabel 2019); images
as treatments (``sprites``). Methods: see ``instruments_peers.py`` and ``instruments_dfiv.py``;
``cfll_iv_fast`` is ``cfll_iv`` in a hurry, ``direct_nets`` the same nets without the instrument;
``told_sieve`` knows the form of the demand design's structural function, the others do not.
The authors' own code of DFIV on ``demand_quiet``, n 1000, rho 0.1: median 1213 (830 to 1656) of
five seeds, 16 seconds a fit. Needs ``pip install linearmodels econml``.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from harness import Bench, Place, Record, cells, print_origin
from instruments_dfiv import curve_networks, dfiv
from instruments_peers import (
    NotApplicable,
    cfll_iv_fast,
    direct,
    direct_nets,
    econml_sieve,
    kernel_iv,
    spline_sieve,
    told_sieve,
    two_stage,
    two_stage_cubic,
)
from measures import stopwatch
from sklearn.utils import Bunch

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.datasets import make_demand_design, make_sprite_design

FIRST_SEED = 100
RHOS = (0.1, 0.25, 0.5, 0.75, 0.9)
CURVES = {
    "abs": np.abs,
    "sin": np.sin,
    "step": lambda x: np.where(x < 0, 1.0, 2.5),
    "linear": lambda x: x,
}
DESIGNS = {
    "demand": [
        {"n": n, "rho": rho, "noise_scale": 158.0, "strength": 1.0}
        for n in (1000, 5000)
        for rho in RHOS
    ],
    "demand_quiet": [
        {"n": n, "rho": rho, "noise_scale": 1.0, "strength": 1.0}
        for n in (1000, 5000)
        for rho in RHOS
    ],
    "demand_weak": [
        {"n": 1000, "rho": 0.9, "noise_scale": 158.0, "strength": strength}
        for strength in (0.3, 0.1)
    ],
    **{name: [{"n": 2000}] for name in CURVES},
    "sprites": [{"n": 2000}],
}
PRODUCT = "cfll_iv"
PEERS = {
    "cfll_iv_fast": cfll_iv_fast,
    "direct": direct,
    "direct_nets": direct_nets,
    "2sls": two_stage,
    "2sls_cubic": two_stage_cubic,
    "spline_sieve": spline_sieve,
    "told_sieve": told_sieve,
    "econml_2": econml_sieve(2),
    "econml_3": econml_sieve(3),
    "kernel_iv": kernel_iv,
    "dfiv": dfiv,
}
METHODS = (PRODUCT, *PEERS)
CELL = ("design", "n", "rho", "noise_scale", "strength")
NORMAL_90 = 1.6449


def make(design: str, cell: dict, seed: int) -> Bunch:
    """A sample and ``grid``, the points at which the structural function is compared."""
    if design in CURVES:
        return make_curve(design, cell["n"], seed)
    if design == "sprites":
        return make_sprite_design(cell["n"], size=32, random_state=seed)
    return make_demand_design(
        cell["n"],
        cell["rho"],
        cell["noise_scale"],
        instrument_strength=cell["strength"],
        random_state=seed,
    )


def make_curve(name: str, n: int, seed: int) -> Bunch:
    """A curve of one treatment, confounded, with one strong and one idle instrument.

    Generated as in the experiments of Bennett, Kallus & Schnabel (2019), "Deep generalized
    method of moments for instrumental variable analysis": outcomes and truth are standardised
    by the sample's outcomes, the truth is compared at 2,000 treatments drawn anew.
    """

    def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        Z, confounder = rng.uniform(-3, 3, (n, 2)), rng.normal(size=n)
        x = Z[:, 0] + confounder + 0.1 * rng.normal(size=n)
        truth = CURVES[name](x)
        return x[:, None], truth + 2 * confounder + 0.1 * rng.normal(size=n), Z, truth

    X, y, Z, _ = draw(n, np.random.default_rng(seed))
    X_grid, _, _, truth = draw(2000, np.random.default_rng(0))
    mean, std = y.mean(), y.std()
    grid = Bunch(X=X_grid, C=None, y=(truth - mean) / std)
    return Bunch(X=X, y=(y - mean) / std, Z=Z, C=None, grid=grid)


def run_one(data: Bunch, place: Record) -> Record | None:
    """Structural error, seconds, and of our estimator its band and its advice."""
    method, seed = place["method"], place["seed"]
    found: Record = {}
    with warnings.catch_warnings(record=True) as caught, stopwatch() as taken:
        warnings.simplefilter("always")
        if method == PRODUCT:
            model = CFLLIVRegressor(random_state=seed).fit(data.X, data.y, Z=data.Z, C=data.C)
        else:
            fit = PEERS[method]
            if method == "dfiv" and place["design"] in CURVES:
                fit = partial(dfiv, networks=curve_networks)
            try:
                predict = fit(data.X, data.y, data.Z, data.C, seed=seed)
            except NotApplicable:
                return None
    found["seconds"] = round(taken["cpu_seconds"], 3)
    found["wall_seconds"] = round(taken["seconds"], 3)
    if method == PRODUCT:
        prediction, std = model.predict(data.grid.X, C=data.grid.C, return_std=True)
        inside = np.abs(prediction - data.grid.y) <= NORMAL_90 * std
        found["coverage"] = float(inside.mean())
        found["half_width"] = float(np.mean(NORMAL_90 * std))
        found["preferred"] = str(getattr(model, "preferred_", None))
        found["warnings"] = sorted({warning.category.__name__ for warning in caught})
    else:
        prediction = predict(data.grid.X, data.grid.C)
    error = np.square(np.ravel(prediction) - data.grid.y).mean()
    return {"mse": float(np.nan_to_num(error, nan=np.inf))} | found


def label(cell: tuple) -> str:
    design, n, rho, _, strength = cell
    parts = [design, f"n {n}"]
    if design == "demand_weak":
        parts.append(f"strength {strength:g}")
    elif rho is not None:
        parts.append(f"rho {rho:g}")
    return ", ".join(parts)


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def grouped(records: list[Record]) -> dict[tuple, dict[str, list[Record]]]:
    """Records by cell and method, in the order of DESIGNS and METHODS."""
    table: Any = defaultdict(lambda: defaultdict(list))
    for record in records:
        table[tuple(record.get(name) for name in CELL)][record["method"]].append(record)
    place = {name: i for i, name in enumerate(DESIGNS)}
    order = sorted(table, key=lambda cell: (place[cell[0]], cell[1], cell[2] or 0, -(cell[4] or 0)))
    return {cell: {m: table[cell][m] for m in METHODS if m in table[cell]} for cell in order}


def print_overview(table: dict[tuple, dict[str, list[Record]]]) -> None:
    print("\nMedian structural mean squared error (number of seeds where others have more)")
    print(f"{'':34s}" + cells(METHODS, ">13s"))
    for cell, methods in table.items():
        most = max(len(runs) for runs in methods.values())
        shown = []
        for method in METHODS:
            runs = methods.get(method, [])
            text = short(np.median([run["mse"] for run in runs])) if runs else "-"
            shown.append(text + (f" ({len(runs)})" if 0 < len(runs) < most else ""))
        print(f"{label(cell):34s}" + cells(shown, ">13s"))


def print_cell(cell: tuple, methods: dict[str, list[Record]]) -> None:
    """Quartiles, error as a multiple of ours, seconds; of ours its coverage and advice."""
    print(f"\n{label(cell)}")
    print(f"{'':14s}{'seeds':>6s}{'median':>10s}{'quartiles':>20s}{'factor':>8s}{'seconds':>9s}")
    ours = np.median([run["mse"] for run in methods[PRODUCT]]) if PRODUCT in methods else np.nan
    for method, runs in methods.items():
        low, middle, high = np.percentile([run["mse"] for run in runs], [25, 50, 75])
        seconds = np.median([run["seconds"] for run in runs])
        quartiles = f"{short(low)} to {short(high)}"
        line = f"{method:14s}{len(runs):6d}{short(middle):>10s}{quartiles:>20s}"
        line += f"{middle / ours:8.2f}{seconds:9.2f}"
        if method == PRODUCT:
            coverage = [run["coverage"] for run in runs]
            line += f"  coverage {np.mean(coverage):.2f} (least {min(coverage):.2f}); prefers "
            advice = Counter(run["preferred"] for run in runs)
            line += ", ".join(f"{name} {count}" for name, count in advice.most_common())
        print(line)


def tasks(designs: list[str], bench: Bench) -> Iterator[Place]:
    """Seeds outside: what is stored is balanced."""
    for seed in range(FIRST_SEED, FIRST_SEED + bench.options.seeds):
        for design in designs:
            for cell in DESIGNS[design]:
                place = {"design": design, **cell, "seed": seed}
                yield place, partial(make, design, cell, seed)


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["linear"], "models": ["direct", "2sls"]}
    bench = Bench(__doc__, "instruments", arguments, seeds=20, smallest=small)
    designs = bench.options.tasks or list(DESIGNS)
    bench.run(tasks(designs, bench), dict.fromkeys(METHODS, run_one), (*CELL, "seed", "method"))
    print_origin(bench.records)
    methods = bench.options.models or METHODS
    table = grouped([r for r in bench.records if r["design"] in designs and r["method"] in methods])
    print_overview(table)
    for cell, found in table.items():
        print_cell(cell, found)


if __name__ == "__main__":
    main()
