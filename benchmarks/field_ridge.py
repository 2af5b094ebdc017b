"""The ridge of fields: last layer first on small operator tasks, one seed, rates fixed.

Prints the test relative L2 after some epochs for ridges over five decades, with Adam (rate
0.01) and SGD (rate 0.2) on the backbone. Large rates on purpose: a ridge that is too small or
too large shows in the first epochs.

    python benchmarks/field_ridge.py                 # about a quarter of an hour, one core
    python benchmarks/field_ridge.py --data DIR      # with neuraloperator's Darcy file
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from operators_runs import FINER, load_task, run_one

# Samples, modes, width, batch size, epochs.
TASKS = {
    "burgers": [(300, 32, 32, 20, 12), (300, 32, 32, 5, 12)],
    "darcy": [(200, 12, 16, 20, 10)],
    "navier_stokes": [(100, 12, 16, 10, 8)],
    "darcy_file": [(900, 8, 24, 20, 8)],
}
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
RATES = {"adam": 0.01, "sgd": 0.2}
SHOWN = (1, 2, 3, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with darcy.npz")
    parser.add_argument("--cache", type=Path, help="folder to keep simulated samples in")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, sizes in TASKS.items():
        if name not in FINER and given.data is None:
            print(f"{name}: no --data, left out", file=sys.stderr)
            continue
        for samples, modes, width, batch_size, epochs in sizes:
            options = argparse.Namespace(samples=samples, valid=50, test=100, resolution=None)
            vars(options).update(vars(given), viscosity=0.1, finer=False)
            task = load_task(name, options, seed=0)
            setting = {"modes": modes, "width": width, "layers": 4, "epochs": epochs}
            setting["batch_size"] = batch_size
            print(f"\n{name}, {samples} samples, {batch_size} a batch, width {width}")
            print(f"{'epoch':18s}" + "".join(f"{epoch:9d}" for epoch in (*SHOWN, epochs)))
            for optimizer, lr in RATES.items():
                for ridge in RIDGES:
                    config = {"method": "last_layer_first", "optimizer": optimizer, "lr": lr}
                    config |= {"ridge": ridge, "loss": "squared"}
                    curve = run_one(task, config, setting, seed=0)["curve"]
                    cells = "".join(f"{curve[epoch - 1]:9.4f}" for epoch in (*SHOWN, epochs))
                    print(f"{optimizer}, ridge {ridge:<6g}{cells}", flush=True)


if __name__ == "__main__":
    main()
