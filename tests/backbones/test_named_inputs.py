"""Integers that a backbone looks up, and several inputs by name."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder
from skorch.helper import SliceDict
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone, MLPBackbone

rng = np.random.default_rng(0)
CODES = rng.integers(0, 12, (400, 3))
NUMBERS = rng.normal(size=(400, 4))
TABLE = rng.normal(size=12)
Y = TABLE[CODES].sum(1) + 0.1 * rng.normal(size=400)  # no function of the codes' size
NAMED = {"numbers": NUMBERS, "codes": CODES}
Y_NAMED = Y + NUMBERS[:, 0]
NEW_CODES, NEW_NUMBERS = rng.integers(0, 12, (400, 3)), rng.normal(size=(400, 4))
NEW, NEW_Y = {"numbers": NEW_NUMBERS, "codes": NEW_CODES}, TABLE[NEW_CODES].sum(1)


class Embedded(nn.Module):
    """Looks codes up; torch's embeddings refuse floats."""

    def __init__(self, width=16):
        super().__init__()
        self.table, self.hidden = nn.Embedding(12, 4), nn.Linear(12, width)

    def forward(self, inputs):
        return self.hidden(self.table(inputs).flatten(1)).relu()


class OneHot(nn.Module):
    """Casts to float32 itself, also where the rest would be float64."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(36, 16)

    def forward(self, inputs):
        return self.hidden(F.one_hot(inputs, 12).flatten(1).float()).relu()


class Mixed(nn.Module):
    """Numbers and codes, each by its name."""

    def __init__(self):
        super().__init__()
        self.embedded, self.numbers = Embedded(), nn.Linear(4, 16)

    def forward(self, numbers, codes):
        return torch.tanh(self.numbers(numbers)) + self.embedded(codes)


class Whole(Mixed):
    """A whole network: its last layer is split off."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(16, 1)

    def forward(self, numbers, codes):
        return self.last(super().forward(numbers, codes))


def regressor(backbone, **parameters):
    return CFLLRegressor(backbone, **{"max_epochs": 8, "random_state": 0, **parameters})


def dtypes_seen(model, X):
    """In what dtypes the backbone gets its inputs, by position or by name."""
    seen = []
    handle = model.backbone_.register_forward_pre_hook(
        lambda _, inputs, named: seen.append([part.dtype for part in (*inputs, *named.values())]),
        with_kwargs=True,
    )
    model.predict(X)
    handle.remove()
    return seen[0]


def pick(named, rows):
    return {name: part[rows] for name, part in named.items()}


# -- integers -----------------------------------------------------------------------------------


def mapped(tmp_path):
    np.save(tmp_path / "codes.npy", CODES)
    return np.load(tmp_path / "codes.npy", mmap_mode="r")


FORMS = {
    "int64": lambda path: CODES,
    "int32": lambda path: CODES.astype(np.int32),
    "uint8": lambda path: CODES.astype(np.uint8),
    "uint32": lambda path: CODES.astype(np.uint32),
    "list": lambda path: CODES.tolist(),
    "tensor": lambda path: torch.as_tensor(CODES),
    "frame": lambda path: pd.DataFrame(CODES, columns=list("abc")),
    "nullable": lambda path: pd.DataFrame(CODES, columns=list("abc")).astype("Int64"),
    "whole_floats": lambda path: CODES.astype(float),
    "memmap": mapped,
    "dataset": lambda path: TensorDataset(torch.as_tensor(CODES), torch.as_tensor(Y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_embedding_gets_integers_whatever_they_come_in(form, tmp_path):
    X, network = FORMS[form](tmp_path), Embedded()
    expected = regressor(network).fit(CODES, Y)
    model = regressor(network).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), expected.predict(CODES))
    np.testing.assert_array_equal(model.features(X), expected.features(CODES))


@pytest.mark.parametrize("n_rows", [120, 400], ids=["float64", "float32"])
@pytest.mark.parametrize("Network", [Embedded, OneHot])
def test_codes_are_learnt(Network, n_rows):
    X, y = CODES[:n_rows], Y[:n_rows]
    model = regressor(Network(), max_epochs=60).fit(X, y)
    assert model.score(NEW_CODES, NEW_Y) > (0.6 if n_rows == 120 else 0.95)


def test_codes_go_on_in_every_method():
    model = regressor(Embedded()).fit(CODES, Y, X_val=CODES[:50], y_val=Y[:50])
    assert model.predict(CODES, return_std=True)[1].shape == (400,)
    assert model.predict_interval(CODES[:7])[0].shape == (7,)
    model.adapt(CODES, Y)
    with torch.no_grad():
        outputs = model.to_torch()(torch.as_tensor(CODES)).numpy()[:, 0]
    np.testing.assert_allclose(outputs, model.predict(CODES), atol=1e-5)
    model.partial_fit(CODES, Y)
    first = regressor(Embedded()).partial_fit(CODES, Y)
    assert np.isfinite(first.predict(CODES)).all()
    labels = CFLLClassifier(Embedded(), max_epochs=20, random_state=0).fit(CODES, Y > 0)
    assert labels.score(NEW_CODES, NEW_Y > 0) > 0.8


def test_codes_survive_pickling_copying_and_saving(tmp_path):
    model = regressor(Embedded()).fit(CODES, Y)
    model.save(tmp_path / "model")
    loaded = CFLLRegressor.load(tmp_path / "model", backbone=Embedded())
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), loaded):
        np.testing.assert_array_equal(other.predict(CODES), model.predict(CODES))
        other.partial_fit(CODES, Y)
    again = clone(model).fit(CODES, Y)
    np.testing.assert_array_equal(again.predict(CODES), model.predict(CODES))


