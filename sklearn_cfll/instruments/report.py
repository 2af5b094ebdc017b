"""Report of a fitted instrumental estimator on its instruments: figures and warnings."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._warnings import user_level
from ..estimator.targets import weighted_mean_std
from .data import InstrumentData
from .diagnostics import (
    HypothesisTest,
    Strength,
    confounding_size,
    effective_f,
    first_stage_f,
    hansen,
    linear_controls,
    wu_hausman,
)
from .fitted import FittedInstruments
from .fold_models import FoldModels
from .identification import LinearStrength
from .names import label
from .stages import InstrumentRows

__all__ = [
    "DirectRegressionPreferredWarning",
    "SlopesDisagreeWarning",
    "WeakInstrumentWarning",
    "diagnose",
    "warn_of",
]

# The effective F of the learned first stage differs between random states by a third or so (19 to
# 27 on Card's data, where that of the linear one is 14). It replaces a weak one from this multiple
# of its critical value on.
CLEARLY = 2.0
NORMAL_95 = 1.96
PERMUTATIONS = 5  # of the instrument, to average it out
NOT_TESTED = HypothesisTest(float("nan"), (0,), float("nan"))


class WeakInstrumentWarning(UserWarning):
    """The instruments predict the treatment poorly; the estimate and its band are unreliable."""


class SlopesDisagreeWarning(UserWarning):
    """The structural function slopes the other way than the linear fit."""


class DirectRegressionPreferredWarning(UserWarning):
    """Instruments add more variance than confounding adds bias; use direct regression."""


def diagnose(
    model: FittedInstruments,
    direct: FoldModels | None,
    data: InstrumentData,
    rows: InstrumentRows,
    labels: Tensor,
    strength: LinearStrength | None,
) -> dict[str, Any]:
    """Diagnostics of one fit, from held-out predictions.

    With identity backbones the tests are those of two-stage least squares. Otherwise the
    instrument is the learned one, the treatment predicted from Z and C. The controls are C and
    that prediction with Z averaged out, so that the part of the treatment explained by C alone
    does not count as strength. The outcome is the residual of the structural function, so that
    its curvature does not affect the tests. Over-identification is tested with Z itself, and only
    if it has more columns than there are treatments.
    """
    plan, fitted, scale = model.plan, model.models, model.scale.scale[0]
    actual, predicted = (part.double().numpy() for part in fitted.held_out_treatment(rows, labels))
    weight = data.counts
    linear = all(
        isinstance(plan.recipes[role], str)
        for role, shape in plan.shapes.items()
        if shape is not None
    )
    assert data.Z is not None
    Z = data.Z.reshape(len(data.Z), -1).astype(float)
    controls = linear_controls(data.C, data.total)
    if linear:
        X, instruments, y = data.X, Z, data.y
    else:
        X, instruments = actual, predicted
        y = data.y - scale * fitted.held_out_outcome(rows, labels).mean(0)[:, 0].numpy()
    also = controls
    if not linear and data.C is not None:
        alone = _without_instrument(fitted, rows, labels, plan.seed)
        also = alone if controls is None else np.hstack([controls, alone])
    error = np.average(np.square(actual - predicted), axis=0, weights=weight)
    _, deviation = weighted_mean_std(actual, weight)
    varied = deviation > 0
    scores = 1.0 - error[varied] / np.square(deviation[varied])
    learned = effective_f(X, instruments, also, weight, data.groups)
    first = min(first_stage_f(X, instruments, also, weight), key=lambda each: each.statistic)
    testable = data.Z.ndim == 2 and linear_controls(Z, data.total) is not None
    report: dict[str, Any] = {
        "n_samples": data.total,
        "stage1_score": float(scores.mean()) if len(scores) else 0.0,
        **_strengths(strength, learned),
        "first_stage_f": tuple(first),
        "overidentification": tuple(
            hansen(X, y, Z, controls, weight, data.groups) if testable else NOT_TESTED
        ),
        "wu_hausman": tuple(wu_hausman(X, y, instruments, also, weight, data.groups)),
    }
    if direct is not None:
        # A treatment that is set does not depend on the confounders, so both functions are
        # compared at permuted treatments.
        generator = torch.Generator().manual_seed(plan.seed)
        order = torch.randperm(rows.n_rows, generator=generator).to(rows.treatment.device)
        permuted = rows._replace(treatment=rows.treatment[order])
        ours, theirs = (
            each.by_fold(permuted)[: direct.n_repeats, ..., 0].cpu().numpy() * scale
            for each in (fitted, direct)
        )
        report |= confounding_size(ours, theirs, weight)._asdict()
        report["loss_ratio"] = direct.held_out_loss / max(fitted.held_out_loss, 1e-300)
    report["slopes_disagree"] = slopes_disagree(model.effect)
    report["preferred"] = preferred(report)
    return report


def preferred(report: dict[str, Any]) -> str:
    """The regression to rely on: "instrument", "direct" or "neither".

    Neither if the instruments are weak: then the size of confounding is not measured either. Direct
    regression if its squared error is expected to be smaller. Neither if the average slope of the
    structural function and that of the linear fit have opposite signs, both significantly.
    """
    if not report["effective_f"] >= report["critical_value"]:
        return "neither"
    if report.get("preferred") == "direct":
        return "direct"
    return "neither" if report["slopes_disagree"] else "instrument"


def slopes_disagree(effect: dict[str, Any] | None) -> bool:
    """Whether a linear slope and the curve's average slope differ in sign beyond their errors."""
    if effect is None:
        return False
    pairs = (("estimate", "std_error"), ("curve_estimate", "curve_std_error"))
    with np.errstate(divide="ignore", invalid="ignore"):
        linear, curve = (np.divide(effect[slope], effect[error]) for slope, error in pairs)
    both = (np.abs(linear) > NORMAL_95) & (np.abs(curve) > NORMAL_95)
    return bool(np.any(both & (np.sign(linear) != np.sign(curve))))


