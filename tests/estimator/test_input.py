"""Whatever numbers come in, and in whatever layout: the same predictions, or a word that helps."""

import datetime
import inspect
import re
import warnings
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import sklearn
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import make_friedman1
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLNet, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.columns.bins import PiecewiseLinear
from sklearn_cfll.columns.scaling import RobustStandardize
from sklearn_cfll.estimator.checks import Checked
from sklearn_cfll.estimator.effects import OF_TRAINING, OFF, RULES
from sklearn_cfll.estimator.validation_scale import warn_of_useless_validation
from sklearn_cfll.estimator.wild_targets import tame_targets, wild_bounds
from sklearn_cfll.instruments.data import check_instrument_data
from sklearn_cfll.training.batches import RowsDataset

SMALL = {"hidden_layer_sizes": (8,), "max_epochs": 2, "random_state": 0}
NAMES = ["age", "dose", "height"]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3))
Y = X[:, 0] + 0.1 * RNG.normal(size=60)
WEIGHT = np.arange(60.0) + 1
LABELS = np.array(["Oslo", "Rome", "Wien"])[np.arange(60) % 3]

# -- layouts and containers -------------------------------------------------------------------

LAYOUTS = {
    "reversed": lambda a: a[::-1].copy()[::-1],
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "big-endian": lambda a: a.astype(">f8"),
    "longdouble": lambda a: a.astype(np.longdouble),
    "objects": lambda a: a.astype(object),
    "read-only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape),
    "columns first": np.asfortranarray,
    "reversed columns": lambda a: a[..., ::-1].copy()[..., ::-1],
    "torch": lambda a: torch.tensor(a, requires_grad=True),
    "pandas": lambda a: _frame(a)[::-1].copy()[::-1],
    "pandas, nullable": lambda a: _frame(a).convert_dtypes(),
    "pandas, of arrow": lambda a: _frame(a).astype("float64[pyarrow]"),
    "polars": lambda a: pl.Series(a) if a.ndim == 1 else pl.DataFrame(a, schema=NAMES),
    "pyarrow": lambda a: (
        pa.array(a) if a.ndim == 1 else pa.table(dict(zip(NAMES, a.T.copy(), strict=True)))
    ),
}


def _frame(array):
    return pd.Series(array) if array.ndim == 1 else pd.DataFrame(array, columns=NAMES)


@pytest.fixture(scope="module")
def plain():
    return every_call(X, Y, LABELS, WEIGHT)


def every_call(inputs, y, labels, weight):
    """What all methods that take arrays make of them."""
    model = CFLLRegressor(**SMALL).fit(inputs, y, weight)
    found = [*model.predict(inputs, return_std=True), model.score(inputs, y, weight)]
    found += [model.features(inputs), *model.predict_interval(inputs, 0.5)]
    found.append(model.adapt(inputs, y, weight).predict(inputs))
    found.append(model.partial_fit(inputs, y, weight).predict(inputs))
    model = CFLLRegressor(**SMALL).fit(inputs, y, X_val=inputs, y_val=y)
    found.append(model.predict(inputs))
    classifier = CFLLClassifier(**SMALL).fit(inputs, labels, weight, X_val=inputs, y_val=labels)
    found += [classifier.predict_proba(inputs), classifier.predict(inputs) == np.asarray(labels)]
    found.append(classifier.partial_fit(inputs, labels).decision_function(inputs))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_containers_give_the_same(layout, plain):
    convert = LAYOUTS[layout]
    found = every_call(convert(X), convert(Y), LABELS, convert(WEIGHT))
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(
            np.asarray(one, float), np.asarray(other, float), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_instruments_and_confounders(layout):
    convert = LAYOUTS[layout]

    def fit(change):
        sides = change(X), change(Y), change(X[:, ::-1].copy()), change(X[:, 1])
        model = CFLLIVRegressor(max_epochs=1, n_folds=2, n_repeats=1, random_state=0)
        model.fit(*sides, sample_weight=change(WEIGHT))
        return model.predict(sides[0], sides[3]), model.score(*sides, change(WEIGHT))

    for one, other in zip(fit(convert), fit(lambda a: a), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", ">f4", "?", "i1", "u1", ">i2", "u2", "u4", "i8", "u8"]
)
def test_narrow_numbers_and_integers(dtype):
    narrow = np.abs(3 * X).astype(dtype)
    model = CFLLRegressor(**SMALL).fit(narrow, Y)
    expected = CFLLRegressor(**SMALL).fit(narrow.astype(np.float64), Y).predict(narrow)
    np.testing.assert_array_equal(model.predict(narrow), expected)
    np.testing.assert_array_equal(model.predict(narrow[::-1]), expected[::-1])


@pytest.mark.parametrize("dtype", [np.longdouble, "?", "i8"])
def test_sparse_matrices_of_other_dtypes(dtype):
    matrix = scipy.sparse.csr_matrix(np.abs(2 * X).astype(dtype))
    expected = CFLLRegressor(**SMALL).fit(matrix.astype(float), Y).predict(matrix.astype(float))
    np.testing.assert_array_equal(CFLLRegressor(**SMALL).fit(matrix, Y).predict(matrix), expected)


def test_flipped_images_and_transposed_ones():
    images = RNG.normal(size=(40, 1, 6, 5)).astype("f4")
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    options = {"max_epochs": 1, "random_state": 0}
    for changed in (images[..., ::-1], images[::-1], images.swapaxes(2, 3), images.astype(">f4")):
        model = CFLLRegressor(network, **options).fit(changed, Y[:40])
        expected = CFLLRegressor(network, **options).fit(changed.astype("f4").copy(), Y[:40])
        np.testing.assert_array_equal(
            model.predict(changed), expected.predict(changed.astype("f4").copy())
        )


@pytest.mark.parametrize("dtype", ["f8", ">f4"])
@pytest.mark.parametrize("step", [1, -1])
def test_memory_maps_of_any_layout_are_read_batch_by_batch(tmp_path, dtype, step):
    X.astype(dtype).tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype=dtype, mode="r", shape=X.shape)[::step]
    model = CFLLRegressor(**SMALL).fit(mapped, Y)
    values = np.array(mapped, dtype=np.float64)
    expected = CFLLRegressor(**SMALL).fit(values, Y).predict(values)
    np.testing.assert_allclose(model.predict(mapped), expected, rtol=1e-6)


