"""One step: the closed form against a gradient step on all layers, predicted and measured.

From the same point (backbone θ, last layer W) and on the same batch, three steps are taken: a
gradient step on all layers, and the closed form in both orders. What each takes off the mean
squared error of that batch is compared with its expansion to first order in the rate
(docs/theory.md).

- ``draws``: random networks, batch sizes, ridges and rates, last layers fitted to another batch.
- ``run``: every fourth step of a training run on Friedman's function.
- ``update``: bias and variance of one stochastic update of the last layer on frozen features,
  against batch size and ridge, from a last layer that is off; and the excess loss at which repeated
  updates settle.

    python benchmarks/one_step.py                        # three minutes
    python benchmarks/one_step.py --report --picture docs/one_step.png
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench, Record, print_origin
from sklearn.datasets import make_friedman1
from torch import Tensor, nn

from sklearn_cfll import linalg

STEPS = ("all layers", "last layer first", "backbone first")
RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BATCHES = (8, 32, 128, 512)
RIDGES = tuple(10.0**power for power in np.arange(-3, 3.01, 0.5))
FEATURES = 32
Loss = Callable[[Tensor, list[Tensor]], Tensor]


# -- one step from one point ----------------------------------------------------------------------


class Point:
    """A backbone, a last layer (k, d) without intercept, and a batch."""

    def __init__(self, backbone: nn.Module, weight: Tensor, X: Tensor, Y: Tensor, ridge: float):
        self.backbone, self.weight, self.X, self.Y, self.ridge = backbone, weight, X, Y, ridge
        self.start = dict(backbone.named_parameters())

    def features(self, parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(self.backbone, parameters, (self.X,))

    def loss(self, weight: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        residual = self.Y - self.features(parameters) @ weight.T
        return residual.square().sum(1).mean()

    def solve(self, parameters: dict[str, Tensor]) -> Tensor:
        """The proximal update; gradients pass it unless its input is detached."""
        step = linalg.proximal_step(
            self.features(parameters),
            self.Y,
            self.weight,
            ridge=self.ridge,
            fit_intercept=False,
            solver="cholesky",
        )
        return step.weight

    def slopes(self, value: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(value, list(self.start.values()), retain_graph=True)
        return dict(zip(self.start, found, strict=True))

    def moved(self, slopes: dict[str, Tensor], rate: float) -> dict[str, Tensor]:
        return {name: (p - rate * slopes[name]).detach() for name, p in self.start.items()}

    def decreases(self, rates: tuple[float, ...]) -> Record:
        """By kind of step: what the rates are predicted to take off, and do."""
        weight = self.weight.clone().requires_grad_()
        before = self.loss(weight, self.start)
        slopes = self.slopes(before)
        (of_weight,) = torch.autograd.grad(before, weight, retain_graph=True)
        size = squares(slopes)
        through = self.solve(self.start)
        solved = through.detach()
        after = self.loss(solved, self.start)
        closed = self.slopes(after)
        whole = self.slopes(self.loss(through, self.start))  # W' moves with the backbone, too
        mixed = sum(float((whole[name] * slopes[name]).sum()) for name in slopes)
        by_solve = float((before - after).detach())
        by_rate = {
            "all layers": (0.0, size + float(of_weight.square().sum())),
            "last layer first": (by_solve, squares(closed)),
            "backbone first": (by_solve, mixed),
        }
        power = float(self.features(self.start).detach().square().mean())
        found: dict[str, Any] = {"penalty": self.ridge * power}
        for name, (at_once, first_order) in by_rate.items():
            measured = []
            for rate in rates:
                with torch.no_grad():
                    parameters = self.moved(closed if name == "last layer first" else slopes, rate)
                    if name == "all layers":
                        end = weight - rate * of_weight
                    else:
                        end = solved if name == "last layer first" else self.solve(parameters)
                    measured.append(float(before - self.loss(end, parameters)) - at_once)
            found[name] = {
                "solve": digits(at_once),
                "predicted": [digits(rate * first_order) for rate in rates],
                "measured": [digits(value) for value in measured],
            }
        return found


def digits(value: float) -> float:
    return float(f"{value:.7g}")


def squares(slopes: dict[str, Tensor]) -> float:
    return sum(float(slope.square().sum()) for slope in slopes.values())


def draws(_: None, place: Record) -> list[Record]:
    """Random points, each at all rates and at one rate of its own, for the sign of the gain."""
    rng = np.random.default_rng(place["seed"])
    found = []
    for index in range(place["draws"]):
        torch.manual_seed(10_000 * place["seed"] + index)
        inputs, width = int(rng.integers(2, 20)), int(2 ** rng.integers(3, 8))
        kind = (nn.Tanh, nn.ReLU, nn.SiLU)[rng.integers(3)]
        layers = [nn.Linear(inputs, width), kind()]
        if rng.random() < 0.5:
            layers += [nn.Linear(width, width), kind()]
        backbone, batch_size = nn.Sequential(*layers).double(), int(rng.choice(BATCHES))
        X = torch.randn(2, batch_size, inputs, dtype=torch.float64)
        noise = rng.uniform(0, 1) * torch.randn(2, batch_size, 1, dtype=torch.float64)
        Y = torch.sin(2 * X[..., :1]) + X[..., -1:] * X[..., :1] + noise
        ridge, rate = 10 ** rng.uniform(-3, 4), 10 ** rng.uniform(-4, -1)
        with torch.no_grad():  # fitted to another batch
            zero = torch.zeros(1, width, dtype=torch.float64)
            other = linalg.proximal_step(
                backbone(X[1]), Y[1], zero, ridge=1.0, fit_intercept=False, solver="cholesky"
            )
        point = Point(backbone, other.weight, X[0], Y[0], ridge)
        taken = point.decreases((*RATES, rate))
        found.append(
            {"index": index, "ridge": ridge, "rate": rate, "batch_size": batch_size} | taken
        )
    return found


def run(_: None, place: Record) -> list[Record]:
    """Last layer first, plain gradient steps of 0.02, ridge 10, batches of 32."""
    rate, ridge, batch_size, n = 0.02, 10.0, 32, 960
    X, y = make_friedman1(n, n_features=10, noise=0.5, random_state=place["seed"])
    X, Y = (torch.from_numpy((part - part.mean(0)) / part.std(0)) for part in (X, y[:, None]))
    torch.manual_seed(place["seed"])
    backbone = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()).double()
    weight = torch.zeros(1, 64, dtype=torch.float64)
    found, step = [], 0
    for _ in range(place["draws"] * batch_size // n + 1):
        for chosen in torch.randperm(n).split(batch_size):
            point = Point(backbone, weight, X[chosen], Y[chosen], ridge)
            if step and step % 4 == 0:
                taken = point.decreases((*RATES, rate))
                loss = float((Y - backbone(X) @ weight.T).square().mean().detach())
                own = {"index": step, "ridge": ridge, "rate": rate, "batch_size": batch_size}
                found.append(own | {"loss": loss} | taken)
            weight = point.solve(point.start).detach()
            slopes = point.slopes(point.loss(weight, point.start))
            with torch.no_grad():
                for name, parameter in backbone.named_parameters():
                    parameter -= rate * slopes[name]
            step += 1
    return found


# -- the stochastic update of the last layer -----------------------------------------------------


def update(_: None, place: Record) -> list[Record]:
    """Excess loss of one update and of many, over that of the best last layer for all rows."""
    rng = torch.Generator().manual_seed(place["seed"])
    n, many, small = 2000, place["draws"], place["draws"] < 100
    chains, steps = (10, 4) if small else (50, 400)
    X = torch.randn(n, 8, generator=rng, dtype=torch.float64)
    inner = torch.randn(8, FEATURES, generator=rng, dtype=torch.float64) / 8**0.5
    features = torch.tanh(X @ inner) + 0.2
    noise = torch.randn(n, 1, generator=rng, dtype=torch.float64)
    Y = torch.sin(2 * X[:, :1]) + X[:, 1:2] * X[:, 2:3] + (0.3 + 0.2 * X[:, :1].abs()) * noise
    second = features.T @ features / n
    best = torch.linalg.solve(second, features.T @ Y / n)
    values, vectors = torch.linalg.eigh(second)
    power = float(values.mean())
    least = float((Y - features @ best).square().mean())
    # A last layer that is off by as much as the best loss, evenly in all directions.
    off = vectors @ (
        torch.randn(FEATURES, 1, generator=rng, dtype=torch.float64) / values[:, None].sqrt()
    )
    before = best + off * (least / float((off * (second @ off)).sum())) ** 0.5
    found = []

    def excess(error: Tensor) -> float:
        return float((error * (second @ error)).sum((-2, -1)).mean()) / least

    def updated(weights: Tensor, batch_size: int, alpha: float) -> Tensor:
        chosen = torch.randint(n, (len(weights), batch_size), generator=rng)
        solver = linalg.primal_update if batch_size >= FEATURES else linalg.dual_update
        return solver(features[chosen], Y[chosen], weights, alpha)

    for batch_size in BATCHES[:1] if small else BATCHES:
        for ridge in RIDGES:
            alpha = ridge * power
            system = torch.linalg.inv(second + alpha * torch.eye(FEATURES, dtype=torch.float64))
            parts = [updated(before.mT.expand(many, 1, -1), batch_size, alpha)]
            after = parts[0].mT
            mean = after.mean(0)
            drift = alpha * system @ (before - best)
            residual = Y - features @ (best + drift)
            spread = torch.cov((features * residual).T, correction=0)
            predicted = float(torch.trace(second @ system @ spread @ system)) / batch_size / least
            weights = best.mT.expand(chains, 1, -1)
            settled = []
            for step in range(steps):
                weights = updated(weights, batch_size, alpha)
                if step >= steps // 2:
                    settled.append(excess(weights.mT - best))
            noise_of = torch.cov((features * (Y - features @ best)).T, correction=0)
            inner_noise = (vectors.T @ noise_of @ vectors).diagonal()
            found.append(
                {
                    "batch_size": batch_size,
                    "ridge": ridge,
                    "bias": excess(mean - best),
                    "variance": excess(after - mean),
                    "bias_predicted": excess(drift),
                    "variance_predicted": predicted,
                    "settled": float(np.mean(settled)),
                    "settled_predicted": float((inner_noise / (values + 2 * alpha)).sum())
                    / (batch_size * least),
                }
            )
    return found


PARTS: dict[str, Any] = {"draws": draws, "run": run, "update": update}


# -- report ---------------------------------------------------------------------------------------


def gains(records: list[Record], name: str, what: str, at: int = -1) -> np.ndarray:
    """Gain of the closed form over a step on all layers; the last rate is the record's own."""
    ours, theirs = ([record[kind] for record in records] for kind in (name, "all layers"))
    return np.array(
        [
            one["solve"] + one[what][at] - other[what][at]
            for one, other in zip(ours, theirs, strict=True)
        ]
    )


