"""The formulas of docs/theory.md, each in its own lines, in float64.

``features`` (n, d), ``targets`` (n, k), ``weights`` (d, k), ``kernel`` (n, n); ``a = nα`` is the
penalty beside *sums* of squares, as on that page. Rows are centred by the formulas themselves.
``test_mutations.py`` removes each term and each factor in turn: a test must fail.
"""

import numpy as np
from numpy.linalg import eigvalsh, inv, norm, pinv


def centered(rows):
    return rows - rows.mean(0)


def top(matrix):
    return eigvalsh(matrix)[-1]


def gram(features):
    """G = Φ̃Φ̃ᵀ."""
    return centered(features) @ centered(features).T


# -- one batch of all rows ------------------------------------------------------------------------


def best_weights(features, targets, a):
    """(1): W* = (Φ̃ᵀΦ̃ + aI)⁻¹ Φ̃ᵀỸ."""
    d = features.shape[1]
    return inv(centered(features).T @ centered(features) + a * np.eye(d)) @ (
        centered(features).T @ centered(targets)
    )


def best_intercept(features, targets, weights):
    return targets.mean(0) - features.mean(0) @ weights


def ridge_residual(features, targets, a):
    """(2): E = a(G + aI)⁻¹Ỹ, a > 0."""
    return a * inv(gram(features) + a * np.eye(len(features))) @ centered(targets)


def least_loss(targets, residual):
    """(3): J* = ½ tr(ỸᵀE), the penalty included."""
    return 0.5 * np.trace(centered(targets).T @ residual)


def feature_slope(residual, weights):
    """(4): ∂J*/∂Φ = -E Wᵀ."""
    return -1.0 * residual @ weights.T


# -- the flow in feature space ---------------------------------------------------------------------


def flow(kernel, residual, weights):
    """(6): dΦ/dt = K E Wᵀ."""
    return kernel @ residual @ weights.T


def descent(kernel, residual, weights):
    """(7): dJ*/dt = -tr(WᵀW EᵀKE)."""
    return -1.0 * np.trace((weights.T @ weights) @ (residual.T @ kernel @ residual))


def invariant(features, kernel):
    """(8): M = Φ̃ᵀK̃⁺Φ̃ with K̃, the kernel centred in rows and columns."""
    return centered(features).T @ pinv(centered(centered(kernel).T)) @ centered(features)


def growth(a, weights):
    """(8): dM/dt = 2a WWᵀ."""
    return 2.0 * a * weights @ weights.T


def least_rate(features, targets, kernel):
    """(9): lower bound of the decay of J* without ridge, from the start alone."""
    weights = best_weights(features, targets, 0.0)
    residual = centered(targets) - centered(features) @ weights
    explained = eigvalsh(centered(targets).T @ centered(targets))[0] - norm(residual) ** 2
    inner = eigvalsh(centered(centered(kernel).T))
    return 2.0 * inner[1] * explained / (inner[-1] * top(invariant(features, kernel)))


def all_layers_flow(features, residual, weights, kernel):
    """(18): dR/dt = -(G R + K̃ R WᵀW) if W is trained, too."""
    inner = centered(centered(kernel).T)
    return -1.0 * (gram(features) @ residual + inner @ residual @ weights.T @ weights)


def late_rate(features, targets, kernel):
    """(10): 2 ‖W‖² λ_min of K in the directions that the features leave out; one output."""
    weights = best_weights(features, targets, 0.0)
    n, d = features.shape
    left, *_ = np.linalg.svd(np.hstack([np.ones((n, 1)), centered(features)]))
    rest = left[:, d + 1 :]
    return 2.0 * norm(weights) ** 2 * eigvalsh(rest.T @ kernel @ rest)[0]


# -- a batch beside earlier ones; here rows are not centred ---------------------------------------


def proximal_residual(features, targets, before, alpha, decay):
    """(11): E' = α(G/B + αI)⁻¹(Y - γΦW_t)."""
    rows = len(features)
    system = features @ features.T / rows + alpha * np.eye(rows)
    return alpha * inv(system) @ (targets - decay * features @ before)


def solve_decrease(features, residual, alpha):
    """(12): decrease of the batch's loss by the solve alone, from its residual R before; γ = 1."""
    rows = len(features)
    shrunk = alpha * inv(features @ features.T / rows + alpha * np.eye(rows))
    return np.trace(residual.T @ (np.eye(rows) - shrunk @ shrunk) @ residual) / rows


def update_error(features, residual, distance, alpha):
    """(14): W_{t+1} - W° = α(S + αI)⁻¹(W_t - W°) + (S + αI)⁻¹Φᵀ(Y - ΦW°)/B; γ = 1."""
    rows, d = features.shape
    system = inv(features.T @ features / rows + alpha * np.eye(d))
    return alpha * system @ distance + system @ features.T @ residual / rows


def mean_error(second, distance, alpha):
    """(15), bias for large batches: α(S + αI)⁻¹(W_t - W°), S of all rows, W° best for all rows."""
    return alpha * inv(second + alpha * np.eye(len(second))) @ distance


def update_variance(features, residual, alpha, batch_size):
    """(16), variance in units of the loss: tr[S(S + αI)⁻¹ cov(φu)(S + αI)⁻¹]/B for large B.

    ``residual`` (n, 1) is that of all rows after the solve on all of them.
    """
    second = features.T @ features / len(features)
    system = inv(second + alpha * np.eye(len(second)))
    spread = np.cov((features * residual).T, bias=True)
    return np.trace(second @ system @ spread @ system) / batch_size


def rest_excess(features, residual, alpha, batch_size):
    """(17), excess loss at which repeated updates settle: Σ c/(s + 2α)/B for large B."""
    values, vectors = np.linalg.eigh(features.T @ features / len(features))
    noise = np.diag(vectors.T @ np.cov((features * residual).T, bias=True) @ vectors)
    return np.sum(noise / (values + 2.0 * alpha)) / batch_size


# -- one step, and a ridge that follows the features -----------------------------------------------


def first_order(rate, *gradients):
    """(13): decrease of a loss by a gradient step, η Σ ‖g‖²."""
    return rate * sum(norm(gradient) ** 2 for gradient in gradients)


def first_order_backbone_first(rate, whole, slope):
    """(13): what a step on the backbone adds to the decrease that a solve alone would give.

    ``whole`` is the gradient of ℓ(W'(θ), θ), ``slope`` that of ℓ(W_t, θ).
    """
    return rate * np.sum(whole * slope)


def relative_slope(features, residual, weights, ridge):
    """(5): ∂J*/∂Φ for a = nρτ, τ the mean feature power: -E Wᵀ + (ρ/d)‖W‖²Φ̃."""
    d = features.shape[1]
    return -1.0 * residual @ weights.T + ridge / d * norm(weights) ** 2 * centered(features)


def relative_floor(targets, ridge, d):
    """Lower bound of J* for a = nρτ: ½‖Ỹ‖² ρ/(ρ + d)."""
    return 0.5 * norm(centered(targets)) ** 2 * ridge / (ridge + d)
