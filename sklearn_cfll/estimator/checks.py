"""Checks on X, y and sample weights together; arrays.py checks each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.utils.validation import check_consistent_length, validate_data
from torch.utils.data import Dataset

from ..columns.reader import TableReader
from ..columns.rows import as_rows, from_numpy, native
from ..columns.statistics import quantiles, spread_rows
from ..data.blocks import is_stream
from .arrays import (
    HELD_32,
    HELD_64,
    SQUARED_32,
    as_columns,
    as_table,
    as_targets,
    as_weights,
    check_labels,
    check_range,
    few_numbers,
    named_columns,
    outside,
    to_numpy,
)
from .data_sets import parts_of_dataset, refuse_iterator
from .inputs import check_named_inputs, check_names, n_samples
from .tables import encodes_columns, holds_objects, new_reader, read_table

__all__ = ["Checked", "check_data", "check_inputs", "check_sample_shape"]
__all__ += ["check_sizes", "needs_float64", "seen_as_given"]

MOST_REPEATED = 1e9  # mean number of repetitions beyond which more make no difference

# Float32 must resolve differences of this fraction of a column's standard deviation.
RESOLUTION = 1e-3


class Checked(NamedTuple):
    """Checked inputs, encoded targets and weights.

    Attributes
    ----------
    X : ndarray, sparse matrix, Dataset, or dict of arrays, of all samples
    rows : ndarray of int, or None
        Rows of X with positive weight; None for all rows.
    y : ndarray of shape (n, ...)
        Encoded targets of those rows.
    sample_weight : ndarray of shape (n,) with mean one, or None where all are equal
    mean_weight : float
        Number by which the weights were divided.
    lazy : bool
        Whether X is a memory map that is read batch by batch.
    groups : ndarray of shape (n,), or None
        Group of each row; rows of a group are held out together.
    own_weight : ndarray of shape (n,), or None
        The weights that were passed, over their largest: ``sample_weight`` may include class
        weights.
    reader : TableReader or None
        What has coded the categories of a table.
    """

    X: Any
    rows: np.ndarray | None
    y: np.ndarray
    sample_weight: np.ndarray | None
    mean_weight: float
    lazy: bool
    groups: np.ndarray | None = None
    own_weight: np.ndarray | None = None
    reader: TableReader | None = None

    @property
    def repetitions(self) -> np.ndarray | None:
        """Sample weights as numbers of repetitions; None where all are equal."""
        if self.sample_weight is None:
            return None
        repeated: np.ndarray = self.sample_weight * self.mean_repetitions
        return repeated

    @property
    def mean_repetitions(self) -> float:
        """Mean number of repetitions that the weights stand for; one if they are shares.

        Weights near the end of the range are not restored: their sums would overflow.
        """
        return float(np.clip(self.mean_weight, 1.0, MOST_REPEATED))


def check_data(
    estimator: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    groups: Any = None,
    *,
    plan: Any,
    min_samples: int,
    categories: Any = None,
) -> Checked:
    """Check and encode the arguments of a fit; the estimator encodes its targets and weights.

    ``plan`` is that of an earlier fit, None for the first, which may list levels of ``categories``.
    """
    reset = plan is None
    lazy = isinstance(X, np.memmap)
    if isinstance(X, Dataset) and not is_stream(X):
        y, sample_weight = parts_of_dataset(X, y, sample_weight)
    if y is None:
        refuse_iterator(X)
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None."
        )
    if not reset:
        check_sample_shape(X, plan.network.sample_shape)
    reader = new_reader(estimator, X, categories) if reset else plan.reader
    given, X = X, check_inputs(estimator, X, plan, min_samples, reader)
    check_range(X, given, "X")
    y = as_targets(y)
    _check_lengths(X, y)
    # All rows are encoded: as in scikit-learn, a class may have only rows of weight zero.
    targets = estimator._encode_targets(y, reset=reset)
    check_range(targets, targets, "y")
    own = _check_weights(sample_weight, X)
    weights = estimator._fit_weights(y, own)
    groups = None if groups is None else check_groups(groups, X)
    rows, mean_weight = None, 1.0
    if weights is not None:
        # A weight is a number of repetitions, so rows of weight zero are dropped.
        kept = np.flatnonzero(weights)
        if len(kept) == 0:
            raise ValueError(
                "`sample_weight` (times `class_weight`, if given) is zero in every row: there is "
                "nothing to fit. Give at least one row a positive weight."
            )
        if len(kept) < len(y):
            rows, targets, weights = kept, targets[kept], weights[kept]
            groups = None if groups is None else groups[kept]
            own = None if own is None else own[kept]
        # Divide by the largest weight first, because sums of weights near 1e308 overflow.
        own = None if own is None else own / own.max()
        largest = weights.max()
        mean_weight = float(largest * (weights / largest).mean())
        weights = None if np.all(weights == weights[0]) else weights / mean_weight
    if groups is not None and len(np.unique(groups)) < 2:
        raise ValueError(
            f"`groups` holds one group, {groups[0]}, among the rows of positive weight: rows of a "
            "group are held out together, and none would remain to train on. Give at least two "
            "groups, or omit it."
        )
    return Checked(X, rows, targets, weights, mean_weight, lazy, groups, own, reader)


def check_inputs(
    estimator: Any, X: Any, plan: Any, min_samples: int = 1, reader: TableReader | None = None
) -> Any:
    """Validate X with scikit-learn's checks and convert it for the backbone.

    A ``reader`` codes the columns of a table; its gaps are NaN.
    """
    reset = plan is None
    if _is_plain(estimator, X, plan, min_samples, reader):
        return native(X)
    _refuse_stream(X)
    if reader is not None and (isinstance(X, Dataset) or scipy.sparse.issparse(X)):
        X = as_rows(X, "cpu", torch.float64).take(slice(None)).numpy()
    if isinstance(X, Dataset):
        if len(X) < min_samples:  # type: ignore[arg-type]
            raise ValueError(
                f"Found a Dataset with {len(X)} sample(s) while a minimum of "  # type: ignore
                f"{min_samples} is required by {type(estimator).__name__}."
            )
        if reset:
            item = X[0]
            inputs = item[0] if isinstance(item, tuple | list) else item
            if isinstance(inputs, Mapping):
                check_named_inputs(
                    estimator, {k: [v] for k, v in inputs.items()}, reset=True, min_samples=1
                )
            else:
                estimator.n_features_in_ = (*np.shape(inputs), 1)[0]
        return X
    if isinstance(X, Mapping) and not scipy.sparse.issparse(X):
        return check_named_inputs(estimator, X, reset=reset, min_samples=min_samples)
    lazy, X = isinstance(X, np.memmap), as_table(X, "X")
    # If the features of the backbone have positions, X is a field, and its first axis may be the
    # grid. Predictions on another grid are allowed, so the backbone itself checks the shape.
    fields = plan is not None and plan.network.on_fields
    own = estimator.backbone is not None if plan is None else plan.takes_any_shape
    if not own and plan is None and len(getattr(X, "shape", ())) > 2:
        raise ValueError(
            f"Found array with dim {len(X.shape)}: samples of X have shape "
            f"{tuple(X.shape[1:])}, but the default perceptron "
            "takes rows of columns. Pass a `backbone` for images, fields or "
            "sequences, or reshape X to (n_samples, n_features)."
        )
    if len(getattr(X, "shape", ())) == 2 and X.shape[1] == 0 and X.shape[0]:
        raise ValueError(
            f"X has no columns: Found array with 0 feature(s) (shape={tuple(X.shape)}) while a "
            f"minimum of 1 is required by {type(estimator).__name__}."
        )
    encodes = encodes_columns(estimator) if plan is None else plan.network.columns is not None
    if reader is None and encodes and plan is not None and holds_objects(X):
        reader = TableReader.of_numbers(plan.network.sample_shape[0])
    if reader is not None:
        return read_table(estimator, X, reader, reset=reset, min_samples=min_samples)
    with named_columns(X, "X"):
        checked = validate_data(
            estimator,
            X,
            reset=reset,
            ensure_2d=not fields,
            ensure_all_finite="allow-nan" if encodes else True,
            accept_sparse="csr",
            dtype="numeric",
            allow_nd=own,
            ensure_min_samples=min_samples,
        )
    return checked if lazy else as_columns(checked, X, integers=own, gaps=encodes)


def _is_plain(
    estimator: Any, X: Any, plan: Any, min_samples: int, reader: TableReader | None
) -> bool:
    """Whether X holds a few rows like those of the fit, which need no further check."""
    if plan is None or reader is not None or hasattr(estimator, "feature_names_in_"):
        return False
    return few_numbers(X, 2) and len(X) >= min_samples and X.shape[1:] == plan.network.sample_shape


def check_sample_shape(X: Any, sample_shape: Any) -> None:
    """Raise if samples have another number of dimensions than at fit; the backbone checks sizes."""
    _refuse_stream(X)
    check_names(X, sample_shape)
    if isinstance(sample_shape, dict):
        for name, shape in sample_shape.items() if isinstance(X, Mapping) else ():
            if np.ndim(X[name]) - 1 != len(shape):
                raise ValueError(
                    f"X[{name!r}] has samples of shape {np.shape(X[name])[1:]}, but the estimator "
                    f"was fitted on samples of shape {shape}."
                )
        return
    if isinstance(X, Dataset) or len(sample_shape) == 1:
        return  # scikit-learn checks tables itself
    shape = np.shape(X)
    if len(shape) - 1 == len(sample_shape):
        return
    raise ValueError(
        f"X has samples of shape {shape[1:]}, but the estimator was fitted on samples of "
        f"shape {sample_shape}."
    )


def _refuse_stream(X: Any) -> None:
    """Raise if rows of X cannot be taken by index."""
    if is_stream(X):
        raise TypeError(
            f"X is a {type(X).__name__}, which is read in order: only `fit`, `partial_fit` and "
            "`predict` (without deviations) take it. Pass arrays, or a map-style Dataset."
        )


def seen_as_given(checked: Checked, *, inputs: bool, targets: bool) -> dict[str, Any]:
    """Data that a network receives unscaled: X or its named parts, and y."""
    named = checked.X.items() if isinstance(checked.X, Mapping) else ()
    X = {f"X[{name!r}]": part for name, part in named} or {"X": checked.X}
    return (X if inputs else {}) | ({"y": checked.y} if targets else {})


def needs_float64(checked: Checked, encoded: bool, as_given: Mapping[str, Any]) -> bool:
    """Whether float32 is too coarse for targets or columns.

    It is too coarse if they are far from zero relative to their deviation (milliseconds since 1970
    over one day), or if data in ``as_given`` have squares that float32 cannot hold. Arrays in
    float32 hold nothing finer. Columns that are ``encoded`` are standardised before they are
    cast, so only targets count.
    """
    if any(outside(part, SQUARED_32) is not None for part in as_given.values()):
        return True
    parts = []
    if checked.y.ndim <= 2:
        weights = checked.sample_weight
        targets = from_numpy(checked.y.reshape(len(checked.y), -1))
        parts.append((targets, None if weights is None else from_numpy(weights)))
    for X in checked.X.values() if isinstance(checked.X, Mapping) else [checked.X]:
        wide = isinstance(X, np.ndarray) and X.dtype.kind in "iuf" and X.dtype.itemsize > 4
        if wide and X.ndim == 2 and not encoded:
            parts.append(_some_rows(checked._replace(X=X)))
    for rows, weight in parts:
        low, middle, high = quantiles(rows, weight, 20)[:, [1, 10, 19]].T
        deviation = (high - low) / 3.3  # of a normal distribution
        coarse = torch.finfo(torch.float32).eps * middle.abs() > RESOLUTION * deviation
        if bool((coarse & (deviation > 0)).any()):
            return True
    return False


def check_sizes(as_given: Mapping[str, Any], dtype: torch.dtype) -> None:
    """Raise if data that a network receives unscaled are too large or too small for it.

    Inputs of 1e20 may be standardised inside the network; targets are squared in any case.
    """
    narrow = dtype == torch.float32
    for name, part in as_given.items():
        limits = HELD_32 if narrow else HELD_64
        if name == "y":
            limits = SQUARED_32 if narrow else (0.0, np.inf)
        found = outside(part, limits)
        if found is None:
            continue
        where = f"Column {found[0]} of `{name}`" if part.ndim == 2 else f"`{name}`"
        wide = ', or use `precision`="float64"' if narrow else ""
        remedy = "`normalize_y`=True" if name == "y" else "sklearn.preprocessing.StandardScaler"
        raise ValueError(
            f"{where} holds {found[1]:g} as its largest absolute value, which the network would "
            f"see unscaled in {'float32' if narrow else 'float64'}. Rescale it, for example with "
            f"{remedy}{wide}."
        )


def _some_rows(checked: Checked) -> tuple[Any, torch.Tensor | None]:
    """Rows of X and their weights, evenly subsampled if there are many."""
    # Read lazily, so that unused rows are not copied.
    inputs = as_rows(checked.X, "cpu", torch.float64, lazy=True)
    chosen = spread_rows(len(checked.y), inputs.shape[1]).numpy()
    rows = inputs.take(torch.as_tensor(chosen if checked.rows is None else checked.rows[chosen]))
    weights = checked.sample_weight
    return rows, None if weights is None else from_numpy(weights[chosen])


def _check_weights(sample_weight: Any, X: Any) -> np.ndarray | None:
    if sample_weight is None:
        return None
    if isinstance(X, Dataset | Mapping):
        X = np.empty((n_samples(X), 1))
    return as_weights(sample_weight, X)


def check_groups(groups: Any, X: Any) -> np.ndarray:
    """Groups as an array of labels, one per row of X."""
    found = check_labels(np.asarray(to_numpy(groups, "groups")), "groups")
    if found.shape != (n_samples(X),):
        raise ValueError(
            f"`groups` must hold one label for each of the {n_samples(X)} rows of X, got shape "
            f"{found.shape}."
        )
    return found


def _check_lengths(X: Any, y: np.ndarray) -> None:
    if isinstance(X, Dataset | Mapping):
        if n_samples(X) != len(y):
            raise ValueError(f"X has {n_samples(X)} samples, y has {len(y)}.")
        return
    if not isinstance(X, np.ndarray) or len(X) != len(y):
        check_consistent_length(X, y)
