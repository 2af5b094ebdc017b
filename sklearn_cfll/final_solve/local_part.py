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
# Fewer rows say too little; with more entries, some seconds would go by before the first is known.
LEAST_ROWS, MOST_ENTRIES = 500, 2**22
# Rows that are looked at first: if their gain is below its standard error, no others are. And the
# most by which bandwidth and prior are chosen.
FIRST_ROWS, MOST_CHOOSING = 1000, 2**13
# Standard errors of the gain that are needed, and its least share of the squared residuals: less is
# not worth the time of predictions.
LEAST_GAIN, LEAST_SHARE = 2.5, 0.005
# Share of different targets from which rows with equal ones are copies, moved a little or not.
MANY_VALUES = 0.05
# Bandwidths beyond which rows weigh next to nothing; processors are slow at numbers that underflow.
FARTHEST = 40.0
# Distances at a time: on a CPU, what its cache holds.
BLOCK, BLOCK_OF_DEVICES = 2**18, 2**24
STATE = (
    "used", "places", "steps", "residuals", "weights", "bandwidth", "prior", "explained", "alone"
)  # fmt: skip


class LocalPart(nn.Module):
    """Nadaraya-Watson smoother of the residuals of held-out rows.

    A network fits what changes slowly along its columns. If rows that are very near each other
    share more than that (measurements of one hour, samples of one batch), their residuals are
    alike, and those of the known rows predict that of a new one: ::

        sum_j w_j r_j / (sum_j w_j + prior),    w_j = v_j exp(-|x - x_j| / bandwidth)

    with the sample weights v. The distance is the sum of the absolute differences of all columns
    (standardised, categories as indicators), each times its scale: columns that the network does
    not use do not count. Any two levels of a category are equally far from each other, so that one
    comparison takes the place of as many differences as there are levels.

    Parameters
    ----------
    columns : EncodedColumns
    used : Tensor of shape (f,)
        Indices of the coordinates of a row (see :func:`located`) that count.
    places : Tensor of shape (q, f)
        The rows that are remembered.
    steps : Tensor of shape (c,)
        Distance between two levels, of the categories among these coordinates, the last ones.
    residuals : Tensor of shape (q, k)
    weights : Tensor of shape (q,)
    bandwidth, prior : Tensor, each a number
    explained : Tensor of shape (k,)
        By how much the smoother lowers the mean squared residuals.
    alone : Tensor, a number
        Mean share of the prior in the weights of the rows, each left out.
    """

    used: Tensor
    places: Tensor
    steps: Tensor
    residuals: Tensor
    weights: Tensor
    bandwidth: Tensor
    prior: Tensor
    explained: Tensor
    alone: Tensor

    def __init__(self, columns: EncodedColumns, **state: Tensor) -> None:
        super().__init__()
        self.columns = columns
        for name in STATE:
            self.register_buffer(name, state[name])

    def own_state(self) -> dict[str, Tensor]:
        """The buffers, without those of the columns, which are the network's."""
        return dict(self.named_buffers(recurse=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """Predicted residuals (n, k) of rows."""
        return self._predicted(self._sums_of(inputs))

    def with_doubt(self, inputs: Tensor) -> Tensor:
        """Predicted residuals, and the variance that is left of them; shape (n, 2, k).

        The variance is that of rows that few known rows are near: it rises from zero to all that
        the smoother explains, with the share of the prior.
        """
        sums = self._sums_of(inputs)
        return torch.stack([self._predicted(sums), self._doubt(sums)], 1)

    @classmethod
    @torch.no_grad()
    def fit(
        cls, columns: EncodedColumns, rows: RowsDataset, residuals: Tensor, *, apart: bool = True
    ) -> tuple[LocalPart, Tensor, Tensor] | None:
        """A smoother, what it leaves of the residuals of its own rows, and its doubt there.

        None if it is no help. Bandwidth and prior have the smallest leave-one-out error. Copies of
        a row are left out with it: they would predict its residual, but not those of other rows.
        Rows with equal targets count as copies, or those at the same place if targets have few
        values. There is no smoother if the squared error is not lowered by 2.5 standard errors and
        half a percent.

        Parameters
        ----------
        columns : EncodedColumns
        rows : RowsDataset
        residuals : Tensor of shape (n, k)
            Of these rows, under a model that was not fitted to them.
        apart : bool, default=True
            Whether targets that are not helped are left as they are; classes are one target.
        """
        n = len(rows)
        if n < LEAST_ROWS or n * columns.expansion.n_coded > MOST_ENTRIES:
            return None
        size = max(256, BLOCK // columns.expansion.n_outputs)
        taken = (rows.inputs.take(slice(i, i + size)) for i in range(0, n, size))
        found, steps = torch.cat([located(columns, each) for each in taken]), steps_of(columns)
        matters = found.any(0)
        matters[len(matters) - len(steps) :] &= steps > 0
        used, steps = matters.nonzero().flatten(), steps[matters[len(matters) - len(steps) :]]
        weights = found.new_ones(n) if rows.sample_weight is None else rows.sample_weight
        places, near = found.index_select(1, used), spread(n, 512)
        median = distances(places[near], places[near], steps).median()
        if median == 0:  # most rows are copies
            return None
        one, residuals = torch.ones_like(median), residuals.to(found)
        part = cls(
            columns, used=used, places=places, steps=steps, residuals=residuals,
            weights=weights.to(found), bandwidth=median / 2, prior=one,
            explained=torch.zeros_like(residuals[0]), alone=one,
        )  # fmt: skip
        alike = copies_by(rows.targets)
        if not part._choose(alike):
            return None
        sums = part._sums_without(torch.arange(n, device=places.device), alike)
        left = residuals - part._predicted(sums)
        gains = (part.weights / part.weights.sum()).unsqueeze(1) * (residuals**2 - left**2)
        part.explained = gains.sum(0).clamp_min(0.0)
        if apart:
            errors = (gains - gains.mean(0)).square().sum(0).sqrt()
            helped = gains.sum(0) > LEAST_GAIN * errors
            part.explained = part.explained * helped
            part.residuals = part.residuals * helped
            left = torch.where(helped, left, residuals)
        part.alone = part.weights @ part._alone(sums).flatten() / part.weights.sum()
        return part, left, part._doubt(sums)

    def _choose(self, alike: Tensor | None) -> bool:
        """Set bandwidth and prior, and return whether they help."""
        n, tried = len(self.places), N_BANDWIDTHS
        for most in (FIRST_ROWS, MOST_CHOOSING) if n > FIRST_ROWS else (MOST_CHOOSING,):
            chosen = spread(n, most).to(self.places.device)
            weights = self.weights[chosen].double()
            parts = [self._gains(chosen[part], alike, tried) for part in self._parts(len(chosen))]
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

    def _gains(self, chosen: Tensor, alike: Tensor | None, tried: int) -> Tensor:
        """By how much each bandwidth and prior lowers the squared errors of some rows, left out."""
        weights, residuals = self._weights_of_others(chosen, alike), self.residuals[chosen]
        square, gains = residuals.square().sum(1), []
        for _ in range(tried):
            sums = weights @ self._of_rows
            for prior in PRIORS:
                left = residuals - sums[:, :-1] / (sums[:, -1:] + prior)
                gains.append(square - left.square().sum(1))
            weights = weights.square_()  # half the bandwidth
        return torch.stack(gains, 1).double()

    # -- kernel weights, and the sums (n, k + 1) of residuals and of weights ---------------------

    @property
    def _of_rows(self) -> Tensor:
        """What kernel weights add up of each row: its residuals and one, times its weight."""
        weights = self.weights.unsqueeze(1)
        return torch.cat([weights * self.residuals, weights], 1)

    def _sums_of(self, inputs: Tensor) -> Tensor:
        places = located(self.columns, inputs).index_select(1, self.used)
        of_rows = self._of_rows
        if is_exporting() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
            # For any number of rows.
            return self._weights(places) @ of_rows
        parts = [self._weights(places[part]) @ of_rows for part in self._parts(len(places))]
        return torch.cat(parts)

    def _sums_without(self, chosen: Tensor, alike: Tensor | None) -> Tensor:
        """The sums of some of the rows, each left out."""
        of_rows = self._of_rows
        parts = [
            self._weights_of_others(chosen[part], alike) @ of_rows
            for part in self._parts(len(chosen))
        ]
        return torch.cat(parts)

    def _predicted(self, sums: Tensor) -> Tensor:
        return sums[:, :-1] / (sums[:, -1:] + self.prior)

    def _alone(self, sums: Tensor) -> Tensor:
        """Share (n, 1) of the prior."""
        return self.prior / (sums[:, -1:] + self.prior)

    def _doubt(self, sums: Tensor) -> Tensor:
        beyond = (self._alone(sums) - self.alone).clamp_min(0.0)
        return self.explained * (beyond / (1.0 - self.alone))

    def _weights(self, places: Tensor) -> Tensor:
        """Kernel weights (n, q)."""
        apart = distances(places, self.places, self.steps)
        if apart.requires_grad or is_exporting():
            return torch.exp(-apart / self.bandwidth)
        return self._decayed(apart)

    def _decayed(self, apart: Tensor) -> Tensor:
        """Kernel weights of distances, in their place."""
        return apart.div_(-self.bandwidth).clamp_min_(-FARTHEST).exp_()

    def _weights_of_others(self, chosen: Tensor, alike: Tensor | None) -> Tensor:
        """Kernel weights of some of the rows, zero for a row itself and for copies of it."""
        apart = distances(self.places[chosen], self.places, self.steps)
        copies = apart == 0 if alike is None else alike[chosen].unsqueeze(1) == alike
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


def copies_by(targets: Tensor | None) -> Tensor | None:
    """Numbers (n,) that are equal for rows with equal targets; None if targets have few values."""
    assert targets is not None
    values, number = torch.unique(targets, dim=0, return_inverse=True)
    return number if len(values) > MANY_VALUES * len(targets) else None


def located(columns: EncodedColumns, rows: Tensor) -> Tensor:
    """Coordinates of expanded rows: standardised numbers and indicators of gaps, levels behind.

    Numbers and gaps are multiplied by the scale of their column.
    """
    expansion = columns.expansion
    n = expansion.n_numbers + len(expansion.gaps)
    plain = columns.standardised(rows[:, :n]) * _scale_of(columns)[:n]
    return torch.cat([plain, expansion.levels(rows).to(plain.dtype)], 1)


def steps_of(columns: EncodedColumns) -> Tensor:
    """City-block distance between the indicators of two levels, for each category."""
    expansion = columns.expansion
    scale = _scale_of(columns)[expansion.n_numbers :] / expansion.spread  # of all alike
    owner = expansion.owner[len(expansion.gaps) :].to(scale.dtype)
    found = 2.0 * (scale[len(expansion.gaps) :] @ owner) / owner.sum(0).clamp_min(1.0)
    return found.to(expansion.like.dtype)


def _scale_of(columns: EncodedColumns) -> Tensor:
    """Scale of each expanded column; of scales that differ between members, the mean."""
    scale: Any = columns.column_scale
    if scale is None or not len(scale):
        return columns.expansion.like.new_ones(columns.expansion.n_outputs)
    mean: Tensor = scale.reshape(-1, scale.shape[-1])[:, : columns.expansion.n_outputs].mean(0)
    return mean


def distances(places: Tensor, others: Tensor, steps: Tensor) -> Tensor:
    """City-block distances (n, q) of rows (n, f) from others (q, f), of which c are levels."""
    n = places.shape[1] - len(steps)
    if is_exporting():  # ONNX has no such distances
        levels = (places[:, None, n:] != others[:, n:]).to(steps.dtype) * steps
        return (places[:, None, :n] - others[:, :n]).abs().sum(2) + levels.sum(2)
    apart = torch.cdist(places[:, :n], others[:, :n], p=1)
    for column, step in enumerate(steps, n):
        apart = apart + step * (places[:, column, None] != others[:, column].contiguous())
    return apart
