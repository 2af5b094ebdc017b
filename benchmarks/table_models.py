"""Every contender on tables with words and gaps; each takes a frame by its own documented way.

- `CFLLRegressor` and `CFLLClassifier` take it as it is.
- `HistGradientBoosting*`, LightGBM and XGBoost take words as pandas categories. The first allows
  255 levels: rarer ones share the last.
- CatBoost gets the names of the columns of words; it allows no gap in them, so a gap is a word.
- RealMLP-TD-S gets these names, too. It allows no gap in numbers: the median is put there and an
  indicator beside it, by `SimpleImputer`.
- `skrub.tabular_pipeline` stands in front of the estimators of scikit-learn.

Packages: `pip install catboost lightgbm pytabkit skrub xgboost`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from measures import of_classes, relative_mse, stopwatch
from models import muted
from raw_tables import CLASSES, Table
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLClassifier, CFLLRegressor

Frames = tuple[pd.DataFrame, pd.DataFrame]
MOST_LEVELS = 255  # of HistGradientBoosting
GAP, RARE = "(gap)", "(rare)"


class Contender(NamedTuple):
    """How a model is made from kind and seed, what it is given, and what else ``fit`` is told."""

    make: Callable[[str, int], Any]
    view: Callable[[pd.DataFrame, pd.DataFrame], Frames] = lambda X, X_test: (X, X_test)
    settings: Callable[[pd.DataFrame], dict[str, Any]] = lambda X: {}


def measured(contender: Contender) -> Callable[[Table, dict[str, Any]], dict[str, float]]:
    """Error, log loss of classes, CPU seconds of fit and predict."""

    def run(table: Table, place: dict[str, Any]) -> dict[str, float]:
        X, X_test = contender.view(table.X.copy(), table.X_test.copy())
        with muted(), stopwatch() as to_fit:
            model = contender.make(table.kind, place["seed"])
            model.fit(X, table.y, **contender.settings(X))
        with muted(), stopwatch() as to_predict:
            predict = model.predict_proba if table.kind == CLASSES else model.predict
            found = np.asarray(predict(X_test))
        record = {"kind": table.kind, "rows": len(X), "columns": X.shape[1]}
        record |= {"fit": to_fit["cpu_seconds"], "predict": to_predict["cpu_seconds"]}
        if table.kind != CLASSES:
            return record | {"error": relative_mse(found, table.y_test)}
        scores = of_classes(found, table.y_test)
        return record | {"error": 1 - scores["accuracy"], "log_loss": scores["log_loss"]}

    return run


# -- views ----------------------------------------------------------------------------------


def words(X: pd.DataFrame) -> list[str]:
    """Names of the columns that are not numbers."""
    return list(X.columns.difference(X.select_dtypes(["number", "bool"]).columns, sort=False))


def categories(X: pd.DataFrame, X_test: pd.DataFrame, most: int | None = None) -> Frames:
    """Words as categories; a level that training rows do not show is a gap."""
    for name in words(X):
        counts = X[name].value_counts()
        kept = list(counts.index)
        if most is not None and len(kept) > most:
            rare = set(kept[most - 1 :])
            kept = [*kept[: most - 1], RARE]
            for part in (X, X_test):
                part[name] = part[name].where(~part[name].isin(rare), RARE)
        for part in (X, X_test):
            known = part[name].where(part[name].isin(kept), None)
            part[name] = pd.Categorical(known, categories=kept)
    return X, X_test


def of_boosting(X: pd.DataFrame, X_test: pd.DataFrame) -> Frames:
    return categories(X, X_test, MOST_LEVELS)


def gaps_as_words(X: pd.DataFrame, X_test: pd.DataFrame) -> Frames:
    for name in words(X):
        for part in (X, X_test):
            part[name] = part[name].astype(object).where(part[name].notna(), GAP).astype(str)
    return X, X_test


def without_gaps(X: pd.DataFrame, X_test: pd.DataFrame) -> Frames:
    """Gaps in words are a word, those in numbers the median with an indicator."""
    X, X_test = gaps_as_words(X, X_test)
    names = words(X)
    impute = SimpleImputer(strategy="median", add_indicator=True).set_output(transform="pandas")
    numbers = X.drop(columns=names).columns
    if not len(numbers):
        return X, X_test
    impute.fit(X[numbers])
    parts = [pd.concat([impute.transform(P[numbers]), P[names]], axis=1) for P in (X, X_test)]
    return parts[0], parts[1]


# -- contenders -----------------------------------------------------------------------------


def either(classifier: type, regressor: type, **settings: Any) -> Callable[[str, int], Any]:
    """A classifier or a regressor, by the kind of the table."""
    return lambda kind, seed: (classifier if kind == CLASSES else regressor)(
        random_state=seed, **settings
    )


def ours(**settings: Any) -> Contender:
    return Contender(either(CFLLClassifier, CFLLRegressor, **settings))


def catboost(kind: str, seed: int) -> Any:
    from catboost import CatBoostClassifier, CatBoostRegressor

    settings = {"thread_count": 1, "verbose": False, "allow_writing_files": False}
    return either(CatBoostClassifier, CatBoostRegressor, **settings)(kind, seed)


def lightgbm(kind: str, seed: int) -> Any:
    from lightgbm import LGBMClassifier, LGBMRegressor

    return either(LGBMClassifier, LGBMRegressor, n_jobs=1, verbose=-1)(kind, seed)


def xgboost(kind: str, seed: int) -> Any:
    from xgboost import XGBClassifier, XGBRegressor

    settings = {"enable_categorical": True, "n_jobs": 1}
    return either(XGBClassifier, XGBRegressor, **settings)(kind, seed)


def real_mlp(kind: str, seed: int) -> Any:
    from pytabkit import RealMLP_TD_S_Classifier, RealMLP_TD_S_Regressor

    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = {"device": "cpu", "n_threads": 1}
    return either(RealMLP_TD_S_Classifier, RealMLP_TD_S_Regressor, **settings)(kind, seed)


def mlp(kind: str, seed: int) -> Any:
    """Behind skrub's pipeline; numbers are standardised as targets."""
    from skrub import tabular_pipeline

    model = tabular_pipeline(either(MLPClassifier, MLPRegressor)(kind, seed))
    if kind == CLASSES:
        return model
    return TransformedTargetRegressor(model, transformer=StandardScaler())


def linear(kind: str, seed: int) -> Any:
    from skrub import tabular_pipeline

    ridge = RidgeCV(np.logspace(-3, 4, 15))
    return tabular_pipeline(LogisticRegression(max_iter=1000) if kind == CLASSES else ridge)


BOOSTING = either(
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    categorical_features="from_dtype",
)
CONTENDERS: dict[str, Contender] = {
    "CFLL": ours(),
    "HistGradientBoosting": Contender(BOOSTING, of_boosting),
    "CatBoost": Contender(catboost, gaps_as_words, lambda X: {"cat_features": words(X)}),
    "LightGBM": Contender(lightgbm, categories),
    "XGBoost": Contender(xgboost, categories),
    "RealMLP-TD-S": Contender(real_mlp, without_gaps, lambda X: {"cat_col_names": words(X)}),
    "MLP, skrub": Contender(mlp),
    "linear, skrub": Contender(linear),
}
MODELS = {name: measured(contender) for name, contender in CONTENDERS.items()}
