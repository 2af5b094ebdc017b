"""Checks on the state of a regressor or classifier from a file, before anything is built."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from ..backbones.recipe import cast_module
from ..columns.encoder import ColumnEncoder
from ..columns.expansion import NUMBER, Levels
from ..columns.reader import TableReader
from ..columns.rows import as_rows
from ..heads.closed_form import SOLVERS
from ..heads.memory import MEMORIES
from ..linalg import RIDGES, Moments
from ..persistence import DTYPES, ModelFileError, recipe_name
from ..training.batches import RowsDataset
from ..training.optimizers import OPTIMIZERS
from .file_checks import (
    Fields,
    check_fields,
    check_layers,
    check_local_part,
    is_amount,
    is_arrays,
    is_count,
    is_floats,
    is_history,
    is_list_of_dicts,
    is_number,
    is_optional,
    is_reader,
    is_sample_shape,
    is_shape,
    without_memory,
)
from .fitted import INPUT_DTYPES
from .network import members_of
from .packing import part_of
from .unchanged import FIXED

__all__ = ["check_optimizer", "check_packed", "try_out"]


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


TRAINING: Fields = {
    "optimizer": is_optimizer_state,
    "optimizer_class": lambda v: isinstance(v, type) or (isinstance(v, str) and v in OPTIMIZERS),
    "compile": lambda v: isinstance(v, bool),
    "history": lambda v: is_history(v) and all(row.get("valid_loss", 0.0) is not None for row in v),
}
NETWORK: Fields = {
    "recipe": lambda v: v is not None,
    "encoder": lambda v: v is None or isinstance(v, ColumnEncoder),
    "sample_shape": is_sample_shape,
    "copies": lambda v: is_count(v) and v > 0,
    "seed": lambda v: is_count(v) and v < 2**32,
    "dtype": lambda v: v in ("float32", "float64"),
    "feature_shape": lambda v: is_shape(v) and len(v) > 0,
    "channels_first": lambda v: isinstance(v, bool),
    "removed": lambda v: isinstance(v, str | None),
    "input_dtype": lambda v: all(
        part in INPUT_DTYPES for part in (v.values() if isinstance(v, dict) else [v])
    ),
}
HEAD: Fields = {
    "ridge": lambda v: is_number(v) and v >= 0,
    "decay": lambda v: is_number(v) and 0 <= v <= 1,
    "memory": lambda v: v in tuple(MEMORIES),
    "solver": lambda v: v in SOLVERS,
}


def check_packed(cls: Any, state: dict[str, Any]) -> None:
    """Check that all parts of a state have the structure and the sizes that fit together."""
    packed = state["_packed"]
    for name in ("model", "training", "known_rows"):
        if not isinstance(packed.get(name), dict):
            raise ModelFileError(f"state: `{name}` is missing.")
    model = packed["model"]
    check_fields(packed["training"], TRAINING, "training")
    for name, fields in (("network", NETWORK), ("head", HEAD)):
        if not isinstance(model.get(name), dict):
            raise ModelFileError(f"model: `{name}` is missing.")
        check_fields(model[name], fields, name)
    layout = model.get("layout")
    if not (isinstance(layout, tuple) and len(layout) == 2 and is_shape(layout[0])):
        raise ModelFileError(f"model: `layout` cannot be {layout!r:.80}.")
    shape, k = model["network"]["sample_shape"], math.prod(layout[0])
    is_table = not isinstance(shape, dict) and len(shape) == 1
    columns = state["n_features_in_"] if is_table else None
    check_fields(model, model_fields(model["network"], k, columns), "model")
    encoded = model["network"]["encoder"] is not None
    numbers = model["module"].get("backbone.columns.expansion.numbers") if encoded else None
    known = columns if numbers is None else numbers.size
    check_fields(packed["known_rows"], known_fields(known), "known_rows")
    check_attributes_of(cls, state, k)
    check_sizes(model, k, columns)


def n_members_in(network: dict[str, Any]) -> int:
    """Number of members of a described network."""
    return members_of(network["recipe"]) * int(network["copies"])


def model_fields(network: dict[str, Any], k: int, columns: int | None) -> Fields:
    """Fields of a model with k targets, on a table of so many columns (None for other inputs)."""
    d = network["feature_shape"][-1] // max(1, n_members_in(network))

    def is_scores(value: Any) -> bool:
        """Whether a value is a tuple of calibration `Scores`."""
        if not isinstance(value, tuple) or len(value) != 4:
            return False
        *ranked, n_samples, inflation = value
        n_scores = len(inflation) if is_floats(inflation, None) else 0
        return (
            n_scores in (1, k)  # a classifier has one for all classes
            and all(isinstance(each, tuple) and len(each) == 2 for each in ranked)
            and all(is_floats(each[0], None, n_scores) and len(each[0]) > 0 for each in ranked)
            and all(is_floats(each[1], *each[0].shape) for each in ranked)
            and is_amount(n_samples)
            and n_samples > 0
        )

    def is_noise(value: Any) -> bool:
        """Whether a value is a `NoiseModel` on one network's features; fields add one input."""
        return (
            isinstance(value, tuple)
            and len(value) == 4
            and (is_floats(value[0], k, d) or is_floats(value[0], k, d + 1))
            and all(is_floats(part, k) for part in value[1:])
        )

    def is_map(value: Any) -> bool:
        """Whether a value is a tuple of `Probabilities`."""
        return isinstance(value, tuple) and len(value) == 2 and all(map(is_amount, value))

    def is_scored(value: Any) -> bool:
        """Whether a value is a tuple of an array of floats and a score."""
        return (
            isinstance(value, tuple)
            and len(value) == 2
            and isinstance(value[0], np.ndarray)
            and value[0].dtype.kind == "f"
            and is_number(value[1])
        )

    return {
        "module": is_arrays,
        "offset": is_optional(is_arrays),
        "local_part": is_optional(is_arrays),
        "layout": lambda v: isinstance(v[1], bool),
        "scale": lambda v: (
            isinstance(v, tuple)
            and len(v) == 2
            and all(isinstance(part, np.ndarray) and part.dtype == np.float64 for part in v)
            and all(part.shape == (k,) and np.isfinite(part).all() for part in v)
            and bool((v[1] > 0).all())
        ),
        "parameters": lambda v: isinstance(v, dict) and "backbone" in v and set(v) <= set(FIXED),
        "mean_weight": lambda v: is_amount(v) and v > 0,
        "reader": is_optional(lambda v: is_reader(v, columns, k)),
        "final_ridge": is_amount,
        "noise_variance": lambda v: is_floats(v, k) and bool((v >= 0).all()),
        "n_judges": is_amount,
        "noise": is_optional(is_noise),
        "scores": is_optional(is_scores),
        "probabilities": is_map,
        "of_one": is_map,
        "left_out": is_optional(is_scored),
        "out_of_fold": is_optional(
            lambda v: is_scored(v) and v[0].ndim > 1 and v[0].shape[-1] == k
        ),
        "influences": is_optional(lambda v: is_floats(v, columns) and bool((v >= 0).all())),
    }


