"""KnownRows: what later calls have to know of the rows that a model was fitted to."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from ..training.batches import RowsDataset
from ..training.folds import Folds
from .column_moments import ColumnMoments, total_weight

__all__ = ["KnownRows", "checksums", "share_kept"]

# The moments of earlier rows were computed on outdated features. A run whose learning rates sum to
# this value leaves exp(-1) of their weight. Three times as much and a third of the forgetting were
# no better on two simulated streams (benchmarks/going_on.py).
FORGOTTEN_BY = 1 / 3
MOST_ROWS_REMEMBERED, SHARE_SEEN = 1024, 0.2


def share_kept(total_rate: float) -> float:
    """Weight that earlier rows keep after steps whose learning rates sum to ``total_rate``."""
    return math.exp(-total_rate / FORGOTTEN_BY)


@dataclass
class KnownRows:
    """What was learnt so far, besides the model.

    Attributes
    ----------
    is_stream : bool
        Whether the model was begun by ``partial_fit``; scales and ridge are not fixed then.
    n_known : float
        Total weight of the rows that the model was fitted to.
    target_reach : float
        Largest absolute target on the scale of training, 0 if unknown.
    rows_seen : ndarray of uint64
        Checksums of the rows that were learnt last.
    columns : ColumnMoments or None
        Moments of a stream's columns.
    ridge_errors : ndarray of shape (len(RIDGES),), or None
        Sum of squared errors of each ridge on a stream's rows before they were learnt.
    folds : int
        Checksum of the folds that members held out, 0 without.
    """

    is_stream: bool = False
    n_known: float = 0.0
    target_reach: float = 0.0
    rows_seen: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    columns: ColumnMoments | None = None
    ridge_errors: np.ndarray | None = None
    folds: int = 0

    @classmethod
    def after_fit(cls, rows: RowsDataset, folds: Folds | None) -> KnownRows:
        """After a fit to these rows."""
        weight = total_weight(rows) * (rows.n_joint / len(rows))
        known_rows = cls(n_known=weight, folds=0 if folds is None else folds.checksum)
        known_rows.reach(rows)
        known_rows.remember(rows)
        return known_rows

    def reach(self, rows: RowsDataset) -> None:
        """Extend the range of known targets."""
        assert rows.targets is not None
        self.target_reach = max(self.target_reach, float(rows.targets.abs().max()))

    def remember(self, rows: RowsDataset) -> None:
        """Keep checksums of learnt rows; repeated rows are uninformative about the noise."""
        found = np.concatenate([self.rows_seen, _some(rows)])
        self.rows_seen = found[-MOST_ROWS_REMEMBERED:]

    def same_folds(self, other: KnownRows) -> bool:
        """Whether two fits held out the same rows of the same data for each member."""
        same_rows = np.array_equal(self.rows_seen, other.rows_seen)
        return same_rows and self.n_known == other.n_known and self.folds == other.folds

    def has_seen(self, rows: RowsDataset) -> bool:
        """Whether these rows were learnt before, as in a loop of epochs over the same rows."""
        return bool(np.isin(_some(rows), self.rows_seen).mean() > SHARE_SEEN)

    def pack(self) -> dict[str, Any]:
        """Plain data."""
        columns = None if self.columns is None else tuple(self.columns)
        return {**asdict(self), "columns": columns}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> KnownRows:
        """Inverse of :meth:`pack`."""
        columns = packed["columns"]
        return cls(**{**packed, "columns": None if columns is None else ColumnMoments(*columns)})


def checksums(rows: RowsDataset) -> np.ndarray:
    """A number of 64 bits for each row and its targets; equal rows have equal numbers."""
    batch = rows.batch(slice(None))
    inputs = batch.inputs.values() if isinstance(batch.inputs, dict) else [batch.inputs]
    total = np.zeros(len(rows), np.uint64)
    random = np.random.default_rng(0)
    for part in (*inputs, batch.targets):
        values = part.reshape(len(part), -1).double().cpu().numpy() + 0.0  # no negative zeros
        factors = random.integers(2**63, size=values.shape[1], dtype=np.uint64) * np.uint64(2) + 1
        total += values.view(np.uint64) @ factors
    # The finaliser of MurmurHash3: each bit of the result depends on all of them.
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        total = (total ^ (total >> np.uint64(33))) * np.uint64(factor)
    return total ^ (total >> np.uint64(33))


def _some(rows: RowsDataset) -> np.ndarray:
    """Checksums of the rows, of which many are evenly subsampled."""
    return checksums(rows.subset(torch.arange(0, len(rows), -(-len(rows) // MOST_ROWS_REMEMBERED))))
