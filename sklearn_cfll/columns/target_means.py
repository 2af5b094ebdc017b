"""TargetMeans: the mean target of each level of a category that has many."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np

from .expansion import MOST_INDICATORS
from .importance import random_directions
from .statistics import occurrences

__all__ = ["MOST_TARGETS", "TargetMeans", "few_targets", "folds_of_rows", "is_shared"]
__all__ += ["level_checksums", "out_of_fold_means", "outnumber_indicators"]

# The most frequent levels, each of which can have an indicator; the last one is for all others.
MANY_LEVELS = MOST_INDICATORS - 1
# A category has the mean targets of its levels instead, if more than this share of the rows have
# another level.
LEFT_OUT = 0.1
# Each target is a number more for one column of the table. Random sums stand for more of them.
MOST_TARGETS = 32
N_FOLDS = 5


class TargetMeans(NamedTuple):
    """Mean targets of the levels of a category, each shrunk towards the mean of all rows.

    They are the best linear predictions of a model with one random effect per level: a mean of n
    rows has the weight ``n τ² / (n τ² + σ²)``, where τ² is the variance between levels and σ² that
    within them, estimated by analysis of variance.

    Attributes
    ----------
    means : ndarray of shape (n_levels + 2, k)
        The last row but one is that of gaps, which count as a level. The last row, for levels that
        were not seen at fit, is the mean of all rows, as that of gaps is if there were none.

    References
    ----------
    D. Micci-Barreca, "A preprocessing scheme for high-cardinality categorical attributes in
    classification and prediction problems", SIGKDD Explorations 3 (2001).
    """

    means: np.ndarray

    @classmethod
    def fit(
        cls, codes: np.ndarray, n_levels: int, targets: np.ndarray, weight: np.ndarray
    ) -> TargetMeans:
        """Means of rows with these codes (n,), NaN for gaps, and targets (n, k).

        Rows of levels that were not seen (-1) are left out.

        A weight is a number of repetitions.
        """
        known = ~(codes < 0)
        codes, targets, weight = codes[known], targets[known], weight[known]
        place = _places(codes, n_levels)
        total = weight.sum()
        mean = weight @ targets / total
        count = np.bincount(place, weight, n_levels + 2)
        sums = np.stack(
            [np.bincount(place, weight * column, n_levels + 2) for column in (targets - mean).T], 1
        )
        safe = np.maximum(count, np.finfo(float).tiny)[:, None]
        of_level = sums / safe
        seen = int((count > 0).sum())
        square = weight @ (targets - mean) ** 2
        between = (count[:, None] * of_level**2).sum(0)
        within = np.maximum(square - between, 0.0) / max(total - seen, 1.0)
        # Rows per level, as analysis of variance counts them for levels of different sizes.
        rows = (total - (count**2).sum() / total) / max(seen - 1, 1)
        excess = np.maximum(between / max(seen - 1, 1) - within, 0.0) / max(rows, 1.0)
        share = count[:, None] * excess
        known = share + within
        share = np.divide(share, known, out=np.zeros_like(share), where=known > 0)
        return cls(mean + share * of_level)

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """Means (n, k) of rows with these codes (n,)."""
        found: np.ndarray = self.means[_places(codes, len(self.means) - 2)]
        return found


def few_targets(targets: np.ndarray, most: int = MOST_TARGETS) -> np.ndarray:
    """The targets (n, k), or so many random sums of more of them."""
    if targets.shape[1] <= most:
        return targets
    found: np.ndarray = targets @ random_directions(targets.shape[1], most).double().numpy().T
    return found


def out_of_fold_means(
    codes: np.ndarray, n_levels: int, targets: np.ndarray, weight: np.ndarray, folds: np.ndarray
) -> np.ndarray:
    """Means (n, k) for the rows of the fit, each from rows outside its fold.

    With its own target in it, the mean of a small level would look as if it told everything.
    """
    found = np.empty((len(codes), targets.shape[1]))
    for fold in np.unique(folds):
        own, rest = folds == fold, folds != fold
        found[own] = TargetMeans.fit(codes[rest], n_levels, targets[rest], weight[rest])(codes[own])
    return found


def folds_of_rows(codes: np.ndarray, targets: np.ndarray, groups: Any = None) -> np.ndarray:
    """Fold of each row, from a checksum of what it holds; copies of a row are in folds by turns.

    If they shared a fold, rows of a level with one target would get their means from the rows of
    the level with other targets. Rows of a group share a fold.
    """
    if groups is not None:
        return np.unique(groups, return_inverse=True)[1] % N_FOLDS
    rows = np.ascontiguousarray(np.hstack([codes, targets]) + 0.0)  # -0.0 becomes 0.0
    found = np.array([zlib.crc32(row) for row in rows.view(np.uint8)])
    folds: np.ndarray = (found + occurrences(found)) % N_FOLDS
    return folds


def level_checksums(levels: tuple[Any, ...], codes: np.ndarray) -> np.ndarray:
    """A number for each row that depends on its level alone; below 0 for gaps and unknown ones."""
    found = [float(zlib.crc32(repr(level).encode("utf-8", "surrogatepass"))) for level in levels]
    of_level: np.ndarray = np.array([*found, -1.0, -2.0])[_places(codes, len(levels))]
    return of_level


def outnumber_indicators(codes: np.ndarray, n_levels: int, weight: np.ndarray) -> bool:
    """Whether more than a tenth of the rows have none of the 255 most frequent levels."""
    if n_levels <= MANY_LEVELS:
        return False
    known = ~np.isnan(codes)
    counts = np.bincount(codes[known].astype(np.int64), weight[known], n_levels)
    return bool(np.sort(counts)[:-MANY_LEVELS].sum() > LEFT_OUT * counts.sum())


def is_shared(codes: np.ndarray, groups: Any) -> bool:
    """Whether at least half of the rows have a level that occurs in several groups."""
    if groups is None:
        return True
    group = np.unique(groups, return_inverse=True)[1]
    pairs = np.unique(np.column_stack([codes, group]), axis=0)
    level, n_groups = np.unique(pairs[:, 0], return_counts=True)
    return bool(np.isin(codes, level[n_groups > 1]).mean() >= 0.5)


def _places(codes: np.ndarray, n_levels: int) -> np.ndarray:
    """Index of each level, of gaps after them, and of unknown levels after these."""
    unknown = np.where(codes < 0, n_levels + 1, codes)
    return np.where(np.isnan(codes), n_levels, unknown).astype(np.int64)
