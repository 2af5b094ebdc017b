"""Proximal ridge updates of a last layer on one batch, and their solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import (
    center_rows,
    constant_features,
    feature_power,
    near_rounding,
    weighted_means,
)
from ._symmetric import solve_symmetric

__all__ = [
    "SOLVERS",
    "ProximalStep",
    "choose_solver",
    "conjugate_gradient_steps",
    "conjugate_gradient_update",
    "dual_update",
    "primal_update",
    "proximal_step",
]

# Products of uncentred rows have an error of about eps · ‖φ̄‖². They are used only if the feature
# power is at least this many times as large.
MARGIN = 32.0


class ProximalStep(NamedTuple):
    """Result of a proximal update.

    Attributes
    ----------
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,)
    power : Tensor of shape ()
        :func:`feature_power` of the batch.
    """

    weight: Tensor
    bias: Tensor
    power: Tensor


def primal_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalty: Tensor | float,
    decay: float = 1.0,
    total: Tensor | float | None = None,
) -> Tensor:
    r"""Proximal ridge update by a ``d × d`` system; the cheaper form when ``d ≤ n``.

    The update is ``γW + (ΦᵀΦ/n + αI)⁻¹ Φᵀ(Y - γΦW)/n``, the minimiser of
    ``(1/n)‖Y - ΦW‖² + α‖W - γW_t‖²`` (arXiv 2510.04606 for γ = 1).

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
        Centred, weighted rows (see :func:`center_rows`). Features (m, n, d) and weights (m, k, d)
        are those of m networks, which are solved together; targets may be (m, n, k).
    weight : Tensor of shape (k, d)
        The previous weights ``W_t``.
    penalty : Tensor or float
        ``α``, absolute. Zero gives the minimum-norm correction.
    decay : float, default=1.0
        ``γ``: the penalty is on the distance to ``γ`` times the previous weights.
    total : Tensor of shape (), or (m,) for several networks, or float, optional
        Divisor of the squared error; default the number of rows.

    Returns
    -------
    Tensor of shape (k, d)
    """
    total = float(features.shape[-2]) if total is None else total
    prior = decay * weight
    residual = targets - features @ prior.mT
    divisor = total[..., None, None] if isinstance(total, Tensor) else total
    gram = features.mT @ features / divisor
    return prior + solve_symmetric(gram, penalty, (residual.mT @ features) / divisor)


def dual_update(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    penalty: Tensor | float,
    decay: float = 1.0,
    total: Tensor | float | None = None,
) -> Tensor:
    """Proximal ridge update by an ``n × n`` system; the cheaper form when ``n < d``.

    The update is ``γW + Φᵀ(ΦΦᵀ + nαI)⁻¹ (Y - γΦW)``. The system is solved for the *residual* of the
    previous weights: with the targets instead, the part of ``W_t`` outside the span of this batch
    would be lost. Parameters and result are as for :func:`primal_update`.
    """
    total = float(features.shape[-2]) if total is None else total
    prior = decay * weight
    residual = targets - features @ prior.mT
    kernel = features @ features.mT
    unpenalised = isinstance(penalty, float) and penalty == 0.0
    shift = 0.0 if unpenalised else penalty * total
    return prior + solve_symmetric(kernel, shift, residual.mT) @ features


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
    n_steps: int = 4,
    add: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Proximal ridge update by conjugate gradients started at the previous weights.

    Each step costs ``4ndk`` operations, compared with ``2nd·min(n, d)`` for a factorisation. The
    iteration starts from ``γW_t``, which is close to the solution after earlier batches. With
    ``n_steps`` ≥ d the result is exact up to rounding. The penalty must be positive, and few steps
    suffice only if it is not tiny.

    Parameters
    ----------
    features, targets, weight, penalty, decay, total
        As for :func:`primal_update`.
    feature_mean : Tensor of shape (d,), optional
        Weighted mean of *uncentred* features, subtracted inside the products: a centred copy of
        the features would evict the other arrays of a training step from the cache.
    sample_weight : Tensor of shape (n,), optional
        Weights of uncentred rows; ``targets`` are centred but unweighted.
    n_steps : int, default=4
        See :func:`conjugate_gradient_steps`.
    add : callable, optional
        Sums a tensor over workers that hold some of the rows each; ``total`` is that of all.

    Returns
    -------
    Tensor of shape (k, d)

    Notes
    -----
    The weights are kept as rows (k × d): products with few rows are up to eight times faster than
    with few columns. With weighted means removed, ``Aᵀ D (A p) = Φᵀ D (Φ p - φ̄ᵀp)``: the second
    centring is not needed.
    """
    total = float(features.shape[0]) if total is None else total
    shift = penalty * total
    if not isinstance(shift, Tensor):
        shift = torch.tensor(shift, dtype=features.dtype, device=features.device)
    tiny = torch.finfo(features.dtype).tiny  # 0 / 0 of a solved column becomes 0
    columns = features.T

    def project(rows: Tensor) -> Tensor:
        if feature_mean is None:
            return rows @ columns
        return torch.addmm(torch.mv(rows, feature_mean).unsqueeze_(1), rows, columns, beta=-1)

    def gathered(rows: Tensor) -> Tensor:
        rows = (rows if sample_weight is None else rows * sample_weight) @ features
        return rows if add is None else add(rows)

    if decay != 1.0:
        weight = decay * weight
    residual = targets.T - project(weight)
    descent = gathered(residual)
    direction = descent
    power = torch.linalg.vecdot(descent, descent).clamp_min_(tiny)
    for step in range(n_steps):
        curved = torch.addcmul(gathered(project(direction)), direction, shift)
        length = power.div(torch.linalg.vecdot(direction, curved).clamp_min_(tiny)).unsqueeze_(1)
        weight = torch.addcmul(weight, length, direction)
        if step < n_steps - 1:
            descent = torch.addcmul(descent, length, curved, value=-1.0)
            new_power = torch.linalg.vecdot(descent, descent).clamp_min_(tiny)
            direction = torch.addcmul(descent, (new_power / power).unsqueeze_(1), direction)
            power = new_power
    return weight


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "primal": primal_update,
    "dual": dual_update,
    "cg": conjugate_gradient_update,
}


