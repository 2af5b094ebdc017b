"""Member: the weights of one network's last layer, and the moments of rows for exact fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import linalg
from ..linalg import Moments
from .rows import together

__all__ = ["FIT_BUFFERS", "SETTINGS", "Kept", "Member", "as_linear", "solve_moments"]

SETTINGS = ("ridge", "decay", "memory", "solver")  # may be changed between two updates
MOMENT_BUFFERS = tuple(f"moments_{name}" for name in Moments._fields)
FIT_BUFFERS = (*MOMENT_BUFFERS, "moments_ridge", "shrinkage")
WIDE = 192  # features from which a few products are cheaper than a factorisation
Kept = tuple[Moments | None, Tensor | None]  # moments and shrinkage


class Member(nn.Module):
    """What one member of a head holds: a memory and the methods of a head read and set it.

    Attributes
    ----------
    ridge, decay : float
    solver : str
    fit_intercept : bool
        Settings, see :class:`ClosedFormLastLayer`.
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,), or None without intercept
    moments_ridge : Tensor of shape (), or None
        Ridge of the last exact solve.
    shrinkage : Tensor of shape (k,), or None
        Factor on the predictions of exact solves.
    feature_power : Tensor of shape (), or None
        State of the proximal memory.
    inverse : Tensor of shape (d, d), or None
        What the next solve after a few more rows starts from. It is no part of the state, because
        the solution does not depend on it.
    """

    ridge: float
    decay: float
    solver: str
    fit_intercept: bool
    weight: Tensor
    bias: Tensor | None
    moments_total: Tensor | None
    moments_ridge: Tensor | None
    shrinkage: Tensor | None
    feature_power: Tensor | None
    inverse: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "inverse"}

    def assign(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weights, in the dtype of the layer."""
        # Not in place: an autograd graph may still hold the old tensors.
        dtype, buffers = self.weight.dtype, self._buffers
        # nn.Module.__setattr__ would cost as much as the solve for the intercept.
        buffers["weight"] = weight.to(dtype)
        if self.fit_intercept:
            buffers["bias"] = bias.to(dtype)

    def remember(self, **state: Tensor | None) -> None:
        """Set buffers, such as the state of a memory."""
        self._buffers.update(state)

    @property
    def eps(self) -> float:
        """Machine epsilon of the features, which are computed in the weights' dtype."""
        return torch.finfo(torch.promote_types(self.weight.dtype, torch.float32)).eps

    @property
    def moments(self) -> Moments | None:
        """Moments of the rows seen, or None (see :class:`linalg.Moments`)."""
        buffers = self._buffers  # faster than nn.Module.__getattr__
        if buffers["moments_total"] is None:
            return None
        return Moments(*map(buffers.__getitem__, MOMENT_BUFFERS))  # type: ignore[arg-type]

    def hold(self, block: Moments) -> None:
        """Replace the moments."""
        self.remember(**dict(zip(MOMENT_BUFFERS, block, strict=True)))

    def drop(self) -> None:
        """Discard the moments and the shrinkage; the weights are kept."""
        self.inverse = None
        self.remember(**dict.fromkeys(FIT_BUFFERS))


def solve_moments(members: Sequence[Member], ridge: float, *, near: bool = False) -> None:
    """Exact ridge fit of each member to the rows in its moments, times the shrinkage.

    Members have the same settings and sizes, so that they are solved at once. See
    :meth:`SolvedLayer.solve` for ``near``.
    """
    blocks = [block for member in members if (block := member.moments) is not None]
    like = blocks[0].gram
    if near and ridge and like.device.type == "cpu" and like.shape[-1] >= WIDE:
        solved = [_solve_near(*each, ridge) for each in zip(members, blocks, strict=True)]
    else:
        weights, biases = linalg.solve_moments(together(blocks), ridge, eps=members[0].eps)
        solved = list(zip(weights, biases, strict=True))
    for member, (weight, bias) in zip(members, solved, strict=True):
        member.remember(moments_ridge=torch.tensor(ridge, dtype=like.dtype))
        if member.shrinkage is not None:
            factor = member.shrinkage.to(weight)
            weight, bias = factor[:, None] * weight, factor * bias
        member.assign(weight, bias)


def _solve_near(member: Member, block: Moments, ridge: float) -> tuple[Tensor, Tensor]:
    """Fit of one member by what is left of its last solve."""
    weight, bias, member.inverse = linalg.solve_near_moments(
        block, ridge, member.weight, member.inverse, eps=member.eps
    )
    return weight, bias


def as_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A :class:`torch.nn.Linear` with copies of these weights."""
    linear: nn.Linear = nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear
