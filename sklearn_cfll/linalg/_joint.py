"""The same updates from moments alone: rows of which several workers hold a part each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._moments import Moments
from ._proximal import (
    MARGIN,
    ProximalStep,
    choose_solver,
    conjugate_gradient_steps,
    conjugate_gradient_update,
)
from ._rows import center_rows, constant_features, feature_power, near_rounding
from ._symmetric import solve_symmetric

__all__ = ["joint_moments", "proximal_step_of_moments", "proximal_step_of_parts"]
__all__ += ["summed_moments"]


def joint_moments(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> Moments:
    """Moments of the rows of m networks; every entry has a leading dimension of m.

    Parameters
    ----------
    features : Tensor of shape (m, n, d)
    targets : Tensor of shape (n, k)
    sample_weight : Tensor of shape (n,), or (m, n) for weights of each network, optional
    center : bool, default=True
    """
    m, k = len(features), targets.shape[1]
    rows = center_rows(features, targets, sample_weight, center=center)
    wanted = rows.targets.expand(m, *rows.targets.shape[-2:])
    total = torch.as_tensor(rows.total, dtype=features.dtype, device=features.device)
    return Moments(
        total.expand(m),
        rows.feature_mean,
        rows.target_mean.expand(m, k),
        rows.features.mT @ rows.features,
        wanted.mT @ rows.features,
        wanted.square().sum(-2),
    )


def summed_moments(
    block: Moments, add: Callable[[Tensor], Tensor], *, center: bool = True
) -> Moments:
    """Moments of the rows of all workers, from those of each.

    Moments about zero are summed in float64, in one message, and centred afterwards: so a common
    mean of up to 1e4 deviations costs no digit of float32.

    Parameters
    ----------
    block : Moments
        Of m networks, as from :func:`joint_moments`.
    add : callable
        Sums a tensor over the workers.
    center : bool, default=True
    """
    total, feature_mean, target_mean, gram, cross, square = (each.double() for each in block)
    weight = total[:, None]
    sums = [total, weight * feature_mean, weight * target_mean]
    if center:
        gram = gram + total[:, None, None] * _outer(feature_mean, feature_mean)
        cross = cross + total[:, None, None] * _outer(target_mean, feature_mean)
        square = square + weight * target_mean.square()
    sums += [gram, cross, square]
    shapes = [each.shape for each in sums]
    flat = add(torch.cat([each.flatten() for each in sums]))
    parts = torch.split(flat, [each.numel() for each in sums])
    total, feature_mean, target_mean, gram, cross, square = (
        part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)
    )
    weight = total.clamp_min(torch.finfo(total.dtype).tiny)[:, None]
    feature_mean, target_mean = feature_mean / weight, target_mean / weight
    if center:
        gram = gram - total[:, None, None] * _outer(feature_mean, feature_mean)
        cross = cross - total[:, None, None] * _outer(target_mean, feature_mean)
        square = (square - total[:, None] * target_mean.square()).clamp_min(0.0)
    return Moments(total, feature_mean, target_mean, gram, cross, square)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first.unsqueeze(-1) * second.unsqueeze(-2)


def proximal_step_of_moments(
    block: Moments,
    weight: Tensor,
    *,
    ridge: float,
    decay: float = 1.0,
    total: float,
    solver: str = "auto",
    least_power: Tensor | None = None,
) -> ProximalStep:
    """:func:`proximal_step` from the moments of its rows.

    It takes the same steps: conjugate gradients where that function takes them, with products of
    the Gram matrix in place of products of the rows.

    Parameters
    ----------
    block : Moments
        Of m networks, as from :func:`joint_moments`.
    weight : Tensor of shape (m, k, d)
        Previous weights.
    ridge, decay
        As for :func:`proximal_step`.
    total : float
        Number of rows, the divisor of the weighted squared error.
    solver : str, default="auto"
    least_power : Tensor of shape (m,), optional

    Returns
    -------
    ProximalStep
        With a leading dimension of m.
    """
    n_features, n_targets = block.gram.shape[-1], weight.shape[-2]
    eps = torch.finfo(weight.dtype).eps
    mass, feature_mean, target_mean, gram, cross, _ = (each.to(weight) for each in block)

    def power_of(gram: Tensor) -> Tensor:
        trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1)
        return feature_power(trace, n_features, mass, feature_mean)

    power = power_of(gram)
    if gram.device.type != "cpu" or bool(near_rounding(power, feature_mean, eps).any()):
        size = mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(-1)
        variance = gram.diagonal(dim1=-2, dim2=-1).clamp_min(0.0) / size
        constant = constant_features(variance, feature_mean, eps).unsqueeze(-1)
        gram = gram.masked_fill(constant | constant.mT, 0.0)
        cross = cross.masked_fill(constant.mT, 0.0)
        power = power_of(gram)
    floor = power if least_power is None else torch.maximum(power, least_power.to(power))
    prior = decay * weight
    divisor = max(total, torch.finfo(weight.dtype).tiny)
    gram, residual = gram / divisor, (cross - prior @ gram) / divisor
    if solver == "auto":
        solver = choose_solver(int(total), n_features, n_targets, ridge)
    if solver == "cg":
        correction = _conjugate_gradients(gram, ridge * floor, residual, ridge)
    else:
        correction = solve_symmetric(gram, ridge * floor if ridge else 0.0, residual)
    found = prior + correction
    bias = target_mean - (found @ feature_mean.unsqueeze(-1)).squeeze(-1)
    return ProximalStep(found, bias, power)


def proximal_step_of_parts(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    n_rows: float,
    add: Callable[[Tensor], Tensor],
    *,
    ridge: float,
    decay: float = 1.0,
    sample_weight: Tensor | None = None,
    fit_intercept: bool = True,
    least_power: Tensor | None = None,
    solver: str = "auto",
) -> ProximalStep | None:
    """:func:`proximal_step` by conjugate gradients on rows of which each worker holds a part.

    Each step sends ``k · d`` numbers. A Gram matrix would cost ``n d²`` operations, more than the
    rest of a small network's step, and a message of ``d²``.

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
        Rows of this worker.
    weight : Tensor of shape (k, d)
        Previous weights.
    n_rows : float
        Number of this worker's rows; that of all is the divisor of the weighted squared error.
    add : callable
        Sums a tensor over the workers.
    ridge, decay, sample_weight, fit_intercept, least_power
        As for :func:`proximal_step`.
    solver : {"auto", "cg"}, default="auto"

    Returns
    -------
    ProximalStep or None
        The same for all workers; None if features vary too little for uncentred products, or if
        there are so few rows that another solver is cheaper.
    """
    d, k, eps = features.shape[1], targets.shape[1], torch.finfo(features.dtype).eps
    given = features.new_ones(len(features)) if sample_weight is None else sample_weight
    squares = torch.linalg.vecdot(features, features)
    own = [given.sum()[None], given @ features, given @ targets, (squares @ given)[None]]
    sums = torch.cat([*(each.double() for each in own), torch.tensor([n_rows]).double()])
    mass, feature_sum, target_sum, square_sum, total = torch.split(add(sums), [1, d, k, 1, 1])
    share = float(fit_intercept) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    feature_mean, target_mean = feature_sum * share, target_sum * share
    mean_square = torch.dot(feature_mean, feature_mean)
    spread = square_sum[0] - mass[0] * mean_square
    power = feature_power(spread, d, mass[0], feature_mean, mean_square)
    if solver == "auto" and choose_solver(int(total), d, k, ridge) != "cg":
        return None
    if not power >= mean_square * (MARGIN * eps):
        return None
    floor = power if least_power is None else torch.maximum(power, least_power.to(power))
    feature_mean, target_mean, power, floor = (
        each.to(features) for each in (feature_mean, target_mean, power, floor)
    )
    found = conjugate_gradient_update(
        features,
        targets - target_mean,
        weight,
        ridge * floor,
        decay,
        max(float(total), torch.finfo(features.dtype).tiny),
        feature_mean=feature_mean,
        sample_weight=sample_weight,
        n_steps=conjugate_gradient_steps(ridge),
        add=add,
    )
    return ProximalStep(found, target_mean - torch.mv(found, feature_mean), power)


def _conjugate_gradients(gram: Tensor, penalty: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """A few steps towards ``X (gram + penalty) = rows`` from zero, each row (m, k, d) by itself."""
    tiny = torch.finfo(rows.dtype).tiny
    shift = penalty[:, None, None]
    found, descent, direction = torch.zeros_like(rows), rows, rows
    power = torch.linalg.vecdot(descent, descent).clamp_min(tiny)
    for _ in range(conjugate_gradient_steps(ridge)):
        curved = direction @ gram + shift * direction
        length = (power / torch.linalg.vecdot(direction, curved).clamp_min(tiny)).unsqueeze(-1)
        found, descent = found + length * direction, descent - length * curved
        before, power = power, torch.linalg.vecdot(descent, descent).clamp_min(tiny)
        direction = descent + (power / before).unsqueeze(-1) * direction
    return found