def test_net_takes_any_layout():
    def predict(inputs, y):
        net = CFLLNet(nn.Identity(), max_epochs=1, verbose=0, random_state=0)
        return net.fit(inputs, y).predict(inputs)

    narrow = X.astype("f4")
    expected = predict(narrow, Y)
    for inputs in (narrow[::-1].copy()[::-1], narrow.astype(">f4"), narrow.astype(np.longdouble)):
        np.testing.assert_array_equal(predict(inputs, Y.astype(">f8")), expected)


FRAME = pd.DataFrame(X, columns=NAMES).assign(city=LABELS)
DATED = FRAME.assign(city=pd.date_range("2020", periods=60))
UNFIT = {
    "strings": FRAME,
    "categories": FRAME.astype({"city": "category"}),
    "string dtype": FRAME.astype({"city": "string"}),
    "polars": pl.from_pandas(FRAME),
    "polars, categories": pl.from_pandas(FRAME).with_columns(pl.col("city").cast(pl.Categorical)),
    "pyarrow": pa.Table.from_pandas(FRAME),
    "dates": DATED,
    "dates alone": DATED[["city"]],
    "dates with a zone": FRAME.assign(city=pd.date_range("2020", periods=60, tz="UTC")),
    "durations": FRAME.assign(city=pd.to_timedelta(range(60), "h")),
    "periods": FRAME.assign(city=pd.period_range("2020", periods=60)),
    "polars, dates": pl.from_pandas(DATED),
    "pyarrow, dates": pa.Table.from_pandas(DATED),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier, CFLLIVRegressor])
def test_columns_that_are_no_numbers_are_named(kind, Estimator):
    model = Estimator(**({} if Estimator is CFLLIVRegressor else SMALL))
    with pytest.raises(ValueError, match=r"Column 'city' of `X` \(dtype .*\) holds .*(first|drop)"):
        model.fit(UNFIT[kind], LABELS if Estimator is CFLLClassifier else Y)
    with pytest.raises(ValueError, match="Column 'city' of `Z`"):
        CFLLIVRegressor().fit(X, Y, Z=UNFIT[kind])


def test_dates_and_words_in_arrays():
    with pytest.raises(ValueError, match=r"Column 0 of `X` \(dtype datetime64\[D\]\) holds dates"):
        CFLLRegressor().fit(np.full((60, 2), "2020-01-01", dtype="M8[D]"), Y)
    with pytest.raises(ValueError, match="Column 1 of `X` .* holds 'b'"):
        CFLLRegressor().fit([[1, "b"]] * 60, Y)
    for y in (
        np.full(60, "2020-01-01", dtype="M8[s]"),
        pd.Series(pd.date_range("2020", periods=60)),
    ):
        for model in (CFLLRegressor(), CFLLIVRegressor()):
            with pytest.raises(ValueError, match="`y` .* holds dates"):
                model.fit(X, y)


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: pd.Series(y).astype("category"),
        lambda y: pd.Series(y, dtype="string"),
        pd.Series,
        lambda y: pl.Series(y.tolist()),
        lambda y: pl.Series(y.tolist(), dtype=pl.Categorical),
        lambda y: pa.array(y.tolist()),
        lambda y: pa.array(y.tolist()).dictionary_encode(),
        list,
    ],
)
def test_labels_in_any_container(convert):
    model = CFLLClassifier(**SMALL).fit(X, convert(LABELS))
    expected = CFLLClassifier(**SMALL).fit(X, LABELS)
    np.testing.assert_array_equal(model.classes_.astype(str), expected.classes_)
    np.testing.assert_array_equal(model.predict_proba(X), expected.predict_proba(X))
    model.partial_fit(X, convert(LABELS), classes=convert(np.unique(LABELS)))


# -- text, dates and masked values --------------------------------------------------------------


class Named(nn.Module):
    """Takes two inputs by name."""

    def __init__(self):
        super().__init__()
        self.body = nn.LazyLinear(4)

    def forward(self, a, b):
        return torch.relu(self.body(torch.cat([a, b.reshape(len(a), -1)], 1)))


IV = partial(CFLLIVRegressor, max_epochs=1, n_folds=2, n_repeats=1, random_state=0)


@pytest.fixture(scope="module")
def fitted():
    """A regressor of X, and one of X twice by name."""
    named = CFLLRegressor(Named(), max_epochs=1, random_state=0)
    return CFLLRegressor(**SMALL).fit(X, Y), named.fit({"a": X, "b": X}, Y)


