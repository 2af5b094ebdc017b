"""`precision`="bf16": the backbone's products in bfloat16, the solve in float32 or better."""

import copy
import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1
from sklearn.linear_model import Ridge
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLNet, CFLLRegressor
from sklearn_cfll.heads.module import CFLLModule

X, Y = make_friedman1(600, noise=0.5, random_state=0)
SMALL = {"precision": "bf16", "max_epochs": 15, "random_state": 0}


class Seen(nn.Module):
    """Remembers the dtype of its products."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 16)
        self.dtypes = set()

    def forward(self, inputs):
        features = self.layer(inputs)
        if len(inputs) > 2:  # two rows show the shape of its features
            self.dtypes.add(features.dtype)
        return torch.tanh(features)


def test_products_are_in_bfloat16_and_all_else_is_not():
    model = CFLLRegressor(Seen(), **SMALL).fit(X, Y)
    model.predict(X)
    assert model.backbone_.dtypes == {torch.bfloat16}
    assert model.features(X).dtype == np.float32
    assert model.predict(X).dtype == np.float32
    assert {p.dtype for p in model.backbone_.parameters()} == {torch.float32}
    assert model.resolved_["precision"] == "bf16"
    assert model.net_.module_.last_layer.moments_gram.dtype == torch.float64


def test_the_last_layer_is_the_exact_fit_to_its_features():
    model = CFLLRegressor(early_stopping=False, n_members=1, linear_part=False, **SMALL).fit(X, Y)
    features = model.features(X).astype(np.float64)
    power = features.var(axis=0).mean()
    ridge = Ridge(alpha=len(X) * model.final_ridge_ * power).fit(features, Y)
    np.testing.assert_allclose(model.predict(X), ridge.predict(features), rtol=1e-3)


@pytest.mark.parametrize("options", [{}, {"n_members": 1, "hidden_layer_sizes": (32, 32)}])
def test_it_predicts_about_as_well_as_float32(options):
    low = CFLLRegressor(**SMALL | options).fit(X[:450], Y[:450])
    full = CFLLRegressor(**SMALL | options | {"precision": "float32"}).fit(X[:450], Y[:450])
    assert abs(low.score(X[450:], Y[450:]) - full.score(X[450:], Y[450:])) < 0.03
    assert not np.array_equal(low.predict(X), full.predict(X))


def test_everything_that_a_fitted_model_does(tmp_path):
    model = CFLLRegressor(**SMALL).fit(X[:450], Y[:450])
    model.save(tmp_path / "model.cfll")
    loaded = CFLLRegressor.load(tmp_path / "model.cfll")
    for other in (copy.deepcopy(model), loaded):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
    mean, std = model.predict(X, return_std=True)
    assert np.isfinite(mean).all() and (std > 0).all()
    exported = model.to_torch()(torch.tensor(X)).detach().numpy().ravel()
    assert 0 < np.abs(exported - model.predict(X)).max() < 0.1 * Y.std()
    before = model.predict(X)
    model.partial_fit(X[450:], Y[450:]).adapt(X[450:], Y[450:])
    assert not np.array_equal(model.predict(X), before)
    loaded.partial_fit(X[450:], Y[450:]).adapt(X[450:], Y[450:])
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_a_classifier():
    labels = np.median(Y) < Y
    model = CFLLClassifier(**SMALL).fit(X[:450], labels[:450])
    assert model.score(X[450:], labels[450:]) > 0.8
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1.0, rtol=1e-6)


def test_a_net_with_autocast():
    rows, targets = X.astype(np.float32), Y.astype(np.float32)
    net = CFLLNet(Seen, autocast=torch.bfloat16, max_epochs=3, verbose=0, random_state=0)
    net.fit(rows, targets)
    assert net.module_.dtypes == {torch.bfloat16}
    assert net.predict(rows).dtype == np.float32


def test_inside_the_users_own_autocast_nothing_changes():
    model = CFLLRegressor(Seen(), **SMALL | {"precision": "float32"}).fit(X, Y)
    expected = model.predict(X)
    with torch.autocast("cpu", torch.bfloat16), warnings.catch_warnings():
        np.testing.assert_array_equal(model.predict(X), expected)
    assert model.backbone_.dtypes == {torch.float32}


def test_features_of_integers_stay_as_they_are():
    class Counts(nn.Module):
        def forward(self, inputs):
            return inputs.long()

    module = CFLLModule(Counts(), CFLLNet(Counts).initialize().module_.last_layer, torch.bfloat16)
    assert module.features(torch.ones(3, 2)).dtype == torch.float32
