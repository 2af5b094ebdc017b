"""One fit of an instrumental estimator: from checked rows to what it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..backbones.recipe import kept_recipe
from ..estimator.targets import TargetScale
from ..training.seeding import draw_seed
from ..training.torch_settings import resolve_device
from .cross_fit import Schedule, cross_fit
from .curve_posterior import curve_posterior
from .data import InstrumentData, fold_labels
from .effect import control_residuals, effect_of
from .fitted import FittedInstruments
from .fold_models import FoldModels
from .identification import linear_in_columns, linear_strength, warn_of_rank
from .networks import ROLES, NetworkPlan, input_scale
from .offset import fit_offsets, has_offset
from .options import (
    DEFAULTS,
    resolved,
    shrinkage_choices,
    training_settings,
    treatment_sizes,
)
from .report import diagnose
from .stages import InstrumentRows, Offset

__all__ = ["fit_instruments"]


def fit_instruments(
    estimator: Any, data: InstrumentData, first_sample: tuple[Any, ...] | None
) -> FittedInstruments:
    """Train the nets of all folds, and those of direct regression to compare with.

    Parameters
    ----------
    estimator : CFLLIVRegressor
        Estimator with valid parameters.
    data : InstrumentData
    first_sample : tuple of X, Z and C, or None
        Separate sample for the first stage.
    """
    strength = None
    if data.Z is not None and linear_in_columns(estimator, data):
        strength = linear_strength(data)
        warn_of_rank(strength, data.names)
    plan = make_plan(estimator, data, 2 if estimator.cross_fit and first_sample is None else 1)
    scale = TargetScale.fit(data.y[:, None], data.sample_weight)
    outcome = scale.transform(data.y[:, None])
    rows = plan.rows(data.X, data.Z, data.C, outcome, data.sample_weight)
    stage1_rows = None if first_sample is None else plan.rows(*first_sample)
    labels, halves = fold_labels(data, estimator.n_folds, estimator.n_repeats, plan.seed)
    schedule = Schedule(
        estimator.max_epochs,
        estimator.n_iter_no_change,
        data.total,
        torch.as_tensor(labels),
        torch.as_tensor(halves) if plan.n_first_stages == 2 else None,
    )
    residuals = offsets = None
    if has_offset(estimator, data):
        residuals = control_residuals(estimator, data, plan.seed)
        offsets = fit_offsets(plan, data, outcome, residuals, labels)
    models = train(estimator, plan, rows, schedule, stage1_rows, offsets)
    models.set_level(rows)
    found = resolved(estimator, plan, models.shrinkage, rows.n_rows)
    model = FittedInstruments(plan, scale, models, found)
    if data.Z is not None and estimator.feature_scale != 0 and both_features(plan):
        curve = curve_posterior(models, rows, schedule.labels, data.counts, data.groups)
        model = replace(model, curve=curve)
    model = replace(model, effect=effect_of(estimator, data, model, residuals))
    if data.Z is None:
        return model
    direct = None
    if estimator.diagnose:
        # One split is enough to compare with: its jackknife errors are much smaller.
        once = schedule._replace(labels=schedule.labels[:1], halves=None)
        direct = train(estimator, plan.without_instruments(), rows._replace(instrument=None), once)
    return replace(
        model, diagnostics=diagnose(model, direct, data, rows, schedule.labels, strength)
    )


def make_plan(estimator: Any, data: InstrumentData, n_parts: int) -> NetworkPlan:
    """Description of the nets for these inputs."""
    device = resolve_device(estimator.device)
    given = dict(zip(ROLES, (data.X, data.Z, data.C), strict=True))
    recipes = {role: kept_recipe(getattr(estimator, role)) for role in ROLES}
    widths = treatment_sizes(estimator.treatment_hidden_sizes, data.X.shape[1])
    sizes = (widths, estimator.instrument_hidden_sizes, estimator.covariate_hidden_sizes)
    return NetworkPlan(
        recipes,
        dict(zip(ROLES, sizes, strict=True)),
        estimator.activation,
        {role: None if part is None else part.shape[1:] for role, part in given.items()},
        {role: input_scale(given[role], data.sample_weight, recipes[role]) for role in ROLES},
        0 if data.Z is None else n_parts,
        device,
        DEFAULTS.dtype(estimator.precision, data.X.shape[:1], device),
        draw_seed(estimator.random_state),
        data.names,
    )


def both_features(plan: NetworkPlan) -> bool:
    """Whether both the treatment and features of a perceptron are features of the treatment."""
    return plan.recipes["treatment_backbone"] is None and plan.n_raw > 0


def train(
    estimator: Any,
    plan: NetworkPlan,
    rows: InstrumentRows,
    schedule: Schedule,
    stage1_rows: InstrumentRows | None = None,
    offsets: list[Offset] | None = None,
) -> FoldModels:
    """Cross-fitted training with the estimator's parameters."""
    return cross_fit(
        plan.build,
        rows,
        schedule,
        training_settings(estimator, rows.n_rows, has_offset=offsets is not None),
        shrinkage_choices(
            estimator,
            schedule.n_rows,
            has_confounders=rows.confounder is not None,
            has_both_features=both_features(plan),
            has_offset=offsets is not None,
        ),
        plan.seed,
        stage1_rows,
        offsets,
        print if estimator.verbose else None,
    )
