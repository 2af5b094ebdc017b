"""Data sets: what the items of a map-style data set hold beside the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..columns.rows import Together, check_one_shape, items_at
from .arrays import to_numpy

__all__ = ["parts_of_dataset", "refuse_iterator"]

AT_ONCE = 4096  # items


def refuse_iterator(X: Any) -> None:
    """Raise if X can be read only once."""
    if hasattr(X, "__next__"):
        raise TypeError(
            f"X is a {type(X).__name__}, which can be read only once, and a fit reads its rows "
            "several times. Pass an IterableDataset whose `__iter__` starts anew."
        )


def parts_of_dataset(dataset: Any, y: Any, sample_weight: Any) -> tuple[Any, Any]:
    """Targets and weights of a Dataset of (inputs, target) or (inputs, target, weight) items.

    They are gathered in one pass, some items at a time; ``y`` replaces the targets.
    """
    n_rows = len(dataset)
    if not n_rows and y is None:
        raise ValueError("X is a data set without items.")
    first = _given_parts(items_at(dataset, [0])) if n_rows else 0
    if first > 2 and sample_weight is not None:
        raise ValueError(
            "`sample_weight` was given, but the items of the data set hold weights too, as their "
            "third part. Leave one of them out."
        )
    wanted = [i for i in (1, 2) if i < first and (i == 2 or y is None)]
    found: dict[int, list[np.ndarray]] = {i: [] for i in wanted}
    for start in range(0, n_rows if wanted else 0, AT_ONCE):
        items = items_at(dataset, range(start, min(start + AT_ONCE, n_rows)))
        for i, name in ((i, ("y", "sample_weight")[i - 1]) for i in wanted):
            if isinstance(items, Together):
                found[i].append(to_numpy(items.parts[i], name))
            else:
                own = [np.asarray(to_numpy(item[i], name)) for item in items]
                check_one_shape(own)
                found[i].append(np.stack(own))
    gathered = {i: np.concatenate(parts) for i, parts in found.items()}
    return gathered.get(1, y), gathered.get(2, sample_weight)


def _given_parts(items: Any) -> int:
    """Number of parts of each item."""
    if isinstance(items, Together):
        return len(items.parts)
    return len(items[0]) if isinstance(items[0], tuple | list) else 1
