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
    first : Tensor of shape (n,)
        Place of the first entry of each row in the following.
    column, value : Tensor of shape (n_entries,)
        Of the entries that are not zero, row by row.
    share, spread : Tensor of shape (q,)
        Subtracted from the indicators, and what they are divided by then.
    """

    first: Tensor
    column: Tensor
    value: Tensor
    share: Tensor
    spread: Tensor

    @classmethod
    def of(cls, indicators: Tensor, share: Tensor, spread: Tensor) -> Indicators:
        """From indicators (n, q), most of which are zero."""
        row, column = indicators.nonzero(as_tuple=True)
        first = torch.searchsorted(row, torch.arange(len(indicators), device=row.device))
        return cls(first, column, indicators[row, column], share, spread)

    @property
    def width(self) -> int:
        """Number of indicators."""
        return len(self.share)

    def product(self, weight: Tensor) -> Tensor:
        """Product with the weights (m, q, u) of m layers; shape (m, n, u)."""
        table = (weight / self.spread[:, None]).movedim(0, 1).flatten(1)
        found = F.embedding_bag(
            self.column, table, self.first, mode="sum", per_sample_weights=self.value
        )
        found = found - self.share @ table
        return found.reshape(len(found), len(weight), weight.shape[2]).movedim(1, 0)
