"""Inputs and results of two-stage training: rows, nets, settings, models and their designs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import linalg
from . import two_stage as maths

__all__ = [
    "InstrumentRows",
    "Model",
    "Networks",
    "Offset",
    "Settings",
    "Shrinkage",
    "confounder_corrections",
    "design_scale",
    "design_scales",
    "instrument_features",
    "joined",
    "predicted_treatment",
    "projected_outcome",
    "shrunken_fit",
    "shrunken_fits",
    "structural_design",
    "structural_outcome",
    "treatment_features",
    "treatment_scale",
]


BLOCK_ROWS = 2048
LARGEST_STACK = 2**22  # numbers in systems that are solved together


class InstrumentRows(NamedTuple):
    """Rows on the device; the first dimension of each tensor is n.

    Attributes
    ----------
    treatment : Tensor of shape (n, ...)
    instrument : Tensor of shape (n, ...), or None for direct regression
    confounder : Tensor of shape (n, ...), or None
    outcome : Tensor of shape (n, k), or None for rows used only in the first stage
    weight : Tensor of shape (n,) with mean one over all rows, or None
    """

    treatment: Tensor
    instrument: Tensor | None
    confounder: Tensor | None
    outcome: Tensor | None
    weight: Tensor | None

    def take(self, indices: Tensor | slice) -> InstrumentRows:
        return InstrumentRows(*(None if part is None else part[indices] for part in self))  # type: ignore[arg-type]

    def blocks(self) -> Iterator[InstrumentRows]:
        """Blocks of a few rows, because a design can have many columns."""
        for start in range(0, self.n_rows, BLOCK_ROWS):
            yield self.take(slice(start, start + BLOCK_ROWS))

    @property
    def n_rows(self) -> int:
        return len(self.treatment)

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(self.n_rows) if self.weight is None else float(self.weight.sum())


class Networks(nn.Module):
    """The nets of one fold: treatment net, confounder net, and one net per first stage.

    Parameters
    ----------
    treatment : torch.nn.Module
        Maps treatments to features (n, a); the first ``n_raw`` are the treatments themselves.
    confounder : torch.nn.Module or None
    instruments : list of torch.nn.Module
        Each maps (instrument, confounder) to features (n, b). Empty for direct regression.
    n_raw : int
    """

    def __init__(
        self,
        treatment: nn.Module,
        confounder: nn.Module | None,
        instruments: list[nn.Module],
        n_raw: int,
    ) -> None:
        super().__init__()
        self.treatment, self.confounder = treatment, confounder
        self.instruments = nn.ModuleList(instruments)
        self.n_raw = n_raw


class Shrinkage(NamedTuple):
    """Scales of the columns in the second stage, relative to the raw treatment, and penalties.

    Attributes
    ----------
    interactions : float
        Scale of the products of treatment and confounder features.
    features : float
        Scale of the treatment net's features; 0 omits them.
    ridge : float
        Ridge penalty of the second stage per row, on normalised columns.
    treatment : float
        Upper limit of this penalty for the raw treatment's columns, which may vary little.
    slopes, controls : float
        Scale of all columns of the treatment, and of those of the confounders alone. With zeros
        the offset alone is left.
    offset : float
        Share of the linear offset.
    """

    interactions: float
    features: float
    ridge: float
    treatment: float = float("inf")
    slopes: float = 1.0
    controls: float = 1.0
    offset: float = 0.0


class Offset(NamedTuple):
    """The linear fit below the nets: ``X @ treatment.T + C @ confounder.T + bias``.

    Attributes
    ----------
    treatment, confounder : Tensor of shape (k, p) and (k, c), or None
        Slopes of the standardised columns. None for the confounders if they have no linear part.
    bias : Tensor of shape (k,)
    """

    treatment: Tensor
    confounder: Tensor | None
    bias: Tensor

    def __call__(self, treatment: Tensor, confounder: Tensor | None) -> Tensor:
        """Values (n, k) at these rows."""
        value = treatment.to(self.bias) @ self.treatment.mT + self.bias
        if self.confounder is None or confounder is None:
            return value
        return value + confounder.to(self.bias) @ self.confounder.mT


class Settings(NamedTuple):
    """Settings of training.

    With ``batch_size=None`` each step uses all rows and both last layers are ridge fits. On
    mini-batches they are proximal updates, which with a decay of 0.99 and a ridge of 1 were as good
    as full batches (n = 5000) in a quarter of the time; without memory errors were twice as large.
    """

    learning_rate: float
    stage1_ridge: float
    shrinkage: Shrinkage
    batch_size: int | None


class Model(NamedTuple):
    """Weights of the nets and solved layers of one fold at one epoch.

    Attributes
    ----------
    state : dict of str to Tensor
        ``state_dict`` of :class:`Networks`.
    scalings : dict of str to Scaling
        Scalings of the "treatment" and "confounder" features.
    first_stages : list of (Scaling, LinearMap)
        One per instrument net.
    corrections : list of LinearMap
        Maps of confounder features that are added to the predictions of each first stage, see
        :func:`confounder_corrections`. Empty if there is nothing to correct.
    weight, bias : Tensor of shape (..., k, d) and (..., k)
        Second stage on the unscaled design. Before the shrinkage is chosen, there is one for each
        candidate.
    mean, covariance : Tensor of shape (d,) and (d, d), or None
        Mean of that design, and covariance of the weights over the noise variance over n.
    offset : Offset or None
    share : Tensor of shape (...,)
        Share of the offset in the outcome.
    """

    state: dict[str, Tensor]
    scalings: dict[str, maths.Scaling]
    first_stages: list[tuple[maths.Scaling, maths.LinearMap]]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    covariance: Tensor | None
    corrections: list[maths.LinearMap]
    offset: Offset | None
    share: Tensor


def treatment_scale(n_features: int, n_raw: int, shrinkage: Shrinkage) -> Tensor:
    """Scales of the treatment features; the raw treatment comes first, with scale one."""
    scale = torch.ones(n_features)
    if n_raw:
        scale[n_raw:] = shrinkage.features
    return scale


def design_scale(n_columns: int, n_features: int, n_raw: int, shrinkage: Shrinkage) -> Tensor:
    """Scales of the columns ``[Ψ, Ξ, Ψ⊗Ξ]`` of the second stage; Ψ has ``n_features`` columns."""
    features = treatment_scale(n_features, n_raw, shrinkage)
    n_confounder = (n_columns - n_features) // (n_features + 1)
    products = features.repeat_interleave(n_confounder) * shrinkage.interactions
    if shrinkage.ridge > shrinkage.treatment:
        features[:n_raw] = (shrinkage.ridge / shrinkage.treatment) ** 0.5
    controls = torch.full((n_confounder,), shrinkage.controls)
    return torch.cat([features * shrinkage.slopes, controls, products * shrinkage.slopes])


@lru_cache(maxsize=8)  # all records of a fit ask for the same
def design_scales(
    n_columns: int, n_features: int, n_raw: int, shrinkages: tuple[Shrinkage, ...]
) -> Tensor:
    """:func:`design_scale` for c shrinkages; (c, d)."""
    return torch.stack([design_scale(n_columns, n_features, n_raw, each) for each in shrinkages])


def shrunken_fit(
    block: linalg.Moments, scale: Tensor, ridge: float, *, invert: bool = False
) -> Tensor:
    """Second-stage weights (k, d) of the unscaled columns, from a ridge fit on scaled columns.

    ``S (S G S + λI)⁻¹ S c`` with the scales on the diagonal of S. With ``invert`` it is
    ``S (S G S + λI)⁻¹ S``, of shape (d, d).
    """
    scale = scale.to(block.gram)
    gram = block.gram * scale * scale.unsqueeze(1)
    penalty = ridge * block.total if ridge else 0.0
    return (
        linalg.solve_symmetric(gram, penalty, scale.diag() if invert else block.cross * scale)
        * scale
    )


def shrunken_fits(block: linalg.Moments, scales: Tensor, ridges: list[float]) -> Tensor:
    """:func:`shrunken_fit` for c scales (c, d) and penalties, solved together; (c, k, d)."""
    if not all(ridges):  # these need a solution of minimum norm
        fits = [
            shrunken_fit(block, each, ridge) for each, ridge in zip(scales, ridges, strict=True)
        ]
        return torch.stack(fits)
    scales = scales.to(block.gram)
    penalties = block.total * scales.new_tensor(ridges)
    size = max(1, LARGEST_STACK // block.gram.numel())
    found = []
    for scale, penalty in zip(scales.split(size), penalties.split(size), strict=True):
        gram = block.gram * scale.unsqueeze(1) * scale.unsqueeze(2)
        cross = block.cross * scale.unsqueeze(1)
        found.append(linalg.solve_symmetric(gram, penalty, cross) * scale.unsqueeze(1))
    return torch.cat(found)


def structural_design(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """Design of the structural function, from the actual treatment; (n, d)."""
    features = treatment_features(nets, model, rows)
    return maths.stage2_design(features, _confounder(nets, model, rows), 1.0)


def treatment_features(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """Normalised features of the actual treatment; (n, a)."""
    return model.scalings["treatment"](_apply(nets, model, "treatment", rows.treatment))


def structural_outcome(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """The structural function at the actual treatment; (..., n, k)."""
    return _outcome(nets, model, rows, treatment_features(nets, model, rows))


def projected_outcome(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """The projected outcome ``E[f(X, C) | Z, C]``, averaged over first stages; (..., n, k)."""
    return _outcome(nets, model, rows, predicted_treatment(nets, model, rows))


def _outcome(nets: Networks, model: Model, rows: InstrumentRows, features: Tensor) -> Tensor:
    """Offset and second stage for these normalised features of the treatment."""
    design = maths.stage2_design(features, _confounder(nets, model, rows), 1.0).to(model.weight)
    leading = model.weight.shape[:-1]  # one product for all candidates
    outcome = (design @ model.weight.reshape(-1, design.shape[1]).mT).unflatten(1, leading)
    outcome = outcome.movedim(0, -2) + model.bias.unsqueeze(-2)
    if model.offset is None:
        return outcome
    scaling = model.scalings["treatment"]
    raw = (features * scaling.scale + scaling.mean)[:, : nets.n_raw]
    return outcome + model.share[..., None, None] * model.offset(raw, rows.confounder)


def predicted_treatment(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """Treatment features (n, a) predicted from instruments, averaged over first stages."""
    features = instrument_features(nets, model, rows)
    parts = [solved(phi) for phi, (_, solved) in zip(features, model.first_stages, strict=True)]
    if model.corrections:
        confounder = _confounder(nets, model, rows)
        assert confounder is not None
        parts = [
            part + correct(confounder)
            for part, correct in zip(parts, model.corrections, strict=True)
        ]
    return torch.stack(parts).mean(0)


def instrument_features(nets: Networks, model: Model, rows: InstrumentRows) -> list[Tensor]:
    """Normalised features (n, b) of instruments and confounders, for each first stage."""
    return [
        scaling(_apply(nets, model, f"instruments.{j}", rows.instrument, rows.confounder))
        for j, (scaling, _) in enumerate(model.first_stages)
    ]


def confounder_corrections(
    predicted: list[Tensor], confounder: list[Tensor], weight: list[Tensor] | None
) -> list[maths.LinearMap]:
    """Corrections that make the predictions of all parts depend alike on the confounders.

    Each part is predicted by its own first stage, whose errors in the dependence on the
    confounders differ between parts. The second stage has one set of confounder slopes, so this
    difference acts like variation due to the instruments, and biases the slope towards zero if
    the instruments are weak. So the regression of each part's prediction on the confounders is
    replaced by its mean over the parts.

    Parameters
    ----------
    predicted, confounder : lists of Tensor, of shape (n_j, a) and (n_j, q)
        One tensor per part.
    weight : list of Tensor of shape (n_j,), or None

    Returns
    -------
    list of LinearMap, from (·, q) to (·, a)
    """
    weights: list[Any] = [None] * len(predicted) if weight is None else weight
    own = [
        maths.ridge_fit(features, part, 0.0, rows)
        for features, part, rows in zip(confounder, predicted, weights, strict=True)
    ]
    slopes = torch.stack([each.weight for each in own])
    biases = torch.stack([each.bias for each in own])
    return [
        maths.LinearMap(*pair)
        for pair in zip(slopes.mean(0) - slopes, biases.mean(0) - biases, strict=True)
    ]


def joined(parts: list[InstrumentRows], name: str) -> Any:
    """Concatenate one field of several blocks of rows; None if it is None."""
    tensors = [getattr(part, name) for part in parts]
    if tensors[0] is None:
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _confounder(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor | None:
    if nets.confounder is None or rows.confounder is None:
        return None
    return model.scalings["confounder"](_apply(nets, model, "confounder", rows.confounder))


def _apply(nets: Networks, model: Model, name: str, *inputs: Tensor | None) -> Any:
    """Apply a net with the weights of a model; modules are not changed and so are thread-safe."""
    prefix = f"{name}."
    state = {k.removeprefix(prefix): v for k, v in model.state.items() if k.startswith(prefix)}
    return functional_call(nets.get_submodule(name), state, inputs)
