"""Names of columns: those of the fit, and the order in which later frames are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..columns.frames import as_frame

__all__ = ["column_names", "in_order", "label"]


def column_names(value: Any) -> tuple[str, ...] | None:
    """Names of the columns of a frame, all of them strings; else None."""
    frame = as_frame(value)
    names = () if frame is None else tuple(frame.columns)
    return names if names and all(isinstance(name, str) for name in names) else None


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
