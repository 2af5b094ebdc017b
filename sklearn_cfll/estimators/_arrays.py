"""From whatever holds numbers to NumPy arrays that torch can take."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array

from ..training.batches import native

__all__ = ["as_columns", "as_targets", "as_values", "check_labels", "check_range"]
__all__ += ["float32_misses", "named_columns", "to_numpy", "told_of"]

# Beyond these squares, and sums of them, overflow or vanish in float64.
LARGEST, SMALLEST = 1e140, 1e-140
# Networks of one's own multiply inputs as they are: well within float32's 1e38 and 1e-38.
LARGEST_32, SMALLEST_32 = 1e30, 1e-30

DATES = "mM"  # kinds of NumPy dtypes: durations and dates
# What dtypes of pandas, polars and pyarrow for them begin with.
DATE_NAMES = ("date", "duration", "period", "time")


def to_numpy(value: Any) -> Any:
    """A dense NumPy array of whatever holds rows; frames are left to scikit-learn's checks."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


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
    if checked.dtype.kind in "iub" and not integers:
        return native(checked, np.float32 if checked.dtype.itemsize <= 2 else np.float64)
    return native(checked)


def as_targets(y: Any) -> np.ndarray:
    """y as a dense native NumPy array of any dtype."""
    y = y.toarray() if scipy.sparse.issparse(y) else np.asarray(to_numpy(y))
    if y.dtype.kind == "T":  # NumPy's variable-width strings
        y = y.astype(object)
    return native(y) if y.dtype.kind in "fiub" else y


def as_values(y: np.ndarray, estimator: Any) -> np.ndarray:
    """Targets of a regression as native float64, finite."""
    if y.dtype.kind in DATES:
        raise ValueError(_dates("`y`", y.dtype))
    options: Any = {"ensure_2d": False, "allow_nd": True, "input_name": "y"}
    return native(check_array(y, dtype=np.float64, estimator=estimator, **options))


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


def float32_misses(numbers: np.ndarray) -> tuple[int, float] | None:
    """First column whose size is too much or too little for float32, and its largest value."""
    largest = _largest(numbers)
    # Of images and fields all pixels are in one unit: a dark one is no reason.
    return _outside(largest if numbers.ndim == 2 else largest.max(), SMALLEST_32, LARGEST_32)


def _largest(numbers: np.ndarray) -> np.ndarray:
    """Largest absolute value of each column, without a copy of the array."""
    return np.maximum(numbers.max(axis=0), -numbers.min(axis=0))


def _outside(largest: Any, lowest: float, highest: float) -> tuple[int, float] | None:
    largest = np.ravel(largest).astype(np.float64)
    bad = (largest > highest) | ((largest > 0) & (largest < lowest))
    return (int(bad.argmax()), float(largest[bad.argmax()])) if bad.any() else None


def check_labels(y: np.ndarray, name: str) -> np.ndarray:
    """Raise where an array of objects holds None, NaN or pandas' NA or NaT in place of a label."""
    if y.dtype.kind != "O":
        return y
    for position, value in enumerate(y.ravel()):
        missing = value is None or type(value).__name__ in ("NAType", "NaTType")
        if missing or (isinstance(value, float) and value != value):
            raise ValueError(
                f"Input {name} contains missing values: {value!r} in row "
                f"{position // (y.size // len(y))}. Drop such rows, or make a class of them."
            )
    words = np.array([isinstance(value, str) for value in y.ravel()])
    if words.any() and not words.all():
        one, other = y.ravel()[words.argmax()], y.ravel()[words.argmin()]
        raise ValueError(
            f"{name} mixes strings and other labels: {one!r} and {other!r}. Turn all of them into "
            "strings, or all into numbers."
        )
    return y


@contextlib.contextmanager
def named_columns(X: Any, name: str) -> Iterator[None]:
    """Add the column to errors about values that are no numbers."""
    for position, column in enumerate(_columns(X) if hasattr(X, "shape") else ()):
        dtype = _dtype(column)
        if str(dtype).lower().startswith(DATE_NAMES):  # polars would turn them into numbers
            raise ValueError(_dates(_label(X, position, name), dtype))
    try:
        yield
    except (TypeError, ValueError) as error:
        found = _first_bad_column(X)
        if found is None:
            raise
        position, dtype, value = found
        label = _label(X, position, name)
        if hasattr(value, "isoformat"):
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
    names = getattr(X, "columns", None)
    if names is None or callable(names) or not hasattr(X, "dtypes"):
        names = getattr(X, "column_names", None)  # pyarrow
    column = position if names is None else names[position]
    return f"Column {column!r} of `{name}`"


def _first_bad_column(X: Any) -> tuple[int, Any, Any] | None:
    """Position, dtype and a value of the first column that does not turn into numbers."""
    for position, column in enumerate(_columns(X)):
        values = np.asarray(column)
        if values.dtype.kind in "fiub":
            continue
        for value in values.ravel().tolist():
            try:
                float(value)
            except (TypeError, ValueError):
                return position, _dtype(column), value
    return None


def _dtype(column: Any) -> Any:
    """What its own library calls it."""
    return getattr(column, "dtype", getattr(column, "type", None))


def _columns(X: Any) -> Iterator[Any]:
    """Columns of a frame, a table or a 2-d array."""
    if hasattr(X, "iloc"):
        yield from (X.iloc[:, i] for i in range(X.shape[1]) if X.ndim == 2)
    elif hasattr(X, "get_columns"):
        yield from X.get_columns()
    elif hasattr(X, "itercolumns"):
        yield from X.itercolumns()
    elif not scipy.sparse.issparse(X):
        with contextlib.suppress(ValueError):  # rows of different lengths
            array = np.asarray(X)
            if array.ndim == 2:
                yield from array.T
