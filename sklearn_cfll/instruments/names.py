"""Names of columns: those of the fit, and the order in which later frames are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw

from ..columns.frames import as_frame

__all__ = ["check_no_categories", "column_names", "in_order", "label"]


def column_names(value: Any) -> tuple[str, ...] | None:
    """Names of the columns of a frame, all of them strings; else None."""
    frame = as_frame(value)
    names = () if frame is None else tuple(frame.columns)
    return names if names and all(isinstance(name, str) for name in names) else None


def check_no_categories(value: Any, argument: str) -> None:
    """Raise if a column of a frame, or a series, is a category: its values are names.

    scikit-learn's checks would take categories that are numbers for amounts.
    """
    frame = as_frame(value.to_frame() if hasattr(value, "to_frame") else value)
    schema = {} if frame is None else frame.schema
    found = [name for name, dtype in schema.items() if dtype in (nw.Categorical, nw.Enum)]
    if found:
        raise ValueError(
            f"Column {found[0]!r} of `{argument}` is a category, whose values are names. Replace "
            f"it by indicators, `pandas.get_dummies({argument}, columns={found!r}, "
            "drop_first=True)`, or by numbers if it holds amounts."
        )


def in_order(value: Any, names: Sequence[str] | None, argument: str) -> Any:
    """A frame with its columns in the order of the fit; other inputs are returned unchanged.

    Raises
    ------
    ValueError
        If the frame has other columns than the frame that was passed to ``fit``.
    """
    given = column_names(value)
    if names is None or given is None or given == tuple(names):
        return value
    missing = [name for name in names if name not in given]
    added = [name for name in given if name not in names]
    if missing or added:
        parts = [f"lacks {missing}"] * bool(missing) + [f"also has {added}"] * bool(added)
        raise ValueError(
            f"`{argument}` {' and '.join(parts)}: the estimator was fitted to the columns "
            f"{list(names)}. Pass these, in any order."
        )
    frame = as_frame(value)
    assert frame is not None
    return frame.select(list(names)).to_native()


def label(names: Sequence[str] | None, position: int) -> str:
    """A column's name in quotes, or its position."""
    return str(position) if names is None else repr(names[position])
