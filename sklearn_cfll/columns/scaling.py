"""Scaling of input columns by statistics of the rows of a fit."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from ..linalg import is_constant
from .protocol import EncoderModule
from .rows import Rows
from .statistics import robust_statistics

__all__ = ["RobustStandardize", "Standardize"]

# In standard deviations. Values within this limit are unchanged: if a heavy tail matters, as in a
# linear function of incomes, clipping it does more harm than good.
LIMIT = 15.0
# A few rows of a heavy-tailed column do not contain its tail: beyond the largest of them, nothing
# was learnt. This is the smallest limit, in standard deviations (benchmarks/heavy_tails.py).
LEAST_LIMIT = 4.0


class Standardize(nn.Module):
    """Centre and scale input columns by statistics of the training rows.

    Columns that are constant, or nearly so relative to their mean, are only centred: a tiny
    standard deviation would turn a small change at prediction time into values like 1e9.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def adapt_to(self, mean: Tensor, std: Tensor) -> None:
        """Set the weighted means and standard deviations of the training rows."""
        info = torch.finfo(self.scale.dtype)
        if not torch.isfinite(std).all():
            column = int((~torch.isfinite(std)).nonzero()[0, 0])
            raise ValueError(
                f"Column {column} of X holds values that are not finite, or so large that their "
                "squares overflow. Remove NaN and infinity, and rescale the column."
            )
        constant = is_constant(std, mean, info.eps, info.tiny)
        self.mean = mean.to(self.mean)
        self.scale = torch.where(constant, torch.ones_like(std), std).to(self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        # Booleans can be added to, but not subtracted from.
        return (-self.mean + inputs) / self.scale

    def unit(self, inputs: Tensor) -> Tensor:
        """Change of each input per unit of its standardised value, unless it is clipped."""
        return self.scale.expand_as(inputs)

    def units(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised inputs, and :meth:`unit`."""
        return self(inputs), self.unit(inputs)


class RobustStandardize(Standardize, EncoderModule):
    """Standardise, and soft-clip values beyond 15 standard deviations to at most 30.

    The limit is lower than 15 if no training row is that far from the mean: it is then the largest
    distance of a training row, but at least 4 standard deviations.

    Without the limit, a single wrong entry (a thousand times the others) could make training
    diverge, or a prediction absurd. :func:`~sklearn_cfll.columns.statistics.robust_statistics`
    gives a mean and a deviation that such entries do not influence. Columns are standardised in
    float64 and then cast, so that their units matter only up to its rounding.
    """

    exact: ClassVar[tuple[str, ...]] = ("mean", "scale")
    limit: Tensor

    def __init__(self, n_features: int = 0) -> None:
        super().__init__(n_features)
        self.mean, self.scale = self.mean.double(), self.scale.double()
        self.register_buffer("limit", torch.full((n_features,), LIMIT))

    @property
    def column(self) -> Tensor:  # type: ignore[override]
        """Index of the column that each output comes from."""
        return torch.arange(len(self.mean), device=self.mean.device)

    def fit(self, rows: Rows, sample_weight: Tensor | None = None) -> None:
        """Standardise by these rows."""
        mean, std, reach = robust_statistics(rows, sample_weight)
        self.adapt_to(mean, std)
        farthest = (reach.to(self.scale) / self.scale).clamp(LEAST_LIMIT, LIMIT)
        self.limit = farthest.to(self.limit)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = super().forward(inputs).to(self.like.dtype)
        limit = self.limit
        near = scaled.clamp(-limit, limit)
        return near + limit * torch.tanh((scaled - near) / limit)
