"""Memories of a last layer: what it keeps of earlier batches. ``MEMORIES`` is their table.

A new memory is a class with the attributes and the method of :class:`Memory`, and one line in the
table. It can also be passed to a last layer as an object, without a name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import linalg
from ..linalg import ProximalStep
from .member import Member, solve_moments
from .protocol import Memory
from .rows import MemberRows, add_rows, check_solved

__all__ = ["MEMORIES", "Proximal", "Statistics", "memory_of"]

# The penalty is relative to the feature power, or to this share of its running mean if that is
# larger: in a batch whose features hardly vary, a penalty close to zero would make the weights
# erratic. Each batch enters the running mean with weight 0.01.
LEAST_SHARE, NEWEST_SHARE = 1e-3, 0.01


class Proximal:
    """Keep the previous weights: the penalty of an update is on the distance to them.

    With ``decay`` 1 this is the update of arXiv 2510.04606; 0 fits each batch from scratch.
    """

    holds_rows = False
    state = ("feature_power",)

    def update(self, members: Sequence[Member], rows: MemberRows) -> None:
        first, *_ = members
        systems: list[tuple[Tensor, Tensor | None, Tensor, Tensor | None]]
        if len(members) == 1 or iterates(first, rows):
            blocks = zip(members, rows.features, rows.weights(len(members)), strict=True)
            systems = [(block, w, m.weight, m.feature_power) for m, block, w in blocks]
        else:  # members of one size are solved at once
            powers = [m.feature_power for m in members if m.feature_power is not None]
            weight = torch.stack([member.weight for member in members])
            power = torch.stack(powers) if powers else None
            systems = [(rows.features, rows.sample_weight, weight, power)]
        found = []
        for features, sample_weight, weight, power in systems:
            step = linalg.proximal_step(
                features,
                rows.targets,
                weight.to(features.dtype),
                ridge=first.ridge,
                decay=first.decay,
                sample_weight=sample_weight,
                total=rows.total,
                fit_intercept=first.fit_intercept,
                solver=first.solver,
                least_power=None if power is None else LEAST_SHARE * power.to(features.dtype),
            )
            check_solved(features, rows.targets, sample_weight, step.weight, step.bias)
            if power is not None:
                step = step._replace(power=power.lerp(step.power.to(power), NEWEST_SHARE))
            found.append(step)
        if len(found) < len(members):
            found = [ProximalStep(*each) for each in zip(*found[0], strict=True)]
        for member, step in zip(members, found, strict=True):
            if member.moments_total is not None:
                member.drop()  # moments of an earlier refit do not match the new weights
            member.assign(step.weight, step.bias)
            member.remember(feature_power=step.power)


class Statistics:
    """Keep the moments of all rows seen, earlier rows with weights decayed at each update.

    With ``decay`` 1 and a frozen backbone, the weights are the exact ridge fit to all rows.
    Otherwise it is the forgetting factor of recursive least squares.
    """

    holds_rows = True
    state = ()

    def update(self, members: Sequence[Member], rows: MemberRows) -> None:
        first, *_ = members
        held = [member.moments for member in members]
        blocks = add_rows(held, rows, center=first.fit_intercept, decay=first.decay)
        for member, block in zip(members, blocks, strict=True):
            member.hold(block)
        solve_moments(members, first.ridge)


MEMORIES: dict[str, Memory] = {"proximal": Proximal(), "statistics": Statistics()}


def memory_of(memory: str | Memory) -> Memory:
    """The memory of this name; an object is returned unchanged."""
    if isinstance(memory, str) and memory not in MEMORIES:
        raise ValueError(f"`memory` must be one of {list(MEMORIES)}, got {memory!r}.")
    return MEMORIES[memory] if isinstance(memory, str) else memory


def iterates(member: Member, rows: MemberRows) -> bool:
    """Whether members are so wide that conjugate gradients on each one are cheaper."""
    n_rows, n_features = rows.features.shape[1:]
    sizes = n_rows, n_features, rows.targets.shape[1], member.ridge
    return member.solver == "auto" and linalg.choose_solver(*sizes) == "cg"
