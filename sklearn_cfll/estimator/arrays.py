"""Conversion of arrays, frames and tensors to NumPy arrays that torch accepts."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array

from .._compat import check_sample_weight
from .._warnings import user_level
from ..columns.frames import MOST_EXACT, is_date, is_gap, is_numpy_date
from ..columns.frames import dated as dates_error
from ..columns.rows import check_unmasked, native

__all__ = ["as_columns", "as_table", "as_targets", "as_values", "as_weights", "check_labels"]
__all__ += ["check_no_dates", "check_no_infinity", "check_range", "few_numbers"]
__all__ += ["named_columns", "outside", "to_numpy", "told_of"]

# Outside this range, squares and sums of squares overflow or underflow in float64.
LARGEST, SMALLEST = 1e140, 1e-140
# User-defined networks multiply unscaled inputs. The limits are well within float32's range of
# 1e-38 to 1e38; in float64, fourth powers, which the choice of the ridge needs, must not overflow.
SMALLEST_32, LARGEST_32 = 1e-30, 1e30
HELD_32, HELD_64 = (SMALLEST_32, LARGEST_32), (1e-60, 1e60)
SQUARED_32 = 1e-15, 1e15  # range in which float32 can hold the squares

FEW = 4096  # numbers: scikit-learn's checks of fewer take longer than a prediction

DATES = "mM"  # NumPy dtype kinds of durations and dates
TEXT = "SUT"  # dtype kinds of bytes, and of strings of fixed and of variable width
# Prefixes of the names of date dtypes in pandas, polars and pyarrow.
DATE_NAMES = ("date", "duration", "period", "time")

ENCODE = (
    "Encode such columns first, for example with sklearn.preprocessing.OrdinalEncoder or "
    "OneHotEncoder in a sklearn.compose.ColumnTransformer, drop them, or fit a CFLLRegressor or "
    "CFLLClassifier with `columns`=ColumnEncoder() to a frame."
)


def to_numpy(value: Any, name: str) -> Any:
    """Convert a tensor to a dense NumPy array, and raise for masked values.

    Other containers, such as frames, are returned unchanged for scikit-learn's checks.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, list | tuple) and any(isinstance(x, np.ma.MaskedArray) for x in value):
        value = np.ma.stack(value)
    return check_unmasked(value, name)


def few_numbers(value: Any, n_dimensions: int) -> bool:
    """Whether the value is an array of some finite floats, to which no check would object."""
    return (
        type(value) is np.ndarray
        and value.ndim == n_dimensions
        and 0 < value.size <= FEW
        and value.dtype in (np.float32, np.float64)  # in native byte order
        and bool(np.isfinite(value).all())
    )


def as_table(value: Any, name: str) -> Any:
    """Like :func:`to_numpy`, with text as objects, in which scikit-learn parses numbers."""
    value = to_numpy(value, name)
    array = value
    if isinstance(value, list | tuple):
        with contextlib.suppress(ValueError):  # rows of different lengths
            array = np.asarray(value)
    text = isinstance(array, np.ndarray) and array.dtype.kind in TEXT
    return array.astype(object) if text else value


def as_columns(
    checked: Any, X: Any, name: str = "X", *, integers: bool = False, gaps: bool = False
) -> Any:
    """Convert the output of scikit-learn's checks to native numbers in C order.

    Parameters
    ----------
    checked : ndarray or sparse matrix
        Checked for shape and finite values, but possibly of any dtype: scikit-learn lets dates,
        categories and unusual floats through.
    X : array-like or frame
        The user's input, which provides the names of columns.
    name : str
        Name of the argument.
    integers : bool, default=False
        Whether to leave integers and booleans unchanged (a user-defined network may use them as
        indices).
    gaps : bool, default=False
        Whether NaN is allowed.

    Returns
    -------
    ndarray of float32 or float64 (or of integers), or CSR matrix of these
        float32 is used only for numbers that it holds exactly.
    """
    if scipy.sparse.issparse(checked):
        kept = checked.dtype in (np.float32, np.float64)
        return checked if kept else checked.astype(np.float64)
    if checked.dtype.kind in DATES:
        raise dates_error(_label(X, 0, name), checked.dtype)
    if checked.dtype.kind not in "fiub":
        with named_columns(X, name):
            numbers = checked.astype(np.float64)
        allow_nd = numbers.ndim != 2
        finite: Any = "allow-nan" if gaps else True
        return check_array(
            numbers,
            input_name=name,
            ensure_2d=not allow_nd,
            allow_nd=allow_nd,
            ensure_all_finite=finite,
        )
    if checked.dtype.kind in "iu" and checked.dtype.itemsize > 4 and not integers:
        _check_integers(checked, X, name)
    if checked.dtype.kind in "iub" and not integers:
        return native(checked, np.float32 if checked.dtype.itemsize <= 2 else np.float64)
    return native(checked)


