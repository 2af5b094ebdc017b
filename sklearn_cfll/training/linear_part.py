"""A linear map of the inputs to whose residuals a network is fitted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import linalg
from ..columns.normal_scores import SpreadStandardize, score_tables
from ..heads.closed_form import ClosedFormLastLayer
from ..linalg import RIDGES
from .batches import RowsDataset, robust_statistics

__all__ = ["LinearPart"]

LEAST_REST = 1e-6  # for a row that is fitted exactly
# Normal scores are used if their error, relative to that on plain columns, is below this
# (benchmarks/heavy_tails.py).
BETTER = 0.8


class LinearPart(nn.Module):
    """Ridge regression on standardised columns; the network is fitted to its residuals.

    Normal scores of the columns are used instead if the leave-one-out error is lower by a fifth: a
    straight line along a heavy-tailed column is determined by the few rows in its tail.

    Parameters
    ----------
    n_features : int
    n_targets : int
    """

    def __init__(self, n_features: int, n_targets: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.columns = SpreadStandardize([None] * n_features).to(dtype)
        self.layer = ClosedFormLastLayer(n_features, n_targets, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.columns(inputs))

    def fit(self, rows: RowsDataset, more: RowsDataset | None = None) -> None:
        """Fit all rows; leave-one-out errors select the form of the columns and the ridge."""
        parts = [part.batch(slice(None)) for part in (rows, more) if part is not None]
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
        plain: list[Any] = [None] * inputs.shape[1]
        self.columns.set_tables(plain)
        self.columns.adapt_to(*robust_statistics(rows))
        errors = self._errors(inputs, targets, weights)
        self.columns.set_tables(score_tables(inputs, weights, uneven=math.inf))
        spread = self._errors(inputs, targets, weights)
        if spread.min() < BETTER * errors.min():
            errors = spread
        else:
            self.columns.set_tables(plain)
        batch = self.columns(inputs), targets, weights
        self.layer.refit([batch], ridge=RIDGES[int(errors.argmin())])

    def _errors(self, inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Leave-one-out error for each of ``RIDGES``."""
        columns = self.columns(inputs).double()
        return linalg.leave_one_out_errors(
            columns, targets.double(), torch.tensor(RIDGES), weights.double()
        )

    def left_out_shift(self, rows: RowsDataset) -> Tensor:
        """Relative growth of the residual of each fitted row when it is left out; shape (n, 1).

        It is ``h / (1 - h)``, where h is the row's diagonal entry of the hat matrix.
        """
        inputs, _, weight = rows.batch(slice(None))
        share = self.layer.leverage(self.columns(inputs))
        share = (share if weight is None else share * weight).clamp_max(1 - LEAST_REST)
        return (share / (1.0 - share)).to(inputs.dtype).unsqueeze(1)
