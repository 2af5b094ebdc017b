"""Update orders: when the last layer is solved within a step. ``UPDATE_ORDERS`` is their table.

A new order is a class with the method of :class:`UpdateOrder`, and one line in the table.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..heads.module import CFLLModule

__all__ = ["UPDATE_ORDERS", "BackboneFirst", "LastLayerFirst", "StepBatch", "UpdateOrder"]


class StepBatch(NamedTuple):
    """The batch of a training step, on the device.

    Attributes
    ----------
    given
        The batch as it was fetched, by which another evaluation of it is recognised.
    inputs : Tensor, or dict of these
    targets : Tensor of shape (n, ...)
    sample_weight : Tensor of shape (n,), or None
    kwargs : dict
        Further keyword arguments of the backbone.
    """

    given: Any
    inputs: Any
    targets: Tensor
    sample_weight: Tensor | None
    kwargs: dict[str, Any]

    def rows(self, module: CFLLModule, features: Tensor) -> tuple[Any, ...]:
        """The arguments of :meth:`Head.step` for features (n, ..., d) of this batch."""
        targets = module.matched_targets(self.targets, features)
        # Weights average one over the whole training set. Dividing by the number of rows, not by
        # the sum of the batch's weights, gives a batch of rows with small weights little influence.
        total = None if self.sample_weight is None else float(features[..., 0].numel())
        return features.detach(), targets, self.sample_weight, total


class UpdateOrder(Protocol):
    """Which of the two is updated first on each batch: the last layer or the backbone."""

    def update(self, module: CFLLModule, batch: StepBatch, features: Tensor | None) -> bool:
        """Solve for the last layer, or leave it, at this point of a training step.

        It is called twice in each step: after the forward pass, with the features, and after the
        backbone's step, with ``features=None`` because they are out of date. If an optimiser
        evaluates the loss several times, only the first evaluation counts.

        Parameters
        ----------
        module : CFLLModule
        batch : StepBatch
        features : Tensor of shape (n, ..., d), or None

        Returns
        -------
        bool
            Whether the last layer was solved.
        """
        ...


class LastLayerFirst:
    """Solve on the batch's features, then update the backbone with the new weights fixed.

    The gradient is that of the proximal loss itself (envelope theorem), as in variable projection.
    """

    def update(self, module: CFLLModule, batch: StepBatch, features: Tensor | None) -> bool:
        if features is None:
            return False
        module.last_layer.step(*batch.rows(module, features))
        return True


class BackboneFirst:
    """Update the backbone with the stored weights, then solve on its *new* features.

    This is Algorithm 1 of arXiv 2510.04606; it costs a second forward pass.
    """

    def update(self, module: CFLLModule, batch: StepBatch, features: Tensor | None) -> bool:
        if features is not None:
            return False
        with torch.no_grad():
            features = module.features(batch.inputs, **batch.kwargs)
        module.last_layer.step(*batch.rows(module, features))
        return True


UPDATE_ORDERS: dict[str, UpdateOrder] = {
    "last_layer_first": LastLayerFirst(),
    "backbone_first": BackboneFirst(),
}
