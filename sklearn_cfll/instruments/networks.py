"""Construction of the nets of one fold from an instrumental estimator's backbone parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from ..backbones.mlp import MLPBackbone
from ..backbones.recipe import build_backbone, takes_generator
from ..linalg import is_constant
from ..training.seeding import LentStream, draws_globally, own_generator
from .stages import Networks

__all__ = ["ROLES", "InputScale", "NetworkPlan", "is_own"]

# With more columns (flattened images) the treatment itself is not among its features.
RAW_COLUMNS = 100

ROLES = ("treatment_backbone", "instrument_backbone", "covariate_backbone")


def is_own(recipe: Any) -> bool:
    """Whether the backbone is user-defined: neither the default perceptron nor raw columns."""
    return recipe is not None and not (isinstance(recipe, str) and recipe == "identity")


@dataclass
class InputScale:
    """Mean and standard deviation of each column.

    Attributes
    ----------
    mean, scale : ndarray of shape (columns,), or None for inputs that are not 2-d
    inside : bool
        Whether inputs are passed unscaled, to a user-defined network.
    """

    mean: np.ndarray | None
    scale: np.ndarray | None
    inside: bool

    @classmethod
    def fit(cls, rows: np.ndarray, sample_weight: np.ndarray | None, *, inside: bool) -> InputScale:
        """Weighted mean and standard deviation; constant columns are only centred."""
        if rows.ndim != 2:
            return cls(None, None, inside)
        mean = np.average(rows, axis=0, weights=sample_weight)
        std = np.sqrt(np.average(np.square(rows - mean), axis=0, weights=sample_weight))
        constant = is_constant(std, mean, float(np.finfo(np.float64).eps))
        return cls(mean, np.where(constant, 1.0, std), inside)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self.inside or self.mean is None:
            return rows
        return (rows - self.mean) / self.scale


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
    scales : dict of InputScale
    n_first_stages : int
    device, dtype
    seed : int
    """

    recipes: dict[str, Any]
    hidden_sizes: dict[str, tuple[int, ...]]
    activation: str
    shapes: dict[str, tuple[int, ...] | None]
    scales: dict[str, InputScale]
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

    def tensor(self, role: str, rows: np.ndarray | None) -> Tensor | None:
        """Inputs of one role on the device, with standardised columns."""
        if rows is None:
            return None
        scaled = self.scales[role](np.asarray(rows, dtype=np.float64))
        return torch.as_tensor(scaled).to(self.device, self.dtype)

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
