"""Shares: which rows each of several workers trains on, and which of them all workers know."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..columns.rows import JoinedRows
from ..final_solve.offset import less_offset
from ..training.batches import RowsDataset
from ..training.checkpoint import TrainingCheckpoint
from ..training.distribution import Workers
from ..training.folds import FoldRows, Folds
from ..training.seeding import mix_seed
from .checks import Checked, check_data
from .column_moments import total_weight
from .given import Given, joint
from .plan import Plan
from .split import Parts, draw_folds
from .wild_targets import tame_added

__all__ = ["Shares", "check_backbone", "check_one_model"]

# Rows of up to this many bytes are known to all workers, who plan on them, hold them out and judge
# on them; of more rows a sample is.
MOST_BYTES = 2**28


class Shares:
    """What several workers know of each other's rows, and who trains on which.

    All workers know the same rows: all of them, or a sample if they are many. What is decided from
    rows is decided on these, by every worker alike: columns, levels, scales, folds, epoch, ridge,
    noise and calibration. Every worker trains on its part of the rows that all know, and on its
    other rows, which no other worker knows.

    Parameters
    ----------
    workers : Workers
    estimator : estimator
    *given : X, y, sample_weight, groups
        Rows of this worker.

    Attributes
    ----------
    known : Given
        The rows that all workers know.
    is_sample : bool
        Whether there are others.
    """

    def __init__(self, workers: Workers, estimator: Any, *given: Any) -> None:
        self.workers, self.estimator, self.given = workers, estimator, Given(*given)
        self.known, self.is_sample = self.given, False
        self.added: RowsDataset | None = None
        self.n_added = 0
        if workers.size == 1:
            return
        with workers.all_or_none("`fit`"):
            own = self.given
            own.check_lengths()
            told = own.n_rows, own.n_bytes, _parameters(estimator)
        everyone = workers.gather(told)
        _check_same_parameters(everyone, workers.rank)
        self.is_sample = sum(size for _, size, _ in everyone) > MOST_BYTES
        with workers.all_or_none("`fit`"):
            self.chosen = np.arange(own.n_rows)
            if self.is_sample:
                self.chosen = _sample(own, everyone, is_classifier(estimator))
            sent = own.taken(self.chosen)
        self.known = joint(workers.gather(sent))

    def add(self, plan: Plan, checked: Checked) -> None:
        """Check the rows that only this worker knows, by the plan of the others."""
        if self.workers.size > 1:
            check_backbone(plan.network.backbone.module)
        if not self.is_sample:
            return
        with self.workers.all_or_none("`fit`"):
            rest = np.setdiff1d(np.arange(self.given.n_rows), self.chosen)
            if len(rest):
                self.added = self._rows(plan, checked, rest)
        sizes = self.workers.gather(0 if self.added is None else len(self.added))
        self.n_added = sum(sizes)

    def _rows(self, plan: Plan, known: Checked, rest: np.ndarray) -> RowsDataset | None:
        estimator = self.estimator
        if known.groups is not None:
            raise ValueError(
                "`groups` with several workers needs rows that all of them can know, at most "
                f"{MOST_BYTES >> 20} MiB in all. Pass `X_val` and `y_val` of other groups."
            )
        X, y, sample_weight, _ = self.given
        if sample_weight is not None and not np.any(sample_weight):
            return None
        checked = check_data(estimator, X, y, sample_weight, plan=plan, min_samples=1)
        kept = np.arange(len(checked.y)) if checked.rows is None else checked.rows
        chosen = np.isin(kept, rest)
        if not chosen.any():
            return None
        weights = checked.sample_weight
        checked = checked._replace(
            rows=kept[chosen],
            y=checked.y[chosen],
            sample_weight=None if weights is None else weights[chosen],
        )
        if plan.parameters.get("normalize_y"):
            reach = float(np.abs(plan.scale.transform(plan.layout.to_rows(known.y))).max())
            checked = tame_added(checked, plan, len(known.y), reach)
        return plan.dataset(checked, as_added=True)

    def validation(self, X_val: Any, y_val: Any) -> tuple[Any, Any]:
        """Rows of the validation sets of all workers."""
        if self.workers.size == 1 or (X_val is None and y_val is None):
            return X_val, y_val
        with self.workers.all_or_none("`fit`"):
            own = Given(X_val, y_val)
            size = own.n_bytes
        sizes = self.workers.gather(size)
        with self.workers.all_or_none("`fit`"):
            few = np.arange(own.n_rows)
            if sum(sizes) > MOST_BYTES:
                few = few[:: -(-sum(sizes) // MOST_BYTES)]
            sent = own.taken(few)
        return joint(self.workers.gather(sent))[:2]

    def __call__(self, parts: Parts, offset: Any = None) -> Parts:
        """The parts, each of which says what is this worker's own."""
        if self.workers.size == 1:
            return parts
        added = None if self.added is None else less_offset(self.added, offset)
        if parts.folds is None:
            for rows in (parts.rows, parts.train):
                own = self._joined(self._part(rows), added)
                rows.shared(own, len(rows) + self.n_added)
        else:
            self._share_folds(parts, parts.folds, added)
        if parts.valid is not None:
            parts.valid.shared(self._part(parts.valid), len(parts.valid))
        return parts

    def _share_folds(self, parts: Parts, folds: Folds, added: RowsDataset | None) -> None:
        own = self._joined(self._part(parts.rows), added)
        n_joint = len(parts.rows) + self.n_added
        of_own = folds.subset(self._indices(len(parts.rows)))
        held, total = folds.n_rows(parts.rows.sample_weight), total_weight(parts.rows)
        sums = torch.zeros(folds.n_members + 1, dtype=torch.float64)
        if added is not None:
            seed = mix_seed(self.workers.own_seed(0), 0) % 2**32
            drawn = draw_folds(folds.n_folds, np.zeros((len(added), 1)), None, seed)
            of_added = Folds(
                torch.as_tensor(drawn, device=folds.of_row.device),
                torch.full((len(added),), -1, device=folds.of_row.device),
                folds.n_folds,
                folds.n_members,
            )
            of_members = of_added.n_rows(added.sample_weight).cpu()
            sums = torch.cat([of_members, of_members.new_tensor([total_weight(added)])])
            of_own = Folds(
                torch.cat([of_own.of_row, of_added.of_row]),
                torch.cat([of_own.second, of_added.second]),
                folds.n_folds,
                folds.n_members,
            )
        if self.is_sample:
            sums = self.workers.sum_(sums)
        held, total = held + sums[:-1].to(held), total + float(sums[-1])
        scale = n_joint / (total - held)
        parts.rows.shared(own, n_joint)
        parts.train.shared(FoldRows(own, of_own, False, scale), n_joint)

    def _indices(self, n_rows: int) -> Tensor:
        """Rows of those that all know which this worker trains on; one if there are too few."""
        found = torch.arange(self.workers.rank, n_rows, self.workers.size)
        return found if len(found) else torch.zeros(1, dtype=torch.long)

    def _part(self, rows: RowsDataset) -> RowsDataset:
        part = rows.subset(self._indices(len(rows)))
        if self.workers.rank >= len(rows):  # a row of another worker: it does not count here
            assert part.targets is not None
            part.sample_weight = part.targets.new_zeros(1)
        return part

    def _joined(self, rows: RowsDataset, added: RowsDataset | None) -> RowsDataset:
        if added is None:
            return rows
        assert rows.targets is not None and added.targets is not None
        weights = None
        if rows.sample_weight is not None or added.sample_weight is not None:
            weights = torch.cat([_weights(rows), _weights(added)])
        targets = torch.cat([rows.targets, added.targets])
        return RowsDataset(JoinedRows(rows.inputs, added.inputs), targets, weights)


