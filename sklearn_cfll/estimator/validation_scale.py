"""Checks that a given validation set is on the scale of the training set."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from .._warnings import user_level
from ..columns.statistics import quantiles, spread_rows
from ..training.batches import RowsDataset
from .targets import TargetScale

__all__ = ["warn_of_other_scale", "warn_of_useless_validation"]

# Largest distance of the medians, in multiples of the 5-95% range. It is about 16 standard
# deviations of a normal distribution, more than a drift or a split by time causes.
APART = 5.0
# Largest ratio of the widths, and the number of rows that it needs to be reliable.
WIDER, ENOUGH_ROWS = 10.0, 20
# A smaller ratio suffices if most columns exceed it, as for a unit square that was standardised in
# one set only.
MOST_WIDER = 3.0
# Largest ratio of the median error in the best epoch to that of the mean of the training targets.
# Medians, because a mean square is unreliable for pure noise with a heavy tail.
USELESS, EPOCHS = 5.0, 5

PIPELINE = (
    "Earlier steps of a pipeline do not transform it: use Pipeline(..., "
    'transform_input=["X_val"]) with metadata routing (see the user guide), or transform it first.'
)
TARGETS = "TransformedTargetRegressor does not transform it: pass it in units of the transformed y."


def warn_of_other_scale(
    train: RowsDataset, valid: RowsDataset, scale: TargetScale | None, n_numbers: int | None = None
) -> None:
    """Warn if a column of the validation set is far from that of the training set, or far wider.

    Parameters
    ----------
    train, valid : RowsDataset
    scale : TargetScale or None
        Scale of the targets, to compare them too, in their own units. None for class indicators.
    n_numbers : int or None
        Number of columns to compare, before indicators of categories; None for all.
    """
    known, given = _rows(train), _rows(valid)
    # Fields may be on another grid.
    if known is not None and given is not None and known.shape[1] == given.shape[1]:
        known, given = known[:, :n_numbers], given[:, :n_numbers]
    if known is not None and given is not None and known.shape[1] == given.shape[1] > 0:
        _compare("X_val", "X", known, given, PIPELINE)
    if scale is not None:
        known, given = (
            torch.from_numpy(scale.inverse(part.targets.flatten(0, -2).cpu().double().numpy()))  # type: ignore[union-attr]
            for part in (train, valid)
        )
        _compare("y_val", "y", known, given, TARGETS)


def warn_of_useless_validation(
    predictions: Tensor, n_epochs: int, train: RowsDataset, valid: RowsDataset
) -> None:
    """Warn if the first epoch is kept and is worse than the mean of the targets.

    Parameters
    ----------
    predictions : Tensor of shape (n, ..., k)
        Predictions of the validation set after the first epoch.
    n_epochs : int
    train, valid : RowsDataset
    """
    assert train.targets is not None and valid.targets is not None
    mean = train.targets.mean(tuple(range(train.targets.ndim - 1)))
    error = (valid.targets - predictions.to(valid.targets)).abs().median()
    baseline = (valid.targets - mean).abs().median()
    if n_epochs >= EPOCHS and error > USELESS * baseline:
        warnings.warn(
            f"Of {n_epochs} epochs the first was the best on `X_val` and `y_val`, and its median "
            f"error there is {float(error / baseline):.3g} times that of the mean of y: the model "
            f"does not generalise to `X_val`. Check that it was transformed like X. {PIPELINE}",
            UserWarning,
            stacklevel=user_level(),
        )


def _rows(dataset: RowsDataset) -> Tensor | None:
    """Columns of the inputs; an image or a field is one column. None for named inputs."""
    shape = dataset.inputs.shape
    taken = dataset.inputs.take(spread_rows(shape[0], math.prod(shape[1:])))
    if not isinstance(taken, Tensor):
        return None
    rows = taken.cpu()
    return rows if rows.ndim == 2 else rows.reshape(-1, 1)


def _compare(name: str, other: str, known: Tensor, given: Tensor, remedy: str) -> None:
    low, middle, high = quantiles(known, None, 20)[:, [1, 10, 19]].T.numpy()
    width = high - low
    span = (known.amax(0) - known.amin(0)).double().numpy()
    width = np.where(width > 0, width, span)  # for columns of mostly one value
    found_low, found, found_high = quantiles(given, None, 20)[:, [1, 10, 19]].T.numpy()
    ratio = np.divide(found_high - found_low, high - low, out=np.ones(len(low)), where=high > low)
    apart = np.abs(found - middle) > APART * width
    apart &= width > 0
    wide = (ratio > WIDER) & (len(given) >= ENOUGH_ROWS)
    unlike = (ratio > MOST_WIDER) | (ratio < 1 / MOST_WIDER)
    if unlike.mean() > 0.5 and len(given) >= ENOUGH_ROWS:
        wide |= unlike
    for column in np.flatnonzero(apart | wide)[:1]:
        warnings.warn(
            f"`{name}` is on another scale than `{other}`: the 5-95% range of column "
            f"{column} is {found_low[column]:.4g} to {found_high[column]:.4g}, in training "
            f"{low[column]:.4g} to {high[column]:.4g}. {remedy}",
            UserWarning,
            stacklevel=user_level(),
        )
