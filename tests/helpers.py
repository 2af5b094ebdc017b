"""What several test files share: small estimators, rows for them, what they warn of."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, make_classification, make_friedman1

from sklearn_cfll import CFLLClassifier, CFLLRegressor, linalg

BOTH = pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])


def small(Estimator, **parameters):
    """One small network; members and the linear part have tests of their own."""
    defaults = {"hidden_layer_sizes": (32,), "max_epochs": 8, "random_state": 0, "n_members": 1}
    if issubclass(Estimator, CFLLRegressor):
        defaults["linear_part"] = False
    return Estimator(**{**defaults, **parameters})


def data_for(Estimator, n_rows=120):
    if issubclass(Estimator, CFLLRegressor):
        return make_friedman1(n_rows, n_features=6, noise=0.3, random_state=0)
    return make_classification(n_rows, n_features=6, n_informative=4, n_classes=3, random_state=0)


def friedman(n=400, n_features=6, noise=0.5, seed=0):
    return make_friedman1(n, n_features, noise=noise, random_state=seed)


def string_labels():
    """Iris, with the names of its classes as labels."""
    X, y = load_iris(return_X_y=True)
    return X, load_iris().target_names[y]


class OwnSGD(torch.optim.SGD):
    """An optimiser that has no name in the package's table."""


class OwnMemory:
    """A memory that has no name in the package's table: each batch is fitted alone."""

    holds_rows = False
    state = ()

    def update(self, members, rows):
        parts = zip(members, rows.features, rows.weights(len(members)), strict=True)
        for member, features, sample_weight in parts:
            block = linalg.moments(features, rows.targets, sample_weight)
            member.assign(*linalg.solve_moments(block, member.ridge))


def draw(*shape, seed=0, dtype=torch.float64):
    """Normal numbers that do not depend on torch's global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def on_disk(X, folder):
    """The same rows as a memory map."""
    written = np.memmap(folder / "rows.bin", dtype=X.dtype, mode="w+", shape=X.shape)
    written[:] = X
    written.flush()
    return np.memmap(folder / "rows.bin", dtype=X.dtype, mode="r", shape=X.shape)


def raw(model, X):
    """Predictions before a classifier turns them into labels."""
    return model.predict(X) if isinstance(model, CFLLRegressor) else model.decision_function(X)


def penalty(model, features):
    """The absolute ridge penalty that a relative ridge means on these features."""
    power = np.square(features - features.mean(0)).sum() / features.size
    return model.final_ridge_ * len(features) * power


def caught(call, *arguments, **options):
    """The texts of the warnings of a call, as far as their category is UserWarning."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(*arguments, **options)
    return [str(warning.message) for warning in found if warning.category is UserWarning]
