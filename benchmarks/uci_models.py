"""What `uci.py` compares: each model is ``run(X, y, X_test, seed)`` and gives its predictions.

All choices are made inside the training rows (X, y). "Protocol" models have one hidden layer of
50 ReLU units and a fixed number of epochs; the others are at their defaults.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from common import Task, mean_squared_error, raw_loop, scaler
from scipy.stats import norm
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.training.schedules import one_cycle

WIDTH = 50
MEMBERS = 5
COVERAGE = 0.9
GP_ROWS = 2000
LARGE = 2000  # training rows

# Chosen inside training sets, a fifth of their rows held out and predicted, mostly by single
# networks of one or two seeds on one to three splits; `uci.py --search` compares the main
# alternatives anew. One-cycle beat cosine on five sets of six (not wine). At 400 epochs a weight
# decay of 0.3 beat 0 and 0.1 on yacht, concrete and wine (one split) and was level on energy; AdamW
# decays by its product with the rate, so the rates below vary it too. Batches of 64 beat 256 on
# yacht at 400 epochs; "backbone_first" beat the default on kin8nm and lost on power-plant.
SETTINGS: dict[int, dict[str, Any]] = {
    40: {"learning_rate_schedule": "one_cycle", "weight_decay": 0.0},
    400: {"learning_rate_schedule": "one_cycle", "weight_decay": 0.3},
}
# Tried inside each training set; its held-out rows choose.
Candidates = dict[str, tuple[Any, ...]]
CANDIDATES: dict[int, Candidates] = {
    40: {
        "learning_rate": (0.03, 0.1),
        "ridge": (0.6, 5.0),
        "update_order": ("last_layer_first", "backbone_first"),
    },
    400: {"learning_rate": (0.03, 0.1), "ridge": (0.6, 5.0)},
}
# (settings, candidates) that `--search` compares.
SEARCHED: dict[int, list[tuple[dict[str, Any], Candidates]]] = {
    40: [
        (SETTINGS[40], CANDIDATES[40]),
        (SETTINGS[40], {"learning_rate": (0.03, 0.1), "ridge": (0.6, 5.0)}),
        (SETTINGS[40], {"learning_rate": (0.03, 0.06, 0.1), "ridge": (2.0,)}),
        (SETTINGS[40], {"learning_rate": (0.03, 0.1), "weight_decay": (0.0, 0.3)}),
        (SETTINGS[40] | {"learning_rate_schedule": "cosine"}, CANDIDATES[40]),
    ],
    400: [
        (SETTINGS[400], CANDIDATES[400]),
        (SETTINGS[400] | {"weight_decay": 0.0}, CANDIDATES[400]),
        (SETTINGS[400], {"learning_rate": (0.03, 0.1), "weight_decay": (0.3, 1.0)}),
        (SETTINGS[400] | {"batch_size": 256}, {"ridge": (0.3, 3.0), "weight_decay": (0.3, 1.0)}),
    ],
}
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass
class Prediction:
    """Of the test rows: mean and, where the model has them, deviation and 90% interval."""

    mean: np.ndarray
    std: np.ndarray | None = None
    interval: tuple[np.ndarray, np.ndarray] | None = None
    seconds: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)


Predictions = dict[str, Prediction]


def grid(candidates: Candidates) -> list[dict[str, Any]]:
    return [
        dict(zip(candidates, values, strict=True))
        for values in itertools.product(*candidates.values())
    ]


def held_out(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to fit and a tenth to judge by: the same for every protocol model."""
    return train_test_split(np.arange(n), test_size=0.1, random_state=seed)


def judges(n: int) -> int:
    """Held-out sets whose mean error chooses among candidates: few rows make a noisy choice."""
    return MEMBERS if n < LARGE else 2


def batch_size(n: int, epochs: int) -> int:
    """Small enough for many steps in few epochs, large enough to end on large sets."""
    return 256 if n >= LARGE and epochs > 100 else 64


