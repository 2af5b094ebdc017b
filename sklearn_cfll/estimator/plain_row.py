"""A plain row that is added to a fitted model: one to which no check would object.

A thousand rows that are added one by one take most of their time in checks of any number of rows in
any container. Here they are the few that apply; any other row goes through all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..columns.rows import as_rows
from ..columns.scaling import LIMIT
from ..training.batches import RowsDataset
from .arrays import SMALLEST, few_numbers
from .wild_targets import GAP

__all__ = ["plain_row"]


def plain_row(estimator: Any, X: Any, y: Any, sample_weight: Any) -> RowsDataset | None:
    """The row as the network takes it, or None if it has to be checked and converted as others.

    It is an array of finite numbers without names or weight, near the columns and the targets of
    the fit.
    """
    plan, network = estimator._model.plan, estimator._model.plan.network
    if not (few_numbers(X, 2) and few_numbers(y, 1) and len(X) == len(y) == 1):
        return None
    if sample_weight is not None or "feature_names_in_" in vars(estimator):
        return None
    numbers = network.columns is not None and not len(network.columns.expansion.share)
    numbers = numbers and plan.reader is None and network.device.type == "cpu"
    if not numbers or X.shape[1:] != network.sample_shape or plan.layout.own_shape:
        return None
    if network.on_fields or plan.mean_weight != 1.0 or not plan.parameters.get("normalize_y"):
        return None
    first, sizes = network.scales[0], np.abs(X[0])
    far = np.abs(X[0] - first.mean.numpy()) > LIMIT * first.scale.numpy()
    target = plan.scale.transform(y[:, None].astype(np.float64))
    if (far | ((sizes < SMALLEST) & (sizes > 0))).any() or not abs(target.item()) < GAP / 2:
        return None
    dtype = network.dtype if X.dtype == np.float32 else torch.float64
    return RowsDataset(as_rows(X, "cpu", dtype), plan.tensor(target))
