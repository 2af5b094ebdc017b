"""Two consecutive closed-form last layers: the mathematics of instrumental variables.

Shapes: instrument features ``Φ`` (m, b), treatment features ``Ψ`` (m, a), features of the
observed confounders ``Ξ`` (n, q), outcomes ``Y`` (n, k); weights as in
:class:`torch.nn.Linear`. Penalties are absolute: ``penalty * ‖weight‖²`` is added to a **mean**
squared error. Features are normalised first (:func:`feature_scaling`), which fixes the unit of the
penalties. Intercepts are not penalised.

References
----------
.. [1] L. Xu et al., "Learning deep features in instrumental variable regression", International
   Conference on Learning Representations (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg import center_rows, dual_update, is_constant, primal_update

__all__ = [
    "LinearMap",
    "Scaling",
    "feature_scaling",
    "held_loss",
    "ridge_fit",
    "stage2_design",
    "weighted_square",
]


class LinearMap(NamedTuple):
    """``x ↦ x @ weight.T + bias``: weight (k, d), bias (k,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


class Scaling(NamedTuple):
    """``x ↦ (x - mean) / scale``, per column."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def feature_scaling(features: Tensor, sample_weight: Tensor | None = None) -> Scaling:
    """Weighted mean and standard deviation of each column, differentiable.

    Columns that are constant up to rounding are only centred, since division by a tiny standard
    deviation would blow up rounding errors and new values to 1e9.
    """
    total = float(features.shape[0]) if sample_weight is None else sample_weight.sum()
    rows = features if sample_weight is None else features * sample_weight.unsqueeze(1)
    mean = rows.sum(0) / total
    centered = features - mean
    squares = centered.square()
    if sample_weight is not None:
        squares = squares * sample_weight.unsqueeze(1)
    variance = squares.sum(0) / total
    info = torch.finfo(features.dtype)
    constant = is_constant(variance.detach().sqrt(), mean.detach(), info.eps, info.tiny**0.5)
    # `where` comes before the root, whose gradient at zero is infinite.
    return Scaling(mean, torch.where(constant, torch.ones_like(variance), variance).sqrt())


def ridge_fit(
    features: Tensor,
    targets: Tensor,
    penalty: float,
    sample_weight: Tensor | None = None,
    *,
    previous: Tensor | None = None,
    decay: float = 0.0,
    total: float | None = None,
) -> LinearMap:
    """Proximal ridge fit with an unpenalised intercept, in the primal or dual form.

    ``argmin_W Σ w ‖y - φW‖² / total + penalty ‖W - decay · previous‖²``. With ``decay=0`` this is
    the ridge fit to these rows, else the update of arXiv 2510.04606 on a batch. It is
    differentiable in ``targets`` (through ``W = (ΦᵀΦ/n + λI)⁻¹ΦᵀY/n``); detach ``features`` if
    their gradient is not needed. The cheaper form is used.

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
    penalty : float
        Zero gives the minimum-norm least-squares solution.
    sample_weight : Tensor of shape (n,), optional
    previous : Tensor of shape (k, d), optional
        Weights towards which the fit is shrunk (times ``decay``); None for zero.
    decay : float, default=0.0
    total : float, optional
        Divisor of the squared error; default ``Σ w``.

    Returns
    -------
    LinearMap
    """
    rows = center_rows(features, targets, sample_weight)
    if previous is None:
        previous = features.new_zeros(targets.shape[1], features.shape[1])
    update = primal_update if features.shape[1] <= features.shape[0] else dual_update
    divisor = rows.total if total is None else total
    weight = update(rows.features, rows.targets, previous, penalty, decay, divisor)
    return LinearMap(weight, rows.target_mean - weight @ rows.feature_mean)


def stage2_design(treatment: Tensor, confounder: Tensor | None, interaction_scale: float) -> Tensor:
    """Columns of ``(1, Ψ) ⊗ (1, Ξ)`` without the constant: ``[Ψ, Ξ, ω Ψ⊗Ξ]``.

    Features of confounders can multiply predicted features, because
    ``E[ψ(X) ξ(C) | Z, C] = E[ψ(X) | Z, C] ξ(C)``. The scale ω of the interactions is equivalent to
    a ridge ``1/ω²`` times larger on them; ``ω = 0`` omits them.

    Parameters
    ----------
    treatment : Tensor of shape (n, a)
        Ψ, or its prediction by the first stage.
    confounder : Tensor of shape (n, q), or None
    interaction_scale : float

    Returns
    -------
    Tensor of shape (n, a + q + aq), (n, a + q) with ``ω = 0``, (n, a) without confounders
    """
    if confounder is None:
        return treatment
    parts = [treatment, confounder]
    if interaction_scale:
        products = treatment.unsqueeze(2) * confounder.unsqueeze(1)
        parts.append(interaction_scale * products.flatten(1))
    return torch.cat(parts, dim=1)


def weighted_square(residual: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    """``Σ w ‖r‖² / (Σ w · k)``: the mean of weighted squares."""
    if sample_weight is None:
        return residual.square().mean()
    return (sample_weight @ residual.square()).mean() / sample_weight.sum()


def held_loss(
    features: Tensor, targets: Tensor, fitted: LinearMap, sample_weight: Tensor | None = None
) -> Tensor:
    """``‖Y - φW‖² / n``, differentiated only in the features φ, with W held fixed.

    W minimises this loss plus its penalty, so by the envelope theorem the gradient at fixed W
    is the gradient of the minimum.

    In the second stage φ contains the predictions ``Φ₂V``, and the gradient goes **through**
    ``V = (Φ₁ᵀΦ₁/m + λ₁I)⁻¹Φ₁ᵀΨ(θ)/m``, which depends on the treatment net and does not minimise
    this loss. The predictions have this gradient if V is the :func:`ridge_fit` of treatment
    features that require a gradient.
    """
    held = LinearMap(fitted.weight.detach(), fitted.bias.detach())
    return weighted_square(targets.detach() - held(features), sample_weight)
