"""Two-stage training on the rows of one fold: gradient steps, solves and records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg
from ..training.seeding import LentStream, draws_globally
from . import two_stage as maths
from .stages import (
    InstrumentRows,
    Model,
    Networks,
    Offset,
    Settings,
    Shrinkage,
    confounder_corrections,
    design_scales,
    joined,
    projected_outcome,
    shrunken_fits,
    structural_outcome,
    treatment_scale,
)

__all__ = ["FoldTraining", "Record"]

# Strength of the penalty towards the previous weights on mini-batches of 256 rows; with fewer rows
# it is stronger. The decay makes the ridge fit to all rows the fixed point of the updates. Measured
# at n = 5000: as good as full batches in a quarter of the time; without memory errors doubled.
PROXIMAL_RIDGE, PROXIMAL_ROWS = 1.0, 256


class Together(NamedTuple):
    """The rows of all parts, one after another."""

    confounder: Tensor | None
    outcome: Tensor
    offset: Tensor | None  # at the actual treatment, of the shape of the outcome
    weight: Tensor | None


class Forward(NamedTuple):
    """First stage and inputs of the second on one batch."""

    predicted: Tensor  # treatment features predicted from instruments, (n, a)
    confounder: Tensor | None  # normalised features (n, q)
    rows: Together
    stage1_loss: Tensor | float
    scalings: dict[str, maths.Scaling]
    first_stages: list[tuple[maths.Scaling, maths.LinearMap]]


class Record(NamedTuple):
    """A fold at one epoch: a model with one second stage per shrinkage, and held-out losses.

    Attributes
    ----------
    model : Model
        ``weight`` of shape (c, k, d), ``bias`` (c, k).
    losses : Tensor of shape (c,)
        Stage-2 loss on the held-out rows.
    block : Moments
        Moments of the design over the training rows, before columns are scaled.
    """

    model: Model
    losses: Tensor
    block: linalg.Moments


class FoldTraining:
    """Two-stage training on the rows of one fold.

    The training rows are split into parts, with one first stage per part. Each first stage is
    fitted to the other parts and predicts its own, so that no first stage predicts rows that it
    was fitted to. One treatment net, one confounder net and one second stage are fitted to the
    predictions of all parts, and gradients pass through every first stage. With a single part,
    the first stage is fitted to the same rows (or to ``stage1_rows``).

    Parameters
    ----------
    networks : Networks
        Trained in place.
    rows : InstrumentRows
        All rows of the data set.
    parts : list of Tensor of int
        Indices of the training rows of each part.
    held_out : Tensor of int
    settings : Settings
    stage1_rows : InstrumentRows, optional
        A separate sample for the first stage.
    offset : Offset, optional
        The linear fit to the training rows, whose residuals the nets are trained on.
    stream : LentStream, optional
        Random stream of nets that cannot take a generator.
    """

    def __init__(
        self,
        networks: Networks,
        rows: InstrumentRows,
        parts: list[Tensor],
        held_out: Tensor,
        settings: Settings,
        stage1_rows: InstrumentRows | None = None,
        offset: Offset | None = None,
        stream: LentStream | None = None,
    ) -> None:
        self.networks, self.settings, self.stage1_rows = networks, settings, stage1_rows
        self.offset = offset
        self.step: Callable[..., None] = self._step
        if stream is not None and draws_globally(networks):
            self.step = stream.lent()(self._step)
        self.train = [rows.take(part) for part in parts]
        self.held_out = rows.take(held_out)
        trained = [p for p in networks.parameters() if p.requires_grad]
        fused = not any(p.is_complex() for p in trained)
        self.optimizer = (
            torch.optim.Adam(trained, lr=settings.learning_rate, fused=fused) if trained else None
        )
        n_rows, size = sum(map(len, parts)), settings.batch_size
        self.n_batches = 1 if size is None else max(1, round(n_rows / size))
        self.together = self._together(self.train)
        # Last layers of the previous step, used on mini-batches.
        self.memory: dict[Any, Tensor] = {}

    def epoch(self, generator: torch.Generator) -> None:
        """One pass over the training rows."""
        self.networks.train()
        for parts, stage1 in self._batches(generator):
            self.step(parts, stage1)

    def _batches(
        self, generator: torch.Generator
    ) -> Iterator[tuple[list[InstrumentRows], InstrumentRows | None]]:
        """Batches with rows of every part, so that each step updates every first stage."""
        if self.n_batches == 1:
            yield self.train, self.stage1_rows
            return
        blocks = [*self.train, *([] if self.stage1_rows is None else [self.stage1_rows])]
        orders = [
            # Copied at once: each copy from the CPU makes the host wait for an accelerator.
            torch.randperm(block.n_rows, generator=generator)
            .to(block.treatment.device)
            .tensor_split(self.n_batches)
            for block in blocks
        ]
        for chosen in zip(*orders, strict=True):
            taken = [block.take(indices) for block, indices in zip(blocks, chosen, strict=True)]
            yield taken[: len(self.train)], None if self.stage1_rows is None else taken[-1]

    def _step(self, parts: list[InstrumentRows], stage1: InstrumentRows | None) -> None:
        """Solve both last layers on this batch, then take one optimiser step on all nets.

        The two losses share no trained parameter (each treats the nets of the other as fixed),
        so one backward pass through their sum gives both gradients.
        """
        assert self.optimizer is not None
        forward, shrinkage = self._forward(parts, stage1), self.settings.shrinkage
        scale = treatment_scale(forward.predicted.shape[1], self.networks.n_raw, shrinkage)
        predicted = forward.predicted * scale.to(forward.predicted)
        design = maths.stage2_design(predicted, forward.confounder, shrinkage.interactions)
        outcome = forward.rows.outcome
        if forward.rows.offset is not None:
            outcome = outcome - shrinkage.offset * forward.rows.offset
        _, loss = self._solve("outcome", design, outcome, shrinkage.ridge, forward.rows.weight)
        loss = forward.stage1_loss + loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _forward(self, parts: list[InstrumentRows], stage1: InstrumentRows | None) -> Forward:
        """Compute features, solve every first stage and predict the treatment of each part."""
        nets, ridge = self.networks, self.settings.stage1_ridge
        features = [nets.treatment(part.treatment) for part in parts]
        if stage1 is None:
            sources, known = parts, features
        else:
            sources, known = [stage1], [nets.treatment(stage1.treatment)]
        scaling = maths.feature_scaling(torch.cat(known), joined(sources, "weight"))
        known = [scaling(part) for part in known]
        loss: Tensor | float = 0.0
        predicted, first_stages = [], []
        for j, net in enumerate(nets.instruments):
            fitted = [i for i in range(len(sources)) if i != j or len(sources) == 1]
            others = [sources[i] for i in fitted]
            treatment = torch.cat([known[i] for i in fitted])
            weight = joined(others, "weight")
            instrument = net(joined(others, "instrument"), joined(others, "confounder"))
            normalise = maths.feature_scaling(instrument, weight)
            instrument = normalise(instrument)
            solved, own_loss = self._solve(f"treatment {j}", instrument, treatment, ridge, weight)
            loss = loss + own_loss
            held = maths.Scaling(*(part.detach() for part in normalise))
            with torch.no_grad():  # the second stage does not train the instrument net
                own = held(net(parts[j].instrument, parts[j].confounder))
            predicted.append(solved(own))
            first_stages.append((held, solved))
        if not predicted:  # direct regression uses the actual treatment
            predicted = [scaling(part) for part in features]
        scalings, confounder = {"treatment": scaling}, None
        rows = self.together if parts is self.train else self._together(parts)
        weight = rows.weight
        if nets.confounder is not None:
            confounder = nets.confounder(rows.confounder)
            scalings["confounder"] = maths.feature_scaling(confounder, weight)
            confounder = scalings["confounder"](confounder)
            if first_stages and self.networks.training:
                # A function of the confounders that is in the predicted treatment but not in the
                # features of the second stage would act as an instrument, although confounders
                # are not excluded from the outcome. So the confounder features are trained to
                # predict the treatment too, as in post-double-selection (Belloni, Chernozhukov
                # and Hansen, Review of Economic Studies 81(2), 2014).
                treatment = scaling(torch.cat(features)).detach()
                loss = loss + self._solve("control", confounder, treatment, ridge, weight)[1]
        return Forward(torch.cat(predicted), confounder, rows, loss, scalings, first_stages)

    def _together(self, parts: list[InstrumentRows]) -> Together:
        outcome, confounder = joined(parts, "outcome"), joined(parts, "confounder")
        offset = None
        if self.offset is not None:
            offset = self.offset(joined(parts, "treatment"), confounder).to(outcome)
        return Together(confounder, outcome, offset, joined(parts, "weight"))

    def _solve(
        self, name: str, features: Tensor, targets: Tensor, penalty: float, weight: Tensor | None
    ) -> tuple[maths.LinearMap, Tensor]:
        """A ridge fit, differentiable in the targets, and its loss, which trains the features.

        On a mini-batch it is a proximal update of the weights stored as ``name``.
        """
        if self.n_batches == 1 or not self.networks.training:
            solved = maths.ridge_fit(features.detach(), targets, penalty, weight)
            return solved, maths.held_loss(features, targets, solved, weight)
        pull = PROXIMAL_RIDGE * max(1.0, PROXIMAL_ROWS / len(features))
        held = name in self.memory
        solved = maths.ridge_fit(
            features.detach(),
            targets,
            max(pull, penalty) if held else penalty,
            weight,
            previous=self.memory.get(name),
            # The fixed point of (G + αI)W' = C + αγW solves (G + λI)W = C if α(1 - γ) = λ.
            decay=1.0 - min(1.0, penalty / pull) if held else 0.0,
            total=float(len(features)),
        )
        self.memory[name] = solved.weight.detach()
        return solved, maths.held_loss(features, targets, solved, weight)

    @torch.no_grad()
    def record(self, shrinkages: list[Shrinkage]) -> Record:
        """Solve both stages on all training rows, the second for each shrinkage, and score.

        One Gram matrix is used for all shrinkages: scaling columns of the design scales its rows
        and columns. It is in float64, because with small penalties it is nearly singular.
        """
        nets = self.networks.eval()
        forward = self._forward(self.train, self.stage1_rows)
        predicted, corrections = self._corrected(forward)
        design = maths.stage2_design(predicted, forward.confounder, 1.0)
        outcome = forward.rows.outcome
        if forward.rows.offset is not None:  # solved for both: solutions are linear in the outcome
            outcome = torch.cat([outcome, forward.rows.offset], dim=1)
        block = linalg.moments(
            _double(design),
            _double(outcome),
            None if forward.rows.weight is None else _double(forward.rows.weight),
        )
        sizes = design.shape[1], forward.predicted.shape[1], nets.n_raw
        # Candidates that differ in the share of the offset have the same solution.
        alike = [each._replace(offset=0.0) for each in shrinkages]
        distinct = list(dict.fromkeys(alike))
        scales = design_scales(*sizes, tuple(distinct))
        weight = shrunken_fits(block, scales, [each.ridge for each in distinct])
        weight = weight[[distinct.index(each) for each in alike]]
        bias = block.target_mean - weight @ block.feature_mean
        share = weight.new_tensor([each.offset for each in shrinkages])
        if forward.rows.offset is not None:
            weight, of_offset = weight.chunk(2, dim=1)
            weight = weight - share[:, None, None] * of_offset
            bias, of_offset = bias.chunk(2, dim=1)
            bias = bias - share[:, None] * of_offset
        model = Model(
            {name: part.detach().clone() for name, part in nets.state_dict().items()},
            forward.scalings,
            forward.first_stages,
            weight,
            bias,
            block.feature_mean,
            None,
            corrections,
            self.offset,
            share,
        )
        return Record(model, self._losses(model), block)

    def _corrected(self, forward: Forward) -> tuple[Tensor, list[maths.LinearMap]]:
        """Predictions of all parts, corrected by :func:`confounder_corrections`."""
        if not self.networks.instruments or len(self.train) == 1 or forward.confounder is None:
            return forward.predicted, []
        sizes = [part.n_rows for part in self.train]
        predicted = list(_double(forward.predicted).split(sizes))
        confounder = list(_double(forward.confounder).split(sizes))
        weight = forward.rows.weight
        weights = None if weight is None else list(_double(weight).split(sizes))
        corrections = confounder_corrections(predicted, confounder, weights)
        parts = zip(predicted, confounder, corrections, strict=True)
        corrected = torch.cat([part + correct(xi) for part, xi, correct in parts])
        like = forward.predicted
        return corrected.to(like), [
            maths.LinearMap(*(tensor.to(like) for tensor in correct)) for correct in corrections
        ]

    def _losses(self, model: Model) -> Tensor:
        """Held-out loss of each second stage; zeros if there are no held-out rows."""
        held = self.held_out
        if not held.n_rows or held.outcome is None:
            return torch.zeros(len(model.weight))
        outcome_of = projected_outcome if model.first_stages else structural_outcome
        fitted = outcome_of(self.networks, model, held)
        squares = (held.outcome - fitted).square().mean(2)
        if held.weight is None:
            return squares.mean(1)
        return (squares @ held.weight.to(squares)) / held.weight.sum()


def _double(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "mps" else tensor.double()
