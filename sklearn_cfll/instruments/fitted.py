"""FittedInstruments: what a fit leaves, whole. It predicts, and packs itself as arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from ..estimator.targets import TargetScale
from ..persistence import DTYPES, dtype_name
from .curve_posterior import CurvePosterior
from .fold_models import FoldModels
from .networks import NetworkPlan
from .stages import InstrumentRows

__all__ = ["FittedInstruments"]

N_PATHS = 1000  # simulated, for the quantile of their maximum


@dataclass
class FittedInstruments:
    """What a fit leaves.

    Attributes
    ----------
    plan : NetworkPlan
        Description of the nets and their inputs.
    scale : TargetScale
        Scale of the outcome.
    models : FoldModels
        The trained models of all folds.
    resolved : dict
        The value used for each "auto", by parameter name.
    diagnostics : dict
        Figures on the instruments; empty without them.
    effect : dict or None
        The entries of ``effect_``.
    curve : CurvePosterior or None
        Of smooth functions of the treatments; None if these are not features.
    """

    plan: NetworkPlan
    scale: TargetScale
    models: FoldModels
    resolved: dict[str, Any]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    effect: dict[str, Any] | None = None
    curve: CurvePosterior | None = None

    def predict(self, rows: InstrumentRows) -> np.ndarray:
        """The structural function in y's units; (n,)."""
        return self.scale.inverse(self.models.predict(rows).cpu().numpy())[:, 0]

    def deviation(self, rows: InstrumentRows) -> np.ndarray:
        """Standard deviation of the structural function in y's units; (n,).

        Its square is the larger of two variances: of the estimate, and of what the instruments
        leave open.
        """
        variance = self.models.variance(rows).cpu().numpy()
        if self.curve is not None:
            treatment = rows.treatment.cpu().numpy().astype(float)
            variance = np.maximum(variance, self.curve.variance(treatment))
        deviation: np.ndarray = np.sqrt(variance) * self.scale.scale[0]
        return deviation

    def sup_t(self, rows: InstrumentRows, coverage: float) -> float:
        """Deviations that errors at all of these rows keep within, with this probability.

        The quantile of the largest error over its deviation, of simulated errors: of the curve's
        posterior where this is the wider one, else of the last layers'.
        """
        largest = np.zeros(N_PATHS)
        for block in rows.blocks():
            paths = self.models.paths(block, N_PATHS, self.plan.seed).numpy()
            if self.curve is not None:
                treatment = block.treatment.cpu().numpy().astype(float)
                wider = self.curve.variance(treatment) > self.models.variance(block).cpu().numpy()
                paths[wider] = self.curve.paths(treatment[wider], N_PATHS, self.plan.seed)
            largest = np.maximum(largest, np.abs(paths).max(0))
        return max(float(np.quantile(largest, coverage)), float(norm.ppf(0.5 + coverage / 2)))

    def projected(self, rows: InstrumentRows) -> np.ndarray:
        """``E[f(X, C) | Z, C]`` in y's units; (n,)."""
        return self.scale.inverse(self.models.projected(rows).cpu().numpy())[:, 0]

    @property
    def preferred(self) -> str:
        """The regression to rely on, "instrument", "direct" or "neither"; "direct" without Z."""
        preferred: str = self.diagnostics.get("preferred", "direct")
        return preferred

    # -- packing ----------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """Arrays and plain data, but for recipes that are code."""
        plan = {each.name: getattr(self.plan, each.name) for each in fields(self.plan)}
        del plan["device"]
        plan |= {
            "recipes": dict(self.plan.recipes),
            "scales": {role: each and tuple(each) for role, each in self.plan.scales.items()},
            "dtype": dtype_name(self.plan.dtype),
        }
        return {
            "plan": plan,
            "scale": tuple(self.scale),
            "models": self.models.pack(),
            "resolved": self.resolved,
            "diagnostics": self.diagnostics,
            "effect": self.effect,
            "curve": None if self.curve is None else tuple(self.curve),
        }

    @classmethod
    def unpack(cls, packed: dict[str, Any], device: torch.device) -> FittedInstruments:
        """Inverse of :meth:`pack`, with new modules on this device."""
        facts = packed["plan"]
        scales = {role: each and TargetScale(*each) for role, each in facts["scales"].items()}
        changed = {"scales": scales, "dtype": DTYPES[facts["dtype"]], "device": device}
        plan = NetworkPlan(**facts | changed)
        models = FoldModels.unpack(packed["models"], plan.template(), device)
        scale = TargetScale(*packed["scale"])
        curve = None if packed["curve"] is None else CurvePosterior(*packed["curve"])
        report = packed["resolved"], packed["diagnostics"], packed["effect"], curve
        return cls(plan, scale, models, *report)
