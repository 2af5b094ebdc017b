"""What the package adds: to imports, to predictions of a million rows, and to those of one row.

Ratios to the bare torch modules of the same ensemble in their best batch size, in CPU seconds,
alternating in each round. Imports are measured in processes of their own. Single rows are predicted
in blocks of 32 (``estimator/plan.py``), so the modules' time for 32 rows is given too. 1,000 rows
are added one by one by ``adapt``, to a network with 256 features and to the default ensemble; times
of single rows are the median of ten runs of 100 calls.

    python benchmarks/overheads.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, print_origin
from large import rows

from sklearn_cfll import CFLLRegressor

SIZES: dict[str, dict[str, Any]] = {
    "256 features": {"hidden_layer_sizes": (256, 256), "n_members": 1, "precision": "float64"},
    "default": {},
}
BATCHES = (256, 512, 1024, 2048, 4096)
IMPORT = """
import time
begun = time.process_time()
import torch, sklearn, skorch
between = time.process_time()
import sklearn_cfll
print(between - begun, time.process_time() - between)
"""


def seconds_of(call: Callable[[], Any], repeats: int = 1) -> float:
    begun = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - begun) / repeats


def imports(n_rows: int, place: Record) -> Record:
    run = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    others, own = map(float, run.stdout.split())
    return {"others": others, "own": own}


def predictions(n_rows: int, place: Record) -> Record:
    """Seconds for all rows, and for one, by ``predict`` and by the bare modules."""
    X, y = rows(place["seed"], n_rows)
    model = CFLLRegressor(max_epochs=2, random_state=0).fit(X[:20_000], y[:20_000])
    module, one = model.net_.module_.eval(), X[:1]
    parts, single = torch.from_numpy(X), torch.from_numpy(one)
    block = parts[:32]
    repeats = 200 if n_rows > 1000 else 2
    with torch.no_grad():
        model.predict(one), module(single)
        bare = [
            seconds_of(lambda size=size: torch.cat([module(part) for part in parts.split(size)]))
            for size in BATCHES
        ]
        return {
            "predict": seconds_of(lambda: model.predict(X)),
            "bare": min(bare),
            "batch": BATCHES[int(np.argmin(bare))],
            "one": seconds_of(lambda: model.predict(one), repeats),
            "bare_one": seconds_of(lambda: module(single), repeats),
            "bare_block": seconds_of(lambda: module(block), repeats),
        }


def median_of(call: Callable[[], Any], runs: int = 10, repeats: int = 100) -> float:
    call()
    return float(np.median([seconds_of(call, repeats) for _ in range(runs)]))


def additions(n_rows: int, place: Record) -> Record:
    """Seconds of ``adapt`` for one row, and of the backbone alone, and how exact the result is."""
    few = min(n_rows, 4000)
    X, y = rows(place["seed"], few + 1000)
    found: Record = {}
    for name, options in SIZES.items():
        model = CFLLRegressor(max_epochs=2, random_state=0, **options).fit(X[:few], y[:few])
        backbone, single = model.net_.module_.backbone.eval(), torch.from_numpy(X[:1])
        with torch.no_grad():
            found[f"backbone, {name}"] = median_of(partial(backbone, single))
        turn = iter(range(few, few + 1000))
        each = []
        for _ in range(10):
            begun = time.process_time()
            for i in (next(turn) for _ in range(100)):
                model.adapt(X[i : i + 1], y[i : i + 1])
            each.append((time.process_time() - begun) / 100)
        head = model.net_.module_.last_layer
        weight = head.weight.double()
        head.solve(model.final_ridge_)
        gap = (head.weight.double() - weight).norm() / weight.norm()
        found |= {f"adapt, {name}": float(np.median(each)), f"gap, {name}": float(gap)}
    return found


def report(records: list[Record]) -> None:
    print_origin(records)

    def median(name: str, of: Callable[[Record], float]) -> float:
        return float(np.median([of(record) for record in records if record["model"] == name]))

    own, others = (median("imports", lambda r, k=k: r[k]) for k in ("own", "others"))
    share = median("imports", lambda r: r["own"] / r["others"])
    print(f"\nimport sklearn_cfll: {own:.3f} s after {others:.2f} s of torch, sklearn and skorch")
    print(f"share: {share:.3f}")
    name = "predictions"
    ratio = median(name, lambda r: r["predict"] / r["bare"])
    batch = median(name, lambda r: r["batch"])
    found = median(name, lambda r: r["predict"])
    n_rows = next(record["task"] for record in records)
    print(f"\npredict, {int(n_rows):,} x 20 rows, default ensemble: {found:.2f} s")
    print(f"to the bare modules in batches of {batch:.0f}: {ratio:.2f}")
    one, bare, block = (
        1000 * median(name, lambda r, k=k: r[k]) for k in ("one", "bare_one", "bare_block")
    )
    print(f"one row: {one:.2f} ms; the bare modules take {bare:.2f} ms, {block:.2f} for 32 rows")
    print()
    for size in SIZES:
        parts = [f"{kind}, {size}" for kind in ("adapt", "backbone", "gap")]
        whole, bare, gap = (median("additions", lambda r, k=k: r[k]) for k in parts)
        print(
            f"adapt, 1,000 single rows, {size}: {1000 * whole:.2f} s; the backbone alone takes "
            f"{1000 * bare:.2f} s; relative gap to a factorisation {gap:.0e}"
        )


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "overheads", arguments, seeds=5, smallest={"tasks": ["500"]})
    load = lambda name, seed, where: int(name)  # noqa: E731
    models = {"imports": imports, "predictions": predictions, "additions": additions}
    bench.run(bench.grid(("1000000",), load), models, ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
