"""One batch of training: the loss and the two orders of moving backbone and last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ensemble_last_layer import EnsembleLastLayer
from ..last_layer import ClosedFormLastLayer

if TYPE_CHECKING:
    from .linear_part import LinearPart

__all__ = [
    "UPDATE_ORDERS",
    "CFLLModule",
    "apply",
    "match_targets",
    "module_dtype",
    "solve_again",
    "squared_error",
]


class CFLLModule(nn.Module):
    """A backbone and the last layer on it; calling it predicts.

    ``linear``, where there is one, is a map of the inputs that is added to what they predict:
    they are trained on what it leaves over.
    """

    linear: LinearPart | None

    def __init__(
        self, backbone: nn.Module, last_layer: ClosedFormLastLayer | EnsembleLastLayer
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.last_layer = last_layer
        self.linear = None
        self.register_state_dict_post_hook(_drop_metadata)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        prediction = self.last_layer(self.backbone(*args, **kwargs))
        return prediction if self.linear is None else prediction + self.linear(*args, **kwargs)

    def left_over(
        self, inputs: Tensor | dict[str, Tensor], targets: Tensor, features: Tensor
    ) -> Tensor:
        """What the last layer is to predict, in the shape of its predictions."""
        targets = match_targets(targets, features, self.last_layer.out_features)
        return targets if self.linear is None else targets - apply(self.linear, inputs)

    def features(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        """The backbone's output."""
        return apply(self.backbone, inputs)


def _drop_metadata(module: nn.Module, state: dict, prefix: str, local_metadata: Any) -> None:
    # neuraloperator's models put their constructor's arguments under this key.
    state.pop("_metadata", None)


def apply(module: nn.Module, inputs: Tensor | dict[str, Tensor]) -> Tensor:
    """Call a module on one input, or on several named ones in a dict."""
    return module(**inputs) if isinstance(inputs, dict) else module(inputs)


def module_dtype(module: nn.Module) -> torch.dtype:
    """Floating dtype in which a module computes; float32 where it holds nothing."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def squared_error(
    prediction: Tensor, targets: Tensor, sample_weight: Tensor | None = None
) -> Tensor:
    """Mean over samples and outputs of weight × squared error; the sample count divides."""
    if sample_weight is None:
        return F.mse_loss(prediction, targets)
    squares = (prediction - targets).square().flatten(1).mean(1)
    return (sample_weight * squares).mean()


def match_targets(targets: Tensor, features: Tensor, n_targets: int) -> Tensor:
    """Give a single target that came as (n, ...) its own last dimension."""
    if n_targets == 1 and targets.shape == features.shape[:-1]:
        return targets.unsqueeze(-1)
    return targets


def training_error(
    layer: Any, features: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The layer's error on a batch, of an ensemble the sum of its members', and what it predicts.

    A sum, so that each member's gradient is what it would be alone.
    """
    if layer.n_members == 1:
        prediction = layer(features)
        return squared_error(prediction, targets, sample_weight), prediction
    predictions = layer.member_predictions(features)
    # Members side by side: outputs of one sample, as far as the mean over them is concerned.
    beside = predictions.movedim(0, -1).flatten(-2)
    wanted = targets.repeat_interleave(layer.n_members, -1)
    return layer.n_members * squared_error(beside, wanted, sample_weight), predictions.mean(0)


def last_layer_first(
    module: CFLLModule,
    inputs: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    descend: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Solve on this batch's features, then step the backbone with the new weights held.

    The gradient of the proximal loss itself (envelope theorem), as in variable projection.
    One forward pass.
    """
    features = module.features(inputs)
    targets = module.left_over(inputs, targets, features)
    layer = module.last_layer
    layer.step(features.detach(), targets, sample_weight, _total(features, sample_weight))
    error, prediction = training_error(layer, features, targets, sample_weight)
    descend(error)
    return error.detach() / layer.n_members, prediction.detach()


def backbone_first(
    module: CFLLModule,
    inputs: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    descend: Callable[[Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Step the backbone with the stored weights, then solve on its *new* features.

    Algorithm 1 of arXiv 2510.04606. The second forward pass is part of it: weights solved on
    the features before the step would lag behind the backbone.
    """
    features = module.features(inputs)
    targets = module.left_over(inputs, targets, features)
    layer = module.last_layer
    error, prediction = training_error(layer, features, targets, sample_weight)
    descend(error)
    solve_again(module, inputs, targets, sample_weight)
    return error.detach() / layer.n_members, prediction.detach()


@torch.no_grad()
def solve_again(
    module: CFLLModule, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> None:
    """Update the last layer on a batch whose step has moved the backbone."""
    features = module.features(inputs)
    targets = module.left_over(inputs, targets, features)
    module.last_layer.step(features, targets, sample_weight, _total(features, sample_weight))


def _total(features: Tensor, sample_weight: Tensor | None) -> float | None:
    # Weights average one over the whole training set: dividing by rows, not by the sum of
    # this batch's weights, lets a batch of light rows move the last layer little.
    return None if sample_weight is None else float(features[..., 0].numel())


UPDATE_ORDERS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "last_layer_first": last_layer_first,
    "backbone_first": backbone_first,
}
