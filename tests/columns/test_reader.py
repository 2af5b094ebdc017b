"""Frames and arrays of objects are coded: levels, gaps, and errors that name the column."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from sklearn_cfll.columns.reader import TableReader

COLUMNS = {
    "size": [1.5, None, 2.5, 4.0],
    "count": [1, 2, None, 4],
    "open": [True, False, None, True],
    "town": ["Ulm", None, "Bonn", "Ulm"],
    "grade": ["low", "high", None, "mid"],
}
GRADES = ["low", "mid", "high"]
CODES = np.array(
    [
        [1.5, 1.0, 1.0, 1.0, 0.0],
        [np.nan, 2.0, 0.0, np.nan, 2.0],
        [2.5, np.nan, np.nan, 0.0, np.nan],
        [4.0, 4.0, 1.0, 1.0, 1.0],
    ]
)


def in_pandas():
    frame = pd.DataFrame(COLUMNS)
    frame["count"] = frame["count"].astype("Int64")
    frame["open"] = frame["open"].astype("boolean")
    frame["grade"] = pd.Categorical(frame["grade"], GRADES, ordered=True)
    return frame


def in_polars():
    return pl.DataFrame(COLUMNS).with_columns(pl.col("grade").cast(pl.Enum(GRADES)))


def coded(X, categorical="from_dtype"):
    reader = TableReader.fit(X, categorical)
    return reader, reader.read(X)


@pytest.mark.parametrize("make", [in_pandas, in_polars])
def test_numbers_levels_and_gaps(make):
    reader, codes = coded(make())
    np.testing.assert_array_equal(codes, CODES)
    assert [each[:2] for each in reader.levels] == [(0, False)] * 3 + [(2, False), (3, True)]


def test_a_pyarrow_table_and_an_array_of_objects_are_read_alike():
    _, wanted = coded(in_pandas())
    for X in (pa.table(COLUMNS), np.array([*COLUMNS.values()], dtype=object).T):
        _, codes = coded(X)
        np.testing.assert_array_equal(codes[:, :4], wanted[:, :4])
        np.testing.assert_array_equal(codes[:, 4], [1, 0, np.nan, 2])  # text is in no order


def test_levels_stay_when_other_rows_come():
    frame = in_pandas()
    reader = TableReader.fit(frame, "from_dtype")
    later = frame.iloc[[3, 0]].assign(town=["Bonn", "Kiel"], grade="high")
    codes = reader.read(later)
    assert codes[0, 3] == 0.0 and codes[1, 3] == -1.0  # Kiel was not seen
    assert codes[:, 4].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA, pd.NaT])
def test_every_gap_is_a_gap(gap):
    frame = pd.DataFrame({"a": pd.Series([1.0, gap, 2.0], dtype=object), "b": ["x", gap, "y"]})
    _, codes = coded(frame)
    assert np.isnan(codes[1]).all() and not np.isnan(codes[[0, 2]]).any()


def test_categories_of_numbers_match_with_and_without_gaps():
    frame = pd.DataFrame({"code": pd.Categorical([3, 1, None, 3])})
    reader, codes = coded(frame)
    np.testing.assert_array_equal(codes[:, 0], [1, 0, np.nan, 1])
    without = pd.DataFrame({"code": pd.Categorical([1, 3])})
    np.testing.assert_array_equal(reader.read(without)[:, 0], [0, 1])


def test_intervals_of_a_cut_are_in_order():
    frame = pd.DataFrame({"age": pd.cut([1, 50, 99, 20], [0, 10, 30, 60, 100])})
    reader, codes = coded(frame)
    assert codes[:, 0].tolist() == [0, 2, 3, 1] and reader.levels[0].ordered


@pytest.mark.parametrize(
    ("late", "message"),
    [
        ([1, 2] * 100, "mixes 'a' .* and 1"),
        ([[1], [2]] * 100, "mixes 'a' .* and"),
        ([True, False] * 100, "mixes 'a' .* and True"),
    ],
)
def test_all_rows_of_a_column_of_objects_count_not_the_first_hundred(late, message):
    frame = pd.DataFrame({"bad": pd.Series(["a", "b"] * 100 + late, dtype=object)})
    with pytest.raises(ValueError, match=message):
        TableReader.fit(frame, "from_dtype")
    numbers = pd.DataFrame({"n": pd.Series([None] * 150 + [1, 2], dtype=object)})
    _, codes = coded(numbers)
    assert codes[150:, 0].tolist() == [1.0, 2.0]


def test_categories_that_float64_or_text_would_merge_are_refused():
    for levels, message in (
        ([2**53, 2**53 + 1], r"beyond 2\*\*53"),
        ([1, "1"], "mixes 1 .* and '1'"),
    ):
        frame = pd.DataFrame({"c": pd.Categorical(levels)})
        with pytest.raises(ValueError, match=message):
            TableReader.fit(frame, "from_dtype")


@pytest.mark.parametrize("values", [[True, False, True], [3, 1, 3], ["a", "b", "a"]])
def test_gaps_in_a_category_may_come_and_go(values):
    whole = pd.DataFrame({"c": pd.Categorical(values)})
    gappy = pd.DataFrame({"c": pd.Series(pd.Categorical(values)).where([True, True, False])})
    for one, other in ((whole, gappy), (gappy, whole)):
        reader = TableReader.fit(one, "from_dtype")
        np.testing.assert_array_equal(reader.read(other)[:2], reader.read(one)[:2])


def test_a_column_of_gaps_takes_anything_later():
    for nothing in (pd.Categorical([None, None]), [np.nan, np.nan], [None, None]):
        reader = TableReader.fit(pd.DataFrame({"a": nothing, "b": ["x", "y"]}), "from_dtype")
        for later in (["p", "q"], [1.0, 2.0]):
            codes = reader.read(pd.DataFrame({"a": later, "b": ["x", "y"]}))
            assert np.isnan(codes[:, 0]).all() and codes[:, 1].tolist() == [0, 1]


def test_a_declared_category_is_not_parsed():
    text = np.array([["01", "a"], ["1", "2"]], dtype=object)
    _, codes = coded(text, [0, 1])
    assert codes.tolist() == [[0, 1], [1, 0]]


def test_names_that_are_no_text_decide_too():
    frame = pd.DataFrame({0: [1.0, 2.0], 1: ["a", "b"], 2: [3.0, 4.0]})
    reader, codes = coded(frame)
    np.testing.assert_array_equal(reader.read(reader.in_order(frame[[2, 1, 0]])), codes)


def test_ordered_dictionaries_of_pyarrow_keep_their_order():
    reader, codes = coded(in_pandas())
    table = pa.Table.from_pandas(in_pandas())
    other, found = coded(table)
    np.testing.assert_array_equal(found, codes)
    assert other.levels == reader.levels


def test_texts_of_any_length_are_packed_by_their_bytes():
    texts = ["w" * 10_000, "", "é\x00", "\ud800"]
    reader = TableReader.fit(pd.DataFrame({"t": pd.Series(texts, dtype=object)}), "from_dtype")
    packed = reader.pack()
    (data, _), _ = packed["contents"][0]
    assert data.nbytes < 10_020
    assert TableReader.unpack(packed).contents == reader.contents


def test_rows_with_a_text_of_their_own_are_warned_of():
    days = pd.DataFrame({"day": pd.date_range("2020", periods=60).astype(str)})
    with pytest.warns(UserWarning, match=r"Column 'day' .* 60 different texts in 60 rows.*to_date"):
        TableReader.fit(days, "from_dtype")


@pytest.mark.parametrize("written", ["{:d}", "{:d}.5", "${:,d}", "{:d}%"])
def test_numbers_written_as_text_are_warned_of(written):
    text = pd.DataFrame({"height": [written.format(7 * each) for each in range(90, 300)]})
    with pytest.warns(UserWarning, match=r"Column 'height' .* most of its 210 levels.*to_numeric"):
        TableReader.fit(text, "from_dtype")


@pytest.mark.parametrize("written", ["{:05d}", "1{:03d}", "shop {:d}"])
def test_names_with_digits_are_not_warned_of(written, recwarn):
    text = pd.DataFrame({"shop": [written.format(each) for each in range(90, 300)] * 3})
    TableReader.fit(text, "from_dtype")
    TableReader.fit(text.astype("category"), "from_dtype")
    assert not recwarn


DAYS = pd.date_range("2020", periods=3)


@pytest.mark.parametrize("dates", [DAYS, DAYS - DAYS[0], DAYS.to_period("D"), DAYS.date])
def test_categories_of_dates_are_refused(dates):
    frame = pd.DataFrame({"day": pd.Categorical(dates)})
    with pytest.raises(ValueError, match=r"Column 'day' .*category of .* holds dates"):
        TableReader.fit(frame, "from_dtype")


def test_categories_of_numbers_are_numbers_in_pyarrow_too():
    frame = pd.DataFrame({"code": pd.Categorical([30, 10, None, 30]), "is": [True, None] * 2})
    frame["is"] = frame["is"].astype("category")
    reader, codes = coded(frame)
    np.testing.assert_array_equal(reader.read(pa.Table.from_pandas(frame)), codes)
    again, _ = coded(pa.Table.from_pandas(frame))
    assert again.contents == reader.contents


def test_dictionaries_of_pyarrow_have_indices_of_any_type():
    index = pa.array([1, None, 0], pa.uint8())
    column = pa.DictionaryArray.from_arrays(index, pa.array(["u", "v"]))
    _, codes = coded(pa.table({"kind": pa.chunked_array([column, column])}))
    np.testing.assert_array_equal(codes.ravel(), [1, np.nan, 0] * 2)


def test_levels_that_read_the_same_are_refused():
    frame = pd.DataFrame({"kind": pd.Categorical([Named("a"), Named("a"), Named("b")])})
    with pytest.raises(ValueError, match=r"Column 'kind' .* several levels that read 'a'"):
        TableReader.fit(frame, "from_dtype")


class Named:
    """A level that is told apart by what it is, not by its name."""

    def __init__(self, name):
        self.name = name

    def __str__(self):
        return self.name

    def __lt__(self, other):
        return self.name < other.name


def test_columns_may_be_in_another_order():
    frame = in_pandas()
    reader, codes = coded(frame)
    turned = reader.in_order(frame[frame.columns[::-1]])
    np.testing.assert_array_equal(reader.read(turned), codes)


@pytest.mark.parametrize("chosen", [["code"], [1], [-1], [False, True], np.array([False, True])])
def test_categories_by_name_index_or_mask(chosen):
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0], "code": [7, 5, 7]})
    reader, codes = coded(frame, chosen)
    assert codes[:, 1].tolist() == [1, 0, 1] and reader.levels[1][:2] == (2, False)


def test_plain_numbers_need_no_reader():
    for X in (np.eye(3), pd.DataFrame(np.eye(3)), pl.DataFrame({"a": [1, 2], "b": [True, False]})):
        assert TableReader.fit(X, "from_dtype") is None


def test_text_that_is_a_number_is_one_in_arrays_but_not_in_frames():
    text = np.array([["1", "07"], ["2.5", "08"]], dtype=object)
    _, codes = coded(text)
    assert codes.tolist() == [[1.0, 7.0], [2.5, 8.0]]
    reader, codes = coded(pd.DataFrame(text))
    assert codes.tolist() == [[0, 0], [1, 1]] and reader.contents[1].holds_text


BAD = {
    "mixed": ([1, "a", None], r"Column 'bad' of `X` mixes 'a' \(str\) and 1 \(int\)"),
    "lists": ([[1], [2], [3]], r"Column 'bad' of `X` holds lists, dicts .*TableVectorizer"),
    "dicts": ([{"a": 1}] * 3, r"Column 'bad' of `X` holds lists, dicts"),
    "dates": (pd.date_range("2020", periods=3), "Column 'bad' .* holds dates .*DatetimeEncoder"),
    "days": ([datetime.date(2020, 1, 1)] * 3, "Column 'bad' .* holds dates"),
    "durations": (pd.to_timedelta([1, 2, 3]), "Column 'bad' .* holds dates or durations"),
    "complex": ([1j, 2j, 3j], r"Column 'bad' of `X` holds 1j, which is no float64"),
    "huge": (
        [10**400, 1, 2],
        r"Column 'bad' of `X` holds 1000.*, which is no float64",
    ),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_columns_that_cannot_be_read_are_named(values, message):
    values = values if hasattr(values, "dtype") else pd.Series(values, dtype=object)
    frame = pd.DataFrame({"good": [1, 2, 3], "bad": values})
    with pytest.raises((ValueError, TypeError), match=message):
        TableReader.fit(frame, "from_dtype")


def test_nested_columns_of_polars_are_named():
    frame = pl.DataFrame({"good": [1, 2], "bad": [[1], [2]]})
    with pytest.raises(ValueError, match=r"Column 'bad' of `X` holds lists"):
        TableReader.fit(frame, "from_dtype")


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (["colour"], r"names 'colour', but the columns of X are 'a', 'b'"),
        ([2], "holds the index 2, but X has 2 columns, 0 to 1"),
        ([True], "is a mask of 1 columns, but X has 2"),
        ([1.5], r"names or indices, or booleans.*got 1\.5"),
        (None, r"Column 'b' of `X` holds 'x', which is not a number, and `categorical_features`"),
        (["a"], "Column 'b' of `X` holds 'x'"),
    ],
)
def test_bad_choices_of_categories_are_named(chosen, message):
    with pytest.raises(ValueError, match=message):
        TableReader.fit(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), chosen)


def test_a_column_of_another_kind_than_at_fit_is_named():
    reader = TableReader.fit(pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "from_dtype")
    with pytest.raises(ValueError, match=r"Column 'b' .* holds numbers such as 3, but held text"):
        reader.read(pd.DataFrame({"a": [1], "b": [3]}))
    with pytest.raises(ValueError, match=r"Column 'a' .* holds 'z', but held numbers"):
        reader.read(pd.DataFrame({"a": ["z"], "b": ["x"]}))


def test_it_is_packed_as_plain_data():
    reader, codes = coded(in_pandas())
    again = TableReader.unpack(reader.pack())
    np.testing.assert_array_equal(again.read(in_pandas()), codes)
    assert again.names == list(COLUMNS)
