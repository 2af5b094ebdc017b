"""The error of a batch: the loss of the backbone."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..heads import Head

__all__ = ["error_gradient", "squared_error", "training_error"]


def squared_error(
    prediction: Tensor, targets: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    """Mean of weight × squared error over samples and outputs; the divisor is their number.

    Weights (n, 1..., m) are those of m members, whose predictions of each output stand side by
    side.
    """
    if sample_weight is None:
        return F.mse_loss(prediction, targets)
    if sample_weight.ndim > 1:
        apart = (prediction - targets).square().unflatten(-1, (-1, sample_weight.shape[-1]))
        squares = apart.flatten(1, -2).mean(1)
        return (sample_weight.flatten(1) * squares).mean()
    squares = (prediction - targets).square().flatten(1).mean(1)
    return (sample_weight * squares).mean()


def training_error(
    layer: Head,
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    loss: Callable[..., Tensor] = squared_error,
) -> tuple[Tensor, Tensor]:
    """Error and predictions of the layer on a batch.

    The error of an ensemble is the sum over its members, so that the gradient of each member is the
    same as if it were trained alone.
    """
    if layer.n_members == 1:  # the general path is the same, and 50 microseconds slower
        prediction = layer(features)
        return loss(prediction, targets, sample_weight), prediction
    predictions = layer.member_predictions(features)
    # Members are concatenated as outputs of one sample, over which the loss averages.
    beside = predictions.movedim(0, -1).flatten(-2)
    wanted = targets.repeat_interleave(layer.n_members, -1)
    return layer.n_members * loss(beside, wanted, sample_weight), predictions.mean(0)


@torch.no_grad()
def error_gradient(
    layer: Head, features: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`training_error` of squared error, and its gradient in the features.

    The last layer is fixed, so that the gradient is a product with its weights: autograd would take
    some twenty small operations.
    """
    weight = torch.stack([member.weight for member in layer.members])  # (m, k, d)
    predictions = layer.member_predictions(features)
    residuals = predictions - targets
    weighted = residuals
    if sample_weight is not None and sample_weight.ndim > 1:
        weighted = residuals * sample_weight.movedim(-1, 0).unsqueeze(-1)
    elif sample_weight is not None:
        weighted = residuals * sample_weight.reshape(-1, *[1] * (targets.ndim - 1))
    n_values = targets.numel()
    error = torch.dot(weighted.flatten(), residuals.flatten()) / n_values
    slopes = weighted * (2.0 / n_values)  # (m, ..., k)
    if slopes.shape[-1] == 1:
        gradient = slopes.movedim(0, -2) * weight[:, 0]
    else:  # one product per member: a product per row would copy the weights for each
        gradient = torch.bmm(slopes.flatten(1, -2), weight).movedim(0, 1)
    prediction = predictions[0] if len(weight) == 1 else predictions.mean(0)
    # skorch's callbacks may expect a loss that requires a gradient.
    return error.requires_grad_(), prediction, gradient.reshape(features.shape).to(features.dtype)