def report_steps(records: list[Record]) -> None:
    print("relative error of the first order, median and 95th percentile, by rate")
    print(f"{'':18s}" + "".join(f"{rate:>18g}" for rate in RATES))
    for name in STEPS:
        predicted, measured = (
            np.array([record[name][what][:-1] for record in records])
            for what in ("predicted", "measured")
        )
        errors = abs(predicted / measured - 1)
        parts = np.percentile(errors, [50, 95], axis=0).T
        print(f"{name:18s}" + "".join(f"{low:9.2%}{high:9.2%}" for low, high in parts))
    print("sign of the gain over all layers as predicted, share, by rate")
    for name in STEPS[1:]:
        signs = (
            np.sign([gains(records, name, what, at) for what in ("predicted", "measured")])
            for at in range(len(RATES))
        )
        print(f"{name:18s}" + "".join(f"{(one == other).mean():18.3f}" for one, other in signs))
    print("at the rate of each: share of draws")
    for name in STEPS[1:]:
        predicted, measured = (gains(records, name, what) for what in ("predicted", "measured"))
        right = (np.sign(predicted) == np.sign(measured)).mean()
        print(
            f"{name:18s} takes off more than all layers {(measured > 0).mean():.3f}, "
            f"predicted {(predicted > 0).mean():.3f}, sign as predicted {right:.3f}"
        )
        for low, high in ((0, 0.1), (0.1, 1), (1, np.inf)):
            # a step of rate η on W is about a solve with α = 1/(2η): who moves W further?
            chosen = [low <= 1 / (2 * r["rate"] * r["penalty"]) < high for r in records]
            if any(chosen):
                print(
                    f"{'':6s}1/(2 rate penalty) from {low:g} to {high:g}: "
                    f"{sum(chosen)} draws, more {(measured[chosen] > 0).mean():.3f}"
                )


