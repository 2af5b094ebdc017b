"""Coverage of the 90% band of the structural function, averaged over the points of a grid.

    python benchmarks/instruments_band.py --seeds 50
    python benchmarks/instruments_band.py --tasks log cosine quadratic --seeds 12
    python benchmarks/instruments_band.py --models npiv --seeds 50
    python benchmarks/instruments_band.py --report

1,000 rows, all defaults but ``diagnose=False``, which saves time. ``abs``, ``sine``, ``step`` and
``line`` are the curves of ``instruments.py``, ``demand`` its demand design (rho 0.5), ``binary`` a
binary treatment whose effect depends on two controls. ``band`` is ``predict_interval``, ``fold
jackknife`` the variance of the estimate alone, ``npiv`` the band of pynpiv (Chen, Christensen and
Kankanala), given the instrument that matters: it takes one instrument and no controls, and its
band is meant to hold at all points at once, so that it should cover more; ``npiv pointwise`` is
1.645 times its standard errors.

The prior of the band was chosen on the curves of the second block (``log`` to ``jump``) with other
seeds: of those with a coverage of about 90% or more on each, the one with the narrowest bands.

Other constructions, from the same fits: ``cubic below`` is the posterior with a cubic polynomial in
the place of the prior's line, and shorter lengths; ``most likely`` has the curve's posterior at the
most likely prior in the place of an average, ``half a line`` half of the prior's mass on a straight
line, ``distance`` the distance between the estimate and the posterior's mean in the place of the
posterior's deviation. A Gaussian kernel, and quantiles in the place of deviations, hardly differed.
``sup-t`` is the band that is meant to hold at all points at once; ``whole`` is the share of draws
in which a band contains all points.

``t of the shape`` is the statistic of the true curve beside a free line, and that of the same curve
in samples of a line: what a test could know at best, if it were told shape and place of the curve.

Half-width and error (root mean square) are relative to the standard deviation of the truth.
Needs the modules of ``pip install --no-deps pynpiv`` on the path for npiv, and patsy.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from harness import Bench, Record, print_origin
from measures import stopwatch
from sklearn.utils import Bunch
from tasks import Where

from instruments import CURVES, FIRST_SEED, NORMAL_90, make, make_curve
from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.estimator.targets import TargetScale
from sklearn_cfll.instruments.curve_posterior import (
    AMPLITUDES,
    LENGTHS,
    CurveMoments,
    curve_moments,
    curve_prior,
    functions,
)
from sklearn_cfll.instruments.data import check_instrument_data, fold_labels
from sklearn_cfll.instruments.fitted import FittedInstruments
from sklearn_cfll.instruments.run import fit_instruments

N = 1000
REPORTED = {"abs": "abs", "sine": "sin", "step": "step", "line": "linear"}
DEVELOPMENT = {
    "log": lambda x: np.sign(x) * np.log1p(2 * np.abs(x)),
    "cosine": np.cos,
    "quadratic": lambda x: x**2 / 3,
    "ramp": lambda x: 1.5 * np.clip(x, -0.7, 0.7),
    "affine": lambda x: -0.7 * x,
    "hump": lambda x: 2 * np.exp(-(x**2)),
    "cubic": lambda x: (x / 2) ** 3 - x / 3,
    "jump": lambda x: np.where(x < 1, 0.0, 1.0),
}
STRAIGHT = ("line", "affine")
CUBIC = [*itertools.product((0.03, 0.1, 0.3), (0.5, 0.8), (0.05, 0.2, 0.8))]
TASKS = (*REPORTED, "demand", "binary")
MODELS = ("band", "npiv")


def make_binary(n: int, seed: int) -> Bunch:
    """An encouragement to take a treatment whose effect depends on the controls."""
    rng = np.random.default_rng(seed)

    def truth(x: np.ndarray, C: np.ndarray) -> np.ndarray:
        effect = 1 + np.sin(C[:, 1]) + 0.5 * C[:, 0]
        return x * effect + np.cos(C[:, 0]) + 0.5 * C[:, 1]

    C, others = rng.normal(size=(2, n, 2))
    Z = rng.integers(0, 2, n)
    hidden, noise = rng.normal(size=(2, n))
    x = (0.5 * C[:, 0] + 2 * (Z - 0.5) + hidden > 0).astype(float)
    y = truth(x, C) + hidden + 0.5 * noise
    both, others = np.repeat([0.0, 1.0], n), np.vstack([others, others])
    grid = Bunch(X=both[:, None], C=others, y=truth(both, others))
    return Bunch(X=x[:, None], y=y, Z=Z[:, None].astype(float), C=C, grid=grid)


def load(task: str, seed: int, where: Where) -> Bunch:
    if task in DEVELOPMENT:
        CURVES.setdefault(task, DEVELOPMENT[task])
        return make_curve(task, N, seed)
    seed += FIRST_SEED + 100
    if task == "binary":
        return make_binary(N, seed)
    if task == "demand":
        return make(task, {"n": N, "rho": 0.5, "noise_scale": 158.0, "strength": 1.0}, seed)
    return make_curve(REPORTED[task], N, seed)


def record(grid: Bunch, middle: np.ndarray, reach: np.ndarray) -> Record:
    """Share of the grid inside ``middle ± reach``, and sizes relative to the truth's spread."""
    spread, away = np.std(grid.y), np.abs(middle - grid.y)
    return {
        "whole": bool(np.all(away <= reach)),
        "coverage": float(np.mean(away <= reach)),
        "half_width": float(np.mean(reach) / spread),
        "error": float(np.sqrt(np.mean(away**2)) / spread),
    }


