"""From arrays of any layout and byte order to tensors, without a copy if torch can share them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_tensor", "check_unmasked", "from_numpy", "native", "share_memory", "trainable"]


def check_unmasked(value: Any, name: str) -> Any:
    """The data of a masked array without masked entries; other values are returned unchanged."""
    if not isinstance(value, np.ma.MaskedArray):
        return value
    masked = np.argwhere(np.ma.getmaskarray(value))
    if len(masked):
        raise ValueError(
            f"`{name}` is a masked array, and {len(masked)} of its {value.size} entries are "
            f"masked, the first at index {tuple(masked[0].tolist())}. Fill them "
            f"(`{name}.filled(...)`, or NaN and an imputer), or remove such rows."
        )
    return np.asarray(value)


def native(data: Any, dtype: Any = None) -> np.ndarray:
    """An array in C order and native byte order, of a dtype that torch supports.

    Floats become float32 or float64. Unsigned integers of 16 and 32 bits become int64, those of 64
    bits float64.
    """
    data = np.asarray(data)
    kind, size = data.dtype.kind, data.dtype.itemsize
    if dtype is None and kind == "f":
        dtype = np.float32 if size <= 4 else np.float64
    elif dtype is None and kind == "u" and size > 1:
        dtype = np.float64 if size == 8 else np.int64
    elif dtype is None:
        dtype = data.dtype.newbyteorder("=")
    data = np.asarray(data, dtype=dtype, order="C")
    # NumPy ignores a negative stride on an axis of length one; torch does not.
    return data.copy() if min(data.strides, default=0) < 0 else data


def as_tensor(value: Any) -> Tensor:
    """Convert a tensor, an array of any layout, or a list to a tensor."""
    if isinstance(value, Tensor):
        return trainable(value)
    return from_numpy(check_unmasked(value, "array"))


def trainable(tensor: Tensor) -> Tensor:
    """The tensor, copied if it was made in inference mode: autograd cannot save such tensors."""
    return tensor.clone() if tensor.is_inference() else tensor


def share_memory(data: np.ndarray) -> Any:
    """A tensor that shares the array's memory; the array if torch does not support its layout."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(data)
    except (TypeError, ValueError):  # byte order or negative strides: converted batch by batch
        return data


def from_numpy(data: Any) -> Tensor:
    """A tensor that shares the array's memory if torch supports it, otherwise that of a copy.

    The memory may be read-only: this package does not write to it.
    """
    return share_memory(native(data))
