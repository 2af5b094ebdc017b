"""Leave-one-out and out-of-fold predictions, and messages where they or moments are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import r2_score

from ..final_solve.noise import leave_one_out
from ..final_solve.refit import Refit
from ..training.batches import RowsDataset
from .checks import Checked
from .fitted import FittedModel
from .run import Run
from .split import Parts, crosses_folds

__all__ = ["NO_MOMENTS", "honest", "honest_outputs", "leave_one_out_score", "left_out"]
__all__ += ["no_residuals"]

NO_MOMENTS = (
    "needs the moments of the training rows, which were not kept. Fit with "
    'refit_last_layer=True, or use memory="statistics".'
)


def no_residuals(estimator: Any) -> str:
    """Reason for missing residuals of held-out rows, and the remedy."""
    n_members = estimator.resolved_["n_members"]
    crosses = crosses_folds(estimator, n_members, holds_out=True, given=False)
    enough = estimator.defaults.least_rows(crosses)
    if estimator.early_stopping is False or estimator.validation_fraction == 0:
        remedy = "call `fit` with early_stopping=True and `validation_fraction` above 0"
    elif estimator._known_rows.is_stream:
        remedy = (
            f"`partial_fit` holds none out. Call `fit` first, on at least {enough} rows, and "
            "then `partial_fit`"
        )
    else:
        remedy = (
            f"`fit` holds none out of fewer than {enough} rows. Call `fit` on more rows, or "
            "with early_stopping=True"
        )
    return (
        "needs rows that the network was not trained on, because residuals of training rows "
        f"are too small, but none were held out: {remedy}, or pass `X_val` and `y_val` to "
        "`fit`."
    )


def leave_one_out_score(run: Run, parts: Parts, ridge: float) -> tuple[np.ndarray, float]:
    """Residual of each row under the fit to all others, in y's shape, and their R²."""
    rows, plan = parts.rows, run.plan
    residuals = [part for _, part, _ in leave_one_out(run.net, rows, ridge)]
    scaled = torch.cat(residuals).cpu().numpy()
    weights = None if rows.sample_weight is None else rows.sample_weight.cpu().numpy()
    assert rows.targets is not None
    wanted = rows.targets.cpu().numpy()
    score = float(r2_score(wanted, wanted - scaled, sample_weight=weights))
    return plan.layout.from_rows(scaled * plan.scale.scale), score


def honest_outputs(model: FittedModel, parts: Parts, solved: Refit, checked: Checked) -> np.ndarray:
    """Predictions (n, positions..., k) in y's units of every row by members that did not see it.

    Rows of weight zero were seen by none, and are predicted by all members.
    """
    plan, targets = model.plan, parts.rows.targets
    assert targets is not None
    if solved.residuals is None:  # of a stream, whose rows are not kept
        return np.empty((0, *targets.shape[1:]))
    found = plan.unscale((targets - solved.residuals).cpu().numpy())
    found = found if parts.place is None else found[parts.place]
    if checked.rows is None:
        return found
    every = RowsDataset(plan.rows(checked.X, checked.lazy))
    unused = np.setdiff1d(np.arange(len(every)), checked.rows)
    whole = np.empty((len(every), *found.shape[1:]), found.dtype)
    whole[checked.rows], whole[unused] = found, model.outputs(every.subset(unused))
    return whole


def honest(estimator: Any, name: str) -> tuple[np.ndarray, float]:
    """Out-of-fold outputs and their score, for the attribute of this name."""
    found: tuple[np.ndarray, float] | None = estimator._fitted(name).out_of_fold
    if found is None:
        raise AttributeError(
            f"This {type(estimator).__name__} has no `{name}`, which requires a `fit` with folds "
            f"and no rows added since. {_why_none(estimator)}"
        )
    if name != "oof_score_" and not len(found[0]):
        raise AttributeError(
            f"This {type(estimator).__name__} has no `{name}`: it was fitted to a stream, of whose "
            "rows no predictions are kept. `oof_score_` is that of a sample."
        )
    return found


def _why_none(estimator: Any) -> str:
    """Why there are no out-of-fold predictions, and the remedy."""
    if estimator.resolved_["n_folds"]:
        return "The fit went on from rows or folds of an earlier one: use warm_start=False."
    if estimator.resolved_["n_members"] < estimator.defaults.cross_fit_from:
        return "Set `n_members` to 4 or more, or use cross_fit=True with 2 or 3."
    return (
        "Rows were added by `adapt`, `partial_fit` or a warm start, or no folds were formed: that "
        'needs cross_fit=True, or "auto" with ten rows or more and without `X_val`, '
        "`early_stopping`=False and a `validation_fraction`."
    )


def left_out(estimator: Any, name: str) -> tuple[np.ndarray, float]:
    """The result of :func:`leave_one_out_score` for the attribute of this name."""
    found: tuple[np.ndarray, float] | None = estimator._fitted(name).left_out
    if found is None:
        raise AttributeError(
            f"This {type(estimator).__name__} has no `{name}`: leaving a row out of the last layer "
            "alone is exact only if the backbone was not trained on it. It requires a backbone "
            "without parameters to train, samples without positions and refit_last_layer=True. "
            "With a trained backbone, use cross_val_predict."
        )
    return found
