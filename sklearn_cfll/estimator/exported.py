"""Plain modules and ONNX files that compute predictions, probabilities or deviations."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.base import is_classifier
from torch import Tensor, nn

from ..backbones.joining import WithLastLayer, join_last_layer
from ..backbones.mlp import SideBySide
from ..columns.encoder import Encoded
from ..final_solve.local_part import WithLocalPart
from ..final_solve.noise import NoiseModel
from ..final_solve.probabilities import SHARPNESS, Probabilities
from ..heads.member import as_linear
from ..heads.module import apply

if TYPE_CHECKING:
    from .fitted import FittedModel

__all__ = ["export", "write_onnx"]

OUTPUTS = ("prediction", "probabilities", "mean_std")


def export(estimator: Any, output: str) -> nn.Module:
    """The module that computes this output of a fitted estimator; see ``to_torch``."""
    if output not in OUTPUTS:
        raise ValueError(
            f"`output` must be one of {', '.join(map(repr, OUTPUTS))}, got {output!r}."
        )
    model: FittedModel = estimator._model
    if output == "prediction":
        return prediction_module(model, estimator._decision_threshold)
    if is_classifier(estimator) != (output == "probabilities"):
        right = "probabilities" if is_classifier(estimator) else "mean_std"
        raise ValueError(
            f"`output`={output!r} is not available for a {type(estimator).__name__}. Use "
            f'"prediction" or {right!r}.'
        )
    if output == "probabilities":
        kind = "binary" if estimator._is_binary else "exclusive"
        kind = "multilabel" if estimator.multilabel_ else kind
        return WithProbabilities(prediction_module(model, 0.0), model.probabilities, kind)
    estimator._knowing('to_torch(output="mean_std")')
    if model.plan.network.on_fields:
        raise ValueError(
            '`output`="mean_std" needs one prediction per sample, but samples have positions here. '
            'Use "prediction".'
        )
    return MeanAndDeviation(model).cpu().eval()


def prediction_module(model: FittedModel, threshold: float) -> nn.Module:
    """A plain module from raw inputs to predictions less a threshold, on the CPU."""
    linear = as_linear(*model.last_layer())
    with torch.no_grad():
        linear.weight.copy_(torch.as_tensor(model.coef()))
        if not torch.isfinite(linear.weight).all():
            raise ValueError(
                "The targets are so large that the last layer's weights on their scale "
                f"overflow {linear.weight.dtype}. Rescale y, or fit in float64."
            )
        linear.bias.copy_(torch.as_tensor(model.intercept() - threshold))
    network = model.plan.network
    if model.offset is not None:
        features = SideBySide(network.module, model.offset.columns)
        module: nn.Module = copy.deepcopy(WithLastLayer(features, linear))
    else:
        backbone = network.backbone
        if network.copies > 1:  # their last layers have become one
            backbone = backbone._replace(removed=None)
        module = join_last_layer(backbone, linear)
        if network.columns is not None:
            module = Encoded(copy.deepcopy(network.columns), module)
    if model.local_part is not None:
        local, scale = copy.deepcopy(model.local_part), model.plan.scale.scale
        module = WithLocalPart(module, local, torch.as_tensor(scale))
    return module.cpu().eval()


class WithProbabilities(nn.Module):
    """Class probabilities (n, k) from a module that returns scores (n, k).

    It computes what :class:`~sklearn_cfll.final_solve.probabilities.Probabilities` does.

    Parameters
    ----------
    scores : torch.nn.Module
    probabilities : Probabilities
    kind : {"exclusive", "binary", "multilabel"}
        Whether each row belongs to one of k classes, or a single score is that of the second of
        two classes, whose probabilities are both returned, or each score is that of a label.
    """

    def __init__(self, scores: nn.Module, probabilities: Probabilities, kind: str) -> None:
        super().__init__()
        self.scores, self.kind = scores, kind
        self.power, self.floor = probabilities

    def forward(self, *args: Tensor, **inputs: Tensor) -> Tensor:
        scores = self.scores(*args, **inputs)
        logits = self.power * self._log_positive(scores)
        if self.kind == "exclusive":
            return torch.softmax(logits, 1)
        found = torch.sigmoid(logits - self.power * self._log_positive(1.0 - scores))
        eps = torch.finfo(found.dtype).eps
        found = found.clamp(eps, 1.0 - eps)
        return found if self.kind == "multilabel" else torch.cat([1.0 - found, found], 1)

    def _log_positive(self, scores: Tensor) -> Tensor:
        soft = torch.logaddexp(torch.zeros_like(scores), SHARPNESS * scores)
        return torch.log(soft / SHARPNESS + self.floor)


class MeanAndDeviation(nn.Module):
    """Predictions and standard deviations of new observations, each (n, k), in y's units.

    The variance is ``σ²(x) + σ² · leverage`` plus the variance between members, as in
    :meth:`~sklearn_cfll.heads.inference.LastLayer.variance`; the leverage is the squared length of
    the features times a fixed matrix, so that nothing is solved.
    """

    means: Tensor
    bases: Tensor
    constants: Tensor
    weights: Tensor
    biases: Tensor
    level: Tensor
    scale: Tensor
    shift: Tensor
    inflation: Tensor
    weight: Tensor
    bias: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, model: FittedModel) -> None:
        super().__init__()
        head: Any = model.head
        scale = model.plan.scale
        self.backbone = copy.deepcopy(model.module.backbone)
        self.offset = None
        if model.offset is not None:
            linear = as_linear(model.offset.layer.weight, model.offset.layer.bias)
            self.offset = nn.Sequential(copy.deepcopy(model.offset.columns), linear)
        self.local_part = copy.deepcopy(model.local_part)
        self.n_members = head.n_members
        means, bases, constants = head.leverage_bases()
        level = model.noise_variance / scale.scale**2
        inflation = 1.0 if model.scores is None else model.scores.inflation
        buffers = {
            "means": means,
            "bases": bases,
            "constants": constants.square().unsqueeze(1),
            "weights": torch.stack([each.weight for each in head.members]).mT,
            "biases": torch.stack([each.bias for each in head.members]).unsqueeze(1),
            "level": torch.as_tensor(level, dtype=torch.float64),
            "scale": torch.as_tensor(scale.scale, dtype=torch.float64),
            "shift": torch.as_tensor(scale.mean, dtype=torch.float64),
            "inflation": torch.as_tensor(inflation, dtype=torch.float64),
        }
        noise = NoiseModel.constant(buffers["level"], 1) if model.noise is None else model.noise
        for name, value in {**buffers, **noise._asdict()}.items():
            self.register_buffer(name, value.detach().clone())

    def forward(self, *args: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(*args, **inputs)
        blocks = features.unflatten(1, (self.n_members, -1)).movedim(1, 0)
        members = torch.baddbmm(self.biases, blocks.to(self.weights.dtype), self.weights)
        lengths = ((blocks.double() - self.means) @ self.bases).square().sum(-1)
        leverage = (lengths + self.constants).mean(0).unsqueeze(-1)
        between = members.double().var(0, correction=0)
        noise = NoiseModel(self.weight, self.bias, self.low, self.high)
        variance = noise(features[:, : self.weight.shape[1]]) + self.level * leverage + between
        mean = members.mean(0)
        if self.offset is not None:
            mean = mean + self.offset(*args)
        if self.local_part is not None:
            local, doubt = self.local_part.with_doubt(*args).unbind(1)
            mean = mean + local
            variance = variance + doubt / self.inflation.square()
        mean = mean.double() * self.scale + self.shift
        deviation = variance.sqrt() * self.scale * self.inflation
        return mean.to(features.dtype), deviation.to(features.dtype)


class _Whole(nn.Module):
    """A module of one argument, which may be a dict of named inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        return apply(self.module, inputs)


