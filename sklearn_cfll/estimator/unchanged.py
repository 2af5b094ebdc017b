"""Parameters that later calls cannot change, and the comparison with those at fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone

from ..columns.encoder import ColumnEncoder

__all__ = ["FIXED", "check_unchanged", "fixed_parameters"]

# Parameters that a continued fit cannot change: a new value of one of them raises an error.
FIXED = (
    "backbone",
    "hidden_layer_sizes",
    "activation",
    "dropout",
    "n_members",
    "columns",
    "categorical_features",
    "linear_part",
    "normalize_y",
    "precision",
)


def fixed_parameters(estimator: Any, recipe: Any) -> dict[str, Any]:
    """The :data:`FIXED` parameters of an estimator, for a later comparison.

    A backbone with ``get_params`` is compared by the parameters of ``recipe``, its copy; any other
    is compared by identity.
    """
    found = {name: getattr(estimator, name) for name in FIXED if hasattr(estimator, name)}
    if hasattr(found["backbone"], "get_params"):
        found["backbone"] = recipe
    if isinstance(found["columns"], ColumnEncoder):
        found["columns"] = clone(found["columns"])
    sizes = found["hidden_layer_sizes"]
    found["hidden_layer_sizes"] = list(sizes) if _is_sequence(sizes) else sizes
    return found


def check_unchanged(estimator: Any, parameters: dict[str, Any]) -> None:
    """Raise if one of the parameters at fit has changed."""
    for name, fitted in parameters.items():
        value = getattr(estimator, name)
        if not _same(value, fitted):
            raise ValueError(
                f"`{name}` has changed since the model was fitted, from {fitted!r:.200} to "
                f"{value!r:.200}, and training cannot continue with the new value. Set it "
                "back, or start again: `fit` with warm_start=False."
            )


def _same(value: Any, other: Any) -> bool:
    """Whether two values of a parameter mean the same."""
    if value is other:
        return True
    if hasattr(value, "get_params"):
        same_type = type(value) is type(other)
        return same_type and _same(value.get_params(deep=False), other.get_params(deep=False))
    if isinstance(value, dict):
        same_keys = isinstance(other, dict) and value.keys() == other.keys()
        return same_keys and all(_same(value[key], other[key]) for key in value)
    if _is_sequence(value) and _is_sequence(other):  # a list may equal an array
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_same(*pair) for pair in pairs)
    if _is_sequence(value) or _is_sequence(other):
        return False
    try:
        return bool(value == other)
    except Exception:  # some objects cannot be compared
        return False


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple | range) or (
        hasattr(value, "__array__") and np.ndim(value) > 0
    )
