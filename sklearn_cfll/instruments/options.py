"""Values of "auto" of an instrumental estimator, and candidate values of the shrinkage."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from ..estimator import defaults
from ..persistence import dtype_name
from .networks import RAW_COLUMNS, NetworkPlan
from .stages import Settings, Shrinkage

__all__ = [
    "DEFAULTS",
    "resolved",
    "shrinkage_choices",
    "training_settings",
    "treatment_sizes",
]

# Averaged by held-out likelihood. A ridge of 0.1 is not a candidate: it does well on held-out rows,
# whose treatments are observed, but cost 10% to 40% where treatments are set (n = 1000).
INTERACTION_SCALES = (0.03, 0.1, 0.3, 1.0)
FEATURE_SCALES = (0.0, 0.3, 1.0)
STAGE2_RIDGES = (0.001, 0.01, 0.03)
# The held-out loss hardly depends on the interaction scale on noisy data, and choosing by it alone
# increased the error by a tenth (demand design, n = 1000). So scales other than the middle one need
# this much more log-likelihood.
MIDDLE, LOG_EVIDENCE = 0.1, 3.0
# Ridge on the raw treatment's slope, in units of 1 / n: a prior as wide as the outcome's spread.
# With the ridge of the other columns, errors on curves of one treatment were two to three times
# as large.
SLOPES = 1.0
# Used while nets are trained, on what the linear offset leaves over. Trained on the outcome itself,
# errors on the demand design fell to those without an offset, but on Card's data the curve was flat
# for some random states. Treatment features at full scale cost up to 20% on the demand design,
# whose structural function is linear in the treatment, and gained nothing on others.
TRAINING = Shrinkage(interactions=0.1, features=0.3, ridge=0.01)

# Larger nets of the instruments than the default overfit the first stage, which shrinks effects:
# (128, 64, 32) increased the error by half on a simple relation, without a clear gain on the demand
# design.

# Up to this many rows weights equal repetitions up to rounding; with more, float32 halves the time.
DEFAULTS = replace(defaults.DEFAULTS, float64_rows=400)
FULL_BATCH_ROWS, MINI_BATCH_ROWS = 10_000, 1024


def shrinkage_choices(
    estimator: Any,
    n_rows: float,
    *,
    has_confounders: bool,
    has_both_features: bool,
    has_offset: bool,
) -> dict[Shrinkage, float]:
    """All combinations that have an effect, with their log prior.

    The prior decides between almost equally likely ones.
    """
    interactions = INTERACTION_SCALES if has_confounders else (0.0,)
    features = FEATURE_SCALES if has_both_features else (1.0,)
    grids = (interactions, features, STAGE2_RIDGES)
    chosen = [
        grid if value == "auto" else (float(value),)
        for value, grid in zip(_given(estimator), grids, strict=True)
    ]
    slopes = SLOPES / n_rows if estimator.stage2_ridge == "auto" else float("inf")
    doubt = LOG_EVIDENCE if estimator.interaction_scale == "auto" else 0.0
    found = {
        Shrinkage(interactions, features, ridge, slopes): -doubt * (interactions != MIDDLE)
        for interactions, features, ridge in itertools.product(*chosen)
    }
    return found if not has_offset else with_offset(found, has_confounders)


def with_offset(choices: dict[Shrinkage, float], has_confounders: bool) -> dict[Shrinkage, float]:
    """The choices above the offset and without it, and less and less beside the offset."""
    whole = {each._replace(offset=1.0): prior for each, prior in choices.items()}
    controls = {
        Shrinkage(0.0, 0.0, ridge, slopes=0.0, offset=1.0): 0.0
        for ridge in {each.ridge: None for each in choices if has_confounders}
    }
    alone = {Shrinkage(0.0, 0.0, 1.0, slopes=0.0, controls=0.0, offset=1.0): 0.0}
    return whole | choices | controls | alone


def training_settings(estimator: Any, n_rows: int, *, has_offset: bool = False) -> Settings:
    """Training settings for this number of rows."""
    scales = [
        default if value == "auto" else float(value)
        for value, default in zip(_given(estimator), TRAINING[:3], strict=True)
    ]
    shrinkage = Shrinkage(*scales)._replace(offset=float(has_offset))
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
    """The value used for each "auto" in a fit, by parameter name."""
    given = plan.recipes["treatment_backbone"] is not None
    return {
        "treatment_hidden_sizes": None if given else plan.hidden_sizes["treatment_backbone"],
        "stage2_ridge": shrinkage.ridge,
        "interaction_scale": shrinkage.interactions,
        "feature_scale": shrinkage.features,
        "batch_size": training_settings(estimator, n_rows).batch_size or n_rows,
        "precision": dtype_name(plan.dtype),
        "device": str(plan.device),
        "n_threads": estimator.n_threads or 1,
    }


def treatment_sizes(given: Any, n_columns: int) -> Any:
    """Widths of the treatment's perceptron, with few features if the treatment is one too.

    Of (8, 1), (16, 4) and (32, 8) for one treatment, the first was as good or better for linear
    structural functions and up to twice as bad for others; the last gained nothing more.
    """
    if not isinstance(given, str):
        return given
    return (16, 4) if n_columns <= RAW_COLUMNS else (64, 32, 16)


def _given(estimator: Any) -> tuple[Any, Any, Any]:
    """The three kinds of shrinkage as the user set them, in the order of `Shrinkage`."""
    return estimator.interaction_scale, estimator.feature_scale, estimator.stage2_ridge
