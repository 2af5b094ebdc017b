"""SolvedLayer: updates on batches and exact solves of a head with any number of members."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor, nn

from .. import linalg
from ..linalg import Moments
from .member import Kept, solve_moments
from .memory import memory_of
from .protocol import Memory
from .rows import MemberRows, add_rows, full_precision, member_rows
from .together import AloneHead, Together

__all__ = ["SolvedLayer"]


def check_ridge(ridge: float | None) -> None:
    """Raise unless a ridge is zero or positive; None stands for one that is chosen."""
    if ridge is not None and not (isinstance(ridge, Real) and 0 <= ridge < float("inf")):
        raise ValueError(f"`ridge` must be zero or positive and finite, got {ridge!r}.")


def _count(weights: list[Tensor | int]) -> float:
    """Rows that the weights of all batches represent; without weights, a batch's number of rows."""
    if all(isinstance(each, int) for each in weights):
        return float(sum(weights))
    parts = [torch.ones(each) if isinstance(each, int) else each for each in weights]
    device = next(each.device for each in weights if isinstance(each, Tensor))
    return linalg.count_rows(torch.cat([part.to(device) for part in parts]))


class SolvedLayer(nn.Module):
    """A head whose features come from one or several networks, each with its own solve.

    Its members, of type :class:`Member`, hold the weights. Members have the same settings and
    sizes. A subclass says what they are, and how they predict.
    """

    members: Any  # Sequence[Member]; a ModuleList is none for mypy
    n_members: int
    in_features: Any  # int, or None until the first rows are seen
    out_features: Any
    ridge: float
    memory: str | Memory
    fit_intercept: bool
    together: Together = AloneHead()  # with the other workers, while several train one model

    def member_predictions(self, features: Tensor) -> Tensor:
        """Predictions of each member; shape (m, ..., k)."""
        raise NotImplementedError

    def materialize_for(self, features: Tensor, targets: Tensor) -> None:
        """Infer unknown sizes from features and targets with the same leading shape."""
        raise NotImplementedError

    @property
    def has_sizes(self) -> bool:
        """Whether both sizes are known."""
        return self.in_features is not None and self.out_features is not None

    # -- updates on batches ---------------------------------------------------------

    @torch.no_grad()
    def step(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> None:
        """Solve for the weights on this batch, given the memory.

        Parameters
        ----------
        features : Tensor of shape (..., d)
        targets : Tensor of shape (..., k)
        sample_weight : Tensor of shape (...), or (n,) for one weight per sample, optional
            With a last dimension of one more, (..., m): weights of each member. A member whose
            weight is zero does not see the row.
        total : float, optional
            Divisor of the batch's weighted squared error; default the sum of its weights. A loop
            over mini-batches, with weights that average one over all rows, passes the number of
            rows in the batch.
        """
        check_ridge(self.ridge)
        with full_precision(features.device):
            rows = self._rows(features, targets, sample_weight, total)
            self.together.memory(self.memory).update(self.members, rows)

    @property
    def holds_rows(self) -> bool:
        """Whether the rows of an update stay in the moments, see :class:`Memory`."""
        return memory_of(self.memory).holds_rows

    # -- exact solves ---------------------------------------------------------------

    @torch.no_grad()
    def accumulate(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Self:
        """Add rows to the moments without solving; shapes are as in :meth:`step`."""
        with full_precision(features.device):
            rows = self._rows(features, targets, sample_weight)
            held = [member.moments for member in self.members]
            self._hold(add_rows(held, rows, center=self.fit_intercept))
        return self

    @torch.no_grad()
    def accumulate_all(self, batches: Iterable[tuple[Tensor, ...]]) -> Self:
        """Add all rows of the batches to the moments without solving; see :meth:`refit`."""
        blocks: list[Moments] = []
        empty: list[Moments | None] = [None] * self.n_members
        with full_precision(self.members[0].weight.device):
            for features, targets, *rest in batches:
                rows = self._rows(features, targets, rest[0] if rest else None)
                blocks = add_rows(blocks or empty, rows, center=self.fit_intercept)
            blocks = self.together.moments(blocks, self.fit_intercept)
            for member, block in zip(self.members, blocks, strict=True):
                held, center = member.moments, self.fit_intercept
                member.hold(
                    block if held is None else linalg.merge_moments(held, block, center=center)
                )
        return self

    @torch.no_grad()
    def solve(
        self, ridge: float | None = None, shrinkage: Tensor | None = None, *, near: bool = False
    ) -> Self:
        """Ridge fit to all rows in the moments, penalised towards zero.

        Parameters
        ----------
        ridge : float, optional
            Relative to the mean feature power. Default: that of the last solve; if there was none,
            it is chosen as in :meth:`refit`, with weights taken as repetitions.
        shrinkage : Tensor of shape (out_features,), optional
            Factor on the predictions of the fit, kept for later solves; initially one.
        near : bool, default=False
            Whether this is one of many solves, each after a few more rows. They are as exact and
            faster for many features, and keep a matrix of the size of the moments.
        """
        blocks = self._held_moments("solve")
        check_ridge(ridge)
        with full_precision(blocks[0].gram.device):
            ridge = self.final_ridge if ridge is None else ridge
            if ridge is None:
                ridge = self._chosen_ridge(blocks, float(blocks[0].total))
            for member in self.members:
                if shrinkage is not None:
                    member.shrinkage = shrinkage.to(member.weight)
            solve_moments(self.members, ridge, near=near)
        return self

    @torch.no_grad()
    def refit(self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None) -> Self:
        """Exact ridge fit over batches of rows, in one pass and O(d²) memory.

        Parameters
        ----------
        batches : iterable of (features, targets) or (features, targets, sample_weight)
            Features should be computed by the backbone in evaluation mode.
        ridge : float, optional
            Relative to the mean feature power. By default it is chosen from the moments of the rows
            by generalised cross-validation (:func:`linalg.final_ridge`); the layer's own ``ridge``
            is only for updates on batches. The ridge with the smallest error on held-out rows is
            better than either (:meth:`LastLayer.ridge_path`).

        Returns
        -------
        self
            :attr:`final_ridge` is the ridge that was used. The moments are kept, for
            :meth:`LastLayer.variance` and for more rows (:meth:`accumulate`, then :meth:`solve`).

        Raises
        ------
        ValueError
            If rows are not finite, or if there are no rows; the layer is left unchanged.
        """
        check_ridge(ridge)
        blocks: list[Moments] = []
        empty: list[Moments | None] = [None] * self.n_members
        weights: list[Tensor | int] = []  # of each batch, or its rows: all ones would take memory
        with full_precision(self.members[0].weight.device):
            for features, *rest in batches:
                targets, sample_weight = rest if len(rest) > 1 else (rest[0], None)
                rows = self._rows(features, targets, sample_weight)
                blocks = add_rows(blocks or empty, rows, center=self.fit_intercept)
                own, *_ = rows.weights(self.n_members)
                if ridge is None:
                    weights.append(len(rows.targets) if own is None else own)
            if not blocks:
                raise ValueError("`batches` has no rows. A generator is exhausted after one pass.")
            blocks = self.together.moments(blocks, self.fit_intercept)
            if ridge is None:
                ridge = self._chosen_ridge(blocks, self.together.count(_count(weights)))
        self.reset_memory()
        self._hold(blocks)
        return self.solve(ridge)

    @property
    def final_ridge(self) -> float | None:
        """Ridge of the last exact solve, None if there was none since the last update."""
        ridge = self.members[0].moments_ridge
        return None if ridge is None else float(ridge)

    @property
    def holds_moments(self) -> bool:
        """Whether there are moments for another solve."""
        return self.members[0].moments_total is not None

    def reset_memory(self) -> None:
        """Discard the moments of earlier rows and the shrinkage; the weights are kept."""
        for member in self.members:
            member.drop()

    def take_memory(self) -> list[Kept]:
        """Return the moments and the shrinkage, and discard them (see :meth:`recall`)."""
        kept = [(member.moments, member.shrinkage) for member in self.members]
        self.reset_memory()
        return kept

    def recall(self, kept: list[Kept], share: float = 1.0) -> None:
        """Restore the result of :meth:`take_memory`, with weights multiplied by ``share``."""
        for member, (block, shrinkage) in zip(self.members, kept, strict=True):
            member.shrinkage = shrinkage
            if block is not None:
                member.hold(linalg.scale_moments(block, share))

    @contextlib.contextmanager
    def kept_in_failure(self) -> Iterator[None]:
        """Restore weights and moments if the block raises; nothing is copied."""
        before = [dict(member._buffers) for member in self.members]
        try:
            yield
        except BaseException:
            for member, buffers in zip(self.members, before, strict=True):
                member._buffers.update(buffers)
            raise

    # -- private --------------------------------------------------------------------

    def _rows(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        total: float | None = None,
    ) -> MemberRows:
        """The batch as rows of this layer, whose sizes are known then."""
        if not self.has_sizes:
            self.materialize_for(features, targets)
        return member_rows(
            features,
            targets,
            sample_weight,
            total,
            n_members=self.n_members,
            in_features=self.in_features,
            out_features=self.out_features,
            dtype=self.members[0].weight.dtype,
        )

    def _hold(self, blocks: list[Moments]) -> None:
        for member, block in zip(self.members, blocks, strict=True):
            member.hold(block)

    def _held_moments(self, method: str) -> list[Moments]:
        if not self.holds_moments:
            raise RuntimeError(
                f"`{method}` needs the moments of the training rows, but there are none: "
                'call `refit(batches)` first, or train with memory="statistics".'
            )
        return [member.moments for member in self.members]

    def _chosen_ridge(self, blocks: list[Moments], n_rows: float) -> float:
        """A common ridge of all members, given the moments of the same rows for each."""
        return linalg.final_ridge(
            blocks,
            n_rows,
            trained=[(member.weight, member.bias) for member in self.members],
            fit_intercept=self.fit_intercept,
            eps=self.members[0].eps,
        )
