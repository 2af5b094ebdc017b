"""Messages about features of a user-defined backbone that training cannot use."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .._warnings import user_level
from ..persistence import dtype_name
from ..training.batches import BatchIterator, RowsDataset, fetches_by_own_code

__all__ = ["unusable_features", "warn_of_equal_features"]

ROWS_LOOKED_AT = 256
STANDARDISE = (
    "Standardise X, for example with make_pipeline(StandardScaler(), estimator) of scikit-learn"
)


def warn_of_equal_features(net: Any, rows: RowsDataset) -> None:
    """Warn if an untrained backbone gives all rows the same features, up to rounding.

    For example, inputs of 1e-20 vanish beside a bias of 0.1, and the fit would predict the mean.
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
        "The backbone gives the same features for all rows before training, so the information "
        f"in X is lost. The network sees X unscaled, up to {_largest(inputs)}. {STANDARDISE}, or "
        "use other initial weights.",
        UserWarning,
        stacklevel=user_level(),
    )


def unusable_features(net: Any, parts: Any) -> str | None:
    """Message about unusable features of an untrained net; None if there are none."""
    for name, rows in (("X", parts.rows), ("X_val", parts.valid)):
        said = None if rows is None else _first_bad_row(net, rows, name)
        if said is not None:
            return said
    return None


def _first_bad_row(net: Any, rows: RowsDataset, name: str) -> str | None:
    start = 0
    for features in net.iterate_features(rows):
        size = features.flatten(1).abs().amax(1)
        limit = torch.finfo(size.dtype).max ** 0.5 / 100  # squares and their sums can be held
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
        return f"NaN or infinity in {where}. Drop such rows or impute the values."
    holds = "" if isinstance(inputs, dict) else f" The inputs of the row reach {_largest(inputs)}."
    if bool(torch.isfinite(size)):
        dtype = dtype_name(size.dtype)
        return (
            f"The backbone's features of {where} reach {float(size):g} before training, too "
            f'large to square in {dtype}.{holds} {STANDARDISE}, or use "auto" or "float64" as '
            "`precision`."
        )
    return (
        f"The backbone's features of {where} are not finite before training, so a lower "
        f"`learning_rate` does not help.{holds} Check the network for logarithms, divisions "
        "and overflows."
    )


def _largest(inputs: Tensor) -> str:
    size = inputs.double().abs()
    if size.ndim != 2:
        return f"{float(size.max()):g}"
    return f"{float(size.max()):g} in column {int(size.amax(0).argmax())}"


def _name(rows: RowsDataset, position: int, name: str) -> str:
    """Number of a row in the user's data, which include rows of weight zero."""
    indices = getattr(rows.inputs, "indices", None)
    return f"row {position if indices is None else int(indices[position])} of `{name}`"
