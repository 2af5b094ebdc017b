"""An instrumental estimator's state as arrays plus what rebuilds its nets."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .. import persistence
from ..training._stages import Shrinkage, pack_model, unpack_model
from ..training.cross_fit import CrossFit
from ..training.torch_settings import default_modes
from ._instrument_networks import InputScale, NetworkPlan
from ._options import resolve_device
from ._state import map_arrays, map_tensors
from ._targets import TargetScale

__all__ = ["InstrumentStateMixin"]


class InstrumentStateMixin:
    """Keeping a fitted estimator: in memory, in a pickle, in a file of one's own."""

    random_state: Any

    def save(self, path: Any) -> None:
        """Write the fitted estimator to one file that opens without running code.

        Parameters
        ----------
        path : str or path-like
        """
        check_is_fitted(self)
        state = {k: v for k, v in self.__getstate__().items() if k != "_metadata_request"}
        if isinstance(self.random_state, np.random.RandomState):
            state["random_state"] = None  # a stream; the seed that was drawn is kept
        persistence.save(type(self).__name__, state, path)

    @classmethod
    def load(
        cls,
        path: Any,
        *,
        treatment_backbone: Any = None,
        instrument_backbone: Any = None,
        covariate_backbone: Any = None,
        device: str = "cpu",
    ) -> Any:
        """Read an estimator that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        treatment_backbone, instrument_backbone, covariate_backbone : optional
            What was passed at fit, where that was code: a module or a callable.
        device : str, default="cpu"
            Where to put it, whatever it was fitted on.
        """
        code = {
            "treatment_backbone": treatment_backbone,
            "instrument_backbone": instrument_backbone,
            "covariate_backbone": covariate_backbone,
        }
        state = persistence.load(cls.__name__, path, code)
        estimator = cls.__new__(cls)
        estimator.__setstate__({**state, "device_": str(resolve_device(device))})
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        parent: Any = super()
        state = dict(parent.__getstate__())
        if "_fitted" not in state:
            return state
        fitted, plan, scale = (state.pop(name) for name in ("_fitted", "_plan", "_scale"))
        kept = {each.name: getattr(plan, each.name) for each in fields(plan)}
        kept |= {
            "scales": {role: asdict(each) for role, each in plan.scales.items()},
            "dtype": str(plan.dtype).removeprefix("torch."),
            "device": None,
        }
        packed = {each.name: getattr(fitted, each.name) for each in fields(fitted)}
        packed |= {
            "networks": None,
            "folds": [[pack_model(model) for model in models] for models in fitted.folds],
            "whole": None if fitted.whole is None else pack_model(fitted.whole),
            "shrinkage": tuple(fitted.shrinkage),
        }
        state["_packed"] = {
            "plan": kept,
            "fitted": map_tensors(packed),
            "scale": tuple(scale),
        }
        state["device_"] = str(state["device_"])
        return state

    @default_modes()
    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        packed = state.pop("_packed", None)
        vars(self).update(state)
        if packed is None:
            return
        device = torch.device(state["device_"])
        if device.type == "cuda" and not torch.cuda.is_available():
            device = torch.device("cpu")
        kept = dict(packed["plan"])
        kept["scales"] = {role: InputScale(**each) for role, each in kept["scales"].items()}
        kept["dtype"], kept["device"] = getattr(torch, kept["dtype"]), device
        plan = NetworkPlan(**kept)
        arrays = dict(map_arrays(packed["fitted"]))
        arrays["folds"] = [
            [_on(unpack_model(model), device) for model in models] for models in arrays["folds"]
        ]
        if arrays["whole"] is not None:
            arrays["whole"] = _on(unpack_model(arrays["whole"]), device)
        arrays["shrinkage"] = Shrinkage(*packed["fitted"]["shrinkage"])
        arrays["networks"] = plan.template()
        self.device_, self._plan = device, plan
        self._scale = TargetScale(*packed["scale"])
        self._fitted = CrossFit(**arrays)


def _on(value: Any, device: torch.device) -> Any:
    """Tensors anywhere inside, moved to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_on(part, device) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_on(part, device) for part in value)
    return value
