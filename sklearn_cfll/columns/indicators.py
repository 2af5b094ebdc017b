"""Indicators of a table's categories, looked up in the weights of a layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Indicators"]


class Indicators(NamedTuple):
    """Standardised indicators of n rows, by those of them that are not zero.

    Attributes
    ----------
    entries : Tensor of shape (n, q)
        Most of them are zero.
    share, spread : Tensor of shape (q,)
        Subtracted from the entries, and what they are divided by then.
    """

    entries: Tensor
    share: Tensor
    spread: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    def product(self, weight: Tensor) -> Tensor:
        """Product with the weights (m, q, u) of m layers; shape (m, n, u)."""
        table = (weight / self.spread[:, None]).movedim(0, 1).flatten(1)
        row, column = self.entries.nonzero(as_tuple=True)
        start = torch.searchsorted(row, torch.arange(len(self.entries)))
        values = self.entries[row, column]
        found = F.embedding_bag(column, table, start, mode="sum", per_sample_weights=values)
        found = found - self.share @ table
        return found.reshape(len(found), len(weight), -1).movedim(1, 0)
