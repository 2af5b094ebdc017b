"""Checks of treatments, instruments, confounders and outcomes; assignment of rows to folds."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from .._warnings import user_level
from ..columns.rows import native
from ..estimator.arrays import (
    as_columns,
    as_table,
    as_targets,
    as_values,
    as_weights,
    check_range,
    named_columns,
    told_of,
)
from ..estimator.checks import Checked, check_groups
from ..estimator.wild_targets import find_wild, warn_of_wild_targets
from ..training.distribution import refuse_workers
from .names import check_no_categories, column_names, in_order, label
from .networks import ROLES, NetworkPlan, is_own

__all__ = [
    "InstrumentData",
    "check_instrument_data",
    "check_new_rows",
    "check_stage1_sample",
    "fold_labels",
]


FEWEST_GROUPS = 8  # the networks of the controls have eight folds
NAMED = 3  # columns with faults that an error lists
REMEDIES = {
    "NaN": "Drop these rows from X, y, Z and C, or fill the gaps of controls and add columns that "
    "are one where they were.",
    "infinity": "Drop these rows from X, y, Z and C, or replace the values.",
}


NO_NAMES: dict[str, tuple[str, ...] | None] = dict.fromkeys(("X", "Z", "C"))


class InstrumentData(NamedTuple):
    """Validated rows of positive weight; Z and C may be None."""

    X: np.ndarray
    y: np.ndarray
    Z: np.ndarray | None
    C: np.ndarray | None
    sample_weight: np.ndarray | None  # with mean one, or None if all are equal
    total: float  # number of rows that the weights represent
    names: dict[str, tuple[str, ...] | None] = NO_NAMES  # of the columns of X, Z and C
    groups: np.ndarray | None = None  # number of each row's cluster, from zero

    @property
    def counts(self) -> np.ndarray | None:
        """Number of repetitions of each row, or None if all are one."""
        share = self.total / len(self.X)
        if self.sample_weight is None:
            return None if share == 1.0 else np.full(len(self.X), share)
        return share * self.sample_weight


def check_instrument_data(
    estimator: Any, X: Any, y: Any, Z: Any, C: Any, sample_weight: Any, groups: Any = None
) -> InstrumentData:
    """Validate the arguments of fit with scikit-learn's checks and drop rows of weight zero."""
    refuse_workers(type(estimator).__name__)
    y = None if y is None else as_values(as_targets(y), estimator)
    own = is_own(estimator.treatment_backbone)
    names = {name: column_names(part) for name, part in (("X", X), ("Z", Z), ("C", C))}
    check_no_categories(X, "X")
    given = as_table(X, "X")
    with named_faults(given, "X"):
        X, y = validate_data(
            estimator,
            given,
            y,
            dtype="numeric",
            y_numeric=True,
            allow_nd=own,
            ensure_min_samples=4,
        )
    X, y = as_columns(X, given, integers=own), native(y, np.float64)
    check_range(X, given, "X")
    check_range(y, y, "y")
    Z = check_side("Z", Z, X, own=is_own(estimator.instrument_backbone))
    C = check_side("C", C, X, own=is_own(estimator.covariate_backbone))
    weights = np.ones(len(X)) if sample_weight is None else as_weights(sample_weight, X)
    groups = None if groups is None else check_groups(groups, X)
    kept = weights > 0
    if kept.sum() < 4:
        raise ValueError(
            f"`sample_weight` must be positive for at least 4 rows, got {kept.sum()}: rows of "
            "weight zero are ignored."
        )
    X, y, Z, C, groups = (None if part is None else part[kept] for part in (X, y, Z, C, groups))
    if groups is not None:
        labels, groups = np.unique(groups, return_inverse=True)
        groups = groups.reshape(-1)
        if len(labels) < FEWEST_GROUPS:
            raise ValueError(
                f"`groups` holds {len(labels)} groups among the rows of positive weight. Rows of a "
                "group are held out together, and errors are clustered by group: at least "
                f"{FEWEST_GROUPS} groups are required."
            )
    weights = weights[kept]
    shares = weights / weights.max()  # sums of weights near 1e308 overflow
    relative = None if np.all(shares == shares[0]) else shares / shares.mean()
    # Outliers of y are not clipped: this would bias the effect of the instruments.
    mean_weight = float(weights.max() * shares.mean())
    checked = Checked(X, np.flatnonzero(kept), y, relative, mean_weight, False)
    warn_of_wild_targets(checked, "y")
    for name, part in (("X", X), ("Z", Z), ("C", C)):
        if part is not None and part.ndim == 2:
            _warn_of_wild_columns(name, part, names[name], checked)
    total = checked.mean_repetitions * len(X)
    return InstrumentData(X, y, Z, C, relative, total, names, groups)


