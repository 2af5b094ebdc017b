"""The mathematics of a closed-form last layer: pure functions on tensors.

Shapes throughout: ``features`` (n, d), ``targets`` (n, k), ``sample_weight`` (n,),
``weight`` (k, d) as in :class:`torch.nn.Linear`, so ``features @ weight.T + bias``
predicts. A *penalty* is absolute: it multiplies ``‖weight‖²`` beside the **mean**
squared error. A *ridge* is dimensionless: ``penalty = ridge * feature_power``.

References
----------
Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization",
arXiv 2510.04606 (the proximal update).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Moments",
    "SOLVERS",
    "center_rows",
    "conjugate_gradient_update",
    "dual_update",
    "feature_power",
    "leave_one_out_residuals",
    "leverage",
    "merge_moments",
    "moments",
    "moments_power",
    "primal_update",
    "proximal_update",
    "ridge_path",
    "scale_moments",
    "solve_moments",
]

# Four steps from the previous weights leave 2e-2 of the update unsolved at ridge 1 and
# d = 256, eight leave 2e-3; the trained network is the same (benchmarks/solvers.py).
CONJUGATE_GRADIENT_STEPS = 4


class Moments(NamedTuple):
    """Weighted second moments of features and targets: all that a ridge fit needs.

    Attributes
    ----------
    total : Tensor of shape ()
        Sum of the sample weights (number of rows when unweighted).
    feature_mean, target_mean : Tensor of shape (d,) and (k,)
        Weighted means; zeros when the rows were not centred.
    gram : Tensor of shape (d, d)
        ``Σ w (φ - mean)(φ - mean)ᵀ``.
    cross : Tensor of shape (k, d)
        ``Σ w (y - mean)(φ - mean)ᵀ``.
    target_square : Tensor of shape (k,)
        ``Σ w (y - mean)²``.
    """

    total: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    gram: Tensor
    cross: Tensor
    target_square: Tensor


class CenteredRows(NamedTuple):
    """Rows with their weighted means removed and scaled by the root of their weights."""

    features: Tensor
    targets: Tensor
    feature_mean: Tensor
    target_mean: Tensor
    total: Tensor | float


def center_rows(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> CenteredRows:
    """Remove weighted means, so that an unpenalised intercept drops out of the solve.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    sample_weight : Tensor of shape (n,), optional
    center : bool, default=True
        False for a fit without intercept: means are then zero.

    Returns
    -------
    CenteredRows
        Rows ``√w (φ - φ̄)`` and ``√w (y - ȳ)``, the means, and ``Σ w``.
    """
    feature_mean, target_mean, total = weighted_means(
        features, targets, sample_weight, center=center
    )
    if center:
        features, targets = features - feature_mean, targets - target_mean
    if sample_weight is not None:
        root = sample_weight.sqrt().unsqueeze(1)
        features, targets = features * root, targets * root
    return CenteredRows(features, targets, feature_mean, target_mean, total)


def weighted_means(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Weighted means of features and targets (zeros unless ``center``), and ``Σ w``."""
    total: Tensor | float = (
        float(features.shape[0]) if sample_weight is None else sample_weight.sum()
    )
    if not center:
        return features.new_zeros(features.shape[1]), targets.new_zeros(targets.shape[1]), total
    if sample_weight is None:
        return features.mean(0), targets.mean(0), total
    # A batch of weightless rows has no mean; zero keeps the update finite.
    share = sample_weight / total.clamp_min(torch.finfo(features.dtype).tiny)
    return share @ features, share @ targets, total


def feature_power(
    square_sum: Tensor, n_features: int, total: Tensor | float, feature_mean: Tensor
) -> Tensor:
    """Mean power ``tr(ΦᵀΦ) / (total · d)`` of centred features: the unit of ``ridge``.

    With ``penalty = ridge · power`` a ridge means the same for any backbone: multiplying
    all features by ``c`` leaves predictions unchanged.

    Dead or constant features have no power but rounding noise, relative to their mean of
    size eps. The floor ``eps · mean(φ̄²)`` lies far above it, so that weights on noise stay
    small instead of exploding.
    """
    info = torch.finfo(square_sum.dtype)
    floor = torch.dot(feature_mean, feature_mean) * (info.eps / n_features)
    return torch.maximum(square_sum / (total * n_features), floor).clamp_min_(info.tiny**0.5)