def _strengths(linear: LinearStrength | None, learned: list[Strength]) -> dict[str, Any]:
    """Effective F of both first stages, per treatment, and that of the one that counts.

    A first stage is as strong as for its weakest treatment. The linear one counts, because it does
    not depend on the random state, unless it is weak and the learned one is clearly strong. It is
    missing if inputs are not columns.
    """
    stages = {"learned": learned} | ({} if linear is None else {"linear": linear.effective_f})
    weakest = {name: min(each, key=_relative) for name, each in stages.items()}
    counts = "learned"
    if linear is not None:
        learned_alone = _relative(weakest["linear"]) < 1 and _relative(weakest["learned"]) > CLEARLY
        counts = "learned" if learned_alone else "linear"
    report: dict[str, Any] = {
        "effective_f": weakest[counts].effective_f,
        "critical_value": weakest[counts].critical_value,
        "first_stage": counts,
    }
    for name, each in stages.items():
        report[f"{name}_effective_f"] = tuple(one.effective_f for one in each)
        report[f"{name}_critical_value"] = tuple(one.critical_value for one in each)
    if linear is not None:
        report["sanderson_windmeijer_f"] = tuple(map(tuple, linear.sanderson_windmeijer))
        report["rank_test"] = tuple(linear.rank)
    return report


def _relative(strength: Strength) -> float:
    """Effective F over its critical value; zero without a critical value."""
    needed = strength.critical_value
    return strength.effective_f / needed if needed > 0 else 0.0


def _without_instrument(
    fitted: FoldModels, rows: InstrumentRows, labels: Tensor, seed: int
) -> np.ndarray:
    """Prediction of the treatment with Z averaged out: a function of the confounders alone."""
    generator = torch.Generator().manual_seed(seed)
    total: Any = 0.0
    assert rows.instrument is not None
    for _ in range(PERMUTATIONS):
        order = torch.randperm(rows.n_rows, generator=generator).to(rows.treatment.device)
        other = rows._replace(instrument=rows.instrument[order])
        total = total + fitted.held_out_treatment(other, labels)[1].double().numpy()
    return total / PERMUTATIONS


def warn_of(report: dict[str, Any], names: tuple[str, ...] | None = None) -> None:
    """Warn of weak instruments, of slopes that disagree, or if direct regression is preferred."""
    strength, needed = report["effective_f"], report["critical_value"]
    if not strength >= needed:
        values = report[f"{report['first_stage']}_effective_f"]
        each = ", ".join(f"{label(names, j)}: {value:.1f}" for j, value in enumerate(values))
        several = f" (by treatment, net of the others: {each})" if len(values) > 1 else ""
        warnings.warn(
            f"Instruments are weak: the effective F is {strength:.1f}, but {needed:.1f} is needed "
            f"for a bias of at most a tenth of the worst case{several}. The estimate and its band "
            "are unreliable; use stronger instruments or more rows.",
            WeakInstrumentWarning,
            stacklevel=user_level(),
        )
    if report["slopes_disagree"]:
        warnings.warn(
            "The average slope of the structural function and the slope of the linear fit have "
            "opposite signs, both significantly (`effect_`): rely on neither.",
            SlopesDisagreeWarning,
            stacklevel=user_level(),
        )
    if report["preferred"] == "direct":
        warnings.warn(
            "Direct regression of y on X and C is preferred: confounding adds "
            f"{report['squared_bias']:.3g} to its squared error, but the variance with instruments "
            f"is {report['variance_instrument']:.3g} (without them "
            f"{report['variance_direct']:.3g}). Fit without Z.",
            DirectRegressionPreferredWarning,
            stacklevel=user_level(),
        )
