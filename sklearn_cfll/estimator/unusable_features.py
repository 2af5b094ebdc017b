"""Features that a backbone of the user's own gives and training cannot use: what to say."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..training.batches import BatchIterator, RowsDataset, fetches_by_own_code
from .checks import Parts

__all__ = ["unusable_features", "warn_of_equal_features"]

ROWS_LOOKED_AT = 256
STANDARDISE = (
    "Standardise X: make_pipeline(StandardScaler(), ...), both of scikit-learn, in front of the "
    "estimator"
)


def warn_of_equal_features(net: Any, rows: RowsDataset) -> None:
    """Warn where an untrained backbone gives all rows the same features, up to rounding.

    Of inputs of 1e-20 a bias of 0.1 leaves nothing, and the fit would predict the mean.
    """
    if fetches_by_own_code(BatchIterator(rows, 1)):
        return
    some = rows.subset(torch.arange(0, len(rows), -(-len(rows) // ROWS_LOOKED_AT)))
    inputs = some.X
    if not isinstance(inputs, Tensor) or bool((inputs == inputs[:1]).all()):
        return
    features = net.features(some).flatten(0, -2)
    width, size = features.amax(0) - features.amin(0), features.abs().amax(0)
    lost = width <= 10 * torch.finfo(features.dtype).eps * size
    if not bool((lost & size.isfinite()).all()):
        return
    warnings.warn(
        "The backbone gives the same features for all rows before training: what X holds is lost "
        f"in it. The network sees X as it is, up to {_largest(inputs)}. {STANDARDISE}, or give the "
        "network other initial weights.",
        UserWarning,
        stacklevel=5,
    )


def unusable_features(net: Any, parts: Parts) -> str | None:
    """What is wrong with the features of an untrained net; None where nothing is."""
    for name, rows in (("X", parts.rows), ("X_val", parts.valid)):
        said = None if rows is None else _first_bad_row(net, rows, name)
        if said is not None:
            return said
    return None


def _first_bad_row(net: Any, rows: RowsDataset, name: str) -> str | None:
    start = 0
    for features in net.iterate_features(rows):
        size = features.flatten(1).abs().amax(1)
        limit = torch.finfo(size.dtype).max ** 0.5 / 100  # squares, and sums of them, are held
        bad = (~(size <= limit)).nonzero().flatten()  # NaN compares false
        if len(bad):
            first = int(bad[0])
            inputs = rows.batch(slice(start + first, start + first + 1)).inputs
            return _say(inputs, size[first], _name(rows, start + first, name))
        start += len(size)
    return None


def _say(inputs: Any, size: Tensor, where: str) -> str:
    parts = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
    if not all(bool(torch.isfinite(part.double()).all()) for part in parts):
        return f"NaN or infinity in {where}. Leave such rows out or impute them."
    holds = "" if isinstance(inputs, dict) else f" The row goes up to {_largest(inputs)}."
    if bool(torch.isfinite(size)):
        dtype = str(size.dtype).removeprefix("torch.")
        return (
            f"The backbone's features of {where} go up to {float(size):g} before training, too "
            f'large to square in {dtype}.{holds} {STANDARDISE}, or use "auto" or "float64" as '
            "`precision`."
        )
    return (
        f"The backbone's features of {where} are not finite before training, so a lower "
        f"`learning_rate` does not help.{holds} Look at what the network computes of it (a "
        "logarithm, a division, an overflow)."
    )


def _largest(inputs: Tensor) -> str:
    size = inputs.double().abs()
    if size.ndim != 2:
        return f"{float(size.max()):g}"
    return f"{float(size.max()):g} in column {int(size.amax(0).argmax())}"


def _name(rows: RowsDataset, position: int, name: str) -> str:
    """A row as the user counts: rows of weight zero were left out of the data set."""
    indices = getattr(rows.inputs, "indices", None)
    return f"row {position if indices is None else int(indices[position])} of `{name}`"
