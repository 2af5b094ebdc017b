"""The method in sixty plain lines of PyTorch, to be read beside the paper (arXiv 2510.04606).

Slow and obvious: no centring, no choice of solver, no moments that are merged. The constant feature
is a column of ones. Two things are ours, not the paper's: the penalty is relative to the mean power
of the features, and the constant is free of it. ``tests/test_reference.py`` holds the product equal
to this file.
"""

import torch
from torch.nn.functional import mse_loss


def with_constant(features):
    return torch.cat([features, torch.ones_like(features[:, :1])], 1)


def mean_power(gram):
    """tr(ΦᵀΦ)/(n d) of centred features, from the products of features and constant."""
    n, d = gram[-1, -1], len(gram) - 1
    return (gram.diagonal()[:-1] - gram[-1, :-1] ** 2 / n).sum() / (n * d)


class Proximal:
    """W_{t+1} = argmin (1/B)‖Y - ΦW‖² + α‖W - γW_t‖²; the paper's update for γ = 1."""

    def solve(self, weight, features, targets, ridge, decay):
        design, rows = with_constant(features), len(features)
        gram = design.T @ design
        penalty = ridge * mean_power(gram) * torch.eye(len(gram), dtype=gram.dtype)
        penalty[-1, -1] = 0.0  # the intercept is free
        right = design.T @ targets / rows + decay * penalty @ weight
        return torch.linalg.solve(gram / rows + penalty, right)


class Statistics:
    """W_{t+1} = argmin Σ_s γ^(t-s) ‖Y_s - Φ_sW‖² + n α‖W‖², n = Σ_s γ^(t-s) B_s."""

    gram = cross = 0.0

    def solve(self, weight, features, targets, ridge, decay):
        design = with_constant(features)
        self.gram = decay * self.gram + design.T @ design
        self.cross = decay * self.cross + design.T @ targets
        rows = self.gram[-1, -1]
        penalty = ridge * mean_power(self.gram) * torch.eye(len(self.gram), dtype=design.dtype)
        penalty[-1, -1] = 0.0
        return torch.linalg.solve(self.gram / rows + penalty, self.cross / rows)


def train(backbone, epochs, *, d, k, lr, ridge, decay, order, memory):
    """``epochs`` is a list of lists of batches (X, Y). Returns the last layer (d + 1, k)."""
    weight = torch.zeros(d + 1, k, dtype=torch.float64)
    for batches in epochs:
        for X, Y in batches:
            if order == "last_layer_first":
                weight = memory.solve(weight, backbone(X).detach(), Y, ridge, decay)
            loss = mse_loss(with_constant(backbone(X)) @ weight, Y)  # W is held fixed
            gradients = torch.autograd.grad(loss, list(backbone.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(backbone.parameters(), gradients, strict=True):
                    parameter -= lr * gradient
                if order == "backbone_first":
                    weight = memory.solve(weight, backbone(X), Y, ridge, decay)
        if order == "last_layer_first" and type(memory) is Proximal and len(batches) > 1:
            # Ours, not the paper's: before it is looked at, W follows the epoch's last step.
            weight = memory.solve(weight, backbone(X).detach(), Y, ridge, decay)
    return weight
