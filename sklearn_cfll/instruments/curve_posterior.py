"""How far the structural function may lie from its estimate: the posterior of a smooth curve.

The jackknife over folds measures how estimates vary. It misses what all of them have in common:
instruments say little about fast changes of the curve, and the networks are stopped and shrunk
before they follow these. The variance of a Gaussian process contains both, on average over the
curve [1]_. Its moments are those of the instruments, as in the quasi-Bayesian estimate of [2]_:
outcomes times held-out predictions of spline functions of the treatment.

References
----------
.. [1] D. Nychka, "Bayesian confidence intervals for smoothing splines", Journal of the American
   Statistical Association 83 (1988).
.. [2] Z. Wang, Y. Zhou, T. Ren and J. Zhu, "Scalable quasi-Bayesian inference for instrumental
   variable regression", Advances in Neural Information Processing Systems 34 (2021).
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from .fold_models import FoldModels
from .partially_linear import Residuals
from .stages import InstrumentRows

__all__ = ["CurveMoments", "CurvePosterior", "curve_moments", "curve_posterior", "curve_prior"]

KNOTS = 15
LOW, HIGH = 0.01, 0.99  # quantiles of the treatment at the outer knots; beyond, curves are straight
ROWS_PER_FUNCTION = 4
MOST_TREATMENTS = 10
# Prior of a curve: a straight line, plus a Matérn process (5/2) of these lengths in standard
# deviations of the treatment and these amplitudes in those of the outcome; all equally likely.
# Of twelve sets of both, the one with the narrowest bands that covered about nine tenths or more of
# the points of each of seven curves (benchmarks/instruments_band.py, development). Priors that
# favour short lengths or large amplitudes widened all bands, those of smooth curves most. A cubic
# polynomial in the place of the line covered as much, with bands that are a tenth narrower on bent
# curves and a fifth wider on lines.
LENGTHS = (0.3, 0.5, 0.8, 1.3, 2.0)
AMPLITUDES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
LINE = 10.0  # standard deviation of its level and slope
RANK = 1e-9
RIDGE = 0.001  # of the predictions of splines


class CurvePosterior(NamedTuple):
    """Covariance of the level and of the curve's values at knots, one curve per treatment.

    Attributes
    ----------
    knots : list of ndarray
        In ascending order, in the units of the networks.
    covariance : ndarray of shape (d, d)
        Of a level and of the values at all knots.
    """

    knots: list[np.ndarray]
    covariance: np.ndarray

    def variance(self, treatment: np.ndarray) -> np.ndarray:
        """Variance of the sum of all curves at these treatments (n, p); shape (n,)."""
        rows = functions(treatment, self.knots)
        variance: np.ndarray = ((rows @ self.covariance) * rows).sum(1)
        return variance

    def paths(self, treatment: np.ndarray, n_paths: int, seed: int) -> np.ndarray:
        """Draws (n, n_paths) of errors at these treatments, over their deviation."""
        values, vectors = np.linalg.eigh(self.covariance)
        noise = np.random.default_rng(seed).normal(size=(len(values), n_paths))
        parts = functions(treatment, self.knots) @ (vectors * np.sqrt(values.clip(0.0)))
        paths: np.ndarray = parts @ noise / np.sqrt(np.square(parts).sum(1, keepdims=True))
        return paths


def curve_posterior(
    models: FoldModels,
    rows: InstrumentRows,
    labels: torch.Tensor,
    counts: np.ndarray | None,
    groups: np.ndarray | None,
) -> CurvePosterior | None:
    """Posterior of an additive smooth function of the treatments; None with too many of them.

    Parameters are those of :func:`curve_moments`.
    """
    found = curve_moments(models, rows, labels, counts, groups)
    return None if found is None else CurvePosterior(found.knots, _mixture(*found))


class CurveMoments(NamedTuple):
    """``moment = slopes @ values + noise`` of variance one, for the level and values at knots."""

    slopes: np.ndarray
    moment: np.ndarray
    knots: list[np.ndarray]


def curve_moments(
    models: FoldModels,
    rows: InstrumentRows,
    labels: torch.Tensor,
    counts: np.ndarray | None,
    groups: np.ndarray | None,
) -> CurveMoments | None:
    """What the instruments tell of a curve; None with too many treatments, or too few rows.

    Parameters
    ----------
    models : FoldModels
        Trained, with the treatment's columns among its features.
    rows : InstrumentRows
        Of the fit.
    labels : Tensor of int, shape (repeats, n)
        Fold of each row.
    counts : ndarray of shape (n,), or None
        Number of repetitions of each row.
    groups : ndarray of shape (n,), or None
        Number of each row's cluster.
    """
    treatment = _array(rows.treatment)
    n, p = treatment.shape
    counts = np.ones(n) if counts is None else counts
    n_knots = min(KNOTS, round(counts.sum()) // (ROWS_PER_FUNCTION * p))
    if p > MOST_TREATMENTS or n_knots < 3:
        return None
    knots = [_knots(column, counts, n_knots) for column in treatment.T]
    basis = functions(treatment, knots)
    told = _array(models.held_out_functions(rows, labels, torch.as_tensor(basis), RIDGE))
    fitted = _array(models.held_out_outcome(rows, labels)[..., 0])
    residual = _array(rows.outcome)[:, 0] - fitted  # type: ignore[arg-type]
    # The part of the outcome that the posterior explains: not what the controls add to it.
    partial = _dependence(models, rows, knots, basis, counts) + residual

    unit = Residuals(residual[0], treatment, None, counts, groups)
    moment, _ = unit.sums((told * partial[..., None]).mean(0))
    _, terms = unit.sums((told * residual[..., None]).mean(0))
    slopes = told.mean(0).T @ (counts[:, None] * basis)
    values, vectors = np.linalg.eigh(terms.T @ terms)
    kept = values > RANK * values[-1]
    whiten = (vectors[:, kept] / np.sqrt(values[kept])).T
    return CurveMoments(whiten @ slopes, whiten @ moment, knots)


def _mixture(slopes: np.ndarray, moment: np.ndarray, knots: list[np.ndarray]) -> np.ndarray:
    """Posterior covariance given ``moment = slopes @ values + noise`` of variance one.

    The posterior is averaged over all lengths and amplitudes, weighted by marginal likelihood.
    """
    likelihood, means, covariances = [], [], []
    for length, amplitude in itertools.product(LENGTHS, AMPLITUDES):
        prior = curve_prior(knots, length, amplitude)
        cross = slopes @ prior
        total = np.eye(len(moment)) + cross @ slopes.T
        solved = np.linalg.solve(total, np.column_stack([moment, cross]))
        likelihood.append(-0.5 * (np.linalg.slogdet(total)[1] + moment @ solved[:, 0]))
        means.append(cross.T @ solved[:, 0])
        covariances.append(prior - cross.T @ solved[:, 1:])
    weight = np.exp(np.array(likelihood) - max(likelihood))
    weight /= weight.sum()
    apart = np.array(means) - weight @ np.array(means)
    covariance: np.ndarray = np.tensordot(weight, np.array(covariances), 1)
    return covariance + (apart.T * weight) @ apart


def curve_prior(knots: list[np.ndarray], length: float, amplitude: float) -> np.ndarray:
    """Prior covariance of the level and of all values at knots."""
    size = 1 + sum(map(len, knots))
    prior = np.zeros((size, size))
    prior[0, 0] = LINE**2
    start = 1
    for each in knots:
        block = slice(start, start + len(each))
        start += len(each)
        distance = np.sqrt(5) / length * np.abs(each[:, None] - each)
        process = (1 + distance + distance**2 / 3) * np.exp(-distance)
        # Two values of a treatment can only differ by a line.
        curved = amplitude**2 * (len(each) > 2)
        prior[block, block] = LINE**2 * np.outer(each, each) + curved * process
    return prior


def functions(treatment: np.ndarray, knots: list[np.ndarray]) -> np.ndarray:
    """One, and for each treatment the cubic splines that are one at a knot; straight beyond."""
    parts = [np.ones((len(treatment), 1))]
    for x, each in zip(treatment.T, knots, strict=True):
        spline = CubicSpline(each, np.eye(len(each)), bc_type="natural")
        beyond = x - np.clip(x, each[0], each[-1])
        slope = np.where((x < each[0])[:, None], spline(each[0], 1), spline(each[-1], 1))
        parts.append(spline(x - beyond) + beyond[:, None] * slope)
    return np.hstack(parts)


def _knots(x: np.ndarray, counts: np.ndarray, n_knots: int) -> np.ndarray:
    """All values if they are few, else quantiles."""
    distinct = np.unique(x)
    if len(distinct) <= n_knots:
        return distinct if len(distinct) > 1 else np.array([distinct[0] - 1, distinct[0] + 1])
    order = np.argsort(x)
    mass = np.cumsum(counts[order])
    wanted = np.linspace(LOW, HIGH, n_knots) * mass[-1]
    chosen = x[order][np.minimum(np.searchsorted(mass, wanted), len(x) - 1)]
    knots = np.unique(chosen)
    return knots if len(knots) > 1 else np.array([distinct[0], distinct[-1]])


def _dependence(
    models: FoldModels,
    rows: InstrumentRows,
    knots: list[np.ndarray],
    basis: np.ndarray,
    counts: np.ndarray,
) -> np.ndarray:
    """Additive part of each split's function, all else at its mean; (repeats, n)."""
    middle = np.average(_array(rows.treatment), axis=0, weights=counts)
    points = np.repeat(middle[None], sum(map(len, knots)), axis=0)
    points[np.arange(len(points)), np.repeat(np.arange(len(knots)), [*map(len, knots)])] = (
        np.concatenate(knots)
    )
    confounder = rows.confounder
    if confounder is not None:
        weight = torch.as_tensor(counts / counts.sum()).to(confounder)
        confounder = torch.tensordot(weight, confounder, 1).expand(
            len(points), *confounder.shape[1:]
        )
    treatment = torch.as_tensor(points).to(rows.treatment)
    found = models.by_fold(InstrumentRows(treatment, None, confounder, None, None))
    return _array(found[..., 0].mean(1)) @ basis[:, 1:].T


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(float)
