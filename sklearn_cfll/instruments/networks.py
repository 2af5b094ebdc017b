"""Construction of the nets of one fold from an instrumental estimator's backbone parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.mlp import MLPBackbone, SideBySide
from ..backbones.recipe import build_backbone
from ..estimator.network import builds_from_generator
from ..estimator.targets import TargetScale
from ..training.seeding import LentStream, own_generator
from .stages import InstrumentRows, Networks

__all__ = ["ROLES", "NetworkPlan", "input_scale", "is_own"]

# With more columns (flattened images) the treatment itself is not among its features.
RAW_COLUMNS = 100

ROLES = ("treatment_backbone", "instrument_backbone", "covariate_backbone")


def is_own(recipe: Any) -> bool:
    """Whether the backbone is user-defined: neither the default perceptron nor raw columns."""
    return recipe is not None and not (isinstance(recipe, str) and recipe == "identity")


def input_scale(
    rows: np.ndarray | None, sample_weight: np.ndarray | None, recipe: Any
) -> TargetScale | None:
    """Scale of the columns of one role's inputs; None if they are passed unscaled.

    Those of a user-defined network are, since it may expect certain units, and samples that are
    not rows of columns.
    """
    unscaled = is_own(recipe) and not isinstance(recipe, MLPBackbone)
    if rows is None or rows.ndim != 2 or unscaled:
        return None
    return TargetScale.fit(np.asarray(rows, dtype=np.float64), sample_weight)


class InstrumentNet(nn.Module):
    """Joint features of instruments and confounders, which are encoded and concatenated."""

    def __init__(self, encoders: list[nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.joint: nn.Module = nn.Identity()

    def forward(self, instrument: Tensor, confounder: Tensor | None = None) -> Tensor:
        parts = zip(self.encoders, (instrument, confounder), strict=False)
        return self.joint(torch.cat([encode(part) for encode, part in parts], dim=1))


@dataclass
class NetworkPlan:
    """Specification of the nets of a fold, which builds them at fit and after loading.

    Attributes
    ----------
    recipes : dict
        By role: None for a perceptron, "identity", or the user-defined backbone.
    hidden_sizes : dict
        Widths of the perceptrons, by role.
    activation : str
    shapes : dict
        By role, shape of one sample, or None if there are no such inputs.
    scales : dict of TargetScale
        By role, mean and deviation of each column; None if inputs are passed unscaled.
    n_first_stages : int
    device, dtype
    seed : int
    """

    recipes: dict[str, Any]
    hidden_sizes: dict[str, tuple[int, ...]]
    activation: str
    shapes: dict[str, tuple[int, ...] | None]
    scales: dict[str, TargetScale | None]
    n_first_stages: int
    device: torch.device
    dtype: torch.dtype
    seed: int
    names: dict[str, tuple[str, ...] | None]

    @property
    def n_raw(self) -> int:
        """Number of raw treatment columns among the features; 0 with a user-defined backbone."""
        recipe, shape = self.recipes["treatment_backbone"], self.shapes["treatment_backbone"]
        if is_own(recipe) or shape is None:
            return 0
        (n_columns,) = shape
        return 0 if recipe is None and n_columns > RAW_COLUMNS else n_columns

    def without_instruments(self) -> NetworkPlan:
        """Description of the same nets for direct regression."""
        shapes = self.shapes | {"instrument_backbone": None}
        return replace(self, shapes=shapes, n_first_stages=0)

    def rows(
        self,
        X: np.ndarray,
        Z: np.ndarray | None,
        C: np.ndarray | None,
        outcome: np.ndarray | None = None,
        sample_weight: np.ndarray | None = None,
    ) -> InstrumentRows:
        """Rows on the device, with standardised columns; the outcome is already scaled."""

        def tensor(values: Any, scale: TargetScale | None = None) -> Any:
            if values is None:
                return None
            values = np.asarray(values, dtype=np.float64)
            values = values if scale is None else scale.transform(values)
            return torch.as_tensor(values).to(self.device, self.dtype)

        treatment, instrument, confounder = (
            tensor(part, self.scales[role]) for role, part in zip(ROLES, (X, Z, C), strict=True)
        )
        weight = tensor(sample_weight)
        return InstrumentRows(treatment, instrument, confounder, tensor(outcome), weight)

    def build(self, generator: torch.Generator, stream: LentStream) -> Networks:
        """New nets, initialised from the generator, or by user code from the lent stream."""
        if all(builds_from_generator(each) for each in self.recipes.values() if is_own(each)):
            return self._build(generator)
        with stream.lent():
            return self._build(None)

    def template(self) -> Networks:
        """Nets with arbitrary weights; the global random state is not changed."""
        stream = LentStream(self.device, self.seed)
        return self.build(own_generator("cpu", self.seed), stream).eval()

    def _build(self, generator: torch.Generator | None) -> Networks:
        treatment = self._encoder("treatment_backbone", generator)
        if self.recipes["treatment_backbone"] is None and self.n_raw:
            treatment = SideBySide(nn.Identity(), treatment)
        confounder = None
        if self.shapes["covariate_backbone"] is not None:
            confounder = self._encoder("covariate_backbone", generator)
        instruments = [self._instrument_net(generator) for _ in range(self.n_first_stages)]
        return Networks(treatment, confounder, instruments, self.n_raw).to(self.device)

    def _instrument_net(self, generator: torch.Generator | None) -> nn.Module:
        """Encoders of the user's, and a perceptron on their outputs and the other columns."""
        recipe = self.recipes["instrument_backbone"]
        shapes = {role: shape for role in ROLES[1:] if (shape := self.shapes[role]) is not None}
        encoders = [
            self._encoder(role, generator) if is_own(self.recipes[role]) else nn.Identity()
            for role in shapes
        ]
        net = InstrumentNet(encoders).to(self.device)
        if recipe is None or (is_own(recipe) and len(shapes) == 2):
            rows = [torch.zeros(2, *shape, dtype=self.dtype) for shape in shapes.values()]
            with torch.no_grad():
                width = net.eval()(*(each.to(self.device) for each in rows)).shape[1]
            net.joint = self._perceptron("instrument_backbone", (width,), generator)
        return net

    def _encoder(self, role: str, generator: torch.Generator | None) -> nn.Module:
        recipe, shape = self.recipes[role], self.shapes[role]
        assert shape is not None
        if recipe is None:
            return self._perceptron(role, shape, generator)
        if not is_own(recipe):
            return nn.Identity()
        sample = torch.randn(2, *shape, generator=generator, dtype=torch.float32)
        sample = sample.to(self.device, self.dtype)
        backbone = build_backbone(recipe, sample, generator=generator)
        if len(backbone.feature_shape) != 1:
            raise ValueError(
                f"`{role}` returns features of shape {backbone.feature_shape} per sample; it must "
                "return one row of features. End it with a pooling over positions."
            )
        return backbone.module

    def _perceptron(
        self, role: str, shape: tuple[int, ...], generator: torch.Generator | None
    ) -> nn.Module:
        module = MLPBackbone(self.hidden_sizes[role], self.activation).build(shape, generator)
        return module.to(self.device, self.dtype)
