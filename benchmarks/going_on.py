"""Going on after a fit: what more rows of the same distribution do to the score.

A model is fitted, then sees 1, 10 or 100 more rows by ``partial_fit``, 100 one by one, the
training rows once more, ten more by a warm ``fit`` or 100 by ``adapt``. Printed is the change of
its score on test rows (R², accuracy): mean and worst of ten seeds. MLPRegressor and
MLPClassifier, on standardised columns, beside it.

Below: streams from nothing, a row at a time and in chunks, beside SGDRegressor and MLPRegressor
with columns standardised by the first rows.

    python benchmarks/going_on.py [--data DIR]    # six minutes; concrete is in DIR
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Bench, Record, means, print_origin, print_table
from models import REGRESSORS, ours
from sklearn.base import is_classifier
from sklearn.datasets import load_digits, load_iris, make_friedman1
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler
from tasks import Where

from sklearn_cfll import CFLLClassifier, CFLLRegressor

STEPS = ("1", "10", "100", "100 one by one", "training rows", "warm fit, 10", "adapt, 100")
OF_PEERS = STEPS[:5]  # MLP's warm fits want every class, and it has no adapt
KINDS: dict[str, tuple[type, type]] = {  # of regression, of classification
    "CFLL": (CFLLRegressor, CFLLClassifier),
    "MLP": (MLPRegressor, MLPClassifier),
}
# All rows, how many to fit, and whether the target is a class.
TASKS: dict[str, tuple[Callable[[Where], tuple[np.ndarray, np.ndarray]], int, bool]] = {
    "friedman1": (lambda where: make_friedman1(2500, 6, noise=0.5, random_state=0), 300, False),
    "concrete": (lambda where: tuple(where.stored("concrete")[name] for name in "Xy"), 500, False),
    "iris": (lambda where: load_iris(return_X_y=True), 75, True),
    "digits": (lambda where: load_digits(return_X_y=True), 1000, True),
}
STREAMS = {"1 of 500": (1, 500), "10 of 500": (10, 500), "100 of 2000": (100, 2000)}
STREAMS["2000 of 2000"] = (2000, 2000)
STREAMING = {
    "CFLLRegressor": ours(),
    "statistics": ours(memory="statistics"),
    "SGDRegressor": REGRESSORS["SGD as it comes"],
    "MLPRegressor": REGRESSORS["MLP as it comes"],
}


def go_on(model: Any, step: str, X: np.ndarray, y: np.ndarray, n: int, n_more: int) -> Any:
    """A copy of the fitted model after one of ``STEPS``."""
    model = copy.deepcopy(model)
    more, y_more = X[n : n + n_more], y[n : n + n_more]
    if step == "100 one by one":
        for i in range(n_more):
            model.partial_fit(more[i : i + 1], y_more[i : i + 1])
        return model
    if step == "training rows":
        return model.partial_fit(X[:n], y[:n])
    if step.startswith("warm"):
        classes = np.unique(y) if is_classifier(model) else []
        first = [int(np.flatnonzero(y_more == c)[0]) for c in classes]
        rows = [*first, *(i for i in range(n_more) if i not in first)][: max(10, len(first))]
        model.set_params(warm_start=True)
        return model.fit(more[rows], y_more[rows])
    if step.startswith("adapt"):
        return model.adapt(more, y_more)
    return model.partial_fit(more[: int(step)], y_more[: int(step)])


def changes(task: tuple[np.ndarray, np.ndarray], place: Record) -> list[Record]:
    """A record for each step: the score after it, less the score after the fit."""
    X, y = task
    _, n, of_classes = TASKS[place["task"]]
    kind, seed = KINDS[place["model"]][of_classes], place["seed"]
    order = np.random.default_rng(seed).permutation(len(X))
    X, y = X[order], y[order]
    if place["model"] == "MLP":
        X = StandardScaler().fit(X[:n]).transform(X)
    n_more = min(100, (len(X) - n) // 3)
    test = slice(n + n_more, None)
    model = kind(random_state=seed).fit(X[:n], y[:n])
    score = model.score(X[test], y[test])
    found = [{"step": "fit", "score": score}]
    for step in STEPS if place["model"] == "CFLL" else OF_PEERS:
        after = go_on(model, step, X, y, n, n_more).score(X[test], y[test])
        found.append({"step": step, "change": after - score})
    return found


def stream(task: None, place: Record) -> Record:
    """R² on 1,000 rows after a stream of friedman1 in chunks."""
    (chunk, n), seed = STREAMS[place["task"]], place["seed"]
    X, y = make_friedman1(n + 1000, 10, noise=0.5, random_state=seed)
    model = STREAMING[place["model"]](seed)
    if not isinstance(model, CFLLRegressor):
        X = StandardScaler().fit(X[: max(100, chunk)]).transform(X)
    for start in range(0, n, chunk):
        model.partial_fit(X[start : start + chunk], y[start : start + chunk])
    return {"score": model.score(X[n:], y[n:])}


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["iris"], "models": ["CFLL", "SGDRegressor"]}
    bench = Bench(__doc__, "going_on", arguments, seeds=10, smallest=small)
    key = ("part", "task", "seed", "model")
    tasks = bench.grid(TASKS, lambda name, seed, where: TASKS[name][0](where), part="changes")
    bench.run(tasks, dict.fromkeys(KINDS, changes), key)
    bench.options.seeds = min(3, bench.options.seeds)
    bench.options.tasks = None
    streams = ["2000 of 2000"] if bench.small else STREAMS
    tasks = bench.grid(streams, lambda *place: None, part="streams")
    bench.run(tasks, dict.fromkeys(STREAMING, stream), key)
    print_origin(bench.records)
    after = [record for record in bench.records if "change" in record]
    fits = [record for record in bench.records if record.get("step") == "fit"]
    print_table("Score after the fit", means(fits, "score"))
    for how in ("mean", "min"):
        table = means(after, "change", ("task", "model"), "step", how)
        print_table(f"Change of the score, {how} of the seeds", table, "+.4f")
    streamed = [record for record in bench.records if record["part"] == "streams"]
    print_table("R² after a stream in chunks", means(streamed, "score"), ".3f")


if __name__ == "__main__":
    main()
