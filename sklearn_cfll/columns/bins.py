"""Bins of columns: sharp changes along a column, and codes of categories."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .protocol import EncoderModule
from .rows import Rows
from .statistics import quantiles, some_rows

__all__ = ["PiecewiseLinear", "bin_edges"]

# For a column with an edge at every value. The target may jump between the codes of unordered
# categories; with fewer rows per value, such a jump is mostly noise.
ROWS_PER_VALUE = 16
# A column of at most this many values per bin has an edge at every value. Rounded measurements have
# more values and do not need that.
VALUES_PER_BIN = 4
# With more bins than this, the first layer would be most of the network.
MAX_BINS = 2048


def bin_edges(
    rows: Tensor, sample_weight: Tensor | None, n_bins: int, n_values: int = 0
) -> list[np.ndarray]:
    """Edges of bins of equal weight for each column, or all its values if there are few.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
        NaN is a gap, which is left out.
    sample_weight : Tensor of shape (n,), or None
        A weight is a number of repetitions.
    n_bins : int
        If many rows share a value, such as zero, several edges fall on it; those that are then left
        over cut the other rows into parts of equal weight.
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
        values = np.unique(column[~np.isnan(column)])
        found = values if len(values) <= most else np.unique(of_equal_weight)
        if len(found) <= n_bins < len(values):
            found = _with_left_over(column, sample_weight, of_equal_weight, n_bins)
        edges.append(found if len(found) else np.zeros(1))  # of a column of gaps
    return edges


def _with_left_over(
    column: np.ndarray, sample_weight: Tensor | None, cuts: np.ndarray, n_bins: int
) -> np.ndarray:
    """Edges of a column in which several fall on one value; those left over cut its other rows."""
    found, count = np.unique(cuts, return_counts=True)
    others = torch.as_tensor(~np.isin(column, found[count > 1]))
    weight = None if sample_weight is None else sample_weight.cpu()[others]
    if not others.any() or (weight is not None and not weight.any()):
        return found
    rest = quantiles(torch.as_tensor(column)[others, None], weight, n_bins + 1 - len(found))
    edges: np.ndarray = np.union1d(found, rest.numpy())
    return edges


class PiecewiseLinear(EncoderModule):
    """Piecewise linear encoding: the position of a value in each bin, from -1 to 1.

    A linear layer on top is a piecewise linear function of each column, whose slope can change at
    any edge and is zero beyond the outer ones. It has no outputs if no column has two bins, or if
    the table is so wide that the bins would be most of the network.

    Parameters
    ----------
    n_bins : int, default=16
        Bins of equal weight per column. A column with at most four times as many values, and 16
        rows per value, has an edge at each value.
    most : int, default=2048
        Most outputs. With fewer than two per column, there are none.

    References
    ----------
    Gorishniy, Rubachev, Babenko, "On embeddings for numerical features in tabular deep
    learning", arXiv 2203.05556.
    """

    exact: ClassVar[tuple[str, ...]] = ("center", "width")
    center: Tensor
    width: Tensor
    column: Tensor
    lower: Tensor
    rate: Tensor

    def __init__(self, n_bins: int = 16, most: int = MAX_BINS) -> None:
        super().__init__()
        self.n_bins, self.most = n_bins, most
        for name in ("center", "width"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        for name in ("lower", "rate"):
            self.register_buffer(name, torch.empty(0))
        self.register_buffer("column", torch.empty(0, dtype=torch.int64))

    def fit(self, rows: Rows, sample_weight: Tensor | None = None) -> None:
        most = self.most // rows.shape[1]
        n_bins, n_values = min(self.n_bins, most), min(VALUES_PER_BIN * self.n_bins, most)
        edges: list[np.ndarray] = []
        if n_bins >= 2:
            edges = bin_edges(*some_rows(rows, sample_weight), n_bins, n_values)
        self.set_edges(edges if max(map(len, edges), default=0) > 2 else [])

    def set_edges(self, edges: list[np.ndarray]) -> None:
        """Set the increasing edges of every column; a column with one edge has no output."""
        # Edges are scaled to size one in float64 before they are cast: a column's units may not fit
        # float32, which is most precise near zero.
        center = np.array([column[len(column) // 2] for column in edges])
        width = np.array([np.ptp(column) or 1.0 for column in edges])
        with np.errstate(invalid="ignore"):  # standardising raises for infinite values
            scaled = [(c - m) / u for c, m, u in zip(edges, center, width, strict=True)]
        column = np.repeat(np.arange(len(edges)), [len(column) - 1 for column in edges])
        lower = np.concatenate([column[:-1] for column in scaled] or [[]])
        bins = np.concatenate([np.diff(column) for column in scaled] or [[]])
        narrowest = np.finfo(np.float32).tiny  # zero times infinity would be NaN
        self._set(center=center, width=width, column=column, lower=lower)
        self._set(rate=2.0 / np.maximum(bins, narrowest))

    def forward(self, rows: Tensor) -> Tensor:
        # Booleans can be added to, but not subtracted from.
        scaled = ((-self.center + rows) / self.width).to(self.lower.dtype)
        columns = scaled.index_select(1, self.column)
        # In place: this is a copy, and by far the largest one on the way to the network.
        return columns.sub_(self.lower).mul_(self.rate).clamp_(0.0, 2.0).sub_(1.0)
