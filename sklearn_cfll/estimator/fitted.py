"""FittedModel: what a fit leaves, whole. It predicts, and is packed as arrays and plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.splitting import Backbone
from ..columns.reader import TableReader
from ..final_solve.calibration import predictive_variance
from ..final_solve.intervals import Scores, unpack_scores
from ..final_solve.local_part import LocalPart
from ..final_solve.noise import NoiseModel
from ..final_solve.offset import LinearOffset, WithOffset
from ..final_solve.probabilities import Probabilities
from ..heads import ClosedFormLastLayer, EnsembleLastLayer, Head
from ..heads.member import SETTINGS
from ..heads.module import CFLLModule, apply
from ..persistence import DTYPES, dtype_name
from ..training.batches import BatchIterator, RowsDataset
from ..training.influences import influences
from .covariance import Covariance
from .network import Network
from .packing import map_arrays, map_tensors, map_values, part_of
from .plan import Plan, prediction_batch, prediction_block
from .targets import TargetLayout, TargetScale

__all__ = ["INPUT_DTYPES", "FittedModel", "head_of", "new_offset"]

INPUT_DTYPES = {name: DTYPES[name] for name in ("float32", "float64", "int64", "bool")}


def head_of(network: Network, n_targets: int) -> tuple[type, dict[str, Any]]:
    """Class and options of the head of a network."""
    options = {"in_features": network.feature_shape[-1], "out_features": n_targets}
    if network.n_members == 1:
        return ClosedFormLastLayer, options | {"dtype": network.dtype}
    return EnsembleLastLayer, options | {"dtype": network.dtype, "n_members": network.n_members}


def new_offset(plan: Plan) -> LinearOffset:
    """A linear offset that is not fitted yet."""
    network = plan.network
    offset = LinearOffset(network.sample_shape[0], plan.layout.n_targets, network.dtype)
    return offset.to(network.device)


@dataclass
class FittedModel:
    """What a fit leaves.

    Attributes
    ----------
    plan : Plan
        The network's description, layout and scale of the targets.
    module : CFLLModule
        The encoding of the columns, the backbone and the head.
    offset : LinearOffset or None
        The linear part.
    final_ridge : float
        Ridge of the final solve.
    noise_variance : ndarray of shape (k,)
        Mean squared residual in y's units.
    n_judges : float
        Number of rows, outside the training set, from which the noise is estimated.
    noise : NoiseModel or None
        Noise of individual rows.
    scores : Scores or None
        Calibration of standard deviations and intervals.
    probabilities, of_one : Probabilities
        Map from a classifier's scores to probabilities, and that for the scores of single members.
    left_out : tuple or None
        Leave-one-out residuals in y's shape, and their coefficient of determination.
    out_of_fold : tuple or None
        Predictions (n, positions..., k) of the rows at fit in y's units, each by members that held
        it out, and the score to be expected of new rows.
    local_part : LocalPart or None
        Smoother of held-out residuals.
    influences : ndarray of shape (p,), or None
        Influence of each column of a table on the predictions, from slopes.
    few : FewRows, False or None
        What predicts a few rows, made when it is needed; False if there is none.
    """

    plan: Plan
    module: CFLLModule
    offset: LinearOffset | None = None
    final_ridge: float = 0.0
    noise_variance: np.ndarray = field(default_factory=lambda: np.empty(0))
    n_judges: float = 0.0
    noise: NoiseModel | None = None
    scores: Scores | None = None
    probabilities: Probabilities = field(default_factory=Probabilities)
    of_one: Probabilities = field(default_factory=Probabilities)
    left_out: tuple[np.ndarray, float] | None = None
    out_of_fold: tuple[np.ndarray, float] | None = None
    local_part: LocalPart | None = None
    influences: np.ndarray | None = None
    few: Any = field(default=None, repr=False)

    # -- predicting -----------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The last layer."""
        last: Any = self.module.last_layer
        head: Head = last
        return head

    def batches(self, rows: RowsDataset) -> Iterator[Any]:
        """Inputs in batches of a fixed size, with the module in evaluation mode.

        The last row is repeated until the last batch is as long as a perceptron needs it.
        """
        if self.module.training:
            self.module.eval()
        n, network = len(rows), self.plan.network
        size, block = prediction_batch(network), prediction_block(network)
        for start in range(0, n, size):
            stop = start + min(size, -(-(n - start) // block) * block)
            repeated = torch.arange(start, stop).clamp(max=n - 1)
            yield rows.batch(slice(start, stop) if stop <= n else repeated).inputs

    @torch.no_grad()
    def labelled_features(self, rows: RowsDataset) -> Iterator[tuple[Any, ...]]:
        """Batches of features, targets and weights of rows with targets."""
        if self.module.training:
            self.module.eval()
        for batch in BatchIterator(rows, prediction_batch(self.plan.network)):
            yield self.module.features(batch.inputs), batch.targets, batch.sample_weight

    def _over(self, rows: RowsDataset, function: Callable[[Any], Tensor]) -> Tensor:
        """What a function returns for all batches, on the CPU, without the repetitions."""
        found = torch.cat([function(inputs).cpu() for inputs in self.batches(rows)])
        return found[: len(rows)]

    @torch.no_grad()
    def features(self, rows: RowsDataset) -> Tensor:
        """Features on the CPU; with a linear part, the standardised columns are appended."""
        found = self._over(rows, self.module.features)
        if self.offset is None:
            return found
        return torch.cat([found, self._over(rows, self.offset.columns)], 1)

    @torch.no_grad()
    def raw(self, rows: RowsDataset) -> Tensor:
        """Predictions (n, positions..., k) on the scale of training, on the CPU."""
        whole = self.whole
        return self._over(rows, lambda inputs: apply(whole, inputs))

    def outputs(self, rows: RowsDataset) -> np.ndarray:
        """Predictions (n, positions..., k) in y's units."""
        return self.plan.unscale(self.raw(rows).numpy())

    @torch.no_grad()
    def deviations(self, rows: RowsDataset) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and standard deviations of new observations, in y's units."""
        return self._deviations(rows, map(self.module.features, self.batches(rows)))

    def _deviations(
        self, rows: RowsDataset, batches: Iterable[Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same from batches of the rows' features."""
        plan, head = self.plan, self.head
        level = torch.as_tensor(self.noise_variance / plan.scale.scale**2)
        means, deviations = [], []
        for features in batches:
            means.append(head(features).cpu())
            deviations.append(predictive_variance(head, features, level, self.noise).sqrt().cpu())
        n, scale = len(rows), plan.scale.scale
        raw, spread = torch.cat(means)[:n], torch.cat(deviations)[:n]
        if self.offset is not None:
            raw = raw + self._over(rows, self.offset)
        if self.local_part is not None:
            local, doubt = self._over(rows, self.local_part.with_doubt).unbind(1)
            inflation = 1.0 if self.scores is None else torch.as_tensor(self.scores.inflation)
            raw = raw + local
            spread = (spread.square() + doubt / inflation**2).sqrt()  # the doubt is not inflated
        if self.scores is not None:
            scale = scale * self.scores.inflation
        mean = plan.unscale(raw.numpy())
        return mean, (spread.numpy() * scale).astype(mean.dtype)

    @torch.no_grad()
    def covariance(self, rows: RowsDataset) -> Covariance:
        """Predictions of several rows, and the factors of their joint distribution."""
        batches = [self.module.features(inputs) for inputs in self.batches(rows)]
        factors = self.head.covariance_factors(torch.cat(batches))
        weights, between = (each[: len(rows)] for each in factors)
        mean, std = self._deviations(rows, batches)
        scale = self.plan.scale.scale
        scale = scale if self.scores is None else scale * self.scores.inflation
        level = np.sqrt(self.noise_variance) / self.plan.scale.scale
        return Covariance(
            mean, std, weights.cpu().numpy(), level * scale, between.cpu().numpy() * scale
        )

    def influences_of(self, rows: RowsDataset) -> np.ndarray | None:
        """Influence of each column on the predictions, None if X is no table.

        That of the network and the linear part: slopes of the local part are those of single rows.
        """
        smooth: Any = self.module if self.offset is None else WithOffset(self.module, self.offset)
        found = influences(smooth, rows)
        return None if found is None else found.cpu().numpy()

    # -- the last layer ---------------------------------------------------------------

    @property
    def whole(self) -> Any:
        """Module that predicts on the scale of training, linear and local part included."""
        module: Any = self.module
        for added in (self.offset, self.local_part):
            module = module if added is None else WithOffset(module, added)
        return module

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """Weights and intercept on :meth:`features`, on the scale of training."""
        weight, bias = self.head.weight, self.head.bias
        assert bias is not None
        if self.offset is None:
            return weight, bias
        linear = self.offset.layer
        assert linear.bias is not None
        return torch.cat([weight, linear.weight], 1), bias + linear.bias

    def coef(self) -> np.ndarray:
        """Weights (k, d) in y's units."""
        weight, _ = self.last_layer()
        coef: np.ndarray = weight.double().cpu().numpy() * self.plan.scale.scale[:, None]
        return coef

    def intercept(self) -> np.ndarray:
        """Intercept (k,) in y's units."""
        _, bias = self.last_layer()
        return self.plan.unscale(bias.double().cpu().numpy())

    # -- packing ----------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """Arrays and plain data, but for a recipe that is code."""
        plan, network = self.plan, self.plan.network
        backbone = network.backbone
        return {
            "module": map_tensors(self.module.state_dict()),
            "offset": None if self.offset is None else map_tensors(self.offset.state_dict()),
            "head": {name: getattr(self.head, name) for name in SETTINGS},
            "network": {
                "recipe": network.recipe,
                "encoder": network.encoder,
                "sample_shape": network.sample_shape,
                "copies": network.copies,
                "seed": network.seed,
                "dtype": dtype_name(network.dtype),
                "feature_shape": backbone.feature_shape,
                "channels_first": backbone.channels_first,
                "removed": backbone.removed,
                "input_dtype": map_values(dtype_name, backbone.input_dtype),
            },
            "layout": tuple(plan.layout),
            "scale": tuple(plan.scale),
            "parameters": dict(plan.parameters),
            "mean_weight": plan.mean_weight,
            "reader": None if plan.reader is None else plan.reader.pack(),
            "final_ridge": self.final_ridge,
            "noise_variance": self.noise_variance,
            "n_judges": self.n_judges,
            "noise": map_tensors(self.noise),
            "scores": None if self.scores is None else tuple(self.scores),
            "probabilities": tuple(self.probabilities),
            "of_one": tuple(self.of_one),
            "left_out": self.left_out,
            "out_of_fold": self.out_of_fold,
            "local_part": (
                None if self.local_part is None else map_tensors(self.local_part.own_state())
            ),
            "influences": self.influences,
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any], device: torch.device) -> FittedModel:
        """Inverse of :meth:`pack`: new modules on this device, with the state of the old ones."""
        facts, arrays = packed["network"], map_arrays(packed["module"])
        shape, dtype = facts["sample_shape"], DTYPES[facts["dtype"]]
        backbone = Backbone(
            nn.Identity(),
            tuple(facts["feature_shape"]),
            facts["channels_first"],
            facts["removed"],
            map_values(INPUT_DTYPES.__getitem__, facts["input_dtype"]),
        )
        shape = shape if isinstance(shape, dict) else tuple(shape)
        described = Network(
            facts["recipe"],
            facts["encoder"],
            shape,
            facts["seed"],
            device,
            dtype,
            None,
            backbone,
            facts["copies"],
        )
        network = described.with_state(part_of(arrays, "backbone."))
        own_shape, channels_first = packed["layout"]
        layout = TargetLayout(tuple(own_shape), channels_first)
        plan = Plan(
            network,
            layout,
            TargetScale(*packed["scale"]),
            packed["parameters"],
            packed["mean_weight"],
            None if packed["reader"] is None else TableReader.unpack(packed["reader"]),
        )
        kind, options = head_of(network, layout.n_targets)
        head = kind(**options, **packed["head"])
        module = CFLLModule(network.module, head, plan.autocast).to(device)
        module.load_state_dict(arrays)
        offset = None
        if packed["offset"] is not None:
            offset = new_offset(plan)
            offset.load_state_dict(map_arrays(packed["offset"]))
        local_part = None
        if packed["local_part"] is not None:
            assert network.columns is not None
            own_state = map_arrays(packed["local_part"], device)
            local_part = LocalPart(network.columns, **own_state)
        noise, scores = packed["noise"], packed["scores"]
        left_out, out_of_fold = packed["left_out"], packed["out_of_fold"]
        return cls(
            plan,
            module.eval(),
            offset,
            final_ridge=packed["final_ridge"],
            noise_variance=packed["noise_variance"],
            n_judges=packed["n_judges"],
            noise=None if noise is None else NoiseModel(*map_arrays(noise, device)),
            scores=None if scores is None else unpack_scores(scores),
            probabilities=Probabilities(*packed["probabilities"]),
            of_one=Probabilities(*packed["of_one"]),
            left_out=None if left_out is None else tuple(left_out),
            out_of_fold=None if out_of_fold is None else tuple(out_of_fold),
            local_part=local_part,
            influences=packed["influences"],
        )
