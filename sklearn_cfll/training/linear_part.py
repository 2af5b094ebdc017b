"""A linear map of the inputs that a network is trained on top of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import linalg
from ..backbones.scaling import RobustStandardize
from ..last_layer import ClosedFormLastLayer
from .batches import RowsDataset, robust_statistics
from .refit import RIDGES

__all__ = ["LinearPart"]

LEAST_REST = 1e-6  # of a row that the fit goes through


class LinearPart(nn.Module):
    """Ridge regression on standardised columns; the network predicts what it leaves over.

    Parameters
    ----------
    n_features : int
    n_targets : int
    """

    def __init__(self, n_features: int, n_targets: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.columns = RobustStandardize(n_features).to(dtype)
        self.layer = ClosedFormLastLayer(n_features, n_targets, dtype=dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(self.columns(inputs))

    def fit(self, rows: RowsDataset, more: RowsDataset | None = None) -> None:
        """Fit all rows at once; the ridge has the least leave-one-out error."""
        self.columns.adapt_to(*robust_statistics(rows))
        parts = [part.batch(slice(None)) for part in (rows, more) if part is not None]
        columns = self.columns(torch.cat([part.inputs for part in parts]))
        targets = torch.cat([part.targets for part in parts if part.targets is not None])
        weights = torch.cat(
            [
                columns.new_ones(len(part.inputs))
                if part.sample_weight is None
                else part.sample_weight
                for part in parts
            ]
        )
        errors = linalg.leave_one_out_errors(
            columns.double(), targets.double(), torch.tensor(RIDGES), weights.double()
        )
        self.layer.refit([(columns, targets, weights)], ridge=RIDGES[int(errors.argmin())])

    def left_out_shift(self, rows: RowsDataset) -> Tensor:
        """By how much residuals of rows that were fitted grow when each is left out; (n, 1).

        ``h / (1 - h)`` of the residual, with the row's entry h of the hat matrix.
        """
        inputs, _, weight = rows.batch(slice(None))
        share = self.layer.leverage(self.columns(inputs))
        share = (share if weight is None else share * weight).clamp_max(1 - LEAST_REST)
        return (share / (1.0 - share)).to(inputs.dtype).unsqueeze(1)
