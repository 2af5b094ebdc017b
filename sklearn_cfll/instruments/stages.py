"""What two-stage training is given and what it leaves: rows, nets, settings, models."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import linalg
from ..linalg._symmetric import solve_symmetric
from . import two_stage as maths

__all__ = [
    "InstrumentRows",
    "Model",
    "Networks",
    "Settings",
    "Shrinkage",
    "confounder_corrections",
    "design_scale",
    "joined",
    "pack_model",
    "projected_design",
    "shrunken_fit",
    "structural_design",
    "treatment_scale",
    "unpack_model",
]


class InstrumentRows(NamedTuple):
    """Rows on the device; the first dimension of each tensor is n.

    Attributes
    ----------
    treatment : Tensor of shape (n, ...)
    instrument : Tensor of shape (n, ...), or None for direct regression
    confounder : Tensor of shape (n, ...), or None
    outcome : Tensor of shape (n, k), or None for rows of the first stage alone
    weight : Tensor of shape (n,) with mean one over all rows, or None
    """

    treatment: Tensor
    instrument: Tensor | None
    confounder: Tensor | None
    outcome: Tensor | None
    weight: Tensor | None

    def take(self, indices: Tensor) -> InstrumentRows:
        return InstrumentRows(*(None if part is None else part[indices] for part in self))  # type: ignore[arg-type]

    @property
    def n_rows(self) -> int:
        return len(self.treatment)


class Networks(nn.Module):
    """The nets of one fold: of the treatment, the confounders, and one per first stage.

    Parameters
    ----------
    treatment : torch.nn.Module
        Treatment inputs to features (n, a); the first ``n_raw`` are the inputs themselves.
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
    """How much of each kind of column the second stage takes, relative to the raw treatment.

    Attributes
    ----------
    interactions : float
        Scale of treatment features times confounder features.
    features : float
        Scale of the treatment net's features beside the raw treatment; 0 leaves them out.
    ridge : float
        Penalty per row of the second stage, on normalised columns.
    treatment : float
        At most so much of it on the raw treatment's own columns, which may move little.
    """

    interactions: float
    features: float
    ridge: float
    treatment: float = float("inf")


class Settings(NamedTuple):
    """What training goes by.

    With ``batch_size=None`` a step sees all rows and both last layers are ridge fits; on
    mini-batches they are proximal updates, for which a memory of 0.99 and a pull of 1 matched
    full batches (n = 5000) in a quarter of their time, and no memory did half as well.
    """

    learning_rate: float
    stage1_ridge: float
    shrinkage: Shrinkage
    batch_size: int | None


class Model(NamedTuple):
    """Nets and solved layers of one fold at one time.

    Attributes
    ----------
    state : dict of str to Tensor
        Of :class:`Networks`.
    scalings : dict of str to Scaling
        Of "treatment" and "confounder" features.
    first_stages : list of (Scaling, LinearMap)
        One an instrument net.
    corrections : list of LinearMap
        Of confounder features, added to the predictions of each first stage: see
        :func:`confounder_corrections`. Empty where there is nothing to correct.
    weight, bias : Tensor of shape (..., k, d) and (..., k)
        Of the second stage, on the design with all columns at scale one; before the shrinkage
        is chosen there is one for each.
    mean, covariance : Tensor of shape (d,) and (d, d), or None
        Of that design and, up to the noise's variance over n, of the weights.
    """

    state: dict[str, Tensor]
    scalings: dict[str, maths.Scaling]
    first_stages: list[tuple[maths.Scaling, maths.LinearMap]]
    weight: Tensor
    bias: Tensor
    mean: Tensor
    covariance: Tensor | None
    corrections: list[maths.LinearMap]


def treatment_scale(n_features: int, n_raw: int, shrinkage: Shrinkage) -> Tensor:
    """Scales of the treatment features: one for the raw treatment, which comes first."""
    scale = torch.ones(n_features)
    if n_raw:
        scale[n_raw:] = shrinkage.features
    return scale


def design_scale(n_columns: int, n_features: int, n_raw: int, shrinkage: Shrinkage) -> Tensor:
    """Scales of all columns ``[Ψ, Ξ, Ψ⊗Ξ]`` of a second stage with a treatment features."""
    features = treatment_scale(n_features, n_raw, shrinkage)
    n_confounder = (n_columns - n_features) // (n_features + 1)
    products = features.repeat_interleave(n_confounder) * shrinkage.interactions
    if shrinkage.ridge > shrinkage.treatment:
        features[:n_raw] = (shrinkage.ridge / shrinkage.treatment) ** 0.5
    return torch.cat([features, torch.ones(n_confounder), products])


