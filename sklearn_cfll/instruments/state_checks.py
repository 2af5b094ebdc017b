"""Checks of an instrumental estimator's state from a file, before anything is built from it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from ..backbones.mlp import ACTIVATIONS, MLPBackbone
from ..estimator.file_checks import (
    Fields,
    check_fields,
    check_layers,
    is_arrays,
    is_count,
    is_floats,
    is_history,
    is_number,
    is_optional,
    is_shape,
    without_memory,
)
from ..persistence import DTYPES, ModelFileError, recipe_name
from .networks import ROLES, is_own
from .stages import Model, Shrinkage

__all__ = ["check_instruments", "check_models", "try_out"]


def by_role(value: Any, fits: Any) -> bool:
    return isinstance(value, dict) and set(value) == set(ROLES) and all(map(fits, value.values()))


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def is_pairs(value: Any) -> bool:
    """Whether a value is nested lists or tuples of arrays, such as maps and scalings."""
    if isinstance(value, list | tuple):
        return all(map(is_pairs, value))
    return is_array(value)


def is_scale(value: Any) -> bool:
    """Whether a value is a tuple of mean and deviation of columns."""
    return isinstance(value, tuple) and len(value) == 2 and all(is_floats(v, None) for v in value)


def is_names(value: Any) -> bool:
    """Whether a value is None or a tuple of strings."""
    strings = isinstance(value, tuple) and all(isinstance(each, str) for each in value)
    return value is None or strings


def is_offset(value: Any) -> bool:
    """Whether a value holds slopes of treatments, of confounders or None, and a constant."""
    parts = isinstance(value, tuple) and len(value) == 3
    return parts and all(map(is_optional(is_array), value))


def is_curve(value: Any) -> bool:
    """Whether a value holds knots of each treatment, and a covariance of a level and all knots."""
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], list)):
        return False
    knots, covariance = value
    if not all(is_floats(each, None) and (np.diff(each) > 0).all() for each in knots):
        return False
    size = 1 + sum(map(len, knots))
    return min(map(len, knots), default=0) > 1 and is_floats(covariance, size, size)


def is_models(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(is_model, value))


def is_model(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == set(Model._fields)


PARTS: Fields = {
    "plan": is_dict,
    "models": is_dict,
    "scale": is_scale,
    "resolved": is_dict,
    "diagnostics": is_dict,
    "effect": is_optional(is_dict),
    "curve": is_optional(is_curve),
}
PLAN: Fields = {
    "recipes": lambda v: by_role(v, lambda part: True),
    "hidden_sizes": lambda v: by_role(v, lambda part: is_shape(part) and len(part) > 0),
    "activation": lambda v: v in ACTIVATIONS,
    "shapes": lambda v: by_role(v, is_optional(is_shape)),
    "scales": lambda v: by_role(v, is_optional(is_scale)),
    "n_first_stages": lambda v: v in (0, 1, 2),
    "dtype": lambda v: v in ("float32", "float64"),
    "seed": lambda v: is_count(v) and v < 2**63,
    "names": lambda v: (
        isinstance(v, dict) and set(v) == {"X", "Z", "C"} and all(map(is_names, v.values()))
    ),
}
MODELS: Fields = {
    "folds": lambda v: isinstance(v, list) and len(v) > 0 and all(map(is_models, v)),
    "whole": is_optional(is_model),
    "shrinkage": lambda v: (
        isinstance(v, tuple) and len(v) == len(Shrinkage._fields) and all(map(is_number, v))
    ),
    "held_out_loss": is_number,
    "history": lambda v: is_history(v) and v != [] and all(is_count(row.get("epoch")) for row in v),
    "best_epoch": is_count,
    "n_rows": is_number,
    "n_repeats": lambda v: is_count(v) and v > 0,
    "level": is_number,
}
MODEL: Fields = {
    "state": is_arrays,
    "scalings": lambda v: isinstance(v, dict) and all(map(is_pairs, v.values())),
    "first_stages": is_pairs,
    "corrections": is_pairs,
    "weight": is_pairs,
    "bias": is_pairs,
    "mean": is_array,
    "covariance": is_optional(is_array),
    "offset": is_optional(is_offset),
    "share": is_array,
}


def check_instruments(packed: dict[str, Any]) -> None:
    """Check the structure of the state, and that its arrays are large enough for the nets."""
    check_fields(packed, {"model": is_dict}, "state")
    packed = packed["model"]
    check_fields(packed, PARTS, "model")
    plan = packed["plan"]
    check_fields(plan, PLAN, "plan")
    check_fields(packed["models"], MODELS, "models")
    for model in _models(packed):
        check_fields(model, MODEL, "model")
    held = next(_models(packed))["state"]
    most = _n_numbers(next(_models(packed)))
    for role, recipe in plan["recipes"].items():
        shape, sizes = plan["shapes"][role], plan["hidden_sizes"][role]
        if shape is None:
            continue
        if recipe is None:
            recipe = MLPBackbone(sizes, plan["activation"])
        if recipe_name(recipe) is not None:
            module = without_memory(recipe, shape, (), held, DTYPES[plan["dtype"]])
            wanted = sum(tensor.numel() for tensor in module.state_dict().values())
        else:
            # Raw columns, or a user-defined backbone that is passed to `load`.
            wanted = 0 if is_own(recipe) else math.prod(shape)
        if wanted > most:
            raise ModelFileError(f"plan: `{role}` requires more numbers than the arrays hold.")


def check_models(packed: dict[str, Any], networks: nn.Module) -> None:
    """Check that every model has the arrays of these networks."""
    for model in _models(packed):
        check_layers(networks, model["state"])


def try_out(estimator: Any) -> None:
    """Predict for zeros to check that all parts fit together; skip user-defined networks."""
    plan = estimator._model.plan
    if any(is_own(recipe) for recipe in plan.recipes.values()):
        return
    X, Z, C = (None if plan.shapes[r] is None else np.zeros((2, *plan.shapes[r])) for r in ROLES)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.predict(X, C, return_std=True)
        estimator.score(X, np.arange(2.0), Z=Z, C=C)
        estimator.summary()


def _n_numbers(value: Any) -> int:
    """Number of elements of all arrays in a nested value."""
    if isinstance(value, dict):
        value = list(value.values())
    return sum(map(_n_numbers, value)) if isinstance(value, list | tuple) else np.size(value)


def _models(packed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    models = packed["models"]
    yield from itertools.chain.from_iterable(models["folds"])
    if models["whole"] is not None:
        yield models["whole"]
