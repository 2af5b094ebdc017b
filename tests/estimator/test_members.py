"""Estimators of several members."""

import numpy as np
import torch
from torch import nn

from helpers import BOTH, friedman
from sklearn_cfll import CFLLRegressor, ClosedFormLastLayer


@BOTH
def test_features_and_coefficients_are_what_predictions_are_made_of(Estimator):
    X, y = friedman(200)
    y = y if Estimator is CFLLRegressor else y > np.median(y)
    model = Estimator(n_members=3, hidden_layer_sizes=(8,), max_epochs=3, random_state=0).fit(X, y)
    raw = model.predict(X) if Estimator is CFLLRegressor else model.decision_function(X)
    threshold = 0.0 if Estimator is CFLLRegressor else 0.5
    found = (model.features(X) @ model.last_layer_coef_.T + model.last_layer_intercept_)[:, 0]
    np.testing.assert_allclose(found - threshold, raw, rtol=1e-9, atol=1e-9)
    joined = model.to_torch()(torch.as_tensor(X)).detach().numpy()[:, 0]
    np.testing.assert_allclose(joined, raw, rtol=1e-9, atol=1e-9)


def test_members_beat_one_of_them():
    X, y = friedman(1200)
    X_test, y_test = friedman(1000, seed=1)
    settings = {"hidden_layer_sizes": (32, 32), "max_epochs": 30, "random_state": 0}
    score = {  # of four members, each of which trains on 3/4 of the rows, it is about the same
        n: CFLLRegressor(n_members=n, **settings).fit(X, y).score(X_test, y_test) for n in (1, 8)
    }
    assert score[8] > score[1]


def test_a_backbone_of_the_users_stays_one_network():
    X, y = friedman(100)
    module = nn.Sequential(nn.Linear(6, 7), nn.ReLU())
    model = CFLLRegressor(module, linear_part=True, max_epochs=2).fit(X, y)
    assert model.features(X).shape == (100, 7)
    assert isinstance(model.net_.module_.last_layer, ClosedFormLastLayer)
    assert not model.resolved_["linear_part"]
