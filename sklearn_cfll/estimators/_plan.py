"""Plan: what a first fit settles, and every later call goes by."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from ..backbones.products import product_size
from ..backbones.recipe import build_backbone, rebuild_backbone, takes_generator
from ..backbones.splitting import Backbone
from ..training.batches import Rows, RowsDataset, as_rows, from_numpy
from ..training.seeding import LentStream, draws_globally, own_generator
from ._data import Checked
from ._targets import TargetLayout, TargetScale

__all__ = ["Plan"]


@dataclass
class Plan:
    """Backbone, target layout and scale, device and precision of one fitted model.

    Attributes
    ----------
    recipe : recipe, torch.nn.Module or callable
        What the backbone was built from; with ``backbone_kwargs`` it rebuilds the modules.
    sample_shape : tuple of int
        Shape of one input.
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
    backbone_kwargs: dict[str, Any] | None
    sample_shape: tuple[int, ...]
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
        backbone_kwargs: dict[str, Any] | None,
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
        inputs = as_rows(checked.X, device, dtype, checked.lazy)
        shape = tuple(inputs.shape[1:])
        plan = cls(recipe, backbone_kwargs, shape, seed, device, dtype, mean_weight)
        sample = inputs.take(slice(0, 2))
        if len(sample) == 1:  # batch normalisation and the like want two rows
            sample = sample.repeat(2, *[1] * (sample.ndim - 1))
        with plan._random_numbers() as generator:
            plan.backbone = build_backbone(recipe, backbone_kwargs, sample, generator)
        plan.layout = TargetLayout.infer(
            checked.y.shape, plan.backbone.feature_shape, plan.backbone.channels_first
        )
        return plan

    def rebuild(self) -> None:
        """Fresh modules in place of those that were not kept with the plan."""
        with self._random_numbers() as generator:
            self.backbone = rebuild_backbone(
                self.recipe, self.backbone_kwargs, self._blank, self.backbone, generator
            )

    @property
    def _blank(self) -> Tensor:
        """Two rows of zeros."""
        return torch.zeros(2, *self.sample_shape, device=self.device, dtype=self.dtype)

    @functools.cached_property
    def product_size(self) -> float:
        """Multiply-adds for one row of the network's products: what threads are worth it by."""
        with self._random_numbers():
            return product_size(self.backbone.module, self._blank)

    def _random_numbers(self) -> contextlib.AbstractContextManager[torch.Generator | None]:
        """What initial weights are drawn from: torch's global generators only where we must."""
        recipe = self.recipe
        fixed = isinstance(recipe, nn.Module) and not draws_globally(recipe)
        if fixed or takes_generator(recipe):
            return contextlib.nullcontext(own_generator("cpu", self.seed))
        return LentStream(self.device, self.seed).lent()

    def rows(self, X: Any, lazy: bool) -> Rows:
        return as_rows(X, self.device, self.dtype, lazy)

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