TEXT = np.array([[repr(float(value)) for value in row] for row in X])
READABLE = {
    "strings": TEXT,
    "lists": TEXT.tolist(),
    "bytes": TEXT.astype("S"),
    "string dtype": pd.DataFrame(TEXT).astype("string"),
    "categories": pd.DataFrame(TEXT).astype("category"),
    "decimals": np.array([[Decimal(value) for value in row] for row in TEXT]),
    "nothing masked": np.ma.masked_array(X, mask=np.zeros(X.shape, bool)),
}
WIDE = np.dtypes.StringDType if hasattr(np.dtypes, "StringDType") else None
if WIDE is not None:  # NumPy 2
    READABLE["variable width"] = TEXT.astype(WIDE())


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.filterwarnings("ignore:X has feature names")
def test_text_that_holds_numbers_is_read_as_scikit_learn_reads_it(kind, fitted):
    given, (model, named) = READABLE[kind], fitted
    np.testing.assert_array_equal(model.predict(given), model.predict(X))
    found, expected = (named.predict({"a": X, "b": each}) for each in (given, X))
    np.testing.assert_array_equal(found, expected)
    if kind == "lists":  # as csv.reader gives them
        again = CFLLRegressor(**SMALL).fit(given, Y)
        np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_words_among_numbers_in_text():
    words = TEXT.copy()
    words[3, 1] = "tall"
    kinds = [words, words.tolist(), *([] if WIDE is None else [words.astype(WIDE())])]
    for given in kinds:
        with pytest.raises(ValueError, match="Column 1 of `X` .* holds 'tall'"):
            CFLLRegressor(**SMALL).fit(given, Y)
        with pytest.raises(ValueError, match=r"Column 1 of `X\['b'\]` .* holds 'tall'"):
            CFLLRegressor(Named()).fit({"a": X, "b": given}, Y)
    if WIDE is not None:
        missing = TEXT.astype(WIDE(na_object=np.nan))
        missing[0, 0] = np.nan
        with pytest.raises(ValueError, match="Input X contains NaN"):
            CFLLRegressor(**SMALL).fit(missing, Y)


DATES = pd.date_range("2020", periods=60)
DATED_VALUES = {
    "dates": DATES.to_numpy(),
    "durations": np.arange(60).astype("m8[s]"),
    "with a zone": pd.Series(DATES).dt.tz_localize("UTC"),
    "periods": pd.period_range("2020", periods=60),
    "date": [datetime.date(2020, 1, 1)] * 60,
    "time": np.array([datetime.time(1)] * 60),
    "timedelta": [datetime.timedelta(1)] * 60,
    "NumPy's as objects": [*Y[1:].tolist(), np.datetime64("2020-01-01")],
}


@pytest.mark.parametrize("kind", DATED_VALUES)
def test_dates_of_every_kind_are_no_numbers(kind, fitted):
    given, (model, _) = DATED_VALUES[kind], fitted
    column = pd.Series(np.array(given, dtype=object)) if isinstance(given, list) else given
    calls = {
        "`y`": [
            lambda: CFLLRegressor(**SMALL).fit(X, given),
            lambda: CFLLRegressor(**SMALL).fit(X, Y, X_val=X, y_val=given),
            lambda: model.score(X, given),
            lambda: IV().fit(X, given),
        ],
        "`sample_weight`": [
            lambda: CFLLRegressor(**SMALL).fit(X, Y, given),
            lambda: model.score(X, Y, given),
            lambda: IV().fit(X, Y, sample_weight=given),
        ],
        r"(Column 0 of )?`X\['b'\]`": [
            lambda: CFLLRegressor(Named()).fit({"a": X, "b": column}, Y),
            lambda: CFLLRegressor(Named()).fit({"a": X, "b": pd.DataFrame({0: column})}, Y),
        ],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=rf"(^|: ){name} \(dtype .*\) holds dates or"):
                call()


def test_other_values_that_are_no_numbers_are_named_with_their_row(fitted):
    words = Y.astype(object)
    words[7] = "tall"
    for call in (CFLLRegressor().fit, IV().fit, fitted[0].score):
        with pytest.raises(ValueError, match="`y` .* holds 'tall' in row 7"):
            call(X, words)
    with pytest.raises(ValueError, match="`sample_weight` .* holds 'tall' in row 7"):
        CFLLRegressor().fit(X, Y, words)
    for missing in (None, np.nan, Decimal("nan")):
        words[7] = missing
        for call in (CFLLRegressor().fit, IV().fit):
            with pytest.raises(ValueError, match="Input y contains NaN"):
                call(X, words)


def test_masked_values_are_not_used(fitted):
    hidden = np.ma.masked_array(X, mask=X > 1)
    hidden_y = np.ma.masked_array(Y, mask=Y > 1)
    model, _ = fitted
    for name, calls in {
        "X": [
            lambda: model.predict(hidden),
            lambda: model.fit(hidden, Y),
            lambda: model.fit(list(hidden), Y),
            lambda: model.fit(X, Y, X_val=hidden, y_val=Y),
            lambda: IV().fit(hidden, Y),
        ],
        "y": [
            lambda: model.fit(X, hidden_y),
            lambda: model.score(X, hidden_y),
            lambda: IV().fit(X, hidden_y),
            lambda: CFLLClassifier().fit(X, hidden_y > 0),
        ],
        "sample_weight": [lambda: model.fit(X, Y, np.ma.masked_array(WEIGHT, mask=Y > 1))],
        "Z": [lambda: IV().fit(X, Y, Z=hidden)],
        r"X\['b'\]": [lambda: CFLLRegressor(Named()).fit({"a": X, "b": hidden}, Y)],
        "array": [lambda: CFLLNet(nn.Identity(), verbose=0).fit(X, hidden_y)],
    }.items():
        for call in calls:
            with pytest.raises(ValueError, match=rf"`{name}` is a masked array.*index \(.*filled"):
                call()


# -- sizes and units --------------------------------------------------------------------------

BIG_X, BIG_Y = make_friedman1(700, n_features=5, noise=0.5, random_state=0)
QUICK = {"max_epochs": 3, "hidden_layer_sizes": (16,), "random_state": 0}


@pytest.mark.parametrize("n_rows", [200, 400])
@pytest.mark.parametrize("size", [1e37, 1e100, 1e-39, 1e-44, 1e-100])
def test_the_size_of_a_column_does_not_matter(n_rows, size):
    scaled = BIG_X * [1, size, 1, 1, 1]
    expected = CFLLRegressor(**QUICK).fit(BIG_X[:n_rows], BIG_Y[:n_rows]).predict(BIG_X[400:])
    found = CFLLRegressor(**QUICK).fit(scaled[:n_rows], BIG_Y[:n_rows]).predict(scaled[400:])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("factor", [1000.0, 0.01, 3.0])
