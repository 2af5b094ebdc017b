"""What a head asks of its workers: sums over the rows that each of them holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import linalg
from ..linalg import Moments, ProximalStep
from .member import Member, solve_moments
from .memory import LEAST_SHARE, NEWEST_SHARE, Proximal, Statistics, memory_of
from .protocol import Memory
from .rows import MemberRows, check_solved, each, together

__all__ = ["AloneHead", "Together", "TogetherHead", "counted"]


class Together(Protocol):
    """How a head sees the rows of all workers."""

    def memory(self, memory: str | Memory) -> Memory:
        """The memory whose updates are those of the joint batch."""
        ...

    def moments(self, blocks: list[Moments], center: bool) -> list[Moments]:
        """Moments of the rows of all workers, from those of this one."""
        ...

    def count(self, n_rows: float) -> float:
        """Number of rows of all workers."""
        ...


class AloneHead:
    """One worker holds all rows."""

    def memory(self, memory: str | Memory) -> Memory:
        return memory_of(memory)

    def moments(self, blocks: list[Moments], center: bool) -> list[Moments]:
        return blocks

    def count(self, n_rows: float) -> float:
        return n_rows


class TogetherHead:
    """Several workers hold some rows each.

    Parameters
    ----------
    add : callable
        Sums a tensor over the workers; all of them get the same bits.
    """

    def __init__(self, add: Callable[[Tensor], Tensor]) -> None:
        self.add = add

    def __deepcopy__(self, memo: Any) -> TogetherHead:
        return self  # a copy of a head has the same workers

    def memory(self, memory: str | Memory) -> Memory:
        found = memory_of(memory)
        for kind, joint in ((Proximal, JointProximal), (Statistics, JointStatistics)):
            if type(found) is kind:
                return joint(self.add)
        raise ValueError(
            f'`memory` must be "proximal" or "statistics" with several workers, got {memory!r}.'
        )

    def moments(self, blocks: list[Moments], center: bool) -> list[Moments]:
        return each(linalg.summed_moments(together(blocks), self.add, center=center))

    def count(self, n_rows: float) -> float:
        return float(self.add(torch.tensor([n_rows], dtype=torch.float64)))


class _Joint:
    """A memory whose updates are those of the batches of all workers together."""

    def __init__(self, add: Callable[[Tensor], Tensor]) -> None:
        self.add = add

    def _moments(self, members: Sequence[Member], rows: MemberRows) -> tuple[Moments, float]:
        """Moments (m, ...) of the joint batch, and its number of rows."""
        found = 0.0

        def add(sums: Tensor) -> Tensor:  # the number of rows travels with them
            nonlocal found
            n_rows = float(counted(rows.targets, rows.sample_weight, -1))
            sums = self.add(torch.cat([sums, sums.new_tensor([n_rows])]))
            found = float(sums[-1])
            return sums[:-1]

        block = linalg.joint_moments(
            rows.features, rows.targets, rows.sample_weight, center=members[0].fit_intercept
        )
        return linalg.summed_moments(block, add, center=members[0].fit_intercept), found


class JointProximal(_Joint):
    """:class:`Proximal` for the batches of all workers together."""

    holds_rows, state = Proximal.holds_rows, Proximal.state

    def update(self, members: Sequence[Member], rows: MemberRows) -> None:
        step = self._by_gradients(members[0], rows) if len(members) == 1 else None
        step = self._by_moments(members, rows) if step is None else step
        check_solved(rows.features, rows.targets, rows.sample_weight, step.weight, step.bias)
        for member, weight, bias, power in zip(members, *step, strict=True):
            if member.moments_total is not None:
                member.drop()
            usual = member.feature_power
            member.assign(weight, bias)
            member.remember(
                feature_power=power if usual is None else usual.lerp(power.to(usual), NEWEST_SHARE)
            )

    def _by_moments(self, members: Sequence[Member], rows: MemberRows) -> ProximalStep:
        first, *_ = members
        block, total = self._moments(members, rows)
        powers = [m.feature_power for m in members if m.feature_power is not None]
        return linalg.proximal_step_of_moments(
            block,
            torch.stack([member.weight for member in members]).to(rows.features.dtype),
            ridge=first.ridge,
            decay=first.decay,
            total=total,
            solver=first.solver,
            least_power=LEAST_SHARE * torch.stack(powers) if powers else None,
        )

    def _by_gradients(self, member: Member, rows: MemberRows) -> ProximalStep | None:
        """The step without a Gram matrix where one worker would not compute it; None elsewhere."""
        n_features, n_targets = rows.features.shape[-1], rows.targets.shape[1]
        solver = member.solver
        if solver == "auto":
            solver = linalg.choose_solver(n_features, n_features, n_targets, member.ridge)
        if solver != "cg" or rows.features.device.type != "cpu":
            return None
        power = member.feature_power
        step = linalg.proximal_step_of_parts(
            rows.features[0],
            rows.targets,
            member.weight.to(rows.features.dtype),
            counted(rows.targets, rows.sample_weight, -1),
            self.add,
            ridge=member.ridge,
            decay=member.decay,
            sample_weight=rows.weights(1)[0],
            fit_intercept=member.fit_intercept,
            least_power=None if power is None else LEAST_SHARE * power,
            solver=member.solver,
        )
        return None if step is None else ProximalStep(*(part[None] for part in step))


class JointStatistics(_Joint):
    """:class:`Statistics` for the batches of all workers together."""

    holds_rows, state = Statistics.holds_rows, Statistics.state

    def update(self, members: Sequence[Member], rows: MemberRows) -> None:
        block, _ = self._moments(members, rows)
        check_solved(
            rows.features,
            rows.targets,
            rows.sample_weight,
            block.gram.diagonal(dim1=-2, dim2=-1),
            block.target_square,
            block.cross,
        )
        for member, new in zip(members, each(block), strict=True):
            held = member.moments
            if held is not None:
                held = linalg.scale_moments(held, member.decay)
                new = linalg.merge_moments(held, new, center=member.fit_intercept)
            member.hold(new)
        solve_moments(members, members[0].ridge)


def counted(rows: Tensor, sample_weight: Tensor | None, of_rows: int = 0) -> int:
    """Number of rows of positive weight for any member.

    A worker that has no row for a batch takes part in it with a row of weight zero.

    Parameters
    ----------
    rows : Tensor of shape (n, ...)
    sample_weight : Tensor, or None
    of_rows : int, default=0
        Dimension of the weights that numbers the rows.
    """
    if sample_weight is None:
        return len(rows)
    seen = (sample_weight != 0).movedim(of_rows, 0)
    return int(seen.reshape(len(seen), -1).any(1).sum())