def primal_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalty: Tensor | float,
    decay: float = 1.0,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Proximal ridge update by a ``d × d`` system; the cheaper form when ``d ≤ n``.

    ``γW + (ΦᵀΦ/n + αI)⁻¹ Φᵀ(Y - γΦW)/n``, the minimiser of
    ``(1/n)‖Y - ΦW‖² + α‖W - γW_t‖²`` (METHOD section 2; arXiv 2510.04606 for γ = 1).

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
        Centred, weighted rows (see :func:`center_rows`).
    weight : Tensor of shape (k, d)
        The previous weights ``W_t``.
    penalty : Tensor or float
        ``α``, absolute. Zero gives the minimum-norm correction.
    decay : float, default=1.0
        ``γ``: the share of the previous weights to which the update is drawn.
    total : Tensor or float, optional
        Divides the squared error; default the number of rows.

    Returns
    -------
    Tensor of shape (k, d)
    """
    total = float(features.shape[0]) if total is None else total
    prior = decay * weight
    residual = targets - features @ prior.T
    gram = features.T @ features / total
    return prior + _solve_symmetric(gram, penalty, (residual.T @ features) / total)


def dual_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalty: Tensor | float,
    decay: float = 1.0,
    total: Tensor | float | None = None,
) -> Tensor:
    """Proximal ridge update by an ``n × n`` system; the cheaper form when ``n < d``.

    ``γW + Φᵀ(ΦΦᵀ + nαI)⁻¹ (Y - γΦW)``. It solves for the *residual* of the previous
    weights: solving for the targets alone would forget the part of ``W_t`` outside the
    span of this batch. Parameters and result as for :func:`primal_update`.
    """
    total = float(features.shape[0]) if total is None else total
    prior = decay * weight
    residual = targets - features @ prior.T
    kernel = features @ features.T
    return prior + _solve_symmetric(kernel, penalty * total, residual.T) @ features


def conjugate_gradient_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalty: Tensor | float,
    decay: float = 1.0,
    total: Tensor | float | None = None,
    *,
    feature_mean: Tensor | None = None,
    sample_weight: Tensor | None = None,
    n_steps: int = CONJUGATE_GRADIENT_STEPS,
) -> Tensor:
    """Proximal ridge update by conjugate gradients started at the previous weights.

    Each step costs ``4ndk`` operations against ``2nd·min(n, d)`` for a factorisation, and
    starts from ``γW_t``, which earlier batches have brought close. With ``n_steps`` ≥ d it
    is exact up to rounding. It needs a positive penalty, and few steps suffice only where
    that is not tiny.

    Parameters
    ----------
    features, targets, weight, penalty, decay, total
        As for :func:`primal_update`.
    feature_mean : Tensor of shape (d,), optional
        Weighted mean of *raw* features, subtracted inside the products: a centred copy of
        the features would push a training step's other arrays out of the cache.
    sample_weight : Tensor of shape (n,), optional
        Weights of raw rows; ``targets`` are centred but unweighted.
    n_steps : int

    Returns
    -------
    Tensor of shape (k, d)

    Notes
    -----
    Rows of ``weight`` stay rows (k × d): skinny products are up to eight times faster than
    in columns. With weighted means removed, ``Aᵀ D (A p) = Φᵀ D (Φ p - φ̄ᵀp)``: the second
    centring vanishes.
    """
    total = float(features.shape[0]) if total is None else total
    shift = torch.as_tensor(penalty).to(features) * total
    tiny = torch.finfo(features.dtype).tiny  # keeps 0 / 0 of a solved column at 0

    def project(rows: Tensor) -> Tensor:
        if feature_mean is None:
            return rows @ features.T
        return torch.addmm(torch.mv(rows, feature_mean).unsqueeze_(1), rows, features.T, beta=-1)

    weight = decay * weight
    residual = targets.T - project(weight)
    descent = (residual if sample_weight is None else residual * sample_weight) @ features
    direction = descent
    power = torch.linalg.vecdot(descent, descent).clamp_min_(tiny)
    for step in range(n_steps):
        projected = project(direction)
        if sample_weight is not None:
            projected = projected * sample_weight
        curved = torch.addcmul(projected @ features, direction, shift)
        length = power.div(torch.linalg.vecdot(direction, curved).clamp_min_(tiny)).unsqueeze_(1)
        weight = torch.addcmul(weight, length, direction)
        if step < n_steps - 1:
            descent = torch.addcmul(descent, length, curved, value=-1.0)
            new_power = torch.linalg.vecdot(descent, descent).clamp_min_(tiny)
            direction = torch.addcmul(descent, (new_power / power).unsqueeze_(1), direction)
            power = new_power
    return weight


SOLVERS = {
    "primal": primal_update,
    "dual": dual_update,
    "cg": conjugate_gradient_update,
}


def choose_solver(n_rows: int, n_features: int, n_targets: int, ridge: float) -> str:
    """The cheapest solver that is accurate enough (measured: benchmarks/solvers.py).

    Conjugate gradients pay where a factorisation is large and few columns share it, and
    converge in a handful of steps only when the ridge is not small.
    """
    smaller = min(n_rows, n_features)
    if smaller >= 128 and ridge >= 0.1 and 16 * n_targets <= smaller:
        return "cg"
    return "primal" if n_features <= n_rows else "dual"


def proximal_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    *,
    ridge: float,
    decay: float = 1.0,
    sample_weight: Tensor | None = None,
    total: float | None = None,
    fit_intercept: bool = True,
    solver: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One proximal update of weights and (unpenalised) intercept on a batch of raw rows.

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
    weight : Tensor of shape (k, d)
        Previous weights.
    ridge : float
        Dimensionless: the penalty is ``ridge`` times :func:`feature_power` of the batch.
    decay : float, default=1.0
    sample_weight : Tensor of shape (n,), optional
    total : float, optional
        Divides the weighted squared error; default ``Σ w``, so that weights mean
        repetitions. A mini-batch loop whose weights average one over *all* rows passes the
        batch's row count, so that a batch of light rows moves the weights little.
    fit_intercept : bool, default=True
    solver : {"auto", "cholesky", "primal", "dual", "cg"}, default="auto"
        "cholesky" is the smaller of "primal" and "dual".

    Returns
    -------
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,)
    """
    n_rows, n_features = features.shape
    if solver in ("auto", "cholesky"):
        solver = choose_solver(
            n_rows, n_features, targets.shape[1], ridge if solver == "auto" else 0.0
        )
    means = weighted_means(features, targets, sample_weight, center=fit_intercept)
    feature_mean, target_mean, mass = means
    divisor = mass if total is None else total
    if solver == "cg":
        penalty = ridge * _raw_power(features, feature_mean, sample_weight, mass)
        weight = conjugate_gradient_update(
            features,
            targets - target_mean,
            weight,
            penalty,
            decay,
            divisor,
            feature_mean=feature_mean if fit_intercept else None,
            sample_weight=sample_weight,
        )
    else:
        rows = center_rows(features, targets, sample_weight, center=fit_intercept)
        penalty = ridge * feature_power(
            rows.features.square().sum(), n_features, mass, feature_mean
        )
        update = SOLVERS[solver]
        weight = update(rows.features, rows.targets, weight, penalty, decay, divisor)
    return weight, target_mean - torch.mv(weight, feature_mean)


