"""Plain references for linalg: normal equations with a column of ones."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from sklearn_cfll import linalg

conjugate_gradients = linalg.SOLVERS["cg"]
EXACT = 1e-10
TALL, WIDE = (40, 6, 3), (5, 12, 2)  # rows, features, targets: B > d and B < d
shapes = pytest.mark.parametrize("shape", [TALL, WIDE], ids=["tall", "wide"])
weights = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
intercepts = pytest.mark.parametrize("fit_intercept", [True, False], ids=["intercept", "origin"])


def reference_update(
    features, targets, weight, penalty, decay=1.0, sample_weight=None, total=None, intercept=True
):
    """Minimiser of (1/total) Σ w‖y - Wφ - b‖² + penalty ‖W - decay W_t‖², b unpenalised."""
    n_rows, n_features = features.shape
    w = features.new_ones(n_rows) if sample_weight is None else sample_weight
    total = w.sum() if total is None else total
    ones = features.new_ones(n_rows, 1 if intercept else 0)
    design = torch.cat([features, ones], 1)
    penalties = torch.cat([features.new_ones(n_features), features.new_zeros(ones.shape[1])])
    prior = torch.zeros(design.shape[1], targets.shape[1], dtype=features.dtype)
    prior[:n_features] = penalty * decay * weight.T
    matrix = design.T @ (w[:, None] * design) / total + penalty * torch.diag(penalties)
    solution = torch.linalg.solve(matrix, design.T @ (w[:, None] * targets) / total + prior)
    bias = solution[-1] if intercept else features.new_zeros(targets.shape[1])
    return solution[:n_features].T, bias


def reference_power(features, sample_weight=None, center=True):
    """tr(ΦᵀΦ) / (total · d) of weighted, centred features, by NumPy."""
    rows = features.numpy()
    w = np.ones(len(rows)) if sample_weight is None else sample_weight.numpy()
    mean = np.average(rows, axis=0, weights=w) if center else 0.0
    return float(np.average((rows - mean) ** 2, axis=0, weights=w).mean())


def objective(
    features, targets, weight, bias, previous, penalty, decay, sample_weight=None, total=None
):
    w = features.new_ones(len(features)) if sample_weight is None else sample_weight
    squares = (targets - features @ weight.T - bias).square().sum(1)
    pull = (weight - decay * previous).square().sum()
    return (w * squares).sum() / (w.sum() if total is None else total) + penalty * pull


def problem(shape, seed=0, weighted=False):
    n_rows, n_features, n_targets = shape
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    features = draw(n_rows, n_features) + 2.0  # a mean, so that centring matters
    targets = features @ draw(n_features, n_targets) + draw(n_rows, n_targets) - 5.0
    previous = draw(n_targets, n_features)
    sample_weight = None
    if weighted:
        sample_weight = torch.rand(n_rows, generator=generator, dtype=torch.float64) + 0.1
    return features, targets, previous, sample_weight


def gap(actual, expected):
    """Largest difference relative to the size of what is expected."""
    actual, expected = torch.as_tensor(actual), torch.as_tensor(expected)
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def fit_proximal(features, targets, sample_weight=None, ridge=0.3, fit_intercept=True):
    zero = features.new_zeros(targets.shape[1], features.shape[1])
    weight, bias, _ = linalg.proximal_step(
        features,
        targets,
        zero,
        ridge=ridge,
        decay=0.0,
        sample_weight=sample_weight,
        fit_intercept=fit_intercept,
        solver="cholesky",
    )
    return weight, bias


def fit_moments(features, targets, sample_weight=None, ridge=0.3, fit_intercept=True):
    block = linalg.moments(features, targets, sample_weight, center=fit_intercept)
    return linalg.solve_moments(block, ridge)


fits = pytest.mark.parametrize("fit", [fit_proximal, fit_moments], ids=["proximal", "moments"])


def exact_conjugate_gradients(monkeypatch, n_features):
    # Rounding costs conjugate gradients a few steps beyond the d of exact arithmetic.
    defaults = conjugate_gradients.__kwdefaults__
    monkeypatch.setitem(defaults, "n_steps", 4 * n_features)


solvers = pytest.mark.parametrize("solver", ["auto", "cholesky", "primal", "dual", "cg"])


def sklearn_ridge(features, targets, sample_weight, ridge, fit_intercept=True):
    total = len(features) if sample_weight is None else float(sample_weight.sum())
    alpha = total * ridge * reference_power(features, sample_weight, fit_intercept)
    return Ridge(alpha=alpha, fit_intercept=fit_intercept, solver="cholesky").fit(
        features.numpy(),
        targets.numpy(),
        None if sample_weight is None else sample_weight.numpy(),
    )