def _check_integers(checked: np.ndarray, X: Any, name: str) -> None:
    """Warn about integers that float64 cannot hold exactly."""
    inexact = (checked > MOST_EXACT) | (
        checked < -MOST_EXACT if checked.dtype.kind == "i" else False
    )
    for column in np.flatnonzero(inexact.reshape(len(checked), -1).any(axis=0))[:1]:
        warnings.warn(
            f"{_label(X, int(column), name)} holds integers beyond 2**53, which float64 cannot "
            "hold exactly. Subtract an offset, or encode them as categories.",
            UserWarning,
            stacklevel=user_level(),
        )


def as_targets(y: Any, name: str = "y") -> np.ndarray:
    """y as a dense native NumPy array of any dtype."""
    y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(to_numpy(y, name))
    if y.dtype.kind == "T":  # NumPy's variable-width strings
        y = y.astype(object)
    return native(y) if y.dtype.kind in "fiub" else y


def as_values(y: np.ndarray, estimator: Any, name: str = "y") -> np.ndarray:
    """Regression targets as finite, native float64."""
    if few_numbers(y, 1):
        return native(y, np.float64)
    options: Any = {"ensure_2d": False, "allow_nd": True, "input_name": name}
    with named_values(y, name):
        return native(check_array(y, dtype=np.float64, estimator=estimator, **options))


def as_weights(sample_weight: Any, X: Any) -> np.ndarray:
    """Sample weights as native float64: finite, non-negative, one per row of X."""
    given = to_numpy(sample_weight, "sample_weight")
    with named_values(np.asarray(given), "sample_weight"):
        return native(check_sample_weight(given, X, dtype=np.float64, ensure_non_negative=True))


@contextlib.contextmanager
def named_values(values: np.ndarray, name: str) -> Iterator[None]:
    """Raise for dates, and add the row to errors about other non-numeric values."""
    if values.dtype.kind in DATES:
        raise dates_error(f"`{name}`", values.dtype)
    found = None
    if values.dtype.kind not in "fiubc":
        found = _first_bad_value(values)
    if found is not None and is_date(found[1]):
        raise dates_error(f"`{name}`", values.dtype)
    try:
        yield
    except (TypeError, ValueError) as error:
        if found is None:
            raise
        row = found[0] // (values.size // len(values))
        raise ValueError(
            f"{str(error).rstrip('.')}. `{name}` (dtype {values.dtype}) holds {found[1]!r} in row "
            f"{row}, which is not a number. Drop such rows, or convert all values to numbers."
        ) from error


def check_range(numbers: Any, given: Any, name: str) -> None:
    """Raise if the squares of a column would overflow or underflow in float64."""
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
            f"Rescale it, for example by dividing by {found[1]:.0e}."
        )