def closed_form(
    X: np.ndarray, y: np.ndarray, epochs: int, member: int, seed: int, options: dict[str, Any]
) -> CFLLRegressor:
    """One network; the best epoch and the final ridge by its own held-out rows."""
    rows, held = held_out(len(y), MEMBERS * seed + member)
    model = CFLLRegressor(
        hidden_layer_sizes=(WIDTH,),
        n_members=1,
        n_bins=0,  # the literature's network sees the columns as they are
        linear_part=False,
        scale_columns=False,
        max_epochs=epochs,
        n_iter_no_change=epochs,
        early_stopping=True,
        random_state=MEMBERS * seed + member,
        **options,
    )
    return model.fit(X[rows], y[rows], X_val=X[held], y_val=y[held])


def held_out_error(model: CFLLRegressor) -> float:
    return float(model.ridge_path_["error"].min())


def cfll(
    X: np.ndarray,
    y: np.ndarray,
    X_test: np.ndarray,
    seed: int,
    epochs: int,
    settings: dict[str, Any] | None = None,
    candidates: Candidates | None = None,
) -> Predictions:
    """A single network and an ensemble of five, their options chosen on held-out rows."""
    start = time.perf_counter()
    fit = partial(closed_form, X, y, epochs)
    settings = SETTINGS[epochs] if settings is None else settings
    settings = {"batch_size": batch_size(len(y), epochs)} | settings
    tried = []
    for options in grid(CANDIDATES[epochs] if candidates is None else candidates):
        with contextlib.suppress(FloatingPointError):  # diverged: not a candidate
            members = [fit(i, seed, settings | options) for i in range(judges(len(y)))]
            tried.append((np.mean([held_out_error(m) for m in members]), options, members))
    _, options, members = min(tried, key=lambda trial: trial[0])
    mean, std = members[0].predict(X_test, return_std=True)
    single = Prediction(mean, std, members[0].predict_interval(X_test, COVERAGE))
    single.seconds, single.notes = time.perf_counter() - start, dict(options)
    members += [fit(i, seed, settings | options) for i in range(len(members), MEMBERS)]
    together = mixture(members, X_test)
    together.seconds, together.notes = time.perf_counter() - start, dict(options)
    return {f"cfll{epochs}": single, f"cfll{epochs}x{MEMBERS}": together}


def mixture(members: list[CFLLRegressor], X_test: np.ndarray) -> Prediction:
    """Mean and variance of the members' mixture; a normal's interval."""
    means, deviations = zip(*(m.predict(X_test, return_std=True) for m in members), strict=True)
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.mean(np.square(deviations), axis=0) + np.var(means, axis=0))
    half = norm.ppf(0.5 + COVERAGE / 2) * std
    return Prediction(mean, std, (mean - half, mean + half))


def adam(X: np.ndarray, y: np.ndarray, X_test: np.ndarray, seed: int, epochs: int) -> Predictions:
    """The same network, all layers by Adam; rate and batch size chosen on the same rows.

    Best epoch kept, the schedule and the held-out rows those of :func:`cfll`.
    """
    start = time.perf_counter()
    batch_sizes = 32, batch_size(len(y), epochs)
    trials = []
    for rate, size in itertools.product(ADAM_RATES, batch_sizes):
        runs = [adam_run(X, y, X_test, epochs, i, seed, rate, size) for i in range(judges(len(y)))]
        trials.append((np.mean([error for error, _ in runs]), rate, size, runs[0][1]))
    _, rate, size, mean = min(trials, key=lambda trial: trial[0])
    notes = {"learning_rate": rate, "batch_size": size}
    seconds = time.perf_counter() - start
    return {f"adam{epochs}": Prediction(mean, seconds=seconds, notes=notes)}


