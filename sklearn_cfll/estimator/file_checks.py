"""Checks on a state from a file that all estimators share.

A digest shows that a file is unchanged, not who wrote it. These checks prevent a hand-made file
from shadowing methods, from requesting more memory than it holds, and from causing uninformative
errors.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backbones.recipe import cast_module, takes_generator
from ..columns.reader import unpacked
from ..columns.target_means import MOST_TARGETS
from ..final_solve.local_part import STATE
from ..persistence import ModelFileError, dtype_name
from ..training.seeding import own_generator

__all__ = ["Fields", "check_attributes", "check_fields", "check_layers", "is_amount", "is_arrays"]
__all__ += ["check_local_part", "is_count", "is_floats", "is_history", "is_list_of_dicts"]
__all__ += ["is_number", "is_optional", "is_reader", "is_sample_shape", "is_shape"]
__all__ += ["without_memory"]

MOST_INPUTS = 2**28  # numbers in one sample
Fields = dict[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def is_amount(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1e300


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_shape(value: Any) -> bool:
    """Whether a value is a tuple of sizes with at most ``MOST_INPUTS`` numbers."""
    return (
        isinstance(value, tuple | list)
        and all(is_count(size) for size in value)
        and math.prod(max(1, size) for size in value) <= MOST_INPUTS
    )


def is_sample_shape(value: Any) -> bool:
    """Whether a value is the shape of a sample, or of each named input."""
    if isinstance(value, dict):
        return bool(value) and all(
            isinstance(name, str) and is_shape(part) for name, part in value.items()
        )
    return is_shape(value) and len(value) > 0


def is_arrays(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(array, np.ndarray) and array.dtype.kind in "biufc"
        for name, array in value.items()
    )


def is_floats(value: Any, *shape: int | None) -> bool:
    """Whether a value is an array of floats of this shape; None allows any size."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype in (np.float32, np.float64)
        and value.ndim == len(shape)
        and all(wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True))
    )


def is_list_of_dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def is_history(value: Any) -> bool:
    """Whether losses are numbers; the validation loss may be None if no rows were held out."""
    return is_list_of_dicts(value) and all(
        is_number(row[name]) or (row[name] is None and name != "train_loss")
        for row in value
        for name in {"train_loss", "valid_loss"} & set(row)
    )


