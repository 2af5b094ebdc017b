"""Uneven columns spread out: their quantiles mapped to those of a normal distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from .bins import quantiles
from .scaling import RobustStandardize

__all__ = ["SpreadStandardize", "score_tables"]

PARTS = 128
PLACES = [round(PARTS * share) for share in (0.05, 0.25, 0.75, 0.95)]
# The middle half of a column over its middle nine tenths: 0.40 where it is normal, 0.37
# exponential, 0.29 lognormal of deviation one. Columns below this are uneven: most of their values
# are next to each other once standardised (benchmarks/classifier_defaults.py).
UNEVEN = 0.3
SHARES = np.pad(np.ones(PARTS - 1), 1, constant_values=0.5)  # of the rows, by the trapezoidal rule
FARTHEST = 3.0  # scores, in standard deviations, of the smallest and the largest value


def score_tables(
    rows: Tensor, sample_weight: Tensor | None, uneven: float = UNEVEN
) -> list[np.ndarray | None]:
    """Values and normal scores of each uneven column; None for the others.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
    sample_weight : Tensor of shape (n,), or None
        A weight means a number of repetitions.
    uneven : float, default=0.3
        Columns whose interquartile range over that of the middle nine tenths is below this.

    Returns
    -------
    list of p ndarray of shape (2, at most 129), or None
        Quantiles of the column, increasing, and their scores, standardised: what many rows share
        is one value, its score that of the middle of their ranks.
    """
    tables: list[np.ndarray | None] = []
    for levels in quantiles(rows, sample_weight, PARTS).numpy():
        low, first, third, high = levels[PLACES]
        values, place, count = np.unique(levels, return_inverse=True, return_counts=True)
        even = third - first >= uneven * (high - low) if high > low else len(values) == 1
        if even or len(values) < 3:  # of two values every map is linear
            tables.append(None)
            continue
        ranks = (count.cumsum() - (count + 1) / 2) / PARTS
        scores = norm.ppf(ranks).clip(-FARTHEST, FARTHEST)
        mean = np.average(scores[place], weights=SHARES)
        variance = np.average((scores[place] - mean) ** 2, weights=SHARES)
        scores = (scores - mean) / np.sqrt(variance)
        tables.append(np.stack([values, scores]))
    return tables


class SpreadStandardize(RobustStandardize):
    """Standardise columns; of uneven ones give the normal scores, interpolated, in their place.

    Beyond the smallest and largest value of the training rows scores stay what they are there.

    Parameters
    ----------
    tables : list of p (ndarray of shape (2, q), or None)
        See :func:`score_tables`. With none at all columns are standardised as they are.
    """

    exact: ClassVar[tuple[str, ...]] = ("mean", "scale", "values", "scores")
    columns: Tensor
    values: Tensor
    scores: Tensor
    last: Tensor

    def __init__(self, tables: Sequence[Any]) -> None:
        super().__init__(len(tables))
        self.set_tables(tables)

    def set_tables(self, tables: Sequence[Any]) -> None:
        """Take these tables in place of those there are."""
        uneven = [i for i, table in enumerate(tables) if table is not None]
        chosen = [np.asarray(tables[i], dtype=np.float64) for i in uneven]
        width = max((table.shape[1] for table in chosen), default=0)
        # Of different lengths: each filled up with its own last value and score.
        filled = [np.pad(t, ((0, 0), (0, width - t.shape[1])), mode="edge") for t in chosen]
        both = np.stack(filled, axis=1) if filled else np.empty((2, 0, 0))
        values, scores = torch.from_numpy(both).to(self.mean.device)
        last = np.array([t.shape[1] - 1 for t in chosen], dtype=np.int64)
        self.register_buffer("columns", torch.tensor(uneven, dtype=torch.int64).to(values.device))
        self.register_buffer("values", values.contiguous())
        self.register_buffer("scores", scores.contiguous())
        self.register_buffer("last", torch.from_numpy(last)[:, None].to(values.device))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in ("columns", "values", "scores", "last"):  # as many as what is loaded holds
            if prefix + name in state_dict:
                value = state_dict[prefix + name]
                setattr(self, name, torch.empty_like(value, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, inputs: Tensor) -> Tensor:
        if not len(self.columns):
            return super().forward(inputs)
        passed, width, score, rise = self._segments(inputs)
        spread = score + rise * passed / width
        scaled = super().forward(inputs)
        return scaled.index_copy(1, self.columns, spread.T.to(scaled))

    def unit(self, inputs: Tensor) -> Tensor:
        if not len(self.columns):
            return super().unit(inputs)
        _, width, _, rise = self._segments(inputs)
        unit = super().unit(inputs)
        return unit.index_copy(1, self.columns, (width / rise).T.to(unit))

    def _segments(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """How far into which piece of its table each value lies; all of shape (columns, n)."""
        values, scores = self.values, self.scores
        wanted = inputs.index_select(1, self.columns).T.to(values).contiguous()
        wanted = wanted.clamp(values[:, :1], values[:, -1:])
        upper = torch.searchsorted(values, wanted, right=True).clamp_min(1).minimum(self.last)
        lower = upper - 1
        left, score = values.gather(1, lower), scores.gather(1, lower)
        # Where float64 is not to be had (MPS) values that differ in it only are one.
        width = (values.gather(1, upper) - left).clamp_min(torch.finfo(values.dtype).tiny)
        return wanted - left, width, score, scores.gather(1, upper) - score