@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_units_of_columns_do_not_matter_in_float32(factor, Estimator):
    y = BIG_Y if Estimator is CFLLRegressor else BIG_Y > 14
    other = BIG_X * [1, factor, 1, 1, factor] + [0, 0, 7, 0, 0]

    def raw(inputs):
        model = Estimator(**QUICK).fit(inputs[:400], y[:400])
        return (model.predict if Estimator is CFLLRegressor else model.decision_function)(inputs)

    assert raw(BIG_X).dtype == np.float32
    np.testing.assert_allclose(raw(other), raw(BIG_X), rtol=1e-4, atol=1e-4)


def test_columns_far_from_zero_need_no_float64():
    offset = np.array([0, 1.6e12, 0, 0, 0])  # milliseconds since 1970
    moved = BIG_X + offset
    shifted = moved - offset  # as far as float64 kept it
    found = CFLLRegressor(**QUICK).fit(moved[:400], BIG_Y[:400]).predict(moved)
    expected = CFLLRegressor(**QUICK).fit(shifted[:400], BIG_Y[:400]).predict(shifted)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.2)  # their mean is rounded to 1e-4


@pytest.mark.parametrize("n_rows", [200, 400])
@pytest.mark.parametrize("size", [1e38, -1e100, 1e-38, 1e-45, 1e-100])
def test_the_size_of_targets_does_not_matter(n_rows, size):
    expected = CFLLRegressor(**QUICK).fit(BIG_X[:n_rows], BIG_Y[:n_rows])
    model = CFLLRegressor(**QUICK).fit(BIG_X[:n_rows], size * BIG_Y[:n_rows])
    for one, other in zip(
        model.predict(BIG_X, return_std=True), expected.predict(BIG_X, return_std=True), strict=True
    ):
        assert one.dtype == np.float64
        np.testing.assert_allclose(np.abs(one / size), np.abs(other), rtol=2e-2)
    assert all(np.isfinite(end).all() for end in model.predict_interval(BIG_X))
    assert model.score(BIG_X, size * BIG_Y) == pytest.approx(expected.score(BIG_X, BIG_Y), abs=1e-3)


@pytest.mark.parametrize("size", [1e154, 1e300, 1e-160, 1e-310])
def test_squares_that_float64_cannot_hold_are_refused(size):
    frame = pd.DataFrame(X * [1, size, 1], columns=NAMES)
    for inputs in (frame, pl.from_pandas(frame)):
        with pytest.raises(ValueError, match=r"Column 'dose' of `X` holds .*e[+-].*Rescale"):
            CFLLRegressor().fit(inputs, Y)
    with pytest.raises(ValueError, match=r"Column 1 of `X` holds .*Rescale"):
        CFLLClassifier().fit(scipy.sparse.csr_matrix(frame.to_numpy()), LABELS)
    with pytest.raises(ValueError, match=r"`y` holds .*Rescale"):
        CFLLRegressor().fit(X, size * Y)
    for name in ("X", "y", "Z", "C"):
        arguments = {"X": X, "y": Y, "Z": X, "C": X}
        arguments[name] = arguments[name] * size
        with pytest.raises(ValueError, match=f"`{name}` holds .*Rescale"):
            CFLLIVRegressor().fit(**arguments)


def test_a_network_of_ones_own_gets_what_it_can_hold():
    huge = (BIG_X * [1, 1e32, 1, 1, 1])[:400]
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh())
    own = {"max_epochs": 3, "random_state": 0}
    assert CFLLRegressor(net, **own).fit(huge, BIG_Y[:400]).predict(huge).dtype == np.float64
    with pytest.raises(ValueError, match=r'Column 1 of `X` holds .*e\+3.*"float64"'):
        CFLLRegressor(net, precision="float32", **own).fit(huge, BIG_Y[:400])


def own_network(tail=nn.Tanh, **options):
    net = nn.Sequential(nn.Linear(5, 8), tail())
    return CFLLRegressor(net, max_epochs=2, random_state=0, **options)


def test_sizes_that_a_network_of_ones_own_sees_as_they_are():
    many, y = BIG_X[:320], BIG_Y[:320]
    model = own_network(nn.ReLU).fit(1e20 * many, y)
    assert model.resolved_["precision"] == "float64" and model.score(1e20 * many, y) > 0.2
    with pytest.raises(FloatingPointError, match="row 0 of `X` reach .*e.20.*StandardScaler"):
        own_network(nn.ReLU, precision="float32").fit(1e21 * many, y)
    with pytest.raises(ValueError, match=r"Column 0 of `X` holds .*e\+99.*StandardScaler"):
        own_network().fit(1e100 * many, y)
    with pytest.warns(UserWarning, match=r"same features for all rows.* up to .*e-21 in column"):
        own_network().fit(1e-20 * many, y)
    assert not caught(lambda: own_network().fit(np.ones((320, 5)), y))  # nothing there to lose
    for size in (1e38, 1e-39):
        model = CFLLRegressor(normalize_y=False, max_epochs=2, random_state=0)
        assert model.fit(many, size * y).resolved_["precision"] == "float64"
        assert np.isfinite(model.predict(many)).all()
        model.set_params(precision="float32")
        with pytest.raises(ValueError, match=r"`y` holds .*`normalize_y`=True"):
            model.fit(many, size * y)


class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, X):
        return self.layer(X) + X[:, :1].log()


def test_rows_whose_features_are_not_finite_before_training_are_named():
    positive, y = BIG_X[:60] + 1.0, BIG_Y[:60]
    positive[41, 0], weight = -1.0, np.ones(60)
    weight[:5] = 0.0
    for sample_weight in (None, weight):
        for method in ("fit", "partial_fit"):
            model = CFLLRegressor(Logarithm(), max_epochs=2, random_state=0)
            with pytest.raises(FloatingPointError, match="row 41 of `X` are not finite before"):
                getattr(model, method)(positive, y, sample_weight)
    with pytest.raises(FloatingPointError, match="row 1 of `X_val` are not finite before"):
        model.fit(positive[:40], y[:40], X_val=positive[40:], y_val=y[40:])


