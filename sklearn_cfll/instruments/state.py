"""State of an instrumental estimator: arrays, and the specification to build its nets again."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch

from ..estimator.packing import dtype_name, map_arrays, map_tensors, versions
from ..estimator.state import StateMixin
from ..estimator.targets import TargetScale
from .cross_fit import CrossFit
from .networks import ROLES, InputScale, NetworkPlan
from .stages import Shrinkage, pack_model, unpack_model
from .state_checks import check_instruments, check_models, try_out

__all__ = ["InstrumentStateMixin"]


class InstrumentStateMixin(StateMixin):
    """What an instrumental estimator packs, and the checks of its files."""

    _code_parameters = ROLES

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        fitted, plan, scale = (state.pop(name) for name in ("_fitted", "_plan", "_scale"))
        kept = {each.name: getattr(plan, each.name) for each in fields(plan)}
        kept |= {
            "recipes": dict(plan.recipes),
            "scales": {role: asdict(each) for role, each in plan.scales.items()},
            "dtype": dtype_name(plan.dtype),
            "device": None,
        }
        packed = {each.name: getattr(fitted, each.name) for each in fields(fitted)}
        packed |= {
            "networks": None,
            "folds": [[pack_model(model) for model in models] for models in fitted.folds],
            "whole": None if fitted.whole is None else pack_model(fitted.whole),
            "shrinkage": tuple(fitted.shrinkage),
        }
        packed = {
            **versions(),
            "device": str(state.pop("device_")),
            "seed": plan.seed,
            "plan": kept,
            "fitted": map_tensors(packed),
            "scale": tuple(scale),
        }
        return {**state, "_packed": packed}

    @classmethod
    def _unpack(cls, packed: dict[str, Any], device: torch.device) -> dict[str, Any]:
        kept = dict(packed["plan"])
        kept["scales"] = {role: InputScale(**each) for role, each in kept["scales"].items()}
        kept["dtype"], kept["device"] = getattr(torch, kept["dtype"]), device
        plan = NetworkPlan(**kept)
        arrays = dict(map_arrays(packed["fitted"], device))
        arrays["folds"] = [[unpack_model(each) for each in models] for models in arrays["folds"]]
        if arrays["whole"] is not None:
            arrays["whole"] = unpack_model(arrays["whole"])
        arrays["shrinkage"] = Shrinkage(*packed["fitted"]["shrinkage"])
        arrays["networks"] = plan.template()
        return {
            "device_": device,
            "_plan": plan,
            "_scale": TargetScale(*packed["scale"]),
            "_fitted": CrossFit(**arrays),
        }

    @classmethod
    def _code_in(cls, packed: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
        return [(packed["plan"]["recipes"], role, role) for role in ROLES]

    @classmethod
    def _check_file(cls, state: dict[str, Any]) -> None:
        check_instruments(state["_packed"])

    def _check_loaded(self: Any, packed: dict[str, Any]) -> None:
        check_models(packed, self._fitted.networks)
        try_out(self)