def band(data: Bunch, place: Record) -> list[Record]:
    """Our band, the part of it that the jackknife over folds measures, and other constructions."""
    grid = data.grid
    model = CFLLIVRegressor(random_state=place["seed"], diagnose=False)
    with stopwatch() as taken:
        checked = check_instrument_data(model, data.X, data.y, data.Z, data.C, None)
        fitted = fit_instruments(model, checked, None)  # what `fit` keeps
    rows = fitted.plan.rows(grid.X, None, grid.C)
    unit = fitted.scale.scale[0]
    middle, jackknife = fitted.predict(rows), unit * np.sqrt(fitted.models.variance(rows).numpy())
    deviation = fitted.deviation(rows)
    found = [
        record(grid, middle, NORMAL_90 * deviation)
        | {"seconds": round(taken["cpu_seconds"], 2), "line": linear_share(fitted)},
        record(grid, middle, NORMAL_90 * jackknife) | {"model": "fold jackknife"},
        record(grid, middle, fitted.sup_t(rows, 0.9) * deviation) | {"model": "sup-t"},
    ]
    if data.C is not None:  # the jackknife is the wider part
        return found
    labels, _ = fold_labels(checked, model.n_folds, model.n_repeats, fitted.plan.seed)
    outcome = fitted.scale.transform(checked.y[:, None])
    own = fitted.plan.rows(checked.X, checked.Z, checked.C, outcome)
    moments = curve_moments(fitted.models, own, torch.as_tensor(labels), None, None)
    basis = functions(rows.treatment.numpy().astype(float), moments.knots)
    apart = (middle - fitted.scale.mean[0]) / unit
    for name, reach in others(moments, basis, apart).items():
        found.append(record(grid, middle, np.maximum(unit * reach, NORMAL_90 * jackknife)))
        found[-1]["model"] = name
    found[0]["shape_t"] = shape_t(moments, fitted.plan.scales["treatment_backbone"], place["task"])
    return found


def linear_share(fitted: FittedInstruments) -> float:
    """Share of the linear fit in the prediction."""
    return round(float(np.mean([float(fold[-1].share) for fold in fitted.models.folds])), 3)


def others(moments: CurveMoments, basis: np.ndarray, middle: np.ndarray) -> dict[str, np.ndarray]:
    """Half-widths of other bands of the curve's posterior, over the outcome's unit."""
    knots = moments.knots
    pairs = itertools.product(LENGTHS, AMPLITUDES)
    known = posteriors(moments, basis, [curve_prior(knots, *pair) for pair in pairs])
    likelihood, means, variances = known
    line = posteriors(moments, basis, [curve_prior(knots, 1.0, 0.0)])
    cubic = posteriors(moments, basis, [cubic_prior(knots, *sizes) for sizes in CUBIC])
    both = [np.concatenate(pair) for pair in zip(known, line, strict=True)]
    both[0][:-1] -= np.log(len(likelihood))
    return {
        "cubic below": NORMAL_90 * np.sqrt(mixed(*cubic)),
        "most likely": NORMAL_90 * np.sqrt(variances[likelihood.argmax()]),
        "half a line": NORMAL_90 * np.sqrt(mixed(*both)),
        "distance": NORMAL_90 * np.abs(shares(likelihood) @ means - middle),
    }


def cubic_prior(
    knots: list[np.ndarray], square: float, length: float, amplitude: float
) -> np.ndarray:
    """That of the package, with a square and a cube in standard deviations of the treatment."""
    prior, x = curve_prior(knots, length, amplitude), knots[0]
    for power, scale in ((x**2, square), (x**3, square / 2)):
        prior[1:, 1:] += scale**2 * np.outer(power, power)
    return prior


def shape_t(moments: CurveMoments, scale: TargetScale, task: str) -> dict[str, float]:
    """Statistics of curves of this shape, with a free line beside them, by task."""
    knots = moments.knots[0]
    x = knots * scale.scale[0] + scale.mean[0]
    line = np.column_stack([np.r_[1.0, 0.0 * knots], np.r_[0.0, knots]])
    basis = np.linalg.qr(moments.slopes @ line)[0]
    found = {}
    curves = {name: CURVES[curve] for name, curve in REPORTED.items()} | DEVELOPMENT
    for name, curve in curves.items():
        direction = moments.slopes @ np.r_[0.0, curve(x)]
        direction -= basis @ (basis.T @ direction)
        length = np.linalg.norm(direction)
        if length > 1e-9 and (task in STRAIGHT or name == task):
            found[name] = float(direction @ moments.moment / length)
    return found