def shrunken_fit(
    block: linalg.Moments, scale: Tensor, ridge: float, *, invert: bool = False
) -> Tensor:
    """Second-stage weights (k, d), on columns at scale one, shrunk as columns at these scales.

    ``S (S G S + λI)⁻¹ S c`` with the scales S on the diagonal; ``S (S G S + λI)⁻¹ S`` itself,
    of shape (d, d), where ``invert``.
    """
    scale = scale.to(block.gram)
    gram = block.gram * scale * scale.unsqueeze(1)
    penalty = ridge * block.total if ridge else 0.0
    return solve_symmetric(gram, penalty, scale.diag() if invert else block.cross * scale) * scale


def structural_design(
    nets: Networks, model: Model, treatment: Tensor, confounder: Tensor | None
) -> Tensor:
    """Design of the structural function: the actual treatment's features; (n, d)."""
    features = treatment_features(nets, model, treatment)
    return maths.stage2_design(features, _confounder(nets, model, confounder), 1.0)


def treatment_features(nets: Networks, model: Model, treatment: Tensor) -> Tensor:
    """Normalised features of the actual treatment; (n, a)."""
    return model.scalings["treatment"](_apply(nets, model, "treatment", treatment))


def projected_design(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """Design of the projected outcome ``E[f(X, C) | Z, C]``, first stages averaged; (n, d)."""
    predicted = predicted_treatment(nets, model, rows)
    return maths.stage2_design(predicted, _confounder(nets, model, rows.confounder), 1.0)


def predicted_treatment(nets: Networks, model: Model, rows: InstrumentRows) -> Tensor:
    """Treatment features (n, a) predicted from instruments, the first stages averaged."""
    parts = [
        solved(scaling(_apply(nets, model, f"instruments.{j}", rows.instrument, rows.confounder)))
        for j, (scaling, solved) in enumerate(model.first_stages)
    ]
    if model.corrections:
        confounder = _confounder(nets, model, rows.confounder)
        assert confounder is not None
        parts = [
            part + correct(confounder)
            for part, correct in zip(parts, model.corrections, strict=True)
        ]
    return torch.stack(parts).mean(0)


def confounder_corrections(
    predicted: list[Tensor], confounder: list[Tensor], weight: list[Tensor] | None
) -> list[maths.LinearMap]:
    """What makes the parts' predictions agree with each other on the confounders.

    Each part is predicted by a first stage of its own, whose errors in the confounders differ
    from part to part. A second stage with one set of confounder slopes sees the difference as
    movement by instruments, and where those move the treatment little it draws the slope to
    zero. So what a part's prediction makes of the confounders gives way to the parts' mean.

    Parameters
    ----------
    predicted, confounder : lists of Tensor, of shape (n_j, a) and (n_j, q)
        By part.
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


def pack_model(model: Model) -> dict[str, Any]:
    """A model as plain dicts, lists and tuples of tensors."""
    return {
        **model._asdict(),
        "scalings": {name: tuple(scaling) for name, scaling in model.scalings.items()},
        "first_stages": [(tuple(scaling), tuple(solved)) for scaling, solved in model.first_stages],
        "corrections": [tuple(correction) for correction in model.corrections],
    }


def unpack_model(packed: dict[str, Any]) -> Model:
    """The way back of :func:`pack_model`."""
    scalings = {name: maths.Scaling(*parts) for name, parts in packed["scalings"].items()}
    first_stages = [
        (maths.Scaling(*scaling), maths.LinearMap(*solved))
        for scaling, solved in packed["first_stages"]
    ]
    corrections = [maths.LinearMap(*parts) for parts in packed["corrections"]]
    parts = {"scalings": scalings, "first_stages": first_stages, "corrections": corrections}
    return Model(**{**packed, **parts})


def joined(parts: list[InstrumentRows], name: str) -> Any:
    """One field of several blocks of rows, or None."""
    tensors = [getattr(part, name) for part in parts]
    if tensors[0] is None:
        return None
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _confounder(nets: Networks, model: Model, confounder: Tensor | None) -> Tensor | None:
    if nets.confounder is None or confounder is None:
        return None
    return model.scalings["confounder"](_apply(nets, model, "confounder", confounder))


def _apply(nets: Networks, model: Model, name: str, *inputs: Tensor | None) -> Any:
    """A net with the weights of a model; no module is touched, so threads can share them."""
    prefix = f"{name}."
    state = {k.removeprefix(prefix): v for k, v in model.state.items() if k.startswith(prefix)}
    return functional_call(nets.get_submodule(name), state, inputs)