def _raw_power(
    features: Tensor, mean: Tensor, sample_weight: Tensor | None, total: Tensor | float
) -> Tensor:
    """:func:`feature_power` of raw rows, without a centred copy of them."""
    if sample_weight is None:
        flat = features.reshape(-1)
        square_sum = torch.dot(flat, flat)
    else:
        square_sum = torch.linalg.vecdot(features, features) @ sample_weight
    # Rounding of the difference is of the order of feature_power's floor.
    centered = square_sum - torch.dot(mean, mean) * total
    return feature_power(centered, features.shape[1], total, mean)


def moments(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> Moments:
    """Weighted moments of one block of rows (see :class:`Moments`)."""
    rows = center_rows(features, targets, sample_weight, center=center)
    return Moments(
        torch.as_tensor(rows.total, dtype=features.dtype, device=features.device),
        rows.feature_mean,
        rows.target_mean,
        rows.features.T @ rows.features,
        rows.targets.T @ rows.features,
        rows.targets.square().sum(0),
    )


def merge_moments(first: Moments, second: Moments, *, center: bool = True) -> Moments:
    """Moments of the union of two blocks of rows (Chan, Golub, LeVeque 1979).

    Works on centred blocks, so that no digits are lost to a large common mean, and is
    associative up to rounding: the order and the split of the rows do not matter.
    """
    total = first.total + second.total
    safe_total = total.clamp_min(torch.finfo(total.dtype).tiny)
    gram = first.gram + second.gram
    cross = first.cross + second.cross
    target_square = first.target_square + second.target_square
    feature_mean, target_mean = first.feature_mean, first.target_mean
    if center:
        share = second.total / safe_total
        shared = first.total * share
        feature_gap = second.feature_mean - first.feature_mean
        target_gap = second.target_mean - first.target_mean
        feature_mean = feature_mean + share * feature_gap
        target_mean = target_mean + share * target_gap
        gram = gram + shared * torch.outer(feature_gap, feature_gap)
        cross = cross + shared * torch.outer(target_gap, feature_gap)
        target_square = target_square + shared * target_gap.square()
    return Moments(total, feature_mean, target_mean, gram, cross, target_square)


def scale_moments(block: Moments, factor: float) -> Moments:
    """Multiply every sample weight of a block by ``factor`` (forgetting); means stay."""
    return block._replace(
        total=block.total * factor,
        gram=block.gram * factor,
        cross=block.cross * factor,
        target_square=block.target_square * factor,
    )


def moments_power(block: Moments) -> Tensor:
    """:func:`feature_power` of the rows that a block of moments summarises."""
    total = block.total.clamp_min(torch.finfo(block.total.dtype).tiny)
    return feature_power(
        block.gram.diagonal().sum(), block.gram.shape[0], total, block.feature_mean
    )


def solve_moments(block: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Exact ridge fit to all rows in a block: weights (k, d) and intercept (k,).

    Equals :class:`sklearn.linear_model.Ridge` with ``alpha = total · ridge · power``.
    ``ridge=0`` gives the minimum-norm least-squares solution.
    """
    total = block.total.clamp_min(torch.finfo(block.total.dtype).tiny)
    penalty = ridge * moments_power(block) * total
    weight = _solve_symmetric(block.gram, penalty if ridge else 0.0, block.cross)
    return weight, block.target_mean - weight @ block.feature_mean


def ridge_path(block: Moments, ridges: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge fits for many ridges from one eigendecomposition of the Gram matrix.

    Parameters
    ----------
    block : Moments
    ridges : Tensor of shape (r,)
        Dimensionless, positive.

    Returns
    -------
    weights : Tensor of shape (r, k, d)
    biases : Tensor of shape (r, k)
    """
    values, vectors = torch.linalg.eigh(block.gram)
    penalties = ridges.to(values) * moments_power(block) * block.total
    shrunk = (block.cross @ vectors) / (values.clamp_min(0.0) + penalties[:, None, None])
    weights = shrunk @ vectors.T
    return weights, block.target_mean - weights @ block.feature_mean


def leverage(
    features: Tensor, block: Moments, ridge: float, *, fit_intercept: bool = True
) -> Tensor:
    """``1/total + aᵀ(Gram + total·penalty·I)⁻¹a`` for each row, ``a = φ - φ̄``; shape (n,).

    The predictive variance of Bayesian linear regression is ``σ² (1 + leverage)``, with
    the intercept's flat prior giving the first term; that of a training row of weight
    ``w`` is its hat-matrix entry divided by ``w``.
    """
    penalty = ridge * moments_power(block) * block.total
    centered = features - block.feature_mean
    solved = _solve_symmetric(block.gram, penalty if ridge else 0.0, centered)
    quadratic = (solved * centered).sum(1)
    return quadratic + 1.0 / block.total if fit_intercept else quadratic


def leave_one_out_residuals(
    features: Tensor,
    targets: Tensor,
    penalty: float,
    sample_weight: Tensor | None = None,
    *,
    fit_intercept: bool = True,
) -> Tensor:
    """Residual of each row under the ridge fit to all *other* rows, without refitting.

    ``(yᵢ - ŷᵢ) / (1 - hᵢᵢ)``, h the hat matrix of the fit with the sum-form penalty
    ``n·penalty‖W‖²`` held fixed while a row is left out (n = ``Σ w`` of all rows).

    Returns
    -------
    Tensor of shape (n, k)
    """
    block = moments(features, targets, sample_weight, center=fit_intercept)
    weight = _solve_symmetric(block.gram, penalty * block.total, block.cross)
    centered = features - block.feature_mean
    residual = targets - block.target_mean - centered @ weight.T
    hat = (_solve_symmetric(block.gram, penalty * block.total, centered) * centered).sum(1)
    if fit_intercept:
        hat = hat + 1.0 / block.total
    if sample_weight is not None:
        hat = hat * sample_weight
    return residual / (1.0 - hat).unsqueeze(1)


def _solve_symmetric(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    """Solve ``X (matrix + penalty·I) = rows`` for a positive semi-definite matrix.

    Cholesky; where that fails, and for a penalty of zero, an eigendecomposition with the
    numerically null directions left out (the minimum-norm solution). On an accelerator a
    failure is marked by NaN instead of being looked up: looking would stall the device.
    """
    if not isinstance(penalty, Tensor) and penalty == 0.0:
        return _solve_by_eigenvalues(matrix, 0.0, rows)
    shifted = matrix.clone()
    shifted.diagonal().add_(penalty)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if matrix.device.type == "cpu":
        if bool(info):
            return _solve_by_eigenvalues(matrix, penalty, rows)
    else:
        factor = torch.where(info == 0, factor, torch.nan)
    return torch.cholesky_solve(rows.T, factor).T


def _solve_by_eigenvalues(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(rows, torch.nan)  # eigh would raise; NaN is caught upstream
    values, vectors = torch.linalg.eigh(matrix)
    shifted = values.clamp_min(0.0) + penalty
    cutoff = values[-1].clamp_min(0.0) * torch.finfo(values.dtype).eps * matrix.shape[0]
    inverse = torch.where(shifted > cutoff, 1.0 / shifted, torch.zeros_like(shifted))
    return ((rows @ vectors) * inverse) @ vectors.T
