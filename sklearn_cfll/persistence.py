"""One file for a fitted estimator: arrays and a JSON text, opened without running code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from .backbones.fno import FNOBackbone
from .backbones.mlp import MLPBackbone
from .training.optimizers import OPTIMIZERS

__all__ = ["load", "save"]

FORMAT = 1
RECIPES = {"FNOBackbone": FNOBackbone, "MLPBackbone": MLPBackbone}


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


def load(name: str, path: Any, code: dict[str, Any]) -> dict[str, Any]:
    """Read the state that :func:`save` wrote.

    Parameters
    ----------
    name : str
        Name of the class that is expected.
    path : str or path-like
    code : dict
        By parameter, what stands in for code that is not in the file.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            content = json.loads(str(file["content"]))
            arrays = {key: file[key] for key in file.files if key != "content"}
    except (KeyError, ValueError, AttributeError, EOFError, TypeError, BadZipFile) as error:
        raise ValueError(f"{str(path)!r} was not written by `save`.") from error
    if content["class"] != name:
        raise ValueError(
            f"{str(path)!r} holds a {content['class']}; open it with {content['class']}.load."
        )
    if content["format"] > FORMAT:
        raise ValueError(f"{str(path)!r} was written by a newer version of sklearn_cfll.")
    return _decode(content["state"], arrays, code)


def _encode(value: Any, arrays: dict[str, Any], parameter: str = "") -> Any:
    """JSON for plain data; arrays go aside, code is left out by the parameter it came from."""

    def encode(part: Any) -> Any:
        return _encode(part, arrays, parameter)

    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return encode(value.item())
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return {"object_array": encode(value.tolist())}
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, dict):
        names = {"recipe": "backbone"}
        pairs = value.items()
        return {"dict": [[encode(k), _encode(v, arrays, str(names.get(k, k)))] for k, v in pairs]}
    if isinstance(value, tuple):
        return {"tuple": [encode(part) for part in value]}
    if isinstance(value, list):
        return [encode(part) for part in value]
    if type(value).__name__ in RECIPES:
        return {"recipe": type(value).__name__, "params": encode(value.get_params())}
    if isinstance(value, type) and value in OPTIMIZERS.values():
        return {"optimizer": value.__name__}
    return {"code": type(value).__name__, "parameter": parameter}


def _decode(value: Any, arrays: dict[str, Any], code: dict[str, Any]) -> Any:
    def decode(part: Any) -> Any:
        return _decode(part, arrays, code)

    if isinstance(value, list):
        return [decode(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "object_array" in value:
        return np.array(decode(value["object_array"]), dtype=object)
    if "dict" in value:
        return {decode(k): decode(v) for k, v in value["dict"]}
    if "tuple" in value:
        return tuple(decode(part) for part in value["tuple"])
    if "recipe" in value:
        return RECIPES[value["recipe"]](**decode(value["params"]))
    if "optimizer" in value:
        return getattr(torch.optim, value["optimizer"])
    given = code.get(value["parameter"])
    if given is None:
        raise ValueError(
            f"The estimator was fitted with `{value['parameter']}` of type {value['code']}, "
            f"which is code and not in the file: pass the same one as `{value['parameter']}`."
        )
    return given
