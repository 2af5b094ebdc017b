"""What is legal for a recipe's parameters, declared and checked as scikit-learn does it."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError, validate_parameter_constraints

__all__ = ["check_parameters", "positive_integers"]


def check_parameters(recipe: Any) -> None:
    """Raise where a parameter is none of what ``recipe._parameter_constraints`` declares."""
    name, parameters = type(recipe).__name__, recipe.get_params(deep=False)
    for parameter, value in parameters.items():
        if isinstance(value, bool | np.bool_):  # Python counts it among the integers
            raise InvalidParameterError(
                f"The {parameter!r} parameter of {name} cannot be {value!r}, a truth value."
            )
    validate_parameter_constraints(recipe._parameter_constraints, parameters, name)


def positive_integers(values: Any) -> tuple[int, ...] | None:
    """One positive integer, or several in their order; None where it is anything else."""
    if isinstance(values, set | frozenset | dict):
        return None
    entries = (values,) if isinstance(values, Integral) else tuple(values)
    for entry in entries:
        if isinstance(entry, bool | np.bool_) or not isinstance(entry, Integral) or entry < 1:
            return None
    return tuple(int(entry) for entry in entries) or None
