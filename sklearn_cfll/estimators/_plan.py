"""Plan: what a first fit settles, and every later call goes by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor

from ..backbones.fno import FNOBackbone
from ..backbones.recipe import build_backbone, input_shape_of, rebuild_backbone
from ..backbones.splitting import Backbone
from ..training.batches import Rows, RowsDataset, as_rows, from_numpy
from ..training.seeding import preserved_random_state
from ._data import Checked
from ._inputs import integers_fit
from ._targets import TargetLayout, TargetScale

__all__ = ["Plan"]


@dataclass
class Plan:
    """Backbone, target layout and scale, device and precision of one fitted model.

    Attributes
    ----------
    recipe : recipe, torch.nn.Module or callable
        What the backbone was built from, and is rebuilt from.
    sample_shape : tuple of int, or dict of them
        Shape of one input; of each for named ones.
    seed : int
    device : torch.device
    dtype : torch.dtype
    mean_weight : float
        Mean sample weight at fit: rows added later are weighed on its scale.
    backbone : Backbone
    layout : TargetLayout
    scale : TargetScale
    """

    recipe: Any
    sample_shape: Any
    seed: int
    device: torch.device
    dtype: torch.dtype
    mean_weight: float = 1.0
    backbone: Backbone = field(init=False)
    layout: TargetLayout = field(init=False)
    scale: TargetScale = field(init=False)

    @classmethod
    def make(
        cls,
        recipe: Any,
        checked: Checked,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        mean_weight: float,
    ) -> Plan:
        """Build the backbone and see what it makes of the data; ``scale`` is set by the caller."""
        if isinstance(recipe, BaseEstimator):
            recipe = clone(recipe)
        sample = as_rows(checked.X, device, None, lazy=True).take(slice(0, 2))
        if len(checked.y) == 1:  # batch normalisation and the like want two rows
            sample = _twice(sample)
        plan = cls(recipe, input_shape_of(sample), seed, device, dtype, mean_weight)
        y_shape = checked.y.shape
        n_outputs = None if len(y_shape) > 2 else (*y_shape, 1)[1]
        with preserved_random_state(device, seed):
            exact = integers_fit(checked.X, dtype)
            plan.backbone = build_backbone(recipe, sample, dtype, n_outputs, exact=exact)
        backbone = plan.backbone
        try:
            plan.layout = TargetLayout.infer(
                y_shape, backbone.feature_shape, backbone.channels_first
            )
        except ValueError as error:
            if isinstance(recipe, FNOBackbone):
                raise ValueError(
                    f"{error} Samples of X have shape {plan.sample_shape}, and `channels`="
                    f"{recipe.channels!r} of FNOBackbone says which of their axes holds channels."
                ) from error
            raise
        return plan

    def rebuild(self) -> None:
        """Fresh modules in place of those that were not kept with the plan."""
        dtypes, shape = self.backbone.input_dtype, self.sample_shape

        def zeros(shape: Any, dtype: torch.dtype) -> Tensor:
            return torch.zeros(2, *shape, device=self.device, dtype=dtype)

        sample: Any
        if isinstance(dtypes, dict):
            sample = {name: zeros(shape[name], dtype) for name, dtype in dtypes.items()}
        else:
            sample = zeros(shape, dtypes)
        with preserved_random_state(self.device, self.seed):
            self.backbone = rebuild_backbone(self.recipe, sample, self.dtype, self.backbone)

    def rows(self, X: Any, lazy: bool) -> Rows:
        return as_rows(X, self.device, self.backbone.input_dtype, lazy)

    def dataset(self, checked: Checked, *, as_added: bool = False) -> RowsDataset:
        """Checked rows on the device, targets in the scale of training.

        Weights average one; those of rows ``as_added`` to the ones of the fit count on the
        same scale as theirs.
        """
        self.layout.check(checked.y.shape, len(self.backbone.feature_shape) - 1)
        rows = self.layout.to_rows(checked.y)
        inputs = self.rows(checked.X, checked.lazy)
        data = RowsDataset(inputs)
        if checked.rows is not None:
            data = data.subset(checked.rows)
        data.targets = self.tensor(self.scale.transform(rows))
        weights, relative = checked.sample_weight, checked.mean_weight / self.mean_weight
        if as_added and relative != 1.0:
            weights = relative * (np.ones(len(rows)) if weights is None else weights)
        data.sample_weight = None if weights is None else self.tensor(weights)
        return data

    def tensor(self, array: np.ndarray) -> Tensor:
        return from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    def unscale(self, rows: np.ndarray) -> np.ndarray:
        """Outputs (n, positions..., k) of the net in y's units."""
        return rows * self.scale.scale.astype(rows.dtype) + self.scale.mean.astype(rows.dtype)

    def unscale_variance(self, variance: Tensor) -> np.ndarray:
        """Variances (k,) of the net's outputs in y's units."""
        return np.asarray(variance.double().cpu().numpy() * self.scale.scale**2)


def _twice(sample: Any) -> Any:
    """Two of a single row."""
    if isinstance(sample, dict):
        return {name: _twice(part) for name, part in sample.items()}
    return sample.repeat(2, *[1] * (sample.ndim - 1))
