"""A linear map of the inputs that a network is trained on top of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.scaling import RobustStandardize
from ..last_layer import ClosedFormLastLayer
from .batches import RowsDataset, robust_statistics
from .refit import RIDGES

__all__ = ["LinearPart"]


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
        batches: list[Any] = [part.batch(slice(None)) for part in (rows, more) if part is not None]
        batches = [(self.columns(inputs), *rest) for inputs, *rest in batches]
        self.layer.refit(batches)
        errors = []
        for ridge in RIDGES:
            self.layer.solve(ridge)
            errors.append(sum(self._left_out_error(*batch) for batch in batches))
        self.layer.solve(RIDGES[int(np.argmin(errors))])
        self.layer.reset_memory()

    def _left_out_error(self, columns: Tensor, targets: Tensor, weights: Tensor | None) -> float:
        squares = self.layer.leave_one_out_residuals(columns, targets, weights).square().sum(1)
        return float(squares.sum() if weights is None else weights @ squares.to(weights))
