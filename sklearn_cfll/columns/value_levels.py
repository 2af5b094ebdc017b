"""Numbers whose values are names: the number of a shop, a postal code."""

from __future__ import annotations

import numpy as np
import torch

from .bins import MAX_BINS, PiecewiseLinear
from .rows import as_rows
from .target_means import few_targets, is_shared, out_of_fold_means

__all__ = ["MOST_ROWS", "are_names", "level_codes", "may_be_names"]

# Fewer rows per value than this, on average, hardly tell values apart.
ROWS_PER_VALUE = 2.0
# Rows that are looked at; evenly spread if there are more.
MOST_ROWS = 50_000
FEWEST = 3  # values; two are a line
# Values are names if their mean targets explain this share of what a smooth function leaves, for
# rows outside the folds that gave the means, and so many standard errors of it.
LEAST_SHARE, ERRORS = 0.02, 4.0
MOST_TARGETS = 10  # random sums stand for more of them


def level_codes(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Place of each value (n,) among increasing levels; -1 for other values, NaN for gaps."""
    place = np.searchsorted(levels, values).clip(max=len(levels) - 1)
    codes = np.where(levels[place] == values, place.astype(np.float64), -1.0)
    return np.where(np.isnan(values), np.nan, codes)


def may_be_names(rows: np.ndarray) -> np.ndarray:
    """Whether each column of some rows (n, p) holds at least three integers and no other number."""
    values = rows.astype(np.float64)
    known = ~np.isnan(values)
    whole = ((values == np.floor(values)) | ~known).all(0)
    found = [
        bool(each) and len(np.unique(column[seen])) >= FEWEST
        for each, column, seen in zip(whole, values.T, known.T, strict=True)
    ]
    return np.array(found, dtype=bool)


def are_names(
    values: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray,
    folds: np.ndarray,
    groups: np.ndarray | None = None,
    n_columns: int = 1,
) -> bool:
    """Whether the values of a column of integers say more of the targets than their order does.

    A piecewise linear function of the column is fitted first, with the bins that a network sees.
    Then the mean of what it leaves is computed for each value, from rows outside the fold of a row.

    Parameters
    ----------
    values : ndarray of shape (n,)
        NaN is a gap.
    targets : ndarray of shape (n, k)
    weight : ndarray of shape (n,)
        A weight is a number of repetitions.
    folds : ndarray of shape (n,)
    groups : ndarray of shape (n,), optional
        Values that occur in one group alone say nothing of rows of other groups.
    n_columns : int, default=1
        Number of columns of the table: each of many has fewer bins.
    """
    known = np.flatnonzero(~np.isnan(values) & (weight > 0))
    values, targets, weight, folds = (each[known] for each in (values, targets, weight, folds))
    if not len(values) or not np.array_equal(values, np.floor(values)):
        return False
    levels, codes = np.unique(values, return_inverse=True)
    if len(levels) < FEWEST or weight.sum() < ROWS_PER_VALUE * len(levels):
        return False
    if not is_shared(codes.astype(np.float64), None if groups is None else groups[known]):
        return False
    targets, most_bins = _few(targets, weight), MAX_BINS // n_columns
    left = targets - _function(values, codes, targets, weight, most_bins)[codes]
    means = out_of_fold_means(codes.astype(np.float64), len(levels), left, weight, folds)
    gain = (left**2 - (left - means) ** 2).sum(1)
    total, mean = weight.sum(), float(weight @ gain) / weight.sum()
    error = np.sqrt(weight @ (gain - mean) ** 2) / total
    return bool(mean > ERRORS * error and mean > LEAST_SHARE * (weight @ left**2).sum() / total)


def _few(targets: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Standardised targets; ten random sums of them if there are more."""
    share = weight / weight.sum()
    centred = targets - share @ targets
    spread = np.sqrt(share @ centred**2)
    return few_targets(centred / np.where(spread > 0, spread, 1.0), MOST_TARGETS)


def _function(
    values: np.ndarray, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray, most_bins: int
) -> np.ndarray:
    """A piecewise linear function at each level of the values, fitted by least squares.

    Rows of a level count as one, with their mean target: the function is the same.
    """
    rows = torch.from_numpy(values)[:, None]
    bins = PiecewiseLinear(most=most_bins)
    bins.fit(as_rows(rows, "cpu", torch.float64), torch.from_numpy(weight))
    levels, total = np.unique(values), np.bincount(codes, weight)[:, None]
    sums = [np.bincount(codes, weight * column) for column in targets.T]
    of_bins = bins(torch.from_numpy(levels)[:, None]).double().numpy()
    line = (levels - levels.mean()) / levels.std()
    features, root = np.column_stack([np.ones(len(levels)), line, of_bins]), np.sqrt(total)
    fitted = np.linalg.lstsq(root * features, np.column_stack(sums) / root, rcond=1e-6)[0]
    found: np.ndarray = features @ fitted
    return found