def _warn_of_wild_columns(
    name: str, values: np.ndarray, names: tuple[str, ...] | None, checked: Checked
) -> None:
    """Warn about columns with values that are orders of magnitude beyond all others."""
    weights = np.ones(len(values)) if checked.sample_weight is None else checked.sample_weight
    assert checked.rows is not None
    for j, column in enumerate(values.T.astype(float)):
        wild = find_wild(column[:, None], weights * checked.mean_repetitions)
        if wild is None:
            continue
        row = wild.rows[0]
        more = f" and {len(wild.rows) - 1} more" if len(wild.rows) > 1 else ""
        warnings.warn(
            f"Column {label(names, j)} of `{name}` is {column[row]:g} in row {checked.rows[row]}"
            f"{more}: at least {wild.times:.3g} times as far from the median as all other values, "
            f"which lie between {wild.low:g} and {wild.high:g}. Such values decide linear fits, "
            "and all others of the column hardly count. Drop these rows if they are wrong, or "
            "transform the column.",
            UserWarning,
            stacklevel=user_level(),
        )


def check_stage1_sample(
    estimator: Any, X: Any, Z: Any, C: Any, main: InstrumentData
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None] | None:
    """Validate the first-stage sample, whose columns are those of the main one; or None."""
    if X is None and Z is None and C is None:
        return None
    if main.Z is None:
        raise ValueError("`X_stage1` requires instruments, but `Z` is None. Pass `Z`.")
    for name, given in (("X_stage1", X), ("Z_stage1", Z)):
        if given is None:
            raise ValueError(f"`{name}` is None: a first-stage sample needs X_stage1 and Z_stage1.")
    if (C is None) != (main.C is None):
        raise ValueError("Pass both `C` and `C_stage1`, or neither.")
    with told_of("In `X_stage1`, called X here"):
        own = is_own(estimator.treatment_backbone)
        X = check_treatments(estimator, X, "X_stage1", own=own, min_samples=2)
    Z = in_order(Z, main.names["Z"], "Z_stage1")
    C = in_order(C, main.names["C"], "C_stage1")
    Z = check_side("Z_stage1", Z, X, shape=main.Z.shape[1:])
    return X, Z, check_side("C_stage1", C, X, shape=None if main.C is None else main.C.shape[1:])


