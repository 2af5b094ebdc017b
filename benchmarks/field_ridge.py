"""The ridge of fields: last layer first on small operator tasks, one seed, rates fixed.

Prints the test relative L2 after some epochs for ridges over five decades, with Adam (rate
0.01) and SGD (rate 0.2) on the backbone. Large rates on purpose: a ridge that is too small or
too large shows in the first epochs.

    python benchmarks/field_ridge.py                 # about a quarter of an hour, one core
    python benchmarks/field_ridge.py --data DIR      # with neuraloperator's Darcy file
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
from fno import Samples, load_fields, run_one
from harness import Bench, print_origin, print_table

SIZES = ("samples", "modes", "width", "batch_size", "epochs")
TASKS = {  # (task, *SIZES)
    "burgers, 20 a batch": ("burgers", 300, 32, 32, 20, 12),
    "burgers, 5 a batch": ("burgers", 300, 32, 32, 5, 12),
    "darcy": ("darcy", 200, 12, 16, 20, 10),
    "navier_stokes": ("navier_stokes", 100, 12, 16, 10, 8),
    "darcy_file": ("darcy_file", 900, 8, 24, 20, 8),
    "smallest": ("burgers", 40, 8, 8, 20, 2),
}
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
RATES = {"adam": 0.01, "sgd": 0.2}
SHOWN = (1, 2, 3, 5)
METHOD = "last_layer_first"


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "field_ridge", arguments, seeds=1, smallest={"tasks": ["smallest"]})
    configs = [
        {"optimizer": optimizer, "lr": lr, "ridge": ridge, "loss": "squared", "layers": 4}
        for (optimizer, lr), ridge in product(RATES.items(), RIDGES)
    ]

    def load(case: str, seed: int, where: Any) -> Any:
        name, samples, *_ = TASKS[case]
        return load_fields(name, seed, where, Samples(samples, 50, 100))

    for case in bench.options.tasks or [name for name in TASKS if name != "smallest"]:
        bench.options.tasks = [case]
        sizes = dict(zip(SIZES, TASKS[case][1:], strict=True))
        tasks = bench.grid([case], load, variants=configs, **sizes)
        bench.run(tasks, {METHOD: run_one}, ("task", "seed", "optimizer", "ridge", "method"))
    print_origin(bench.records)
    for case in dict.fromkeys(record["task"] for record in bench.records):
        runs = [record for record in bench.records if record["task"] == case]
        shown = [epoch for epoch in (*SHOWN, runs[0]["epochs"]) if epoch <= runs[0]["epochs"]]
        curves = {
            f"{r['optimizer']}, ridge {r['ridge']:g}": [r["curve"][e - 1] for e in shown]
            for r in runs
        }
        print_table(f"{case}: by epoch", pd.DataFrame(curves, index=shown).T)


if __name__ == "__main__":
    main()
