"""What "auto" means for an instrumental estimator, and what is tried where it is a choice."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import torch

from ..estimator.defaults import DEFAULTS
from ..estimator.effects import changed_parameters, warn_of
from .data import InstrumentData
from .networks import RAW_COLUMNS, NetworkPlan
from .stages import Settings, Shrinkage

__all__ = [
    "iv_dtype",
    "resolved",
    "shrinkage_choices",
    "shrinkage_log_prior",
    "training_settings",
    "treatment_sizes",
]

# Averaged by held-out likelihood. A ridge of 0.1 is left out: rows are held out where treatments
# were observed, where it does well; where they would be set it cost 10% to 40% (n = 1000).
INTERACTION_SCALES = (0.03, 0.1, 0.3, 1.0)
FEATURE_SCALES = (0.0, 0.3, 1.0)
STAGE2_RIDGES = (0.001, 0.01, 0.03)
# Held-out loss says little about interactions on noisy data, and choosing by it alone cost a tenth
# of the error (demand design, n = 1000): others than the middle one must be this much likelier.
MIDDLE_INTERACTIONS, LOG_EVIDENCE = 0.1, 3.0
# Ridge of the raw treatment's own slope, over 1 / n: a prior as wide as the outcome's spread.
# Drawing it to zero as hard as other columns cost curves of one treatment a factor of two to three.
SLOPES = 1.0
# In force while nets are trained. Treatment features at full scale cost up to 20% on the demand
# design, whose truth is linear in the treatment, and gained nothing where it is not.
TRAINING = Shrinkage(interactions=0.1, features=0.3, ridge=0.01)

# Up to this many rows weights equal repetitions to rounding; beyond, float32 halves the time.
FLOAT64_ROWS = 400
FULL_BATCH_ROWS, MINI_BATCH_ROWS = 10_000, 1024


def shrinkage_choices(
    estimator: Any, n_rows: float, *, has_confounders: bool, has_both_features: bool
) -> list[Shrinkage]:
    """All combinations that would make a difference."""
    interactions = INTERACTION_SCALES if has_confounders else (0.0,)
    features = FEATURE_SCALES if has_both_features else (1.0,)
    grids = (interactions, features, STAGE2_RIDGES)
    chosen = [
        grid if value == "auto" else (float(value),)
        for value, grid in zip(_given(estimator), grids, strict=True)
    ]
    slopes = SLOPES / n_rows if estimator.stage2_ridge == "auto" else float("inf")
    return [
        Shrinkage(interactions, features, ridge, slopes)
        for interactions, features, ridge in itertools.product(*chosen)
    ]


def shrinkage_log_prior(estimator: Any, shrinkages: list[Shrinkage]) -> list[float]:
    """A preference among shrinkages that are about equally likely."""
    if estimator.interaction_scale != "auto":
        return [0.0] * len(shrinkages)
    return [-LOG_EVIDENCE * (each.interactions != MIDDLE_INTERACTIONS) for each in shrinkages]


def training_settings(estimator: Any, n_rows: int) -> Settings:
    """Settings of a training on this many rows."""
    shrinkage = Shrinkage(
        *(
            default if value == "auto" else float(value)
            for value, default in zip(_given(estimator), TRAINING[:3], strict=True)
        )
    )
    size = estimator.batch_size
    if size == "auto":
        size = "full" if n_rows <= FULL_BATCH_ROWS else MINI_BATCH_ROWS
    return Settings(
        float(estimator.learning_rate),
        float(estimator.stage1_ridge),
        shrinkage,
        None if size == "full" else int(size),
    )


def resolved(
    estimator: Any, plan: NetworkPlan, shrinkage: Shrinkage, n_rows: int
) -> dict[str, Any]:
    """What every "auto" stood for in a fit, by the parameters' names."""
    given = plan.recipes["treatment_backbone"] is not None
    return {
        "treatment_hidden_sizes": None if given else plan.hidden_sizes["treatment_backbone"],
        "stage2_ridge": shrinkage.ridge,
        "interaction_scale": shrinkage.interactions,
        "feature_scale": shrinkage.features,
        "batch_size": training_settings(estimator, n_rows).batch_size or n_rows,
        "precision": str(plan.dtype).removeprefix("torch."),
        "device": str(plan.device),
        "n_threads": estimator.n_threads or 1,
    }


def warn_without_effect(estimator: Any, data: InstrumentData) -> None:
    """Warn of parameters that were changed and do nothing."""
    changed = dict(changed_parameters(estimator))
    given = {"treatment": data.X, "instrument": data.Z, "covariate": data.C}
    for role, rows in given.items():
        own = [name for name in (f"{role}_backbone", f"{role}_hidden_sizes") if name in changed]
        if rows is None:
            warn_of(own, changed, f"without `{'Z' if role == 'instrument' else 'C'}`.")
        elif len(own) == 2:
            warn_of(own[1:], changed, f"beside `{own[0]}`.")


def treatment_sizes(given: Any, n_columns: int) -> Any:
    """Widths of the treatment's perceptron; few features where they stand beside the treatment.

    Of (8, 1), (16, 4) and (32, 8) beside one treatment the first was as good or better where
    the truth is linear and up to twice as bad where it is not; the last gained nothing more.
    """
    if not isinstance(given, str):
        return given
    return (16, 4) if n_columns <= RAW_COLUMNS else (64, 32, 16)


def iv_dtype(precision: str, n_rows: int, device: torch.device) -> torch.dtype:
    """The dtype of the nets."""
    return replace(DEFAULTS, float64_rows=FLOAT64_ROWS).dtype(precision, (n_rows,), device)


def _given(estimator: Any) -> tuple[Any, Any, Any]:
    """The three kinds of shrinkage as the user set them, in the order of `Shrinkage`."""
    return estimator.interaction_scale, estimator.feature_scale, estimator.stage2_ridge
