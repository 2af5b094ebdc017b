"""Plan: what is decided before training and holds for all later calls."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..backbones.fno import FNOBackbone
from ..backbones.mlp import MLPBackbone
from ..backbones.splitting import CannotTakeInputs
from ..columns.reader import TableReader
from ..columns.rows import ExpandedRows, Rows, as_rows, from_numpy
from ..persistence import dtype_name
from ..training.batches import RowsDataset
from ..training.distribution import Alone, Workers
from ..training.seeding import draw_seed
from ..training.torch_settings import resolve_device
from .checks import Checked, check_sizes, needs_float64, seen_as_given
from .network import Network, copies_of
from .targets import TargetLayout, TargetScale
from .unchanged import fixed_parameters

__all__ = ["Plan", "make_plan", "prediction_batch", "prediction_block"]

# Largest targets and weights whose squares and sums of products can be held.
LARGEST_SQUARED = {torch.float32: 1e15, torch.float64: 1e140}

NARROW = (np.float32, np.float16)  # dtypes that float32 holds exactly

# Rows predicted at once. The number is fixed, because the batch size changes the last bit of
# products, and a model must predict the same before and after pickling.
PREDICTION_ROWS = 1024
# A perceptron predicts multiples of so many rows, so that a row's last bit does not depend on their
# number: products take the rows in blocks, and those that fill no block in another way. (A few rows
# are predicted without torch, see few_rows.py.)
PREDICTION_BLOCK = 32
ON_ACCELERATOR = 8  # times as many for a perceptron: its kernels take less time than their launch
PREDICTION_POINTS = 2**15  # for fields: 8 samples of 64 × 64 points


def prediction_batch(network: Network) -> int:
    """Number of samples predicted at once, fewer if each has many positions."""
    if network.is_perceptron and network.device.type != "cpu":
        return ON_ACCELERATOR * PREDICTION_ROWS
    return max(1, min(PREDICTION_ROWS, PREDICTION_POINTS // math.prod(network.feature_shape[:-1])))


def prediction_block(network: Network) -> int:
    """The number of samples predicted at once is a multiple of this one."""
    return PREDICTION_BLOCK if network.is_perceptron else 1


def target_layout(network: Network, y_shape: tuple[int, ...]) -> TargetLayout:
    """How targets of this shape match the features of a network."""
    backbone, recipe = network.backbone, network.recipe
    try:
        return TargetLayout.infer(y_shape, backbone.feature_shape, backbone.channels_first)
    except ValueError as error:
        if isinstance(recipe, FNOBackbone):
            raise ValueError(
                f"{error} Samples of X have shape {network.sample_shape}, and `channels`="
                f"{recipe.channels!r} of FNOBackbone says which of their axes holds channels."
            ) from error
        raise


@dataclass
class Plan:
    """Network, layout and scale of the targets: from the user's arrays to rows, and back.

    Attributes
    ----------
    network : Network
    layout : TargetLayout
    scale : TargetScale
    parameters : dict
        The estimator's parameters that later calls cannot change, at fit.
    mean_weight : float
        Mean sample weight at fit, by which the weights of rows added later are divided.
    reader : TableReader or None
        What codes the categories of a table; None if its columns are numbers.
    """

    network: Network
    layout: TargetLayout
    scale: TargetScale
    parameters: dict[str, Any]
    mean_weight: float = 1.0
    reader: TableReader | None = None

    @property
    def autocast(self) -> torch.dtype | None:
        """Dtype of the backbone's products if it is not that of the network."""
        return torch.bfloat16 if self.parameters.get("precision") == "bf16" else None

    @property
    def takes_any_shape(self) -> bool:
        """Whether the network is user-defined, so that samples may have any shape."""
        return self.parameters["backbone"] is not None

    def rows(self, X: Any, lazy: bool) -> Rows:
        """Checked inputs as rows that the network takes.

        Columns that it encodes are expanded, in full precision: the encoding casts them after
        standardising.
        """
        network = self.network
        if network.columns is None:
            return as_rows(X, network.device, network.backbone.input_dtype, lazy)
        narrow = getattr(X, "dtype", None) in NARROW or network.device.type == "mps"
        rows = as_rows(X, network.device, network.dtype if narrow else torch.float64, lazy)
        return ExpandedRows(rows, network.columns.expansion)

    def check_targets(self, checked: Checked) -> None:
        """Raise if targets have another layout than at fit."""
        self.layout.check(checked.y.shape, len(self.network.feature_shape) - 1)

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
        if weights is not None and weights.max() > LARGEST_SQUARED[self.network.dtype]:
            raise ValueError(
                f"`sample_weight` goes up to {weights.max() / relative * checked.mean_weight:g}, "
                f"{weights.max():g} times the mean weight at fit, too large for "
                f"{dtype_name(self.network.dtype)}. Weights are numbers of "
                "repetitions on the scale of those at fit. Rescale them."
            )
        data.sample_weight = None if weights is None else self.tensor(weights)
        return data

    def _check_scaled(self, checked: Checked, scaled: np.ndarray) -> None:
        """Raise if a target is too far from those of the fit to be squared."""
        size = np.abs(scaled).reshape(len(scaled), -1).max(axis=1)
        row = int(size.argmax())
        if not size[row] <= LARGEST_SQUARED[self.network.dtype]:
            value = checked.y[row].ravel()[np.abs(checked.y[row].ravel()).argmax()]
            position = row if checked.rows is None else checked.rows[row]
            raise ValueError(
                f"y[{position}] = {value:g} lies {size[row]:.2g} standard deviations from the "
                "targets that the model was fitted to, too far for "
                f"{dtype_name(self.network.dtype)}. Check its units. If they are "
                "the same, `fit` again on old and new rows together, or on a transformed y."
            )

    def tensor(self, array: np.ndarray) -> Tensor:
        return from_numpy(np.ascontiguousarray(array)).to(self.network.device, self.network.dtype)

    def unscale(self, rows: np.ndarray) -> np.ndarray:
        """Outputs (n, positions..., k) of the net in y's units."""
        return self.scale.inverse(rows)

    def unscale_variance(self, variance: Tensor) -> np.ndarray:
        """Variances (k,) of the net's outputs in y's units."""
        return np.asarray(variance.double().cpu().numpy() * self.scale.scale**2)


