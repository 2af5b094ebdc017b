"""One file for a fitted estimator: arrays and a JSON text, opened without running code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .backbones.mlp import MLPBackbone
from .training.optimizers import OPTIMIZERS

__all__ = ["load", "save"]

FORMAT = 1
RECIPES = {"MLPBackbone": MLPBackbone}


def save(name: str, state: dict[str, Any], path: Any) -> None:
    """Write an estimator's state (see ``__getstate__``) as a zip of arrays and one JSON text.

    Parameters
    ----------
    name : str
        Name of the estimator's class.
    state : dict
        Arrays, plain data, and recipes of this package; other code is left out by name.
    path : str or path-like
    """
    arrays: dict[str, Any] = {}
    content = {"format": FORMAT, "class": name, "state": _encode(state, arrays)}
    with Path(path).open("wb") as file:
        np.savez(file, content=np.array(json.dumps(content)), **arrays)


def load(name: str, path: Any, backbone: Any = None) -> dict[str, Any]:
    """Read the state that :func:`save` wrote.

    Parameters
    ----------
    name : str
        Name of the class that is expected.
    path : str or path-like
    backbone : optional
        Stands in for code that is not in the file.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            content = json.loads(str(file["content"]))
            arrays = {key: file[key] for key in file.files if key != "content"}
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} was not written by `save`.") from error
    if content["class"] != name:
        raise ValueError(
            f"{str(path)!r} holds a {content['class']}; open it with {content['class']}.load."
        )
    if content["format"] > FORMAT:
        raise ValueError(f"{str(path)!r} was written by a newer version of sklearn_cfll.")
    return _decode(content["state"], arrays, backbone)


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
        return {"tuple": [_encode(part, arrays) for part in value]}
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
        return tuple(_decode(part, arrays, backbone) for part in value["tuple"])
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
