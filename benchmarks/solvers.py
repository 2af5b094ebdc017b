"""How a proximal update is solved: time of each solver, and what conjugate gradients leave.

Features, targets and previous weights come from a network in the middle of its training, so
that conjugate gradients start where they start in practice. "left" is the distance to the
exact new weights, in the norm of the predictions, relative to the length of the update.

    python benchmarks/solvers.py                     # about 1 minute
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from timeit import repeat

import torch
from harness import Bench, Record, means, print_origin, print_table
from networks import network

from sklearn_cfll import CFLLNet, linalg

RIDGES = (0.1, 1.0, 10.0, 30.0, 100.0)
STEPS = (1, 2, 3, 4, 6, 8)
SIZES = list(product((50, 128, 256, 512), (32, 128, 256, 1024), (1, 10)))  # width, batch, targets
SOLVERS = ("primal", "dual", "cg")
FIELDS = ("part", "width", "batch_size", "targets", "ridge")
State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def training_state(width: int, batch_size: int, n_targets: int, ridge: float) -> State:
    """Features and targets of the next batch, and the weights that earlier ones left."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(8 * batch_size, 20, generator=generator)
    mixing = torch.randn(20, n_targets, generator=generator)
    y = torch.sin(X @ mixing) + X[:, :1].square()
    net = CFLLNet(
        network(20, width, 0),
        lr=1e-2,
        optimizer__fused=True,
        batch_size=batch_size,
        max_epochs=3,
        last_layer__ridge=ridge,
        random_state=0,
        verbose=0,
    ).fit(X[batch_size:], y[batch_size:])
    with torch.no_grad():
        features = net.module_.backbone(X[:batch_size])
    return features, y[:batch_size], net.module_.last_layer.weight.detach()


def left(state: State, place: Record) -> Record:
    """Part of the update that is left after so many steps of conjugate gradients."""
    features, targets, weight = (part.double() for part in state)
    rows = linalg.center_rows(features, targets)
    penalty = place["ridge"] * linalg.feature_power(
        rows.features.square().sum(), place["width"], rows.total, rows.feature_mean
    )
    parts = rows.features, rows.targets, weight, penalty
    exact = linalg.primal_update(*parts)
    found = linalg.SOLVERS["cg"](*parts, n_steps=place["model"])
    distances = (float((rows.features @ step.T).norm()) for step in (found - exact, exact - weight))
    return {"left": next(distances) / next(distances)}


def microseconds(state: State, place: Record) -> Record:
    """Best of five of the mean time of an update; and the solver that "auto" chooses."""
    update = partial(linalg.proximal_step, *state, ridge=place["ridge"], solver=place["model"])
    update()
    best = min(repeat(update, number=30, repeat=5)) / 30
    sizes = place["batch_size"], place["width"], place["targets"]
    return {"microseconds": 1e6 * best, "auto": linalg.choose_solver(*sizes, place["ridge"])}


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "solvers", arguments)
    ridges, sizes = (RIDGES[:1], SIZES[:1]) if bench.small else (RIDGES, SIZES)
    states: list[tuple] = [("left", 256, 256, 1, ridge) for ridge in ridges]
    states += [("time", *size, 30.0) for size in sizes]
    models: dict[str, tuple[tuple, Callable[..., Record]]] = {
        "left": (STEPS, left),
        "time": (SOLVERS, microseconds),
    }
    for part, (names, measure) in models.items():
        tasks = [
            (dict(zip(FIELDS, state, strict=True)), partial(training_state, *state[1:]))
            for state in states
            if state[0] == part
        ]
        bench.run(tasks, dict.fromkeys(names, measure), (*FIELDS, "model"))
    print_origin(bench.records)
    parts = {part: [r for r in bench.records if r["part"] == part] for part in models}
    table = means(parts["left"], "left", ("ridge",))
    print_table("Conjugate gradients: part of the update left after n steps (d = B = 256)", table)
    table = means(parts["time"], "microseconds", FIELDS[1:4])
    table["auto"] = [record["auto"] for record in parts["time"] if record["model"] == "cg"]
    print_table("Microseconds of one update at ridge 30, float32", table, ".0f")


if __name__ == "__main__":
    main()
