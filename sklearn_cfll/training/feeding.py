"""Feeding: from a user's data to tensors on the device, and to the backbone's features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import skorch
import torch
from skorch.dataset import unpack_data
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..columns.rows import as_rows, as_tensor
from ..heads.module import module_dtype
from ._skorch import SkorchConventions
from .batches import Batch, BatchIterator, RowsDataset, unpack_batch
from .progress import Progress
from .streams import StreamRows

__all__ = ["Feeding"]


class Feeding(SkorchConventions):
    """The part of CFLLNet that fetches batches and computes features."""

    progress: Any = None  # Progress, where rows that are read are counted

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        if isinstance(X, Dataset | DataLoader):
            return X
        own = self.dataset is not skorch.dataset.Dataset or self.get_params_for("dataset")
        if own or isinstance(X, Mapping | list | tuple):  # several inputs: skorch's own data set
            return super().get_dataset(X, y)
        dtype = self._dtype()
        targets = None if y is None else as_tensor(y).to(self.device, dtype)
        return RowsDataset(as_rows(X, self.device, dtype), targets)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        if isinstance(dataset, DataLoader):
            return dataset
        if isinstance(dataset, StreamRows):
            size: Any = self.batch_size
            if not training:
                size = self.get_params_for("iterator_valid").get("batch_size", size)
            seed, epoch = getattr(self, "seed_", 0), len(self.history or ())
            return dataset.batches(size, shuffle=training, seed=seed, epoch=epoch)
        iterator = super().get_iterator(dataset, training=training)
        if isinstance(iterator, BatchIterator):
            iterator.seed = self.workers_.own_seed(getattr(self, "seed_", 0))
            iterator.epoch = len(self.history or ())
            if training:
                iterator.n_joint = getattr(dataset, "n_joint", None)
                iterator.turn = self.workers_.rank / self.workers_.size
            else:
                iterator.shuffle = False
        return iterator

    def _dtype(self) -> torch.dtype:
        if getattr(self, "initialized_", False):
            return self.module_.last_layer.weight.dtype
        return module_dtype(self.module) if isinstance(self.module, nn.Module) else torch.float32

    def _on_device(self, value: Any) -> Any:
        if isinstance(value, Tensor | np.ndarray):
            tensor = as_tensor(value)
            floating = tensor.is_floating_point()
            return tensor.to(self.device, self._dtype() if floating else tensor.dtype)
        if isinstance(value, Mapping):
            return {key: self._on_device(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._on_device(part) for part in value)
        tensor = to_tensor(value, self.device)
        return self._on_device(tensor) if isinstance(tensor, Tensor) else tensor

    def features(self, X: Any) -> Tensor:
        """The backbone's output in evaluation mode, on the CPU."""
        return torch.cat([features.cpu() for features in self.iterate_features(X)])

    def iterate_features(self, X: Any) -> Iterator[Tensor]:
        """The backbone's output in evaluation mode, batch by batch."""
        return (self._features(batch) for batch in self._batches(X))

    def labelled_features(self, X: Any, y: Any = None) -> Iterator[tuple[Any, ...]]:
        """Batches of (features, targets, weights) in evaluation mode, the input of ``refit``."""
        for batch in self._batches(X, y):
            features = self._features(batch)
            _, targets, sample_weight = self._unpack(batch)
            yield features, self.module_.matched_targets(targets, features), sample_weight

    @contextlib.contextmanager
    def followed(self, progress: Progress) -> Iterator[None]:
        """Count all rows that are read in this block."""
        self.progress = progress
        try:
            yield
        finally:
            self.progress = None

    def _batches(self, X: Any, y: Any = None) -> Any:
        batches = self.get_iterator(self.get_dataset(X, y), training=False)
        return batches if self.progress is None else self.progress.over(batches)

    @torch.no_grad()
    def _features(self, batch: Any) -> Tensor:
        if self.module_.training:
            self._set_training(False)
        return self.module_.features(self._inputs(batch))

    def _inputs(self, batch: Any) -> Any:
        # Rows of a RowsDataset are on the device, in the dtype that their network takes.
        return batch.inputs if isinstance(batch, Batch) else self._on_device(unpack_batch(batch)[0])

    def _unpack(self, batch: Any) -> tuple[Any, Any, Tensor | None]:
        if isinstance(batch, Batch):
            return batch  # of a RowsDataset: on the device, cast already
        if not isinstance(batch, tuple | list) or len(batch) < 2:
            unpack_data(batch)  # skorch's error
        inputs, targets, sample_weight = unpack_batch(batch)
        targets = self._on_device(targets).to(self._dtype())
        if sample_weight is not None:
            sample_weight = self._on_device(sample_weight).to(self._dtype())
        return self._on_device(inputs), targets, sample_weight
