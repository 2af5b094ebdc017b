"""FoldRows: rows of which each member of an ensemble sees all but its own fold."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .batches import Batch, RowsDataset

__all__ = ["FoldRows", "Folds"]


@dataclass
class Folds:
    """Which member holds out which row: member j holds out fold ``j % n_folds``.

    Attributes
    ----------
    of_row : Tensor of shape (n,)
        Fold of each row.
    second : Tensor of shape (n,)
        For a few rows another fold whose members hold them out too, -1 for all others. Where two
        members have not seen a row, it is seen how much such members differ; those that were
        trained on a row agree more on it.
    n_folds, n_members : int
    """

    of_row: Tensor
    second: Tensor
    n_folds: int
    n_members: int

    @property
    def of_member(self) -> Tensor:
        """Fold of each member; shape (m,)."""
        return torch.arange(self.n_members, device=self.of_row.device) % self.n_folds

    def held_out(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """Whether each member holds out each of these rows; bool, shape (n, m)."""
        return self.first(indices) | (self.second[indices].unsqueeze(1) == self.of_member)

    def first(self, indices: Tensor | slice = slice(None)) -> Tensor:
        """The same by the fold of a row alone."""
        return self.of_row[indices].unsqueeze(1) == self.of_member

    def subset(self, indices: Tensor) -> Folds:
        """The folds of selected rows."""
        chosen = indices.to(self.of_row.device)
        return Folds(self.of_row[chosen], self.second[chosen], self.n_folds, self.n_members)

    @property
    def checksum(self) -> int:
        """A number that tells these folds from others."""
        of_row, second = (part.cpu().numpy().tobytes() for part in (self.of_row, self.second))
        return zlib.crc32(of_row + second + bytes([self.n_folds])) + self.n_members

    def n_rows(self, sample_weight: Tensor | None) -> Tensor:
        """Total weight of the rows that each member holds out; shape (m,), float64."""
        weight = torch.ones(len(self.of_row)) if sample_weight is None else sample_weight
        weight = weight.double().to(self.of_row.device)
        # A place before all folds for rows without a second one.
        parts = [self.of_row, self.second]
        rows = [torch.bincount(part + 1, weight, minlength=1 + self.n_folds) for part in parts]
        return (rows[0] + rows[1])[1:][self.of_member]


class FoldRows(RowsDataset):
    """Rows with a weight for each member: zero for rows of its fold, or for all others.

    The weights of a member have mean one, so that its loss is that of a fit without the other
    rows. They are made batch by batch: a matrix of all of them could be larger than the data.

    Parameters
    ----------
    rows : RowsDataset
    folds : Folds
    held_out : bool
        Whether a member sees the rows of its own fold only, to be evaluated on them. Otherwise it
        sees the rows of all other folds, to be trained on them.
    scale : Tensor of shape (m,), optional
        Factor on the weights of each member; default so that their mean is one.
    """

    def __init__(
        self, rows: RowsDataset, folds: Folds, held_out: bool, scale: Tensor | None = None
    ) -> None:
        super().__init__(rows.inputs, rows.targets, rows.sample_weight)
        self.folds, self.held_out = folds, held_out
        if scale is None:
            own = folds.n_rows(rows.sample_weight)
            total = len(rows) if rows.sample_weight is None else rows.sample_weight.double().sum()
            scale = len(rows) / (own if held_out else total - own)
        self.scale = scale

    def subset(self, indices: Any) -> FoldRows:
        chosen = torch.as_tensor(indices)
        rows = super().subset(chosen)
        return FoldRows(rows, self.folds.subset(chosen), self.held_out, self.scale)

    def batch(self, indices: Tensor | slice) -> Batch:
        """A batch with weights (n, 1..., m), with a one for each position."""
        inputs, targets, sample_weight = super().batch(indices)
        if isinstance(indices, Tensor):
            indices = indices.to(self.folds.of_row.device)
        seen = self.folds.held_out(indices) == self.held_out
        assert targets is not None
        weights = torch.where(seen, self.scale, 0.0).to(targets.dtype)
        if sample_weight is not None:
            weights = weights * sample_weight.unsqueeze(1)
        positions = [1] * (targets.ndim - 2)
        return Batch(inputs, targets, weights.reshape(len(weights), *positions, -1))
