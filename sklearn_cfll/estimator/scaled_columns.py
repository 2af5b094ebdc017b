"""The scales of the columns: from slopes that two short, discarded runs agree on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..columns.expansion import Expansion
from ..columns.importance import (
    MOST_TARGETS,
    AdditiveScreen,
    additive_screen,
    random_directions,
    screened_features,
)
from ..final_solve.offset import LinearOffset, WithOffset
from ..training.column_scales import FEWEST_ROWS, FIRST_RUN_STEPS, column_scales, slopes
from .run import Run
from .split import Parts, Split

__all__ = ["may_scale_columns", "scale_columns"]

# Outputs of encoders of which members may have copies: 256 MiB for 8 of them in batches of 1,024.
WIDEST = 8192
# Rows of the additive model, fewer if their entries are many.
SCREENED_ROWS, SCREENED_ENTRIES = 4096, 2**22


def may_scale_columns(run: Run, parts: Parts) -> bool:
    """Whether to scale columns; not without held-out rows, as such fits use no random split."""
    columns = run.network.columns
    if columns is None or not columns.importance or parts.valid is None:
        return False
    if parts.folds is not None and (sum(columns.widths) > WIDEST or run.network.copies > 1):
        return False  # each member has scales, and encoded rows, of its own
    several = bool((columns.expansion.column != columns.expansion.column[0]).any())
    return several and len(parts.before) >= FEWEST_ROWS


def scale_columns(run: Run, parts: Parts, offset: LinearOffset | None) -> None:
    """Set the scales of the columns.

    Members that hold out folds have scales of their own, from slopes of their own, so that no
    target of their fold is looked at: of many columns, the scales say much of the targets.
    """
    net, train, n_rows = run.net, parts.train, len(parts.train)
    apart = parts.folds is not None
    module: Any = net.module_ if offset is None or apart else WithOffset(net.module_, offset)
    untrained = net.snapshot()
    found: list[Any] = []
    halves: Any = Split.draw(n_rows, n_rows // 2, None, run.network.seed)
    if parts.folds is not None:  # which keep groups together
        odd = parts.folds.of_row % 2 == 1
        halves = [chosen.nonzero().flatten().cpu() for chosen in (~odd, odd)]
    for half in halves:
        # No more rows than these steps see, spread over the half.
        most = FIRST_RUN_STEPS * run.batch_rows(len(half))
        half = half[np.linspace(0, len(half) - 1, min(len(half), most)).astype(np.int64)]
        epochs = math.ceil(FIRST_RUN_STEPS / run.n_batches(len(half)))
        run.configure(len(half), min(epochs, run.epochs))
        net.verbose = 0
        net.run(train.subset(half), None, [], provisional=True)
        if net.interrupted_:
            raise KeyboardInterrupt
        found.append(slopes(module, parts.before, apart=apart))
        net.restore(untrained)
    columns = run.network.columns
    assert columns is not None
    screen = screened(columns.expansion, parts)
    columns.scale_columns(column_scales(found[0], found[1], columns.expansion, screen))


def screened(expansion: Expansion, parts: Parts) -> AdditiveScreen:
    """The additive model of a sample of the rows, each member's without its own fold."""
    train, valid = parts.train, parts.valid
    assert valid is not None
    n_rows = min(SCREENED_ROWS, max(1, SCREENED_ENTRIES // train.inputs.shape[1]))
    if parts.folds is not None:  # both are views of the same rows
        chosen = _spread(len(train), n_rows)
        samples = [train.batch(chosen)]
        seen, held = (part.batch(chosen).sample_weight for part in (train, valid))
    else:
        share = min(1.0, n_rows / (len(train) + len(valid)))
        samples = [
            part.batch(_spread(len(part), round(share * len(part)))) for part in (train, valid)
        ]
        first, second = (
            each.inputs.new_ones(len(each.inputs), 1)
            if each.sample_weight is None
            else each.sample_weight.unsqueeze(1)
            for each in samples
        )
        seen = torch.cat([first, torch.zeros_like(second)])
        held = torch.cat([torch.zeros_like(first), second])
    assert seen is not None and held is not None
    features, column = screened_features(expansion, torch.cat([each.inputs for each in samples]))
    targets = torch.cat([each.targets for each in samples if each.targets is not None])
    directions = random_directions(targets.shape[1], MOST_TARGETS)
    sums = targets.float().cpu() @ directions.T
    return additive_screen(features, column, sums, seen.float().cpu(), held.float().cpu())


def _spread(n_rows: int, most: int) -> torch.Tensor:
    """Indices of at most so many rows, evenly spread."""
    return torch.arange(0, n_rows, -(-n_rows // max(1, most)))
