"""The average effect of each treatment, with standard errors and confidence sets."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from .confidence_sets import anderson_rubin_set, ivmodels_set, tf_factor
from .data import InstrumentData
from .diagnostics import jackknife_variance
from .fitted import FittedInstruments
from .identification import linear_in_columns
from .partially_linear import Residuals, cross_fitted_predictions, two_stage_effect

__all__ = ["LEVEL", "control_residuals", "curve_effect", "effect_of", "report", "residuals"]

LEVEL = 0.95
REPEATS = 2  # splits into folds, over which predictions from the controls are averaged
STEP = 0.1  # of a treatment, in standard deviations, for its average derivative
MOST_ROWS = 2000  # at which the curve's derivative is taken


def control_residuals(estimator: Any, data: InstrumentData, seed: int) -> Residuals:
    """Residuals of outcome, treatments and instruments on the controls.

    Predictions of cross-fitted networks are averaged over a few splits into folds, before residuals
    are taken. That was a little better than the median of the splits' estimates: averages of
    networks predict better.
    """
    columns = [data.y, data.X] if data.Z is None else [data.y, data.X, data.Z]
    rest = np.column_stack(columns).astype(float)
    told = cross_fitted_predictions(
        rest,
        data.C,
        data.counts,
        data.groups,
        n_repeats=REPEATS if estimator.diagnose else 1,
        seed=seed,
        device=estimator.device,
        n_threads=estimator.n_threads,
    )
    return residuals(rest - told.mean(0), data.X.shape[1], data.counts, data.groups)


def effect_of(
    estimator: Any, data: InstrumentData, model: FittedInstruments, rows: Residuals | None
) -> Any:
    """The entries of ``effect_`` of a fit; None if inputs are not columns or ``diagnose=False``.

    Residuals that are None are computed here.
    """
    if not estimator.diagnose or not linear_in_columns(estimator, data):
        return None
    names = getattr(estimator, "feature_names_in_", None)
    if names is None:
        names = [f"x{j}" for j in range(data.X.shape[1])]
    rows = control_residuals(estimator, data, model.plan.seed) if rows is None else rows
    found = report(rows) | {"is_binary": [len(np.unique(x)) == 2 for x in data.X.T]}
    return {"treatment_names": [str(name) for name in names]} | found | curve_effect(model, data)


def residuals(
    rest: np.ndarray, n_treatments: int, counts: np.ndarray | None, groups: np.ndarray | None
) -> Residuals:
    """Residuals of outcome, treatments and instruments, which are columns in this order."""
    y, X, Z = np.split(rest, [1, 1 + n_treatments], axis=1)
    return Residuals.of(y[:, 0], X, Z if Z.shape[1] else None, counts, groups)


def report(rows: Residuals) -> dict[str, Any]:
    """Estimates, errors and confidence sets from residuals."""
    fit, p = two_stage_effect(rows), rows.X.shape[1]
    error = np.sqrt(np.diag(fit.covariance))
    reach = stats.t.ppf(0.5 + LEVEL / 2, fit.df) * error
    q = 0 if rows.Z is None else rows.Z.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):  # an outcome without errors
        statistic = np.abs(fit.estimate) / error
    tf_error = None
    if p == q == 1:
        tf_error = error * tf_factor(fit.first_stage_f[0])
    return {
        "estimate": fit.estimate,
        "std_error": error,
        "interval": fit.estimate[:, None] + np.outer(reach, [-1.0, 1.0]),
        "p_value": 2 * stats.t.sf(statistic, fit.df),
        "df": float(fit.df),
        "covariance_type": "robust" if rows.clusters is None else "clustered",
        "n_clusters": None if rows.clusters is None else int(rows.n_units),
        "n_samples": float(rows.counts.sum()),
        "n_instruments": q,
        "first_stage_f": fit.first_stage_f,
        "tf_std_error": tf_error,
        "anderson_rubin": _anderson_rubin(rows, p, q),
        "conditional_likelihood_ratio": _likelihood_ratio(rows, p, q),
    }


def _anderson_rubin(rows: Residuals, p: int, q: int) -> list[np.ndarray] | None:
    """Robust sets of one treatment; of several, those of ivmodels where they apply."""
    if q < p or q == 0:
        return None
    if p == 1:
        return [anderson_rubin_set(rows, LEVEL)]
    return _of_ivmodels("anderson_rubin", rows, p)


def _likelihood_ratio(rows: Residuals, p: int, q: int) -> list[np.ndarray] | None:
    """Sets of the conditional likelihood-ratio test, which only differ with more instruments."""
    return _of_ivmodels("conditional_likelihood_ratio", rows, p) if q > p else None


def _of_ivmodels(kind: str, rows: Residuals, p: int) -> list[np.ndarray] | None:
    if rows.clusters is not None:  # the tests assume independent rows
        return None
    found = [ivmodels_set(kind, rows, j, LEVEL) for j in range(p)]
    return None if any(each is None for each in found) else found  # type: ignore[return-value]


def curve_effect(model: FittedInstruments, data: InstrumentData) -> dict[str, np.ndarray]:
    """Average slope of the structural curve per treatment, and its jackknife standard error.

    It is the average derivative at the rows of the fit, or for a binary treatment the average
    difference between its two values.
    """
    rng = np.random.default_rng(model.plan.seed)
    n, weight = len(data.X), data.counts
    chosen = np.arange(n) if n <= MOST_ROWS else np.sort(rng.choice(n, MOST_ROWS, replace=False))
    X, weight = data.X[chosen].astype(float), None if weight is None else weight[chosen]
    C = None if data.C is None else data.C[chosen]
    slopes, errors = [], []
    for j, column in enumerate(data.X.T.astype(float)):
        values = np.unique(column)
        low, high = X.copy(), X.copy()
        if len(values) == 2:
            low[:, j], high[:, j] = values
        else:
            step = STEP * column.std()
            low[:, j], high[:, j] = X[:, j] - step, X[:, j] + step
        width = np.where(high[:, j] > low[:, j], high[:, j] - low[:, j], np.nan)
        rows = [model.plan.rows(each, None, C) for each in (low, high)]
        below, above = (model.models.by_fold(each)[..., 0].double().cpu().numpy() for each in rows)
        by_fold = np.average((above - below) / width, axis=-1, weights=weight)
        if model.models.whole is None:
            slopes.append(by_fold.mean() * model.scale.scale[0])
        else:  # not the average of the folds
            lower, upper = (model.predict(each) for each in rows)
            slopes.append(np.average((upper - lower) / width, weights=weight))
        variance = jackknife_variance(by_fold[..., None])[0]
        errors.append(np.sqrt(variance) * model.scale.scale[0])
    return {"curve_estimate": np.array(slopes), "curve_std_error": np.array(errors)}
