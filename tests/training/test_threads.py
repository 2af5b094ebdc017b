"""Fits in threads, the caller's settings of torch, and how many threads a fit computes with."""

import contextlib
import copy
import dataclasses
import functools
import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLNet, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.dropout import SeededDropout, seed_dropout
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.training.seeding import draws_globally

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 3))
y = X[:, 0] * X[:, 1] + X[:, 2]
Z = X[:, :1] + rng.normal(size=(60, 1))


class FunctionalDropout(nn.Module):
    """Nobody sees from outside that it draws."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, inputs):
        hidden = nn.functional.dropout(self.first(inputs).relu(), 0.3, self.training)
        return self.second(hidden).tanh()


def sequential(shape):
    return nn.Sequential(nn.Linear(shape[0], 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 4))


class NoisyGradients(Callback):
    def on_grad_computed(self, net, named_parameters, **kwargs):
        for _, parameter in named_parameters:
            parameter.grad += 0.1 * torch.randn_like(parameter.grad)


FUNCTIONAL = FunctionalDropout()
KNOWN = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
LAZY = nn.Sequential(nn.LazyLinear(8), nn.Tanh())
TINY = {"hidden_layer_sizes": (8, 8), "max_epochs": 2, "batch_size": 20}
OURS = {
    "regressor": lambda seed: CFLLRegressor(random_state=seed, **TINY),
    "dropout": lambda seed: CFLLRegressor(random_state=seed, dropout=0.3, **TINY),
    "one member": lambda seed: CFLLRegressor(
        random_state=seed,
        dropout=0.3,
        n_members=1,
        columns=ColumnEncoder(n_bins=0),
        early_stopping=False,
        **TINY,
    ),
    "recipe": lambda seed: CFLLRegressor(
        MLPBackbone((8, 8), dropout=0.3), random_state=seed, max_epochs=2, batch_size=20
    ),
    "known layers": lambda seed: CFLLRegressor(
        KNOWN, random_state=seed, max_epochs=2, batch_size=20
    ),
    "classifier": lambda seed: CFLLClassifier(random_state=seed, dropout=0.3, **TINY),
    "instruments": lambda seed: CFLLIVRegressor(
        instrument_backbone=MLPBackbone((8, 8), dropout=0.3), random_state=seed, max_epochs=2
    ),
}
THEIRS = {
    "callable": lambda seed: CFLLRegressor(sequential, random_state=seed, max_epochs=2),
    "functional": lambda seed: CFLLRegressor(
        FUNCTIONAL, random_state=seed, max_epochs=3, batch_size=20
    ),
    "lazy": lambda seed: CFLLRegressor(LAZY, random_state=seed, max_epochs=2),
    "classifier's": lambda seed: CFLLClassifier(sequential, random_state=seed, max_epochs=2),
    "instruments'": lambda seed: CFLLIVRegressor(
        instrument_backbone=sequential, random_state=seed, max_epochs=2
    ),
    "noisy gradients": lambda seed: CFLLRegressor(
        random_state=seed, callbacks=[NoisyGradients()], **TINY
    ),
}
ALL = {**OURS, **THEIRS}


def fitted(estimator):
    if isinstance(estimator, CFLLIVRegressor):
        return estimator.fit(X[:, :1], y, Z=Z)
    return estimator.fit(X, y > 0 if isinstance(estimator, CFLLClassifier) else y)


def predicted(estimator):
    if isinstance(estimator, CFLLIVRegressor):
        return np.concatenate(estimator.predict(X[:, :1], return_std=True))
    if isinstance(estimator, CFLLClassifier):
        return estimator.predict_proba(X)
    if estimator.early_stopping is False:
        return estimator.predict(X)
    return np.concatenate(estimator.predict(X, return_std=True))


def assert_equal_in_threads(make, seeds):
    serial = [predicted(fitted(make(seed))) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda seed: predicted(fitted(make(seed))), seeds))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


# -- random numbers ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")  # of weak instruments
@pytest.mark.parametrize("name", ALL)
def test_fits_in_four_threads_equal_serial_ones(name):
    state, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert_equal_in_threads(ALL[name], range(2 if "instruments" in name else 4))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpys)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_100_fits_in_four_threads_equal_serial_ones(name):
    assert_equal_in_threads(ALL[name], range(30 if "instruments" in name else 100))


@pytest.mark.parametrize("name", OURS)
def test_another_thread_never_sees_the_fit_of_our_own_networks(name):
    drawn, done = [], threading.Event()

    def draw():
        while not done.is_set() and len(drawn) < len(expected):
            drawn.append(float(torch.rand(())))

    torch.manual_seed(1)
    expected = [float(torch.rand(())) for _ in range(20_000)]
    torch.manual_seed(1)
    thread = threading.Thread(target=draw)
    thread.start()
    model = fitted(OURS[name](0))
    predicted(pickle.loads(pickle.dumps(model)))
    done.set()
    thread.join()
    n = min(len(drawn), len(expected))
    assert n > 0 and drawn[:n] == expected[:n]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_callers_state_returns_where_a_step_raises(error):
    class Raises(FunctionalDropout):
        def forward(self, inputs):
            if self.training:
                torch.rand(1)
                raise error("by itself")
            return super().forward(inputs)

    net, state = Raises(), torch.get_rng_state()
    model = CFLLRegressor(net, random_state=0)
    with warnings.catch_warnings(), contextlib.suppress(error):
        warnings.simplefilter("ignore")  # an interrupted fit warns
        model.fit(X, y)
    assert torch.equal(torch.get_rng_state(), state)


def test_own_dropout_drops_what_torchs_would():
    inputs = torch.randn(7, 5, requires_grad=True)
    ours, theirs = (kind(0.3) for kind in (SeededDropout, nn.Dropout))
    seed_dropout(ours, torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    for _ in range(3):
        assert torch.equal(ours(inputs), theirs(inputs))
    assert torch.equal(ours.eval()(inputs), inputs)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert copied.p == 0.3 and copied.generator is None


def test_what_draws_from_torchs_global_generators():
    for silent in (
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)),
        MLPBackbone((4, 4), dropout=0.5).build((3,)),
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.0), nn.LSTM(4, 2)),
    ):
        assert not draws_globally(silent)
    for drawing in (
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)),
        nn.LSTM(3, 4, num_layers=2, dropout=0.1),
        nn.MultiheadAttention(4, 2, dropout=0.1),
        nn.Sequential(nn.RReLU()),
        LAZY,
        FUNCTIONAL,
    ):
        assert draws_globally(drawing)


class Augmented(Dataset):
    """Rows with noise from torch's global generator, as transforms of images draw it."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        row = torch.as_tensor(X[index], dtype=torch.float32)
        return row + 0.1 * torch.randn(3), torch.tensor(y[index], dtype=torch.float32)


