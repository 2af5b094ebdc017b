"""Two closed-form last layers in a row: the mathematics of instrumental variables on features.

Shapes: instrument features ``Φ`` (m, b), treatment features ``Ψ`` (m, a), features of the
observed confounders ``Ξ`` (n, q), outcomes ``Y`` (n, k); weights as in
:class:`torch.nn.Linear`. Penalties are absolute and multiply ``‖weight‖²`` beside a **mean**
squared error; features are normalised beforehand (:func:`feature_scaling`), which gives
penalties their unit. Intercepts are never penalised.

References
----------
.. [1] L. Xu et al., "Learning deep features in instrumental variable regression", International
   Conference on Learning Representations (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..linalg._proximal import dual_update, primal_update
from ..linalg._rows import center_rows

__all__ = [
    "LinearMap",
    "Scaling",
    "feature_scaling",
    "ridge_fit",
    "stage1_loss",
    "stage2_design",
    "stage2_loss",
    "weighted_square",
]


class LinearMap(NamedTuple):
    """``x ↦ x @ weight.T + bias``: weight (k, d), bias (k,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + self.bias


class Scaling(NamedTuple):
    """``x ↦ (x - mean) / scale``, by column."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale


def feature_scaling(features: Tensor, sample_weight: Tensor | None = None) -> Scaling:
    """Weighted mean and standard deviation of each column, differentiable.

    Columns that are constant up to rounding are only centred, and so stay zero: a tiny
    standard deviation would turn rounding, or a new row, into 1e9s.
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
    constant = variance <= (10 * info.eps * mean).square() + info.tiny
    # `where` before the root: its gradient at zero is infinite.
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
    """Proximal ridge fit with an unpenalised intercept, by the cheaper of the two forms.

    ``argmin_W Σ w ‖y - φW‖² / total + penalty ‖W - decay · previous‖²``: with ``decay=0`` the
    ridge fit to these rows, else the update of arXiv 2510.04606 on a batch. Differentiable in
    ``targets`` (through ``W = (ΦᵀΦ/n + λI)⁻¹ΦᵀY/n``); hold ``features`` detached where their
    gradient is not wanted.

    Parameters
    ----------
    features, targets : Tensor of shape (n, d) and (n, k)
    penalty : float
        Zero gives the minimum-norm least-squares solution.
    sample_weight : Tensor of shape (n,), optional
    previous : Tensor of shape (k, d), optional
        Weights to which the fit is drawn; None for zero.
    decay : float, default=0.0
    total : float, optional
        Divides the squared error; default ``Σ w``.

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

    Exogenous features multiply predicted ones: ``E[ψ(X) ξ(C) | Z, C] = E[ψ(X) | Z, C] ξ(C)``.
    The scale ω of the interactions is a ridge ``1/ω²`` times larger on them; ``ω = 0`` leaves
    them out.

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


def stage1_loss(
    instrument: Tensor, treatment: Tensor, weights: LinearMap, sample_weight: Tensor | None = None
) -> Tensor:
    """``‖Ψ - ΦV‖² / m``, its gradient in Φ alone, at V held fixed.

    V minimises this loss (and its penalty), so by the envelope theorem the gradient at fixed V
    is the gradient of the minimum.
    """
    held = LinearMap(weights.weight.detach(), weights.bias.detach())
    return weighted_square(treatment.detach() - held(instrument), sample_weight)


def stage2_loss(
    outcome: Tensor,
    predicted_treatment: Tensor,
    confounder: Tensor | None,
    weights: LinearMap,
    interaction_scale: float,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """``‖Y - D(ΦV, Ξ) u‖² / n``, u held fixed and differentiated **through** V.

    ``V = (Φ₁ᵀΦ₁/m + λ₁I)⁻¹Φ₁ᵀΨ(θ)/m`` depends on the treatment net and does not minimise this
    loss: only u does. ``predicted_treatment = Φ₂V`` carries that gradient where it was made by
    :func:`ridge_fit` from treatment features that require it.
    """
    held = LinearMap(weights.weight.detach(), weights.bias.detach())
    design = stage2_design(predicted_treatment, confounder, interaction_scale)
    return weighted_square(outcome - held(design), sample_weight)
