"""Several workers of torch.distributed: throughput, workers that are killed, and a plan by count.

    python benchmarks/ranks.py                        # throughput needs two idle cores

Throughput: one process against two on two cores, one thread each, in turns, on the same rows and
batches: rows per second of the epochs (median over epochs after the first). Beside them two
processes that train a model of their own each, with half the rows and half the batch and without
exchange: what two cores that share caches and memory give at most. Kills: two workers, one
of which is killed at a random moment; the seconds until the other raises, and whether the model of
the next start, which goes on from the last checkpoint, equals that of a run that was not cut off.
The plan needs no second machine: bytes and operations of a step are counted, rates of one core are
measured here, and steps of 1 to 1,024 workers are simulated.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import random
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, print_origin, print_table
from measures import stopwatch
from pandas import DataFrame
from sklearn.datasets import make_friedman1

from sklearn_cfll import CFLLRegressor, TrainingCheckpoint, linalg

CASES: dict[str, dict[str, Any]] = {
    "MLP 512-512, B = 2,048": {"hidden_layer_sizes": (512, 512), "n_members": 1},
    "8 members of 128-128, B = 2,048": {"hidden_layer_sizes": (128, 128), "n_members": 8},
    "MLP 512-512-512-128, B = 8,192": {
        "hidden_layer_sizes": (512, 512, 512, 128),
        "n_members": 1,
        "batch_size": 8192,
    },
}
COMMON: dict[str, Any] = {
    "batch_size": 2048,
    "max_epochs": 4,
    "early_stopping": False,
    "linear_part": False,
    "columns": "passthrough",
    "random_state": 0,
}
KILLED: dict[str, Any] = {"hidden_layer_sizes": (32,), "n_members": 4, "random_state": 0}
# Of the plan: width of the features, members, hidden layers of that width, rows of the joint batch.
PLANNED = [(64, 8, 2, 1024), (256, 1, 2, 1024), (256, 1, 2, 65536), (1024, 1, 4, 65536)]
N_WORKERS = (1, 2, 4, 16, 64, 256, 1024)
LATENCY, BANDWIDTH = 20e-6, 1.25e9  # seconds per message, bytes per second: 10 Gbit/s
JITTER = 0.05  # standard deviation of the logarithm of a worker's time
STEPS = 200


# -- processes --------------------------------------------------------------------------------


def start(n_workers: int, function: Callable[..., Any], *args: Any) -> tuple[list[Any], list[Path]]:
    """Processes that call ``function(rank, *args)`` as `torchrun` would, and their results.

    They are forked: importing torch anew would take longer than a short fit.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    context, folder = multiprocessing.get_context("fork"), tempfile.mkdtemp()
    rest = n_workers, port, folder, function, args
    processes = [context.Process(target=work, args=(rank, *rest)) for rank in range(n_workers)]
    for each in processes:
        each.start()
    return processes, [Path(folder, str(rank)) for rank in range(n_workers)]


def work(
    rank: int, n: int, port: int, folder: str, function: Callable[..., Any], args: Any
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(n), MASTER_PORT=str(port))
    os.environ.update(MASTER_ADDR="127.0.0.1", CFLL_TIMEOUT="60")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    Path(folder, str(rank)).write_bytes(pickle.dumps(function(rank, *args)))


def results(processes: list[Any], files: list[Path], seconds: float = 600) -> list[Any]:
    """What the processes have returned; None for one that was killed or hangs."""
    for each in processes:
        each.join(seconds)
        if each.is_alive():
            each.kill()
    return [pickle.loads(path.read_bytes()) if path.exists() else None for path in files]


# -- throughput -------------------------------------------------------------------------------


def epochs(rank: int, n_workers: int, n_rows: int, parameters: dict[str, Any]) -> list[float]:
    X, y = make_friedman1(n_rows, n_features=64, noise=0.5, random_state=0)
    own = slice(rank, None, n_workers)
    model = CFLLRegressor(**{**COMMON, **parameters}).fit(X[own].astype(np.float32), y[own])
    return [row["seconds"] for row in model.history_]


