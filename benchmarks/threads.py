"""Two threads against one, with and without another busy process on the same cores.

    python benchmarks/threads.py                      # needs two cores

Single products, from which the size comes that ``n_threads=None`` asks for, and default fits (few
epochs of them) and networks on images and fields; with one thread, with two and, where the
estimator chooses, with None, in turns. Ratios are those of neighbouring runs; the tables have
their medians and ranges. On a machine that is busy by itself all figures are of a busy machine: the
load average is stored.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, print_origin, print_table
from measures import stopwatch
from pandas import DataFrame
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone

N_THREADS = 2
SIZES = {64: 400, 128: 200, 256: 50, 512: 10, 1024: 3, 2048: 1}  # and how many products
ROWS = {100: 5, 400: 3, 1000: 2, 3000: 1, 20000: 1}  # and epochs
IMAGES = ((16, 64, 16), (64, 128, 32))  # channels, images, pixels on a side
BRIEF: dict[str, Any] = {"max_epochs": 1, "early_stopping": False, "refit_last_layer": False}
Run = Callable[[Any], None]  # with this many threads; None where the estimator chooses


@contextlib.contextmanager
def busy_processes(number: int) -> Iterator[None]:
    code = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def product(size: int, n_products: int) -> Run:
    a, b = torch.randn(2, size, size)

    def run(n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        for _ in range(n_products):
            a @ b

    return run


def fit(make: Callable[..., Any], X: np.ndarray, y: np.ndarray) -> Run:
    def run(n_threads: int | None) -> None:
        torch.set_num_threads(N_THREADS)
        make(random_state=0, n_threads=n_threads).fit(X, y)

    return run


def default_fit(kind: type, n: int) -> Run:
    X = np.random.default_rng(0).normal(size=(n, 10))
    y = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + 0.3 * X[:, 3]
    return fit(partial(kind, max_epochs=ROWS[n]), X, y if kind is CFLLRegressor else y > 0)


def convolutions(shape: tuple[int, ...], width: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(shape[0], width, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
    )


def own_network(backbone: Any, n: int, *shape: int) -> Run:
    X = np.random.default_rng(0).normal(size=(n, *shape))
    y = X if len(shape) == 2 else X.mean((1, 2, 3))
    make = partial(CFLLRegressor, backbone, batch_size=n, precision="float32", **BRIEF)
    return fit(make, X, y)


def runs() -> dict[str, Callable[[], Run]]:
    found: dict[str, Callable[[], Run]] = {}
    for size, number in SIZES.items():
        found[f"{size}³, {size**3 / 1e6:.3g}e6 multiply-adds"] = partial(product, size, number)
    for kind, n in ((kind, n) for kind in (CFLLRegressor, CFLLClassifier) for n in ROWS):
        found[f"{kind.__name__}, {n} rows"] = partial(default_fit, kind, n)
    for width, n, size in IMAGES:
        network = partial(convolutions, width=width)
        name = f"{width} channels, {n} x {size} x {size}"
        found[name] = partial(own_network, network, n, 3, size, size)
    found["FNO, 20 x 32 x 32"] = partial(own_network, FNOBackbone(n_modes=(12, 12)), 20, 32, 32)
    return found


def compare(run: Run, place: Record, repeats: int) -> list[Record]:
    """A record for each repeat: seconds with one thread, with two and with None."""
    chosen = [1, N_THREADS] if "multiply-adds" in place["task"] else [1, N_THREADS, None]
    threads = torch.get_num_threads()
    found = []
    with busy_processes(place["busy"]):
        run(1)
        for i in range(repeats):
            record: Record = {"repeat": i, "load": os.getloadavg()[0]}
            for n_threads in chosen if i % 2 else chosen[::-1]:
                with stopwatch() as taken:
                    run(n_threads)
                record[str(n_threads)] = taken["seconds"]
            found.append(record)
    torch.set_num_threads(threads)
    return found


def main(arguments: list[str] | None = None) -> None:
    repeats = {"type": int, "default": 7}
    small = {"repeats": 1, "tasks": ["256³, 16.8e6 multiply-adds"]}
    given = {"threads": N_THREADS, "smallest": small, "repeats": repeats}
    bench = Bench(__doc__, "threads", arguments, **given)
    chosen = {name: run for name, run in runs().items() if name in (bench.options.tasks or runs())}
    tasks = [
        ({"task": name, "busy": busy}, make)
        for busy in ([0] if bench.small else [0, 1])
        for name, make in chosen.items()
    ]
    measure = partial(compare, repeats=bench.options.repeats)
    bench.run(tasks, {None: measure}, ("task", "busy", "model"))
    print_origin(bench.records)
    found = DataFrame(bench.records).drop(columns="model")
    columns = [name for name in ("2", "None") if name in found]
    ratios = found[["task", "busy", "load"]].join(found[columns].div(found["1"], axis=0))
    for busy, part in ratios.groupby("busy"):
        for how in ("median", "min", "max"):
            table = part.groupby("task", sort=False)[[*columns, "load"]].agg(how)
            print_table(f"{busy} busy process(es): ratios to one thread, {how}", table, ".2f")


if __name__ == "__main__":
    main()
