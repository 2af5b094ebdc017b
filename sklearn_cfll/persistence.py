"""Keeping fitted estimators: state as arrays plus the recipe that rebuilds the modules.

Pickle, joblib, copies, :meth:`save` and :meth:`load` share it. It holds no live module,
optimiser or device tensor, so what was fitted on a GPU opens on a CPU.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch.history import History
from torch import Tensor

from .backbones.mlp import MLPBackbone
from .backbones.recipe import rebuild_backbone
from .training.optimizers import OPTIMIZERS
from .training.net import preserved_random_state

__all__ = ["load", "save"]

FORMAT = 1
# Fitted state of an estimator whose names do not end in an underscore.
PRIVATE_STATE = ("_dtype", "_layout", "_recipe", "_sample_shape", "_scale", "_seed",
                 "_split_backbone", "_temperature")
RECIPES = {"MLPBackbone": MLPBackbone}


def to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """An estimator's ``__dict__`` with the net and the backbone as plain data."""
    state = dict(state)
    net = state.pop("net_", None)
    if net is None:
        return state
    backbone = state.pop("_split_backbone")
    optimizer = None if net.optimizer_ is None else net.optimizer_.state_dict()
    if optimizer is not None and not optimizer["state"]:
        optimizer = None  # not stepped yet: nothing to keep
    state["_packed"] = {
        "module": map_tensors(net.module_.state_dict()),
        "optimizer": map_tensors(optimizer),
        "optimizer_class": type(net.optimizer_).__name__,
        "history": [dict(row, batches=[]) for row in net.history],
        "best_losses": net.best_losses_,
        "backbone": (backbone.feature_shape, backbone.channels_first, backbone.removed),
    }
    state["device_"] = str(state["device_"])
    state["_dtype"] = str(state["_dtype"]).removeprefix("torch.")
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
    dtype = getattr(torch, estimator._dtype)
    estimator.device_, estimator._dtype = device, dtype
    recipe, backbone_kwargs = estimator._recipe
    feature_shape, channels_first, removed = packed["backbone"]
    sample = torch.zeros(2, *estimator._sample_shape, device=device, dtype=dtype)
    with preserved_random_state(device, estimator._seed):
        estimator._split_backbone = rebuild_backbone(
            recipe, backbone_kwargs, sample, tuple(feature_shape), channels_first, removed
        )
        net = estimator._make_net()
        net.initialize()
    net.module_.load_state_dict(map_arrays(packed["module"]))
    net.history_ = History(packed["history"])
    net.best_losses_ = dict(packed["best_losses"])
    same_optimizer = type(net.optimizer_).__name__ == packed["optimizer_class"]
    if packed["optimizer"] is not None and same_optimizer:
        net.optimizer_.load_state_dict(map_arrays(packed["optimizer"]))
    estimator.net_ = net


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


def save(estimator: Any, path: Any) -> None:
    """Write a fitted estimator as a zip of arrays and one JSON text (``numpy.savez``)."""
    arrays: dict[str, np.ndarray] = {}
    state = {
        key: value
        for key, value in estimator.__getstate__().items()
        if key not in ("callbacks", "_sklearn_output_config", "_skl_callbacks")
    }
    content = {
        "format": FORMAT,
        "class": type(estimator).__name__,
        "state": _encode(state, arrays),
    }
    with Path(path).open("wb") as file:
        np.savez(file, content=np.array(json.dumps(content)), **arrays)


def load(cls: type, path: Any, *, backbone: Any = None, device: str = "cpu") -> Any:
    """Read what :func:`save` wrote; no code from the file is run."""
    with np.load(Path(path), allow_pickle=False) as file:
        if "content" not in file:
            raise ValueError(f"{str(path)!r} was not written by `save`.")
        content = json.loads(str(file["content"]))
        arrays = {name: file[name] for name in file.files if name != "content"}
    if content["class"] != cls.__name__:
        raise ValueError(
            f"{str(path)!r} holds a {content['class']}; open it with {content['class']}.load."
        )
    if content["format"] > FORMAT:
        raise ValueError(f"{str(path)!r} was written by a newer version of sklearn_cfll.")
    state = _decode(content["state"], arrays, backbone)
    state.update(callbacks=None, device_=device)
    estimator = cls.__new__(cls)
    estimator.__setstate__(state)
    return estimator


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON for plain data; arrays go aside, code is left out by name."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return _encode(value.item(), arrays)
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return {"object_array": _encode(value.tolist(), arrays)}
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, dict):
        return {"dict": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, tuple):
        fields = {"TargetLayout", "TargetScale"} & {type(value).__name__}
        return {"tuple": [_encode(part, arrays) for part in value], "of": next(iter(fields), None)}
    if isinstance(value, list):
        return [_encode(part, arrays) for part in value]
    if type(value).__name__ in RECIPES:
        return {"recipe": type(value).__name__, "params": _encode(value.get_params(), arrays)}
    if value in OPTIMIZERS.values():
        return {"optimizer": value.__name__}
    return {"external": type(value).__name__}


def _decode(value: Any, arrays: dict[str, np.ndarray], backbone: Any) -> Any:
    if isinstance(value, list):
        return [_decode(part, arrays, backbone) for part in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "object_array" in value:
        return np.array(_decode(value["object_array"], arrays, backbone), dtype=object)
    if "dict" in value:
        pairs = value["dict"]
        return {_decode(k, arrays, backbone): _decode(v, arrays, backbone) for k, v in pairs}
    if "tuple" in value:
        parts = tuple(_decode(part, arrays, backbone) for part in value["tuple"])
        if value["of"] is not None:
            from .estimators import _targets

            return getattr(_targets, value["of"])(*parts)
        return parts
    if "recipe" in value:
        return RECIPES[value["recipe"]](**_decode(value["params"], arrays, backbone))
    if "optimizer" in value:
        return getattr(torch.optim, value["optimizer"])
    if backbone is None:
        raise ValueError(
            f"The estimator was fitted with a backbone of type {value['external']}, which is "
            "code and not in the file: pass the same one as `backbone`."
        )
    return backbone
