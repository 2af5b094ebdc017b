"""Every contender on tables, in one place: how it is made from a seed.

``COLUMNS`` holds all that benchmarks say about the columns that networks are given. The table of
thresholds of our estimators is replaced in a subclass; see :func:`with_defaults`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from measures import of_classes, relative_mse, stopwatch
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression, RidgeCV, SGDRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.estimator.defaults import DEFAULTS

Make = Callable[[int], Any]
Measured = Callable[[Any, dict[str, Any]], dict[str, float]]

COLUMNS: dict[str, dict[str, Any]] = {
    name: {"columns": encoder}
    for name, encoder in {
        "as they are": ColumnEncoder(n_bins=0, importance=False),
        "no bins": ColumnEncoder(n_bins=0),
        "unscaled": ColumnEncoder(importance=False),
        "32 bins": ColumnEncoder(n_bins=32),
        # changes of the classifier's encoder
        "classifier, unscaled": ColumnEncoder(n_bins=0, quantiles=True, importance=False),
        "no quantiles": ColumnEncoder(n_bins=0),
        "quantiles, no bins": ColumnEncoder(n_bins=0, quantiles=True),
        "quantiles, 8 bins": ColumnEncoder(n_bins=8, quantiles=True),
    }.items()
}
# One perceptron on the columns as they are: the network that others are given, too.
PLAIN: dict[str, Any] = COLUMNS["as they are"] | {
    "n_members": 1,
    "hidden_layer_sizes": (256, 256),
    "linear_part": False,
    "weight_decay": 0.0,
    "batch_size": 256,
    "max_epochs": 100,
    "n_iter_no_change": 20,
}


def with_defaults(kind: type, **thresholds: Any) -> type:
    """An estimator class with other values in its table of defaults."""
    return type(
        kind.__name__, (kind,), {"defaults": dataclasses.replace(kind.defaults, **thresholds)}
    )


def ours(**settings: Any) -> Make:
    return lambda seed: CFLLRegressor(random_state=seed, **settings)


def our_classifier(**settings: Any) -> Make:
    return lambda seed: CFLLClassifier(random_state=seed, **settings)


def scaled(model: Any) -> Any:
    """On standardised columns."""
    return make_pipeline(StandardScaler(), model)


def mlp(seed: int) -> Any:
    """Columns and targets standardised."""
    network = scaled(MLPRegressor(random_state=seed))
    return TransformedTargetRegressor(network, transformer=StandardScaler())


def from_pytabkit(name: str) -> Make:
    """A regressor of pytabkit at its defaults on one thread."""

    def make(seed: int) -> Any:
        import pytabkit  # `pip install pytabkit`

        for logger in ("lightning", "lightning.pytorch", "pytorch_lightning"):
            logging.getLogger(logger).setLevel(logging.ERROR)
        return getattr(pytabkit, name)(random_state=seed, device="cpu", n_threads=1)

    return make


def cat_boost(seed: int) -> Any:
    from catboost import CatBoostRegressor

    quiet = {"verbose": 0, "allow_writing_files": False}
    return CatBoostRegressor(random_seed=seed, thread_count=1, **quiet)


def light_gbm(seed: int) -> Any:
    from lightgbm import LGBMRegressor

    return LGBMRegressor(random_state=seed, n_jobs=1, verbose=-1)


def xgboost(seed: int) -> Any:
    from xgboost import XGBRegressor

    return XGBRegressor(random_state=seed, n_jobs=1)


def gaussian_process(n_columns: int, seed: int) -> GaussianProcessRegressor:
    """One length scale per column and noise by marginal likelihood."""
    kernel = ConstantKernel() * RBF(np.ones(n_columns)) + WhiteKernel(0.1)
    return GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)


REGRESSORS: dict[str, Make] = {
    "CFLLRegressor": ours(),
    "HistGradBoost": lambda seed: HistGradientBoostingRegressor(random_state=seed),
    "CatBoost": cat_boost,
    "LightGBM": light_gbm,
    "XGBoost": xgboost,
    "MLPRegressor": mlp,
    "RealMLP-TD-S": from_pytabkit("RealMLP_TD_S_Regressor"),
    "RidgeCV": lambda seed: scaled(RidgeCV(np.logspace(-3, 4, 15))),
    # slow ones
    "RealMLP-TD": from_pytabkit("RealMLP_TD_Regressor"),
    "TabM-D": from_pytabkit("TabM_D_Regressor"),
    # less usual ways
    "plain RidgeCV": lambda seed: scaled(RidgeCV()),
    "MLP, raw targets": lambda seed: scaled(MLPRegressor(random_state=seed)),
    "MLP, 500 epochs": lambda seed: scaled(MLPRegressor(max_iter=500, random_state=seed)),
    "MLP as it comes": lambda seed: MLPRegressor(random_state=seed),
    "SGD as it comes": lambda seed: SGDRegressor(random_state=seed),
}
CLASSIFIERS: dict[str, Make] = {
    "CFLL": our_classifier(),
    "MLPClassifier": lambda seed: scaled(MLPClassifier(random_state=seed)),
    "LogisticRegression": lambda seed: scaled(LogisticRegression(max_iter=1000)),
    "HistGradientBoosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}
PEERS = tuple(REGRESSORS)[:8]
SLOW_PEERS = ("RealMLP-TD", "TabM-D")


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Nothing is printed (Lightning prints through any setting)."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def regression(make: Make) -> Measured:
    """Relative error and seconds on X_train, X_test, y_train, y_test; a divergence is infinite."""

    def run(rows: list[np.ndarray], place: dict[str, Any]) -> dict[str, float]:
        X, X_test, y, y_test = rows
        with muted(), stopwatch() as taken:
            try:
                model = make(place["seed"]).fit(X, y)
            except FloatingPointError:
                return {"mse": np.inf, "rows": len(X)}
        mse = relative_mse(model.predict(X_test), y_test)
        return {"mse": mse, "rows": len(X), "seconds": taken["cpu_seconds"]}

    return run


def classification(make: Make) -> Measured:
    """The measures of classes and CPU seconds on X_train, X_test, y_train, y_test."""

    def run(rows: list[np.ndarray], place: dict[str, Any]) -> dict[str, float]:
        X, X_test, y, y_test = rows
        with stopwatch() as taken:
            model = make(place["seed"]).fit(X, y)
        found = of_classes(model.predict_proba(X_test), y_test)
        found["error"] = 1.0 - found.pop("accuracy")
        return {"rows": len(X), "seconds": taken["cpu_seconds"]} | found

    return run


def regressions(makes: dict[str, Make]) -> dict[str, Measured]:
    return {name: regression(make) for name, make in makes.items()}


def training_ridge(width: int, batch_size: int, n_rows: int) -> float:
    """What ridge="auto" is for one perceptron of this width."""
    return DEFAULTS.ridge("auto", (width,), batch_size, n_rows)
