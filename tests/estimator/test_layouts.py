"""Numbers in any layout and container, as text, dates and masked values."""

import datetime
import functools
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLNet, CFLLRegressor
from small_tables import DATES, IV, LABELS, NAMES, SMALL, WEIGHT, Named, X, Y

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


@functools.cache
def with_instruments(layout):
    """Predictions and score of a fit to this layout of arrays, or to plain ones."""
    change = LAYOUTS.get(layout, lambda a: a)
    sides = change(X), change(Y), change(X[:, ::-1].copy()), change(X[:, 1])
    model = CFLLIVRegressor(max_epochs=1, n_folds=2, n_repeats=1, random_state=0)
    model.fit(*sides, sample_weight=change(WEIGHT))
    return model.predict(sides[0], sides[3]), model.score(*sides, change(WEIGHT))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_instruments_and_confounders(layout):
    for one, other in zip(with_instruments(layout), with_instruments("plain"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", ">f4", "?", "i1", "u1", ">i2", "u2", "u4", "i8", "u8"]
)
def test_narrow_numbers_and_integers(dtype):
    narrow = np.abs(3 * X).astype(dtype)
    model = CFLLRegressor(**SMALL).fit(narrow, Y)
    expected = CFLLRegressor(**SMALL).fit(narrow.astype(np.float64), Y).predict(narrow)
    np.testing.assert_array_equal(model.predict(narrow), expected)
    # A row's place in a batched product changes its last bit.
    np.testing.assert_allclose(model.predict(narrow[::-1]), expected[::-1], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.longdouble, "?", "i8"])
def test_sparse_matrices_of_other_dtypes(dtype):
    matrix = scipy.sparse.csr_matrix(np.abs(2 * X).astype(dtype))
    expected = CFLLRegressor(**SMALL).fit(matrix.astype(float), Y).predict(matrix.astype(float))
    np.testing.assert_array_equal(CFLLRegressor(**SMALL).fit(matrix, Y).predict(matrix), expected)


def test_flipped_images_and_transposed_ones():
    images = np.random.default_rng(1).normal(size=(40, 1, 6, 5)).astype("f4")
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


DATES_IN = [kind for kind in UNFIT if any(word in kind for word in ("dates", "durat", "period"))]


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("Estimator", [CFLLRegressor, CFLLClassifier, CFLLIVRegressor])
def test_columns_that_are_no_numbers_are_named(kind, Estimator):
    options = SMALL if kind in DATES_IN else {**SMALL, "columns": "passthrough"}
    model = Estimator(**({} if Estimator is CFLLIVRegressor else options))
    said = r"Column 'city' of `X` (\(dtype .*\) holds .*(first|drop)|is a category, .*get_dummies)"
    with pytest.raises(ValueError, match=said):
        model.fit(UNFIT[kind], LABELS if Estimator is CFLLClassifier else Y)
    with pytest.raises(ValueError, match="Column 'city' of `Z`"):
        CFLLIVRegressor().fit(X, Y, Z=UNFIT[kind])


def test_dates_and_words_in_arrays():
    with pytest.raises(ValueError, match=r"Column 0 of `X` \(dtype datetime64\[D\]\) holds dates"):
        CFLLRegressor().fit(np.full((60, 2), "2020-01-01", dtype="M8[D]"), Y)
    with pytest.raises(ValueError, match="Column 1 of `X` .* holds 'b'"):
        CFLLRegressor(columns="passthrough").fit([[1, "b"]] * 60, Y)
    for y in (
        np.full(60, "2020-01-01", dtype="M8[s]"),
        pd.Series(pd.date_range("2020", periods=60)),
    ):
        for model in (CFLLRegressor(), CFLLIVRegressor()):
            with pytest.raises(ValueError, match="`y` .* holds dates"):
                model.fit(X, y)


# -- text, dates and masked values ------------------------------------------------------------


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
            CFLLRegressor(**SMALL, columns="passthrough").fit(missing, Y)


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
