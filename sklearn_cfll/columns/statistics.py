"""Statistics of columns: weighted means, deviations and quantiles of rows read in batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from .rows import Rows

__all__ = [
    "input_statistics",
    "occurrences",
    "quantiles",
    "robust_statistics",
    "some_rows",
    "spread_rows",
]

# Number of entries from which statistics and quantiles of the inputs are computed at once.
ENTRIES = 2**22
# Multiple of the 5-95% range: 35 standard deviations of a normal distribution. Skewed columns and
# columns with few values are not clipped.
FAR_OUT = 10.0
# Cumulative weights that should be equal differ by rounding: a row of weight 2 and a duplicated row
# must give the same quantiles.
ROUNDING = 1e-9


def spread_rows(n_rows: int, n_columns: int) -> Tensor:
    """Indices of all rows, or of every second, third... row if there are too many entries."""
    return torch.arange(0, n_rows, -(-n_rows * n_columns // ENTRIES))


def quantiles(rows: Tensor, sample_weight: Tensor | None, n_parts: int) -> Tensor:
    """Values that cut each column into parts of equal weight, with the smallest and largest.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
        NaN is a gap: it has no weight. A column of gaps alone has quantiles NaN.
    sample_weight : Tensor of shape (n,), or None
        A weight is a number of repetitions.
    n_parts : int

    Returns
    -------
    Tensor of shape (p, n_parts + 1), float64
        On the CPU; each entry is a value of the column.
    """
    columns = rows.cpu().T.contiguous()
    if sample_weight is None:  # a sort of values alone is several times as fast
        values = torch.from_numpy(np.sort(columns.numpy(), axis=1))  # NaN is sorted last
        known = (~values.isnan()).sum(1, keepdim=True)
        passed = torch.arange(1, len(rows) + 1).minimum(known).double()
    else:
        values, order = columns.sort(1)
        weights = sample_weight.cpu().double()[order].masked_fill(values.isnan(), 0.0)
        passed = weights.cumsum(1)
    wanted = torch.arange(1, n_parts + 1).double().div(n_parts) * (1.0 - ROUNDING)
    positions = torch.searchsorted(passed, passed[:, -1:] * wanted)
    first = (passed == 0).sum(1, keepdim=True)  # rows of weight zero are ignored
    positions = torch.cat([first, positions], dim=1).clamp_max(len(rows) - 1)
    return values.gather(1, positions).double()


def input_statistics(
    rows: Rows,
    sample_weight: Tensor | None,
    entries: int = ENTRIES,
    within: tuple[Tensor, Tensor] | None = None,
    gaps: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of each entry of an input, in float64, in batches.

    With ``within``, values are clipped to these bounds first. With ``gaps``, NaN is left out.
    """
    n_rows = len(rows)
    n_batches = max(1, -(-n_rows // max(1, entries // math.prod(rows.shape[1:]))))
    edges = [n_rows * i // n_batches for i in range(n_batches + 1)]

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for start, stop in itertools.pairwise(edges):
            batch = rows.take(slice(start, stop))
            wide = batch.double() if within is None else batch.double().clamp(*within)
            ones = batch.new_ones(len(batch))
            weight = ones if sample_weight is None else sample_weight[start:stop]
            yield wide, weight.double()

    once = list(read()) if n_batches == 1 else None

    def average(values: Callable[[Tensor], Tensor]) -> Tensor:
        total = weights = torch.zeros((), dtype=torch.float64)
        for wide, weight in once or read():
            found, known = values(wide), weight.sum()
            absent = wide.isnan() if gaps else None
            if absent is not None and bool(absent.any()):
                known = torch.tensordot(weight, (~absent).double(), dims=1)
                found = found.masked_fill(absent, 0.0)
            total = total.to(wide.device) + torch.tensordot(weight, found, dims=1)
            weights = weights.to(wide.device) + known
        return total / torch.where(weights > 0, weights, 1.0)

    mean = average(lambda wide: wide)
    return mean, average(lambda wide: (wide - mean).square()).sqrt()


def robust_statistics(rows: Rows, sample_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`input_statistics` of columns (n, p), computed without the influence of outliers.

    The third result is the largest distance of an entry from the mean of its column.

    Entries are clipped at ``FAR_OUT`` times the 5-95% range beyond the 5% and 95% quantiles, which
    are computed from every second, third... row if there are many. Columns in which both quantiles
    are equal are not clipped.
    """
    some, weights = some_rows(rows, sample_weight)
    levels = quantiles(some, weights, 20).nan_to_num().to(some.device)
    least, lower, upper, largest = levels[:, [0, 1, -2, -1]].T
    reach = FAR_OUT * (upper - lower)
    reach = torch.where(reach > 0, reach, torch.inf)
    within = lower - reach, upper + reach
    mean, std = input_statistics(rows, sample_weight, within=within, gaps=True)
    return mean, std, torch.maximum(mean - least, largest - mean)


def some_rows(rows: Rows, sample_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Rows of a table and their weights, evenly subsampled if there are many."""
    chosen = spread_rows(len(rows), rows.shape[1])
    weights = None if sample_weight is None else sample_weight[chosen.to(sample_weight.device)]
    return rows.take(chosen), weights


def occurrences(numbers: np.ndarray) -> np.ndarray:
    """How often each of the numbers (n,) has come before."""
    order = np.argsort(numbers, kind="stable")
    place = np.arange(len(numbers))
    in_order = numbers[order]
    is_new = np.append(True, in_order[1:] != in_order[:-1])[: len(numbers)]
    found = np.empty_like(place)
    found[order] = place - np.maximum.accumulate(np.where(is_new, place, 0))
    return found
