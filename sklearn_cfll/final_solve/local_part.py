"""Local part: a kernel smoother of held-out residuals, which is added to the predictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._compat import is_exporting
from ..columns.encoder import EncodedColumns
from ..training.batches import RowsDataset, spread

__all__ = ["LocalPart", "WithLocalPart"]

# Bandwidths that are tried: the median distance of two rows, times 1/2, 1/4, ...
N_BANDWIDTHS = 10
# Weights of the residual zero that are tried, in rows.
PRIORS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# Fewer rows say too little; more entries take too much memory.
LEAST_ROWS, MOST_ENTRIES = 500, 2**24
# Rows that are looked at first: if their gain is below its standard error, no others are. And the
# most by which bandwidth and prior are chosen.
FIRST_ROWS, MOST_CHOOSING = 1000, 2**13
# Standard errors of the gain that are needed, and its least share of the squared residuals: less is
# not worth the time of predictions.
LEAST_GAIN, LEAST_SHARE = 2.5, 0.005
# Bandwidths beyond which rows weigh next to nothing; processors are slow at numbers that underflow.
FARTHEST = 40.0
# Distances at a time: on a CPU, what its cache holds.
BLOCK, BLOCK_OF_DEVICES = 2**18, 2**24


class LocalPart(nn.Module):
    """Nadaraya-Watson smoother of the residuals of held-out rows.

    A network fits what changes slowly along its columns. If rows that are very near each other
    share more than that (measurements of one hour, samples of one batch), their residuals are
    alike, and those of the known rows predict that of a new one: ::

        sum_j w_j r_j / (sum_j w_j + prior),    w_j = v_j exp(-|x - x_j| / bandwidth)

    with the sample weights v. The distance is the sum of the absolute differences of all columns
    (standardised, categories as indicators), each times its scale: columns that the network does
    not use do not count.

    Parameters
    ----------
    columns : EncodedColumns
    used : Tensor of shape (f,)
        Indices of the standardised columns and indicators that count.
    places : Tensor of shape (q, f)
        The rows that are remembered, each column times its scale.
    residuals : Tensor of shape (q, k)
    weights : Tensor of shape (q,)
    bandwidth, prior : Tensor, each a number
    """

    used: Tensor
    places: Tensor
    residuals: Tensor
    weights: Tensor
    bandwidth: Tensor
    prior: Tensor

    def __init__(
        self,
        columns: EncodedColumns,
        used: Tensor,
        places: Tensor,
        residuals: Tensor,
        weights: Tensor,
        bandwidth: Tensor,
        prior: Tensor,
    ) -> None:
        super().__init__()
        self.columns = columns
        for name, value in (
            ("used", used), ("places", places), ("residuals", residuals),
            ("weights", weights), ("bandwidth", bandwidth), ("prior", prior),
        ):  # fmt: skip
            self.register_buffer(name, value)

    def own_state(self) -> dict[str, Tensor]:
        """The buffers, without those of the columns, which are the network's."""
        return dict(self.named_buffers(recurse=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """Predicted residuals (n, k) of rows."""
        places = scaled(self.columns, inputs).index_select(1, self.used)
        if is_exporting():  # for any number of rows
            return self._smooth(self._weights(places))
        parts = [self._smooth(self._weights(places[part])) for part in self._parts(len(places))]
        return torch.cat(parts)

    @classmethod
    @torch.no_grad()
    def fit(
        cls, columns: EncodedColumns, rows: RowsDataset, residuals: Tensor
    ) -> tuple[LocalPart, Tensor] | None:
        """A smoother, and what it leaves of the residuals of its own rows; None if it is no help.

        Bandwidth and prior have the smallest leave-one-out error. Copies of a row are left out with
        it: they would predict its residual, but not those of other rows. There is no smoother if
        the squared error is not lowered by 2.5 standard errors and half a percent.

        Parameters
        ----------
        columns : EncodedColumns
        rows : RowsDataset
        residuals : Tensor of shape (n, k)
            Of these rows, under a model that was not fitted to them.
        """
        n = len(rows)
        if n < LEAST_ROWS or n * columns.expansion.n_outputs > MOST_ENTRIES:
            return None
        taken = (rows.inputs.take(slice(i, i + 4096)) for i in range(0, n, 4096))
        found = torch.cat([scaled(columns, each) for each in taken])
        used = found.count_nonzero(0).nonzero().flatten()
        weights = found.new_ones(n) if rows.sample_weight is None else rows.sample_weight
        places, near = found.index_select(1, used), spread(n, 512)
        median = torch.cdist(places[near], places[near], p=1).median()
        if median == 0:  # most rows are copies
            return None
        one = torch.ones_like(median)
        part = cls(columns, used, places, residuals.to(found), weights.to(found), median / 2, one)
        return (part, part.left_out()) if part._choose() else None

    def _choose(self) -> bool:
        """Set bandwidth and prior, and return whether they help."""
        n, tried = len(self.places), N_BANDWIDTHS
        for most in (FIRST_ROWS, MOST_CHOOSING) if n > FIRST_ROWS else (MOST_CHOOSING,):
            chosen = spread(n, most).to(self.places.device)
            weights = self.weights[chosen].double()
            parts = [self._gains(chosen[part], tried) for part in self._parts(len(chosen))]
            gains = torch.cat(parts)
            mean = weights @ gains / weights.sum()
            best = int(mean.argmax())
            error = (weights * (gains[:, best] - mean[best])).square().sum().sqrt() / weights.sum()
            if not mean[best] > (LEAST_GAIN if most == MOST_CHOOSING else 1.0) * error:
                return False
            bandwidth, prior = divmod(best, len(PRIORS))
            if most == FIRST_ROWS:  # of all rows, only the best one and its neighbours
                bandwidth, tried = max(bandwidth - 1, 0), 3
            self.bandwidth /= 2**bandwidth
        self.prior.fill_(PRIORS[prior])
        square = weights @ self.residuals[chosen].double().square().sum(1) / weights.sum()
        return bool(mean[best] > LEAST_SHARE * square)

    def _gains(self, chosen: Tensor, tried: int) -> Tensor:
        """By how much each bandwidth and prior lowers the squared errors of some rows, left out."""
        weights, residuals = self._weights_of_others(chosen), self.residuals[chosen]
        square, gains = residuals.square().sum(1), []
        for _ in range(tried):
            sums = weights @ self._sums
            for prior in PRIORS:
                left = residuals - sums[:, :-1] / (sums[:, -1:] + prior)
                gains.append(square - left.square().sum(1))
            weights = weights.square_()  # half the bandwidth
        return torch.stack(gains, 1).double()

    @torch.no_grad()
    def left_out(self) -> Tensor:
        """Residuals (q, k) of the rows that are remembered, less what the others predict."""
        indices = torch.arange(len(self.places), device=self.places.device)
        parts = [
            self._smooth(self._weights_of_others(indices[part]))
            for part in self._parts(len(indices))
        ]
        return self.residuals - torch.cat(parts)

    @property
    def _sums(self) -> Tensor:
        """What kernel weights add up of each row: its residuals and one, times its weight."""
        weights = self.weights.unsqueeze(1)
        return torch.cat([weights * self.residuals, weights], 1)

    def _smooth(self, weights: Tensor) -> Tensor:
        """Predicted residuals from kernel weights (n, q)."""
        sums = weights @ self._sums
        found: Tensor = sums[:, :-1] / (sums[:, -1:] + self.prior)
        return found

    def _weights(self, places: Tensor) -> Tensor:
        """Kernel weights (n, q)."""
        apart = distances(places, self.places)
        return torch.exp(-apart / self.bandwidth) if is_exporting() else self._decayed(apart)

    def _decayed(self, apart: Tensor) -> Tensor:
        """Kernel weights of distances, in their place."""
        return apart.div_(-self.bandwidth).clamp_min_(-FARTHEST).exp_()

    def _weights_of_others(self, chosen: Tensor) -> Tensor:
        """Kernel weights of some of the rows, zero for a row itself and for copies of it."""
        apart = distances(self.places[chosen], self.places)
        copies = apart == 0
        return self._decayed(apart).masked_fill_(copies, 0.0)

    def _parts(self, n: int) -> Iterator[slice]:
        """Slices of n rows, few enough for the distances to fit in memory."""
        most = BLOCK if self.places.device.type == "cpu" else BLOCK_OF_DEVICES
        size = max(32, most // len(self.places) // 32 * 32)
        return (slice(start, min(start + size, n)) for start in range(0, n, size))


class WithLocalPart(nn.Module):
    """A module that predicts in y's units, and the local part, whose residuals have a scale."""

    scale: Tensor

    def __init__(self, module: nn.Module, local_part: LocalPart, scale: Tensor) -> None:
        super().__init__()
        self.module, self.local_part = module, local_part
        self.register_buffer("scale", scale)

    def forward(self, inputs: Tensor) -> Tensor:
        predictions = self.module(inputs)
        local = self.local_part(inputs).double() * self.scale
        found: Tensor = predictions + local.to(predictions.dtype)
        return found


def scaled(columns: EncodedColumns, rows: Tensor) -> Tensor:
    """Standardised numbers and indicators (n, q) of rows, each times the scale of its column.

    Of scales that differ between members, the mean.
    """
    found = columns.standardised(rows)
    scale: Any = columns.column_scale
    if scale is None or not len(scale):
        return found
    mean: Tensor = scale.reshape(-1, scale.shape[-1])[:, : found.shape[1]].mean(0)
    return found * mean


def distances(places: Tensor, others: Tensor) -> Tensor:
    """City-block distances (n, q) of rows (n, f) from others (q, f)."""
    if is_exporting():  # ONNX has no such distances
        return (places.unsqueeze(1) - others).abs().sum(2)
    return torch.cdist(places, others, p=1)
