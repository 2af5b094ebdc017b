"""Columns that matter get larger scales before an estimator is trained."""

import warnings

import numpy as np
import pytest
import torch

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.training import column_scales as module_under_test
from sklearn_cfll.training.net import CFLLNet

NARROW = {"hidden_layer_sizes": (16, 16), "random_state": 0}


def factors(model):
    """What each input of the networks is multiplied by; (m, 1, p) if members hold out folds."""
    columns = model.backbone_.columns
    if columns.column_scale is None:
        return []
    return list(columns.column_scale.split(columns.widths, dim=-1))


def noisy_columns(n_rows=400, n_columns=20, seed=0):
    X = np.random.RandomState(seed).uniform(-1, 1, (n_rows, n_columns))
    return X, np.sin(3 * X[:, 0]) + X[:, 1] * X[:, 2]


@BOTH
def test_columns_that_matter_get_the_larger_scales(Estimator):
    X, y = noisy_columns(n_rows=1000)
    columns = None
    if Estimator is CFLLClassifier:
        y, columns = np.digitize(y, [-0.5, 0.5]), ColumnEncoder(n_bins=0, quantiles=True)
    found = factors(Estimator(max_epochs=10, columns=columns, random_state=0).fit(X, y))
    assert len(found) == (2 if Estimator is CFLLRegressor else 1)  # raw columns and bins
    assert (found[0][..., :3].amin(-1) > 1.3 * found[0][..., 3:].mean(-1)).all()
    assert found[0][..., :3].mean((0, 1)).min() > 1.5 * found[0][..., 3:].mean((0, 1)).max()
    if Estimator is CFLLRegressor:
        assert torch.equal(found[1], found[0].repeat_interleave(16, -1))


@pytest.mark.parametrize(
    "options",
    [{}, {"memory": "statistics"}, {"update_order": "backbone_first"}, {"dropout": 0.2}],
    ids=str,
)
def test_the_first_runs_leave_nothing_but_the_scales(monkeypatch, options):
    X, y = noisy_columns()
    settings = {"max_epochs": 5} | NARROW | options
    plain = CFLLRegressor(columns=ColumnEncoder(importance=False), **settings).fit(X, y)
    for name in ("LOWEST", "OFF"):  # all the same
        monkeypatch.setattr(module_under_test, name, module_under_test.HIGHEST)
    model = CFLLRegressor(**settings).fit(X, y)
    assert all(torch.equal(factor, torch.ones_like(factor)) for factor in factors(model))
    np.testing.assert_allclose(model.predict(X), plain.predict(X), rtol=1e-4, atol=1e-5)
    losses = [[row["train_loss"] for row in m.history_] for m in (model, plain)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_units_of_the_columns_do_not_matter():
    X, y = noisy_columns()
    units = np.logspace(-2, 2, 20)
    found = [
        factors(CFLLRegressor(max_epochs=5, precision="float64", **NARROW).fit(inputs, y))
        for inputs in (X, X * units + units)
    ]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("n_rows", "parameters"),
    [
        (30, {}),
        (70, {}),
        (400, {"columns": ColumnEncoder(importance=False)}),
        (400, {"early_stopping": False}),
    ],
    ids=["few rows", "few training rows", "switched off", "no rows held out"],
)
def test_where_columns_are_not_scaled(n_rows, parameters):
    X, y = noisy_columns(n_rows)
    model = CFLLRegressor(max_epochs=3, **NARROW, **parameters).fit(X, y)
    streamed = CFLLRegressor(**NARROW).partial_fit(X, y)
    for factor in factors(model) + factors(streamed):
        assert bool((factor == 1).all())


def test_many_targets_and_one_column():
    X, y = noisy_columns()
    many = np.stack([y * k for k in range(1, 21)], axis=1)
    assert len(CFLLRegressor(max_epochs=2, **NARROW).fit(X, many).predict(X).T) == 20
    CFLLRegressor(max_epochs=2, **NARROW).fit(X[:, :1], y)


def test_an_interrupt_before_training_keeps_the_previous_fit(monkeypatch):
    X, y = noisy_columns()
    model = CFLLRegressor(max_epochs=3, **NARROW).fit(X, y)
    before = model.predict(X)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(CFLLNet, "train_step", interrupt)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KeyboardInterrupt):
            model.fit(X + 1, y)
    np.testing.assert_array_equal(model.predict(X), before)