def test_codes_through_an_encoder_that_gives_floats():
    letters = np.array(list("abcdefghijkl"))
    model = make_pipeline(OrdinalEncoder(), regressor(Embedded(), max_epochs=40))
    assert model.fit(letters[CODES], Y).score(letters[NEW_CODES], NEW_Y) > 0.9


@pytest.mark.parametrize("X", [CODES, CODES.astype(np.uint8), CODES > 5], ids=["int", "u8", "bool"])
def test_a_network_of_numbers_gets_integers_as_floats(X):
    def network():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))

    expected = regressor(network()).fit(X.astype(float), Y).predict(X.astype(float))
    np.testing.assert_array_equal(regressor(network()).fit(X, Y).predict(X), expected)


def test_images_of_bytes_reach_a_convolution():
    images = rng.integers(0, 255, (60, 1, 8, 8)).astype(np.uint8)
    model = regressor(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten()), max_epochs=2)
    assert model.fit(images, Y[:60]).predict(images).shape == (60,)


def test_integers_beyond_float_are_not_rounded():
    class Hashed(Embedded):
        def forward(self, inputs):
            return super().forward(inputs.long() % 12)

    shift = 12 * (2**60 // 12)
    model = regressor(Hashed(), max_epochs=60).fit(CODES + shift, Y)
    assert model.score(NEW_CODES + shift, NEW_Y) > 0.95
    assert dtypes_seen(model, NEW_CODES + shift) == [torch.int64]


def test_numbers_that_cannot_be_looked_up_are_refused():
    with pytest.raises(ValueError, match=r"embedding, which looks up integers.*OrdinalEncoder"):
        regressor(Embedded()).fit(CODES + 0.5, Y)
    model = regressor(Embedded(), max_epochs=1).fit(CODES, Y)
    np.testing.assert_array_equal(model.predict(CODES * 1.0), model.predict(CODES))
    with pytest.raises(ValueError, match=r"X contains 7\.5.*whole numbers"):
        model.predict(np.full((2, 3), 7.5))


@pytest.mark.parametrize("method", ["fit", "predict"])
def test_codes_beyond_the_embedding_are_named(method):
    model = regressor(Embedded(), max_epochs=1).fit(CODES, Y)
    before = model.predict(CODES)
    with pytest.raises(ValueError, match=r"'table': 12.*'X': '1 to 12'"):
        model.fit(CODES + 1, Y) if method == "fit" else model.predict(CODES + 1)
    np.testing.assert_array_equal(model.predict(CODES), before)


# -- several inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize("Network", [Mixed, Whole])
def test_named_inputs_reach_the_arguments_of_forward(Network):
    model = regressor(Network(), max_epochs=40).fit(NAMED, Y_NAMED)
    assert model.score(NEW, NEW_Y + NEW_NUMBERS[:, 0]) > 0.9
    assert dtypes_seen(model, NEW) == [torch.float32, torch.int64]
    assert not hasattr(model, "n_features_in_")
    backwards = dict(reversed(NAMED.items()))
    np.testing.assert_array_equal(model.predict(backwards), model.predict(NAMED))
    with torch.no_grad():
        outputs = model.to_torch()(
            numbers=torch.as_tensor(NUMBERS).float(), codes=torch.as_tensor(CODES)
        )
    np.testing.assert_allclose(outputs.numpy()[:, 0], model.predict(NAMED), atol=1e-5)


def test_named_inputs_go_on_in_every_method():
    validation = pick(NAMED, slice(50))
    model = regressor(Mixed()).fit(NAMED, Y_NAMED, X_val=validation, y_val=Y_NAMED[:50])
    assert model.features(NAMED).shape == (400, 16)
    assert model.predict(NAMED, return_std=True)[1].shape == (400,)
    assert model.predict_interval(pick(NAMED, slice(7)))[0].shape == (7,)
    model.adapt(NAMED, Y_NAMED).partial_fit(NAMED, Y_NAMED)
    regressor(Mixed(), warm_start=True, max_epochs=1).fit(NAMED, Y_NAMED).fit(NAMED, Y_NAMED)
    regressor(Mixed()).partial_fit(pick(NAMED, slice(1)), Y_NAMED[:1])
    labels = CFLLClassifier(Mixed(), max_epochs=20, random_state=0).fit(NAMED, Y_NAMED > 0)
    assert labels.predict_proba(NAMED).shape == (400, 2)


def test_weights_of_named_inputs_are_repetitions():
    weights = rng.integers(0, 3, 60)
    options = {"batch_size": "full", "early_stopping": False, "max_epochs": 4}
    X, y = pick(NAMED, slice(60)), Y_NAMED[:60]
    weighted = regressor(Mixed(), **options)
    repeated = clone(weighted)
    weighted.fit(X, y, sample_weight=weights)
    repeated.fit({k: v.repeat(weights, axis=0) for k, v in X.items()}, y.repeat(weights))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6, atol=1e-8)


