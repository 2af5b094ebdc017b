"""Coverage of the average effect: intervals and confidence sets on designs whose effect is known.

    python benchmarks/instruments_effect.py --seeds 50
    python benchmarks/instruments_effect.py --tasks curved weak --sizes 500 --seeds 500
    python benchmarks/instruments_effect.py --models doubleml --seeds 50
    python benchmarks/instruments_effect.py --report

Designs, all with an effect of 0.5 and five normal controls, of which four matter:

- ``curved``: outcome, treatment and instrument depend on squares, sines, cosines and products of
  the controls; a square is shared by outcome and instrument, so that linear controls are not
  enough. The errors of outcome and treatment are correlated by 0.5, those of the outcome vary in
  size.
- ``clustered``: the same with clusters of 20 rows, which share a fifth of each variance.
- ``weak``: one instrument with an F of about 5, errors correlated by 0.9, the same controls.
- ``weak_three``: three such instruments.

Methods: ``effect`` is ``effect_`` of CFLLIVRegressor, ``median`` the same splits with the median of
their estimates in the place of averaged predictions, ``linear`` two-stage least squares with linear
controls (linearmodels), ``doubleml`` PLIV of DoubleML with forests (100 trees of depth 5, five
folds), ``oracle`` two-stage least squares with the true dependence on the controls taken off. The
networks of the controls were chosen on seeds below 100, which are not reported.
Needs ``pip install linearmodels ivmodels doubleml``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np
from harness import Bench, Place, Record, print_origin
from measures import stopwatch
from scipy import stats
from sklearn.utils import Bunch

from sklearn_cfll.instruments.effect import LEVEL, REPEATS, report, residuals
from sklearn_cfll.instruments.partially_linear import cross_fitted_predictions, two_stage_effect

EFFECT = 0.5
CELLS = (
    {"design": "curved", "n": 500},
    {"design": "weak", "n": 500},
    {"design": "clustered", "n": 600, "n_clusters": 30},
    {"design": "weak_three", "n": 500},
    {"design": "clustered", "n": 1200, "n_clusters": 60},
    {"design": "curved", "n": 2000},
)
KEY = ("design", "n", "seed", "method")
FIRST_SEED = 100
WEAK_MEAN = 4.0  # of the noncentrality of a weak instrument: an F of about 5


def make(design: str, n: int, n_clusters: int | None, seed: int) -> Bunch:
    """A sample, and what its columns are on average given the controls."""
    rng = np.random.default_rng([seed, n, *map(ord, design)])
    C = rng.normal(size=(n, 5))
    outcome = np.sin(2 * C[:, 0]) + 0.5 * C[:, 1] ** 2
    treatment = np.cos(C[:, 0]) + 0.5 * C[:, 1] * C[:, 2]
    instrument = 0.5 * C[:, 1] ** 2
    groups = None if n_clusters is None else np.arange(n) % n_clusters

    def noise() -> np.ndarray:
        own = rng.normal(size=n)
        if groups is None:
            return own
        return np.sqrt(0.8) * own + np.sqrt(0.2) * rng.normal(size=n_clusters)[groups]

    q = 3 if design == "weak_three" else 1
    pure = np.column_stack([noise() for _ in range(q)])
    hidden, of_x, of_y = noise(), noise(), noise()
    if design.startswith("weak"):
        of_x, of_y, slope = of_x / 3, of_y / 3, np.sqrt(WEAK_MEAN * (1 + 1 / 9) / n)
    else:
        of_y, slope = of_y * np.sqrt(0.5 + 0.5 * C[:, 3] ** 2), 1.0
    Z = instrument[:, None] + pure
    x = treatment + slope * Z.sum(1) + hidden + of_x
    y = EFFECT * x + outcome + hidden + of_y
    mean_x = treatment + slope * q * instrument
    known = np.column_stack(
        [EFFECT * mean_x + outcome, mean_x, np.repeat(instrument[:, None], q, axis=1)]
    )
    return Bunch(y=y, X=x[:, None], Z=Z, C=C, groups=groups, known=known)


def columns(data: Bunch) -> np.ndarray:
    return np.column_stack([data.y, data.X, data.Z])


def contains(found: list[np.ndarray] | None) -> bool | None:
    """Whether a confidence set contains the effect."""
    return None if found is None else bool(((found[0] <= EFFECT) == [True, False]).all(1).any())


def record(found: dict) -> Record:
    """Estimate, error and whether intervals and sets contain the effect."""
    estimate, error = float(found["estimate"][0]), float(found["std_error"][0])
    result = {
        "estimate": estimate,
        "std_error": error,
        "covers": bool(found["interval"][0, 0] <= EFFECT <= found["interval"][0, 1]),
        "first_stage_f": float(found["first_stage_f"][0]),
        "anderson_rubin": contains(found["anderson_rubin"]),
        "unbounded": bool(np.isinf(found["anderson_rubin"][0]).any()),
        "likelihood_ratio": contains(found["conditional_likelihood_ratio"]),
    }
    if found["tf_std_error"] is not None:
        reach = stats.norm.ppf(0.5 + LEVEL / 2) * found["tf_std_error"][0]
        result["tf"] = bool(abs(estimate - EFFECT) <= reach)
    return result


def effect(data: Bunch, place: Record) -> list[Record]:
    """The package's effect, and the median of its splits."""
    with stopwatch() as taken:
        told = cross_fitted_predictions(
            columns(data), data.C, groups=data.groups, n_repeats=REPEATS, seed=place["seed"]
        )
        rows = residuals(columns(data) - told.mean(0), 1, None, data.groups)
        found = record(report(rows)) | {"nuisance_error": nuisance_error(told.mean(0), data)}
    found["seconds"] = round(taken["cpu_seconds"], 3)
    single = [
        two_stage_effect(residuals(columns(data) - each, 1, None, data.groups)) for each in told
    ]
    estimates = np.array([each.estimate[0] for each in single])
    middle = float(np.median(estimates))
    variance = np.median(
        [each.covariance[0, 0] + (each.estimate[0] - middle) ** 2 for each in single]
    )
    error = float(np.sqrt(variance))
    reach = stats.t.ppf(0.5 + LEVEL / 2, single[0].df) * error
    median = {
        "method": "median",
        "estimate": middle,
        "std_error": error,
        "covers": bool(abs(middle - EFFECT) <= reach),
        "nuisance_error": nuisance_error(told[0], data),
    }
    return [found, median]


