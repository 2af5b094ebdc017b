"""Columns of frames and arrays of any library, as numbers or as text with gaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np

__all__ = ["MOST_EXACT", "Column", "as_frame", "check_exact", "columns_of", "dated"]
__all__ += ["is_date", "is_gap", "is_number", "is_numpy_date"]

MOST_EXACT = 2**53  # integers that float64 holds
NESTED = (
    "holds lists, dicts or other nested values ({value!r:.60}). Take out what is needed, one "
    "number or category per row, for example with skrub.TableVectorizer, or drop the column."
)
MIXED = (
    "mixes {one!r:.60} ({one_type}) and {other!r:.60} ({other_type}). Convert all values to one "
    "type: to text, `df[{name!r}].astype(str)`, or to numbers, `pandas.to_numeric(df[{name!r}])`."
)


class Column(NamedTuple):
    """A column of the user's table: its label in messages, its values, and what its dtype says.

    Attributes
    ----------
    label : str
    name : object
        Name or index.
    values : ndarray
        Numbers (float64 with NaN), or objects with None for gaps.
    order : list, "unordered" or None
        Levels in their order if the dtype is an ordered category; "unordered" for other categories;
        None for other dtypes.
    is_plain : bool
        Whether the dtype holds numbers, and there are no gaps.
    """

    label: str
    name: Any
    values: np.ndarray
    order: Any = None
    is_plain: bool = False

    @property
    def is_text(self) -> bool:
        return self.values.dtype == object


def as_frame(X: Any) -> nw.DataFrame[Any] | None:
    """A frame of pandas, polars, pyarrow or another library that narwhals knows; else None.

    None as well for a frame in which columns share a name.
    """
    if isinstance(X, np.ndarray):
        return None
    try:
        found = nw.from_native(X, eager_only=True, pass_through=True)
    except nw.exceptions.DuplicateError:
        return None
    return found if isinstance(found, nw.DataFrame) else None


def dated(label: str, dtype: Any) -> ValueError:
    """The error for a column of dates or durations."""
    return ValueError(
        f"{label} (dtype {dtype}) holds dates or durations, which are not numbers. Convert them "
        "first, for example to the year, the day of the week or seconds since a reference date: "
        "skrub.DatetimeEncoder and skrub.TableVectorizer make such columns."
    )


def columns_of(X: Any, name: str, parse: Sequence[bool] | None = None) -> Iterator[Column]:
    """The columns of a frame or of a two-dimensional array, whose text may be parsed as numbers."""
    frame = as_frame(X)
    if frame is None:
        for index in range(X.shape[1]):
            label = f"Column {index} of `{name}`"
            yield _of_objects(label, index, X[:, index], parse is None or parse[index])
        return
    # By position, because names may be of any kind.
    for index, title in enumerate(frame.columns):
        yield _of_series(f"Column {title!r} of `{name}`", title, frame[:, index])


def _of_series(label: str, name: Any, series: nw.Series[Any]) -> Column:
    """A column of a frame."""
    dtype, native = series.dtype, series.to_native()
    if dtype.is_temporal():
        raise dated(label, _native_dtype(series))
    if dtype.is_nested():
        value = next((each for each in series.to_list() if each is not None), None)
        raise ValueError(f"{label} {NESTED.format(value=value)}")
    if dtype.is_numeric() or dtype == nw.Boolean:
        values = np.asarray(series.cast(nw.Float64).to_numpy(), dtype=np.float64)
        return Column(label, name, values, is_plain=not np.isnan(values).any())
    if isinstance(dtype, nw.Enum | nw.Categorical):
        return _of_category(label, name, series)
    # narwhals looks at the first rows of a column of objects alone.
    if dtype == nw.String and str(getattr(native, "dtype", "")) != "object":
        return Column(label, name, np.array(_texts(series), dtype=object))
    return _of_objects(label, name, np.asarray(series.to_numpy(), dtype=object))


def _of_category(label: str, name: Any, series: nw.Series[Any]) -> Column:
    """A column of a categorical dtype, whose levels may be numbers or objects."""
    known, codes, order = _coded(series)
    some = [each for each in known if not is_gap(each)]
    date = next((each for each in some if is_date(each)), None)
    if date is not None:
        raise dated(label, f"category of {type(date).__name__}")
    kinds = {type(each) for each in some}
    if kinds and all(issubclass(kind, Real | np.bool_) for kind in kinds):
        check_exact(label, some)
        numbers = np.array([*(np.nan if is_gap(e) else float(e) for e in known), np.nan])
        in_order: Any = "unordered" if order is None else [float(each) for each in order]
        return Column(label, name, numbers[codes], in_order)
    if len(kinds) > 1:
        other = next(each for each in some if type(each) is not type(some[0]))
        raise ValueError(f"{label} {_mixed(name, some[0], other)}")
    texts = [None if is_gap(each) else str(each) for each in known]
    last = dict(zip(texts, known, strict=True))
    merged = next((t for t, each in zip(texts, known, strict=True) if last[t] != each), None)
    if merged is not None:
        raise ValueError(
            f"{label} is a category with several levels that read {merged!r:.60} as text. Rename "
            "them: `.cat.rename_categories(...)`."
        )
    in_order = "unordered" if order is None else [str(each) for each in order]
    return Column(label, name, np.array([*texts, None], dtype=object)[codes], in_order)


def _coded(series: nw.Series[Any]) -> tuple[list[Any], np.ndarray, list[Any] | None]:
    """Levels of a categorical column, the code of each row (-1 for a gap), and levels in order."""
    native = series.to_native()
    if hasattr(native, "cat") and hasattr(native, "iloc"):  # pandas
        known = native.cat.categories.tolist()
        return known, native.cat.codes.to_numpy(), known if native.cat.ordered else None
    if hasattr(native, "unify_dictionaries"):  # pyarrow
        whole = native.unify_dictionaries().combine_chunks()
        codes = whole.indices.cast("int64").fill_null(-1).to_numpy()
        known = whole.dictionary.to_pylist()
        return known, codes, known if native.type.ordered else None
    texts = _texts(series)
    known = list(dict.fromkeys(each for each in texts if each is not None))
    place: dict[Any, int] = {each: code for code, each in enumerate(known)}
    codes = np.array([place.get(each, -1) for each in texts], dtype=np.int64)
    levels = list(series.dtype.categories) if isinstance(series.dtype, nw.Enum) else None
    return known, codes, levels


def check_exact(label: str, levels: list[Any]) -> None:
    """Raise for levels that are infinite, or that float64 would merge."""
    if any(each in (math.inf, -math.inf) for each in levels):
        raise ValueError(
            f"{label} is a category with an infinite level. Replace it, for example by NaN."
        )
    wide = [each for each in levels if abs(each) > MOST_EXACT]
    if wide:
        raise ValueError(
            f"{label} is a category with the level {wide[0]!r}, beyond 2**53, which float64 cannot "
            "tell from its neighbours. Convert it to text: `.astype(str)`."
        )


def _mixed(name: Any, one: Any, other: Any) -> str:
    kinds = {"one_type": type(one).__name__, "other_type": type(other).__name__}
    return MIXED.format(one=one, other=other, name=name, **kinds)


def _texts(series: nw.Series[Any]) -> list[Any]:
    """Text of a column, with None for gaps."""
    absent = series.is_null().to_numpy()
    values = series.cast(nw.String).to_list()
    return [None if gap else value for value, gap in zip(values, absent, strict=True)]


def _native_dtype(series: nw.Series[Any]) -> Any:
    native = series.to_native()
    return getattr(native, "dtype", getattr(native, "type", series.dtype))


def _of_objects(label: str, name: Any, values: np.ndarray, parse: bool = False) -> Column:
    """A column of objects: numbers, or text; with ``parse``, text of numbers is numbers."""
    if values.dtype.kind in "fiub":
        return Column(label, name, values.astype(np.float64), is_plain=True)
    entries = [None if is_gap(value) else value for value in values.ravel()]
    known = [value for value in entries if value is not None]
    texts = [isinstance(value, str) for value in known]
    if parse and any(texts):
        numbers = [is_number(value) for value in known]
        if any(numbers) and not all(numbers):
            raise ValueError(
                f"{label} (dtype {values.dtype}) holds {known[numbers.index(False)]!r:.60} among "
                f"numbers such as {known[numbers.index(True)]!r:.60}. Replace it by a number or "
                "NaN, or, if the column is a category, pass a frame in which it is text."
            )
        texts = [] if all(numbers) else texts
    if any(texts) and not all(texts):
        one, other = known[texts.index(True)], known[texts.index(False)]
        raise ValueError(f"{label} {_mixed(name, one, other)}")
    if any(texts):
        return Column(label, name, np.array(entries, dtype=object))
    found = np.full(len(entries), np.nan)
    for row, value in enumerate(entries):
        if value is not None:
            found[row] = _as_number(value, label)
    return Column(label, name, found)


def is_gap(value: Any) -> bool:
    """Whether a value is None, NaN or NaT of any type, or pandas' NA."""
    if isinstance(value, str):
        return False
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):  # a signalling NaN cannot be compared
        return value.is_nan()
    return isinstance(value, Real | complex | np.generic) and bool(value != value)


def is_date(value: Any) -> bool:
    """Whether a value is a date, a time, a duration or a period, of any library."""
    parts = ("isoformat", "total_seconds", "start_time")
    return is_numpy_date(value) or any(hasattr(value, part) for part in parts)


def is_numpy_date(value: Any) -> bool:
    """Whether a value is a date or a duration of NumPy, which ``float`` would accept."""
    return isinstance(value, np.datetime64 | np.timedelta64)


def is_number(value: Any) -> bool:
    """Whether a value is a number, or text that holds one."""
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _as_number(value: Any, label: str) -> float:
    if is_date(value):
        raise dated(label, type(value).__name__)
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        # The error that scikit-learn's checks expect of a value that is no number.
        raise TypeError(
            f"{label} {NESTED.format(value=value)} (float() argument must be a string or a real "
            f"number, not {type(value).__name__!r})"
        )
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{label} holds {value!r:.60}, which is no float64 number: {error}.") from error
