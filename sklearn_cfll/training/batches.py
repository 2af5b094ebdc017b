"""Data sets and batches of rows, by index selection on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import skorch.dataset
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from ..columns.rows import ChosenRows, DatasetRows, ExpandedRows, Rows
from .seeding import mix_seed

__all__ = ["Batch", "BatchIterator", "RowsDataset", "fetch", "fetches_by_own_code", "spread"]
__all__ += ["unpack_batch"]


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
        self._own: RowsDataset | None = None
        self._n_joint: int | None = None

    @property
    def own(self) -> RowsDataset:
        """Of rows that several workers know, those that this one trains on; all if it is alone."""
        return self if self._own is None else self._own

    @property
    def n_joint(self) -> int:
        """Number of rows that all workers train on."""
        return len(self) if self._n_joint is None else self._n_joint

    def shared(self, own: RowsDataset, n_joint: int) -> Self:
        """These rows, known to all workers, as those of which this one trains on its ``own``."""
        self._own, self._n_joint = own, n_joint
        own._n_joint = n_joint
        return self

    @property
    def X(self) -> Any:
        return self.inputs.take(slice(None))

    @property
    def y(self) -> Tensor | None:
        return self.targets

    @property
    def index_device(self) -> torch.device:
        """Where indices of batches are taken without another copy of them."""
        return self.inputs.index_device

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

    def spread(self, n_rows: int) -> Any:
        """At most so many rows, evenly spread; the data set itself if it has no more."""
        if len(self) <= n_rows:
            return self
        return self.subset(spread(len(self), n_rows))

    def batch(self, indices: Tensor | slice) -> Batch:
        """Inputs, targets and weights of selected rows, on the device."""
        chosen = indices.to(self.inputs.device) if isinstance(indices, Tensor) else indices
        return Batch(
            self.inputs.take(indices),
            None if self.targets is None else self.targets[chosen],
            None if self.sample_weight is None else self.sample_weight[chosen],
        )


def spread(n_rows: int, most: int) -> Tensor:
    """Indices of all rows, or of so many of them, evenly spread."""
    if n_rows <= most:
        return torch.arange(n_rows)
    return torch.linspace(0, n_rows - 1, most, dtype=torch.float64).long()


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
        self.n_joint: int | None = None  # rows of all workers, which have equally many batches
        self.turn = 0.0  # from 0 to 1: of several workers, each has its rows in other batches

    def __len__(self) -> int:
        n_rows = len(self.dataset) if self.n_joint is None else self.n_joint
        return max(1, -(-n_rows // self.batch_size))

    def __iter__(self) -> Iterator[Any]:
        n_rows, n_batches = len(self.dataset), len(self)
        shuffle = self.shuffle and n_batches > 1
        if shuffle:
            generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
            order = torch.randperm(n_rows, generator=generator)
            # At once: each copy from the CPU makes the host wait for an accelerator.
            order = order.to(getattr(self.dataset, "index_device", order.device))
        self.epoch += 1
        turn = int(self.turn * n_batches)
        edges = [(n_rows * i + turn) // n_batches for i in range(n_batches + 1)]
        for start, stop in itertools.pairwise(edges):
            if start < stop or not n_rows:
                yield fetch(self.dataset, order[start:stop] if shuffle else slice(start, stop))
            else:  # the other workers have rows for this batch
                first = fetch(self.dataset, slice(0, 1))
                yield first._replace(sample_weight=weightless(first))


def fetch(dataset: Any, indices: Tensor | slice) -> Any:
    """A batch of any map-style data set, in one call if the data set supports it."""
    if hasattr(dataset, "batch"):
        return dataset.batch(indices)
    if isinstance(indices, slice):
        indices = torch.arange(len(dataset))[indices]
    if isinstance(dataset, TensorDataset):
        return [tensor[indices] for tensor in dataset.tensors]
    if isinstance(dataset, Subset):
        return fetch(dataset.dataset, torch.as_tensor(dataset.indices)[indices])
    chosen = indices.tolist()
    if hasattr(dataset, "__getitems__"):
        return default_collate(dataset.__getitems__(chosen))
    return default_collate([dataset[i] for i in chosen])


def weightless(batch: Batch) -> Tensor:
    """Weights of zero for the rows of a batch."""
    if batch.sample_weight is not None:
        return torch.zeros_like(batch.sample_weight)
    assert batch.targets is not None
    return batch.targets.new_zeros(len(batch.targets))


def fetches_by_own_code(source: Any) -> bool:
    """Whether fetching a batch runs a user's code, which may draw random numbers."""
    dataset = source.dataset if isinstance(source, BatchIterator) else source
    if not isinstance(dataset, RowsDataset):
        return type(dataset) is not skorch.dataset.Dataset
    rows = dataset.inputs
    while isinstance(rows, ChosenRows | ExpandedRows):
        rows = rows.rows
    return isinstance(rows, DatasetRows)


def unpack_batch(batch: Any) -> tuple[Any, Any, Any]:
    """Inputs, targets and weights of a batch; weights, or both of the last two, may be missing."""
    if not isinstance(batch, tuple | list):
        return batch, None, None
    inputs, targets, sample_weight = (*batch, None, None)[:3]
    return inputs, targets, sample_weight
