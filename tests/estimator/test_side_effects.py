"""Randomness depends on the seed alone; global states are kept, and nothing is printed."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_regression

from helpers import BOTH, data_for, raw, small
from sklearn_cfll import CFLLRegressor

# -- randomness -------------------------------------------------------------------------------


@BOTH
def test_same_seed_same_result_to_the_last_bit(Estimator):
    X, y = data_for(Estimator, 250)
    options = {"batch_size": 50, "dropout": 0.2, "hidden_layer_sizes": (16, 16)}
    first = raw(small(Estimator, random_state=3, **options).fit(X, y), X)
    np.random.seed(torch.randint(99, ()).item())
    np.testing.assert_array_equal(
        raw(small(Estimator, random_state=3, **options).fit(X, y), X), first
    )
    other = raw(small(Estimator, random_state=4, **options).fit(X, y), X)
    assert not np.allclose(other, first)


@BOTH
def test_random_state_instance_advances(Estimator):
    X, y = data_for(Estimator)
    generator = np.random.RandomState(0)
    first = raw(small(Estimator, random_state=generator).fit(X, y), X)
    second = raw(small(Estimator, random_state=generator).fit(X, y), X)
    again = raw(small(Estimator, random_state=np.random.RandomState(0)).fit(X, y), X)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


@BOTH
def test_no_random_state_means_fresh_seeds(Estimator):
    X, y = data_for(Estimator)
    model = small(Estimator, random_state=None)
    np.random.seed(0)
    torch.manual_seed(0)
    first = raw(model.fit(X, y), X)
    np.random.seed(0)
    torch.manual_seed(0)
    assert not np.allclose(raw(model.fit(X, y), X), first)


def rebuild(model, X, y):
    model.__setstate__(model.__getstate__())


METHODS = {
    "fit": lambda model, X, y: model.fit(X, y),
    "fit_without_seed": lambda model, X, y: model.set_params(random_state=None).fit(X, y),
    "partial_fit": lambda model, X, y: model.partial_fit(X, y),
    "predict": lambda model, X, y: model.predict(X),
    "score": lambda model, X, y: model.score(X, y),
    "features": lambda model, X, y: model.features(X),
    "adapt": lambda model, X, y: model.adapt(X, y),
    "to_torch": lambda model, X, y: model.to_torch(),
    "pickling": rebuild,
}


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_global_state_of_torch_and_numpy_is_left_alone(Estimator, method):
    X, y = data_for(Estimator, 220)
    model = small(Estimator, dropout=0.3, hidden_layer_sizes=(16, 16), batch_size=40, max_epochs=2)
    model.fit(X, y)

    def state():
        return (
            torch.get_rng_state().tolist(),
            str(np.random.get_state()),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
        )

    before = state()
    METHODS[method](model, X, y)
    assert state() == before


def test_global_state_is_left_alone_where_fit_fails():
    X, y = data_for(CFLLRegressor)
    before = torch.get_rng_state(), str(np.random.get_state())
    with pytest.raises(FloatingPointError, match="diverged in epoch"):
        small(
            CFLLRegressor,
            hidden_layer_sizes=(32, 32),
            optimizer="sgd",
            learning_rate=1e12,
            batch_size=32,
        ).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == before[1]


# -- silence and progress ---------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_said_at_verbose_0(Estimator, method, capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    X, y = data_for(Estimator, 220)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(Estimator, max_epochs=2).fit(X, y)
        METHODS[method](model, X, y)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    assert not list(tmp_path.iterdir())


@BOTH
def test_verbose_1_shows_one_bar_on_stderr(Estimator, capfd):
    X, y = data_for(Estimator, 220)
    small(Estimator, verbose=1, max_epochs=3).fit(X, y)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "3/3" in captured.err
    for word in ("epoch", "train=", "valid=", "rate="):
        assert word in captured.err


@BOTH
def test_every_stage_of_a_fit_is_named(Estimator, capfd, caplog):
    X, y = data_for(Estimator, 220)
    with caplog.at_level("INFO", logger="sklearn_cfll"):
        small(Estimator, verbose=1, max_epochs=3).fit(X, y)
    stages = [record.args[0] for record in caplog.records]
    assert stages[0] == "checks" and stages[-1] == "importances and scores"
    assert {"columns", "epochs", "final solve"} <= set(stages)
    assert all(record.args[1] >= 0.0 for record in caplog.records)
    err = capfd.readouterr().err
    assert all(stage in err for stage in stages) and "row" in err


@BOTH
def test_verbose_2_prints_the_table_of_skorch(Estimator, capfd):
    X, y = data_for(Estimator, 220)
    small(Estimator, verbose=2, max_epochs=3).fit(X, y)
    lines = capfd.readouterr().out.splitlines()
    for column in ("epoch", "train_loss", "valid_loss", "learning_rate", "dur"):
        assert column in lines[0]
    assert len(lines) == 2 + 3


@pytest.mark.parametrize("n_rows", [60, 400], ids=["float64", "float32"])
def test_read_only_arrays_pass_without_a_warning(n_rows):
    """As joblib's memory maps are; torch warns once a process unless asked to do so always."""
    X, y = make_regression(n_rows, 4, random_state=0)
    weights = np.ones(n_rows)
    for array in (X, y, weights):
        array.flags.writeable = False
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = CFLLRegressor(max_epochs=1, normalize_y=False, random_state=0)
            model.fit(X, y, sample_weight=weights).predict(X)
    finally:
        torch.set_warn_always(always)
