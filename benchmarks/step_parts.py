"""Where a training step on a CPU spends its time, beside a plain PyTorch loop with fused Adam.

The tasks are those of ``steps.py``. Functions of both ways are clocked within their steps, on one
thread: the forward pass, the exact solve, the error and its gradient in the features, the backward
pass and the optimiser. The rest is Python: skorch's calls, batches, checks and the clocks
themselves. In a plain loop the last layer is part of the forward and backward passes.

    python benchmarks/step_parts.py
"""

from __future__ import annotations

import functools
import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from gpu_steps import Task, WithHead, our_epochs, plain_loop
from harness import Record, means, print_origin, print_table
from steps import run_rounds

from sklearn_cfll.heads.module import CFLLModule
from sklearn_cfll.heads.solving import SolvedLayer
from sklearn_cfll.training import steps

EPOCHS = 7  # of each way in a round, without the first
PARTS = {
    "forward": [(CFLLModule, "outputs"), (WithHead, "forward")],
    "solve": [(SolvedLayer, "step")],
    "error and gradient": [(steps, "error_gradient")],
    "backward": [(torch.Tensor, "backward")],
    "optimiser": [(importlib.import_module("torch.optim.adam"), "adam")],
}
WAYS = {"PyTorch loop": plain_loop, "CFLL": our_epochs}


@contextmanager
def clocked(spent: Counter[str]) -> Iterator[None]:
    """Add the CPU seconds of the functions of each part."""
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                replaced = timed(getattr(owner, name), spent, part)
                stack.enter_context(mock.patch.object(owner, name, replaced))
        yield


def timed(function: Callable[..., Any], spent: Counter[str], part: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        begun = time.process_time()
        result = function(*args, **kwargs)
        spent[part] += time.process_time() - begun  # type: ignore[assignment]
        return result

    return call


def round_of(make: Callable[[], Task], place: Record) -> list[Record]:
    """Milliseconds of the CPU per step in each part."""
    ways = {name: (task := make(), way(task)) for name, way in WAYS.items()}
    found: dict[tuple[str, str], list[float]] = {}
    for epoch in range(EPOCHS + 1):
        for name, (task, run) in ways.items():
            spent: Counter[str] = Counter()
            begun = time.process_time()
            with clocked(spent):
                run()
            whole = time.process_time() - begun
            spent["the rest"] = whole - sum(spent.values())  # type: ignore[assignment]
            for part, seconds in spent.items() if epoch else ():
                found.setdefault((name, part), []).append(1e3 * seconds / task.n_steps)
    return [
        {"way": way, "part": part, "ms": float(np.median(each))}
        for (way, part), each in found.items()
    ]


def report(records: list[Record]) -> None:
    print_origin(records)
    for task in dict.fromkeys(record["task"] for record in records):
        own = [record for record in records if record["task"] == task]
        table = means(own, "ms", ("way", "seed"), "part").groupby(level="way", sort=False).median()
        table = table.reindex(columns=[*PARTS, "the rest"]).fillna(0.0)
        table["all"] = table.sum(axis=1)
        print_table(f"{task}: CPU milliseconds per step", table, ".3f")


def main(arguments: list[str] | None = None) -> None:
    report(run_rounds(__doc__, "step_parts", round_of, arguments))


if __name__ == "__main__":
    main()
