"""Validation of the parameters of a recipe, as in scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from ._compat import (
    Interval,
    InvalidParameterError,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = ["Choice", "RealInterval", "check_parameters", "positive_integers"]


class RealInterval(Interval):
    """An interval of Python's real numbers that fit a float.

    scikit-learn's own interval compares integers beyond the range of float, and raises for a
    fraction.
    """

    def __init__(self, left: float | None, right: float | None, *, closed: str) -> None:
        super().__init__(Real, left, right, closed=closed)

    def __contains__(self, value: Any) -> bool:
        try:
            return bool(super().__contains__(float(value)))
        except OverflowError:
            return False


class Choice(StrOptions):
    """The names in a table, to which a line may be added."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__(set(table))
        self.table = table

    def is_satisfied_by(self, val: Any) -> bool:
        return isinstance(val, str) and val in self.table


def check_parameters(recipe: Any) -> None:
    """Raise if a parameter violates ``recipe._parameter_constraints``."""
    name, parameters = type(recipe).__name__, recipe.get_params(deep=False)
    for parameter, value in parameters.items():
        allowed = "boolean" in recipe._parameter_constraints[parameter]
        if isinstance(value, bool | np.bool_) and not allowed:  # an integer for Python
            raise InvalidParameterError(
                f"The {parameter!r} parameter of {name} cannot be {value!r}, a boolean."
            )
    validate_parameter_constraints(recipe._parameter_constraints, parameters, name)


def positive_integers(values: Any) -> tuple[int, ...] | None:
    """One or several positive integers as a tuple; None for anything else."""
    if isinstance(values, set | frozenset | dict):
        return None
    if hasattr(values, "tolist"):  # arrays, tensors and their scalars
        values = values.tolist()
    entries = (values,) if isinstance(values, Integral) else tuple(values)
    for entry in entries:
        if isinstance(entry, bool | np.bool_) or not isinstance(entry, Integral) or entry < 1:
            return None
    return tuple(int(entry) for entry in entries) or None