def loader(inputs=X, targets=y):
    tensors = (torch.as_tensor(each, dtype=torch.float32) for each in (inputs, targets))
    return DataLoader(TensorDataset(*tensors), batch_size=20, shuffle=True)


@pytest.mark.parametrize("make_data", [Augmented, loader], ids=["dataset", "loader"])
def test_net_repeats_what_a_users_data_draws(make_data):
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh())
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        net = CFLLNet(copy.deepcopy(module), max_epochs=3, batch_size=20, verbose=0, random_state=0)
        found.append(net.fit(make_data()).predict(X.astype("float32")))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(*found)


def test_a_run_goes_on_as_if_it_had_not_stopped():
    weights = []
    for epochs in ((4,), (1, 3), (2, 2)):
        module = MLPBackbone((8, 8), dropout=0.4).build((3,), torch.Generator().manual_seed(0))
        net = CFLLNet(module, batch_size=20, verbose=0, random_state=0)
        for n in epochs:
            net.set_params(max_epochs=n)
            net.partial_fit(X.astype("float32"), y.astype("float32"))
        weights.append(net.module_.last_layer.weight)
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])


def test_to_torch_draws_nothing():
    images = rng.normal(size=(40, 1, 4, 4)).astype("float32")
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 1))
    model = CFLLRegressor(network, max_epochs=1, precision="float32", random_state=0)
    model.fit(images, images)
    state = torch.get_rng_state()
    module = model.to_torch()
    assert torch.equal(torch.get_rng_state(), state)
    found = module(torch.as_tensor(images)).detach().numpy()
    np.testing.assert_allclose(found, model.predict(images), rtol=1e-4, atol=1e-5)


