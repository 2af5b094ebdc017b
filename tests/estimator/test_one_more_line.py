"""One line in a table brings a memory, an update order or an activation to the estimators."""

import numpy as np
import pytest
from sklearn.datasets import make_friedman1
from torch import nn

from helpers import OwnMemory
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.backbones.mlp import ACTIVATIONS
from sklearn_cfll.heads.memory import MEMORIES
from sklearn_cfll.training.update_orders import UPDATE_ORDERS, LastLayerFirst


class Always(LastLayerFirst):
    """An order that counts its calls."""

    calls = 0

    def update(self, module, batch, features):
        Always.calls += 1
        return super().update(module, batch, features)


@pytest.mark.parametrize(
    ("table", "parameter", "value"),
    [
        (MEMORIES, "memory", OwnMemory()),
        (UPDATE_ORDERS, "update_order", Always()),
        (ACTIVATIONS, "activation", nn.Softsign),
    ],
    ids=["memory", "update order", "activation"],
)
def test_the_estimators_take_it_by_its_name(table, parameter, value, monkeypatch, tmp_path):
    X, y = make_friedman1(300, noise=0.5, random_state=0)
    other = CFLLRegressor(max_epochs=5, random_state=0).fit(X[:200], y[:200])
    model = CFLLRegressor(max_epochs=5, random_state=0, **{parameter: "toy"})
    with pytest.raises(ValueError, match=f"'{parameter}' parameter of CFLLRegressor"):
        model.fit(X, y)
    monkeypatch.setitem(table, "toy", value)
    model.fit(X[:200], y[:200])
    assert model.score(X[200:], y[200:]) > 0.6
    if parameter == "update_order":
        assert Always.calls > 0
        np.testing.assert_array_equal(model.predict(X), other.predict(X))
    else:
        assert not np.allclose(model.predict(X), other.predict(X))
    model.save(tmp_path / "model.npz")
    opened = CFLLRegressor.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(opened.predict(X), model.predict(X))
