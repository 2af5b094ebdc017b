"""Checks on a state from a file, before anything is built from it.

A digest shows that a file is unchanged, not who wrote it. These checks prevent a hand-made file
from shadowing methods, from requesting more memory than it holds, and from causing uninformative
errors.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backbones.mlp import MLPBackbone
from ..backbones.recipe import cast_module, takes_generator
from ..columns.encoder import ColumnEncoder
from ..heads.closed_form import SOLVERS
from ..heads.memory import MEMORIES
from ..linalg import RIDGES, Moments
from ..persistence import ModelFileError, recipe_name
from ..training.optimizers import OPTIMIZERS
from ..training.seeding import own_generator
from .plan import FIXED

__all__ = ["INPUT_DTYPES", "check_attributes", "check_fields", "check_layers", "check_learnt"]
__all__ += ["check_optimizer", "check_packed"]
__all__ += ["Fields", "check_sizes", "is_arrays", "is_count", "is_history", "is_number"]
__all__ += ["is_shape", "try_out", "without_memory"]

INPUT_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "int64", "bool")}
MOST_INPUTS = 2**28  # numbers in one sample
Fields = dict[str, Callable[[Any], bool]]


def is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


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


def is_optimizer_state(value: Any) -> bool:
    """Whether a value looks like an optimiser's ``state_dict``, or is None."""
    if value is None:
        return True
    return (
        isinstance(value, dict)
        and isinstance(value.get("state"), dict)
        and all(isinstance(part, dict) for part in value["state"].values())
        and is_list_of_dicts(value.get("param_groups"))
    )


PACKED: Fields = {
    "module": is_arrays,
    "offset": lambda v: v is None or is_arrays(v),
    "last_layer": lambda v: isinstance(v, dict),
    "optimizer": is_optimizer_state,
    "optimizer_class": lambda v: isinstance(v, type) or (isinstance(v, str) and v in OPTIMIZERS),
    "compile": lambda v: isinstance(v, bool),
    "history": lambda v: is_history(v) and all(row.get("valid_loss", 0.0) is not None for row in v),
    "plan": lambda v: isinstance(v, dict),
    "backbone": lambda v: (
        isinstance(v, tuple)
        and len(v) == 3
        and is_shape(v[0])
        and len(v[0]) > 0
        and isinstance(v[1], bool)
        and isinstance(v[2], str | None)
    ),
    "input_dtype": lambda v: all(
        part in INPUT_DTYPES for part in (v.values() if isinstance(v, dict) else [v])
    ),
    "layout": lambda v: (
        isinstance(v, tuple) and len(v) == 2 and is_shape(v[0]) and isinstance(v[1], bool)
    ),
    "scale": lambda v: (
        isinstance(v, tuple)
        and len(v) == 2
        and all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in v)
    ),
}
PLAN: Fields = {
    "recipe": lambda v: v is not None,
    "encoder": lambda v: v is None or isinstance(v, ColumnEncoder),
    "sample_shape": is_sample_shape,
    "seed": lambda v: is_count(v) and v < 2**63,
    "dtype": lambda v: v in ("float32", "float64"),
    "mean_weight": lambda v: is_number(v) and v > 0,
    "parameters": lambda v: isinstance(v, dict) and "backbone" in v and set(v) <= set(FIXED),
}
LAST_LAYER: Fields = {
    "n_members": lambda v: is_count(v) and v > 0,
    "ridge": lambda v: is_number(v) and v >= 0,
    "decay": lambda v: is_number(v) and 0 <= v <= 1,
    "memory": lambda v: v in tuple(MEMORIES),
    "solver": lambda v: v in SOLVERS,
}


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
    for name in set(state) - parameters:
        own = inspect.getattr_static(cls, name, None)
        defined = callable(own) or hasattr(own, "__get__")  # a method or a property
        if defined or not name.isidentifier() or name.startswith("__"):
            raise ModelFileError(f"state: there is no attribute `{name}`.")
    fields: Fields = {
        "n_outputs_": is_count,
        "n_features_in_": is_count,
        "n_threads": lambda v: v is None or (is_count(v) and v > 0),
    }
    if "multilabel_" in state and not state["multilabel_"]:
        n_outputs = state.get("n_outputs_")
        fields["classes_"] = lambda v: (
            isinstance(v, np.ndarray) and v.shape == (2 if n_outputs == 1 else n_outputs,)
        )
    check_fields(state, {name: fits for name, fits in fields.items() if name in state}, "state")


def check_packed(packed: dict[str, Any]) -> None:
    """Check that the data of the net have the structure that ``to_arrays`` produces."""
    check_fields(packed, PACKED, "state")
    check_fields(packed["plan"], PLAN, "plan")
    check_fields(packed["last_layer"], LAST_LAYER, "last_layer")