# -- the caller's modes -----------------------------------------------------------------


@contextlib.contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default device": lambda: default_device("meta"),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dropout", "classifier", "functional", "instruments"])
def test_modes_of_the_caller_change_nothing(name, mode):
    make = ALL[name]
    plain = plain_model(name)
    expected = predicted(plain)
    with MODES[mode]():
        model = fitted(make(0))
        inside = predicted(plain)
        opened = pickle.loads(pickle.dumps(plain))
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        assert modes == (mode not in ("no_grad", "inference_mode"), mode == "inference_mode")
        assert torch.is_autocast_enabled("cpu") == (mode == "autocast")
    assert torch.is_grad_enabled()
    for found in (predicted(model), inside, predicted(opened)):
        np.testing.assert_array_equal(found, expected)
    if not isinstance(plain, CFLLIVRegressor):
        targets = y > 0 if isinstance(plain, CFLLClassifier) else y
        on = predicted_after(plain, X, targets)
        np.testing.assert_array_equal(predicted_after(opened, X, targets), on)
        with MODES[mode]():
            np.testing.assert_array_equal(predicted_after(model, X, targets), on)


@functools.cache
def plain_model(name):
    """A model that was fitted in no mode; no test may change it."""
    return fitted(ALL[name](0))


def predicted_after(model, inputs, targets):
    """What a model predicts once it was trained on."""
    copied = copy.deepcopy(model)
    copied.partial_fit(inputs, targets)
    return copied.features(inputs)


@pytest.mark.parametrize("name", ["regressor", "dropout", "classifier", "functional"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_default_dtype_moves_nothing_but_roundings(name, precision):
    expected = predicted(fitted(ALL[name](0).set_params(precision=precision)))
    torch.set_default_dtype(torch.float64)
    try:
        found = predicted(fitted(ALL[name](0).set_params(precision=precision)))
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "autocast"])
def test_net_trains_in_the_callers_modes(mode):
    found = []
    for context in (contextlib.nullcontext, MODES[mode]):
        module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.2))
        torch.manual_seed(0)
        nn.init.uniform_(module[0].weight)
        nn.init.uniform_(module[0].bias)
        net = CFLLNet(module, max_epochs=3, verbose=0, random_state=0)
        with context():
            inputs = torch.as_tensor(X, dtype=torch.float32).clone()
            targets = torch.as_tensor(y, dtype=torch.float32).clone()
            net.fit(inputs, targets)
            found.append(net.predict(inputs))
    np.testing.assert_array_equal(*found)


# -- how many threads -------------------------------------------------------------------


