"""Millions of rows: where the time of a fit goes, and rows that do not fit into memory.

Seconds of each stage of a fit of one epoch (``--tasks 200000 2000000``), from arrays and from a
map-style data set whose items are single rows. Then a directory of Parquet files: peak memory, and
rows per second beside a bare PyTorch loop over the same files, which trains the same network with
fused Adam. Every case is a process of its own. Seconds are those of the CPU, which other processes
on the machine disturb less than those of the clock.

    python benchmarks/large.py --folder FOLDER      # writes up to 2 GB of Parquet files there
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from harness import Bench, Record, print_origin, print_table
from torch import nn

from sklearn_cfll import CFLLRegressor, ColumnEncoder
from sklearn_cfll.data import ParquetDataset

STAGES = ("checks", "first pass", "columns", "scales of columns", "epochs", "final solve")
STAGES += ("importances and scores",)
FILE_ROWS, GROUP_ROWS, BATCH, BLOCK = 1_000_000, 50_000, 1024, 2**16


def rows(seed: int, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Friedman's first function of 20 columns, with noise of deviation one."""
    random = np.random.default_rng(seed)
    X = random.random((n_rows, 20), dtype=np.float32)
    y = 10 * np.sin(np.pi * X[:, 0] * X[:, 1]) + 20 * (X[:, 2] - 0.5) ** 2
    y += 10 * X[:, 3] + 5 * X[:, 4] + random.standard_normal(n_rows, dtype=np.float32)
    return X, y


def written(folder: Path, n_rows: int) -> Path:
    """A directory of Parquet files of so many rows, written once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = folder / f"rows-{n_rows}"
    place.mkdir(parents=True, exist_ok=True)
    for i in range(-(-n_rows // FILE_ROWS)):
        file = place / f"part-{i:03d}.parquet"
        if not file.exists():
            X, y = rows(i, min(FILE_ROWS, n_rows - i * FILE_ROWS))
            table = pa.table({**{f"x{j}": X[:, j] for j in range(20)}, "y": y})
            pq.write_table(table, file, row_group_size=GROUP_ROWS, compression="none")
    return place


class Items(torch.utils.data.Dataset):
    """Single rows, as most data sets of users give them."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y = X, y

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.float32]:
        return self.X[index], self.y[index]


class Stages(logging.Handler):
    """Seconds of the CPU between the records that end the stages of a fit."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}
        self.begun = time.process_time()

    def emit(self, record: logging.LogRecord) -> None:
        name, now = str(record.args[0]), time.process_time()  # type: ignore[index]
        self.seconds[name], self.begun = now - self.begun, now


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def watched(model: Any, *data: Any) -> Record:
    """Fit, and record seconds of each stage and memory."""
    torch.set_num_threads(1)
    CFLLRegressor(max_epochs=1).fit(*rows(0, 100))  # imports
    logger, stages, before = logging.getLogger("sklearn_cfll"), Stages(), peak()
    logger.setLevel(logging.INFO)
    logger.addHandler(stages)
    begun = time.perf_counter()
    model.fit(*data)
    clock = time.perf_counter() - begun
    return {"stages": stages.seconds, "clock": clock, "peak": peak(), "before": before}


def fit_rows(n_rows: int, as_items: bool) -> Record:
    X, y = rows(0, n_rows)
    data = (Items(X, y),) if as_items else (X, y)
    return watched(CFLLRegressor(max_epochs=1, random_state=0), *data)


def fit_default(place: Path) -> Record:
    source = ParquetDataset(place, "y")
    return watched(CFLLRegressor(max_epochs=1, random_state=0), source) | {"rows": len(source)}


def fit_perceptron(place: Path, sizes: tuple[int, ...] = (256, 256)) -> Record:
    """One network on standardised columns."""
    model = CFLLRegressor(
        hidden_layer_sizes=sizes,
        n_members=1,
        columns=ColumnEncoder(n_bins=0, importance=False),
        batch_size=BATCH,
        max_epochs=1,
        random_state=0,
    )
    source = ParquetDataset(place, "y")
    return watched(model, source) | {"rows": len(source)}


def bare_loop(place: Path) -> Record:
    """The same network, all layers trained by fused Adam: what a user would write."""
    import pyarrow.dataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 1)
    )
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    before, begun, n_rows = peak(), time.process_time(), 0
    scanner = pyarrow.dataset.dataset(place).scanner(
        batch_size=BLOCK, batch_readahead=1, fragment_readahead=1
    )
    for block in scanner.to_batches():
        X, y = (
            torch.from_numpy(np.column_stack([block[name].to_numpy() for name in names]))
            for names in ([f"x{j}" for j in range(20)], ["y"])
        )
        n_rows += len(X)
        for part in torch.randperm(len(X)).split(BATCH):
            optimizer.zero_grad()
            loss = (net((X[part] - 0.5) * 3.5) - y[part] / 5).square().mean()
            loss.backward()
            optimizer.step()
            float(loss.detach())
    seconds = time.process_time() - begun
    return {"stages": {"epochs": seconds}, "rows": n_rows, "peak": peak(), "before": before}


def apart(case: Any) -> Record:
    """What a case gives in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(case)