def test_weights_near_the_end_of_the_range():
    w = np.where(np.arange(60) % 2, 1e308, 5e307)
    for Estimator in (CFLLRegressor, CFLLClassifier):
        y = Y if Estimator is CFLLRegressor else LABELS
        pair = [Estimator(**SMALL).fit(X, y, part).predict(X) for part in (w, w / 1e308)]
        np.testing.assert_array_equal(*pair)
    for scale in (1.0, 1e-320):
        with pytest.raises(ValueError, match="`sample_weight` sums to .* number of repetitions"):
            CFLLIVRegressor().fit(X[:, :1], Y, Z=X[:, 1:], sample_weight=scale * w)


def test_values_that_only_a_data_set_holds_are_named():
    bad = torch.as_tensor(X * [1, 1e200, 1])
    with pytest.raises(ValueError, match="Column 1 of X holds values"):
        CFLLRegressor(**SMALL).fit(TensorDataset(bad, torch.as_tensor(Y)))


def test_far_rows_at_prediction_are_finite():
    model = CFLLRegressor(**QUICK).fit(BIG_X[:400], BIG_Y[:400])
    assert np.isfinite(model.predict(BIG_X[:3] * 1e300)).all()


def test_predictions_that_overflow_say_so():
    narrow = BIG_X[:400].astype("f4")
    model = CFLLRegressor(nn.Linear(5, 8), max_epochs=3, random_state=0).fit(narrow, BIG_Y[:400])
    with pytest.warns(RuntimeWarning, match="2 of 3 predictions are not finite, the first .* 1"):
        model.predict(np.array([[0.0] * 5, [1e300] * 5, [-1e300] * 5]))


def test_exact_buffers_stay_in_float64():
    bins = PiecewiseLinear()
    bins.set_edges([np.array([0.0, 1.0]), np.array([1e9, 1e9 + 1])])
    for module in (RobustStandardize(2), bins):
        cast = module.float().half().to("cpu", torch.float32)
        inputs = torch.tensor([[0.25, 1e9 + 0.25]], dtype=torch.float64)
        assert cast(inputs).dtype == torch.float32
        assert {getattr(cast, name).dtype for name in cast.exact} == {torch.float64}
    np.testing.assert_allclose(cast(inputs), [[-0.5, -0.5]])


def test_bins_narrower_than_any_float32():
    encode = PiecewiseLinear().float()
    encode.set_edges([np.array([0.0, 1e-44, 1.0])])
    assert torch.isfinite(encode(torch.tensor([[0.0], [1e-44], [0.5]]))).all()
    wide = np.exp(50 * np.random.default_rng(0).normal(size=(400, 1)))
    assert np.isfinite(CFLLRegressor(**QUICK).fit(wide, BIG_Y[:400]).predict(wide)).all()


# -- wild targets -----------------------------------------------------------------------------


def median_error(y, n_rows=300):
    model = CFLLRegressor(random_state=0, max_epochs=15).fit(BIG_X[:n_rows], y)
    return np.median(np.abs(model.predict(BIG_X[n_rows:]) - BIG_Y[n_rows:]))


@pytest.mark.parametrize("values", [[1e6], [-1e6], [1e6, -3e4, 1e5], [-99999.0] * 5])
def test_a_few_wild_targets_are_named_and_do_not_drown_the_rest(values):
    y = BIG_Y[:300].copy()
    y[7 : 7 + len(values)] = values
    named = re.escape(f"{values[0]:.6g}")
    with pytest.warns(UserWarning, match=rf"y\[7\] = {named}.*TransformedTargetRegressor"):
        assert median_error(y) < 1.5


def test_wild_targets_of_several_columns_and_validation_rows():
    y = np.column_stack([BIG_Y, BIG_Y])[:300]
    y[3, 1] = 1e7
    weight = np.ones(300)
    weight[0] = 0.0
    with pytest.warns(UserWarning, match=r"y\[3, 1\] = 1e\+07"):
        CFLLRegressor(**SMALL).fit(BIG_X[:300], y, weight)
    y_val = BIG_Y[300:400].copy()
    y_val[99] = 1e9
    with pytest.warns(UserWarning, match=r"y_val\[99\] = 1e\+09"):
        CFLLRegressor(**SMALL).fit(BIG_X[:300], BIG_Y[:300], X_val=BIG_X[300:400], y_val=y_val)
    with pytest.warns(UserWarning, match=r"y\[3\] = 1e\+07"):
        CFLLRegressor(**SMALL).partial_fit(BIG_X[:300], y[:, 1])


def test_wild_targets_by_weight_and_by_repetition():
    y = BIG_Y[:60].copy()
    y[5] = 1e6
    weight = np.ones(60)
    for times, wild in ((1, True), (3, False)):  # three of 62 are no accident
        weight[5] = times
        repeated = np.repeat(np.arange(60), weight.astype(int))
        for arguments in ((BIG_X[:60], y, weight), (BIG_X[repeated], y[repeated])):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                CFLLRegressor(**SMALL).fit(*arguments)
            assert any("clips them" in str(w.message) for w in caught) is wild