def throughput(parameters: dict[str, Any], place: Record, repeats: int, n_rows: int) -> Any:
    found = []
    for i in range(repeats):
        record: Record = {"repeat": i, "load": os.getloadavg()[0]}
        for n in (1, 2) if i % 2 else (2, 1):
            taken = results(*start(n, epochs, n, n_rows, parameters))[0]
            record[f"rows per second, {n}"] = n_rows / float(np.median(taken[1:]))
        halves = parameters | {"batch_size": COMMON["batch_size"] // 2}
        both = [start(1, epochs, 1, n_rows // 2, halves) for _ in range(2)]
        apart = [float(np.median(results(*each)[0][1:])) for each in both]
        record["rows per second, apart"] = sum(n_rows // 2 / each for each in apart)
        found.append(record)
    return found


# -- kills ------------------------------------------------------------------------------------


def cut_off(rank: int, path: str, victim: int | None, after: float) -> Any:
    X, y = make_friedman1(2000, n_features=6, noise=0.5, random_state=0)
    if rank == victim:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    begun = time.time()
    try:
        model = CFLLRegressor(callbacks=[TrainingCheckpoint(path)], **KILLED).fit(
            X[rank::2], y[rank::2]
        )
    except RuntimeError as error:
        return {"error": str(error)[:60], "at": time.time()}
    return {"prediction": model.predict(X[:50]), "seconds": time.time() - begun}


def kill(task: Any, place: Record) -> Record:
    """One kill at a random moment of a fit, and the start after it."""
    draw = random.Random(place["seed"])
    with tempfile.TemporaryDirectory() as folder:
        whole = results(*start(2, cut_off, f"{folder}/whole.pt", None, 0.0))
        victim, path = draw.randrange(2), f"{folder}/cut.pt"
        after = draw.uniform(0.0, whole[0]["seconds"])
        processes, files = start(2, cut_off, path, victim, after)
        processes[victim].join(600)
        dead = time.time()
        other = results(processes, files, 90)[1 - victim]
        again = results(*start(2, cut_off, path, None, 0.0))
    same = all(np.array_equal(whole[0]["prediction"], each["prediction"]) for each in again)
    killed, raised = processes[victim].exitcode != 0, other is not None and "at" in other
    return {
        "share of the fit": after / whole[0]["seconds"],
        "kind": "killed" if killed and (raised or other is None) else "ended before",
        "seconds until the other raised": other["at"] - dead if killed and raised else None,
        "hangs": int(other is None),
        "same result": int(same),
    }


# -- the plan ---------------------------------------------------------------------------------


def counts(d: int, members: int, depth: int, batch: int, n_workers: int) -> Record:
    """Bytes and multiply-adds of one step, for one target."""
    weights = members * (depth - 1) * d * d
    rows = batch / n_workers
    return {
        "MiB of moments": members * 8 * (d * d + 3 * d + 3) / 2**20,
        "MiB of gradients": 4 * weights / 2**20,
        "network": 3 * rows * weights,
        "moments": rows * members * d * d,
        "solve": members * d**3 / 3,
    }


def rates() -> Record:
    """Multiply-adds per second of one core in products and in solves, the best of ten rounds."""
    found: Record = {}
    for d in sorted({d for d, *_ in PLANNED}):
        a, b = torch.randn(1024, d), torch.randn(d, d)
        gram = (b @ b.T / d + torch.eye(d))[None]
        for name, call, count in (
            ("product", partial(torch.matmul, a, b), 1024 * d * d),
            ("solve", partial(linalg.solve_symmetric, gram, 0.1, b[None, :1]), d**3 / 3),
        ):
            n, rounds = max(1, int(3e8 / count)), []
            for _ in range(10):
                with stopwatch() as taken:
                    for _ in range(n):
                        call()
                rounds.append(taken["seconds"])
            found[f"{name}, {d}"] = n * count / min(rounds)
    return found


def plan(measured: Record, place: Record) -> list[Record]:
    """Simulated steps: the slowest worker, two all-reduces in a ring or a tree, and the solve."""
    rng, found = np.random.default_rng(0), []
    for d, members, depth, batch in PLANNED:
        for n in N_WORKERS:
            c = counts(d, members, depth, batch, n)
            work = (c["network"] + c["moments"]) / measured[f"product, {d}"]
            slowest = work * np.exp(JITTER * rng.standard_normal((STEPS, n))).max(1).mean()
            sent = 0.0
            for size in (c["MiB of moments"] * 2**20, c["MiB of gradients"] * 2**20):
                ring = 2 * (n - 1) * LATENCY + 2 * (n - 1) / n * size / BANDWIDTH
                tree = 2 * math.ceil(math.log2(n)) * (LATENCY + size / BANDWIDTH) if n > 1 else 0.0
                sent += min(ring, tree)
            solve = c["solve"] / measured[f"solve, {d}"]
            found.append(
                {
                    "case": f"d {d}, {members} x {depth} layers, B {batch:,}",
                    "workers": n,
                    "MiB per step": c["MiB of moments"] + c["MiB of gradients"],
                    "network ms": 1e3 * slowest,
                    "all-reduce ms": 1e3 * sent,
                    "solve ms": 1e3 * solve,
                    "speed-up": (n * work + solve) / (slowest + sent + solve),
                }
            )
    return found


# -- report -----------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    given = {
        "repeats": {"type": int, "default": 3},
        "rows": {"type": int, "default": 32768},
        "kills": {"type": int, "default": 20},
    }
    small = {"repeats": 1, "rows": 512, "kills": 0, "models": ["plan"]}
    bench = Bench(__doc__, "ranks", arguments, smallest=small, **given)
    options = bench.options
    measure = partial(throughput, repeats=options.repeats, n_rows=options.rows)
    tasks: list[Any] = [({"task": "plan", "seed": 0, "model": "plan"}, rates)]
    tasks += [
        ({"task": name, "seed": 0, "model": "throughput"}, partial(dict, each))
        for name, each in CASES.items()
    ]
    tasks += [
        ({"task": "kill", "seed": seed, "model": "kill"}, dict) for seed in range(options.kills)
    ]
    models = {"plan": plan, "throughput": measure, "kill": kill}
    bench.run(tasks, models, ("task", "seed", "model"))
    report(bench.records)


def report(records: list[Record]) -> None:
    print_origin(records)
    found = DataFrame([r for r in records if r["model"] == "throughput"])
    if len(found):
        one, two, apart = (found[f"rows per second, {n}"] for n in (1, 2, "apart"))
        table = found.assign(ratio=two / one, ceiling=apart / one)
        columns = ["rows per second, 1", "rows per second, 2", "rows per second, apart"]
        columns += ["ratio", "ceiling", "load"]
        for how in ("median", "min", "max"):
            shown = table.groupby("task", sort=False)[columns].agg(how)
            print_table(f"Two workers on two cores and one on one: {how}", shown, ",.2f")
    kills = DataFrame([r for r in records if r["model"] == "kill"])
    if len(kills):
        killed = kills[kills["kind"] == "killed"]
        waited = killed["seconds until the other raised"]
        print(
            f"\n{len(kills)} starts, {len(killed)} with a worker killed: {kills['hangs'].sum()} "
            f"hangs, the other raised after {waited.median():.2f} s (at most {waited.max():.2f}), "
            f"{kills['same result'].sum()} of {len(kills)} ended with the model of a whole run"
        )
    planned = DataFrame([r for r in records if r["model"] == "plan"])
    if len(planned):
        print(
            f"\nSimulated steps: {LATENCY * 1e6:g} µs per message, {BANDWIDTH * 8e-9:g} Gbit/s, "
            "one core per worker"
        )
        columns = ["MiB per step", "network ms", "all-reduce ms", "solve ms", "speed-up"]
        for case, part in planned.groupby("case", sort=False):
            print_table(str(case), part.set_index("workers")[columns], ",.2f")


if __name__ == "__main__":
    main()