def outside(numbers: Any, limits: tuple[float, float]) -> tuple[int, float] | None:
    """First column whose largest absolute value lies outside these limits, and that value."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype.kind != "f":
        return None
    largest = _largest(numbers)
    # All pixels of an image or a field share one unit, so a single dark pixel is not an error.
    return _outside(largest if numbers.ndim == 2 else largest.max(), *limits)


def _largest(numbers: np.ndarray) -> np.ndarray:
    """Largest absolute value of each column, NaN left out, without a copy of the array."""
    return np.fmax(np.fmax.reduce(numbers, axis=0), -np.fmin.reduce(numbers, axis=0))


def _outside(largest: Any, lowest: float, highest: float) -> tuple[int, float] | None:
    largest = np.ravel(largest).astype(np.float64)
    bad = (largest > highest) | ((largest > 0) & (largest < lowest))
    return (int(bad.argmax()), float(largest[bad.argmax()])) if bad.any() else None


def check_labels(y: np.ndarray, name: str) -> np.ndarray:
    """Raise if a label is missing (None, NaN, NaT, NA), or is neither a string nor a number."""
    entries = y.ravel()
    if y.dtype.kind == "O":
        missing = np.array([is_gap(value) for value in entries], dtype=bool)
    else:
        missing = entries != entries
    if missing.any():
        position = int(missing.argmax())
        raise ValueError(
            f"Input {name} contains missing values: {entries[position]!r} in row "
            f"{position // (y.size // len(y))}. Drop such rows, or give them a label."
        )
    if y.dtype.kind != "O":
        return y
    words = np.array([isinstance(value, str) for value in entries])
    if words.any() and not words.all():
        one, other = entries[words.argmax()], entries[words.argmin()]
        raise ValueError(
            f"{name} mixes strings and other labels: {one!r} and {other!r}. Convert all of them "
            "to strings, or all to numbers."
        )
    if len(entries) and not words.all():
        value = entries[0]
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        raise ValueError(
            f"Unknown label type: {name} is an array of objects, the first of which is {value!r} "
            f"({kind}). Convert the labels to strings, `{name}.astype(str)`, or, if they are "
            f"integers or booleans, to integers, `{name}.astype(int)`."
        )
    return y


@contextlib.contextmanager
def named_columns(X: Any, name: str, remedy: str = ENCODE) -> Iterator[None]:
    """Add the column to errors about non-numeric values, and what may be done."""
    check_no_dates(X, name)
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _first_bad_column(X)
        if found is None:
            if "infinity" in str(error) and not scipy.sparse.issparse(X) and np.ndim(X) == 2:
                check_no_infinity(np.asarray(X, dtype=np.float64), X, name)
            raise
        position, dtype, value = found
        label = _label(X, position, name)
        if is_date(value):
            raise dates_error(label, dtype) from error
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"{str(error).rstrip('.')}. {label} (dtype {dtype}) holds {value!r}, which is not "
            f"a number. {remedy}"
        ) from error


def check_no_infinity(numbers: np.ndarray, X: Any, name: str) -> None:
    """Raise if a column of a table, X, holds an infinite value; ``numbers`` are those in it."""
    infinite = np.isinf(numbers)
    if infinite.any():
        row, column = np.argwhere(infinite)[0].tolist()
        raise ValueError(
            f"Input {name} contains infinity in column {_title(X, column)!r}, row {row}. Replace "
            "it, by NaN for example, or drop the row."
        )


def check_no_dates(X: Any, name: str) -> None:
    """Raise if a column holds dates or durations."""
    if isinstance(X, np.ndarray) and X.dtype.kind in "fiub":  # at once: a row is predicted in 1 ms
        return
    for position, column in enumerate(_columns(X) if hasattr(X, "shape") else ()):
        dtype = _dtype(column)
        dated = str(dtype).lower().startswith(DATE_NAMES)  # polars would convert them to numbers
        if dated or (str(dtype) == "object" and any(map(is_numpy_date, np.ravel(column)))):
            raise dates_error(_label(X, position, name), dtype)


@contextlib.contextmanager
def told_of(arguments: str) -> Iterator[None]:
    """Prefix errors with the names of the arguments; scikit-learn's checks only know X and y."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{arguments}: {error}") from error


def _label(X: Any, position: int, name: str) -> str:
    """Name of a column in error messages."""
    if len(getattr(X, "shape", "2d")) == 1:
        return f"`{name}`"
    return f"Column {_title(X, position)!r} of `{name}`"


def _title(X: Any, position: int) -> Any:
    """Name of a column, or its index."""
    names = getattr(X, "columns", None)
    if names is None or callable(names) or not hasattr(X, "dtypes"):
        names = getattr(X, "column_names", None)  # pyarrow
    column = position if names is None else names[position]
    return column.item() if isinstance(column, np.generic) else column


def _first_bad_column(X: Any) -> tuple[int, Any, Any] | None:
    """Position, dtype and a value of the first column that cannot be converted to numbers."""
    for position, column in enumerate(_columns(X)):
        values = np.asarray(column)
        found = None if values.dtype.kind in "fiub" else _first_bad_value(values)
        if found is not None:
            return position, _dtype(column), found[1]
    return None


def _first_bad_value(values: np.ndarray) -> tuple[int, Any] | None:
    """Position and value of the first entry that cannot be converted to a number."""
    entries = values.ravel()
    for position, value in enumerate(entries if values.dtype == object else entries.tolist()):
        if is_numpy_date(value):
            return position, value
        try:
            if value is not None:  # None is read as NaN
                float(value)
        except (TypeError, ValueError):
            return position, value
    return None


def _dtype(column: Any) -> Any:
    """Dtype of a column in its own library."""
    return getattr(column, "dtype", getattr(column, "type", None))


def _columns(X: Any) -> Iterator[Any]:
    """Columns of a frame, a table or a 2-d array; a series is a single column."""
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
