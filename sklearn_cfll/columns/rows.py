"""Rows of a table, of fields or of named inputs, as tensors that are taken by index."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

__all__ = ["ChosenRows", "DatasetRows", "ExpandedRows", "JoinedRows", "Rows", "Together"]
__all__ += ["as_rows", "as_tensor", "check_one_shape", "check_unmasked", "from_numpy", "items_at"]
__all__ += ["native", "stacked", "trainable"]

CPU = torch.device("cpu")


class Rows(Protocol):
    """Rows of which batches are taken by index."""

    device: torch.device
    index_device: torch.device  # where indices are taken without another copy of them
    dtype: Any
    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def take(self, indices: Tensor | slice) -> Any:
        """Some rows as a tensor on the device, or as a dict of tensors."""
        ...


class DenseRows:
    """Rows of an array or tensor, on the device and in its dtype.

    With ``lazy`` rows (a memory map), each batch is read, cast and moved only when it is needed.
    """

    def __init__(
        self, data: Any, device: torch.device, dtype: torch.dtype, lazy: bool = False
    ) -> None:
        self.device, self.dtype = device, dtype
        if isinstance(data, Tensor):
            self.data: Any = trainable(data)
        elif lazy:
            self.data = _share_memory(np.asarray(data))
        else:
            self.data = from_numpy(data)
        if not lazy:
            self.data = cast(self.data, device, dtype)
        self.index_device = self.data.device if isinstance(self.data, Tensor) else CPU
        self.shape: tuple[int, ...] = tuple(self.data.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        if isinstance(indices, Tensor):
            indices = indices.to(self.index_device)
        if isinstance(self.data, np.ndarray):
            rows = self.data[indices.numpy() if isinstance(indices, Tensor) else indices]
            return cast(from_numpy(rows), self.device, self.dtype)
        return cast(self.data[indices], self.device, self.dtype)


class SparseRows:
    """Rows of a SciPy sparse matrix, converted to dense rows batch by batch."""

    index_device = CPU

    def __init__(self, data: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.data = data.tocsr()
        self.shape: tuple[int, ...] = tuple(data.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        chosen = indices.to(CPU).numpy() if isinstance(indices, Tensor) else indices
        return cast(torch.as_tensor(self.data[chosen].toarray()), self.device, self.dtype)


class DatasetRows:
    """Inputs of a ``torch.utils.data.Dataset``, fetched batch by batch.

    A data set of named inputs gives dicts of tensors.
    """

    index_device = CPU

    def __init__(self, data: Dataset[Any], device: torch.device, dtype: Any) -> None:
        self.device, self.dtype, self.data = device, dtype, data
        first = inputs_of(items_at(data, [0]))
        self.names = list(first) if isinstance(first, dict) else None
        own = () if isinstance(first, dict) else first.shape[1:]
        self.shape: tuple[int, ...] = (len(data), *own)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Any:
        if isinstance(indices, slice):
            indices = torch.arange(len(self))[indices]
        found = inputs_of(items_at(self.data, indices.tolist()))
        if self.names is None:
            return cast(_check_finite(found, indices), self.device, self.dtype)
        dtypes = self.dtype or {}
        return {name: cast(found[name], self.device, dtypes.get(name)) for name in self.names}


class NamedRows:
    """Several inputs of the same samples, by name; a batch is a dict of tensors."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self.dtype = {name: rows.dtype for name, rows in inputs.items()}
        first = next(iter(inputs.values()))
        self.device, self.index_device = first.device, first.index_device
        self.shape: tuple[int, ...] = (len(first),)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> dict[str, Tensor]:
        return {name: rows.take(indices) for name, rows in self.inputs.items()}


