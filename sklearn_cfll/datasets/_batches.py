"""Batches of samples, with an optional progress bar."""

from __future__ import annotations

from collections.abc import Iterator

from tqdm import tqdm

__all__ = ["batches"]


def batches(
    n_samples: int, batch_size: int, *, description: str, verbose: int | bool
) -> Iterator[int]:
    """Sizes of consecutive batches that add up to ``n_samples``."""
    with tqdm(total=n_samples, desc=description, unit="sample", disable=not verbose) as bar:
        for start in range(0, n_samples, batch_size):
            size = min(batch_size, n_samples - start)
            yield size
            bar.update(size)
