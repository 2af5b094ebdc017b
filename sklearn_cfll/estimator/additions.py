"""Additions: new rows change a fitted model in proportion to their relative weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..columns.bins import PiecewiseLinear
from ..final_solve.refit import path_errors
from ..heads.memory import memory_of
from ..linalg import RIDGES
from ..training.batches import RowsDataset
from .column_moments import (
    ColumnMoments,
    total_weight,
    warn_of_narrow_bins,
    warn_of_other_columns,
)
from .fitted import FittedModel
from .known_rows import KnownRows, share_kept
from .run import Run

__all__ = ["Additions"]

# The ridge of a stream's solve before any ridge was evaluated on new rows.
STREAM_RIDGE = 0.01


class Additions:
    """A pass over new rows, and what it changes.

    After a ``fit`` the backbone has converged, so new rows update it at a small learning rate, in
    proportion to their weight relative to the earlier rows. The last layer is solved from the
    moments of all rows, including the new ones.

    Parameters
    ----------
    run : Run
    known_rows : KnownRows
        Of the earlier rows. It is changed.
    final_ridge : float or None
        Ridge of the last exact solve, None in the first call of a stream.
    rows : RowsDataset
        New rows, with residuals of the offset as targets and weights on the scale of those at fit.

    Attributes
    ----------
    kept : float
        Share of their weight that earlier rows keep.
    memory : list or None
        The head's memory of earlier rows, see :meth:`take_last_layer`.
    weights : dict or None
        The head's weights before the pass, if it has no such memory.
    """

    def __init__(
        self, run: Run, known_rows: KnownRows, final_ridge: float | None, rows: RowsDataset
    ) -> None:
        self.run, self.known_rows, self.final_ridge, self.rows = run, known_rows, final_ridge, rows
        self.head: Any = run.net.module_.last_layer
        self.kept = 1.0
        self.memory: Any = None
        self.weights: dict[str, Tensor] | None = None

    @property
    def restart_share(self) -> float:
        """Fraction of the learning rate at which training of a fitted model continues.

        It is one for as many rows as the model was fitted to and enough steps for the optimiser to
        estimate the size of gradients.
        """
        steps = self.run.n_batches(len(self.rows))
        share = min(1.0, total_weight(self.rows) / self.known_rows.n_known)
        return share * min(1.0, steps / self.run.defaults.short_run)

    # -- before the pass --------------------------------------------------------------

    def judge_ridges(self) -> None:
        """Add up the squared errors of each ridge on a stream's rows before they are learnt."""
        run, known_rows, head = self.run, self.known_rows, self.head
        adds = memory_of(run.estimator.memory).holds_rows
        if not known_rows.is_stream or not head.holds_moments or adds:
            return
        if run.given_ridge() is not None or known_rows.has_seen(self.rows):
            return
        errors = path_errors(run.net, self.rows, head.ridge_path(torch.tensor(RIDGES))).sum(1)
        new = total_weight(self.rows) * errors.double().cpu().numpy()
        before = 0.0 if known_rows.ridge_errors is None else known_rows.ridge_errors
        known_rows.ridge_errors = before + new

    def see_columns(self) -> None:
        """Keep the moments of a stream's first columns if the network standardises them."""
        if self.run.network.scales:
            self.known_rows.columns = ColumnMoments.of(self.rows, self.run.network.n_numbers)

    def follow_scales(self) -> None:
        """Update the scales of a stream's columns; after a ``fit`` they are fixed, and compared."""
        known_rows, network = self.known_rows, self.run.network
        before = known_rows.columns
        if before is None:
            warn_of_other_columns(network, self.rows)
            return
        if not network.scales:
            return
        after = known_rows.columns = before.merge(ColumnMoments.of(self.rows, network.n_numbers))
        mean, std = after.mean, np.sqrt(after.variance)
        for part in network.scales:
            part.adapt_to(*(torch.as_tensor(a, device=network.device) for a in (mean, std)))
        for each in network.module.modules():
            if isinstance(each, PiecewiseLinear) and each.n_outputs:
                warn_of_narrow_bins(each, before, after)
        self.kept *= before.share_kept(after)

    def take_last_layer(self) -> None:
        """Remove the memory of the last layer and keep it, or its weights if it has none."""
        if self.head.holds_moments or self.final_ridge is None:  # there are none at first
            self.memory = self.head.take_memory()
        else:
            state = self.head.state_dict().items()
            weights = ("weight", "bias")
            self.weights = {k: v.clone() for k, v in state if k.rpartition(".")[2] in weights}

    # -- after the pass ---------------------------------------------------------------

    @property
    def ridge(self) -> float:
        """Ridge of the last layer's solve; for a stream, the one that predicted best so far."""
        known_rows, given = self.known_rows, self.run.given_ridge()
        if known_rows.is_stream and known_rows.ridge_errors is not None:
            return float(RIDGES[int(known_rows.ridge_errors.argmin())])
        if self.final_ridge is not None:
            return self.final_ridge
        return STREAM_RIDGE if given is None else given

    def absorb(self) -> None:
        """Solve for the last layer from the moments of earlier rows and of these rows.

        If no moments were held, the weights before and after the pass are averaged in proportion
        to the rows. If neither was taken, the pass itself has added the rows.
        """
        head = self.head
        self.kept *= share_kept(self.run.total_rate)
        if self.memory is not None:
            head.reset_memory()
            head.recall(self.memory, self.kept)
            for batch in self.run.net.labelled_features(self.rows):
                head.accumulate(*batch)
            head.solve(self.ridge)
        elif self.weights is not None:
            known, new = self.kept * self.known_rows.n_known, total_weight(self.rows)
            share, found = new / (known + new), head.state_dict()
            mixed = {k: v.lerp(found[k], share) for k, v in self.weights.items()}
            head.load_state_dict(found | mixed)
        self.run.net.check_finite()

    def begun(self, model: FittedModel) -> FittedModel:
        """The model after the first rows of a stream."""
        head, plan = self.head, model.plan
        ridge = head.ridge if head.holds_rows else self.ridge
        # The noise is unknown yet: use the variance of the targets with the weight of one row.
        noise = plan.unscale_variance(torch.ones(plan.layout.n_targets))
        return replace(model, final_ridge=ridge, noise_variance=noise, n_judges=1.0)

    def improved(self, model: FittedModel, rows: RowsDataset, noise: Tensor) -> FittedModel:
        """The model after more rows, whose mean squared residuals before the pass were ``noise``.

        ``rows`` have the targets themselves.
        """
        known_rows, n_judges, before = self.known_rows, model.n_judges, model.noise_variance
        ridge = self.head.final_ridge or model.final_ridge
        model = replace(model, left_out=None, out_of_fold=None, final_ridge=ridge)
        if known_rows.ridge_errors is not None:
            known_rows.ridge_errors = self.kept * known_rows.ridge_errors
        if not n_judges or known_rows.has_seen(rows):
            return model
        n_judges, weight = n_judges * self.kept, total_weight(self.rows)
        share = weight / (n_judges + weight)
        after = (1 - share) * before + share * model.plan.unscale_variance(noise)
        changed = None if model.noise is None else model.noise.scaled(after, before)
        scores = None if model.scores is None else model.scores.mixed(share)
        n_judges += weight
        return replace(model, noise_variance=after, n_judges=n_judges, noise=changed, scores=scores)

    def remember(self, rows: RowsDataset) -> float:
        """Count the rows as learnt; return their share of the weight of all."""
        known_rows, weight = self.known_rows, total_weight(rows)
        if known_rows.is_stream:
            known_rows.reach(rows)
        known_rows.remember(rows)
        known_rows.n_known = self.kept * known_rows.n_known + weight
        return weight / known_rows.n_known