def make_plan(estimator: Any, checked: Checked, workers: Workers | None = None) -> Plan:
    """Build the network for checked rows, in the precision that they need.

    Several workers, who know the same rows, make the same plan.
    """
    workers = Alone() if workers is None else workers
    device, recipe = workers.place(resolve_device(estimator.device)), estimator.backbone
    if recipe is None:
        recipe = MLPBackbone(
            estimator.hidden_layer_sizes,
            estimator.activation,
            estimator.dropout,
            estimator.defaults.n_members(estimator.n_members, own=False),
            estimator.defaults.bins_share,
        )
    encoder = estimator.defaults.column_encoder(estimator.columns, recipe, len(checked.y))
    encoded = encoder is not None
    as_given = seen_as_given(
        checked,
        inputs=not encoded or device.type == "mps",
        targets=not getattr(estimator, "normalize_y", True),
    )
    coarse = estimator.precision == "auto" and needs_float64(checked, encoded, as_given)
    dtype = estimator.defaults.dtype(estimator.precision, checked.y.shape, device, coarse)
    check_sizes(as_given, dtype)
    dtypes, failures, network = [dtype], [], None
    if estimator.precision == "auto" and device.type != "mps":  # its forward may cast to the other
        dtypes.append(torch.float32 if dtype == torch.float64 else torch.float64)
    seed = workers.first(draw_seed(estimator.random_state))
    n_outputs = estimator._n_network_outputs(checked.y)
    for dtype in dtypes:
        try:
            network = Network.build(
                recipe,
                encoder,
                checked,
                copies=copies_of(recipe, estimator),
                n_outputs=n_outputs,
                seed=seed,
                device=device,
                dtype=dtype,
            )
            break
        except CannotTakeInputs as error:
            failures.append(error)
    if network is None:
        raise failures[0]
    layout = target_layout(network, checked.y.shape)
    scale = estimator._fit_scale(layout.to_rows(checked.y), checked.sample_weight)
    parameters = fixed_parameters(estimator, network.recipe)
    return Plan(network, layout, scale, parameters, checked.mean_weight, checked.reader)
