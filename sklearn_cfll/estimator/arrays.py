"""From whatever holds numbers to NumPy arrays that torch can take."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array

from .._compat import check_sample_weight
from ..training.batches import check_unmasked, native

__all__ = ["as_columns", "as_table", "as_targets", "as_values", "as_weights", "check_labels"]
__all__ += ["check_range", "named_columns", "outside", "to_numpy", "told_of"]

MOST_EXACT = 2**53  # integers that float64 holds
# Beyond these squares, and sums of them, overflow or vanish in float64.
LARGEST, SMALLEST = 1e140, 1e-140
# Networks of one's own multiply inputs as they are: well within float32's 1e38 and 1e-38, and in
# float64 within what the ridge's choice takes to the fourth power.
SMALLEST_32, LARGEST_32 = 1e-30, 1e30
HELD_32, HELD_64 = (SMALLEST_32, LARGEST_32), (1e-60, 1e60)
SQUARED_32 = 1e-15, 1e15  # what features and targets may be for their squares to be held

DATES = "mM"  # kinds of NumPy dtypes: durations and dates
TEXT = "SUT"  # bytes, and strings of fixed and of variable width
# What dtypes of pandas, polars and pyarrow for them begin with.
DATE_NAMES = ("date", "duration", "period", "time")


def to_numpy(value: Any, name: str) -> Any:
    """A dense NumPy array of a tensor, nothing of it masked; other containers stay as they are.

    Frames and lists are left to scikit-learn's checks.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and any(isinstance(x, np.ma.MaskedArray) for x in value):
        value = np.ma.stack(value)
    return check_unmasked(value, name)


def as_table(value: Any, name: str) -> Any:
    """As :func:`to_numpy`; text becomes objects, of which scikit-learn reads the numbers."""
    value = to_numpy(value, name)
    array = value
    if isinstance(value, list | tuple):
        with contextlib.suppress(ValueError):  # rows of different lengths
            array = np.asarray(value)
    text = isinstance(array, np.ndarray) and array.dtype.kind in TEXT
    return array.astype(object) if text else value


def as_columns(checked: Any, X: Any, name: str = "X", *, integers: bool = False) -> Any:
    """What scikit-learn's checks returned, as native numbers in C order.

    Parameters
    ----------
    checked : ndarray or sparse matrix
        Checked for shape and finite values, but possibly of any dtype: scikit-learn lets dates,
        categories and unusual floats through.
    X : array-like or frame
        What was given, for names of columns.
    name : str
        Of the argument.
    integers : bool, default=False
        Leave integers and booleans as they are (a network of one's own may look them up).

    Returns
    -------
    ndarray of float32 or float64 (or of integers), or CSR matrix of these
        float32 only for numbers that it holds exactly.
    """
    if scipy.sparse.issparse(checked):
        kept = checked.dtype in (np.float32, np.float64)
        return checked if kept else checked.astype(np.float64)
    if checked.dtype.kind in DATES:
        raise ValueError(_dates(_label(X, 0, name), checked.dtype))
    if checked.dtype.kind not in "fiub":
        with named_columns(X, name):
            numbers = checked.astype(np.float64)
        allow_nd = numbers.ndim != 2
        return check_array(numbers, input_name=name, ensure_2d=not allow_nd, allow_nd=allow_nd)
    if checked.dtype.kind in "iu" and checked.dtype.itemsize > 4 and not integers:
        _check_integers(checked, X, name)
    if checked.dtype.kind in "iub" and not integers:
        return native(checked, np.float32 if checked.dtype.itemsize <= 2 else np.float64)
    return native(checked)


def _check_integers(checked: np.ndarray, X: Any, name: str) -> None:
    """Warn of integers that float64 rounds to each other."""
    inexact = (checked > MOST_EXACT) | (
        checked < -MOST_EXACT if checked.dtype.kind == "i" else False
    )
    for column in np.flatnonzero(inexact.reshape(len(checked), -1).any(axis=0))[:1]:
        warnings.warn(
            f"{_label(X, int(column), name)} holds integers beyond 2**53, which float64 cannot "
            "tell from their neighbours. Subtract an offset, or encode them as categories.",
            UserWarning,
            stacklevel=5,
        )


def as_targets(y: Any, name: str = "y") -> np.ndarray:
    """y as a dense native NumPy array of any dtype."""
    y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(to_numpy(y, name))
    if y.dtype.kind == "T":  # NumPy's variable-width strings
        y = y.astype(object)
    return native(y) if y.dtype.kind in "fiub" else y