@pytest.mark.parametrize(
    "targets",
    [
        lambda rng: rng.normal(size=1000),
        lambda rng: rng.lognormal(0, 2, 1000),
        lambda rng: np.where(rng.random(1000) < 0.05, rng.exponential(size=1000) * 10, 0.0),
        lambda rng: np.where(rng.random(1000) < 0.004, rng.lognormal(9, 1, 1000), 0.0),
        lambda rng: rng.poisson(0.02, 1000) * 1.0,
        lambda rng: np.where(rng.random(1000) < 0.05, rng.lognormal(0, 2, 1000), 0.0),
        lambda rng: np.where(rng.random(1000) < 0.01, 100.0, 0.0),
        lambda rng: rng.standard_t(2, 1000),
        lambda rng: 1e6 + rng.normal(size=1000),
    ],
    ids=["normal", "lognormal", "inflated", "rare", "counts", "rarer", "events", "t", "offset"],
)
def test_honest_tails_are_left_alone(targets):
    for seed in range(20):
        y = targets(np.random.default_rng(seed))
        assert wild_bounds(y, np.ones(len(y))) == (y.min(), y.max())


def tamed(y, **rows):
    """Targets with these rows replaced, as training sees them, and what is said of them."""
    y = y.copy()
    for row, value in rows.items():
        y[int(row[1:])] = value
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        kept = tame_targets(Checked(None, None, y, None, 1.0, False)).y
    return kept, y, "; ".join(str(warning.message) for warning in found)


def test_wild_targets_of_any_kind_are_drawn_in():
    mostly_zero = np.where(np.arange(600) % 30, 0.0, BIG_Y[:600])
    for y, rows in (
        (mostly_zero, {"r1": 1e6}),
        (BIG_Y[:300], {"r3": 1e3, "r4": -1e5, "r5": 1e7}),  # a ladder
        (BIG_Y[:300, None, None] * np.linspace(0, 1, 4)[:, None], {"r7": 1e6}),  # fields
    ):
        kept, given, said = tamed(y, **rows)
        assert np.abs(kept).max() < 40 and "Training clips them" in said
        same = [i for i in range(len(y)) if f"r{i}" not in rows]
        np.testing.assert_array_equal(kept[same], given[same])
    assert "y[7, 0, 0] = 1e+06" in said
    _, _, said = tamed(1e6 + 1e-3 * BIG_Y[:300], r7=1.5e6)
    low, high = re.search(r"between (\S+) and (\S+)\.", said).groups()
    assert 1e6 < float(low) < float(high)


def test_targets_that_may_be_right_are_named_and_left():
    many = {f"r{i}": 1e6 for i in range(13)}
    for y, rows, match in (
        (BIG_Y[:600], many, r"and 10 more: .* left unchanged"),
        (np.full(300, 5.0), {"r7": 1e6}, r"y\[7\] = 1000000 is the only target that is not 5:"),
    ):
        kept, given, said = tamed(y, **rows)
        assert re.search(match, said)
        np.testing.assert_array_equal(kept, given)
    y, weight = tamed(BIG_Y[:300], r7=1e6)[1], np.ones(300)
    weight[0] = 0.0
    for sample_weight in (None, weight):
        with pytest.warns(UserWarning, match=r"y\[7\] = 1e\+06.*left unchanged"):
            data = check_instrument_data(
                CFLLIVRegressor(), BIG_X[:300, :1], y, BIG_X[:300, 1:3], None, sample_weight
            )
        assert data.y.max() == 1e6


# -- held-out rows of one's own ---------------------------------------------------------------


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in found if warning.category is UserWarning]


def fit_with(X_val, y_val, inputs=BIG_X, y=BIG_Y, Estimator=CFLLRegressor):
    model = Estimator(random_state=0, max_epochs=8, hidden_layer_sizes=(16,))
    return lambda: model.fit(inputs[:300], y[:300], X_val=X_val, y_val=y_val)


@pytest.mark.parametrize("unit", [(1000, 50), (0, 1), (0, 1e4), (-5, 1e-3)])
@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_validation_rows_that_a_pipeline_left_as_they_are(unit, Estimator):
    raw = unit[0] + unit[1] * BIG_X
    standardised = (raw - raw[:300].mean(0)) / raw[:300].std(0)
    y = BIG_Y if Estimator is CFLLRegressor else BIG_Y > 14
    found = caught(fit_with(raw[300:], y[300:], standardised, y, Estimator))
    assert len(found) == 1
    assert "`X_val` is on another scale than `X`: the 5-95% range of column 0" in found[0]
    assert 'transform_input=["X_val"]' in found[0]
    assert caught(fit_with(standardised[300:], y[300:], standardised, y, Estimator)) == []


def test_the_pipeline_of_the_guide_transforms_validation_rows():
    guide = Path(__file__).parents[2] / "docs" / "guide.md"
    block = next(part for part in guide.read_text().split("```") if "transform_input=" in part)
    raw = 1000 + 50 * BIG_X
    names = {"X_train": raw[:300], "y_train": BIG_Y[:300], "X_val": raw[300:], "y_val": BIG_Y[300:]}
    names["CFLLRegressor"] = partial(CFLLRegressor, max_epochs=10)
    with sklearn.config_context():
        assert caught(lambda: exec(block.removeprefix("python"), names)) == []
    assert names["pipeline"].score(raw[300:], BIG_Y[300:]) > 0.8


def test_validation_targets_in_other_units():
    model = TransformedTargetRegressor(
        CFLLRegressor(random_state=0, max_epochs=5), func=np.log, inverse_func=np.exp
    )
    y = np.exp(BIG_Y / 2)
    found = caught(lambda: model.fit(BIG_X[:300], y[:300], X_val=BIG_X[300:], y_val=y[300:]))
    assert len(found) == 1 and "`y_val` is on another scale than `y`" in found[0]


@pytest.mark.parametrize("seed", range(8))
def test_validation_rows_of_pure_noise_raise_no_alarm(seed):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal, rng.lognormal, rng.standard_cauchy, rng.random][seed % 4](size=(400, 4))
    y = [rng.normal, rng.lognormal, lambda size: rng.lognormal(0, 2, size), rng.random][seed // 2](
        size=400
    )
    assert caught(fit_with(inputs[300:], y[300:], inputs, y)) == []