def report(records: list[Record]) -> None:
    for part, title in (("draws", "Random points"), ("run", "Along a training run")):
        chosen = [record for record in records if record["part"] == part]
        if chosen:
            print(f"\n{title} ({len(chosen)}): what a step takes off the loss of its batch")
            report_steps(chosen)
    chosen = [record for record in records if record["part"] == "update"]
    if not chosen:
        return
    print("\nThe stochastic update: excess loss over the best, relative to the best loss")
    print("(measured / predicted for large batches; the last layer was off by 1)")
    print(f"{'batch':>6s}{'ridge':>9s}{'bias':>22s}{'variance':>24s}{'sum':>9s}{'settled at':>24s}")
    for r in chosen:
        if round(np.log10(r["ridge"]), 6) % 1:
            continue
        pairs = [(r[name], r[f"{name}_predicted"]) for name in ("bias", "variance", "settled")]
        bias, variance, settled = (f"{one:.4g} / {other:.4g}" for one, other in pairs)
        total = r["bias"] + r["variance"]
        print(
            f"{r['batch_size']:6d}{r['ridge']:9g}{bias:>22s}{variance:>24s}{total:9.4f}{settled:>24s}"
        )
    print("ridge with the least sum, by batch size: ", end="")
    best = {}
    for r in sorted(chosen, key=lambda r: r["bias"] + r["variance"], reverse=True):
        best[r["batch_size"]] = r["ridge"]
    print(", ".join(f"{size}: {best[size]:.2g}" for size in sorted(best)))