def test_named_inputs_survive_pickling_copying_and_saving(tmp_path):
    model = regressor(Whole()).fit(NAMED, Y_NAMED)
    model.save(tmp_path / "model")
    loaded = CFLLRegressor.load(tmp_path / "model", backbone=Whole())
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), loaded):
        np.testing.assert_array_equal(other.predict(NAMED), model.predict(NAMED))
        other.partial_fit(NAMED, Y_NAMED)


def test_a_search_selects_rows_of_a_slice_dict():
    X = SliceDict(**NAMED)
    model = regressor(Mixed(), max_epochs=2)
    np.testing.assert_array_equal(
        clone(model).fit(X, Y_NAMED).predict(X), model.fit(NAMED, Y_NAMED).predict(NAMED)
    )
    search = GridSearchCV(model, {"ridge": [0.1, 1.0]}, cv=2, error_score="raise").fit(X, Y_NAMED)
    assert search.predict(X).shape == (400,)
    assert cross_val_predict(model, X, Y_NAMED, cv=2).shape == (400,)


class Pairs(Dataset):
    def __len__(self):
        return len(Y_NAMED)

    def __getitem__(self, index):
        return pick(NAMED, index), Y_NAMED[index]


def test_a_dataset_may_give_named_inputs(tmp_path):
    model = regressor(Mixed()).fit(NAMED, Y_NAMED)
    expected = model.predict(NAMED)
    model.fit(Pairs())
    np.testing.assert_allclose(model.predict(Pairs()), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(NAMED), model.predict(Pairs()))
    with pytest.raises(ValueError, match="one array, but.*inputs named"):
        model.predict(TensorDataset(torch.as_tensor(NUMBERS)))


def test_named_inputs_may_be_frames_tensors_and_memory_maps(tmp_path):
    given = {"numbers": pd.DataFrame(NUMBERS), "codes": mapped(tmp_path)}
    tensors = {name: torch.as_tensor(part) for name, part in NAMED.items()}
    model = regressor(Mixed())
    expected = model.fit(NAMED, Y_NAMED).predict(NAMED)
    for X in (given, tensors):
        model.fit(X, Y_NAMED)
        np.testing.assert_array_equal(model.predict(X), expected)


