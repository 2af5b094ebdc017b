"""Training that diverges stops; an earlier fit survives a failed one."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from helpers import BOTH
from sklearn_cfll import CFLLRegressor
from small_tables import Returns, few_rows, quick, with_value

# -- divergence -------------------------------------------------------------------------------

DIVERGES = {
    "optimizer": "sgd",
    "learning_rate": 1e12,
    "hidden_layer_sizes": (16, 16),
    "batch_size": 20,
    "early_stopping": False,
    "learning_rate_schedule": "constant",
    "max_epochs": 50,
}


@BOTH
@pytest.mark.parametrize("update_order", ["backbone_first", "last_layer_first"])
@pytest.mark.parametrize("refit", [True, False])
def test_divergence_stops_at_that_batch_and_names_the_rate(Estimator, update_order, refit):
    X, y = few_rows(Estimator)
    model = quick(Estimator, **DIVERGES, update_order=update_order, refit_last_layer=refit)
    with pytest.raises(
        FloatingPointError, match=r"diverged in epoch \d+: .*Lower `learning_rate` \(now 1e\+12\)"
    ):
        model.fit(X, y)
    assert not hasattr(model, "net_")


def test_divergence_stops_before_the_epochs_are_done():
    X, y = few_rows(CFLLRegressor)
    with pytest.raises(FloatingPointError, match=r"diverged in epoch \d+: the loss") as error:
        quick(CFLLRegressor, **DIVERGES).fit(X, y)
    assert int(str(error.value).split("epoch ")[1].split(":")[0]) < 10


class Copied(nn.Linear):
    """Counts how often its state is read."""

    n_times = 0

    def state_dict(self, *args, **kwargs):
        type(self).n_times += 1
        return super().state_dict(*args, **kwargs)


def test_no_state_is_copied_in_case_training_diverges(monkeypatch):
    monkeypatch.setattr(Copied, "n_times", 0)
    X, y = few_rows(CFLLRegressor)
    backbone = nn.Sequential(Copied(6, 8), nn.Tanh())
    model = quick(CFLLRegressor, backbone=backbone, early_stopping=False).fit(X, y)
    assert Copied.n_times == 0
    model.partial_fit(X, y)
    assert Copied.n_times == 1  # to keep the earlier fit if this one fails


# -- an earlier fit survives ------------------------------------------------------------------


def state_of(model, X):
    """All that a fit leaves behind, to the last bit."""
    raw = model.predict if isinstance(model, CFLLRegressor) else model.decision_function
    state = {
        name: value
        for name, value in model.__getstate__().items()
        if name not in ("callbacks", "backbone") and name not in model.get_params()
    }
    return copy.deepcopy(
        {"outputs": raw(X), "features": model.features(X), "coef": model.last_layer_coef_, **state}
    )


def assert_same(one, other):
    if isinstance(one, dict):
        assert set(one) == set(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "get_params"):
        assert_same(one.get_params(), other.get_params())
    else:
        assert one == other


def infinity_in_the_middle(X, y):
    """Passes all checks: only the rows themselves, read batch by batch, show it."""
    bad = X.copy()
    bad[30] = np.inf
    return TensorDataset(torch.as_tensor(bad), torch.as_tensor(y))


FAILURES = {
    "fit_on_infinity": lambda model, X, y: model.fit(with_value(X, np.inf), y),
    "fit_on_another_width": lambda model, X, y: model.fit(with_value(X[:, :4], np.inf), y),
    "fit_on_short_targets": lambda model, X, y: model.fit(X, y[:-1]),
    "fit_on_zero_weights": lambda model, X, y: model.fit(X, y, np.zeros(len(X))),
    "fit_on_half_a_validation_set": lambda model, X, y: model.fit(X, y, X_val=X),
    "fit_with_a_bad_parameter": lambda model, X, y: model.set_params(ridge=-1).fit(X, y),
    "fit_with_a_bad_backbone": lambda model, X, y: model.set_params(backbone=nn.Linear(3, 3)).fit(
        X, y
    ),
    "fit_with_a_bad_output": lambda model, X, y: model.set_params(
        backbone=Returns(lambda out: out.long())
    ).fit(X, y),
    "fit_diverges": lambda model, X, y: model.set_params(**DIVERGES).fit(X, y),
    "fit_diverges_after_a_warm_start": lambda model, X, y: model.set_params(
        warm_start=True, learning_rate=1e200, batch_size=20
    ).fit(X, y),
    "fit_meets_infinity_in_a_dataset": lambda model, X, y: model.set_params(batch_size=20).fit(
        infinity_in_the_middle(X, y), y
    ),
    "partial_fit_on_infinity": lambda model, X, y: model.partial_fit(with_value(X, np.inf), y),
    "partial_fit_on_another_width": lambda model, X, y: model.partial_fit(X[:, :4], y),
    "partial_fit_on_nan_targets": lambda model, X, y: model.partial_fit(X, with_value(y, np.nan)),
    "partial_fit_on_zero_weights": lambda model, X, y: model.partial_fit(
        X, y, sample_weight=np.zeros(len(X))
    ),
    "partial_fit_diverges": lambda model, X, y: model.set_params(
        learning_rate=1e200, batch_size=10
    ).partial_fit(X, y),
    "partial_fit_meets_infinity_in_a_dataset": lambda model, X, y: model.set_params(
        batch_size=20
    ).partial_fit(infinity_in_the_middle(X, y), y),
    "adapt_on_infinity": lambda model, X, y: model.adapt(with_value(X, np.inf), y),
    "adapt_on_another_width": lambda model, X, y: model.adapt(X[:, :4], y),
    "adapt_on_short_targets": lambda model, X, y: model.adapt(X, y[:-1]),
    "adapt_meets_infinity_in_a_dataset": lambda model, X, y: model.adapt(
        infinity_in_the_middle(X, y), y
    ),
}


# Why each of them fails, by a part of its name; the first that fits counts.
MESSAGES = {
    "infinity_in_a_dataset": "Input X contains infinity in item 30",
    "nan_targets": "Input y contains NaN",
    "on_infinity": "Input X contains infinity",
    "another_width": "X has 4 features|Input X contains infinity",
    "short_targets": r"inconsistent numbers of samples: \[60, 59\]",
    "zero_weights": "at least one non-zero|zero in every row",
    "half_a_validation_set": "Give both `X_val` and `y_val`",
    "bad_parameter": "The 'ridge' parameter",
    "bad_backbone": r"backbone cannot take samples of shape \(6,\)",
    "bad_output": "backbone's output must be a floating-point tensor",
    "diverges": "diverged in epoch [16]:",
}


@BOTH
@pytest.mark.parametrize("failure", FAILURES)
def test_an_earlier_fit_survives(Estimator, failure):
    X, y = few_rows(Estimator)
    model = quick(Estimator, optimizer="sgd", learning_rate=0.01, hidden_layer_sizes=(16, 16))
    model.fit(X, y)
    before = state_of(model, X)
    message = next(text for part, text in MESSAGES.items() if part in failure)
    with pytest.raises((ValueError, FloatingPointError), match=message):
        FAILURES[failure](model, X, y)
    assert_same(state_of(model, X), before)


@BOTH
def test_training_goes_on_after_a_failure_as_if_it_had_not_been(Estimator):
    X, y = few_rows(Estimator)
    clean, failed = quick(Estimator).fit(X, y), quick(Estimator).fit(X, y)
    with pytest.raises(ValueError, match="Input X contains infinity"):
        failed.partial_fit(with_value(X, np.inf), y)
    with pytest.raises(ValueError, match="infinity in item 30"):
        failed.set_params(batch_size=20).partial_fit(infinity_in_the_middle(X, y), y)
    failed.set_params(batch_size=256)
    clean.partial_fit(X, y)
    failed.partial_fit(X, y)
    np.testing.assert_array_equal(clean.last_layer_coef_, failed.last_layer_coef_)
    assert len(clean.history_) == len(failed.history_) == 6