def test_validation_rows_of_which_the_training_rows_say_the_opposite():
    # On the scale of the training rows: only the losses tell. Its columns are in another order.
    inputs = np.random.default_rng(0).normal(size=(400, 2))
    y = np.where(np.arange(400) < 300, 1, -1) * 10 * inputs[:, 0]
    train, valid = slice(0, 300), slice(300, 400)
    y[valid] *= 0.02
    found = caught(
        lambda: warn_of_useless_validation(
            torch.as_tensor(-50 * y[valid, None]),
            8,
            RowsDataset(None, torch.as_tensor(y[train, None])),
            RowsDataset(None, torch.as_tensor(y[valid, None])),
        )
    )
    assert len(found) == 1 and "Of 8 epochs the first was the best" in found[0]


# -- parameters without effect ----------------------------------------------------------------

NETWORK = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
NO_EFFECT = [
    ({"backbone": NETWORK, "hidden_layer_sizes": (7,)}, ["hidden_layer_sizes"]),
    ({"backbone": NETWORK, "activation": "tanh", "dropout": 0.1}, ["activation", "dropout"]),
    ({"backbone": NETWORK, "n_members": 8}, ["n_members"]),
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


def test_few_rows_and_validation_rows_of_ones_own():
    few = CFLLRegressor(tol=0.1, max_epochs=1, random_state=0)
    found = caught(lambda: few.fit(BIG_X[:30], BIG_Y[:30]))
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
    assert (std > 0).all()
    ridge = CFLLRegressor(MLPBackbone((6, 4)), max_epochs=2, random_state=0)
    ridge.fit(BIG_X[:100], BIG_Y[:100])
    # The training ridge is that of one member's width.
    assert model.resolved_["ridge"] == ridge.resolved_["ridge"]


@pytest.mark.parametrize(("own", "given"), [(1, 8), (3, 8), (3, 1)])
def test_members_in_two_places_contradict(own, given):
    model = CFLLRegressor(MLPBackbone((6,), n_members=own), n_members=given)
    with pytest.raises(ValueError, match=rf"`n_members`={given} .* `backbone`=MLP.*={own}"):
        model.fit(BIG_X[:60], BIG_Y[:60])


# -- scikit-learn's conventions ---------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, np.arange(60) % 2])
def test_classes_of_zero_weight_stay(labels):
    classes = np.unique(labels)
    weight = (labels != classes[-1]) * 1.0
    for options in ({"sample_weight": weight}, {}):
        by_class = {"class_weight": dict(zip(classes, [1, 1, 0][-len(classes) :], strict=True))}
        model = CFLLClassifier(**SMALL, **({} if options else by_class)).fit(X, labels, **options)
        np.testing.assert_array_equal(model.classes_, classes)
        share = model.predict_proba(X)
        assert share.shape == (60, len(classes)) and share[:, -1].max() < 0.1
        assert not (model.predict(X) == classes[-1]).any()


def test_other_classes_in_a_later_partial_fit():
    model = CFLLClassifier(**SMALL).partial_fit(X, LABELS, classes=["Wien", "Oslo", "Rome", "Bern"])
    model.partial_fit(X, LABELS, classes=["Bern", "Oslo", "Rome", "Wien"])
    before = model.decision_function(X)
    for other in (["Oslo", "Rome", "Wien"], ["Oslo", "Rome", "Wien", "Paris"]):
        with pytest.raises(ValueError, match="is not the same as on last call to partial_fit, was"):
            model.partial_fit(X, LABELS, classes=other)
    np.testing.assert_array_equal(model.decision_function(X), before)
    with pytest.raises(ValueError, match="is not the same as on last call"):
        CFLLClassifier(**SMALL).fit(X, LABELS).partial_fit(X, LABELS, classes=["Oslo", "Rome"])


MISSING = [None, np.nan, np.float32("nan"), complex("nan"), pd.NA, pd.NaT]
MISSING += [np.datetime64("NaT"), Decimal("nan"), Decimal("snan")]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_missing_labels(missing):
    labels = LABELS.astype(object)
    labels[4] = missing
    numbers = np.arange(60).astype(object) % 2
    numbers[4] = missing
    given = [labels, pd.Series(labels), numbers]
    if any(missing is known for known in (None, np.nan, pd.NA, pd.NaT)):
        given.append(pd.Series(labels.tolist(), dtype="category"))
    if any(missing is known for known in (None, np.nan, pd.NA)):
        given.append(pd.Series(labels, dtype="string"))
    if isinstance(missing, np.datetime64):
        given = [np.where(np.arange(60) == 4, missing, DATES.to_numpy())]
    for y in given:
        for call in (CFLLClassifier().fit, CFLLClassifier().partial_fit):
            with pytest.raises(ValueError, match=r"Input y contains missing values: .* in row 4"):
                call(X, y)
    with pytest.raises(ValueError, match="Input classes contains missing values"):
        CFLLClassifier().partial_fit(X, LABELS, classes=labels)


def test_labels_that_are_no_labels():
    for value, kind in (
        (pd.Timestamp("2020", tz="UTC"), "Timestamp"),
        (pd.Period("2020", "D"), "Period"),
        (datetime.date(2020, 1, 1), r"datetime\.date"),
        (Decimal(1), r"decimal\.Decimal"),
        (True, "bool"),
    ):
        y = np.array([value] * 60, dtype=object)
        with pytest.raises(ValueError, match=rf"Unknown label type: y .*{kind}\).*astype\(str\)"):
            CFLLClassifier().fit(X, y)
    for classes in ([], np.array([]), 0, "Oslo", {"Oslo", "Rome"}, [["Oslo", "Rome", "Wien"]]):
        with pytest.raises(ValueError, match="`classes` must be a list of all labels"):
            CFLLClassifier().partial_fit(X, LABELS, classes=classes)
    with pytest.raises(ValueError, match="at least two classes, but `classes` holds one class"):
        CFLLClassifier().partial_fit(X, LABELS, classes=["Oslo"])


def test_labels_of_two_kinds():
    with pytest.raises(ValueError, match="y mixes strings and other labels: 'Oslo' and 3"):
        CFLLClassifier().fit(X, np.array(["Oslo", 3], dtype=object)[np.arange(60) % 2])


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1, "much", None])
def test_class_weights_that_are_no_weights(weight):
    with pytest.raises(ValueError, match="`class_weight` must hold finite, non-neg.*class 'Rome'"):
        CFLLClassifier(class_weight={"Oslo": 1, "Rome": weight, "Wien": 1}).fit(X, LABELS)