def test_a_mask_stays_a_mask_and_an_input_may_have_one_dimension():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 8)

        def forward(self, user, hidden):
            return self.table(user).masked_fill(hidden[:, None], 0.0)  # of floats: an error

    X = {"user": CODES[:, 0], "hidden": CODES[:, 1] > 9}
    features = regressor(Masked(), max_epochs=2).fit(X, Y).features(X)
    assert (features[X["hidden"]] == 0).all() and (features[~X["hidden"]] != 0).all()


def test_many_named_codes():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 8)

        def forward(self, **codes):
            return sum(self.table(each) for each in codes.values())

    X = {f"column_{i}": CODES[:, i % 3] for i in range(8)}
    assert regressor(Many(), max_epochs=2).fit(X, Y).predict(X).shape == (400,)


def test_a_callable_gets_the_shapes_by_name():
    seen = []

    def build(input_shape):
        seen.append(input_shape)
        return Mixed()

    regressor(build, max_epochs=1).fit(NAMED, Y_NAMED)
    assert seen == [{"numbers": (4,), "codes": (3,)}]


def test_columns_of_an_earlier_fit_are_forgotten():
    model = regressor(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), max_epochs=1)
    model.fit(pd.DataFrame(NUMBERS, columns=list("abcd")), Y)
    model.set_params(backbone=Mixed()).fit(NAMED, Y)
    assert not hasattr(model, "n_features_in_") and not hasattr(model, "feature_names_in_")
    assert np.isfinite(model.predict(NAMED)).all()


def fitted():
    return regressor(Mixed(), max_epochs=1).fit(NAMED, Y_NAMED)


NUMBERS_NAN = np.where(NUMBERS > 2, np.nan, NUMBERS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(pick(NAMED, slice(99)), Y), "X has 99 samples, y has 400"),
        (lambda m: m.fit({**NAMED, "codes": CODES[1:]}, Y), "'numbers': 400, 'codes': 399"),
        (lambda m: m.fit({**NAMED, "numbers": NUMBERS_NAN}, Y), r"X\['numbers'\].*NaN"),
        (lambda m: m.fit({**NAMED, "codes": [["a"]] * 400}, Y), r"X\['codes'\]"),
        (lambda m: m.fit({"numbers": NUMBERS, "kodes": CODES}, Y), "unexpected keyword.*'kodes'"),
        (lambda m: m.fit({}, Y), "empty dict"),
        (lambda m: m.fit({"two words": NUMBERS}, Y), "keyword arguments.*'two words'"),
        (lambda m: m.fit(NAMED, Y, sample_weight=np.ones(3)), "sample_weight"),
        (lambda m: m.predict({"numbers": NUMBERS}), r"X lacks \['codes'\].*fitted on inputs"),
        (lambda m: m.predict({**NAMED, "more": CODES}), r"X adds \['more'\]"),
        (lambda m: m.predict(NUMBERS), "one array, but.*inputs named"),
        (lambda m: m.predict({**NAMED, "numbers": NUMBERS[:, 0]}), r"X\['numbers'\] has samples"),
        (lambda m: m.predict({**NAMED, "numbers": NUMBERS[:, :2]}), "backbone cannot take"),
        (lambda m: regressor(None).fit(NAMED, Y), "'numbers', 'codes'.*Pass a `backbone`"),
        (lambda m: regressor(MLPBackbone()).fit(NAMED, Y), "An MLP needs samples of shape"),
        (lambda m: regressor(FNOBackbone()).fit(NAMED, Y), "FNOBackbone takes one field"),
    ],
)
def test_what_is_wrong_with_named_inputs_is_said(call, message):
    model = fitted()
    before = model.predict(NAMED)
    with pytest.raises(ValueError, match=message):
        call(model)
    np.testing.assert_array_equal(model.predict(NAMED), before)


def test_an_array_is_not_named_inputs():
    model = regressor(nn.Linear(4, 1), max_epochs=1).fit(NUMBERS, Y)
    with pytest.raises(ValueError, match=r"inputs named.*fitted on one array"):
        model.predict(NAMED)
