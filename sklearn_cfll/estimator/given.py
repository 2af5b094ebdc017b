"""Given: the arguments of a fit as several workers hold them, gathered and sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch.utils.data import Dataset

from ..columns.frames import as_frame
from ..columns.rows import check_one_shape
from ..data.blocks import concatenated, take_rows

__all__ = ["Given", "joint"]


class Given(NamedTuple):
    """Arguments of a fit; any but X may be None."""

    X: Any
    y: Any
    sample_weight: Any = None
    groups: Any = None

    @property
    def n_rows(self) -> int:
        return _count(self.X)

    @property
    def n_bytes(self) -> int:
        """Size of all rows, from that of a few."""
        n_rows = self.n_rows
        few = self.taken(np.arange(min(n_rows, 8)))
        return -(-n_rows * sum(map(_bytes, few)) // max(1, min(n_rows, 8)))

    def taken(self, rows: np.ndarray) -> Given:
        """Some rows of each."""
        X, *rest = self
        if not isinstance(X, Dataset):
            return Given(*(_take(part, rows) for part in self))
        items = [X[i] for i in rows.tolist()]
        parts = list(zip(*items, strict=True)) if _are_tuples(items) else [items]
        y, sample_weight, groups = (_take(part, rows) for part in rest)
        if y is None and len(parts) > 1:
            y = np.stack([np.asarray(each) for each in parts[1]])
        if sample_weight is None and len(parts) > 2:
            sample_weight = np.stack([np.asarray(each) for each in parts[2]])
        return Given(_stacked(parts[0]), y, sample_weight, groups)

    def check_lengths(self) -> None:
        """Raise if arguments have different numbers of rows."""
        for name, part in zip(self._fields[1:], self[1:], strict=True):
            if part is not None and _count(part) != self.n_rows:
                raise ValueError(f"X has {self.n_rows} rows, `{name}` has {_count(part)}.")

    def first_of_each(self, labels: bool) -> np.ndarray:
        """Rows in which a level of a category, or with ``labels`` a class, occurs first."""
        found = [np.empty(0, np.int64)]
        frame = as_frame(self.X)
        for column in () if frame is None else frame.iter_columns():
            if not column.dtype.is_numeric():
                found.append(np.flatnonzero(column.is_first_distinct().to_numpy()))
        if labels and self.y is not None:
            y = np.asarray(self.y)
            found.append(np.unique(y, axis=0, return_index=True)[1])
        return np.unique(np.concatenate(found)).astype(np.int64)


def joint(parts: list[Given]) -> Given:
    """The rows of several workers, one after the other; workers without rows are left out.

    Raises
    ------
    ValueError
        If an argument is of another kind, or has other columns, in one worker than in another.
    """
    held = [part for part in parts if part.n_rows] or parts[:1]
    return Given(*(_joined(name, [getattr(part, name) for part in held]) for name in Given._fields))


def _count(X: Any) -> int:
    if isinstance(X, Mapping) and not scipy.sparse.issparse(X):
        return _count(next(iter(X.values())))
    if hasattr(X, "shape"):
        return int(X.shape[0])
    if not hasattr(X, "__len__"):
        raise ValueError(
            f"X is a {type(X).__name__} without a length. With several workers, each needs the "
            "number of its rows: pass arrays, memory maps, frames or a map-style Dataset."
        )
    return len(X)


def _bytes(part: Any) -> int:
    if part is None:
        return 0
    if isinstance(part, Mapping):
        return sum(map(_bytes, part.values()))
    frame = as_frame(part)
    if frame is not None:
        return int(frame.estimated_size())
    if scipy.sparse.issparse(part):
        return 12 * int(part.nnz)
    return int(np.asarray(part).nbytes)


def _take(part: Any, rows: np.ndarray) -> Any:
    if part is None:
        return None
    if isinstance(part, Mapping) and not scipy.sparse.issparse(part):
        return {name: _take(each, rows) for name, each in part.items()}
    if scipy.sparse.issparse(part):
        return part.tocsr()[rows]
    if isinstance(part, torch.Tensor):
        part = part.detach().cpu().numpy()
    return take_rows(part if as_frame(part) is not None else np.asarray(part), rows)


def _are_tuples(items: list[Any]) -> bool:
    return bool(items) and isinstance(items[0], tuple | list)


def _stacked(inputs: Sequence[Any]) -> Any:
    """Items of a Dataset as one array, or as one for each named input."""
    if inputs and isinstance(inputs[0], Mapping):
        return {name: _stacked([each[name] for each in inputs]) for name in inputs[0]}
    check_one_shape(inputs)
    return np.stack([np.asarray(each) for each in inputs]) if inputs else np.empty((0, 1))


def _joined(name: str, parts: list[Any]) -> Any:
    first = parts[0]
    for rank, part in enumerate(parts):
        if (part is None) != (first is None):
            raise ValueError(f"`{name}` was passed by some workers and not by others.")
        _check_alike(name, first, part, rank)
    if first is None:
        return None
    if isinstance(first, Mapping) and not scipy.sparse.issparse(first):
        return {key: _joined(f"{name}[{key!r}]", [each[key] for each in parts]) for key in first}
    if scipy.sparse.issparse(first):
        return scipy.sparse.vstack(parts, format="csr")
    return concatenated(parts if as_frame(first) is None else _same_categories(parts))


def _check_alike(name: str, first: Any, part: Any, rank: int) -> None:
    """Raise if a worker's argument cannot stand below that of the first worker with rows."""
    frames = as_frame(first), as_frame(part)
    kinds = [type(each).__name__ for each in (first, part)]
    columns = [None if frame is None else list(frame.columns) for frame in frames]
    if columns[0] != columns[1] or (columns[0] is None and kinds[0] != kinds[1]):
        said = [kind if cols is None else f"frame of the columns {cols}"
                for kind, cols in zip(kinds, columns, strict=True)]  # fmt: skip
        raise ValueError(
            f"`{name}` is a {said[0]} in one worker and a {said[1]} in another (number {rank} of "
            "those with rows). All workers pass the same columns, in the same order."
        )
    shapes = [getattr(each, "shape", (0,))[1:] for each in (first, part)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`{name}` has rows of shape {shapes[0]} in one worker and {shapes[1]} in another "
            f"(number {rank} of those with rows)."
        )
    if name == "y" and columns[0] is None:
        words = [np.asarray(each).dtype.kind not in "fiub" for each in (first, part)]
        if words[0] != words[1]:  # as text, numbers would be classes of their own
            dtypes = [np.asarray(each).dtype for each in (first, part)]
            raise ValueError(
                f"`y` has the dtype {dtypes[0]} in one worker and {dtypes[1]} in another (number "
                f"{rank} of those with rows). Give all workers targets of one kind."
            )


def _same_categories(parts: list[Any]) -> list[Any]:
    """Frames of pandas whose categories are those of all: pandas joins only equal ones."""
    names = [name for name in parts[0].columns if hasattr(parts[0][name], "cat")]
    if not hasattr(parts[0], "assign"):  # other libraries join categories themselves
        return parts
    changed: dict[str, Any] = {}
    for name in names:
        given = [part[name].cat.categories for part in parts]
        if all(each.equals(given[0]) for each in given):
            continue
        if any(part[name].cat.ordered for part in parts):
            raise ValueError(
                f"Column {name!r} of X is an ordered category with the levels "
                f"{list(given[0])} in one worker and others elsewhere. Give all workers one dtype."
            )
        every = given[0]
        for each in given[1:]:
            every = every.union(each)
        changed[name] = every
    return [
        part.assign(**{name: part[name].cat.set_categories(c) for name, c in changed.items()})
        for part in parts
    ]
