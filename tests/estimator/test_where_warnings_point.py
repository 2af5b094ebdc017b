"""Warnings point at the line of the user that called the estimator."""

import warnings

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor

X = np.random.default_rng(0).normal(size=(60, 3))
Y = X[:, 0] + 1.0
WILD = np.where(np.arange(60) == 3, 1e9, Y)
BRIEF = {"max_epochs": 2, "random_state": 0}


def own_network():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh())


CALLS = {
    "no effect": lambda: CFLLRegressor(batch_size="full", decay=0.5, **BRIEF).fit(X, Y),
    "wild target": lambda: CFLLRegressor(**BRIEF).fit(X, WILD),
    "stream": lambda: CFLLRegressor(linear_part=True, **BRIEF).partial_fit(X, Y),
    "pipeline": lambda: make_pipeline(StandardScaler(), CFLLRegressor(**BRIEF)).fit(X, WILD),
    "equal features": lambda: CFLLRegressor(own_network(), **BRIEF).fit(1e-20 * X, Y),
    "column of labels": lambda: CFLLClassifier(**BRIEF).fit(X, (Y > 1)[:, None]),
    "search": lambda: cross_val_score(CFLLRegressor(**BRIEF), X, WILD, cv=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_at_the_call(name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[name]()
    assert caught
    assert {each.filename for each in caught} <= {__file__} | joblib_files(caught)


def joblib_files(caught):
    """joblib's frames stand between a search and the estimator."""
    return {each.filename for each in caught if "joblib" in each.filename}