def as_values(y: np.ndarray, estimator: Any, name: str = "y") -> np.ndarray:
    """Targets of a regression as native float64, finite."""
    options: Any = {"ensure_2d": False, "allow_nd": True, "input_name": name}
    with named_values(y, name):
        return native(check_array(y, dtype=np.float64, estimator=estimator, **options))


def as_weights(sample_weight: Any, X: Any) -> np.ndarray:
    """Sample weights as native float64: finite, not negative, one for each row of X."""
    given = to_numpy(sample_weight, "sample_weight")
    with named_values(np.asarray(given), "sample_weight"):
        return native(check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True))


@contextlib.contextmanager
def named_values(values: np.ndarray, name: str) -> Iterator[None]:
    """Refuse dates, and add the row to errors about other values that are no numbers."""
    if values.dtype.kind in DATES:
        raise ValueError(_dates(f"`{name}`", values.dtype))
    found = None
    if values.dtype.kind not in "fiubc":
        found = _first_bad_value(values)
    if found is not None and _is_date(found[1]):
        raise ValueError(_dates(f"`{name}`", values.dtype))
    try:
        yield
    except (TypeError, ValueError) as error:
        if found is None:
            raise
        row = found[0] // (values.size // len(values))
        raise ValueError(
            f"{str(error).rstrip('.')}. `{name}` (dtype {values.dtype}) holds {found[1]!r} in row "
            f"{row}, which is no number: leave such rows out, or turn all values into numbers."
        ) from error


def check_range(numbers: Any, given: Any, name: str) -> None:
    """Raise where squares of a column would overflow, or vanish, in float64."""
    if scipy.sparse.issparse(numbers):
        largest = abs(numbers).max(axis=0).toarray()
    elif isinstance(numbers, np.ndarray) and numbers.dtype.kind == "f":
        largest = _largest(numbers)
    else:
        return
    found = _outside(largest, SMALLEST, LARGEST)
    if found is not None:
        raise ValueError(
            f"{_label(given, found[0], name) if np.ndim(given) > 1 else f'`{name}`'} holds "
            f"{found[1]:g} as its largest absolute value, whose square float64 cannot hold. "
            f"Rescale it: divide by {found[1]:.0e}, for example."
        )


def outside(numbers: Any, limits: tuple[float, float]) -> tuple[int, float] | None:
    """First column whose largest absolute value lies outside these limits, and that value."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        return None
    largest = _largest(numbers)
    # Of images and fields all pixels are in one unit: a dark one is no reason.
    return _outside(largest if numbers.ndim == 2 else largest.max(), *limits)


def _largest(numbers: np.ndarray) -> np.ndarray:
    """Largest absolute value of each column, without a copy of the array."""
    return np.maximum(numbers.max(axis=0), -numbers.min(axis=0))


def _outside(largest: Any, lowest: float, highest: float) -> tuple[int, float] | None:
    largest = np.ravel(largest).astype(np.float64)
    bad = (largest > highest) | ((largest > 0) & (largest < lowest))
    return (int(bad.argmax()), float(largest[bad.argmax()])) if bad.any() else None


def check_labels(y: np.ndarray, name: str) -> np.ndarray:
    """Raise where a label is missing (None, NaN, NaT, NA), or is no string and no number."""
    entries = y.ravel()
    if y.dtype.kind == "O":
        missing = np.array([_is_missing(value) for value in entries], dtype=bool)
    else:
        missing = entries != entries
    if missing.any():
        position = int(missing.argmax())
        raise ValueError(
            f"Input {name} contains missing values: {entries[position]!r} in row "
            f"{position // (y.size // len(y))}. Drop such rows, or make a class of them."
        )
    if y.dtype.kind != "O":
        return y
    words = np.array([isinstance(value, str) for value in entries])
    if words.any() and not words.all():
        one, other = entries[words.argmax()], entries[words.argmin()]
        raise ValueError(
            f"{name} mixes strings and other labels: {one!r} and {other!r}. Turn all of them into "
            "strings, or all into numbers."
        )
    if len(entries) and not words.all():
        value = entries[0]
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise ValueError(
            f"Unknown label type: {name} is an array of objects, the first of them {value!r} "
            f"({kind}). Turn the labels into strings, as by `{name}.astype(str)`, or, if they are "
            f"whole numbers or truth values, into integers: `{name}.astype(int)`."
        )
    return y


def _is_missing(value: Any) -> bool:
    """Whether a label is None, NaN or NaT of any type, or pandas' NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, Decimal):  # a signalling NaN compares with nothing
        return value.is_nan()
    return isinstance(value, Real | complex | np.generic) and bool(value != value)


