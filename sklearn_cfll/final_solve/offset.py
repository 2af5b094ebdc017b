"""Offset: a fitted map of the inputs, to whose residuals the network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import linalg
from ..columns.normal_scores import NormalScores, score_tables
from ..heads.closed_form import ClosedFormLastLayer
from ..linalg import RIDGES
from ..training.batches import RowsDataset

__all__ = ["LinearOffset", "Offset", "WithOffset", "less_offset"]

LEAST_REST = 1e-6  # for a row that is fitted exactly
# With fewer rows per column, leave-one-out errors of fits that are penalised less are wild, and the
# least of them says nothing (benchmarks/small_data.py).
ENOUGH_ROWS, LOWEST_RIDGE = 4, 5e-4
# Normal scores are used if their error, relative to that on plain columns, is below this
# (benchmarks/heavy_tails.py).
BETTER = 0.8


class Offset(Protocol):
    """A fitted map of the inputs.

    It is subtracted from the targets before training and added to the predictions: nothing inside
    training knows of it.
    """

    def __call__(self, inputs: Any) -> Tensor:
        """Its share of the predictions; shape (n, k)."""
        ...

    def refitted(self, *parts: RowsDataset) -> Any:
        """Another one, fitted to all rows of several data sets."""
        ...

    def left_out_shift(self, rows: RowsDataset) -> Tensor:
        """Factor by which residuals of fitted rows grow when each is left out; shape (n, 1)."""
        ...


def less_offset(data: RowsDataset, offset: Callable[[Any], Tensor] | None) -> RowsDataset:
    """The same rows, their targets less what the offset predicts."""
    if offset is None:
        return data
    assert data.targets is not None
    with torch.no_grad():
        targets = data.targets - offset(data.X)
    found = RowsDataset(data.inputs, targets, data.sample_weight)
    if data.own is not data:
        found.shared(less_offset(data.own, offset), data.n_joint)
    return found


class WithOffset(nn.Module):
    """A net's module and the offset: what both predict together."""

    def __init__(self, module: Any, offset: Any) -> None:
        super().__init__()
        self.module, self.offset = module, offset
        self.last_layer = module.last_layer

    def forward(self, inputs: Tensor) -> Tensor:
        predictions: Tensor = self.module(inputs) + self.offset(inputs)
        return predictions


class LinearOffset(nn.Module):
    """Ridge regression on standardised columns.

    Normal scores of the columns are used instead if the leave-one-out error is lower by a fifth: a
    straight line along a heavy-tailed column is determined by the few rows in its tail.

    Parameters
    ----------
    n_features : int
    n_targets : int
    dtype : torch.dtype
    """

    def __init__(self, n_features: int, n_targets: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = n_features, n_targets, dtype
        self.columns = NormalScores(n_features, uneven=math.inf).to(dtype)
        self.layer = ClosedFormLastLayer(n_features, n_targets, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        predictions: Tensor = self.layer(self.columns(inputs))
        return predictions

    def refitted(self, *parts: RowsDataset) -> LinearOffset:
        """See :class:`Offset`; columns are standardised by the first data set."""
        return LinearOffset(*self.sizes).to(self.layer.weight.device).fit(*parts)

    def fit(self, *data: RowsDataset) -> LinearOffset:
        """Fit all rows; leave-one-out errors select the form of the columns and the ridge."""
        parts = [part.batch(slice(None)) for part in data]
        inputs = torch.cat([part.inputs for part in parts])
        targets = torch.cat([part.targets for part in parts if part.targets is not None])
        weights = torch.cat(
            [
                inputs.new_ones(len(part.inputs))
                if part.sample_weight is None
                else part.sample_weight
                for part in parts
            ]
        )
        self.columns.fit(data[0].inputs, data[0].sample_weight)
        self.columns.set_tables([])
        errors = self._errors(inputs, targets, weights)
        self.columns.set_tables(score_tables(inputs, weights, uneven=math.inf))
        spread = self._errors(inputs, targets, weights)
        if spread.min() < BETTER * errors.min():
            errors = spread
        else:
            self.columns.set_tables([])
        batch = self.columns(inputs), targets, weights
        self.layer.refit([batch], ridge=_ridges(inputs)[int(errors.argmin())])
        return self

    def _errors(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Leave-one-out error for each ridge that may be chosen."""
        columns = self.columns(inputs).double()
        return linalg.leave_one_out_errors(
            columns, targets.double(), torch.tensor(_ridges(inputs)), weights.double()
        )

    def left_out_shift(self, rows: RowsDataset) -> Tensor:
        """``h / (1 - h)`` with each row's entry h of the hat matrix; see :class:`Offset`."""
        inputs, _, weight = rows.batch(slice(None))
        share = self.layer.leverage(self.columns(inputs))
        share = (share if weight is None else share * weight).clamp_max(1 - LEAST_REST)
        return (share / (1.0 - share)).to(inputs.dtype).unsqueeze(1)


def _ridges(inputs: Tensor) -> tuple[float, ...]:
    n_rows, n_columns = inputs.shape
    if n_rows >= ENOUGH_ROWS * n_columns:
        return RIDGES
    return tuple(ridge for ridge in RIDGES if ridge > LOWEST_RIDGE)
