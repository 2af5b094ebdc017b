"""Blocks: rows of any source that is read in order, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import narwhals as nw
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from ..columns.frames import as_frame
from ..columns.rows import check_one_shape, stacked

__all__ = ["Block", "blocks_of", "concatenated", "cut", "is_stream", "joined", "take_rows"]

ITEMS = 4096  # of an iterable data set that form a block


class Block(NamedTuple):
    """Some rows as they come.

    Attributes
    ----------
    X : ndarray, or frame of pandas, polars or pyarrow
    y : ndarray, or None
    sample_weight : ndarray of shape (n,), or None
    """

    X: Any
    y: Any = None
    sample_weight: Any = None

    def __len__(self) -> int:
        return int(self.X.shape[0])

    def take(self, indices: np.ndarray) -> Block:
        """Selected rows, as a copy."""
        return Block(*(None if part is None else take_rows(part, indices) for part in self))

    def part(self, start: int, stop: int) -> Block:
        """Consecutive rows, as a view where the library of the rows has one."""
        return Block(*(None if part is None else _slice(part, start, stop) for part in self))


def is_stream(X: Any) -> bool:
    """Whether rows of X come in order only: an iterable data set, a loader, or blocks."""
    return isinstance(X, IterableDataset | DataLoader) or hasattr(X, "blocks")


def blocks_of(source: Any, seed: int | None = None) -> Iterator[Block]:
    """One pass over a source.

    Parameters
    ----------
    source : object with a method ``blocks(seed)``, DataLoader or IterableDataset
        A loader gives batches, an iterable data set single rows: of inputs, target and, if there
        is one, sample weight.
    seed : int, optional
        Of the order of the blocks, if the source can change it.
    """
    if hasattr(source, "blocks"):
        yield from source.blocks(seed)
    elif isinstance(source, DataLoader):
        yield from map(_of_batch, source)
    else:
        items: list[Any] = []
        for item in source:
            items.append(item)
            if len(items) == ITEMS:
                yield _of_items(items)
                items = []
        if items:
            yield _of_items(items)


def _of_batch(batch: Any) -> Block:
    """The batch of a loader."""
    if isinstance(batch, Mapping):
        raise TypeError(
            "The stream gives dicts, but named inputs cannot be read as a stream. Give (inputs, "
            "target) pairs, or pass a map-style Dataset."
        )
    parts = batch if isinstance(batch, tuple | list) else (batch,)
    if isinstance(parts[0], Mapping):
        return _of_batch(parts[0])
    block = Block(*(_as_rows(part) for part in parts[:3]))
    if len(block.X.shape) < 2:
        raise ValueError(
            f"The stream gives inputs of shape {block.X.shape}, but its batches must hold one row "
            "for each sample: leave a DataLoader's `batch_size` at a number, and give a single "
            "column as rows of length one."
        )
    for name, part in (("targets", block.y), ("weights", block.sample_weight)):
        if part is not None and (not part.shape or len(part) != len(block)):
            raise ValueError(
                f"The stream gives {len(block)} rows of inputs, but {name} of shape {part.shape}."
            )
    return block


def _of_items(items: Sequence[Any]) -> Block:
    """Single rows together."""
    if isinstance(items[0], tuple | list):
        return _of_batch([_stacked([item[i] for item in items]) for i in range(len(items[0]))])
    return _of_batch(items[0] if isinstance(items[0], Mapping) else [_stacked(items)])


def _stacked(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return values[0]  # refused
    if isinstance(values[0], torch.Tensor):
        return stacked(values)
    check_one_shape(values)
    return np.stack([np.asarray(value) for value in values])


def _as_rows(part: Any) -> Any:
    if isinstance(part, torch.Tensor):
        return part.detach().cpu().numpy()
    return part if hasattr(part, "shape") else np.asarray(part)


def cut(blocks: Iterable[Block], sizes: Iterable[int]) -> Iterator[Block]:
    """The same rows in blocks of these sizes, and a last one if there are more rows.

    If there are too few, the last blocks are missing.
    """
    given = iter(blocks)
    held: list[Block] = []
    n_held = 0
    for size in sizes:
        while n_held < size:
            more = next(given, None)
            if more is None:
                return
            held.append(more)
            n_held += len(more)
        whole = joined(held)
        yield whole.part(0, size)
        held, n_held = [whole.part(size, n_held)] if n_held > size else [], n_held - size
    more = next(given, None) if not held else held[0]
    if more is not None:
        yield more


def joined(blocks: Sequence[Block]) -> Block:
    """All rows of several blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return Block(*(concatenated(parts) for parts in zip(*blocks, strict=True)))


def concatenated(parts: Sequence[Any]) -> Any:
    """Arrays or frames below each other; None if all are."""
    if all(part is None for part in parts):
        return None
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    frames = [as_frame(part) for part in parts]
    return nw.concat([frame for frame in frames if frame is not None]).to_native()


def take_rows(part: Any, indices: np.ndarray) -> Any:
    """Selected rows of an array or a frame."""
    if isinstance(part, np.ndarray):
        return part[indices]
    frame = as_frame(part)
    assert frame is not None
    return frame[indices.tolist(), :].to_native()


def _slice(part: Any, start: int, stop: int) -> Any:
    if isinstance(part, np.ndarray):
        return part[start:stop]
    frame = as_frame(part)
    assert frame is not None
    return frame[start:stop].to_native()
