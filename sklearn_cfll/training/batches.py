"""Rows, data sets and batches: from arrays to tensors on the device, by index selection."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import skorch.dataset
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from ..columns.bins import quantiles
from .seeding import mix_seed

__all__ = ["Batch", "BatchIterator", "RowsDataset", "as_rows", "input_statistics"]
__all__ += ["as_tensor", "check_unmasked"]
__all__ += ["from_numpy", "native", "robust_statistics", "spread_rows", "trainable"]
__all__ += ["unpack_batch"]

# Number of entries from which statistics and quantiles of the inputs are computed at once.
ENTRIES = 2**22
# Multiple of the 5-95% range: 35 standard deviations of a normal distribution. Skewed columns and
# columns with few values are not clipped.
FAR_OUT = 10.0


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
        self.shape = tuple(self.data.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        if isinstance(self.data, np.ndarray):
            rows = self.data[indices.numpy() if isinstance(indices, Tensor) else indices]
            return cast(from_numpy(rows), self.device, self.dtype)
        if isinstance(indices, Tensor):
            indices = indices.to(self.data.device)
        return cast(self.data[indices], self.device, self.dtype)


class SparseRows:
    """Rows of a SciPy sparse matrix, converted to dense rows batch by batch."""

    def __init__(self, data: Any, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.data = data.tocsr()
        self.shape = tuple(data.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        chosen = indices.numpy() if isinstance(indices, Tensor) else indices
        return cast(torch.as_tensor(self.data[chosen].toarray()), self.device, self.dtype)


class DatasetRows:
    """Inputs of a ``torch.utils.data.Dataset``, fetched batch by batch.

    A data set of named inputs gives dicts of tensors.
    """

    def __init__(self, data: Dataset, device: torch.device, dtype: Any) -> None:
        self.device, self.dtype, self.data = device, dtype, data
        first = _inputs(data[0])
        self.names = list(first) if isinstance(first, dict) else None
        self.shape = (len(data), *(() if isinstance(first, dict) else first.shape))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Any:
        if isinstance(indices, slice):
            indices = torch.arange(len(self))[indices]
        items = [_inputs(self.data[i]) for i in indices.tolist()]
        if self.names is None:
            return cast(torch.stack(items), self.device, self.dtype)
        dtypes = self.dtype or {}
        return {
            name: cast(torch.stack([item[name] for item in items]), self.device, dtypes.get(name))
            for name in self.names
        }


class NamedRows:
    """Several inputs of the same samples, by name; a batch is a dict of tensors."""

    def __init__(self, inputs: dict[str, Any]) -> None:
        self.inputs = inputs
        self.dtype = {name: rows.dtype for name, rows in inputs.items()}
        first = next(iter(inputs.values()))
        self.device, self.shape = first.device, (len(first),)

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> dict[str, Tensor]:
        return {name: rows.take(indices) for name, rows in self.inputs.items()}


class ChosenRows:
    """A selection of rows by index; nothing is copied or read from disk in advance."""

    def __init__(self, rows: Any, indices: Tensor) -> None:
        self.rows, self.indices = rows, indices
        self.device, self.dtype = rows.device, rows.dtype
        self.shape = (len(indices), *rows.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        return self.rows.take(self.indices[indices])


Rows = DenseRows | SparseRows | DatasetRows | NamedRows | ChosenRows


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


class Batch(NamedTuple):
    """Rows on the device, in the dtype of training; named inputs are a dict."""

    inputs: Any
    targets: Tensor | None
    sample_weight: Tensor | None


class RowsDataset(skorch.dataset.Dataset):
    """Data set of inputs, targets and sample weights that returns whole batches.

    It is a skorch data set, so that scoring callbacks find ``X`` and ``y``.

    Parameters
    ----------
    inputs : Rows
    targets : Tensor of shape (n, ..., k), optional
    sample_weight : Tensor of shape (n,), optional
    """

    def __init__(
        self, inputs: Rows, targets: Tensor | None = None, sample_weight: Tensor | None = None
    ) -> None:
        self.inputs, self.targets, self.sample_weight = inputs, targets, sample_weight

    @property
    def X(self) -> Any:
        return self.inputs.take(slice(None))

    @property
    def y(self) -> Tensor | None:
        return self.targets

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, *rest = self.batch(torch.tensor([index]))
        if isinstance(inputs, dict):
            first: Any = {name: part[0] for name, part in inputs.items()}
        else:
            first = inputs[0]
        return (first, *(part[0] for part in rest if part is not None))

    def subset(self, indices: Any) -> RowsDataset:
        """The data set of selected rows."""
        chosen = torch.as_tensor(indices)
        on_device = chosen.to(self.inputs.device)
        return RowsDataset(
            ChosenRows(self.inputs, chosen),
            None if self.targets is None else self.targets[on_device],
            None if self.sample_weight is None else self.sample_weight[on_device],
        )

    def batch(self, indices: Tensor | slice) -> Batch:
        """Inputs, targets and weights of selected rows, on the device."""
        chosen = indices.to(self.inputs.device) if isinstance(indices, Tensor) else indices
        return Batch(
            self.inputs.take(indices),
            None if self.targets is None else self.targets[chosen],
            None if self.sample_weight is None else self.sample_weight[chosen],
        )


def input_statistics(
    dataset: RowsDataset, entries: int = ENTRIES, within: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of each entry of an input, in float64, in batches.

    With ``within``, values are clipped to these bounds first.
    """
    batch_size = max(1, entries // math.prod(dataset.inputs.shape[1:]))

    def average(values: Any) -> Tensor:
        total: Any = 0.0
        weights: Any = 0.0
        for inputs, _, weight in BatchIterator(dataset, batch_size):
            weight = inputs.new_ones(len(inputs)) if weight is None else weight
            wide = inputs.double() if within is None else inputs.double().clamp(*within)
            total = total + torch.tensordot(weight.double(), values(wide), dims=1)
            weights = weights + weight.double().sum()
        return total / weights

    mean = average(lambda inputs: inputs)
    return mean, average(lambda inputs: (inputs - mean).square()).sqrt()


def spread_rows(n_rows: int, n_columns: int) -> Tensor:
    """Indices of all rows, or of every second, third... row if there are too many entries."""
    return torch.arange(0, n_rows, -(-n_rows * n_columns // ENTRIES))


def robust_statistics(dataset: RowsDataset) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`input_statistics` of columns (n, p), computed without the influence of outliers.

    The third result is the largest distance of an entry from the mean of its column.

    Entries are clipped at ``FAR_OUT`` times the 5-95% range beyond the 5% and 95% quantiles, which
    are computed from every second, third... row if there are many. Columns in which both quantiles
    are equal are not clipped.
    """
    rows, _, weights = dataset.batch(spread_rows(*dataset.inputs.shape))
    levels = quantiles(rows, weights, 20).to(dataset.inputs.device)
    least, lower, upper, largest = levels[:, [0, 1, -2, -1]].T
    reach = FAR_OUT * (upper - lower)
    reach = torch.where(reach > 0, reach, torch.inf)
    mean, std = input_statistics(dataset, within=(lower - reach, upper + reach))
    return mean, std, torch.maximum(mean - least, largest - mean)


class BatchIterator:
    """Batches by index selection; a drop-in for skorch's ``iterator_train``.

    Rows are spread evenly over ``ceil(n / batch_size)`` batches, because a short last batch would
    influence the last layer as much as a full one.

    Parameters
    ----------
    dataset : RowsDataset or torch.utils.data.Dataset
    batch_size : int
    shuffle : bool, default=False
        A single batch of all rows is never shuffled.
    seed : int, default=0
        The order in epoch e depends only on ``(seed, e)``: a resumed run sees the same batches.
    """

    def __init__(self, dataset: Any, batch_size: int, shuffle: bool = False, seed: int = 0) -> None:
        self.dataset, self.batch_size, self.shuffle, self.seed = dataset, batch_size, shuffle, seed
        self.epoch = 0

    def __len__(self) -> int:
        return max(1, -(-len(self.dataset) // self.batch_size))

    def __iter__(self) -> Iterator[Any]:
        n_rows, n_batches = len(self.dataset), len(self)
        shuffle = self.shuffle and n_batches > 1
        if shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
            order = torch.randperm(n_rows, generator=generator)
        self.epoch += 1
        edges = [n_rows * i // n_batches for i in range(n_batches + 1)]
        for start, stop in itertools.pairwise(edges):
            yield fetch(self.dataset, order[start:stop] if shuffle else slice(start, stop))


def fetch(dataset: Any, indices: Tensor | slice) -> Any:
    """A batch of any map-style data set, in one call if the data set supports it."""
    if hasattr(dataset, "batch"):
        return dataset.batch(indices)
    if isinstance(indices, slice):
        indices = torch.arange(len(dataset))[indices]
    if isinstance(dataset, Subset):
        return fetch(dataset.dataset, torch.as_tensor(dataset.indices)[indices])
    chosen = indices.tolist()
    if hasattr(dataset, "__getitems__"):
        return default_collate(dataset.__getitems__(chosen))
    return default_collate([dataset[i] for i in chosen])


def fetches_by_own_code(source: Any) -> bool:
    """Whether fetching a batch runs a user's code, which may draw random numbers."""
    dataset = source.dataset if isinstance(source, BatchIterator) else source
    if not isinstance(dataset, RowsDataset):
        return type(dataset) is not skorch.dataset.Dataset
    rows = dataset.inputs
    while isinstance(rows, ChosenRows):
        rows = rows.rows
    return isinstance(rows, DatasetRows)


def unpack_batch(batch: Any) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights of a batch; weights, or both of the last two, may be missing."""
    if not isinstance(batch, tuple | list):
        return batch, None, None
    inputs, targets, sample_weight = (*batch, None, None)[:3]
    return inputs, targets, sample_weight


def _inputs(item: Any) -> Any:
    """The inputs of a Dataset's item: a tensor, or a dict of named tensors."""
    inputs = item[0] if isinstance(item, tuple | list) else item
    if isinstance(inputs, Mapping):
        return {name: as_tensor(part) for name, part in inputs.items()}
    return as_tensor(inputs)


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


def _share_memory(data: np.ndarray) -> Any:
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
    return _share_memory(native(data))
