"""Wide networks against the equation in feature space (docs/theory.md), and descent on all layers.

Full batch, float64, without ridge: one hidden layer of erf below four features, 32 rows of 12
inputs, one output. For each width and seed:

- the loss at the end of a run with steps of 0.01;
- its late rate, between losses of 1e-6 and 1e-10, beside that of the equation with the kernel of
  the run's own start, and with the kernel of the limit of infinite width, in the same steps;
- the deviation from each: the largest distance of the residuals of one step, relative to their
  size at the start;
- the rate that is guaranteed from the start alone;
- the losses of the closed form and of gradient descent on all layers, from the same backbone, each
  at the largest step with which its loss falls in every one of the first 100 steps (down to 1e-11).

    python benchmarks/theory.py                          # a quarter of an hour on one core
    python benchmarks/theory.py --report --picture docs/theory.png
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, cells, print_origin
from lazy import (
    Network,
    Rows,
    all_layers_run,
    centered,
    closed_form_run,
    draw_networks,
    draw_rows,
    equation_run,
    limit_kernel,
    loss_of,
    own_kernel,
    solved,
)
from torch import Tensor

N, INPUTS, D = 32, 12, 4
WIDTHS = (64, 256, 1024, 4096, 16_384)
RATE, LEAST, STEPS = 0.01, 1e-11, 6000
LATE = (1e-6, 1e-10)
MULTIPLES = tuple(2 ** (j / 2) for j in range(-7, 3))  # of one over the curvature at the start
TRIED, COMPARED = 100, 400  # steps
SHOWN = (0, 10, 30, 100, 200, 399)
KEY = ("width", "seeds", "part")
Problem = tuple[Network, Rows]


def load(width: int, seeds: int) -> Problem:
    chosen = range(seeds)
    return draw_networks(chosen, INPUTS, width, D), draw_rows(chosen, N, INPUTS)


def late_rates(losses: Tensor) -> list[float]:
    """Decay of the loss in units of time, between its two late values."""
    found = []
    for loss in losses:
        first, last = (int((loss < value).nonzero()[0]) for value in LATE)
        found.append(float((loss[first] / loss[last]).log() / ((last - first) * RATE)))
    return found


def lazy(problem: Problem, place: Record) -> Record:
    """The run and both equations."""
    network, rows = problem
    start, targets = network.features(rows.inputs), rows.targets
    run = closed_form_run(network, rows, RATE, STEPS, LEAST)
    size = run[:, 0].norm(dim=(1, 2))
    found: Record = {"end": loss_of(run)[:, -1].tolist(), "rate": late_rates(loss_of(run))}
    kept = np.unique(np.geomspace(1, run.shape[1], 60).astype(int)) - 1
    found["steps"], found["loss"] = kept.tolist(), thinned(loss_of(run), kept)
    kernels = {"own": own_kernel(network, rows.inputs), "limit": limit_kernel(rows.inputs, D)}
    for name, kernel in kernels.items():
        equation = equation_run(start, targets, kernel, RATE, 2 * run.shape[1])
        found[f"rate_{name}"] = late_rates(loss_of(equation))
        equation = equation[:, : run.shape[1]]
        found[f"deviation_{name}"] = ((run - equation).norm(dim=(2, 3)).amax(1) / size).tolist()
        found[f"loss_{name}"] = thinned(loss_of(equation), kept)
    change = (kernels["own"] - kernels["limit"]).norm(dim=(1, 2))
    return found | {"kernel_change": (change / kernels["limit"].norm(dim=(1, 2))).tolist()}


def thinned(losses: Tensor, kept: np.ndarray) -> list[list[float]]:
    return [[float(f"{value:.5g}") for value in loss] for loss in losses[:, kept].tolist()]


def largest_steps(problem: Problem, place: Record) -> Record:
    """Both methods at their largest steps."""
    network, rows = problem
    seeds = len(rows.targets)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(seeds, D, 1, generator=generator, dtype=torch.float64) / D**0.5
    features = centered(network.features(rows.inputs))
    kernel = limit_kernel(rows.inputs, 1)
    best, _ = solved(features, rows.targets)
    off = torch.eye(N, dtype=torch.float64) - features @ torch.linalg.pinv(features)
    off = off - 1 / N
    squares = start.square().sum((1, 2))[:, None, None]
    curvature = {
        "closed form": best.square().sum((1, 2)) * top(off @ kernel @ off),
        "all layers": top(features @ features.mT + squares * centered(centered(kernel).mT)),
    }

    def run(name: str, times: int, rates: Tensor, steps: int) -> Tensor:
        nets = network.repeated(times)
        many = Rows(*(part.repeat_interleave(times, 0) for part in rows))
        rates = rates.reshape(-1, 1, 1)
        if name == "closed form":
            return loss_of(closed_form_run(nets, many, rates, steps, 0.0))
        return all_layers_run(nets, start.repeat_interleave(times, 0), many, rates, steps)

    found: Record = {}
    multiples = torch.tensor(MULTIPLES, dtype=torch.float64)
    for name, curved in curvature.items():
        rates = multiples / curved[:, None]
        losses = run(name, len(MULTIPLES), rates, TRIED).reshape(seeds, len(MULTIPLES), -1)
        later = losses[:, :, 1:]
        falls = ((later <= losses[:, :, :-1]) | (later < LEAST)).all(2)
        chosen = [max(np.flatnonzero(row), default=0) for row in falls.numpy()]
        largest = rates[torch.arange(seeds), torch.tensor(chosen)]
        curve = run(name, 1, largest, COMPARED)
        found[name] = {
            "steps": largest.tolist(),
            "losses": thinned(curve, np.array(SHOWN)),
            "falls": bool(falls.any(1).all()),
        }
    return found


def top(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrices)[:, -1]


def bound(problem: Problem, place: Record) -> Record:
    """The rate that is guaranteed from the start alone, for the limit kernel."""
    network, rows = problem
    features = centered(network.features(rows.inputs))
    kernel = centered(centered(limit_kernel(rows.inputs, 1)).mT)
    values = torch.linalg.eigvalsh(kernel)
    _, residuals = solved(features, rows.targets)
    explained = 2 * (loss_of(rows.targets) - loss_of(residuals))
    invariant = features.mT @ torch.linalg.pinv(kernel, hermitian=True, rtol=1e-12) @ features
    rate = 2 * values[:, 1] * explained / (values[:, -1] * top(invariant))
    return {"bound": rate.tolist()}


PARTS: dict[str, Any] = {"lazy": lazy, "largest steps": largest_steps, "bound": bound}


# -- report ---------------------------------------------------------------------------------------


def slope(records: list[Record], name: str) -> float:
    """Exponent of the width in the deviation, fitted to the medians."""
    widths = [record["width"] for record in records]
    medians = [np.median(record[name]) for record in records]
    return float(np.polyfit(np.log(widths), np.log(medians), 1)[0])


def report(records: list[Record]) -> None:
    runs = [r for r in records if r["part"] == "lazy"]
    print("\nRuns with steps of 0.01, and the equation in feature space: medians over seeds")
    print(
        f"{'':8s}{'loss at':>10s}{'late rate':>24s}{'within 5%':>11s}{'':4s}"
        f"{'deviation from':>20s}{'kernel':>10s}"
    )
    print(
        f"{'width':>8s}{'the end':>10s}{'run':>8s}{'own':>8s}{'limit':>8s}{'of own':>11s}{'':4s}"
        f"{'own':>10s}{'limit':>10s}{'change':>10s}"
    )
    for r in runs:
        ratio = np.array(r["rate"]) / r["rate_own"]
        close = f"{int((abs(ratio - 1) <= 0.05).sum())} of {len(ratio)}"
        rates = cells((np.median(r[n]) for n in ("rate", "rate_own", "rate_limit")), "8.3f")
        last = ("deviation_own", "deviation_limit", "kernel_change")
        print(
            f"{r['width']:8d}{max(r['end']):10.1e}{rates}{close:>11s}{'':4s}"
            + cells((np.median(r[n]) for n in last), "10.4f")
        )
    if len(runs) > 1:
        exponents = ", ".join(f"{n} {slope(runs, f'deviation_{n}'):.2f}" for n in ("own", "limit"))
        print(f"exponent of the width in the deviation: {exponents}")
    print("\nThe largest loss at the end is shown. Ratio of late rates, run / equation, by seed")
    for r in runs:
        for name in ("own", "limit"):
            ratios = np.array(r["rate"]) / r[f"rate_{name}"]
            print(f"{r['width']:8d} {name:6s}{cells(ratios, '7.3f')}")
    print(
        "\nGuaranteed rate (least and largest of the seeds), and the least late rate of the limit"
    )
    late = {r["width"]: min(r["rate_limit"]) for r in runs}
    for r in records:
        if r["part"] == "bound" and r["width"] in late:
            ends = cells((min(r["bound"]), max(r["bound"]), late[r["width"]]), "10.4f")
            print(f"{r['width']:8d}{ends}")
    print("\nEach at its largest step: median loss over seeds, by steps")
    print(f"{'width':>8s} {'':12s}{'step size':>10s}" + cells(SHOWN, "10d"))
    for r in records:
        if r["part"] != "largest steps":
            continue
        for name in ("closed form", "all layers"):
            medians = np.median(r[name]["losses"], axis=0)
            size = np.median(r[name]["steps"])
            note = "" if r[name]["falls"] else "  (no step tried was small enough on some seed)"
            print(f"{r['width']:8d} {name:12s}{size:10.3g}{cells(medians, '10.1e')}{note}")
        lower = np.array(r["closed form"]["losses"]) < np.array(r["all layers"]["losses"])
        print(f"{'':8s} closed form is lower, seeds  " + cells(lower.sum(0), "10d"))


def draw(records: list[Record], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = [r for r in records if r["part"] == "lazy"]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    widths = [r["width"] for r in runs]
    for name, mark in (("own", "o"), ("limit", "s")):
        key = f"deviation_{name}"
        label = f"{name} kernel, slope {slope(runs, key):.2f}"
        line = left.loglog(widths, [np.median(r[key]) for r in runs], mark + "-", label=label)
        for r in runs:
            values = r[key]
            left.plot([r["width"]] * len(values), values, ".", color=line[0].get_color(), alpha=0.4)
    left.set(xlabel="width", ylabel="deviation of residuals", title="Run and equation")
    left.legend()
    for r in runs[::2]:
        time = RATE * np.array(r["steps"])
        line = middle.semilogy(time, r["loss"][0], label=f"width {r['width']}")
        middle.semilogy(time, r["loss_own"][0], "k:", lw=1)
    middle.semilogy(time, r["loss_limit"][0], "k--", lw=1, label="limit kernel")
    middle.set(xlabel="time", ylabel="loss", title="One seed; dotted: the equation")
    middle.legend()
    last = [r for r in records if r["part"] == "largest steps"][-1]
    for name in ("closed form", "all layers"):
        losses = np.array(last[name]["losses"])
        right.semilogy(SHOWN, np.median(losses, axis=0), "o-", label=name)
        right.fill_between(SHOWN, losses.min(0), losses.max(0), alpha=0.2)
    right.set(xlabel="steps", ylabel="loss", title=f"Largest steps, width {last['width']}")
    right.legend()
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    picture = {"type": Path, "help": "file of the picture"}
    bench = Bench(__doc__, "theory", arguments, seeds=10, smallest={"seeds": 2}, picture=picture)
    seeds = bench.options.seeds
    places = [
        ({"width": width, "seeds": seeds}, partial(load, width, seeds))
        for width in (WIDTHS[:1] if bench.small else WIDTHS)
    ]
    bench.run(places, PARTS, KEY)
    print_origin(bench.records)
    report(bench.records)
    if bench.options.picture:
        draw(bench.records, bench.options.picture)


if __name__ == "__main__":
    main()
