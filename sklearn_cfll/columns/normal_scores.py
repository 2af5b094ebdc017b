"""Normal scores: quantiles of uneven columns, mapped to those of a normal distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from .._compat import is_exporting
from .rows import Rows
from .scaling import RobustStandardize
from .statistics import quantiles, some_rows

__all__ = ["NormalScores", "score_tables"]

PARTS = 128
PLACES = [round(PARTS * share) for share in (0.05, 0.25, 0.75, 0.95)]
# Interquartile range of a column over its 5-95% range: 0.40 for a normal distribution, 0.37 for an
# exponential, 0.29 for a lognormal of deviation one. Columns below this are uneven: most of their
# values are close to each other after standardising (benchmarks/classifier_defaults.py).
UNEVEN = 0.3
SHARES = np.pad(np.ones(PARTS - 1), 1, constant_values=0.5)  # of the rows (trapezoidal rule)
FARTHEST = 3.0  # absolute score of the smallest and the largest value, in deviations


def score_tables(
    rows: Tensor, sample_weight: Tensor | None, uneven: float = UNEVEN
) -> list[np.ndarray | None]:
    """Values and normal scores of each uneven column; None for the others.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
    sample_weight : Tensor of shape (n,), or None
        A weight is a number of repetitions.
    uneven : float, default=0.3
        A column is uneven if its interquartile range over its 5-95% range is below this.

    Returns
    -------
    list of p ndarray of shape (2, at most 129), or None
        Increasing quantiles of the column and their standardised scores. A value that many rows
        share appears once, with the score of the middle of their ranks.
    """
    tables: list[np.ndarray | None] = []
    for levels in quantiles(rows, sample_weight, PARTS).nan_to_num().numpy():
        low, first, third, high = levels[PLACES]
        values, place, count = np.unique(levels, return_inverse=True, return_counts=True)
        even = third - first >= uneven * (high - low) if high > low else len(values) == 1
        if even or len(values) < 3:  # with two values every map is linear
            tables.append(None)
            continue
        ranks = (count.cumsum() - (count + 1) / 2) / PARTS
        scores = norm.ppf(ranks).clip(-FARTHEST, FARTHEST)
        mean = np.average(scores[place], weights=SHARES)
        variance = np.average((scores[place] - mean) ** 2, weights=SHARES)
        scores = (scores - mean) / np.sqrt(variance)
        tables.append(np.stack([values, scores]))
    return tables


class NormalScores(RobustStandardize):
    """Standardise columns; replace the values of uneven ones by interpolated normal scores.

    Beyond the smallest and largest value of the training rows, scores are constant.

    Parameters
    ----------
    n_features : int, default=0
        Number of columns, if it is known before the fit.
    uneven : float, default=0.3
        See :func:`score_tables`.
    """

    exact: ClassVar[tuple[str, ...]] = ("mean", "scale", "values", "scores")
    columns: Tensor
    values: Tensor
    scores: Tensor
    last: Tensor

    def __init__(self, n_features: int = 0, uneven: float = UNEVEN) -> None:
        super().__init__(n_features)
        self.uneven = uneven
        self.register_buffer("columns", torch.empty(0, dtype=torch.int64))
        self.register_buffer("last", torch.empty(0, 1, dtype=torch.int64))
        for name in ("values", "scores"):
            self.register_buffer(name, torch.empty(0, 0, dtype=torch.float64))

    def fit(self, rows: Rows, sample_weight: Tensor | None = None) -> None:
        """Standardise by these rows, and compute the scores of their uneven columns."""
        super().fit(rows, sample_weight)
        self.set_tables(score_tables(*some_rows(rows, sample_weight), self.uneven))

    def set_tables(self, tables: Sequence[Any]) -> None:
        """Set the values and scores of uneven columns; see :func:`score_tables`."""
        uneven = [i for i, table in enumerate(tables) if table is not None]
        chosen = [np.asarray(tables[i], dtype=np.float64) for i in uneven]
        width = max((table.shape[1] for table in chosen), default=0)
        # Tables have different lengths: each is padded with its last value and score.
        filled = [np.pad(t, ((0, 0), (0, width - t.shape[1])), mode="edge") for t in chosen]
        values, scores = np.stack(filled, axis=1) if filled else np.empty((2, 0, 0))
        last = np.array([t.shape[1] - 1 for t in chosen], dtype=np.int64)[:, None]
        self._set(columns=np.array(uneven, dtype=np.int64), values=values, scores=scores, last=last)

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
        """Offset, width, score and rise of the segment of each value; shape (columns, n)."""
        values, scores = self.values, self.scores
        wanted = inputs.index_select(1, self.columns).T.to(values).contiguous()
        wanted = wanted.clamp(values[:, :1], values[:, -1:])
        upper = _first_above(values, wanted).clamp_min(1).minimum(self.last)
        lower = upper - 1
        left, score = values.gather(1, lower), scores.gather(1, lower)
        # Without float64 (MPS), values that differ only in float64 are equal.
        width = (values.gather(1, upper) - left).clamp_min(torch.finfo(values.dtype).tiny)
        return wanted - left, width, score, scores.gather(1, upper) - score


def _first_above(values: Tensor, wanted: Tensor) -> Tensor:
    """Index (columns, n) of the first of increasing values (columns, v) above each wanted one."""
    if is_exporting():  # ONNX has no search
        return (values.unsqueeze(1) <= wanted.unsqueeze(2)).sum(2)
    return torch.searchsorted(values, wanted, right=True)