def known_fields(columns: int | None) -> Fields:
    """Fields of a `KnownRows`."""

    def is_moments(value: Any) -> bool:
        """Whether a value is a tuple of `ColumnMoments`."""
        return (
            isinstance(value, tuple)
            and len(value) == 3
            and is_amount(value[0])
            and all(isinstance(part, np.ndarray) and part.dtype.kind == "f" for part in value[1:])
            and value[1].shape == value[2].shape
            and columns in (None, *value[1].shape)
        )

    return {
        "is_stream": lambda v: isinstance(v, bool),
        "n_known": lambda v: is_amount(v) and v > 0,
        "target_reach": is_amount,
        "rows_seen": lambda v: isinstance(v, np.ndarray) and v.dtype == np.uint64 and v.ndim == 1,
        "columns": is_optional(is_moments),
        "ridge_errors": is_optional(lambda v: is_floats(v, len(RIDGES))),
        "folds": is_count,
    }


def check_attributes_of(cls: Any, state: dict[str, Any], k: int) -> None:
    """Check the fitted attributes that are no part of the model."""
    fields: Fields = {
        "history_": is_history,
        "n_iter_": is_count,
        "best_iteration_": is_count,
        "resolved_": lambda v: isinstance(v, dict),
    }
    if hasattr(cls, "predict_proba"):
        one_label = not state.get("multilabel_")
        fields |= {
            "multilabel_": lambda v: isinstance(v, bool),
            "classes_": lambda v: (
                isinstance(v, np.ndarray) and (not one_label or v.shape == (2 if k == 1 else k,))
            ),
        }
    check_fields(state, fields, "state")


