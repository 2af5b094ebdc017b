"""Cross-fitted training: parallel folds, early stopping, shrinkage, averaging of iterates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones.dropout import seed_dropout
from ..training.seeding import LentStream, own_generator
from .evidence import log_evidence
from .fold_models import FoldModels
from .fold_training import FoldTraining, Record
from .stages import (
    InstrumentRows,
    Model,
    Networks,
    Offset,
    Settings,
    Shrinkage,
    design_scale,
    shrunken_fit,
)

__all__ = ["Schedule", "cross_fit"]

RUNNING_MEAN = 5  # records; the minimum of the raw held-out loss cost 3% to 11% more, see below
STEPS_PER_RECORD = 5
# Log-likelihood that must speak for the linear offset, and as much again for leaving out the curve
# beside it. Held-out moments hardly tell a curve from the offset where the instrument is weak.
DOUBT = 3.0


class Schedule(NamedTuple):
    """How long to train, and how the rows are split.

    Attributes
    ----------
    max_epochs : int
    n_iter_no_change : int
        Epochs without a better held-out loss before training stops.
    n_rows : float
        Number of rows that the sample weights represent. It is the sample size in the
        likelihood of a shrinkage.
    labels : Tensor of int, shape (repeats, n)
        Fold of each row, for each repeated split.
    halves : Tensor of int, shape (repeats, n), or None
        Part of each row within the training rows. If None, first stages predict the rows that
        they were fitted to.
    """

    max_epochs: int
    n_iter_no_change: int
    n_rows: float
    labels: Tensor
    halves: Tensor | None


def cross_fit(
    make_networks: Callable[[torch.Generator, LentStream], Networks],
    rows: InstrumentRows,
    schedule: Schedule,
    settings: Settings,
    candidates: dict[Shrinkage, float],
    seed: int,
    stage1_rows: InstrumentRows | None = None,
    offsets: list[Offset] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
) -> FoldModels:
    """Train all folds in parallel, stop them at the same epoch, average records and folds.

    The held-out loss of every fold is recorded every few steps. The five records whose mean
    loss, averaged over folds, is lowest are kept. Measured (104 runs on the demand design): the
    error is 1.08 times that of the best epoch, against 1.11 for the lowest raw loss, 1.5 for a
    single held-out fold and 1.9 without early stopping.

    Parameters
    ----------
    make_networks : callable
        Returns new nets, initialised from the generator that is passed to it, or from torch's
        global ones while the stream is lent.
    rows : InstrumentRows
    schedule : Schedule
    settings : Settings
    candidates : dict of Shrinkage to float
        Shrinkages and their log prior, up to a constant. They are averaged with weights of
        held-out likelihood times prior.
    seed : int
    stage1_rows : InstrumentRows, optional
    offsets : list of Offset, optional
        The linear fit of each fold, fold by fold for each split.
    on_record : callable, optional
        Called with each row of the history.

    Returns
    -------
    FoldModels

    Raises
    ------
    FloatingPointError
        If training diverges.
    """
    n_folds, shrinkages = int(schedule.labels.max()) + 1, list(candidates)
    device = rows.treatment.device
    stream, shuffling = LentStream(device, seed), own_generator("cpu", seed)
    initial = own_generator("cpu", seed)
    dropout = initial if device.type == "cpu" else own_generator(device, seed)

    def training(
        chosen: Tensor, held_out: Tensor, repeat: int, offset: Offset | None = None
    ) -> FoldTraining:
        parts = _cut(chosen, None if schedule.halves is None else schedule.halves[repeat])
        nets = make_networks(initial, stream)
        seed_dropout(nets, dropout)
        return FoldTraining(nets, rows, parts, held_out, settings, stage1_rows, offset, stream)

    folds = [
        training(
            (labels != k).nonzero()[:, 0],
            (labels == k).nonzero()[:, 0],
            repeat,
            None if offsets is None else offsets[repeat * n_folds + k],
        )
        for repeat, labels in enumerate(schedule.labels)
        for k in range(n_folds)
    ]
    mass = torch.tensor([fold.held_out.total for fold in folds], dtype=torch.float64)
    whole = None
    if folds[0].optimizer is None:
        whole = training(torch.arange(rows.n_rows), torch.arange(0), 0).record(shrinkages)
    run = _Run(candidates, schedule.n_rows, mass / mass.sum())
    for epoch in _epochs(folds, schedule, shuffling):
        records = [fold.record(shrinkages) for fold in folds]
        row = run.add(epoch, records)
        if not math.isfinite(row["valid_loss"]):
            raise FloatingPointError(
                f"Training diverged in epoch {epoch}: the held-out loss is not finite. Lower "
                f"`learning_rate` (now {settings.learning_rate:g}) or raise `stage1_ridge` "
                f"(now {settings.stage1_ridge:g})."
            )
        if on_record is not None:
            on_record(row)
        if epoch - run.best_epoch >= schedule.n_iter_no_change and run.full:
            break
    return run.finish(folds, len(schedule.labels), whole)


def _epochs(
    folds: list[FoldTraining], schedule: Schedule, generator: torch.Generator
) -> Iterator[int]:
    """Train all folds; yield the epoch each time that a record is due."""
    if folds[0].optimizer is None:
        yield 0
        return
    every = max(1, round(STEPS_PER_RECORD / folds[0].n_batches))
    for epoch in range(1, schedule.max_epochs + 1):
        for fold in folds:
            fold.epoch(generator)
        if epoch % every == 0 or epoch == schedule.max_epochs:
            yield epoch


class _Run:
    """Records so far. Records that can no longer be averaged are reduced to their losses."""

    def __init__(self, candidates: dict[Shrinkage, float], n_rows: float, share: Tensor) -> None:
        self.shrinkages, self.share, self.n_rows = list(candidates), share, n_rows
        # The Gaussian likelihood of all rows, each held out once, is L^(-n/2). A prior scales L.
        log_prior = torch.tensor(list(candidates.values()), dtype=torch.float64)
        self.handicap = torch.exp(log_prior * (-2.0 / n_rows))
        # The offset alone is the same at every epoch, and so does not decide when to stop.
        self.trained = torch.tensor([each.slopes > 0 or each.controls > 0 for each in candidates])
        self.records: list[list[Record] | None] = []
        self.losses: list[Tensor] = []  # (c,), averaged over folds
        self.history: list[dict[str, Any]] = []
        self.best, self.best_loss, self.best_epoch = (0, 0), math.inf, 0

    @property
    def full(self) -> bool:
        return len(self.losses) >= RUNNING_MEAN

    def add(self, epoch: int, records: list[Record]) -> dict[str, Any]:
        """Add the records of all folds at one epoch; returns a row of the history."""
        losses = self.share @ torch.stack([record.losses.cpu().double() for record in records])
        self.records.append(records)
        self.losses.append(losses)
        running = torch.stack(self.losses[-RUNNING_MEAN:]).mean(0) * self.handicap
        running = torch.where(self.trained, running, math.inf)
        # A window with fewer records is not compared with full ones.
        if len(self.losses) <= RUNNING_MEAN or float(running.min()) < self.best_loss:
            self.best = (len(self.losses) - 1, int(running.argmin()))
            self.best_loss, self.best_epoch = float(running.min()), epoch
        kept = {*self._window(self.best[0]), *self._window(len(self.records) - 1)}
        self.records = [each if i in kept else None for i, each in enumerate(self.records)]
        row = {"epoch": epoch, "valid_loss": float(losses.min()), "running_mean": self.best_loss}
        self.history.append(row)
        return row

    def finish(
        self, trainings: list[FoldTraining], n_repeats: int, whole: Record | None
    ) -> FoldModels:
        """Models of the best window, averaged over shrinkages by held-out likelihood."""
        networks = trainings[0].networks.eval()
        index, chosen = self.best
        window = self._window(index)
        loss = torch.stack([self.losses[i] for i in window]).mean(0)
        posterior = (loss * self.handicap).clamp_min(torch.finfo(loss.dtype).tiny)
        likelihood = posterior.log() * (-self.n_rows / 2)
        weights = torch.softmax(likelihood, 0)
        if any(each.offset for each in self.shrinkages):
            weights = self._between_offsets(likelihood, trainings, window, n_repeats)
        shrinkage = self.shrinkages[chosen]
        folds: list[list[Model]] = []
        for k in range(len(self.share)):
            records = [self.records[i][k] for i in window]  # type: ignore[index]
            models = [_average(record, weights) for record in records]
            models[-1] = _with_covariance(models[-1], records[-1], shrinkage, networks.n_raw)
            folds.append(models)
        return FoldModels(
            networks,
            folds,
            None if whole is None else _average(whole, weights),
            shrinkage,
            float(loss[chosen]),
            self.history,
            self.best_epoch,
            self.n_rows,
            n_repeats,
        )

    def _between_offsets(
        self, likelihood: Tensor, trainings: list[FoldTraining], window: list[int], n_repeats: int
    ) -> Tensor:
        """Weights of candidates whose offsets differ.

        They are in proportion to the likelihood (a logarithm) within a group of candidates with the
        same offset, and to :func:`log_evidence` between the groups.
        """
        kinds = [(each.offset, each.slopes, each.controls) for each in self.shrinkages]
        groups = list(dict.fromkeys(kinds))
        member = torch.tensor([[kind == group for kind in kinds] for group in groups])
        shares = torch.softmax(torch.where(member, likelihood, -math.inf), dim=1)
        n_held = sum(training.held_out.n_rows for training in trainings)
        repetitions, evidence = self.n_rows * n_repeats / n_held, torch.zeros(len(groups))
        for k, training in enumerate(trainings):
            records = [self.records[i][k].model for i in window]  # type: ignore[index]
            held = training.held_out
            found = log_evidence(training.networks, records, shares, held, repetitions)
            evidence = evidence + found.cpu() / n_repeats
        prior = torch.tensor(
            [
                _log_prior(offset, slopes, trainings[0].networks.confounder is not None)
                for offset, slopes, _ in groups
            ]
        )
        return torch.softmax(evidence + prior, 0).to(shares) @ shares

    def _window(self, index: int) -> list[int]:
        return list(range(max(0, index - RUNNING_MEAN + 1), index + 1))


def _log_prior(offset: float, slopes: float, has_controls: bool) -> float:
    """Of a share of the offset, and of curves of the treatments beside it.

    Without controls the offset alone is a line, and as likely as a curve. A doubt against curves
    there left 95% of a step function to the line in some samples.
    """
    if slopes == 0 and not has_controls:
        return 0.0
    return -DOUBT * ((offset > 0) + (slopes == 0))


def _average(record: Record, weights: Tensor) -> Model:
    model = record.model
    weights = weights.to(model.weight)
    return model._replace(
        weight=torch.tensordot(weights, model.weight, dims=1),
        bias=weights @ model.bias,
        share=weights @ model.share,
    )


def _with_covariance(model: Model, record: Record, shrinkage: Shrinkage, n_raw: int) -> Model:
    n_features = len(model.scalings["treatment"].mean)
    scale = design_scale(len(record.block.gram), n_features, n_raw, shrinkage)
    covariance = shrunken_fit(record.block, scale, shrinkage.ridge, invert=True)
    # Covariance of a mean over rows, so that the scale of the weights does not matter.
    return model._replace(covariance=covariance * record.block.total)


def _cut(chosen: Tensor, halves: Tensor | None) -> list[Tensor]:
    """Split the chosen rows into parts; every fold has rows of each part."""
    if halves is None:
        return [chosen]
    return [chosen[halves[chosen] == label] for label in halves.unique()]