class ChosenRows:
    """A selection of rows by index; nothing is copied or read from disk in advance."""

    def __init__(self, rows: Rows, indices: Tensor) -> None:
        self.rows, self.indices = rows, indices.to(rows.index_device)
        self.device, self.dtype = rows.device, rows.dtype
        self.index_device = rows.index_device
        self.shape: tuple[int, ...] = (len(indices), *rows.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Any:
        if isinstance(indices, Tensor):
            indices = indices.to(self.index_device)
        return self.rows.take(self.indices[indices])


class JoinedRows:
    """The rows of two sources of one kind, those of the second after those of the first."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self.parts = first, second
        self.device, self.dtype, self.index_device = first.device, first.dtype, first.index_device
        self.shape: tuple[int, ...] = (len(first) + len(second), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Any:
        if isinstance(indices, slice):
            indices = torch.arange(len(self))[indices]
        indices, start = indices.to(CPU), len(self.parts[0])
        of_first = indices < start
        found = [
            part.take(chosen)
            for part, chosen in zip(
                self.parts, (indices[of_first], indices[~of_first] - start), strict=True
            )
        ]
        # Where each row of the batch stands among those of both sources.
        place = torch.empty_like(indices)
        place[torch.cat([of_first.nonzero(), (~of_first).nonzero()]).flatten()] = torch.arange(
            len(indices)
        )
        if isinstance(found[0], dict):
            return {
                name: torch.cat([each[name] for each in found])[place.to(self.device)]
                for name in found[0]
            }
        return torch.cat(found)[place.to(self.device)]


class ExpandedRows:
    """Coded rows of a table as numbers without gaps and indicators, expanded batch by batch."""

    def __init__(self, rows: Rows, expansion: Any) -> None:
        self.rows, self.expansion = rows, expansion
        self.device, self.dtype, self.index_device = rows.device, rows.dtype, rows.index_device
        self.shape: tuple[int, ...] = (len(rows), expansion.n_outputs)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        expanded: Tensor = self.expansion(self.rows.take(indices))
        return expanded


def as_rows(data: Any, device: torch.device | str, dtype: Any, lazy: bool = False) -> Rows:
    """Wrap the user's data as rows from which batches can be taken.

    ``dtype`` is a dict for named inputs; if it is None, the dtype of the data is kept.
    """
    device = torch.device(device)
    if isinstance(data, Mapping):
        dtypes = dtype or {}
        return NamedRows(
            {name: as_rows(part, device, dtypes.get(name), lazy) for name, part in data.items()}
        )
    if isinstance(data, Dataset):
        return DatasetRows(data, device, dtype)
    if scipy.sparse.issparse(data):
        return SparseRows(data, device, dtype)
    return DenseRows(data, device, dtype, lazy or isinstance(data, np.memmap))


def cast(data: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """Move data to the device and cast it; floats become integers only if nothing is lost."""
    if dtype is None:
        return data.to(device)
    if not dtype.is_floating_point and data.is_floating_point():
        broken = data[data != data.round()]
        if broken.numel():
            raise ValueError(
                f"X contains {broken[0].item():g}, but the backbone was fitted to integers, which "
                "it looks up: X must contain whole numbers."
            )
    return data.to(device, dtype)


def _check_finite(rows: Tensor, indices: Tensor) -> Tensor:
    """The rows of a data set, which no check has seen before, if none is infinite."""
    infinite = rows.isinf().flatten(1).any(1) if rows.is_floating_point() else None
    if infinite is not None and bool(infinite.any()):
        row = int(indices.flatten()[int(infinite.int().argmax())])
        raise ValueError(
            f"Input X contains infinity in item {row} of the data set. Replace it, or leave the "
            "item out."
        )
    return rows


class Together(NamedTuple):
    """Items of a data set whose parts are stacked already."""

    parts: tuple[Any, ...]


def items_at(data: Any, indices: Sequence[int]) -> Any:
    """Items of a data set, fetched in one call where it can: a list, or :class:`Together`."""
    if isinstance(data, TensorDataset):
        return Together(tuple(tensor[list(indices)] for tensor in data.tensors))
    if isinstance(data, Subset):
        return items_at(data.dataset, [data.indices[i] for i in indices])
    if hasattr(data, "__getitems__"):
        return data.__getitems__(list(indices))
    return [data[i] for i in indices]


def inputs_of(items: Any) -> Any:
    """The inputs of some items: a tensor, or a dict of named tensors."""
    if isinstance(items, Together):
        return as_tensor(items.parts[0])
    inputs = [item[0] if isinstance(item, tuple | list) else item for item in items]
    if isinstance(inputs[0], Mapping):
        return {name: stacked([each[name] for each in inputs]) for name in inputs[0]}
    return stacked(inputs)


def stacked(items: Sequence[Any]) -> Tensor:
    """One tensor of several values: tensors, or arrays, which are stacked first."""
    check_one_shape(items)
    if isinstance(items[0], Tensor):
        return trainable(torch.stack(list(items)))
    return as_tensor(
        np.ma.stack(items) if isinstance(items[0], np.ma.MaskedArray) else np.stack(items)
    )


def check_one_shape(items: Sequence[Any]) -> None:
    """Raise if the same part of several items has different shapes."""
    shapes = [np.shape(item) for item in items]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise ValueError(
            f"All items of a data set must have one shape, but number {other} of those read "
            f"together has shape {tuple(shapes[other])} and the first {tuple(shapes[0])}."
        )


def check_unmasked(value: Any, name: str) -> Any:
    """The data of a masked array without masked entries; other values are returned unchanged."""
    if not isinstance(value, np.ma.MaskedArray):
        return value
    masked = np.argwhere(np.ma.getmaskarray(value))
    if len(masked):
        raise ValueError(
            f"`{name}` is a masked array, and {len(masked)} of its {value.size} entries are "
            f"masked, the first at index {tuple(masked[0].tolist())}. Fill them "
            f"(`{name}.filled(...)`, in columns of a table by NaN), or remove such rows."
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
    native_data: np.ndarray[Any, Any] = np.asarray(data, dtype=dtype, order="C")
    # NumPy ignores a negative stride on an axis of length one; torch does not.
    backwards = min(native_data.strides, default=0) < 0
    return native_data.copy() if backwards else native_data


def as_tensor(value: Any) -> Tensor:
    """Convert a tensor, an array of any layout, or a list to a tensor."""
    if isinstance(value, Tensor):
        return trainable(value)
    return from_numpy(check_unmasked(value, "array"))


def trainable(tensor: Tensor) -> Tensor:
    """The tensor, copied if it was made in inference mode: autograd cannot save such tensors."""
    return tensor.clone() if tensor.is_inference() else tensor


def _share_memory(data: np.ndarray) -> Any:
    """A tensor that shares the array's memory; the array if torch does not support its layout."""
    try:
        if data.flags.writeable:
            return torch.from_numpy(data)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")
            return torch.from_numpy(data)
    except (TypeError, ValueError):  # byte order or negative strides: converted batch by batch
        return data


def from_numpy(data: Any) -> Tensor:
    """A tensor that shares the array's memory if torch supports it, otherwise that of a copy.

    The memory may be read-only: this package does not write to it.
    """
    tensor: Tensor = _share_memory(native(data))
    return tensor