def shares(likelihood: np.ndarray) -> np.ndarray:
    """Weights in proportion to likelihoods, given their logarithms."""
    weight = np.exp(likelihood - likelihood.max())
    return weight / weight.sum()


def posteriors(
    moments: CurveMoments, basis: np.ndarray, priors: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Log likelihood, mean and variance at the grid, for each prior."""
    slopes, moment, _ = moments
    results = []
    for prior in priors:
        cross = slopes @ prior
        total = np.eye(len(moment)) + cross @ slopes.T
        solved = np.linalg.solve(total, np.column_stack([moment, cross]))
        likelihood = -0.5 * (np.linalg.slogdet(total)[1] + moment @ solved[:, 0])
        covariance = prior - cross.T @ solved[:, 1:]
        variance = ((basis @ covariance) * basis).sum(1).clip(1e-12)
        results.append((likelihood, basis @ (cross.T @ solved[:, 0]), variance))
    return tuple(np.array(part) for part in zip(*results, strict=True))


def mixed(likelihood: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Variance of a mixture."""
    weight = shares(likelihood)
    return weight @ variances + weight @ np.square(means - weight @ means)


def npiv(data: Bunch, place: Record) -> list[Record] | None:
    """The bands of pynpiv, uniform and pointwise."""
    if data.C is not None:
        return None
    from npiv import npiv as estimate

    np.random.seed(place["seed"])  # noqa: NPY002 (it draws from the global stream)
    grid = data.grid
    inside = grid.X.clip(data.X.min(), data.X.max())  # it gives NaN beyond
    with stopwatch() as taken:
        found = estimate(
            data.y, data.X, data.Z[:, :1], X_eval=inside, alpha=0.1, knots="quantiles",
            progress=False, ucb_deriv=False,
        )  # fmt: skip
    uniform = (found["h_upper"] - found["h_lower"]) / 2
    return [
        record(grid, found["h"], uniform) | {"seconds": round(taken["cpu_seconds"], 2)},
        record(grid, found["h"], NORMAL_90 * found["asy_se"]) | {"model": "npiv pointwise"},
    ]


def report(records: list[Record]) -> None:
    print_origin(records)
    table: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for each in records:
        table[each["task"]][each["model"]].append(each)
    for title, tasks in (("Reported", TASKS), ("Development", DEVELOPMENT)):
        if not any(task in table for task in tasks):
            continue
        print(f"\n{title}")
        head = f"{'':12s}{'':16s}{'draws':>6s}{'coverage':>10s}{'quartiles':>14s}"
        print(head + f"{'half-width':>12s}{'error':>8s}{'whole':>7s}{'seconds':>9s}")
        for task in tasks:
            for model, runs in table[task].items():
                shares = [run["coverage"] for run in runs]
                low, high = np.quantile(shares, [0.25, 0.75])
                middle = partial(lambda runs, name: np.median([run[name] for run in runs]), runs)
                line = f"{task:12s}{model:16s}{len(runs):6d}{np.mean(shares):10.3f}"
                line += f"{low:7.2f}{high:7.2f}{middle('half_width'):12.3f}{middle('error'):8.3f}"
                whole = [run["whole"] for run in runs if "whole" in run]
                line += f"{np.mean(whole):7.2f}" if whole else " " * 7
                print(line + (f"{middle('seconds'):9.1f}" if "seconds" in runs[0] else ""))
    print()
    print_shapes(table)


def print_shapes(table: dict[str, dict[str, list[Record]]]) -> None:
    """How well the samples tell curves from a line."""
    for straight, tasks in (("line", REPORTED), ("affine", DEVELOPMENT)):
        null = [run["shape_t"] for run in table[straight]["band"]]
        for task in tasks:
            own = np.array(
                [run["shape_t"][task] for run in table[task]["band"] if task != straight]
            )
            if not (null and len(own)):
                continue
            of_line = np.array([each[task] for each in null])
            larger = np.mean(np.abs(own)[:, None] > np.abs(of_line))
            print(
                f"{task:12s}t of the shape: mean {own.mean():.1f}, in samples of a line "
                f"{of_line.mean():.1f}; larger in {100 * larger:.0f}% of pairs"
            )


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["line"], "models": ["band"]}
    bench = Bench(__doc__, "instruments_band", arguments, seeds=50, smallest=small)
    models = {"band": band, "npiv": npiv}
    bench.run(bench.grid(TASKS, load), models, ("task", "seed", "model"))
    report(bench.records)


if __name__ == "__main__":
    main()
