"""Binned columns, which let a network change sharply along one column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .scaling import ExactBuffers

__all__ = ["PiecewiseLinear", "bin_edges", "quantiles"]

# Cumulative weights that should be equal differ by rounding: a row of weight 2 and a duplicated row
# must give the same edges.
ROUNDING = 1e-9
# For a column with an edge at every value. The target may jump between the codes of unordered
# categories; with fewer rows per value, such a jump is mostly noise.
ROWS_PER_VALUE = 16


def quantiles(rows: Tensor, sample_weight: Tensor | None, n_parts: int) -> Tensor:
    """Values that cut each column into parts of equal weight, with the smallest and largest.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
    sample_weight : Tensor of shape (n,), or None
        A weight is a number of repetitions.
    n_parts : int

    Returns
    -------
    Tensor of shape (p, n_parts + 1), float64
        On the CPU; each entry is a value of the column.
    """
    values, order = rows.cpu().sort(0)
    weights = torch.ones(len(rows)) if sample_weight is None else sample_weight.cpu()
    passed = weights.double()[order].cumsum(0).T.contiguous()
    wanted = torch.arange(1, n_parts + 1).double().div(n_parts) * (1.0 - ROUNDING)
    positions = torch.searchsorted(passed, passed[:, -1:] * wanted)
    first = (passed == 0).sum(1, keepdim=True)  # rows of weight zero are ignored
    positions = torch.cat([first, positions], dim=1).clamp_max(len(rows) - 1)
    return values.T.gather(1, positions).double()


def bin_edges(
    rows: Tensor, sample_weight: Tensor | None, n_bins: int, n_values: int = 0
) -> list[np.ndarray]:
    """Edges of bins of equal weight for each column, or all its values if there are few.

    Parameters
    ----------
    rows, sample_weight
        As in :func:`quantiles`.
    n_bins : int
        If many rows share a value, several edges fall on it and the column has fewer bins.
    n_values : int, default=0
        A column with at most this many values, and 16 rows per value, has an edge at each.

    Returns
    -------
    list of p ndarray
        Increasing values of the column; its smallest and largest are the outer edges.
    """
    cuts = quantiles(rows, sample_weight, n_bins).numpy()
    present = rows if sample_weight is None else rows[sample_weight > 0]
    most = min(n_values, len(present) // ROWS_PER_VALUE)
    edges = []
    for column, of_equal_weight in zip(present.T.cpu().double().numpy(), cuts, strict=True):
        values = np.unique(column)
        edges.append(values if len(values) <= most else np.unique(of_equal_weight))
    return edges


class PiecewiseLinear(ExactBuffers):
    """Piecewise linear encoding: the position of a value in each bin, from -1 to 1.

    A linear layer on top is a piecewise linear function of each column, whose slope can change at
    any edge and is zero beyond the outer ones.

    Parameters
    ----------
    bin_edges : list of array-like
        Increasing edges of each column; a column with one edge (a constant) gives no output.

    References
    ----------
    Gorishniy, Rubachev, Babenko, "On embeddings for numerical features in tabular deep
    learning", arXiv 2203.05556.
    """

    exact: ClassVar[tuple[str, ...]] = ("center", "unit")
    center: Tensor
    unit: Tensor
    column: Tensor
    lower: Tensor
    rate: Tensor

    def __init__(self, bin_edges: Sequence[Any]) -> None:
        super().__init__()
        edges = [np.asarray(column, dtype=np.float64) for column in bin_edges]
        self.n_columns = len(edges)
        # Edges are scaled to size one in float64 before they are cast: a column's units may not fit
        # float32, which is most precise near zero.
        center = np.array([column[len(column) // 2] for column in edges])
        unit = np.array([np.ptp(column) or 1.0 for column in edges])
        with np.errstate(invalid="ignore"):  # standardising raises for infinite values
            edges = [(c - m) / u for c, m, u in zip(edges, center, unit, strict=True)]
        self.register_buffer("center", torch.from_numpy(center))
        self.register_buffer("unit", torch.from_numpy(unit))
        columns = np.repeat(np.arange(len(edges)), [len(column) - 1 for column in edges])
        self.register_buffer("column", torch.from_numpy(columns))
        lower = np.concatenate([column[:-1] for column in edges])
        self.register_buffer("lower", torch.from_numpy(lower))
        widths = np.concatenate([np.diff(column) for column in edges])
        narrowest = np.finfo(np.float32).tiny  # zero times infinity would be NaN
        self.register_buffer("rate", torch.from_numpy(2.0 / np.maximum(widths, narrowest)))

    @property
    def n_outputs(self) -> int:
        """Number of bins."""
        return len(self.column)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = (inputs - self.center) / self.unit
        if not inputs.is_floating_point() or inputs.dtype.itemsize > self.lower.dtype.itemsize:
            scaled = scaled.to(self.lower.dtype)
        else:
            scaled = scaled.to(inputs.dtype)
        columns = scaled.index_select(1, self.column)
        passed = (columns - self.lower.to(columns)) * self.rate.to(columns)
        return passed.clamp(0.0, 2.0) - 1.0
