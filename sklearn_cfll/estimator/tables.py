"""Tables as they come: which of them a reader codes, and the checks of what it has read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch.utils.data import Dataset

from ..backbones.mlp import MLPBackbone
from ..columns.encoder import ColumnEncoder
from ..columns.frames import as_frame
from ..columns.reader import TableReader
from ..columns.value_levels import may_be_names
from .arrays import as_table, check_no_dates, check_no_infinity

__all__ = ["check_categories", "encodes_columns", "holds_objects", "new_reader", "read_table"]
__all__ += ["with_learned_columns"]

SOME = 1000  # rows by which columns are looked at first


def encodes_columns(estimator: Any) -> bool:
    """Whether the columns of a table are encoded, so that it may hold gaps and categories."""
    perceptron = estimator.backbone is None or isinstance(estimator.backbone, MLPBackbone)
    default = perceptron and estimator.columns is None
    return default or isinstance(estimator.columns, ColumnEncoder)


def holds_objects(X: Any) -> bool:
    """Whether a column is of objects, so that its gaps may be None or pandas' NA."""
    dtypes = X.dtypes if hasattr(X, "iloc") else [getattr(X, "dtype", "")]
    return getattr(X, "ndim", 0) == 2 and "object" in map(str, dtypes)


def new_reader(estimator: Any, X: Any, categories: Any = None) -> TableReader | None:
    """A reader for tables like X; None if all its columns are numbers, or if none is encoded."""
    categorical = estimator.categorical_features
    from_dtype = isinstance(categorical, str) and categorical == "from_dtype"
    unread = isinstance(X, Mapping | Dataset | np.memmap) or scipy.sparse.issparse(X)
    if unread or not encodes_columns(estimator):
        asked = {"categories": categories}
        if not from_dtype:
            asked["categorical_features"] = categorical
        for name, value in asked.items():
            if value is not None:
                why = f"X is a {type(X).__name__}" if unread else "they are not"
                raise ValueError(
                    f"`{name}`={value!r:.60} needs a frame or an array, whose columns are encoded, "
                    f"but {why}. Pass X as a frame or an array, and `columns`=ColumnEncoder() "
                    "with a `backbone`."
                )
        return None
    table = as_array(X)
    if as_frame(table) is None:
        numbers = isinstance(table, np.ndarray) and table.dtype.kind != "O"
        if not isinstance(table, np.ndarray) or table.ndim != 2:
            return None
        if numbers and (from_dtype or categorical is None) and categories is None:
            return None
    if len(table) == 0:
        return None  # scikit-learn's checks name it
    check_no_dates(table, "X")
    return TableReader.fit(table, categorical, categories=categories)


def check_categories(categories: Mapping[Any, Any], reader: TableReader | None) -> None:
    """Raise if levels that a later call lists are not those of the first one."""
    for column, listed in categories.items():
        if reader is None or not reader.has_levels(column, listed):
            raise ValueError(
                f"`categories` lists {listed!r:.60} for column {column!r}, unlike the first call, "
                "which fixed the levels. Omit it, or fit again."
            )


def read_table(
    estimator: Any, X: Any, reader: TableReader, *, reset: bool, min_samples: int
) -> np.ndarray:
    """Coded rows of a table, after scikit-learn's checks of its shape and names."""
    X = reader.in_order(as_array(X))
    if isinstance(X, np.ndarray):
        check_array(X, dtype=None, ensure_all_finite=False, ensure_min_samples=0, input_name="X")
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    check_no_dates(X, "X")
    codes = reader.read(X)
    check_no_infinity(codes, X, "X")
    checked: np.ndarray = check_array(
        codes,
        ensure_all_finite="allow-nan",
        ensure_min_samples=min_samples,
        estimator=estimator,
        input_name="X",
    )
    return checked


def with_learned_columns(estimator: Any, checked: Any, *, again: bool = False) -> Any:
    """Checked rows of a fit with what targets tell of columns.

    These are codes of integers whose values are names, and mean targets of categories of many
    levels, for each row of the fit from rows outside its fold. A fit that goes on (``again``) keeps
    the columns of the first one.
    """
    reader, encoder = checked.reader, estimator.columns or ColumnEncoder()
    if reader is None and not again and _holds_integers(estimator, checked):
        reader = TableReader.of_numbers(checked.X.shape[1])
    if reader is None or not (encoder.values_as_levels or encoder.target_means):
        return checked
    rows = slice(None) if checked.rows is None else checked.rows
    targets, weight = checked.y.reshape(len(checked.y), -1), checked.repetitions
    weight = np.ones(len(checked.y)) if weight is None else weight
    known = checked.X[rows][:, : len(reader.contents)].astype(np.float64)
    given = targets.astype(np.float64), weight, checked.groups
    if again:
        codes = reader.with_codes(known)
        reader = reader.with_means_again(codes, *given[:2])
    else:
        if encoder.values_as_levels:
            reader = reader.with_values(known, *given)
        codes = reader.with_codes(known)
        if encoder.target_means:
            reader = reader.with_means(codes, *given)
    if not reader.means and not reader.values:
        return checked
    coded = reader.out_of_fold(codes, *given)
    X = np.zeros((len(checked.X), coded.shape[1]))  # rows of weight zero are not looked at
    X[rows] = coded
    return checked._replace(X=X, reader=reader)


def _holds_integers(estimator: Any, checked: Any) -> bool:
    """Whether the rows are a table of numbers in memory with values that may be names."""
    X = checked.X
    in_memory = isinstance(X, np.ndarray) and X.ndim == 2 and not checked.lazy
    if not in_memory or not encodes_columns(estimator):
        return False
    return bool(may_be_names(X[:: -(-len(X) // SOME)]).any())


def as_array(X: Any) -> Any:
    """Anything but a frame as an array; text as objects."""
    if as_frame(X) is not None:
        return X
    if hasattr(X, "collect") and hasattr(X, "collect_schema"):
        raise TypeError("X is a lazy frame. Pass the frame that its `collect()` returns.")
    found = as_table(X, "X")
    if hasattr(found, "columns") and not callable(found.columns):
        names = list(found.columns)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"Several columns of X are named {twice!r}. Give each column a name of its own."
            )
        return np.asarray(found)
    return np.asarray(found, dtype=object) if isinstance(found, list | tuple) else found