def check_new_rows(
    estimator: Any, plan: NetworkPlan, X: Any, Z: Any, C: Any
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Validate inputs of a fitted estimator, whose shapes must be those of the fit.

    Columns of Z and C in a frame are put in the order of the fit. Those of X must be in order, as
    scikit-learn's checks demand of every estimator.
    """
    Z, C = in_order(Z, plan.names["Z"], "Z"), in_order(C, plan.names["C"], "C")
    treatment, instrument, confounder = (plan.shapes[role] for role in ROLES)
    X = check_treatments(estimator, X, own=is_own(plan.recipes["treatment_backbone"]))
    if X.shape[1:] != treatment:
        raise ValueError(
            f"X has samples of shape {X.shape[1:]}, but the estimator was fitted on samples of "
            f"shape {treatment}."
        )
    if C is None and confounder is not None:
        raise ValueError("`C` was given at fit and is needed here.")
    for name, value, shape in (("Z", Z, instrument), ("C", C, confounder)):
        if value is not None and shape is None:
            raise ValueError(f"`{name}` was not given at fit; omit it here, or fit with it.")
    return X, check_side("Z", Z, X, shape=instrument), check_side("C", C, X, shape=confounder)


def check_treatments(
    estimator: Any, X: Any, name: str = "X", *, own: bool, min_samples: int = 1
) -> np.ndarray:
    """Validate treatments, whose columns must be those of the fit."""
    check_no_categories(X, name)
    given = as_table(X, name)
    with named_faults(given, "X"):  # as scikit-learn calls it
        X = validate_data(
            estimator,
            given,
            reset=False,
            dtype="numeric",
            allow_nd=own,
            ensure_min_samples=min_samples,
        )
    return as_columns(X, given, name, integers=own)


def check_side(
    name: str, value: Any, X: np.ndarray, *, own: bool = False, shape: tuple[int, ...] | None = None
) -> np.ndarray | None:
    """Validate instruments or confounders with as many rows as X; a 1-d array is one column.

    Samples of any shape are allowed for a user-defined network (``own``), or have the given one.
    """
    if value is None:
        return None
    check_no_categories(value, name)
    given = as_table(value, name)
    # A table of pyarrow has a shape, but no number of dimensions.
    if len(given.shape if hasattr(given, "shape") else np.shape(given)) == 1:
        given = np.asarray(given).reshape(-1, 1)
    own = own if shape is None else len(shape) > 1
    with named_faults(given, name):
        value = check_array(given, dtype="numeric", input_name=name, allow_nd=own)
    value = as_columns(value, given, name, integers=own)
    check_range(value, given, name)
    check_consistent_length(X, value)
    if shape is not None and value.shape[1:] != shape:
        raise ValueError(
            f"`{name}` has samples of shape {value.shape[1:]}, but the estimator was given "
            f"samples of shape {shape} at fit."
        )
    return value


@contextmanager
def named_faults(given: Any, name: str) -> Iterator[None]:
    """Name the columns in errors about words, missing and infinite values, and the remedy."""
    indicators = (
        f"Replace words by indicators, such as `pandas.get_dummies({name}, drop_first=True)`."
    )
    try:
        with named_columns(given, name, indicators):
            yield
    except ValueError as error:
        kind = next((kind for kind in REMEDIES if f"contains {kind}" in str(error)), None)
        if kind is None or f"Input {name} " not in str(error):  # of another argument
            raise
        numbers = check_array(given, dtype=np.float64, ensure_all_finite=False, allow_nd=True)
        numbers = numbers.reshape(len(numbers), -1)
        faults = np.isnan(numbers) if kind == "NaN" else np.isinf(numbers)
        names = column_names(given)
        listed = [
            f"column {label(names, j)} in {faults[:, j].sum()} of {len(faults)} rows, first in row "
            f"{faults[:, j].argmax()}"
            for j in np.flatnonzero(faults.any(0))[:NAMED]
        ]
        raise ValueError(
            f"Input {name} contains {kind}: {'; '.join(listed)}. {REMEDIES[kind]}"
        ) from error


def fold_labels(
    data: InstrumentData, n_folds: int, n_repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fold of each row, and its half when it is a training row; each of shape (n_repeats, n).

    Distinct rows, sorted by y, are assigned at random. Copies of a row stay together, since
    copies in the training and held-out rows would bias the held-out loss. Weights are therefore
    equivalent to repetitions, and neither the order of the rows nor the units of the columns
    matter. With groups, all rows of a group stay together instead.
    """
    order, group = _units_of_groups(data) if data.groups is not None else _distinct_rows(data)
    n_groups = len(order)
    if n_groups < 4:
        raise ValueError(f"X and y have {n_groups} distinct rows; at least 4 are required.")
    rng = np.random.RandomState(seed)
    labels, halves = [], []
    for _ in range(n_repeats):
        label, half = np.empty((2, n_groups), dtype=int)
        shuffled = order[rng.permutation(n_groups)]
        # Folds have at least two units, since each half of a fold needs one.
        label[shuffled] = np.arange(n_groups) % max(2, min(n_folds, n_groups // 2))
        # Halves alternate within each fold, so that they are balanced in any union of folds.
        for fold in range(label.max() + 1):
            members = shuffled[label[shuffled] == fold]
            half[members] = (np.arange(len(members)) + fold) % 2
        labels.append(label[group])
        halves.append(half[group])
    return np.array(labels), np.array(halves)


def _units_of_groups(data: InstrumentData) -> tuple[np.ndarray, np.ndarray]:
    """Order of the groups by their mean of y, and the group of each row."""
    assert data.groups is not None
    means = np.bincount(data.groups, data.y) / np.bincount(data.groups)
    return np.argsort(means, kind="stable"), data.groups


def _distinct_rows(data: InstrumentData) -> tuple[np.ndarray, np.ndarray]:
    """Order of the distinct rows by y, and the distinct row that each row equals."""
    columns = [part for part in (data.X, data.Z, data.C) if part is not None]
    digests = [
        hashlib.blake2b(b"".join(np.ascontiguousarray(part[i]).tobytes() for part in columns))
        for i in range(len(data.X))
    ]
    hashes = np.array([digest.hexdigest()[:24] for digest in digests])
    keys = np.stack([hashes, np.array([float(v).hex() for v in data.y])])
    _, first, group = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    # np.unique sorts by hash; sort groups by y instead, and ties by hash.
    return np.lexsort((hashes[first], data.y[first])), group.reshape(-1)
