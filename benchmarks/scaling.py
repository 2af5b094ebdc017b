"""How an epoch's time grows: rows, columns, width, targets, batch size, depth, members.

One size at a time is changed from a base case. Seconds are those of the CPU (median of epochs after
the first), beside floating-point operations by count: of the network (forward, and backward without
the gradient of the inputs) and of the solves of the last layer.

    python benchmarks/scaling.py
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pandas as pd
from harness import Bench, Record, print_origin
from skorch.callbacks import Callback

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.linalg import choose_solver, conjugate_gradient_steps

BASE = {"rows": 16384, "columns": 20, "width": 128, "targets": 1, "batch": 256}
BASE |= {"depth": 2, "members": 1}
CHANGES = {
    "rows": (8192, 16384, 32768, 65536),
    "columns": (20, 80, 320),
    "width": (64, 128, 256, 512),
    "targets": (1, 8, 64),
    "batch": (64, 256, 1024),
    "depth": (1, 2, 4),
    "members": (1, 2, 4, 8, 16),
}
CASES = {
    f"{name} {value:,}": BASE | {name: value}
    for name, values in CHANGES.items()
    for value in values
}


class CPUSeconds(Callback):
    """Seconds of the CPU of each epoch."""

    def __init__(self, found: list[float]) -> None:
        self.found = found

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.begun_ = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        self.found.append(time.process_time() - self.begun_)


def operations(size: dict[str, int], ridge: float) -> tuple[float, float]:
    """Floating-point operations of an epoch: of the network, and of the solves."""
    n, d, k, batch = (size[name] for name in ("rows", "width", "targets", "batch"))
    m = size["members"]
    first, others = size["columns"] * d, (size["depth"] - 1) * d * d + d * k
    network = n * m * (4 * first + 6 * others)
    solver = "primal" if d <= batch else "dual"
    solver = choose_solver(batch, d, k, ridge) if m == 1 else solver
    if solver == "cg":
        return network, n * d * k * (4 + 4 * conjugate_gradient_steps(ridge))
    smaller = min(batch, d)
    return network, m * n / batch * (2 * batch * d * smaller + smaller**3 / 3 + 4 * batch * d * k)


def epoch(size: dict[str, int], place: Record) -> Record:
    """Seconds of an epoch of training alone: nothing is held out, nothing refitted."""
    random = np.random.default_rng(0)
    X = random.normal(size=(size["rows"], size["columns"])).astype(np.float32)
    y = np.tanh(X[:, : size["targets"]] if size["targets"] <= X.shape[1] else X[:, :1])
    y = np.tile(y, (1, -(-size["targets"] // y.shape[1])))[:, : size["targets"]]
    seconds: list[float] = []
    model = CFLLRegressor(
        hidden_layer_sizes=(size["width"],) * size["depth"],
        n_members=size["members"],
        columns="passthrough",
        batch_size=min(size["batch"], size["rows"]),
        max_epochs=4,
        early_stopping=False,
        refit_last_layer=False,
        callbacks=[("cpu", CPUSeconds(seconds))],
        random_state=0,
    ).fit(X, y)
    network, solves = operations(size, model.resolved_["ridge"])
    return {"seconds": float(np.median(seconds[1:])), "network": network, "solves": solves} | size


def report(records: list[Record]) -> None:
    print_origin(records)
    text = ", ".join(f"{value:,} {name}" for name, value in BASE.items())
    print(f"\nBase: {text}; one thread, float32")
    heads = (("s/epoch", 10), ("to base", 9), ("GFLOP net", 11), ("solve", 8), ("GFLOP/s", 9))
    print(" " * 16 + "".join(f"{head:>{width}s}" for head, width in heads))
    table = pd.DataFrame(records).groupby("task", sort=False).median(numeric_only=True)
    base = next((row.seconds for row in table.itertuples() if row.rows == BASE["rows"]), np.nan)
    for name, row in table.iterrows():
        total = (row["network"] + row["solves"]) / 1e9
        print(
            f"{name:16s}{row['seconds']:10.3f}{row['seconds'] / base:9.2f}"
            f"{row['network'] / 1e9:11.2f}{row['solves'] / 1e9:8.2f}{total / row['seconds']:9.1f}"
        )


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "scaling", arguments, seeds=2, smallest={"tasks": ["rows 8,192"]})
    small = {"rows": 300} if bench.small else {}
    load = lambda name, seed, where: CASES[name] | small  # noqa: E731
    bench.run(bench.grid(CASES, load), {"CFLLRegressor": epoch}, ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