@contextlib.contextmanager
def named_columns(X: Any, name: str) -> Iterator[None]:
    """Add the column to errors about values that are no numbers."""
    for position, column in enumerate(_columns(X) if hasattr(X, "shape") else ()):
        dtype = _dtype(column)
        dated = str(dtype).lower().startswith(DATE_NAMES)  # polars would turn them into numbers
        if dated or (str(dtype) == "object" and any(map(_is_numpy_date, np.ravel(column)))):
            raise ValueError(_dates(_label(X, position, name), dtype))
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _first_bad_column(X)
        if found is None:
            raise
        position, dtype, value = found
        label = _label(X, position, name)
        if _is_date(value):
            raise ValueError(_dates(label, dtype)) from error
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{str(error).rstrip('.')}. {label} (dtype {dtype}) holds {value!r}, which is no "
            "number. Encode such columns first, for example by sklearn.preprocessing."
            "OrdinalEncoder or OneHotEncoder in a sklearn.compose.ColumnTransformer, or drop them."
        ) from error


@contextlib.contextmanager
def told_of(arguments: str) -> Iterator[None]:
    """Begin errors with the arguments they are about: scikit-learn's checks know X and y only."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{arguments}: {error}") from error


def _dates(label: str, dtype: Any) -> str:
    return (
        f"{label} (dtype {dtype}) holds dates or durations, which are no numbers. Turn them into "
        "some first: seconds since a date of your choice, the year, the day of the week."
    )


def _label(X: Any, position: int, name: str) -> str:
    """How a message calls a column."""
    if len(getattr(X, "shape", "2d")) == 1:
        return f"`{name}`"
    names = getattr(X, "columns", None)
    if names is None or callable(names) or not hasattr(X, "dtypes"):
        names = getattr(X, "column_names", None)  # pyarrow
    column = position if names is None else names[position]
    column = column.item() if isinstance(column, np.generic) else column
    return f"Column {column!r} of `{name}`"


def _is_date(value: Any) -> bool:
    """Whether a value is a date, a time, a duration or a period, of whatever library."""
    parts = ("isoformat", "total_seconds", "start_time")
    return _is_numpy_date(value) or any(hasattr(value, part) for part in parts)


def _is_numpy_date(value: Any) -> bool:
    return isinstance(value, np.datetime64 | np.timedelta64)  # `float` takes them for numbers


def _first_bad_column(X: Any) -> tuple[int, Any, Any] | None:
    """Position, dtype and a value of the first column that does not turn into numbers."""
    for position, column in enumerate(_columns(X)):
        values = np.asarray(column)
        found = None if values.dtype.kind in "fiub" else _first_bad_value(values)
        if found is not None:
            return position, _dtype(column), found[1]
    return None


def _first_bad_value(values: np.ndarray) -> tuple[int, Any] | None:
    """Position and value of the first entry that does not turn into a number."""
    entries = values.ravel()
    for position, value in enumerate(entries if values.dtype == object else entries.tolist()):
        if _is_numpy_date(value):
            return position, value
        try:
            if value is not None:  # taken for NaN
                float(value)
        except (TypeError, ValueError):
            return position, value
    return None


def _dtype(column: Any) -> Any:
    """What its own library calls it."""
    return getattr(column, "dtype", getattr(column, "type", None))


def _columns(X: Any) -> Iterator[Any]:
    """Columns of a frame, a table or a 2-d array; a series is one."""
    if hasattr(X, "iloc") and X.ndim == 2:
        yield from (X.iloc[:, i] for i in range(X.shape[1]))
    elif len(getattr(X, "shape", "2d")) == 1:
        yield X
    elif hasattr(X, "get_columns"):
        yield from X.get_columns()
    elif hasattr(X, "itercolumns"):
        yield from X.itercolumns()
    elif not scipy.sparse.issparse(X):
        with contextlib.suppress(ValueError):  # rows of different lengths
            array = np.asarray(X)
            if array.ndim == 2:
                yield from array.T
