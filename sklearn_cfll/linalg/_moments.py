"""Weighted second moments of rows, and the exact ridge fits computed from them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import center_rows, constant_features, feature_power, near_rounding
from ._symmetric import inverse_values, solve_near, solve_symmetric

__all__ = [
    "Moments",
    "add_moments",
    "leave_one_out_errors",
    "leverage",
    "leverage_basis",
    "merge_moments",
    "moments",
    "residual_square",
    "ridge_path",
    "safe_total",
    "scale_moments",
    "solve_moments",
    "solve_near_moments",
    "without_noise",
]


class Moments(NamedTuple):
    """Weighted second moments of features and targets, sufficient for a ridge fit.

    Attributes
    ----------
    total : Tensor of shape ()
        Sum of the sample weights (number of rows if unweighted).
    feature_mean, target_mean : Tensor of shape (d,) and (k,)
        Weighted means; zeros if the rows were not centred.
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

    The blocks are centred, so that a large common mean costs no digits. The operation is
    associative up to rounding: the order and the split of the rows do not matter. Entries may have
    leading dimensions for several networks.
    """
    gram, cross = first.gram + second.gram, first.cross + second.cross
    square = first.target_square + second.target_square
    return _merged(first, second, gram, cross, square, center=center)


def add_moments(
    held: Moments,
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None = None,
    *,
    center: bool = True,
) -> Moments:
    """:func:`merge_moments` of a block and that of more rows, with fewer passes over ``(d, d)``.

    Parameters
    ----------
    held : Moments
        Entries have a leading dimension of m for m networks.
    features : Tensor of shape (n, d), or (m, n, d) for m networks
    targets : Tensor of shape (n, k)
    sample_weight : Tensor of shape (n,), or (m, n) for weights of each network, optional
    center : bool, default=True
    """
    if center and features.shape[-2] == 1:  # centred, it is zero
        total = torch.ones_like(held.total) if sample_weight is None else sample_weight[..., 0]
        wanted = targets[0].expand_as(held.target_mean)
        row = held._replace(total=total, feature_mean=features[..., 0, :], target_mean=wanted)
        return _merged(held, row, held.gram, held.cross, held.target_square, center=True)
    rows = center_rows(features, targets, sample_weight, center=center)
    wanted = rows.targets.expand(*features.shape[:-2], *rows.targets.shape[-2:])
    add = torch.addmm if features.ndim == 2 else torch.baddbmm
    sums = (
        add(held.gram, rows.features.mT, rows.features),
        add(held.cross, wanted.mT, rows.features),
        held.target_square + wanted.square().sum(-2),
    )
    total = torch.as_tensor(rows.total, dtype=features.dtype, device=features.device)
    means = rows.feature_mean, rows.target_mean.expand_as(held.target_mean)
    row = Moments(total.expand_as(held.total), *means, *sums)
    return _merged(held, row, *sums, center=center)


def _merged(
    first: Moments,
    second: Moments,
    gram: Tensor,
    cross: Tensor,
    target_square: Tensor,
    *,
    center: bool,
) -> Moments:
    """The union of two blocks, from the sums of their centred products."""
    total = first.total + second.total
    feature_mean, target_mean = first.feature_mean, first.target_mean
    if center:
        share = (second.total / total.clamp_min(torch.finfo(total.dtype).tiny)).unsqueeze(-1)
        shared = first.total.unsqueeze(-1) * share
        feature_gap = second.feature_mean - feature_mean
        target_gap = second.target_mean - target_mean
        feature_mean = feature_mean + share * feature_gap
        target_mean = target_mean + share * target_gap
        gaps = (shared * feature_gap).unsqueeze(-2)
        gram = torch.addcmul(gram, feature_gap.unsqueeze(-1), gaps)
        cross = torch.addcmul(cross, target_gap.unsqueeze(-1), gaps)
        target_square = torch.addcmul(target_square, shared * target_gap, target_gap)
    return Moments(total, feature_mean, target_mean, gram, cross, target_square)


def scale_moments(block: Moments, factor: float) -> Moments:
    """Multiply every sample weight of a block by ``factor`` (forgetting); means are unchanged."""
    if factor == 1.0:
        return block
    return block._replace(
        total=block.total * factor,
        gram=block.gram * factor,
        cross=block.cross * factor,
        target_square=block.target_square * factor,
    )


def _power(block: Moments, eps: float | None = None) -> Tensor:
    """:func:`feature_power` of the rows that a block of moments summarises."""
    total = safe_total(block)
    square_sum = block.gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return feature_power(square_sum, block.gram.shape[-1], total, block.feature_mean, eps=eps)


def solve_moments(
    block: Moments, ridge: float, *, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Exact ridge fit to all rows in a block: weights (k, d) and intercept (k,).

    Equals :class:`sklearn.linear_model.Ridge` with ``alpha = total · ridge · power``.
    ``ridge=0`` gives the minimum-norm least-squares solution.

    Parameters
    ----------
    block : Moments
        Entries may have leading dimensions for several networks; so have the results then.
    ridge : float
        Relative to the mean feature power.
    eps : float, optional
        Machine epsilon of the precision in which the features were computed; default that of the
        moments. Features that are constant up to rounding are left out.
    """
    block, power = without_noise(block, eps)
    penalty = ridge * power * safe_total(block) if ridge else 0.0
    weight = solve_symmetric(block.gram, penalty, block.cross)
    return weight, block.target_mean - (weight @ block.feature_mean.unsqueeze(-1)).squeeze(-1)


