"""Put a last layer back on a backbone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .splitting import Backbone, ChannelsLast, copy_module, replace_module, set_width

__all__ = ["WithLastLayer", "join_last_layer"]


class WithLastLayer(nn.Module):
    """A backbone followed by a last layer, to whose dtype the features are cast."""

    def __init__(self, backbone: nn.Module, last: nn.Linear) -> None:
        super().__init__()
        self.backbone, self.last = backbone, last

    def forward(self, *args: Tensor, **inputs: Tensor) -> Tensor:
        return self.last(self.backbone(*args, **inputs).to(self.last.weight.dtype))


def join_last_layer(backbone: Backbone, linear: nn.Linear) -> nn.Module:
    """Restore the whole network: a copy of the backbone with ``linear`` as its last layer."""
    module = copy_module(backbone.module)
    if backbone.removed is None:
        return WithLastLayer(module, linear)
    if not backbone.channels_first:
        return replace_module(module, backbone.removed, linear)
    assert isinstance(module, ChannelsLast)
    network = module.network
    split_off: Any = network.get_submodule(backbone.removed)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    kind = next(kind for kind in kinds if issubclass(split_off.kind, kind))
    # Skip the initialisation, which would draw from torch's global generator.
    last: Any = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        kind,
        linear.in_features,
        linear.out_features,
        1,
        bias=linear.bias is not None,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    with torch.no_grad():
        last.weight.copy_(linear.weight.reshape(last.weight.shape))
        if last.bias is not None:
            last.bias.copy_(linear.bias)
    set_width(network, backbone.removed, linear.in_features, linear.out_features)
    return replace_module(network, backbone.removed, last)