def nuisance_error(told: np.ndarray, data: Bunch) -> list[float]:
    """Mean squared errors of the predicted outcome, treatment and instruments."""
    return np.square(told - data.known).mean(0).round(5).tolist()


def oracle(data: Bunch, place: Record) -> Record:
    return record(report(residuals(columns(data) - data.known, 1, None, data.groups)))


def linear(data: Bunch, place: Record) -> Record:
    """Two-stage least squares with linear controls."""
    from linearmodels.iv import IV2SLS

    kind = {"cov_type": "robust"}
    if data.groups is not None:
        kind = {"cov_type": "clustered", "clusters": data.groups}
    controls = np.column_stack([np.ones(len(data.y)), data.C])
    fit = IV2SLS(data.y, controls, data.X, data.Z).fit(debiased=True, **kind)
    estimate, error = float(fit.params.iloc[-1]), float(fit.std_errors.iloc[-1])
    return {
        "estimate": estimate,
        "std_error": error,
        "covers": bool(abs(estimate - EFFECT) <= 1.96 * error),
    }


def doubleml(data: Bunch, place: Record) -> Record | None:
    """DoubleML's PLIV with forests and its own interval; clusters are left out."""
    import doubleml as dml
    from sklearn.ensemble import RandomForestRegressor

    if data.groups is not None or data.Z.shape[1] > 1:
        return None

    def forest() -> RandomForestRegressor:
        return RandomForestRegressor(
            100, max_depth=5, min_samples_leaf=2, random_state=place["seed"]
        )

    np.random.seed(place["seed"])  # noqa: NPY002  it draws its folds from the global state
    with stopwatch() as taken:
        rows = dml.DoubleMLData.from_arrays(data.C, data.y, data.X[:, 0], data.Z[:, 0])
        model = dml.DoubleMLPLIV(rows, forest(), forest(), forest(), n_folds=5)
        model.fit()
    estimate, error = float(model.coef[0]), float(model.se[0])
    return {
        "estimate": estimate,
        "std_error": error,
        "covers": bool(abs(estimate - EFFECT) <= 1.96 * error),
        "seconds": round(taken["cpu_seconds"], 3),
    }