class Watch(Callback):
    def __init__(self):
        self.seen = set()

    def on_grad_computed(self, net, **kwargs):
        self.seen.add(torch.get_num_threads())


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def number_of_a_new_thread():
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("kind", [CFLLRegressor, CFLLClassifier])
@pytest.mark.parametrize(("given", "expected"), [(None, 1), (1, 1), (3, 3)])
def test_number_of_threads_holds_inside_alone(kind, given, expected):
    watch = Watch()
    model = kind(n_threads=given, random_state=0, callbacks=[watch], **TINY)
    for call in (model.fit, model.partial_fit):
        watch.seen.clear()
        call(X, y > 0 if kind is CFLLClassifier else y)
        assert watch.seen == {expected}
        assert torch.get_num_threads() == number_of_a_new_thread() == 2
    model.predict(X)
    assert torch.get_num_threads() == number_of_a_new_thread() == 2


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_number_of_threads_returns_after_an_error(error):
    class Raises(Callback):
        def on_epoch_begin(self, net, **kwargs):
            raise error

    model = CFLLRegressor(n_threads=3, random_state=0, callbacks=[Raises()], **TINY)
    with contextlib.suppress(BaseException):
        model.fit(X, y)
    assert torch.get_num_threads() == number_of_a_new_thread() == 2


@pytest.mark.usefixtures("two_threads")
def test_fits_in_threads_leave_the_numbers_of_all_threads():
    begun = threading.Barrier(4)

    def begin(_):  # a thread takes its number when it uses torch for the first time
        torch.get_num_threads()
        begun.wait()

    def fit(n_threads):
        before = torch.get_num_threads()
        watch = Watch()
        CFLLRegressor(n_threads=n_threads, random_state=0, callbacks=[watch], **TINY).fit(X, y)
        return before, watch.seen, torch.get_num_threads()

    numbers = [1, 2, 3] * 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(begin, range(4)))
        found = list(pool.map(fit, numbers))
    assert found == [(2, {n}, 2) for n in numbers]
    assert torch.get_num_threads() == number_of_a_new_thread() == 2


@pytest.mark.usefixtures("two_threads")
def test_few_rows_take_one_thread_and_large_products_what_torch_has():
    assert DEFAULTS.n_threads(None, 100, 1e4) == 1
    assert DEFAULTS.n_threads(None, 1000, DEFAULTS.worth_threads / 1000) == 2
    assert DEFAULTS.n_threads(5, 100, 1e4) == 5
    torch.set_num_threads(1)  # by OMP_NUM_THREADS, joblib's workers, the user
    assert DEFAULTS.n_threads(None, 1000, DEFAULTS.worth_threads) == 1


@pytest.mark.usefixtures("two_threads")
def test_large_convolutions_take_all_threads(monkeypatch):
    table = dataclasses.replace(DEFAULTS, worth_threads=1e5)
    monkeypatch.setattr(CFLLRegressor, "defaults", table)
    watch, images = Watch(), rng.normal(size=(40, 1, 8, 8))
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten())
    model = CFLLRegressor(network, max_epochs=1, random_state=0, callbacks=[watch])
    model.fit(images, images.mean((1, 2, 3)))
    assert watch.seen == {2}
    model.set_params(batch_size=1).fit(images, images.mean((1, 2, 3)))
    assert watch.seen == {1, 2}


@pytest.mark.parametrize("kind", [CFLLRegressor, CFLLClassifier])
@pytest.mark.parametrize("value", [0, -1, 1.5, "all"])
def test_number_of_threads_is_a_positive_integer(kind, value):
    with pytest.raises(ValueError, match="The 'n_threads' parameter .*must be an int"):
        kind(n_threads=value).fit(X, y > 0)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.slow
def test_number_of_threads_moves_results_by_rounding_alone():
    one, two, again = (
        predicted(fitted(CFLLRegressor(n_threads=n, random_state=0, precision="float64", **TINY)))
        for n in (1, 2, 2)
    )
    np.testing.assert_allclose(one, two, rtol=1e-6)
    np.testing.assert_array_equal(two, again)


@BOTH
def test_threads_that_would_crash_torch_are_refused(Estimator):
    X, y = rng.normal(size=(40, 2)), np.arange(40) % 2
    with pytest.raises(ValueError, match=r"`n_threads`=1000000 is more than 16 per core"):
        Estimator(n_threads=10**6).fit(X, y)