def draw(records: list[Record], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.8), layout="constrained")
    points = [record for record in records if record["part"] == "draws"]
    predicted, measured = (gains(points, STEPS[1], what) for what in ("predicted", "measured"))
    left.plot(predicted, measured, ".", ms=3, alpha=0.5)
    for axis in ("x", "y"):
        getattr(left, f"set_{axis}scale")("symlog", linthresh=1e-4)
        getattr(left, f"set_{axis}ticks")([-100, -1, -0.01, 0, 0.01, 1, 100])
    ends = left.get_xlim()
    left.plot(ends, ends, "k:", lw=1)
    left.set(xlabel="predicted", ylabel="measured", title="Gain of one step over all layers")
    left.set(ylim=ends)
    updates = [record for record in records if record["part"] == "update"]
    for index, size in enumerate(BATCHES):
        rows = [record for record in updates if record["batch_size"] == size]
        ridges, color = [record["ridge"] for record in rows], f"C{index}"
        total = [record["bias"] + record["variance"] for record in rows]
        middle.loglog(ridges, total, "o", ms=3, color=color, label=f"batch {size}")
        expected = [r["bias_predicted"] + r["variance_predicted"] for r in rows]
        middle.loglog(ridges, expected, color=color, lw=1)
        right.loglog(ridges, [r["settled"] for r in rows], "o", ms=3, color=color)
        right.loglog(ridges, [r["settled_predicted"] for r in rows], color=color, lw=1)
    middle.loglog(ridges, [r["bias_predicted"] for r in rows], "k:", lw=1, label="bias")
    middle.plot([], [], "k", lw=1, label="predicted")
    middle.set(title="Excess loss after one update", xlabel="ridge", ylim=(1e-3, 30))
    right.set(title="Where repeated updates settle", xlabel="ridge", ylim=(1e-6, 30))
    middle.set_ylabel("excess / best loss; dots: measured")
    middle.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main(arguments: list[str] | None = None) -> None:
    picture = {"type": Path, "help": "file of the picture"}
    bench = Bench(__doc__, "one_step", arguments, seeds=1, picture=picture)
    places = [
        ({"seed": seed, "draws": 20 if bench.small else 1000}, lambda: None)
        for seed in range(bench.options.seeds)
    ]
    bench.run(places, PARTS, ("seed", "draws", "part"))
    print_origin(bench.records)
    report(bench.records)
    if bench.options.picture:
        draw(bench.records, bench.options.picture)


if __name__ == "__main__":
    main()
