"""Identification: whether instruments move the treatments apart, before nets are trained."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np

from .._warnings import user_level
from .data import InstrumentData
from .diagnostics import (
    HypothesisTest,
    Strength,
    effective_f,
    linear_controls,
    orthonormal,
    rank_test,
    sanderson_windmeijer_f,
)
from .names import label
from .networks import RAW_COLUMNS, is_own

__all__ = [
    "LinearStrength",
    "RedundantInstrumentWarning",
    "UnderidentifiedWarning",
    "check_identified",
    "linear_in_columns",
    "linear_strength",
    "warn_of_rank",
]

# A column is explained by others if they leave this share of its norm or less.
EXPLAINED = 1e-8
LEVEL = 0.05  # of the rank test


class RedundantInstrumentWarning(UserWarning):
    """A column of Z is constant, or other columns of Z, C or X explain it."""


class UnderidentifiedWarning(UserWarning):
    """The effect of a treatment is not identified, or hardly."""


class LinearStrength(NamedTuple):
    """Strength of the instruments in the linear first stage, per treatment.

    Attributes
    ----------
    effective_f : list of Strength
        Conditional on the other treatments.
    sanderson_windmeijer : list of HypothesisTest
    rank : HypothesisTest
    """

    effective_f: list[Strength]
    sanderson_windmeijer: list[HypothesisTest]
    rank: HypothesisTest


def check_identified(estimator: Any, data: InstrumentData) -> None:
    """Check columns, the order condition and the rank of Z, all without training.

    Samples of user-defined networks and treatments whose columns are not features are left out,
    because a linear first stage says nothing about them.

    Raises
    ------
    ValueError
        If Z has fewer linearly independent columns, net of C, than X.

    Warns
    -----
    RedundantInstrumentWarning, UnderidentifiedWarning
    """
    if data.Z is None or not linear_in_columns(estimator, data):
        return
    controls = linear_controls(data.C, data.total)
    repeated = _warn_of_copies(data)
    idle = _dependent(data.Z, controls)
    for position in sorted(idle - repeated):
        warnings.warn(
            f"Column {label(data.names['Z'], position)} of `Z` is constant, or a linear "
            "combination of `C` and of earlier columns of `Z`: it adds nothing. Leave it out.",
            RedundantInstrumentWarning,
            stacklevel=user_level(),
        )
    lost = _dependent(data.X, controls)
    for position in sorted(lost):
        _warn_underidentified(
            f"Column {label(data.names['X'], position)} of `X` is constant, or a linear "
            "combination of `C` and of earlier columns of `X`: its own effect is not identified. "
            "Leave it out."
        )
    n_treatments, n_moving = data.X.shape[1] - len(lost), data.Z.shape[1] - len(idle)
    if n_treatments == 0:
        raise ValueError(
            "No column of `X` varies beside `C`: each is constant, or a linear combination of "
            "`C`. Leave columns of `C` out that repeat the treatment, or pass another one."
        )
    if n_moving < n_treatments:
        raise ValueError(
            f"{n_treatments} treatments need at least as many instruments, but `Z` has {n_moving} "
            f"linearly independent column{'' if n_moving == 1 else 's'} beside `C`. Add "
            "instruments, or functions of them that are meant to identify the effects (powers, "
            "products with columns of `C`); or move treatments to `C` if they are exogenous."
        )


def linear_strength(data: InstrumentData) -> LinearStrength:
    """Effective F, Sanderson-Windmeijer F and rank test of the linear first stage."""
    assert data.Z is not None
    given = data.X, data.Z, linear_controls(data.C, data.total), data.counts
    strengths = effective_f(*given, data.groups)
    return LinearStrength(strengths, sanderson_windmeijer_f(*given), rank_test(*given))


def warn_of_rank(strength: LinearStrength, names: dict[str, Any]) -> None:
    """Warn if the linear first stage does not move several treatments apart."""
    if len(strength.effective_f) < 2 or strength.rank.p_value <= LEVEL:
        return
    values = ", ".join(
        f"{label(names['X'], j)}: {test.statistic:.2f}"
        for j, test in enumerate(strength.sanderson_windmeijer)
    )
    _warn_underidentified(
        "The instruments hardly move the treatments apart from each other: a rank test does not "
        f"reject that they move fewer directions than there are columns in `X` (p "
        f"{strength.rank.p_value:.2g}; Sanderson-Windmeijer F {values}). The separate effects are "
        "not identified by a linear first stage; use other instruments or fewer treatments."
    )


def linear_in_columns(estimator: Any, data: InstrumentData) -> bool:
    """Whether a linear first stage is about the columns of X and Z themselves."""
    own = map(is_own, (estimator.treatment_backbone, estimator.instrument_backbone))
    parts = [part for part in (data.X, data.Z, data.C) if part is not None]
    return not any(own) and all(part.ndim == 2 for part in parts) and data.X.shape[1] <= RAW_COLUMNS


def _dependent(columns: np.ndarray, controls: np.ndarray | None) -> set[int]:
    """Positions of columns that a constant, the controls and earlier columns explain."""
    n = len(columns)
    known = [np.ones((n, 1)), *([] if controls is None else [controls])]
    basis = orthonormal(np.hstack(known))
    found = set()
    for position, column in enumerate(_normalised(columns).T):
        rest = column
        for _ in range(2):  # once leaves rounding errors
            rest = rest - basis @ (basis.T @ rest)
        length = np.linalg.norm(rest)
        if length <= EXPLAINED:
            found.add(position)
        else:
            basis = np.column_stack([basis, rest / length])
    return found


def _warn_of_copies(data: InstrumentData) -> set[int]:
    """Warn of columns of Z that equal a column of X or C up to location and scale."""
    assert data.Z is not None
    found = set()
    for name, other in (("X", data.X), ("C", data.C)):
        if other is None or other.ndim != 2:
            continue
        pairs = np.abs(_normalised(data.Z).T @ _normalised(other))
        for i, j in np.argwhere(pairs > 1 - 1e-10):
            found.add(int(i))
            warnings.warn(
                f"Column {label(data.names['Z'], i)} of `Z` repeats column "
                f"{label(data.names[name], j)} of `{name}`. An instrument affects the treatment "
                "and is not a regressor; put an exogenous column in `C` only.",
                RedundantInstrumentWarning,
                stacklevel=user_level(),
            )
    return found


def _normalised(rows: np.ndarray) -> np.ndarray:
    """Columns with mean zero and norm one; constant columns are zero."""
    centered = rows - rows.mean(axis=0)
    length = np.linalg.norm(centered, axis=0)
    noise = 1e-12 * np.abs(rows).max(axis=0) * np.sqrt(len(rows))
    return np.where(length > noise, centered / np.where(length > 0, length, 1.0), 0.0)


def _warn_underidentified(message: str) -> None:
    warnings.warn(message, UnderidentifiedWarning, stacklevel=user_level())
