"""Full-batch mode over six decades of ridge: where the default of that mode comes from.

Validation MSE chooses, test MSE is printed beside it; mean of the seeds.

    python benchmarks/full_batch.py --data DIR       # about 4 minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import BUNDLED, PLAIN, load_task

from sklearn_cfll import CFLLRegressor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Full batch, {options.epochs} epochs: validation / test MSE by ridge")
    print(f"{'':14s}" + "".join(f"{ridge:16g}" for ridge in RIDGES))
    for name in (*BUNDLED, "energy", "concrete"):
        cells = ""
        for ridge in RIDGES:
            found = []
            try:
                tasks = [load_task(name, seed, options.data) for seed in options.seeds]
            except FileNotFoundError:
                break
            for seed, task in zip(options.seeds, tasks, strict=True):
                settings = PLAIN | {
                    "batch_size": "full",
                    "ridge": ridge,
                    "max_epochs": options.epochs,
                    "n_iter_no_change": options.epochs,
                }
                model = CFLLRegressor(**settings, random_state=seed).fit(
                    *task.train, X_val=task.valid[0], y_val=task.valid[1]
                )
                found.append(
                    [
                        np.square(model.predict(X).reshape(y.shape) - y).mean()
                        for X, y in (task.valid, task.test)
                    ]
                )
            valid, test = np.mean(found, axis=0)
            cells += f"  {valid:6.4f} / {test:6.4f}"
        print(f"{name:14s}" + (cells or f"no {name}.npz in --data, left out"), flush=True)


if __name__ == "__main__":
    main()