def conjugate_gradient_steps(ridge: float) -> int:
    """Number of steps that solve about nine tenths of an update (measured: benchmarks/solvers.py).

    It is 6 for a ridge of 1, 3 for 10 and 2 from 27 on: the larger the ridge, the closer the system
    is to a multiple of the identity. The remainder is left to the next batch; with twice the steps,
    trained networks were no better.
    """
    return max(2, math.ceil(6.0 / math.cbrt(max(ridge, 1.0))))


def choose_solver(n_rows: int, n_features: int, n_targets: int, ridge: float) -> str:
    """The cheapest solver that is accurate enough (measured: benchmarks/solvers.py).

    Conjugate gradients are cheaper if the factorisation is large and there are few targets. They
    converge in a few steps only if the ridge is not small.
    """
    smaller = min(n_rows, n_features)
    if smaller >= 128 and ridge >= 1.0 and 12 * n_targets <= smaller:
        return "cg"
    return "primal" if n_features <= n_rows else "dual"


def proximal_step(
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
    least_power: Tensor | None = None,
) -> ProximalStep:
    """One proximal update of weights and (unpenalised) intercept on a batch of uncentred rows.

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
    weight : Tensor of shape (k, d)
        Previous weights. Features (m, n, d) and weights (m, k, d) are those of m networks, which
        are solved together, never by conjugate gradients.
    ridge : float
        Dimensionless: the penalty is ``ridge`` times :func:`feature_power` of the batch.
    decay : float, default=1.0
    sample_weight : Tensor of shape (n,), or (m, n) for weights of each network, optional
    total : float, optional
        Divisor of the weighted squared error; default ``Σ w``, so that weights act as repetitions.
        A mini-batch loop whose weights average one over *all* rows passes the number of rows in the
        batch, so that a batch of rows with small weights changes the solution little.
    fit_intercept : bool, default=True
    solver : {"auto", "cholesky", "primal", "dual", "cg"}, default="auto"
        "cholesky" is the smaller of "primal" and "dual".
    least_power : Tensor of shape (), optional
        Lower bound of the power that multiplies ``ridge``: in a batch whose features hardly vary,
        the penalty would otherwise be close to zero.

    Returns
    -------
    ProximalStep
    """
    *several, n_rows, n_features = features.shape
    if several or solver in ("auto", "cholesky"):
        exact = several or solver == "cholesky"
        solver = choose_solver(n_rows, n_features, targets.shape[1], 0.0 if exact else ridge)

    def floored(power: Tensor) -> Tensor:
        return power if least_power is None else torch.maximum(power, least_power)

    # Uncentred rows save cache on a CPU; on an accelerator, the comparison would stall the device.
    if solver == "cg" and features.device.type == "cpu":
        means = weighted_means(features, targets, sample_weight, center=fit_intercept)
        feature_mean, target_mean, mass = means
        mean_square = torch.dot(feature_mean, feature_mean)
        power = _raw_power(features, mean_square, feature_mean, sample_weight, mass)
        if bool(power >= mean_square * (MARGIN * torch.finfo(features.dtype).eps)):
            weight = conjugate_gradient_update(
                features,
                targets - target_mean,
                weight,
                ridge * floored(power),
                decay,
                mass if total is None else total,
                feature_mean=feature_mean if fit_intercept else None,
                sample_weight=sample_weight,
                n_steps=conjugate_gradient_steps(ridge),
            )
            return ProximalStep(weight, target_mean - torch.mv(weight, feature_mean), power)
    rows = center_rows(features, targets, sample_weight, center=fit_intercept)
    features, targets, feature_mean, target_mean, mass = rows
    # Norms need no copy, and those of rows are faster than those of matrices.
    square_sum = torch.linalg.vector_norm(features, dim=-1).square().sum(-1)
    power = feature_power(square_sum, n_features, mass, feature_mean)
    eps = torch.finfo(features.dtype).eps
    if features.device.type != "cpu" or bool(near_rounding(power, feature_mean, eps).any()):
        squares = features.square().sum(-2)
        size = mass.unsqueeze(-1) if isinstance(mass, Tensor) else mass
        constant = constant_features(squares / size, feature_mean, eps)
        features = features.masked_fill(constant.unsqueeze(-2), 0.0)
        squares = squares.masked_fill(constant, 0.0).sum(-1)
        power = feature_power(squares, n_features, mass, feature_mean)
    # A float zero, not a tensor, selects the minimum-norm solution.
    shift = ridge * floored(power) if ridge else 0.0
    divisor = mass if total is None else total
    steps = {"n_steps": conjugate_gradient_steps(ridge)} if solver == "cg" else {}
    weight = SOLVERS[solver](features, targets, weight, shift, decay, divisor, **steps)
    if several:
        bias = target_mean - (weight @ feature_mean.unsqueeze(-1)).squeeze(-1)
    else:
        bias = target_mean - torch.mv(weight, feature_mean)
    return ProximalStep(weight, bias, power)


def _raw_power(
    features: Tensor,
    mean_square: Tensor,
    mean: Tensor,
    sample_weight: Tensor | None,
    total: Tensor | float,
) -> Tensor:
    """:func:`feature_power` of uncentred rows, without a centred copy of them."""
    if sample_weight is None:
        flat = features.reshape(-1)
        square_sum = torch.dot(flat, flat)
    else:
        square_sum = torch.linalg.vecdot(features, features) @ sample_weight
    centered = (
        square_sum - mean_square * total
        if isinstance(total, Tensor)
        else torch.sub(square_sum, mean_square, alpha=total)
    )
    return feature_power(centered, features.shape[1], total, mean, mean_square)
