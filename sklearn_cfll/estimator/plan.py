"""Plan: everything that the first fit determines and later calls use."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.fno import FNOBackbone
from ..backbones.mlp import MLPBackbone
from ..backbones.products import product_size
from ..backbones.recipe import (
    build_backbone,
    input_shape_of,
    kept_recipe,
    rebuild_backbone,
    takes_generator,
)
from ..backbones.splitting import Backbone
from ..final_solve.offset import LinearOffset
from ..heads.ensemble import EnsembleLastLayer
from ..training.batches import Rows, RowsDataset, as_rows, from_numpy
from ..training.net import CFLLNet
from ..training.optimizers import optimizer_options
from ..training.seeding import LentStream, draws_globally, own_generator
from .checks import Checked
from .inputs import integers_fit
from .targets import TargetLayout, TargetScale

__all__ = ["Plan", "fixed_parameters"]

# Parameters that a continued fit cannot change: a new value of one of them raises an error.
FIXED = (
    "backbone",
    "hidden_layer_sizes",
    "activation",
    "dropout",
    "n_bins",
    "n_members",
    "spread_columns",
    "scale_columns",
    "linear_part",
    "normalize_y",
    "precision",
)

# Largest targets and weights whose squares and sums of products can be held.
LARGEST_SQUARED = {torch.float32: 1e15, torch.float64: 1e140}

NARROW = (np.float32, np.float16)  # dtypes that float32 holds exactly

# Rows predicted at once. The number is fixed, because the batch size changes the last bit of
# products, and a model must predict the same before and after pickling.
PREDICTION_ROWS = 1024
PREDICTION_POINTS = 2**15  # for fields: 8 samples of 64 × 64 points


def prediction_batch(feature_shape: tuple[int, ...]) -> int:
    """Number of samples predicted at once, fewer if each has many positions."""
    return max(1, min(PREDICTION_ROWS, PREDICTION_POINTS // math.prod(feature_shape[:-1])))


def fixed_parameters(estimator: Any, recipe: Any) -> dict[str, Any]:
    """The :data:`FIXED` parameters of an estimator, for a later comparison.

    A backbone with ``get_params`` is compared by the parameters of ``recipe``, its copy; any other
    is compared by identity.
    """
    found = {name: getattr(estimator, name) for name in FIXED if hasattr(estimator, name)}
    if hasattr(found["backbone"], "get_params"):
        found["backbone"] = recipe
    sizes = found["hidden_layer_sizes"]
    found["hidden_layer_sizes"] = list(sizes) if _is_sequence(sizes) else sizes
    return found


@dataclass
class Plan:
    """Backbone, target layout and scale, device and precision of one fitted model.

    Attributes
    ----------
    recipe : recipe, torch.nn.Module or callable
        Source from which the backbone is built and rebuilt. It is a copy, so later changes of the
        estimator's parameter have no effect.
    sample_shape : tuple of int, or dict of them
        Shape of one input, or of each named input.
    seed : int
    device : torch.device
    dtype : torch.dtype
    mean_weight : float
        Mean sample weight at fit, by which the weights of rows added later are divided.
    parameters : dict
        The estimator's :data:`FIXED` parameters at fit.
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
    parameters: dict[str, Any] = field(default_factory=dict)
    backbone: Backbone = field(init=False)
    layout: TargetLayout = field(init=False)
    scale: TargetScale = field(init=False)

    @classmethod
    def make(
        cls,
        recipe: Any,
        checked: Checked,
        *,
        n_outputs: int | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        mean_weight: float,
    ) -> Plan:
        """Build the backbone and infer the layout of the targets; the caller sets ``scale``."""
        recipe = kept_recipe(recipe)
        sample = as_rows(checked.X, device, None, lazy=True).take(slice(0, 2))
        if len(checked.y) == 1:  # batch normalisation and the like need two rows
            sample = _twice(sample)
        plan = cls(recipe, input_shape_of(sample), seed, device, dtype, mean_weight)
        y_shape = checked.y.shape
        with plan._random_numbers() as generator:
            exact = integers_fit(checked.X, dtype)
            plan.backbone = build_backbone(
                recipe, sample, dtype, n_outputs, exact=exact, generator=generator
            )
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

    @property
    def n_members(self) -> int:
        """Number of networks that are trained side by side, each with its own last layer."""
        own = hasattr(self.recipe, "build") and not isinstance(self.recipe, nn.Module)
        return int(getattr(self.recipe, "n_members", 1)) if own else 1

    def rebuild(self) -> None:
        """Rebuild the modules that were not kept with the plan."""
        with self._random_numbers() as generator:
            self.backbone = rebuild_backbone(
                self.recipe, self._blank, self.dtype, self.backbone, generator
            )

    def make_net(
        self,
        optimizer: type[torch.optim.Optimizer],
        *,
        n_members: int,
        memory: str,
        compile: bool,
    ) -> CFLLNet:
        """An untrained net around the backbone."""
        options = optimizer_options(optimizer, self.backbone.module)
        kind: dict[str, Any] = {}
        if n_members > 1:
            kind = {"last_layer": EnsembleLastLayer, "last_layer__n_members": n_members}
        net = CFLLNet(
            self.backbone.module,
            optimizer=optimizer,
            **{f"optimizer__{name}": value for name, value in options.items()},
            **kind,
            last_layer__in_features=self.backbone.feature_shape[-1],
            last_layer__out_features=self.layout.n_targets,
            last_layer__memory=memory,
            last_layer__dtype=self.dtype,
            device=str(self.device),
            compile=compile,
            random_state=self.seed,
            iterator_valid__batch_size=prediction_batch(self.backbone.feature_shape),
            verbose=0,
        )
        net.initialize()
        return net

    def make_offset(self) -> LinearOffset:
        """An offset that is not fitted yet."""
        offset = LinearOffset(self.sample_shape[0], self.layout.n_targets, self.dtype)
        return offset.to(self.device)

    @property
    def is_perceptron(self) -> bool:
        """Whether the defaults tuned for perceptrons apply."""
        return isinstance(self.recipe, MLPBackbone)

    @property
    def takes_any_shape(self) -> bool:
        """Whether the backbone is user-defined, so that samples may have any shape."""
        return self.parameters["backbone"] is not None

    def check_unchanged(self, estimator: Any) -> None:
        """Raise if a parameter that is fixed after a fit has changed."""
        for name, fitted in self.parameters.items():
            value = getattr(estimator, name)
            if not _same(value, fitted):
                raise ValueError(
                    f"`{name}` has changed since the model was fitted, from {fitted!r:.200} to "
                    f"{value!r:.200}, and training cannot continue with the new value. Set it "
                    "back, or start again: `fit` with warm_start=False."
                )

    @property
    def _blank(self) -> Any:
        """Two rows of zeros, for each input if there are several."""
        dtypes, shape = self.backbone.input_dtype, self.sample_shape

        def zeros(shape: Any, dtype: torch.dtype) -> Tensor:
            return torch.zeros((), device=self.device, dtype=dtype).expand(2, *shape)

        if isinstance(dtypes, dict):
            return {name: zeros(shape[name], dtype) for name, dtype in dtypes.items()}
        return zeros(shape, dtypes)

    @functools.cached_property
    def product_size(self) -> float:
        """Multiply-adds of all products per row, from which the number of threads follows."""
        with self._random_numbers():
            return product_size(self.backbone.module, self._blank)

    def _random_numbers(self) -> contextlib.AbstractContextManager[torch.Generator | None]:
        """Generator of the initial weights; torch's global generators only if necessary."""
        recipe = self.recipe
        fixed = isinstance(recipe, nn.Module) and not draws_globally(recipe)
        if fixed or takes_generator(recipe):
            return contextlib.nullcontext(own_generator("cpu", self.seed))
        return LentStream(self.device, self.seed).lent()

    def rows(self, X: Any, lazy: bool) -> Rows:
        """Inputs as rows, in full precision for a perceptron, which casts after standardising."""
        dtype, narrow = self.backbone.input_dtype, getattr(X, "dtype", None) in NARROW
        if self.is_perceptron and not narrow and self.device.type != "mps":
            dtype = torch.float64
        return as_rows(X, self.device, dtype, lazy)

    def check_targets(self, checked: Checked) -> None:
        """Raise if targets have another layout than at fit."""
        self.layout.check(checked.y.shape, len(self.backbone.feature_shape) - 1)

    def dataset(self, checked: Checked, *, as_added: bool = False) -> RowsDataset:
        """Checked rows on the device, with targets on the scale of training.

        Weights have mean one, or with ``as_added`` are on the scale of the weights at fit.
        """
        self.check_targets(checked)
        rows = self.layout.to_rows(checked.y)
        inputs = self.rows(checked.X, checked.lazy)
        data = RowsDataset(inputs)
        if checked.rows is not None:
            data = data.subset(checked.rows)
        scaled = self.scale.transform(rows)
        self._check_scaled(checked, scaled)
        data.targets = self.tensor(scaled)
        weights, relative = checked.sample_weight, checked.mean_weight / self.mean_weight
        if as_added and relative != 1.0:
            weights = relative * (np.ones(len(rows)) if weights is None else weights)
        if weights is not None and weights.max() > LARGEST_SQUARED[self.dtype]:
            raise ValueError(
                f"`sample_weight` goes up to {weights.max() / relative * checked.mean_weight:g}, "
                f"{weights.max():g} times the mean weight at fit, too large for "
                f"{str(self.dtype).removeprefix('torch.')}. Weights are numbers of repetitions on "
                "the scale of those at fit. Rescale them."
            )
        data.sample_weight = None if weights is None else self.tensor(weights)
        return data

    def _check_scaled(self, checked: Checked, scaled: np.ndarray) -> None:
        """Raise if a target is too far from those of the fit to be squared."""
        size = np.abs(scaled).reshape(len(scaled), -1).max(axis=1)
        row = int(size.argmax())
        if not size[row] <= LARGEST_SQUARED[self.dtype]:
            value = checked.y[row].ravel()[np.abs(checked.y[row].ravel()).argmax()]
            position = row if checked.rows is None else checked.rows[row]
            raise ValueError(
                f"y[{position}] = {value:g} lies {size[row]:.2g} standard deviations from the "
                "targets that the model was fitted to, too far for "
                f"{str(self.dtype).removeprefix('torch.')}. Check its units. If they are the same, "
                "`fit` again on old and new rows together, or on a transformed y."
            )

    def tensor(self, array: np.ndarray) -> Tensor:
        return from_numpy(np.ascontiguousarray(array)).to(self.device, self.dtype)

    def unscale(self, rows: np.ndarray) -> np.ndarray:
        """Outputs (n, positions..., k) of the net in y's units."""
        return self.scale.inverse(rows)

    def unscale_variance(self, variance: Tensor) -> np.ndarray:
        """Variances (k,) of the net's outputs in y's units."""
        return np.asarray(variance.double().cpu().numpy() * self.scale.scale**2)


def _twice(sample: Any) -> Any:
    """Repeat a single row."""
    if isinstance(sample, dict):
        return {name: _twice(part) for name, part in sample.items()}
    return sample.repeat(2, *[1] * (sample.ndim - 1))


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a parameter mean the same."""
    if value is other:
        return True
    if hasattr(value, "get_params"):
        same_type = type(value) is type(other)
        return same_type and _same(value.get_params(deep=False), other.get_params(deep=False))
    if isinstance(value, dict):
        same_keys = isinstance(other, dict) and value.keys() == other.keys()
        return same_keys and all(_same(value[key], other[key]) for key in value)
    if _is_sequence(value) and _is_sequence(other):  # a list may equal an array
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_same(*pair) for pair in pairs)
    if _is_sequence(value) or _is_sequence(other):
        return False
    try:
        return bool(value == other)
    except Exception:  # some objects cannot be compared
        return False


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple | range) or (
        hasattr(value, "__array__") and np.ndim(value) > 0
    )