def stored(case: Any) -> Any:
    return lambda n_rows, place: apart(partial(case, n_rows))


def report(records: list[Record]) -> None:
    print_origin(records)
    memory = [r for r in records if r["part"] == "memory"]
    if memory:
        table = pd.DataFrame({f"{r['task']} {r['model']}": r["stages"] for r in memory})
        table = table.reindex([stage for stage in STAGES if stage in table.index])
        outside = table.drop("epochs").sum()
        table.loc["all outside epochs"] = outside
        share = outside / (outside + table.loc["epochs"])
        table.loc["share of a fit of 1 epoch"] = share
        n_epochs = CFLLRegressor.defaults.epochs
        whole = outside + n_epochs * table.loc["epochs"]
        table.loc[f"share of one of {n_epochs}, the default"] = outside / whole
        print_table("CPU seconds of a default fit of one epoch, by stage", table, ".2f")
    files = [r for r in records if r["part"] == "files"]
    for n_rows in sorted({r["rows"] for r in files}):
        own = {r["model"]: r for r in files if r["rows"] == n_rows}
        print(f"\n{n_rows:,} x 20 rows of Parquet files, one epoch")
        bare = own.get("bare loop, 256-256")
        for name, found in own.items():
            rate = n_rows / found["stages"]["epochs"]
            line = f"{name:24s}{rate / 1000:8.1f} thousand rows per CPU second in the epoch"
            if bare is not None and "256-256" in name:
                line += f", {rate / (n_rows / bare['stages']['epochs']):.2f} of the bare loop"
            print(f"{line}; peak {found['peak']:,.0f} MiB, before {found['before']:,.0f}")
            stages = ", ".join(f"{k} {v:.0f}" for k, v in found["stages"].items())
            print(f"{'':24s}CPU seconds: {stages}")


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(
        __doc__,
        "large",
        arguments,
        seeds=1,
        smallest={"tasks": ["2000"]},
        folder={"type": Path, "help": "where Parquet files are written"},
        files={"nargs": "+", "default": None, "help": "numbers of rows of Parquet files"},
    )
    read = lambda name, seed, where: int(name)  # noqa: E731
    names = ("200000", "2000000")
    models = {
        "array": stored(partial(fit_rows, as_items=False)),
        "items": stored(partial(fit_rows, as_items=True)),
    }
    key = ("part", "task", "seed", "model")
    bench.run(bench.grid(names, read, part="memory"), models, key)
    bench.options.tasks = bench.options.files or (["2000"] if bench.small else None)
    folder = bench.options.folder or Path(tempfile.mkdtemp())
    write = lambda name, seed, where: written(folder, int(name))  # noqa: E731
    models = {
        "bare loop, 256-256": stored(bare_loop),
        "CFLL, 256-256": stored(fit_perceptron),
        "CFLL, 16": stored(partial(fit_perceptron, sizes=(16,))),
        "CFLL, default": stored(fit_default),
    }
    bench.run(bench.grid(("2000000",), write, part="files"), models, key)
    report(bench.records)


if __name__ == "__main__":
    main()
