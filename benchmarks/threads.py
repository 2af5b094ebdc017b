"""Two threads against one, with and without another busy process on the same cores.

    python benchmarks/threads.py --busy 1 > benchmarks/results/threads.txt

Fits with ``n_threads`` of 1, of all that torch takes (the script sets two) and of None, in turns;
ratios are those of neighbouring fits, and the table has their median and range. The first part is
about single products, from which the size comes that None asks for; the second about default fits
(few epochs of them) and networks on images and fields. On a machine that is busy by itself all
figures are of a busy machine: the load average is printed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone

N_THREADS = 2
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


def seconds(run: Run, n_threads: Any) -> float:
    start = time.perf_counter()
    run(n_threads)
    return time.perf_counter() - start


def compare(name: str, run: Run, others: list[Any], repeats: int, limit: float) -> None:
    """A line of the table: seconds of one thread, ratios of the others to it."""
    run(1)
    taken: dict[Any, list[float]] = {each: [] for each in [1, *others]}
    start = time.perf_counter()
    for i in range(repeats):
        order = list(taken) if i % 2 else list(taken)[::-1]
        for n_threads in order:
            taken[n_threads].append(seconds(run, n_threads))
        if i >= 2 and time.perf_counter() - start > limit:
            break
    one = np.array(taken[1])
    cells = []
    for each in others:
        ratios = np.array(taken[each]) / one
        cells.append(f"{np.median(ratios):8.2f} ({ratios.min():.2f} to {ratios.max():.2f})")
    load = os.getloadavg()[0]
    print(f"{name:28s}{np.median(one):9.4f}" + "".join(f"{c:>26s}" for c in cells) + f"{load:7.1f}")
    sys.stdout.flush()


def product(size: int, n_products: int) -> Run:
    a, b = torch.randn(2, size, size)

    def run(n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        for _ in range(n_products):
            a @ b

    return run


def fit(make: Callable[[], Any], X: Any, y: Any) -> Run:
    def run(n_threads: int | None) -> None:
        torch.set_num_threads(N_THREADS)
        make().set_params(n_threads=n_threads).fit(X, y)

    return run


def convolutions(width: int) -> Callable[[Any], nn.Module]:
    return lambda shape: nn.Sequential(
        nn.Conv2d(shape[0], width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )


def fits() -> Iterator[tuple[str, Run]]:
    rng = np.random.default_rng(0)
    for kind, label in ((CFLLRegressor, "regressor"), (CFLLClassifier, "classifier")):
        for n, epochs in ((100, 5), (400, 3), (1000, 2), (3000, 1), (20000, 1)):
            X = rng.normal(size=(n, 10))
            y = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + 0.3 * rng.normal(size=n)
            y = y if kind is CFLLRegressor else y > 0

            def make(kind: Any = kind, epochs: int = epochs) -> Any:
                return kind(random_state=0, max_epochs=epochs)

            yield f"{label}, {n} rows", fit(make, X, y)
    options: dict[str, Any] = {
        "random_state": 0,
        "max_epochs": 1,
        "early_stopping": False,
        "refit_last_layer": False,
    }
    for width, n, size in ((16, 64, 16), (64, 128, 32)):
        X = rng.normal(size=(n, 3, size, size))
        make_own = _maker(convolutions(width), batch_size=n, precision="float32", **options)
        yield f"{width} channels, {n} x {size} x {size}", fit(make_own, X, X.mean((1, 2, 3)))
    with contextlib.suppress(ImportError):
        import neuralop  # noqa: F401

        X = rng.normal(size=(20, 32, 32))
        operator = FNOBackbone(n_modes=(12, 12))
        make_own = _maker(operator, batch_size=20, precision="float32", **options)
        yield "FNO, 20 x 32 x 32", fit(make_own, X, X)


def _maker(backbone: Any, **options: Any) -> Callable[[], Any]:
    return lambda: CFLLRegressor(backbone, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--limit", type=float, default=8.0, help="seconds of a line; three repeats at least"
    )
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    for busy in options.busy:
        with busy_processes(busy):
            print(f"\n{busy} busy process(es) beside: seconds of one thread, ratios to them, load")
            print(f"{'':28s}{'one':>9s}{'two / one':>26s}{'None / one':>26s}")
            for size, number in ((64, 400), (128, 200), (256, 50), (512, 10), (1024, 3), (2048, 1)):
                name = f"{size}³, {size**3 / 1e6:.3g}e6 multiply-adds"
                compare(name, product(size, number), [2], options.repeats, options.limit)
            for name, run in fits():
                compare(name, run, [2, None], options.repeats, options.limit)


if __name__ == "__main__":
    main()
