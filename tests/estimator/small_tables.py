"""Rows and small settings that the tests of inputs share."""

from functools import partial

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import make_classification, make_friedman1
from torch import nn

from helpers import string_labels
from sklearn_cfll import CFLLIVRegressor, CFLLRegressor

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}
QUICK = {"max_epochs": 3, "hidden_layer_sizes": (16,), "random_state": 0}
IV = partial(CFLLIVRegressor, max_epochs=1, n_folds=2, n_repeats=1, random_state=0)

NAMES = ["age", "dose", "height"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X[:, 0] + 0.1 * RNG.normal(size=60)
WEIGHT = np.arange(60.0) + 1
LABELS = np.array(["Oslo", "Rome", "Wien"])[np.arange(60) % 3]
DATES = pd.date_range("2020", periods=60)
BIG_X, BIG_Y = make_friedman1(700, n_features=5, noise=0.5, random_state=0)


class Named(nn.Module):
    """Takes two inputs by name."""

    def __init__(self):
        super().__init__()
        self.body = nn.LazyLinear(4)

    def forward(self, a, b):
        return torch.relu(self.body(torch.cat([a, b.reshape(len(a), -1)], 1)))


class Returns(nn.Module):
    """A module whose output is what it is told."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(6, 4), function

    def forward(self, inputs):
        return self.function(self.linear(inputs))


def quick(Estimator, **parameters):
    """The default estimator, members and all, on a narrow network."""
    defaults = {"max_epochs": 5, "random_state": 0}
    if "backbone" not in parameters:
        defaults["hidden_layer_sizes"] = (16,)
    return Estimator(**{**defaults, **parameters})


def few_rows(Estimator, n_rows=60):
    if Estimator is CFLLRegressor:
        return make_friedman1(n_rows, n_features=6, random_state=0)
    return make_classification(n_rows, n_features=6, n_informative=4, random_state=0)


def with_value(array, value):
    array = np.array(array, dtype=np.float64)
    array.flat[7] = value
    return array


def friedman_or_iris(Estimator):
    """Rows and numbers for a regressor, or rows and names of classes."""
    if Estimator is CFLLRegressor:
        return make_friedman1(150, n_features=6, noise=0.3, random_state=0)
    return string_labels()