@contextlib.contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    """Let these loggers report errors only, and restore them: their notes are not the user's."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


def write_onnx(module: nn.Module, file: Any, inputs: Any, output: str) -> None:
    """Write a module as an ONNX file that takes any number of rows.

    Parameters
    ----------
    module : torch.nn.Module
    file : path-like
    inputs : ndarray, or dict of ndarray
        Some rows as :meth:`encode` returns them. Those of the file have the same dtype.
    output : one of OUTPUTS

    Raises
    ------
    ImportError
        If ``onnx`` or ``onnxscript`` is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"`to_onnx` needs {' and '.join(missing)}. Install what it needs: "
            "pip install 'sklearn-cfll[onnx]'."
        )

    # One row would be taken for a fixed size.
    def example(rows: np.ndarray) -> Tensor:
        return torch.as_tensor(np.resize(rows, (4, *rows.shape[1:])))

    named = isinstance(inputs, dict)
    rows = {name: example(part) for name, part in inputs.items()} if named else example(inputs)
    sizes = {0: torch.export.Dim("n_samples", min=1)}
    with warnings.catch_warnings(), _errors_only("torch.onnx", "onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # of the exporter's own parts
        torch.onnx.export(
            _Whole(module).eval(),
            (),
            file,
            kwargs={"inputs": rows},
            input_names=list(inputs) if named else ["X"],
            output_names=["prediction", "std"] if output == "mean_std" else [output],
            dynamic_shapes={"inputs": dict.fromkeys(inputs, sizes) if named else sizes},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
