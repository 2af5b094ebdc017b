"""Construction of the nets of one fold from an instrumental estimator's backbone parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from ..backbones.mlp import MLPBackbone
from ..backbones.recipe import build_backbone, takes_generator
from ..estimator.targets import TargetScale
from ..training.seeding import LentStream, draws_globally, own_generator
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


class FlatFirst(nn.Module):
    """Concatenation of the flattened inputs and the outputs of a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs.flatten(1), self.module(inputs)], dim=1)


class InstrumentNet(nn.Module):
    """Joint features of instruments and confounders.

    Each is encoded by its own module (the identity for columns). The encodings are concatenated
    and passed to a third module.
    """

    def __init__(self, instrument: nn.Module, confounder: nn.Module | None, joint: nn.Module):
        super().__init__()
        self.instrument, self.confounder, self.joint = instrument, confounder, joint

    def forward(self, instrument: Tensor, confounder: Tensor | None = None) -> Tensor:
        encoded = self.instrument(instrument).flatten(1)
        if self.confounder is not None and confounder is not None:
            encoded = torch.cat([encoded, self.confounder(confounder).flatten(1)], dim=1)
        return self.joint(encoded)


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

    @property
    def n_raw(self) -> int:
        """Number of raw treatment columns among the features; 0 with a user-defined backbone."""
        shape = self.shapes["treatment_backbone"]
        assert shape is not None
        recipe, n_columns = self.recipes["treatment_backbone"], int(np.prod(shape))
        wide = recipe is None and n_columns > RAW_COLUMNS
        return 0 if wide or is_own(recipe) else n_columns

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

    @property
    def builds_by_own_code(self) -> bool:
        """Whether building runs user code that draws from torch's global generators."""
        own = [recipe for recipe in self.recipes.values() if is_own(recipe)]
        return not all(
            takes_generator(recipe)
            or (isinstance(recipe, nn.Module) and not draws_globally(recipe))
            for recipe in own
        )

    def build(self, generator: torch.Generator | None = None) -> Networks:
        """New nets, initialised from this generator or from torch's global ones."""
        treatment = self._encoder("treatment_backbone", generator)
        if self.recipes["treatment_backbone"] is None and self.n_raw:
            treatment = FlatFirst(treatment)
        confounder = None
        if self.shapes["covariate_backbone"] is not None:
            confounder = self._encoder("covariate_backbone", generator)
        instruments = [self._instrument_net(generator) for _ in range(self.n_first_stages)]
        nets = Networks(treatment, confounder, instruments, self.n_raw)
        return nets.to(self.device)

    def template(self) -> Networks:
        """Nets with arbitrary weights; the global random state is not changed."""
        if not self.builds_by_own_code:
            return self.build(own_generator("cpu", self.seed)).eval()
        with LentStream(self.device, self.seed).lent():
            return self.build().eval()

    def _instrument_net(self, generator: torch.Generator | None) -> nn.Module:
        recipe = self.recipes["instrument_backbone"]
        own_encoder = is_own(recipe)
        instrument: nn.Module = nn.Identity()
        if own_encoder:
            instrument = self._encoder("instrument_backbone", generator)
        confounder: nn.Module | None = None
        shape = self.shapes["covariate_backbone"]
        if shape is not None:
            own = is_own(self.recipes["covariate_backbone"])
            confounder = nn.Identity()
            if own:
                confounder = self._encoder("covariate_backbone", generator)
        joint: nn.Module = nn.Identity()
        if recipe is None or (own_encoder and shape is not None):
            inputs = [torch.zeros(2, *self.shapes["instrument_backbone"], dtype=self.dtype)]  # type: ignore[misc]
            if shape is not None:
                inputs.append(torch.zeros(2, *shape, dtype=self.dtype))
            with torch.no_grad():
                net = InstrumentNet(instrument, confounder, joint).eval()
                width = net(*(each.to(self.device) for each in inputs)).shape[1]
            joint = self._perceptron("instrument_backbone", (width,), generator)
        return InstrumentNet(instrument, confounder, joint).to(self.device)

    def _encoder(self, role: str, generator: torch.Generator | None) -> nn.Module:
        recipe, shape = self.recipes[role], self.shapes[role]
        assert shape is not None
        if recipe is None:
            return self._perceptron(role, shape, generator)
        if not is_own(recipe):
            return nn.Flatten()
        if isinstance(recipe, BaseEstimator):
            recipe = clone(recipe)
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
        sizes = self.hidden_sizes[role]
        module = MLPBackbone(sizes, self.activation).build((int(np.prod(shape)),), generator)
        module = nn.Sequential(nn.Flatten(), *module.children())
        return module.to(self.device, self.dtype)
