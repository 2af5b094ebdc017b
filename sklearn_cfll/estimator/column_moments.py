"""Moments of a stream's columns, and warnings about rows that lie outside what was seen."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np

from .._warnings import user_level
from ..columns.bins import PiecewiseLinear
from ..columns.scaling import LIMIT, Standardize
from ..columns.statistics import input_statistics
from ..training.batches import RowsDataset
from .network import Network

__all__ = ["ColumnMoments", "total_weight", "warn_of_narrow_bins", "warn_of_other_columns"]

FEW = 64  # rows: looking at each number is then faster than computing moments


def total_weight(rows: RowsDataset) -> float:
    """Sum of the sample weights."""
    return float(len(rows) if rows.sample_weight is None else rows.sample_weight.double().sum())


class ColumnMoments(NamedTuple):
    """Weight, means and variances of the input columns of a stream so far."""

    total: float
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, rows: RowsDataset, n_columns: int | None = None) -> ColumnMoments:
        """Moments of the first columns, or of all."""
        mean, std = (
            part[:n_columns].cpu().numpy()
            for part in input_statistics(rows.inputs, rows.sample_weight)
        )
        return cls(total_weight(rows), mean, std**2)

    def merge(self, other: ColumnMoments) -> ColumnMoments:
        """Moments of both together (Chan, Golub, LeVeque 1979)."""
        total = self.total + other.total
        share = other.total / total
        gap = other.mean - self.mean
        variance = self.variance + share * (other.variance - self.variance)
        return ColumnMoments(
            total, self.mean + share * gap, variance + share * (1 - share) * gap**2
        )

    def share_kept(self, after: ColumnMoments) -> float:
        """Weight that earlier rows keep when the columns are scaled by ``after`` instead."""
        old, new = np.sqrt(self.variance), np.sqrt(after.variance)
        known = (old > 0) & (new > 0)  # constant columns do not count
        if not known.any():
            return 1.0
        shift = np.abs(after.mean - self.mean)[known] / new[known]
        stretch = np.abs(np.log(new[known] / old[known]))
        return float(np.exp(-np.max(shift + stretch)))


def warn_of_other_columns(network: Network, rows: RowsDataset) -> None:
    """Warn if new rows lie far outside the scale of the rows at fit."""
    for scale in network.scales[:1]:
        if _all_near(scale, network, rows):
            return
        found = ColumnMoments.of(rows, network.n_numbers)
        if scale.mean.shape != found.mean.shape:
            return  # channels of images and fields
        _warn_of_far_columns(scale, found)


def _all_near(scale: Standardize, network: Network, rows: RowsDataset) -> bool:
    """Whether all numbers of a few rows are near those at fit: their moments are so, too."""
    if len(rows) > FEW or network.n_numbers is None or network.device.type != "cpu":
        return False
    inputs = rows.inputs.take(slice(None))[:, : network.n_numbers].numpy()
    far = np.abs(inputs - scale.mean.numpy()) > LIMIT * scale.scale.numpy()
    return not far.any()


def _warn_of_far_columns(scale: Standardize, rows: ColumnMoments) -> None:
    mean, unit = (part.double().cpu().numpy() for part in (scale.mean, scale.scale))
    far = (np.abs(rows.mean - mean) > LIMIT * unit) | (np.sqrt(rows.variance) > LIMIT * unit)
    for column in np.flatnonzero(far)[:1]:
        warnings.warn(
            f"Column {column} of the new rows has mean {rows.mean[column]:.4g}; the model was "
            f"fitted with mean {mean[column]:.4g} and standard deviation {unit[column]:.4g}, which "
            "`partial_fit` keeps. Check the units of the rows. If they are the same, `fit` again "
            "on old and new rows together.",
            UserWarning,
            stacklevel=user_level(),
        )


def warn_of_narrow_bins(bins: PiecewiseLinear, before: ColumnMoments, after: ColumnMoments) -> None:
    """Warn if a stream leaves the range of the rows that determined its bins.

    The text is the same each time, so that Python's filters show it once.
    """
    center, width = (part.double().cpu().numpy() for part in (bins.center, bins.width))

    def outside(seen: ColumnMoments) -> np.ndarray:
        spread = np.sqrt(seen.variance)
        return (np.abs(seen.mean - center) > width) | (spread > width)

    for column in np.flatnonzero(outside(after) & ~outside(before))[:1]:
        warnings.warn(
            f"The first rows of `partial_fit` cover only part of the range of column {column}; "
            f"its bins span {width[column]:.4g} around {center[column]:.4g}, and many later rows "
            "lie outside, where part of each network gets no information. Start with shuffled "
            "rows, or use `columns`=ColumnEncoder(n_bins=0).",
            UserWarning,
            stacklevel=user_level(),
        )
