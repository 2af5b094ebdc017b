"""State of an instrumental estimator: arrays, and the specification to rebuild its nets."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted

from .. import persistence
from .._version import __version__
from ..estimator.state import (
    available_device,
    check_version,
    code_out,
    map_arrays,
    map_tensors,
    write,
)
from ..estimator.state_checks import check_attributes
from ..estimator.targets import TargetScale
from ..training.torch_settings import default_modes, resolve_device
from .cross_fit import CrossFit
from .networks import ROLES, InputScale, NetworkPlan
from .stages import Shrinkage, pack_model, unpack_model
from .state_checks import check_instruments, check_models, try_out

__all__ = ["InstrumentStateMixin"]


class InstrumentStateMixin:
    """Mixin for copying, pickling, saving and loading a fitted estimator."""

    random_state: Any

    def save(self, path: Any) -> None:
        """Save the fitted estimator to one file that can be loaded without running code.

        An existing file is replaced only once the new one is complete and on the disk. If the
        process is killed before that, a file named ``.(32 digits).tmp`` remains in the same
        directory and can be deleted.

        Parameters
        ----------
        path : str or path-like

        Warns
        -----
        UserWarning
            If something is not in the file: a backbone that is code must be passed again to
            :meth:`load`; metadata requests must be set again. A ``random_state`` that is a
            generator is saved as the seed that was drawn from it.

        Raises
        ------
        TypeError
            If a parameter holds something else that is not plain data.
        """
        check_is_fitted(self)
        state = self.__getstate__()
        plan = state["_packed"]["plan"]
        for role in ROLES:
            plan["recipes"][role] = code_out(plan["recipes"][role], role, needed=True)
            state[role] = code_out(state[role], role)
        write(self, state, plan["seed"], path)

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
        """Load an estimator that was saved with :meth:`save`. No code named in the file is run.

        Parameters
        ----------
        path : str or path-like
        treatment_backbone, instrument_backbone, covariate_backbone : optional
            The backbones at fit, if they were code: a module or a callable.
        device : str, default="cpu"
            Device of the loaded estimator, whatever the device at fit.

        Returns
        -------
        estimator

        Raises
        ------
        ModelFileError
            If the file was not written by :meth:`save`, was changed since, or holds another class
            of estimator, or if a required backbone is not passed.
        """
        code = {
            "treatment_backbone": treatment_backbone,
            "instrument_backbone": instrument_backbone,
            "covariate_backbone": covariate_backbone,
        }
        where = str(resolve_device(device))
        state = persistence.load(cls.__name__, path, code)
        with persistence.naming(path):
            check_attributes(cls, state)
            check_instruments(state["_packed"])
            estimator: Any = cls.__new__(cls)
            estimator.__setstate__({**state, "device_": where})
            check_models(state["_packed"], estimator._fitted.networks)
            try_out(estimator)
        return estimator

    def __getstate__(self) -> dict[str, Any]:

        parent: Any = super()
        state = dict(parent.__getstate__())
        if "_fitted" not in state:
            return state
        fitted, plan, scale = (state.pop(name) for name in ("_fitted", "_plan", "_scale"))
        kept = {each.name: getattr(plan, each.name) for each in fields(plan)}
        kept |= {
            "recipes": dict(plan.recipes),
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
            "format": persistence.FORMAT,
            "version": __version__,
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
        if packed is None:
            vars(self).update(state)
            return
        check_version(packed)
        device = available_device(state["device_"])
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
        vars(self).update(state)
        self.device_, self._plan = device, plan
        self._scale = TargetScale(*packed["scale"])
        self._fitted = CrossFit(**arrays)


def _on(value: Any, device: torch.device) -> Any:
    """Move all tensors in a nested value to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_on(part, device) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_on(part, device) for part in value)
    return value