def test_class_weights_of_no_classes():
    with pytest.raises(ValueError, match=r"\['Bern'\], which are not classes, .* \['Rome'"):
        CFLLClassifier(class_weight={"Oslo": 1, "Bern": 2}).fit(X, LABELS)
    plain = CFLLClassifier(**SMALL).fit(X, LABELS).predict_proba(X)
    everything = dict.fromkeys([*np.unique(LABELS), "Bern"], 1)
    for weights in ({}, everything):  # as in scikit-learn
        model = CFLLClassifier(**SMALL, class_weight=weights).fit(X, LABELS)
        np.testing.assert_array_equal(model.predict_proba(X), plain)


def test_class_weights_of_several_labels():
    y = np.stack([X[:, 0] > 0, X[:, 1] > 0], axis=1).astype(int)
    weights = [{0: 1, 1: 3}, {1: 2}]
    model = CFLLClassifier(**SMALL, class_weight=weights).fit(X, y)
    same = CFLLClassifier(**SMALL).fit(X, y, np.array([1, 3])[y[:, 0]] * np.array([1, 2])[y[:, 1]])
    np.testing.assert_array_equal(model.predict_proba(X), same.predict_proba(X))
    for wrong, message in (
        ({0: 1, 1: 3}, '"balanced" or a list of 2 dicts'),
        (weights[:1], "a list of 2 dicts"),
        ([{0: 1}, None], "must hold dicts, got None"),
        ([{0: 1}, {1: np.nan}], "finite, non-negative weights.*nan for class 1"),
    ):
        with pytest.raises(ValueError, match=f"`class_weight` {message}|`class_weight`.*{message}"):
            CFLLClassifier(class_weight=wrong).fit(X, y)
    with pytest.raises(ValueError, match="`class_weight` may be a list for multilabel targets"):
        CFLLClassifier(class_weight=weights).fit(X, LABELS)


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


@pytest.mark.parametrize("fraction", [0.999, 0.99])
@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier])
def test_validation_fraction_that_leaves_nothing(fraction, Estimator):
    with pytest.raises(ValueError, match=r"`validation_fraction` holds out \d+ of 60 rows"):
        Estimator(validation_fraction=fraction).fit(X, np.arange(60) % 2)


def test_interrupt_while_columns_are_scaled_keeps_nothing_and_says_nothing(monkeypatch):
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
    with pytest.raises(ValueError, match="no usable"):
        CFLLIVRegressor(device=torch.device(device)).fit(X, Y)


# -- messages of intervals --------------------------------------------------------------------


def test_interval_after_partial_fit_speaks_of_itself():
    model = CFLLRegressor(**SMALL).partial_fit(X, Y)
    with pytest.raises(
        ValueError, match=r"`partial_fit` holds none out\. Call `fit` first, on at least 40 rows"
    ):
        model.predict_interval(X)
    few = CFLLRegressor(**SMALL).fit(X[:30], Y[:30]).partial_fit(X, Y)
    with pytest.raises(ValueError, match=r"`fit` holds none out of fewer than 40 rows"):
        few.predict_interval(X)
    fitted = CFLLRegressor(**SMALL).fit(X, Y).partial_fit(X, Y)
    lower, upper = fitted.predict_interval(X)  # those of `fit` speak of the model still
    assert np.all(lower < upper)


@pytest.mark.parametrize(
    ("parameters", "remedy"),
    [
        ({"refit_last_layer": False}, "Fit with refit_last_layer=True"),
        ({"early_stopping": False}, "early_stopping=True and `validation_fraction` above 0"),
        ({"validation_fraction": 0}, "`validation_fraction` above 0"),
    ],
)
def test_interval_names_what_is_not_the_default(parameters, remedy):
    model = CFLLRegressor(**SMALL, **parameters).fit(X, Y)
    with pytest.raises(ValueError, match=remedy):
        model.predict_interval(X)


def test_a_wild_held_out_target_says_nothing_of_epoch_and_ridge():
    X, y = make_friedman1(200, 5, random_state=0)
    options = {"max_epochs": 8, "random_state": 0}
    held, wild = y[100:140].copy(), y[100:140].copy()
    wild[2] = 1e6
    found = []
    for y_val in (held, wild):
        model = CFLLRegressor(**options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X[:100], y[:100], X_val=X[100:140], y_val=y_val)
        said = "y_val[2] = 1e+06" in str(caught[0].message) if caught else False
        assert said == (y_val is wild)
        found.append(model)
    without = np.delete(np.arange(100, 140), 2)
    left_out = CFLLRegressor(**options)
    left_out.fit(X[:100], y[:100], X_val=X[without], y_val=y[without])
    assert found[1].best_iteration_ == left_out.best_iteration_
    assert found[1].final_ridge_ == left_out.final_ridge_
    assert found[1].score(X[140:], y[140:]) > found[0].score(X[140:], y[140:]) - 0.05


def test_integers_that_float64_rounds_are_warned_of():
    ids = np.arange(60)[:, None] + np.array([2**60, 0])
    with pytest.warns(UserWarning, match=r"Column 0 of `?X`? holds integers beyond 2\*\*53"):
        CFLLRegressor(max_epochs=1).fit(ids, Y[:60] if len(Y) >= 60 else np.arange(60.0))
