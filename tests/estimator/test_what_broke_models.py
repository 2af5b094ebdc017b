"""Faults found by trying to break the estimators: each test fails on the code before."""

import copy
import pickle

import numpy as np
import pytest
import skorch
import torch
from torch import nn

from sklearn_cfll import CFLLRegressor, ClosedFormLastLayer, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4))
Y = X[:, 0] + np.abs(X[:, 1])
BRIEF = {"hidden_layer_sizes": (8,), "max_epochs": 3, "random_state": 0}


@pytest.mark.parametrize(
    "change", [{"quantiles": True}, {"n_bins": 0}, {"importance": False}], ids=str
)
def test_an_encoder_that_was_changed_after_the_fit_leaves_copies_and_files_whole(change, tmp_path):
    columns = ColumnEncoder()
    model = CFLLRegressor(columns=columns, **BRIEF).fit(X, Y)
    columns.set_params(**change)
    model.save(tmp_path / "model.npz")
    loaded = CFLLRegressor.load(tmp_path / "model.npz")
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), loaded):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_an_interrupt_while_a_loaded_model_builds_its_net_leaves_it_whole(monkeypatch):
    model = CFLLRegressor(warm_start=True, **BRIEF).fit(X, Y)
    loaded, other = (pickle.loads(pickle.dumps(model)) for _ in range(2))

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "load_state_dict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loaded.partial_fit(X, Y)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    for each in (loaded, other):
        each.partial_fit(X, Y)
    np.testing.assert_array_equal(loaded.predict(X), other.predict(X))


@pytest.mark.parametrize(
    "model",
    [
        CFLLRegressor(MLPBackbone((8,)), max_epochs=2, random_state=0),
        CFLLRegressor(nn.LazyLinear(4), columns=ColumnEncoder(0), max_epochs=2, random_state=0),
        CFLLRegressor(**BRIEF),
    ],
    ids=["recipe", "own", "default"],
)
def test_columns_of_booleans_pass_every_encoder(model):
    truth = X > 0
    model.fit(truth, Y)
    np.testing.assert_allclose(model.predict(truth), model.predict(truth * 1.0))
    with torch.no_grad():
        exported = model.to_torch()(torch.from_numpy(truth))[:, 0]
    np.testing.assert_allclose(exported, model.predict(truth), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("event", ["on_epoch_begin", "on_epoch_end", "on_batch_begin"])
@pytest.mark.parametrize("after", [0, 2])
def test_a_callback_may_end_training_at_any_event(event, after):
    class Stop(skorch.callbacks.Callback):
        pass

    def stop(self, net, **kwargs):
        if len(net.history) > after:
            raise KeyboardInterrupt

    setattr(Stop, event, stop)
    model = CFLLRegressor(linear_part=False, callbacks=[("stop", Stop())], **BRIEF)
    if event == "on_batch_begin":
        with pytest.warns(UserWarning, match=f"interrupted after {after} epochs"):
            model.fit(X, Y)
    else:
        model.fit(X, Y)
    assert model.n_iter_ == after + (event == "on_epoch_end")
    assert np.isfinite(model.predict(X)).all()
    model.set_params(callbacks=None).partial_fit(X, Y)


def test_wide_integers_keep_their_digits_in_every_perceptron():
    stamps = (1_700_000_000_000 + RNG.integers(0, 86_400_000, 400))[:, None]
    options = {"columns": "passthrough", "max_epochs": 1, "random_state": 0}
    one = CFLLRegressor(hidden_layer_sizes=(8,), n_members=4, **options)
    other = CFLLRegressor(MLPBackbone((8,), n_members=4), **options)
    y = np.sin(stamps[:, 0] / 1e7)
    for model in (one, other):
        assert model.fit(stamps, y).resolved_["precision"] == "float64"
    np.testing.assert_array_equal(one.predict(stamps), other.predict(stamps))


def test_an_encoding_that_a_network_cannot_take_is_named():
    model = CFLLRegressor(nn.Linear(4, 8), columns=ColumnEncoder(), max_epochs=1)
    with pytest.raises(ValueError, match=r"`columns` makes 68 numbers of the columns of X.*Lazy"):
        model.fit(X, Y)


@pytest.mark.parametrize("ridge", [-1.0, np.nan, np.inf, "auto"])
def test_a_ridge_that_is_none_is_named_wherever_it_is_given(ridge):
    features, targets = torch.randn(20, 3), torch.randn(20, 1)
    layer = ClosedFormLastLayer(3, 1)
    for call in (
        lambda: layer.refit([(features, targets)], ridge=ridge),
        lambda: layer.refit([(features, targets)]).solve(ridge),
    ):
        with pytest.raises(ValueError, match="`ridge` must be zero or positive and finite, got"):
            call()
    layer.ridge = ridge
    with pytest.raises(ValueError, match="`ridge` must be zero or positive"):
        layer.step(features, targets)


@pytest.mark.parametrize("images", [np.zeros((20, 8, 8)), torch.zeros(20, 1, 4, 4)], ids=len)
def test_images_without_a_network_are_told_what_they_need(images):
    with pytest.raises(
        ValueError, match=r"Found array with dim \d: .*Pass a `backbone` for images"
    ):
        CFLLRegressor().fit(images, np.arange(20.0))
