"""StreamRows: rows that are read block by block, shuffled within each, as batches of a net."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset

from .batches import Batch, BatchIterator, RowsDataset
from .seeding import mix_seed

__all__ = ["StreamRows"]

Blocks = Callable[[int | None], Iterator[RowsDataset]]


class StreamRows(Dataset[Any]):
    """Rows of a source that is read in order, as often as there are passes over it.

    Parameters
    ----------
    blocks : callable
        One pass: blocks of rows on the device. It takes a seed of their order, or None.
    sizes : list of int
        Rows of each block at most: the number of batches follows from them.
    sample : RowsDataset
        Some of these rows, in memory.
    """

    def __init__(self, blocks: Blocks, sizes: list[int], sample: RowsDataset) -> None:
        self.blocks, self.sizes, self.sample = blocks, sizes, sample

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> StreamRows:
        """These rows: a stream is read by one worker."""
        return self

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("Rows of a stream cannot be taken by index.")

    def spread(self, n_rows: int) -> Any:
        """At most so many of the sample's rows."""
        return self.sample.spread(n_rows)

    def batches(self, batch_size: int, *, shuffle: bool, seed: int, epoch: int) -> StreamBatches:
        """Batches of passes from this epoch on; their order depends only on ``(seed, epoch)``."""
        return StreamBatches(self, batch_size, shuffle, seed, epoch)


class StreamBatches:
    """Batches of :class:`StreamRows`; each block is cut into batches of one size."""

    def __init__(
        self, rows: StreamRows, batch_size: int, shuffle: bool, seed: int, epoch: int
    ) -> None:
        self.rows, self.batch_size, self.shuffle = rows, batch_size, shuffle
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return sum(math.ceil(size / self.batch_size) for size in self.rows.sizes)

    def __iter__(self) -> Iterator[Batch]:
        seed = mix_seed(self.seed, self.epoch)
        self.epoch += 1
        passed = self.rows.blocks(seed if self.shuffle else None)
        for number, (block, size) in enumerate(zip(passed, self.rows.sizes, strict=False)):
            # As many batches as of a whole block, a few rows of which may be held out.
            n_batches = math.ceil(size / self.batch_size)
            if not len(block):
                continue
            n_rows, of_block = math.ceil(len(block) / n_batches), mix_seed(seed, number)
            yield from BatchIterator(block, n_rows, self.shuffle, of_block)
