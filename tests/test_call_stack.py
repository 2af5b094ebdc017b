"""The way from `fit` to the solve of a batch: few calls, each named for what it does."""

import sys
from pathlib import Path

import pytest
from sklearn.datasets import make_friedman1

import sklearn_cfll
from sklearn_cfll import CFLLRegressor, linalg
from sklearn_cfll.training.update_orders import UPDATE_ORDERS

PACKAGE = Path(sklearn_cfll.__file__).parent
FIT = [("estimator/base.py", "fit")]
NET = [
    ("training/runs.py", "run"),
    ("training/steps.py", "train_step"),
    ("training/update_orders.py", "update"),
]
HEAD = [("heads/solving.py", "step"), ("heads/memory.py", "update")]


def own_frames(frame):
    """Files and names of the package's calls that lead to a frame, the outermost first.

    Methods that skorch's net defines do not count, because skorch's loop calls them whatever the
    package does. ``train_step`` is the exception: it counts once, with all that it uses of skorch.
    """
    found = []
    while frame is not None:
        path, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        bases = type(frame.f_locals.get("self")).__mro__
        of_skorch = name != "train_step" and any(
            base.__module__.startswith("skorch.") and hasattr(base, name) for base in bases
        )
        if PACKAGE in path.parents and not of_skorch:
            found.append((path.relative_to(PACKAGE).as_posix(), name))
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize("n_members", [1, 4])
@pytest.mark.parametrize("order", UPDATE_ORDERS)
def test_few_calls_lead_from_fit_to_the_solve_of_a_batch(order, n_members, monkeypatch):
    """Five hops: `fit` → `CFLLNet.run` → `train_step` → update order → `head.step` → linalg.

    Each call of the package is a hop, but a memory belongs to its head: `step` makes rows of the
    batch, and the memory's `update` solves for them.
    """
    stacks, solve = [], linalg.proximal_step

    def record(*args, **kwargs):
        stacks.append(own_frames(sys._getframe(1)))
        return solve(*args, **kwargs)

    monkeypatch.setattr(linalg, "proximal_step", record)
    X, y = make_friedman1(60, random_state=0)  # too few rows for the first runs on two halves
    CFLLRegressor(update_order=order, n_members=n_members, max_epochs=3, batch_size=20).fit(X, y)
    in_steps = [stack for stack in stacks if "train_step" in dict(map(reversed, stack))]
    assert len(in_steps) >= 9
    assert {tuple(stack) for stack in in_steps} == {tuple(FIT + NET + HEAD)}
