"""Instrumental-variable regression: structural error against known truths, defaults only.

Every method sees the same samples; the error is the mean squared error of the structural function
at the design's own points outside the sample, in the outcome's units. Seconds are of the
process (one thread), so that a busy machine does not change them much.

    python benchmarks/instruments.py --quick                 # one cell, three seeds, cheap methods
    python benchmarks/instruments.py --designs demand --n 1000 --methods cfll_iv direct told_sieve
    python benchmarks/instruments.py --seeds 5 --methods dfiv
    python benchmarks/instruments.py --table                 # print the stored records
    python benchmarks/instruments.py --check-dfiv            # DFIV beside its authors' figures

Designs: the demand design with the outcome's noise on the scale of the outcome (``demand``),
nearly without (``demand_quiet``) and with a weaker instrument (``demand_weak``); four curves
of one treatment (``abs``, ``sin``, ``step``, ``linear``: Bennett, Kallus & Schnabel 2019); images
as treatments (``sprites``). Methods: see ``instruments_peers.py`` and ``instruments_dfiv.py``;
``cfll_iv_fast`` is ``cfll_iv`` in a hurry, ``direct_nets`` the same nets without the instrument;
``told_sieve`` knows the form of the demand design's structural function, the others do not.
Runs are stored as they end (``results/instruments.jsonl``): an interrupted benchmark goes on.
Needs ``pip install linearmodels econml``.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
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
from records import add_records, read_records
from sklearn.utils import Bunch
from threadpoolctl import threadpool_limits

from sklearn_cfll.datasets import make_demand_design, make_sprite_design

RESULTS = Path(__file__).parent / "results"
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


def run_one(data: Bunch, design: str, method: str, seed: int) -> dict:
    """Structural error, seconds, and of our estimator its band and its advice."""
    record: dict = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start, start_cpu = time.perf_counter(), time.process_time()
        if method == PRODUCT:
            from sklearn_cfll import CFLLIVRegressor

            model = CFLLIVRegressor(random_state=seed).fit(data.X, data.y, Z=data.Z, C=data.C)
        else:
            fit = PEERS[method]
            if method == "dfiv" and design in CURVES:
                fit = partial(dfiv, networks=curve_networks)
            predict = fit(data.X, data.y, data.Z, data.C, seed=seed)
        record["seconds"] = round(time.process_time() - start_cpu, 3)
        record["wall_seconds"] = round(time.perf_counter() - start, 3)
        if method == PRODUCT:
            prediction, std = model.predict(data.grid.X, C=data.grid.C, return_std=True)
            inside = np.abs(prediction - data.grid.y) <= NORMAL_90 * std
            record["coverage"] = float(inside.mean())
            record["half_width"] = float(np.mean(NORMAL_90 * std))
            record["preferred"] = str(getattr(model, "preferred_", None))
            record["warnings"] = sorted({warning.category.__name__ for warning in caught})
        else:
            prediction = predict(data.grid.X, data.grid.C)
    error = np.square(np.ravel(prediction) - data.grid.y).mean()
    return {"mse": float(np.nan_to_num(error, nan=np.inf)), **record}


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


def grouped(records: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """Records by cell and method, in the order of DESIGNS and METHODS."""
    cells: dict = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[tuple(record.get(name) for name in CELL)][record["method"]].append(record)
    place = {name: i for i, name in enumerate(DESIGNS)}
    order = sorted(cells, key=lambda cell: (place[cell[0]], cell[1], cell[2] or 0, -(cell[4] or 0)))
    return {cell: {m: cells[cell][m] for m in METHODS if m in cells[cell]} for cell in order}


def print_overview(cells: dict[tuple, dict[str, list[dict]]]) -> None:
    print("\nMedian structural mean squared error (number of seeds where others have more)")
    print(f"{'':34s}" + "".join(f"{method:>13s}" for method in METHODS))
    for cell, methods in cells.items():
        most = max(len(runs) for runs in methods.values())
        shown = []
        for method in METHODS:
            runs = methods.get(method, [])
            text = short(np.median([run["mse"] for run in runs])) if runs else "-"
            shown.append(text + (f" ({len(runs)})" if 0 < len(runs) < most else ""))
        print(f"{label(cell):34s}" + "".join(f"{text:>13s}" for text in shown))


def print_cell(cell: tuple, methods: dict[str, list[dict]]) -> None:
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


def check_dfiv() -> None:
    """The authors' own code: n = 1000, rho = 0.1, noise scale 1, five seeds."""
    errors, seconds = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + 5):
        data = make_demand_design(1000, 0.1, 1.0, random_state=seed)
        run = run_one(data, "demand_quiet", "dfiv", seed)
        errors.append(run["mse"])
        seconds.append(run["seconds"])
        print(f"seed {seed}: {errors[-1]:.0f}, {seconds[-1]:.1f} s", file=sys.stderr)
    print("DFIV, demand design, n 1000, rho 0.1, noise scale 1, five seeds:")
    print("  authors' code  median 1213 (830 to 1656), 16 s a fit")
    print(
        f"  here           median {np.median(errors):.0f} ({min(errors):.0f} to "
        f"{max(errors):.0f}), {np.median(seconds):.0f} s a fit"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=DESIGNS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=20, help=f"how many, from {FIRST_SEED} on")
    parser.add_argument("--n", type=int, nargs="+", help="only cells of these sizes")
    parser.add_argument("--rho", type=float, nargs="+", help="only cells of these correlations")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one cell, cheap methods")
    parser.add_argument("--table", action="store_true", help="only print what is stored")
    parser.add_argument(
        "--check-dfiv", action="store_true", help="DFIV beside its authors' figures"
    )
    parser.add_argument("--results", type=Path, default=RESULTS / "instruments.jsonl")
    options = parser.parse_args()
    if options.quick:
        cheap = ["direct", "2sls", "told_sieve", "econml_2", "kernel_iv"]
        small = {"designs": ["demand"], "methods": cheap, "seeds": 3, "n": [1000], "rho": [0.5]}
        vars(options).update(small)
    return options


def wanted(options: argparse.Namespace) -> list[tuple[str, dict]]:
    return [
        (design, cell)
        for design in options.designs
        for cell in DESIGNS[design]
        if (options.n is None or cell["n"] in options.n)
        and (options.rho is None or cell.get("rho") in options.rho)
    ]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    threadpool_limits(options.threads)
    if options.check_dfiv:
        return check_dfiv()
    records = read_records(options.results)
    key = (*CELL, "method", "seed")
    done = {tuple(record.get(name) for name in key) for record in records}
    cells = wanted(options)
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    for seed in () if options.table else seeds:  # seeds outside: what is stored is balanced
        for design, cell in cells:
            run = {"design": design, **cell, "seed": seed}
            todo = [m for m in options.methods if (*map(run.get, CELL), m, seed) not in done]
            data = make(design, cell, seed) if todo else None
            for method in todo:
                try:
                    result = run_one(data, design, method, seed)
                except NotApplicable:
                    continue
                records.append({**run, "method": method, **result})
                add_records(options.results, records[-1:])
        print(f"seed {seed} done", file=sys.stderr)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s)")
    chosen = {(design, *map(cell.get, CELL[1:])) for design, cell in cells}
    table = grouped([r for r in records if tuple(map(r.get, CELL)) in chosen])
    table = {
        cell: {m: runs for m, runs in methods.items() if m in options.methods}
        for cell, methods in table.items()
    }
    table = {cell: methods for cell, methods in table.items() if methods}
    print_overview(table)
    for cell, methods in table.items():
        print_cell(cell, methods)


if __name__ == "__main__":
    main()
