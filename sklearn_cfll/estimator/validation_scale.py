"""Whether held-out rows of the user's own are on the scale of the training rows."""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from torch import Tensor

from ..columns.bins import quantiles
from ..training.batches import RowsDataset, spread_rows
from .targets import TargetScale

__all__ = ["warn_of_other_scale", "warn_of_useless_validation"]

# Ranges from the 5% to the 95% quantile: as far as the medians may be apart. About 16 deviations
# of a normal distribution, beyond what a drift or a split by time does.
APART = 5.0
# Times as wide, or as narrow; of fewer rows the width says little.
WIDER, ENOUGH_ROWS = 10.0, 20
# Of most columns together less is enough: a unit square beside its standardised columns.
MOST_WIDER = 3.0
# Times the median error of the training targets' mean, in the best epoch. Medians: of pure noise
# with a heavy tail a mean square is worth nothing.
USELESS, EPOCHS = 5.0, 5

PIPELINE = (
    "Steps before an estimator in a pipeline do not transform it: use Pipeline(..., "
    'transform_input=["X_val"]) with metadata routing (see the user guide), or transform it first.'
)
TARGETS = "TransformedTargetRegressor does not transform it: give it in the units that y has here."


def warn_of_other_scale(train: RowsDataset, valid: RowsDataset, scale: TargetScale | None) -> None:
    """Warn where a column of the held-out rows lies far from the training rows', or is far wider.

    Parameters
    ----------
    train, valid : RowsDataset
    scale : TargetScale or None
        Look at the targets too, in their own units (not at indicators of classes).
    """
    known, given = _rows(train), _rows(valid)
    # Fields may come on another grid.
    if known is not None and given is not None and known.shape[1] == given.shape[1]:
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
    """Warn where the first of so many epochs is kept and is worse than the targets' mean.

    Parameters
    ----------
    predictions : Tensor of shape (n, ..., k)
        Of the held-out rows, with what the first epoch left.
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
            f"error there is {float(error / baseline):.3g} times that of the mean of y: what is "
            f"learnt of X does not hold for `X_val`. Are its rows transformed as those of X? "
            f"{PIPELINE}",
            UserWarning,
            stacklevel=3,
        )


def _rows(dataset: RowsDataset) -> Tensor | None:
    """Columns of the inputs; all numbers of an image or a field are one. None of named inputs."""
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
    width = np.where(width > 0, width, span)  # of a column that is mostly one value
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
            f"`{name}` is on another scale than `{other}`: column {column} has its middle nine "
            f"tenths between {found_low[column]:.4g} and {found_high[column]:.4g}, in training "
            f"between {low[column]:.4g} and {high[column]:.4g}. {remedy}",
            UserWarning,
            stacklevel=4,
        )