def _weights(rows: RowsDataset) -> Tensor:
    assert rows.targets is not None
    return rows.targets.new_ones(len(rows)) if rows.sample_weight is None else rows.sample_weight


def _sample(own: Given, everyone: list[Any], labels: bool) -> np.ndarray:
    """Rows of this worker that all get to know: evenly spread, and one of each level and class."""
    share = MOST_BYTES / sum(size for _, size, _ in everyone)
    if not own.n_rows:
        return np.arange(0)
    wanted = min(own.n_rows, max(1, int(share * own.n_rows)))
    spread = np.linspace(0, own.n_rows - 1, wanted).astype(np.int64)
    return np.union1d(spread, own.first_of_each(labels))


def _parameters(estimator: Any) -> dict[str, str]:
    """The parameters by which workers must agree, as text."""
    plain = (str, int, float, bool, tuple, list, type(None))
    found = {}
    for name, value in estimator.get_params(deep=False).items():
        if name not in ("device", "verbose", "n_threads", "random_state", "callbacks"):
            found[name] = repr(value) if isinstance(value, plain) else type(value).__name__
    # It talks to the other workers; of other callbacks each may have its own.
    given = estimator.callbacks if isinstance(estimator.callbacks, list) else []
    parts = [each[1] if isinstance(each, tuple) else each for each in given]
    found["callbacks"] = (
        f"{sum(isinstance(p, TrainingCheckpoint) for p in parts)} TrainingCheckpoint"
    )
    return found


def _check_same_parameters(everyone: list[Any], rank: int) -> None:
    own = everyone[rank][2]
    for other, (_, _, params) in enumerate(everyone):
        for name in own:
            if params.get(name) != own[name]:
                raise ValueError(
                    f"`{name}` is {own[name]} in worker {rank} and {params.get(name)} in worker "
                    f"{other}. All workers fit one model, with the same parameters."
                )


def check_backbone(module: nn.Module) -> None:
    """Raise if a backbone normalises by the rows of a batch: workers see a part of it each."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ValueError(
                f"`backbone` holds {type(part).__name__} ({name!r}), which normalises by the rows "
                "of a batch, and each of several workers sees a part of them only. Use LayerNorm "
                "or GroupNorm."
            )


def check_one_model(workers: Workers, model: Any) -> None:
    """Raise unless all workers have ended with the same predictions, bit by bit."""
    if workers.size == 1:
        return
    digest = hashlib.sha256()
    state = {**model.module.state_dict()}
    if model.offset is not None:
        state |= {f"offset.{name}": value for name, value in model.offset.state_dict().items()}
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    digest.update(np.asarray(model.noise_variance).tobytes())
    found = workers.gather(digest.hexdigest())
    if len(set(found)) > 1:
        raise RuntimeError(
            "Workers have ended with different models. Their processors may round differently: "
            "use machines of one kind, with the same versions and the same `n_threads`."
        )
