"""CFLLModule: a backbone followed by a last layer, and the forms of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .inference import LastLayer

__all__ = ["CFLLModule", "apply", "as_tuple", "match_targets", "module_dtype"]
__all__ += ["with_feature_dimension"]


class CFLLModule(nn.Module):
    """A backbone followed by a last layer; a call returns predictions.

    A backbone of one feature may leave its dimension off, as in (n,); so do then predictions
    of one target. Of several outputs in a tuple the first are the features, the others are
    passed on. Attributes that the module does not have are looked up on the backbone.

    With ``autocast`` the backbone computes its products in that dtype, and features are cast back
    to the dtype of the last layer.
    """

    # While a fitted model goes on: a few rows' own statistics are no scale to see them by.
    holds_statistics = False

    def __init__(
        self, backbone: nn.Module, last_layer: LastLayer, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.last_layer = last_layer
        self.autocast = autocast
        self.register_state_dict_post_hook(_drop_metadata)  # type: ignore[no-untyped-call]

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", ())
        if name in modules:  # each step looks it up a few times: faster than torch
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "backbone" not in modules:
                raise
            return getattr(modules["backbone"], name)

    def train(self, mode: bool = True) -> CFLLModule:
        """Set the mode; batch normalisation stays in evaluation mode if its statistics are held."""
        super().train(mode)
        if mode and self.holds_statistics:
            for part in self.backbone.modules():
                if isinstance(part, _BatchNorm) and part.track_running_stats:
                    part.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, *more = self._run(*args, **kwargs)
        output = with_samples(output, (*args, *kwargs.values()))
        prediction = self.last_layer(with_feature_dimension(output))
        prediction = prediction.squeeze(-1) if output.ndim == 1 else prediction
        return (prediction, *more) if more else prediction

    def _run(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs of the backbone."""
        if self.autocast is None:
            return as_tuple(self.backbone(*args, **kwargs))
        layer = self.last_layer.members[0].weight
        with torch.autocast(layer.device.type, self.autocast):
            output, *more = as_tuple(self.backbone(*args, **kwargs))
        return (output.to(layer.dtype) if isinstance(output, Tensor) else output, *more)

    def matched_targets(self, targets: Tensor, features: Tensor) -> Tensor:
        """Targets in the shape of the last layer's predictions, whose sizes are known then."""
        layer = self.last_layer
        targets = match_targets(targets, features, layer.out_features)
        if layer.in_features is None or layer.out_features is None:
            layer.materialize_for(features, targets)
        return targets

    def features(self, inputs: Tensor | dict[str, Tensor], **kwargs: Any) -> Tensor:
        """The backbone's first output, always with a last dimension of features."""
        features: Tensor = self.outputs(inputs, **kwargs)[0]
        return features

    def outputs(self, inputs: Tensor | dict[str, Tensor], **kwargs: Any) -> tuple[Any, ...]:
        """Features, and the other outputs of the backbone."""
        features, *more = apply(self._run, inputs, **kwargs)
        named = not isinstance(inputs, Tensor) and isinstance(inputs, Mapping)
        features = with_samples(features, inputs.values() if named else (inputs,))
        return (with_feature_dimension(features), *more)


def _drop_metadata(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    # neuraloperator's models put their constructor's arguments under this key.
    state.pop("_metadata", None)


def apply(module: Any, inputs: Tensor | dict[str, Tensor], **kwargs: Any) -> Any:
    """Call a module on one input, or on several named ones in a dict."""
    if not isinstance(inputs, Tensor) and isinstance(inputs, Mapping):
        return module(**inputs, **kwargs)
    return module(inputs, **kwargs)


def as_tuple(output: Any) -> tuple[Any, ...]:
    """The output of a module as a tuple: the features or predictions first."""
    return output if isinstance(output, tuple) else (output,)


def with_samples(output: Any, inputs: Iterable[Any]) -> Any:
    """Restore the axis of samples of a single sample's output, which ``squeeze()`` drops."""
    first = next((part for part in inputs if isinstance(part, Tensor)), None)
    if first is None or len(first) != 1 or not isinstance(output, Tensor):
        return output
    return output if output.ndim and len(output) == 1 else output.unsqueeze(0)


def with_feature_dimension(output: Any) -> Tensor:
    """A backbone's output as features (n, ..., d): a single feature may have shape (n,)."""
    if not isinstance(output, Tensor):
        raise TypeError(
            "The module must return a tensor of features of shape (n, ..., d) for the last layer, "
            f"or a tuple that starts with one; it returned {type(output).__name__}."
        )
    return output.unsqueeze(-1) if output.ndim == 1 else output


def module_dtype(module: nn.Module) -> torch.dtype:
    """Floating dtype in which a module computes; float32 if it has no floating tensors."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.dtype
    return torch.float32


def match_targets(targets: Tensor, features: Tensor, n_targets: int | None) -> Tensor:
    """Add the last dimension of a single target of shape (n, ...)."""
    if n_targets in (1, None) and targets.shape == features.shape[:-1]:
        return targets.unsqueeze(-1)
    return targets