def check_sizes(model: dict[str, Any], n_targets: int, n_columns: int | None) -> None:
    """Check that the modules to build have the sizes of the stored arrays."""
    module, network = model["module"], model["network"]
    *_, width = network["feature_shape"]
    n_members = n_members_in(network)
    if n_members > len(module) or n_members < 1 or width % n_members:
        raise ModelFileError(f"network: `n_members` cannot be {n_members}.")
    members = [f"members.{i}." for i in range(n_members)] if n_members > 1 else [""]
    for member in members:
        check_last_layer(module, f"last_layer.{member}", n_targets, width // n_members)
    offset, shape = model["offset"], network["sample_shape"]
    if offset is not None:
        if isinstance(shape, dict) or len(shape) != 1:
            raise ModelFileError("offset: a linear part needs samples of shape (n_features,).")
        (columns,) = shape
        check_last_layer(offset, "layer.", n_targets, columns)
        if not is_floats(offset.get("columns.mean"), columns):
            raise ModelFileError(f"offset: `columns.mean` is not of shape {(columns,)}.")
    dtype, prefix = DTYPES[network["dtype"]], "backbone."
    widths: tuple[int, ...] = ()
    if network["encoder"] is not None:
        prefix = "backbone.network."
        columns = part_of(module, "backbone.columns.")
        levels = [NUMBER] * (n_columns or 0)
        if model["reader"] is not None:
            levels = TableReader.unpack(model["reader"]).levels
        widths = check_columns(network["encoder"], shape, columns, dtype, levels)
        parts = (len(columns[f"expansion.{name}"]) for name in ("numbers", "gaps", "categories"))
        check_local_part(model["local_part"], n_targets, sum(parts))
        shape = (sum(widths),)
    elif model["local_part"] is not None:
        raise ModelFileError("local_part: it needs an encoding of columns.")
    if recipe_name(network["recipe"]) is None:
        return  # user-defined and passed to `load`
    if network["removed"] is not None:
        raise ModelFileError("network: no layer is split off a recipe's network.")
    held = part_of(module, prefix)
    check_layers(without_memory(network["recipe"], shape, widths, held, dtype), held)


def check_columns(
    encoder: ColumnEncoder,
    sample_shape: Any,
    held: dict[str, np.ndarray],
    dtype: torch.dtype,
    levels: list[Levels],
) -> tuple[int, ...]:
    """Check that the arrays of an encoding fit together; return the widths of its parts."""
    columns = cast_module(encoder.build(), torch.device("cpu"), dtype)
    try:
        columns.load_state_dict({name: torch.from_numpy(array) for name, array in held.items()})
        check_layers(columns, held)
        columns.expansion.check(levels)
        (n_expanded,) = sample_shape
        if n_expanded != columns.expansion.n_outputs:
            raise ModelFileError(f"columns: an expanded row cannot have {n_expanded} entries.")
        (width,) = columns.encode(torch.zeros(1, n_expanded, dtype=torch.float64))[0].shape
        scale = columns.column_scale
        if scale is not None and (scale.shape[-1] != width or scale.ndim not in (1, 3)):
            raise ModelFileError(f"columns: `column_scale` cannot have shape {tuple(scale.shape)}.")
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
        return isinstance(value, tuple) and len(value) == len(wanted) and all(map(_finite, value))
    return _finite(value) if is_number(wanted) else value is wanted


def _finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def try_out(estimator: Any) -> None:
    """Predict with a perceptron to check that its parts (scales, columns) fit together.

    Other networks are not run, because their memory use is not bounded by the file's size.
    """
    network = estimator._model.plan.network
    if network.is_perceptron:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = torch.zeros((1, *network.sample_shape), dtype=torch.float64)
            estimator._model.outputs(RowsDataset(as_rows(rows, network.device, None)))
