"""Input columns to one scale, by what the training rows showed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

__all__ = ["ColumnScale", "RobustStandardize", "Standardize"]

# In standard deviations. Rows within them are left as they are: where a heavy tail matters, as
# in a linear function of incomes, drawing it in costs more than it saves.
LIMIT = 15.0
# Few rows of a heavy-tailed column do not show its tail: beyond the largest of them, and beyond
# this many deviations, nothing was learnt (benchmarks/heavy_tails.py).
LEAST_LIMIT = 4.0


class ExactBuffers(nn.Module):
    """Buffers named in ``exact`` stay in float64, whatever the network around them is cast to.

    They hold numbers in the units of the user's columns, which float32 may blur (milliseconds
    since 1970) or not hold at all (1e-50). What they give is in the dtype of the network. Apple's
    MPS has no float64: there they are cast.
    """

    exact: ClassVar[tuple[str, ...]] = ()
    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # of the network's dtype

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = {name: getattr(self, name) for name in self.exact}
        for name, buffer in kept.items():  # the device that `fn` moves to may lack float64
            self._buffers[name] = buffer.to(self.like.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.like.device.type != "mps":
            for name, buffer in kept.items():
                self._buffers[name] = buffer.to(self.like.device, torch.float64)
        return self


class Standardize(nn.Module):
    """Centre and scale input columns by what the training rows showed.

    Columns that are constant, or nearly so against their own size, are only centred: a
    tiny standard deviation would turn a small change at prediction time into 1e9s.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("scale", torch.ones(n_features))

    @torch.no_grad()
    def adapt_to(self, mean: Tensor, std: Tensor) -> None:
        """Take weighted means and standard deviations of the training rows."""
        info = torch.finfo(self.scale.dtype)
        if not torch.isfinite(std).all():
            column = int((~torch.isfinite(std)).nonzero()[0, 0])
            raise ValueError(
                f"Column {column} of X holds values that are not finite, or so large that their "
                "squares overflow. Remove NaN and infinity, and rescale the column."
            )
        constant = std <= 10 * info.eps * mean.abs() + info.tiny
        self.mean = mean.to(self.mean)
        self.scale = torch.where(constant, torch.ones_like(std), std).to(self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) / self.scale

    def unit(self, inputs: Tensor) -> Tensor:
        """How far each input moves while its standardised value moves by one, if not far out."""
        return self.scale.expand_as(inputs)


class RobustStandardize(Standardize, ExactBuffers):
    """Standardise, and soft-clip what lies farther than 15 deviations: none beyond 30.

    Or, where that is nearer, farther than any training row and than 4 deviations.

    A single wrong entry (a thousand times the others) would otherwise make a step of training
    diverge, or a prediction absurd. :func:`~sklearn_cfll.training.batches.robust_statistics`
    gives mean and deviation that such entries do not move. Columns are standardised in float64
    and then cast, so that their units do not matter beyond its rounding.
    """

    exact: ClassVar[tuple[str, ...]] = ("mean", "scale")
    limit: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.mean, self.scale = self.mean.double(), self.scale.double()
        self.register_buffer("limit", torch.full((n_features,), LIMIT))

    @torch.no_grad()
    def adapt_to(self, mean: Tensor, std: Tensor, reach: Tensor | None = None) -> None:
        """Take statistics of the training rows; ``reach`` is their largest distance to the mean."""
        super().adapt_to(mean, std)
        if reach is not None:
            farthest = (reach.to(self.scale) / self.scale).clamp(LEAST_LIMIT, LIMIT)
            self.limit = farthest.to(self.limit)

    def forward(self, inputs: Tensor) -> Tensor:
        scaled = super().forward(inputs).to(self.like.dtype)
        limit = self.limit
        near = scaled.clamp(-limit, limit)
        return near + limit * torch.tanh((scaled - near) / limit)


class ColumnScale(nn.Module):
    """Multiply each input by the scale of the column that it comes from.

    Ones until they are set from what
    :func:`~sklearn_cfll.training.column_scales.column_scales` finds: a large column moves a
    network early, a small one late.

    Parameters
    ----------
    column : Tensor of int of shape (n_inputs,)
        Column of each input; several inputs may come from one.
    """

    column: Tensor
    factor: Tensor

    def __init__(self, column: Tensor) -> None:
        super().__init__()
        self.register_buffer("column", column)
        self.register_buffer("factor", torch.ones(len(column)))

    def adapt_to(self, scales: Tensor) -> None:
        """Take the scale of every column."""
        self.factor = scales[self.column].to(self.factor)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor
