"""Weights mean repetitions; a full batch means ridge regression on the features."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from torch.utils.data import Dataset, TensorDataset

from helpers import BOTH, data_for, friedman, raw, small
from sklearn_cfll import CFLLRegressor

# -- sample weights ---------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("options", [{}, {"batch_size": "full"}, {"memory": "statistics"}])
def test_weights_equal_repetitions(Estimator, options):
    X, y = data_for(Estimator, 60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    model = small(Estimator, early_stopping=False, **options)
    weighted = raw(model.fit(X, y, sample_weight=weights), X)
    repeated = raw(model.fit(X.repeat(weights, axis=0), y.repeat(weights)), X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-7, atol=1e-9)


@BOTH
@pytest.mark.parametrize("early_stopping", [False, True])
def test_scaling_all_weights_changes_nothing(Estimator, early_stopping):
    X, y = data_for(Estimator)
    weights = np.random.default_rng(1).uniform(0.2, 2, len(X))
    model = small(Estimator, batch_size=32, early_stopping=early_stopping)
    first = raw(model.fit(X, y, weights), X)
    for factor in (1e-6, 1e6):
        np.testing.assert_allclose(
            raw(model.fit(X, y, factor * weights), X), first, rtol=1e-6, atol=1e-9
        )


@BOTH
def test_equal_weights_are_no_weights(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, batch_size=32)
    plain = raw(model.fit(X, y), X)
    np.testing.assert_array_equal(raw(model.fit(X, y, np.full(len(X), 7.0)), X), plain)


@BOTH
def test_heavy_rows_decide_what_is_learnt(Estimator):
    X, y = data_for(Estimator, 420)
    target = y.copy()
    target[60:120] = 2 * y.mean() - y[60:120] if Estimator is CFLLRegressor else (y[60:120] + 1) % 3
    weights = np.where(np.arange(120) < 60, 100.0, 1.0)
    model = small(Estimator)
    plain = model.fit(X[:120], target[:120]).score(X[120:], y[120:])
    assert model.fit(X[:120], target[:120], weights).score(X[120:], y[120:]) > max(0.6, plain + 0.1)


# -- full batch -------------------------------------------------------------------------------


@BOTH
def test_full_batch_does_not_depend_on_the_order_of_rows(Estimator):
    X, y = data_for(Estimator)
    order = np.random.default_rng(0).permutation(len(X))
    model = small(Estimator, batch_size="full", max_epochs=30, early_stopping=False)
    first = raw(model.fit(X, y), X)
    np.testing.assert_allclose(raw(model.fit(X[order], y[order]), X), first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_full_batch_last_layer_is_ridge_on_the_features(refit, weighted):
    X, y = load_diabetes(return_X_y=True)
    X, y = X[:150], y[:150]
    weights = np.random.default_rng(0).uniform(0.5, 2, 150) if weighted else np.ones(150)
    # Last layer first would leave a solve on the features before the last step.
    model = small(
        CFLLRegressor,
        batch_size="full",
        refit_last_layer=refit,
        update_order="backbone_first",
        ridge=0.3,
        early_stopping=False,
    ).fit(X, y, weights)
    features = model.features(X)
    centred = features - np.average(features, axis=0, weights=weights)
    power = (weights[:, None] * centred**2).sum() / (weights.sum() * features.shape[1])
    ridge = Ridge(alpha=0.3 * weights.sum() * power).fit(features, y, weights)
    assert model.final_ridge_ == 0.3
    np.testing.assert_allclose(model.last_layer_coef_[0], ridge.coef_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(model.predict(X), ridge.predict(features), rtol=1e-7)


class Weighted(Dataset):
    """Items of a row, a target and a weight."""

    def __init__(self, *parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts[0])

    def __getitem__(self, index):
        return tuple(part[index] for part in self.parts)


@pytest.mark.parametrize("kind", ["items", "tensors"])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "adapt"])
def test_the_third_part_of_an_item_is_its_weight(kind, method):
    X, y = friedman(200)
    weight = np.arange(200) % 3.0
    data = Weighted(X, y, weight)
    if kind == "tensors":
        data = TensorDataset(*map(torch.from_numpy, data.parts))
    models = [small(CFLLRegressor, max_epochs=2) for _ in range(2)]
    if method == "adapt":
        models = [model.fit(X[:100], y[:100]) for model in models]
    first = getattr(models[0], method)(data).predict(X)
    second = getattr(models[1], method)(X, y, sample_weight=weight).predict(X)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match="hold weights too"):
        getattr(models[0], method)(data, sample_weight=weight)


def test_a_data_set_without_items_is_named():
    with pytest.raises(ValueError, match="without items"):
        small(CFLLRegressor).fit(Weighted(np.empty((0, 3)), np.empty(0)))
