"""Parameters that have no effect are named; numbers of any kind are taken."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from helpers import caught
from sklearn_cfll import CFLLIVRegressor, CFLLNet, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.estimator.effects import OF_TRAINING, OFF, RULES
from small_tables import BIG_X, BIG_Y, IV, QUICK, SMALL, X, Y

# -- parameters without effect ----------------------------------------------------------------

NETWORK = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
NO_EFFECT = [
    ({"backbone": NETWORK, "hidden_layer_sizes": (7,)}, ["hidden_layer_sizes"]),
    ({"backbone": NETWORK, "activation": "tanh", "dropout": 0.1}, ["activation", "dropout"]),
    ({"backbone": MLPBackbone((6,)), "dropout": 0.2}, ["dropout"]),
    ({"backbone": NETWORK, "linear_part": True}, ["linear_part"]),
    ({"batch_size": "full", "decay": 0.5}, ["decay"]),
    ({"early_stopping": False, "n_iter_no_change": 3, "tol": 0.1}, ["n_iter_no_change", "tol"]),
    ({"early_stopping": False, "validation_fraction": 0.3}, ["validation_fraction"]),
    ({"early_stopping": True, "validation_fraction": 0}, ["early_stopping"]),
    ({"optimizer": torch.optim.Rprop, "weight_decay": 0.1}, ["weight_decay"]),
    (
        {"backbone": nn.Identity(), "learning_rate": 0.1, "optimizer": "sgd"},
        ["optimizer", "learning_rate"],
    ),
]


@pytest.mark.parametrize(("parameters", "names"), NO_EFFECT)
def test_parameters_without_effect_are_named(parameters, names):
    options = {"max_epochs": 1, "random_state": 0, **parameters}
    found = caught(lambda: CFLLRegressor(**options).fit(BIG_X[:80], BIG_Y[:80]))
    assert len(found) == 1 and "no effect" in found[0]
    assert all(f"`{name}`=" in found[0] for name in names)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {
            "columns": ColumnEncoder(8),
            "tol": 0.1,
            "validation_fraction": 0.2,
            "n_iter_no_change": 3,
            "decay": 0.5,
        },
        {"backbone": NETWORK, "hidden_layer_sizes": [64, 64], "linear_part": False},
        {"backbone": NETWORK, "columns": ColumnEncoder(0), "n_members": 1, "dropout": 0},
        {"backbone": MLPBackbone((6,)), "columns": "passthrough", "linear_part": True},
        {"batch_size": "full"},
        {"early_stopping": False, "validation_fraction": 0},
        {"optimizer": "sgd", "weight_decay": 0.1, "hidden_layer_sizes": np.array([4, 4])},
    ],
)
def test_parameters_with_effect_or_that_ask_for_nothing_are_quiet(parameters):
    options = {"max_epochs": 1, "random_state": 0, **parameters}
    assert caught(lambda: CFLLRegressor(**options).fit(BIG_X[:80], BIG_Y[:80])) == []


def test_parameters_without_effect_on_few_rows_and_given_validation_rows():
    few = CFLLRegressor(tol=0.1, max_epochs=1, random_state=0)
    assert caught(lambda: few.fit(BIG_X[:10], BIG_Y[:10])) == []
    found = caught(lambda: few.fit(BIG_X[:9], BIG_Y[:9]))
    assert len(found) == 1 and "`tol`=0.1 has no effect" in found[0]
    share = CFLLRegressor(validation_fraction=0.2, max_epochs=1, random_state=0)
    found = caught(lambda: share.fit(BIG_X, BIG_Y, X_val=BIG_X, y_val=BIG_Y))
    assert len(found) == 1 and "`validation_fraction`=0.2 has no effect" in found[0]


def test_rules_name_parameters_that_there_are():
    known = {*inspect.signature(CFLLRegressor).parameters}
    assert {*OFF, *OF_TRAINING, *(name for rule in RULES for name in rule.names)} <= known


def test_members_of_a_recipe_have_a_last_layer_each():
    model = CFLLRegressor(MLPBackbone((6, 4), n_members=3), **QUICK, linear_part=False)
    model.fit(BIG_X[:100], BIG_Y[:100])
    assert model.net_.module_.last_layer.n_members == 3
    assert model.features(BIG_X).shape == (700, 12)
    _, std = model.predict(BIG_X, return_std=True)
    assert std.min() > np.sqrt(model.noise_variance_[0])
    ridge = CFLLRegressor(MLPBackbone((6, 4)), max_epochs=2, random_state=0)
    ridge.fit(BIG_X[:100], BIG_Y[:100])
    # The training ridge is that of one member's width.
    assert model.resolved_["ridge"] == ridge.resolved_["ridge"]


@pytest.mark.parametrize(("own", "given"), [(1, 8), (3, 8), (3, 1)])
def test_members_in_two_places_contradict(own, given):
    model = CFLLRegressor(MLPBackbone((6,), n_members=own), n_members=given)
    with pytest.raises(ValueError, match=rf"`n_members`={given} .* `backbone`=MLP.*={own}"):
        model.fit(BIG_X[:60], BIG_Y[:60])


# -- values of parameters ---------------------------------------------------------------------

NUMBERS = ("ridge", "decay", "learning_rate", "weight_decay", "tol", "dropout")
NUMBERS += ("validation_fraction",)


@pytest.mark.parametrize("kind", [Fraction, np.float32])
def test_numbers_of_any_kind_are_parameters(kind, tmp_path):
    sizes = {"hidden_layer_sizes": (8, 8)}
    model = CFLLRegressor(**{**SMALL, **sizes, **{name: kind(0.25) for name in NUMBERS}}).fit(X, Y)
    same = CFLLRegressor(**{**SMALL, **sizes, **dict.fromkeys(NUMBERS, 0.25)}).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), same.predict(X))
    model.partial_fit(X, Y).save(tmp_path / "model")
    loaded = CFLLRegressor.load(tmp_path / "model")
    assert all(getattr(loaded, name) == 0.25 for name in NUMBERS)
    rates = {"stage1_ridge": kind(0.25), "stage2_ridge": kind(0.25), "learning_rate": kind(0.25)}
    IV(**rates).fit(X, Y)
    for name in NUMBERS:
        for wrong in (10**400, Fraction(-1, 2)):
            with pytest.raises(ValueError, match=f"The '{name}' parameter .*must be a float in"):
                CFLLRegressor(**{name: wrong}).fit(X, Y)


@pytest.mark.parametrize(
    "sizes", [np.int64(8), np.uint8(8), np.array(8), torch.tensor(8), torch.tensor([8]), [8]]
)
def test_sizes_in_whatever_holds_them(sizes, tmp_path):
    few = X[:20], Y[:20]
    model = CFLLRegressor(**{**SMALL, "hidden_layer_sizes": sizes}).fit(*few)
    expected = CFLLRegressor(**SMALL).fit(*few).predict(X)
    np.testing.assert_array_equal(model.predict(X), expected)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        CFLLRegressor(hidden_layer_sizes=True).fit(X, Y)


def test_interrupt_while_columns_are_scaled_keeps_nothing_without_a_warning(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CFLLNet, "train_step", interrupt)

    def fit():
        with pytest.raises(KeyboardInterrupt):
            CFLLRegressor(**SMALL).fit(BIG_X, BIG_Y)

    assert caught(fit) == []


@pytest.mark.parametrize(
    "device", ["xpu", "meta", "xla", "hpu", "vulkan", "privateuseone", "cuda:99"]
)
def test_devices_that_are_not_here(device):
    with pytest.raises(ValueError, match=rf"`device`='{device}' .*no usable .*only cpu.*auto"):
        CFLLRegressor(device=device).fit(X, Y)
    with pytest.raises(ValueError, match="`device`=device.*no usable .*only cpu"):
        CFLLIVRegressor(device=torch.device(device)).fit(X, Y)