def adam_run(
    X: np.ndarray,
    y: np.ndarray,
    X_test: np.ndarray,
    epochs: int,
    member: int,
    seed: int,
    rate: float,
    size: int,
) -> tuple[float, np.ndarray]:
    """Held-out mean squared error of the best epoch, and what that epoch predicts."""
    rows, held = held_out(len(y), MEMBERS * seed + member)
    scale_X, scale_y = scaler(X[rows]), scaler(y[rows, None])
    train, valid = ((scale_X(X[part]), scale_y(y[part, None])) for part in (rows, held))
    task = Task("", train, valid, (scale_X(X_test), np.empty((len(X_test), 0))))
    best, mean = np.inf, np.zeros(len(X_test))
    loop = raw_loop(task, "adam", rate, WIDTH, size, epochs, MEMBERS * seed + member, 1, one_cycle)
    for _, predict, _ in loop:
        error = mean_squared_error(predict, task.valid)
        if error < best:
            best, mean = error, predict(task.test[0])[:, 0].astype(float)
    level, spread = y[rows].mean(), y[rows].std()
    return best * spread**2, level + spread * mean


def default_cfll(X: np.ndarray, y: np.ndarray, X_test: np.ndarray, seed: int) -> Predictions:
    """``CFLLRegressor()``."""
    start = time.perf_counter()
    model = CFLLRegressor(random_state=seed).fit(X, y)
    seconds = time.perf_counter() - start
    mean, std = model.predict(X_test, return_std=True)
    interval = model.predict_interval(X_test, COVERAGE)
    return {"cfll": Prediction(mean, std, interval, seconds)}


def point_model(
    name: str,
    make: Callable[[int], Any],
    X: np.ndarray,
    y: np.ndarray,
    X_test: np.ndarray,
    seed: int,
) -> Predictions:
    """A regressor without a predictive deviation, as ``make`` builds it."""
    start = time.perf_counter()
    with quiet():
        model = make(seed).fit(X, y)
        seconds = time.perf_counter() - start
        return {name: Prediction(np.ravel(model.predict(X_test)), seconds=seconds)}


def gaussian_process(X: np.ndarray, y: np.ndarray, X_test: np.ndarray, seed: int) -> Predictions:
    """One length scale a column, and noise, by marginal likelihood; 2,000 rows at most."""
    start = time.perf_counter()
    rows = np.random.RandomState(seed).permutation(len(y))[:GP_ROWS]
    scale = StandardScaler().fit(X[rows])
    kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    with quiet():
        model.fit(scale.transform(X[rows]), y[rows])
    seconds = time.perf_counter() - start
    mean, std = model.predict(scale.transform(X_test), return_std=True)
    half = norm.ppf(0.5 + COVERAGE / 2) * std
    return {"gp": Prediction(mean, std, (mean - half, mean + half), seconds, {"rows": len(rows)})}


def make_mlp(seed: int) -> Any:
    network = make_pipeline(StandardScaler(), MLPRegressor(random_state=seed))
    return TransformedTargetRegressor(network, transformer=StandardScaler())


def make_real_mlp(seed: int) -> Any:
    try:
        from pytabkit import RealMLP_TD_S_Regressor
    except ImportError as error:
        raise SystemExit(
            "The model realmlp needs pytabkit: `pip install pytabkit`, or leave it out of --models."
        ) from error
    return RealMLP_TD_S_Regressor(random_state=seed, device="cpu", n_threads=1)


@contextlib.contextmanager
def quiet() -> Any:
    """No warnings of convergence, none of Lightning's lines."""
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


# Each gives a record by its own name; "cfllN" gives that of its ensemble, "cfllNx5", too.
MODELS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, int], Predictions]] = {
    "cfll40": partial(cfll, epochs=40),
    "adam40": partial(adam, epochs=40),
    "cfll400": partial(cfll, epochs=400),
    "adam400": partial(adam, epochs=400),
    "cfll": default_cfll,
    "hgb": partial(
        point_model, "hgb", lambda seed: HistGradientBoostingRegressor(random_state=seed)
    ),
    "mlp": partial(point_model, "mlp", make_mlp),
    "realmlp": partial(point_model, "realmlp", make_real_mlp),
    "ridge": partial(point_model, "ridge", lambda seed: make_pipeline(StandardScaler(), RidgeCV())),
    "gp": gaussian_process,
}