def solve_near_moments(
    block: Moments,
    ridge: float,
    weight: Tensor,
    inverse: Tensor | None,
    *,
    eps: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`solve_moments` of a block that differs little from the one solved before.

    It is as exact. After one more row it costs a few products with vectors instead of a
    factorisation, see :func:`~sklearn_cfll.linalg._symmetric.solve_near`.

    Parameters
    ----------
    block : Moments
        In float64, on a CPU.
    ridge : float
        Positive.
    weight : Tensor of shape (k, d)
        Weights of the block before.
    inverse : Tensor of shape (d, d), or None
        Third result of the call before.
    eps : float, optional

    Returns
    -------
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,)
    inverse : Tensor of shape (d, d)
        For the next call.
    """
    block, power = without_noise(block, eps)
    penalty = ridge * power * safe_total(block)
    found = None
    if inverse is not None:
        found = solve_near(block.gram, penalty, block.cross, weight, inverse)
    if found is None:
        shifted = block.gram.clone()
        shifted.diagonal().add_(penalty)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if bool(info):  # the next call finds that NaN is not near
            weight = solve_symmetric(block.gram, penalty, block.cross)
            found = weight, torch.full_like(shifted, torch.nan)
        else:
            inverse = torch.cholesky_inverse(factor)
            found = torch.cholesky_solve(block.cross.mT, factor).mT, inverse
    weight, inverse = found
    return weight, block.target_mean - weight @ block.feature_mean, inverse


def residual_square(block: Moments, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``Σ w (y - Wφ - b)²`` over rows and targets, for any weights (k, d) and intercepts (k,)."""
    weight = weight.to(block.gram)
    missed = block.target_mean - weight @ block.feature_mean
    missed = missed if bias is None else missed - bias.to(missed)
    spread = block.target_square.sum() - 2.0 * (weight * block.cross).sum()
    spread = spread + ((weight @ block.gram) * weight).sum()
    return spread + block.total * missed.square().sum()


