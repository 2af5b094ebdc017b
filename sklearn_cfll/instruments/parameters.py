"""Constraints of an instrumental estimator's parameters, and the warning for useless ones."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from .._compat import Interval, StrOptions
from .._validation import RealInterval
from ..estimator.effects import changed_parameters, warn_of
from ..estimator.parameters import CONSTRAINTS as SHARED
from .data import InstrumentData

__all__ = ["CONSTRAINTS", "warn_without_effect"]

AMOUNT = RealInterval(0, None, closed="left")
CONSTRAINTS: dict[str, Any] = {
    "treatment_backbone": "no_validation",  # build_backbone validates them
    "instrument_backbone": "no_validation",
    "covariate_backbone": "no_validation",
    "treatment_hidden_sizes": ["array-like", StrOptions({"auto"})],
    "instrument_hidden_sizes": ["array-like"],
    "covariate_hidden_sizes": ["array-like"],
    "activation": SHARED["activation"],
    "stage1_ridge": [AMOUNT],
    "stage2_ridge": [AMOUNT, StrOptions({"auto"})],
    "interaction_scale": [AMOUNT, StrOptions({"auto"})],
    "feature_scale": [AMOUNT, StrOptions({"auto"})],
    "n_folds": [Interval(Integral, 2, None, closed="left")],
    "n_repeats": [Interval(Integral, 1, None, closed="left")],
    "cross_fit": ["boolean"],
    "linear_part": ["boolean"],
    "diagnose": ["boolean"],
    "learning_rate": [RealInterval(0, None, closed="neither")],
    "batch_size": SHARED["batch_size"],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "n_iter_no_change": SHARED["n_iter_no_change"],
    "device": SHARED["device"],
    "precision": [StrOptions({"auto", "float32", "float64"})],
    "n_threads": SHARED["n_threads"],
    "random_state": SHARED["random_state"],
    "verbose": SHARED["verbose"],
}


def warn_without_effect(estimator: Any, data: InstrumentData) -> None:
    """Warn about parameters that were changed but have no effect."""
    changed = dict(changed_parameters(estimator))
    given = {"treatment": data.X, "instrument": data.Z, "covariate": data.C}
    for role, rows in given.items():
        own = [name for name in (f"{role}_backbone", f"{role}_hidden_sizes") if name in changed]
        if rows is None:
            warn_of(own, changed, f"without `{'Z' if role == 'instrument' else 'C'}`.")
        elif len(own) == 2:
            warn_of(own[1:], changed, f"if `{own[0]}` is set.")