METHODS = {"effect": effect, "linear": linear, "oracle": oracle, "doubleml": doubleml}
SHOWN = ("effect", "median", "doubleml", "linear", "oracle")


def tasks(designs: list[str], sizes: list[int], n_seeds: int) -> Iterator[Place]:
    """Seeds outside: what is stored is balanced."""
    for seed in range(FIRST_SEED, FIRST_SEED + n_seeds):
        for cell in CELLS:
            if cell["design"] in designs and cell["n"] in sizes:
                design, n, clusters = cell["design"], cell["n"], cell.get("n_clusters")
                yield cell | {"seed": seed}, partial(make, design, n, clusters, seed)


def print_cell(cell: dict, records: list[Record]) -> None:
    """One line per method: bias, spread, errors and coverage."""
    print(f"\n{', '.join(f'{name} {value}' for name, value in cell.items())}")
    print(
        f"{'':10s}{'draws':>6s}{'bias':>8s}{'spread':>8s}{'median se':>10s}{'interval':>10s}"
        f"{'AR':>7s}{'CLR':>7s}{'tF':>7s}{'AR unbounded':>14s}{'median F':>10s}{'seconds':>9s}"
    )
    by_method = defaultdict(list)
    for each in records:
        by_method[each["method"]].append(each)
    for method in SHOWN:
        runs = by_method.get(method, [])
        if not runs:
            continue

        def share(name: str, runs: list[Record] = runs) -> str:
            known = [run[name] for run in runs if run.get(name) is not None]
            return f"{100 * np.mean(known):.1f}%" if known else "-"

        def middle(name: str, digits: int, runs: list[Record] = runs) -> str:
            known = [run[name] for run in runs if run.get(name) is not None]
            return f"{np.median(known):.{digits}f}" if known else "-"

        estimates = np.array([run["estimate"] for run in runs])
        if cell["design"].startswith("weak"):  # moments do not exist
            bias = np.median(estimates) - EFFECT
            spread = np.subtract(*np.percentile(estimates, [75, 25])) / 1.349
        else:
            bias, spread = estimates.mean() - EFFECT, estimates.std(ddof=min(1, len(runs) - 1))
        print(
            f"{method:10s}{len(runs):6d}{bias:8.3f}{spread:8.3f}{middle('std_error', 3):>10s}"
            f"{share('covers'):>10s}{share('anderson_rubin'):>7s}{share('likelihood_ratio'):>7s}"
            f"{share('tf'):>7s}{share('unbounded'):>14s}{middle('first_stage_f', 1):>10s}"
            f"{middle('seconds', 2):>9s}"
        )


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["curved"], "models": ["linear", "oracle"]}
    sizes = {"nargs": "+", "type": int, "help": "only these numbers of rows"}
    bench = Bench(__doc__, "instruments_effect", arguments, seeds=50, smallest=small, sizes=sizes)
    designs = bench.options.tasks or sorted({cell["design"] for cell in CELLS})
    chosen = bench.options.sizes or sorted({cell["n"] for cell in CELLS})
    bench.run(tasks(designs, chosen, bench.options.seeds), METHODS, KEY)
    print_origin(bench.records)
    print(
        "\nBias and spread (standard deviation) of the estimate; for weak designs of its median "
        "and quartiles.\nShares of draws whose 95% interval or set contains the effect: t interval,"
        "\nAnderson-Rubin (AR), conditional likelihood ratio (CLR), t interval with tF errors."
    )
    for cell in CELLS:
        found = [r for r in bench.records if all(r.get(k) == v for k, v in cell.items())]
        if found:
            print_cell(cell, found)


if __name__ == "__main__":
    main()