def ridge_path(
    block: Moments, ridges: Tensor, *, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Ridge fits for many ridges from one eigendecomposition of the Gram matrix.

    Parameters
    ----------
    block : Moments
    ridges : Tensor of shape (r,)
        Dimensionless, positive.
    eps : float, optional
        As for :func:`solve_moments`.

    Returns
    -------
    weights : Tensor of shape (r, k, d)
    biases : Tensor of shape (r, k)
    """
    block, power = without_noise(block, eps)
    values, vectors = torch.linalg.eigh(block.gram)
    penalties = ridges.to(values) * power * block.total
    shrunk = (block.cross @ vectors) / (values.clamp_min(0.0) + penalties[:, None, None])
    weights = shrunk @ vectors.T
    return weights, block.target_mean - weights @ block.feature_mean


def leverage(
    features: Tensor,
    block: Moments,
    ridge: float,
    *,
    fit_intercept: bool = True,
    eps: float | None = None,
) -> Tensor:
    """``1/total + aᵀ(Gram + total·penalty·I)⁻¹a`` for each row, ``a = φ - φ̄``; shape (n,).

    The predictive variance of Bayesian linear regression is ``σ² (1 + leverage)``; the first term
    of the leverage comes from the flat prior of the intercept. The leverage of a training row of
    weight ``w`` is its diagonal entry of the hat matrix divided by ``w``.
    """
    block, power = without_noise(block, eps)
    penalty = ridge * power * block.total
    # A feature that is left out of the fit has no influence on predictions.
    centered = (features - block.feature_mean) * (block.gram.diagonal() > 0)
    solved = solve_symmetric(block.gram, penalty if ridge else 0.0, centered)
    quadratic = (solved * centered).sum(1)
    return quadratic + 1.0 / block.total if fit_intercept else quadratic


def leverage_basis(
    block: Moments, ridge: float, *, fit_intercept: bool = True, eps: float | None = None
) -> tuple[Tensor, Tensor]:
    """Basis (d, d) and constant in which :func:`leverage` is a squared length.

    The leverage at features φ is ``‖(φ - φ̄) basis‖² + constant²``, and the posterior covariance of
    the predicted means at two rows, for unit noise, is the product of these vectors plus
    ``constant²``. Without intercept, the constant is zero.
    """
    block, power = without_noise(block, eps)
    values, vectors = torch.linalg.eigh(block.gram)
    roots = inverse_values(values, ridge * power * block.total if ridge else 0.0).sqrt()
    kept = (block.gram.diagonal() > 0).to(vectors)
    constant = block.total.rsqrt() if fit_intercept else torch.zeros_like(block.total)
    return kept[:, None] * vectors * roots, constant


def safe_total(block: Moments) -> Tensor:
    """The total weight, replaced by a tiny positive number if there are no rows."""
    return block.total.clamp_min(torch.finfo(block.total.dtype).tiny)


def without_noise(block: Moments, eps: float | None) -> tuple[Moments, Tensor]:
    """The block without the products of constant features, and its feature power."""
    eps = torch.finfo(block.gram.dtype).eps if eps is None else eps
    power = _power(block, eps)
    # On an accelerator, this check would stall the device.
    near = near_rounding(power, block.feature_mean, eps)
    if block.gram.device.type == "cpu" and not bool(near.any()):
        return block, power
    variance = block.gram.diagonal(dim1=-2, dim2=-1) / safe_total(block).unsqueeze(-1)
    kept = (~constant_features(variance, block.feature_mean, eps)).to(block.gram).unsqueeze(-2)
    block = block._replace(gram=block.gram * kept * kept.mT, cross=block.cross * kept)
    return block, _power(block, eps)


def leave_one_out_errors(
    features: Tensor, targets: Tensor, ridges: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    """Sum of squared leave-one-out residuals for many ridges, from one decomposition.

    The residual of a row under the ridge fit to all *other* rows is ``(yᵢ - ŷᵢ) / (1 - hᵢᵢ)`` with
    the hat matrix h of the fit. The penalty is held fixed while a row is left out.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    targets : Tensor of shape (n, k)
    ridges : Tensor of shape (r,)
        Dimensionless, as in :func:`solve_moments`.
    sample_weight : Tensor of shape (n,), optional

    Returns
    -------
    Tensor of shape (r,)
        Weighted sums over rows and targets.
    """
    rows = center_rows(features, targets, sample_weight)
    if not bool(torch.isfinite(rows.features).all()):
        return torch.full_like(ridges, torch.nan)  # svd would raise; NaN is caught upstream
    left, singular, _ = torch.linalg.svd(rows.features, full_matrices=False)
    values = singular.square()
    power = feature_power(values.sum(), features.shape[1], rows.total, rows.feature_mean)
    intercept = (1.0 if sample_weight is None else sample_weight) / rows.total
    coordinates, floor = left.T @ rows.targets, torch.finfo(features.dtype).eps
    errors = []
    for ridge in ridges.to(values):
        kept = values / (values + ridge * power * rows.total)
        residual = rows.targets - left @ (kept.unsqueeze(1) * coordinates)
        rest = (1.0 - intercept - left.square() @ kept).clamp_min(floor)
        errors.append((residual / rest.unsqueeze(1)).square().sum())
    return torch.stack(errors)
