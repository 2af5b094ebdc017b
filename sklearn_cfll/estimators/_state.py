"""An estimator's state as arrays plus the recipe that rebuilds its modules.

Pickle, joblib, copies and :meth:`save` share it. It holds no live module, optimiser or device
tensor, so what was fitted on a GPU opens on a CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from skorch.history import History
from torch import Tensor, nn

from .. import persistence
from ..backbones.splitting import Backbone
from ..training.torch_settings import default_modes
from ._options import resolve_device
from ._plan import Plan
from ._targets import TargetLayout, TargetScale

__all__ = ["StateMixin"]


class StateMixin:
    """Keeping a fitted estimator: in memory, in a pickle, in a file of one's own."""

    random_state: Any

    def save(self, path: Any) -> None:
        """Write the fitted estimator to one file that opens without running code.

        Parameters
        ----------
        path : str or path-like
        """
        check_is_fitted(self)
        left_out = ("callbacks", "_skl_callbacks", "_metadata_request")
        state = {k: v for k, v in self.__getstate__().items() if k not in left_out}
        if isinstance(self.random_state, np.random.RandomState):
            state["random_state"] = None  # a stream; the seed that was drawn is kept
        persistence.save(type(self).__name__, state, path)

    @classmethod
    def load(
        cls, path: Any, *, backbone: Any = None, optimizer: Any = None, device: str = "cpu"
    ) -> Any:
        """Read an estimator that :meth:`save` wrote.

        Parameters
        ----------
        path : str or path-like
        backbone : optional
            What was passed as ``backbone`` at fit, where that was code: a module or a
            callable. Recipes of this package are in the file.
        optimizer : class, optional
            What was passed as ``optimizer``, where that was a class outside torch.
        device : str, default="cpu"
            Where to put it, whatever it was fitted on.
        """
        code = {"backbone": backbone, "optimizer": optimizer}
        state = persistence.load(cls.__name__, path, code)
        estimator = cls.__new__(cls)
        own = {"callbacks": None, "device_": str(resolve_device(device))}
        estimator.__setstate__({**state, **own})
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return to_arrays(state)

    @default_modes()
    def __setstate__(self, state: dict[str, Any]) -> None:
        from_arrays(self, state)


def to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """An estimator's ``__dict__`` with the net and the backbone as plain data."""
    state = dict(state)
    net = state.pop("net_", None)
    if net is None:
        return state
    plan = state.pop("_plan")
    backbone = plan.backbone
    optimizer = None if net.optimizer_ is None else net.optimizer_.state_dict()
    if optimizer is not None and not optimizer["state"]:
        optimizer = None  # not stepped yet: nothing to keep
    state["_packed"] = {
        "module": map_tensors(net.module_.state_dict()),
        "optimizer": map_tensors(optimizer),
        "optimizer_class": type(net.optimizer_).__name__,
        "history": [dict(row, batches=[]) for row in net.history],
        "recipe": (plan.recipe, plan.backbone_kwargs),
        "sample_shape": plan.sample_shape,
        "seed": plan.seed,
        "mean_weight": plan.mean_weight,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "backbone": (backbone.feature_shape, backbone.channels_first, backbone.removed),
        "layout": tuple(plan.layout),
        "scale": tuple(plan.scale),
    }
    state["device_"] = str(state["device_"])
    return state


def from_arrays(estimator: Any, state: dict[str, Any]) -> None:
    """Set an estimator's ``__dict__`` from :func:`to_arrays`, rebuilding its net."""
    state = dict(state)
    packed = state.pop("_packed", None)
    vars(estimator).update(state)
    if packed is None:
        return
    device = torch.device(estimator.device_)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")
    estimator.device_ = device
    recipe, backbone_kwargs = packed["recipe"]
    plan = Plan(
        recipe,
        backbone_kwargs,
        tuple(packed["sample_shape"]),
        packed["seed"],
        device,
        getattr(torch, packed["dtype"]),
        packed["mean_weight"],
    )
    feature_shape, channels_first, removed = packed["backbone"]
    plan.backbone = Backbone(nn.Identity(), tuple(feature_shape), channels_first, removed)
    own_shape, channels_first = packed["layout"]
    plan.layout = TargetLayout(tuple(own_shape), channels_first)
    plan.scale = TargetScale(*packed["scale"])
    plan.rebuild()
    linear = any(name.startswith("linear.") for name in packed["module"])
    net = estimator._make_net(plan, linear)
    net.module_.load_state_dict(map_arrays(packed["module"]))
    net.history_ = History(packed["history"])
    same_optimizer = type(net.optimizer_).__name__ == packed["optimizer_class"]
    if packed["optimizer"] is not None and same_optimizer:
        net.optimizer_.load_state_dict(map_arrays(packed["optimizer"]))
    estimator._plan, estimator.net_ = plan, net


def map_tensors(value: Any) -> Any:
    """Tensors to NumPy arrays, all through dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {key: map_tensors(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part) for part in value)
    return value


def map_arrays(value: Any) -> Any:
    """The way back of :func:`map_tensors`."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: map_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(part) for part in value)
    return value
