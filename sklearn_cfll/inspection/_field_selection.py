"""Selection of the fields that a FieldDisplay draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["as_list", "check_fields", "check_index", "select_fields"]

CHANNEL_AXES = {None: None, "first": 1, "last": -1}
AXES = ("grid_1", "grid_2", "grid_3")


def check_fields(
    y_true: Any, y_pred: Any, y_std: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Arrays of the same shape; the last one may be None."""
    truth, prediction = np.asarray(y_true), np.asarray(y_pred)
    std = None if y_std is None else np.asarray(y_std)
    for name, array in (("y_pred", prediction), ("y_std", std)):
        if array is not None and array.shape != truth.shape:
            raise ValueError(
                f"`{name}` must have shape {truth.shape}, as `y_true`, got {array.shape}."
            )
    return truth, prediction, std


def select_fields(
    fields: np.ndarray,
    samples: Sequence[int],
    channel: int,
    channels: str | None,
    plane: tuple[int, int] | None,
) -> np.ndarray:
    """The chosen samples, channel and plane as (rows, grid_1) or (rows, grid_1, grid_2)."""
    if channels not in CHANNEL_AXES:
        raise ValueError(f"`channels` must be one of {list(CHANNEL_AXES)}, got {channels!r}.")
    axis = CHANNEL_AXES[channels]
    n_dim = fields.ndim - 1 - (axis is not None)
    if n_dim not in (1, 2, 3):
        expected = " or ".join(_layout(axis, n) for n in (1, 2, 3))
        raise ValueError(
            f"With channels={channels!r}, fields must have shape {expected}, got {fields.shape}. "
            '`channels` states where the axis of channels is, if there is one ("first", "last" or '
            "None)."
        )
    if not samples:
        raise ValueError("`sample` must name at least one sample, got none.")
    for sample in samples:
        check_index("sample", sample, len(fields))
    fields = fields[list(samples)]
    if axis is not None:
        check_index("channel", channel, fields.shape[axis])
        fields = fields.take(channel, axis=axis)
    if n_dim == 3:
        if plane is None:
            raise ValueError(
                f"Fields of shape {_layout(axis, 3)} are drawn one plane at a time: pass "
                "plane=(axis of the grid, index), for example plane=(2, 0)."
            )
        check_index("plane[0]", plane[0], 3)
        check_index("plane[1]", plane[1], fields.shape[1 + plane[0]])
        fields = fields.take(plane[1], axis=1 + plane[0])
    elif plane is not None:
        raise ValueError(f"`plane` is for fields on three axes, got {n_dim} with plane={plane}.")
    return fields


def as_list(sample: int | Sequence[int]) -> list[int]:
    """One index or several as a list."""
    return [int(i) for i in np.atleast_1d(np.asarray(sample))]


def check_index(name: str, index: int, size: int) -> None:
    """Raise if there is no such entry, counted from zero."""
    if not 0 <= index < size:
        raise ValueError(f"`{name}` must lie between 0 and {size - 1}, got {index!r}.")


def _layout(channel_axis: int | None, n_dim: int) -> str:
    names = list(AXES[:n_dim])
    if channel_axis is not None:
        names.insert(0 if channel_axis == 1 else n_dim, "channels")
    return f"(n, {', '.join(names)})"