def check_sizes(packed: dict[str, Any], state: dict[str, Any]) -> None:
    """Check that the modules to build have the sizes of the stored arrays."""
    module, plan = packed["module"], packed["plan"]
    (*_, width), _, removed = packed["backbone"]
    own_shape, _ = packed["layout"]
    n_targets, n_members = math.prod(own_shape), packed["last_layer"]["n_members"]
    if state.get("n_outputs_", n_targets) != n_targets:
        raise ModelFileError(f"state: `n_outputs_` is not the {n_targets} of the layout.")
    for part in packed["scale"]:
        if part.shape != (n_targets,):
            raise ModelFileError(f"scale: {part.shape} is not the shape of {n_targets} targets.")
    if n_members > len(module) or width % n_members:
        raise ModelFileError(f"last_layer: `n_members` cannot be {n_members}.")
    members = [f"members.{i}." for i in range(n_members)] if n_members > 1 else [""]
    for member in members:
        check_last_layer(module, f"last_layer.{member}", n_targets, width // n_members)
    offset = packed["offset"]
    if offset is not None:
        if isinstance(plan["sample_shape"], dict) or len(plan["sample_shape"]) != 1:
            raise ModelFileError("offset: a linear part needs samples of shape (n_features,).")
        (columns,) = plan["sample_shape"]
        check_last_layer(offset, "layer.", n_targets, columns)
        if not is_floats(offset.get("columns.mean"), columns):
            raise ModelFileError(f"offset: `columns.mean` is not of shape {(columns,)}.")
    if recipe_name(plan["recipe"]) is None:
        return  # user-defined and passed to `load`
    if removed is not None:
        raise ModelFileError("state: no layer is split off a recipe's network.")
    dtype, shape = getattr(torch, plan["dtype"]), plan["sample_shape"]
    widths: tuple[int, ...] = ()
    prefix = "backbone."
    if plan["encoder"] is not None:
        prefix = "backbone.network."
        widths = check_columns(plan["encoder"], shape, part_of(module, "backbone.columns."), dtype)
        shape = (sum(widths),)
    held = part_of(module, prefix)
    check_layers(without_memory(plan["recipe"], shape, widths, held, dtype), held)


def part_of(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of a state whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def check_columns(
    encoder: ColumnEncoder, sample_shape: Any, held: dict[str, np.ndarray], dtype: torch.dtype
) -> tuple[int, ...]:
    """Check that the arrays of an encoding fit together; return the widths of its parts."""
    columns = cast_module(encoder.build(), torch.device("cpu"), dtype)
    try:
        columns.load_state_dict({name: torch.from_numpy(array) for name, array in held.items()})
        check_layers(columns, held)
        (n_columns,) = sample_shape
        (width,) = columns(torch.zeros(1, n_columns, dtype=torch.float64))[0].shape
    except ModelFileError:
        raise
    except Exception as error:
        raise ModelFileError(f"columns: the encoding does not fit ({error}).") from error
    if width != sum(columns.widths):
        raise ModelFileError(f"columns: {columns.widths} outputs are expected, got {width}.")
    return columns.widths


def check_last_layer(
    module: dict[str, np.ndarray], prefix: str, n_targets: int, n_features: int
) -> None:
    """Check the shapes of the arrays of a closed-form layer; moments are complete or absent."""
    k, d = n_targets, n_features
    moments = {
        "total": (),
        "feature_mean": (d,),
        "target_mean": (k,),
        "gram": (d, d),
        "cross": (k, d),
        "target_square": (k,),
    }
    assert set(moments) == set(Moments._fields)
    shapes: dict[str, tuple[int, ...]] = {"weight": (k, d), "bias": (k,)}
    held = {f"{prefix}moments_{name}" for name in moments} & set(module)
    if held:
        shapes |= {f"moments_{name}": shape for name, shape in moments.items()}
    come_and_go = {"moments_ridge": (), "shrinkage": (k,), "feature_power": ()}
    shapes |= {name: shape for name, shape in come_and_go.items() if prefix + name in module}
    for name, shape in shapes.items():
        if not is_floats(module.get(prefix + name), *shape):
            raise ModelFileError(f"module: `{prefix}{name}` is not an array of floats {shape}.")
    if len({module[name].dtype for name in held}) > 1:
        raise ModelFileError(f"module: `{prefix}moments_...` have several dtypes.")


def check_learnt(cls: Any, state: dict[str, Any], packed: dict[str, Any]) -> None:
    """Check that the fitted attributes are present and match the sizes of the net."""
    (*_, width), _, _ = packed["backbone"]
    k, shape = math.prod(packed["layout"][0]), packed["plan"]["sample_shape"]
    columns = shape[0] if not isinstance(shape, dict) and len(shape) == 1 else None

    def is_seen(value: Any) -> bool:
        """Whether a value is a tuple of `ColumnMoments`."""
        return (
            isinstance(value, tuple)
            and len(value) == 3
            and is_amount(value[0])
            and all(isinstance(part, np.ndarray) and part.dtype.kind == "f" for part in value[1:])
            and value[1].shape == value[2].shape
            and columns in (None, *value[1].shape)
        )

    def is_scores(value: Any) -> bool:
        """Whether a value is a tuple of calibration `Scores`."""
        if not isinstance(value, tuple) or len(value) != 4:
            return False
        scores, shares, n_samples, inflation = value
        return (
            is_floats(scores, None, k)
            and len(scores) > 0
            and is_floats(shares, *scores.shape)
            and is_amount(n_samples)
            and n_samples > 0
            and is_floats(inflation, k)
        )

    def is_noise(value: Any) -> bool:
        """Whether a value is a `NoiseModel` on one network's features; fields add one input."""
        d = width // packed["last_layer"]["n_members"]
        return (
            isinstance(value, tuple)
            and len(value) == 4
            and (is_floats(value[0], k, d) or is_floats(value[0], k, d + 1))
            and all(is_floats(part, k) for part in value[1:])
        )

    def is_optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
        return lambda value: value is None or fits(value)

    fields: Fields = {
        "history_": is_history,
        "n_iter_": is_count,
        "best_iteration_": is_count,
        "final_ridge_": is_amount,
        "decay_": is_amount,
        "noise_variance_": lambda v: is_floats(v, k),
        "resolved_": lambda v: isinstance(v, dict),
        "_is_stream": lambda v: isinstance(v, bool),
        "_n_known": is_amount,
        "_n_judges": is_amount,
        "_rows_seen": lambda v: isinstance(v, np.ndarray) and v.dtype == np.uint32 and v.ndim == 1,
        "_slope_squares": is_optional(lambda v: is_floats(v, columns)),
        "_columns_seen": is_optional(is_seen),
        "_ridge_errors": is_optional(lambda v: is_floats(v, len(RIDGES))),
        "_target_reach": is_amount,
    }
    if hasattr(cls, "predict_proba"):
        fields |= {
            "multilabel_": lambda v: isinstance(v, bool),
            "classes_": lambda v: isinstance(v, np.ndarray),
            "_probabilities": lambda v: (
                isinstance(v, tuple) and len(v) == 2 and all(map(is_amount, v))
            ),
        }
    else:
        fields |= {
            "_scores": is_optional(is_scores),
            "_noise": is_optional(is_noise),
            "_left_out": is_optional(
                lambda v: (
                    isinstance(v, tuple)
                    and len(v) == 2
                    and isinstance(v[0], np.ndarray)
                    and v[0].dtype.kind == "f"
                    and is_number(v[1])
                )
            ),
        }
    check_fields(state, fields, "state")


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
        array, wanted = held.get(name), str(tensor.dtype).removeprefix("torch.")
        if array is None or array.shape != tuple(tensor.shape) or array.dtype.name != wanted:
            raise ModelFileError(
                f"module: `{name}` is not the array of shape {tuple(tensor.shape)} and dtype "
                f"{wanted} that the recipe requires."
            )


def check_optimizer(optimizer: Any) -> None:
    """Check settings and state against those of a new optimiser after one step.

    Fused kernels do not check shapes. A user-defined class may need more than a step.
    """
    kind = type(optimizer)
    if kind not in OPTIMIZERS.values():
        return
    number = nn.Parameter(torch.zeros(1))
    number.grad = torch.zeros(1)
    options = set(inspect.signature(kind).parameters) & set(optimizer.defaults)
    example = kind([number], **{name: optimizer.defaults[name] for name in options})
    example.step()
    (settings,), known = example.param_groups, example.state[number]
    for group in optimizer.param_groups:
        for name, wanted in settings.items():
            if name != "params" and not _same_kind(group.get(name), wanted):
                raise ModelFileError(f"optimizer: `{name}` cannot be {group.get(name)!r:.80}.")
    for parameter, state in optimizer.state.items():
        tensors = {name: wanted for name, wanted in known.items() if torch.is_tensor(wanted)}
        for name, wanted in tensors.items():
            value, shape = state.get(name), tuple(parameter.shape if wanted.ndim else ())
            fits = torch.is_tensor(value) and value.shape == shape
            if not (fits and (value.is_floating_point() or value.dtype == parameter.dtype)):
                raise ModelFileError(f"optimizer: `{name}` is not a numeric array {shape}.")


def _same_kind(value: Any, wanted: Any) -> bool:
    """Whether two settings have the same type; settings that are not numbers must be equal."""
    if isinstance(wanted, tuple):
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(is_number, value))
    return is_number(value) if is_number(wanted) else value is wanted


def try_out(estimator: Any) -> None:
    """Predict with a perceptron to check that its parts (scales, columns) fit together.

    Other networks are not run, because their memory use is not bounded by the file's size.
    """
    plan = estimator._plan
    if isinstance(plan.recipe, MLPBackbone):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.predict(np.zeros((1, *plan.sample_shape)))
