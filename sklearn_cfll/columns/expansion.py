"""Expansion: from the coded columns of a table to numbers without gaps, and indicators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .protocol import EncoderModule
from .rows import Rows
from .statistics import ENTRIES, quantiles, some_rows

__all__ = ["MOST_INDICATORS", "NUMBER", "Expansion", "Levels", "NumberRows"]

# Levels with fewer rows share one indicator; gaps of fewer rows have none. With ten rows, small
# tables lost levels that matter.
LEAST_ROWS = 3
# Most indicators of one column; the most frequent levels have their own.
MOST_INDICATORS = 256


class Levels(NamedTuple):
    """What a column of a table holds.

    Attributes
    ----------
    n_levels : int
        Number of levels of a category, whose codes are 0, 1, ...; 0 for a column of numbers.
    ordered : bool
        Whether the order of the levels means something.
    given : bool
        Whether levels may be in later rows only: none is then pooled because it is rare.
    source : int or None
        Column of the table that it was computed from, if it is not its own.
    is_used : bool
        False for codes from which other numbers have been computed in their place.
    """

    n_levels: int = 0
    ordered: bool = False
    given: bool = False
    source: int | None = None
    is_used: bool = True

    @property
    def is_number(self) -> bool:
        """Whether the column is a number; an ordered category is one, too."""
        return self.is_used and (self.ordered or not self.n_levels)


NUMBER = Levels()


class NumberRows:
    """The columns of numbers of coded rows, with their gaps (NaN)."""

    def __init__(self, rows: Rows, numbers: Tensor) -> None:
        self.rows, self.numbers = rows, numbers
        self.device, self.dtype, self.index_device = rows.device, rows.dtype, rows.index_device
        self.shape: tuple[int, ...] = (len(rows), len(numbers))

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, indices: Tensor | slice) -> Tensor:
        taken: Tensor = self.rows.take(indices)
        return taken.index_select(1, self.numbers.to(taken.device))


class Expansion(EncoderModule):
    """Numbers without gaps, an indicator of the gaps of each column, and indicators of levels.

    Coded rows hold one number per column of the table: a number, or the code of a level; NaN is a
    gap (a missing value), and the code -1 a level that was not seen at fit. In numbers a gap is
    replaced by the median of the column. Levels with fewer than three rows share one indicator with
    levels beyond the 255 most frequent ones. A level that was not seen counts as one of them, as a
    gap does if there were too few gaps at fit; if there is no such indicator, it is replaced by the
    mean of all levels. The codes of ordered categories are numbers too.

    Attributes
    ----------
    numbers : Tensor of shape (n_numbers,)
        Place of each number in coded rows.
    column : Tensor of shape (n_outputs,)
        Column of the table that each output comes from: numbers first, then indicators.
    share : Tensor of shape (n_indicators,)
        Share of the rows of the fit for which an indicator is one.
    """

    exact: ClassVar[tuple[str, ...]] = ("neutral", "share")
    numbers: Tensor
    neutral: Tensor
    column: Tensor
    share: Tensor
    coded: Tensor  # coded column that each indicator comes from
    gaps: Tensor  # columns of numbers that have an indicator of gaps
    categories: Tensor  # columns of categories
    first: Tensor  # place in `slot` of a category's unknown levels, which its levels follow
    slot: Tensor  # indicator of each level, counted from 0; -1 if it has none
    gap_slot: Tensor  # the same for a gap of each category

    def __init__(self) -> None:
        super().__init__()
        for name in self.exact:
            self.register_buffer(name, torch.empty(0, dtype=torch.float64))
        for name in ("numbers", "column", "coded", "gaps"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        for name in ("categories", "first", "slot", "gap_slot"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))

    @property
    def n_numbers(self) -> int:
        """Number of outputs that are numbers; the others are indicators."""
        return len(self.numbers)

    def fit(
        self,
        rows: Rows,
        sample_weight: Tensor | None = None,
        levels: Sequence[Levels] | None = None,
    ) -> None:
        """Find gaps and the frequencies of levels; all columns are numbers by default."""
        given = [NUMBER] * rows.shape[1] if levels is None else list(levels)
        numbers = [i for i, each in enumerate(given) if each.is_number]
        self._set(numbers=np.array(numbers, dtype=np.int64), neutral=np.empty(0))
        if numbers:
            some, weights = some_rows(NumberRows(rows, self.numbers), sample_weight)
            self._set(neutral=quantiles(some, weights, 2)[:, 1].nan_to_num())
        self._set_indicators(given, *_frequencies(rows, sample_weight, given))

    def _set_indicators(
        self, levels: list[Levels], gaps: np.ndarray, counts: list[np.ndarray], total: float
    ) -> None:
        """Choose the indicators from the weights of gaps (p,) and of each level of each column."""
        coded: list[int] = []
        share: list[float] = []

        def indicator(column: int, weight: float) -> int:
            coded.append(column)
            share.append(weight / total)
            return len(coded) - 1

        some = (gaps >= LEAST_ROWS) & (total - gaps >= LEAST_ROWS)
        with_gaps = [
            i for i, each in enumerate(levels) if each.is_used and not each.n_levels and some[i]
        ]
        for column in with_gaps:
            indicator(column, gaps[column])
        categories = [i for i, each in enumerate(levels) if each.n_levels]
        slots, gap_slots = [], []
        for column in categories:
            weight = counts[column]
            if levels[column].given:
                weight = np.maximum(weight, LEAST_ROWS)
            of_all = total / max(total, weight.sum() + gaps[column])  # shares sum to one
            slot = np.full(len(weight), -1)
            frequent = np.argsort(-weight, kind="stable")[: MOST_INDICATORS - 1]
            for level in np.sort(frequent[weight[frequent] >= LEAST_ROWS]):
                slot[level] = indicator(column, of_all * weight[level])
            gap_slot = indicator(column, of_all * gaps[column]) if some[column] else -1
            rare = weight[slot < 0].sum() + (gaps[column] if gap_slot < 0 else 0.0)
            pooled = indicator(column, of_all * rare) if rare > 0 else -1
            slot[slot < 0] = pooled
            gap_slot = pooled if gap_slot < 0 else gap_slot
            slots.append(np.append(pooled, slot))
            gap_slots.append(gap_slot)
        sizes = [len(slot) for slot in slots]
        self._set(
            column=np.array(sources_of(levels, [*self.numbers.tolist(), *coded]), dtype=np.int64),
            coded=np.array(coded, dtype=np.int64),
            share=np.array(share, dtype=np.float64),
            gaps=np.array(with_gaps, dtype=np.int64),
            categories=np.array(categories, dtype=np.int64),
            first=np.cumsum([0, *sizes[:-1]], dtype=np.int64)[: len(sizes)],
            slot=np.concatenate([np.empty(0, np.int64), *slots]),
            gap_slot=np.array(gap_slots, dtype=np.int64),
        )

    def check(self, levels: Sequence[Levels]) -> None:
        """Raise if the buffers do not fit together, or not coded rows that hold these levels."""
        n_levels = [each.n_levels for each in levels]
        p = sum(each.source is None for each in levels)
        sizes = [n + 1 for n in n_levels if n]
        n_gaps, n_shares = len(self.gaps), len(self.share)
        of_levels, places = self.coded[n_gaps:], [*self.numbers.tolist(), *self.coded.tolist()]
        fits = (
            len(self.neutral) == self.n_numbers
            and all(0 <= each < len(levels) for each in places)
            and self.column.tolist() == sources_of(levels, places)
            and torch.equal(self.coded[:n_gaps], self.gaps)
            and len(self.coded) == n_shares
            and self.categories.tolist() == [i for i, n in enumerate(n_levels) if n]
            and self.first.tolist() == np.cumsum([0, *sizes])[:-1].tolist()
            and len(self.slot) == sum(sizes)
            and len(self.gap_slot) == len(sizes)
            and all(
                bool(((each == -1) | ((each >= n_gaps) & (each < n_shares))).all())
                for each in (self.slot, self.gap_slot)
            )
            and bool(torch.isin(of_levels, self.categories).all())
            and bool((of_levels.diff() >= 0).all())
            and set(self.column.tolist()) == set(range(p))
            and bool(self.neutral.isfinite().all())
            and bool(((self.share >= 0) & (self.share <= 1)).all())
        )
        if not fits:
            raise ValueError("its buffers do not fit the columns of the table")

    def forward(self, rows: Tensor) -> Tensor:
        """Coded rows (n, p) as numbers and indicators (n, n_outputs), in the dtype of the rows."""
        rows = rows if rows.is_floating_point() else rows.to(self.like.dtype)
        device = rows.device
        numbers = rows.index_select(1, self.numbers.to(device))
        absent = numbers.isnan()
        if len(self.categories):  # of ordered ones, -1 is no number
            ordered = torch.isin(self.numbers, self.categories).to(device)
            absent = absent | (ordered & (numbers < 0))
        numbers = torch.where(absent, self.neutral.to(numbers), numbers)
        if not len(self.share):
            return numbers
        gaps = rows.index_select(1, self.gaps.to(device)).isnan().to(rows.dtype)
        return torch.cat([numbers, gaps, self._of_levels(rows)], 1)

    def _of_levels(self, rows: Tensor) -> Tensor:
        """Indicators of the levels of all categories."""
        device, n_gaps = rows.device, len(self.gaps)
        share = self.share[n_gaps:].to(rows)
        if not len(self.categories):
            return rows.new_empty(len(rows), 0)
        codes = rows.index_select(1, self.categories.to(device))
        gaps = codes.isnan()
        place = torch.where(gaps, 0.0, codes).long() + 1 + self.first.to(device)
        slot = torch.where(gaps, self.gap_slot.to(device), self.slot.to(device)[place])
        found = rows.new_zeros(len(rows), len(share) + 1)  # the last one takes what has no slot
        found.scatter_(1, torch.where(slot < 0, len(share), slot - n_gaps), 1.0)
        lacking = slot < 0
        if device.type == "cpu" and not lacking.any():  # a GPU would have to wait for the answer
            return found[:, :-1]
        owner = torch.searchsorted(self.categories, self.coded[n_gaps:]).to(device)
        return torch.where(lacking.index_select(1, owner), share, found[:, :-1])

    @property
    def n_coded(self) -> int:
        """Number of numbers and categories."""
        return self.n_numbers + len(self.categories)

    @property
    def owner(self) -> Tensor:
        """Whether each indicator is of a level of each category; (n_indicators, n_categories)."""
        owner = self.coded[:, None] == self.categories
        owner[: len(self.gaps)] = False
        return owner

    def levels(self, expanded: Tensor) -> Tensor:
        """Level (n, n_categories) of each category in expanded rows, from 1; 0 if it has none."""
        ones = expanded[:, self.n_numbers :] == 1
        place = self.owner.to(self.like.dtype)
        return ones.to(place.dtype) @ (place.cumsum(0) * place)

    @property
    def spread(self) -> Tensor:
        """Root of the summed variances of all indicators of a column; shape (n_indicators,).

        Divided by it, the indicators of a column vary together as much as a standardised number.
        """
        if not len(self.coded):
            return self.share
        variance = self.share * (1.0 - self.share)
        # Each coded column is a number or a category. Their largest index would not be traced.
        total = variance.new_zeros(self.n_numbers + len(self.categories))
        total = total.index_add(0, self.coded, variance)
        spread = total[self.coded].sqrt()
        return torch.where(spread > 0, spread, 1.0)

    def standardised(self, indicators: Tensor) -> Tensor:
        """Indicators, or the first of them, centred; those of a column vary like a number."""
        n = indicators.shape[1]
        return (indicators - self.share[:n]) / self.spread[:n]

    def centred(self, slopes: Tensor) -> Tensor:
        """Slopes (..., n_outputs) along levels less their mean over all levels of the column.

        The indicators of a category sum to one, so that their mean slope moves no prediction. What
        is left, times the deviations of the indicators, has the squared sum of the variance of the
        predictions over the levels.
        """
        n = self.n_numbers + len(self.gaps)
        if not len(self.categories):
            return slopes
        coded, share = self.coded[len(self.gaps) :], self.share[len(self.gaps) :].to(slopes)
        own = slopes[..., n:]
        shape = (*own.shape[:-1], int(coded.max()) + 1)
        mean = own.new_zeros(shape).index_add(-1, coded, own * share)[..., coded]
        alone = (1.0 - share).clamp_min(torch.finfo(share.dtype).tiny).sqrt()
        return torch.cat([slopes[..., :n], (own - mean) / alone], -1)

    def by_column(self, values: Tensor) -> Tensor:
        """Sums of values (..., n_outputs) over all that comes from a column; shape (..., p)."""
        shape = (*values.shape[:-1], int(self.column.max()) + 1)
        return values.new_zeros(shape).index_add(-1, self.column.to(values.device), values)


def sources_of(levels: Sequence[Levels], places: Sequence[int]) -> list[int]:
    """Column of the table that each of some coded columns comes from."""
    sources = [i if each.source is None else each.source for i, each in enumerate(levels)]
    return [sources[place] for place in places]


def _frequencies(
    rows: Rows, sample_weight: Tensor | None, levels: list[Levels]
) -> tuple[np.ndarray, list[np.ndarray], float]:
    """Weights of the gaps (p,) and of the levels of each column, and of all rows."""
    gaps, total = np.zeros(len(levels)), 0.0
    counts = [np.zeros(each.n_levels) for each in levels]
    for batch, weight in _batches(rows, sample_weight):
        absent = np.isnan(batch)
        total += float(weight.sum())
        gaps += weight @ absent
        for column, each in enumerate(levels):
            if each.n_levels:
                known = ~absent[:, column]
                codes = batch[known, column].astype(np.int64)
                counts[column] += np.bincount(codes, weight[known], each.n_levels)
    return gaps, counts, total


def _batches(rows: Rows, sample_weight: Tensor | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and weights as float64, some at a time."""
    size = max(1, ENTRIES // max(1, rows.shape[1]))
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        batch = rows.take(part).double().cpu().numpy()
        known = sample_weight is not None
        yield batch, sample_weight[part].double().cpu().numpy() if known else np.ones(len(batch))  # type: ignore[index]