def is_optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A predicate that also holds for None."""
    return lambda value: value is None or fits(value)


def check_fields(values: dict[str, Any], fields: Fields, where: str) -> None:
    """Raise if a field is missing or invalid."""
    for name, fits in fields.items():
        if name not in values:
            raise ModelFileError(f"{where}: `{name}` is missing.")
        if not fits(values[name]):
            raise ModelFileError(f"{where}: `{name}` cannot be {values[name]!r:.80}.")


def check_attributes(cls: Any, state: dict[str, Any]) -> None:
    """Check that all parameters are present and no method or property is shadowed."""
    parameters = set(cls._get_param_names()) - {"callbacks"}
    missing = parameters - set(state)
    if missing or not isinstance(state.get("_packed"), dict):
        raise ModelFileError(f"state: `{min(missing | {'_packed'})}` is missing.")
    for name in set(state) - parameters - {"_packed", "_sklearn_version"}:
        own = inspect.getattr_static(cls, name, None)
        defined = callable(own) or hasattr(own, "__get__")  # a method or a property
        if defined or not name.isidentifier() or name.startswith("_"):
            raise ModelFileError(f"state: there is no attribute `{name}`.")
    fields: Fields = {
        "n_features_in_": is_count,
        "n_threads": lambda v: v is None or (is_count(v) and v > 0),
    }
    check_fields(state, {name: fits for name, fits in fields.items() if name in state}, "state")


def without_memory(
    recipe: Any,
    sample_shape: tuple[int, ...],
    widths: tuple[int, ...],
    held: dict[str, np.ndarray],
    dtype: torch.dtype,
) -> nn.Module:
    """The network that a recipe of this package builds, on torch's meta device.

    ``held`` contains the arrays that it should have, and possibly those of other networks.
    """
    layers = getattr(recipe, "hidden_layer_sizes", ())
    n_layers = len(layers) if hasattr(layers, "__len__") else getattr(recipe, "n_layers", 0)
    n_layers = max(n_layers, getattr(recipe, "n_layers", 0))
    if n_layers > len(held):  # each layer has an array
        raise ModelFileError(f"recipe: {len(held)} arrays are too few for {n_layers} layers.")
    try:
        options: dict[str, Any] = {"widths": widths} if widths else {}
        if takes_generator(recipe):
            options["generator"] = own_generator("cpu", 0)
        with torch.device("meta"):
            module = recipe.build(tuple(sample_shape), **options)
        return cast_module(module, torch.device("meta"), dtype)
    except Exception as error:
        raise ModelFileError(f"recipe: the network cannot be built ({error}).") from error


def check_layers(module: nn.Module, held: dict[str, np.ndarray]) -> None:
    """Check that the arrays match the ``state_dict`` of this module in shape and dtype."""
    for name, tensor in module.state_dict().items():
        array, wanted = held.get(name), dtype_name(tensor.dtype)
        if array is None or array.shape != tuple(tensor.shape) or array.dtype.name != wanted:
            raise ModelFileError(
                f"module: `{name}` is not the array of shape {tuple(tensor.shape)} and dtype "
                f"{wanted} that the recipe requires."
            )


def is_reader(value: Any, n_columns: int | None, n_targets: int) -> bool:
    """Whether a value is a packed `TableReader` of this many columns, for so many targets."""
    if not isinstance(value, dict) or set(value) != {"contents", "names", "values", "means"}:
        return False
    contents, names = value["contents"], value["names"]
    return (
        isinstance(contents, tuple)
        and len(contents) == n_columns
        and all(isinstance(each, tuple) and len(each) == 2 for each in contents)
        and all(is_optional(is_levels)(levels) for levels, _ in contents)
        and all(isinstance(ordered, bool) for _, ordered in contents)
        and (
            names is None
            or (isinstance(names, list) and all(isinstance(each, str) for each in names))
        )
        and _are_values_and_means(value["values"], value["means"], contents, n_targets)
    )


def _are_values_and_means(values: Any, means: Any, contents: Any, n_targets: int) -> bool:
    """Whether these are levels of columns of numbers, and means of levels."""
    for each in (values, means):
        if not isinstance(each, tuple) or not all(
            isinstance(pair, tuple) and len(pair) == 2 and is_count(pair[0]) for pair in each
        ):
            return False
        if len({place for place, _ in each}) < len(each):
            return False
    known = [unpacked(levels) for levels, _ in contents]
    for column, levels in values:
        numbers = column < len(contents) and known[column] is None
        if not numbers or not is_levels(levels) or not is_floats(levels, len(levels)):
            return False
        if not len(levels) or not bool((np.diff(levels) > 0).all()):
            return False
    known += [levels for _, levels in values]
    return all(
        place < len(known)
        and (levels := known[place]) is not None
        and is_floats(found, len(levels) + 2, min(n_targets, MOST_TARGETS))
        for place, found in means
    )


def is_levels(value: Any) -> bool:
    """Whether a value holds the levels of a category, each of them once."""
    if isinstance(value, tuple):
        arrays = len(value) == 2 and all(isinstance(part, np.ndarray) for part in value)
        if not arrays or [part.dtype.kind for part in value] != ["u", "i"]:
            return False
    elif not (isinstance(value, np.ndarray) and value.dtype == np.float64 and value.ndim == 1):
        return False
    levels = unpacked(value)
    return levels is not None and len(set(levels)) == len(levels)


def check_local_part(local: dict[str, np.ndarray] | None, k: int, n_located: int) -> None:
    """Check that the arrays of a local part fit together, and rows of so many coordinates."""
    if local is None:
        return
    if set(local) != set(STATE):
        raise ModelFileError(f"local_part: it must have {', '.join(STATE)}, got {sorted(local)}.")
    used, q = local["used"], len(local["weights"]) if local["weights"].ndim else 0
    shapes: dict[str, tuple[int, ...]] = {"places": (q, used.size), "residuals": (q, k)}
    shapes |= {
        "steps": (local["steps"].size,),
        "weights": (q,),
        "explained": (k,),
        "bandwidth": (),
        "prior": (),
        "alone": (),
    }
    for name, shape in shapes.items():
        if not is_floats(local[name], *shape):
            raise ModelFileError(f"local_part: `{name}` is not an array of floats {shape}.")
    fits = used.ndim == 1 and used.dtype == np.int64 and len(used) > 0 and q > 0
    if not fits or used.min() < 0 or used.max() >= n_located or len(local["steps"]) > len(used):
        raise ModelFileError("local_part: `used` holds no indices of columns.")
    if not (local["bandwidth"] > 0 and local["prior"] > 0 and (local["weights"] >= 0).all()):
        raise ModelFileError("local_part: `bandwidth` and `prior` must be positive.")
