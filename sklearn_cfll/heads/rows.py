"""Rows of a solve: their shapes and precision, their moments, and errors that name bad rows."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg
from ..linalg import Moments

__all__ = ["MemberRows", "NotFiniteError", "add_rows", "as_dtype", "check_solved", "member_rows"]
__all__ += ["each", "full_precision", "together"]

FEW = 32  # rows that are added for all members at once
HALF = (torch.float16, torch.bfloat16)


class NotFiniteError(ValueError):
    """Raised if no weights can be computed from the rows; ``argument`` names the array at fault."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


class MemberRows(NamedTuple):
    """A batch as rows, in float32 or better.

    Attributes
    ----------
    features : Tensor of shape (m, n, d)
        One block of features for each member of the head.
    targets : Tensor of shape (n, k)
    sample_weight : Tensor of shape (n,), or (m, n) for weights of each member, or None
    total : float or None
        Divisor of the weighted squared error; None is the sum of the weights.
    """

    features: Tensor
    targets: Tensor
    sample_weight: Tensor | None
    total: float | None

    def weights(self, n_members: int) -> list[Tensor | None]:
        """The weights of each member, of shape (n,)."""
        if self.sample_weight is None or self.sample_weight.ndim == 1:
            return [self.sample_weight] * n_members
        return list(self.sample_weight)


def member_rows(
    features: Tensor,
    targets: Tensor,
    sample_weight: Tensor | None,
    total: float | None,
    *,
    n_members: int,
    in_features: int | None,
    out_features: int | None,
    dtype: torch.dtype,
) -> MemberRows:
    """Flatten leading dimensions; repeat a weight per sample over its positions.

    Sizes that are not known yet are None; ``dtype`` is that of the layer.
    """
    if in_features is not None and features.shape[-1] != in_features:
        raise ValueError(
            f"`features` must have {in_features} columns (in_features), "
            f"got shape {tuple(features.shape)}."
        )
    one_target = targets.ndim < features.ndim
    n_targets = out_features or (1 if one_target else targets.shape[-1])
    leading = features.shape[:-1]
    if targets.shape != (*leading, n_targets):
        raise ValueError(
            f"`targets` must have shape {(*leading, n_targets)} to match features of shape "
            f"{tuple(features.shape)}, got {tuple(targets.shape)}. A single target "
            "needs its own last dimension: targets.unsqueeze(-1)."
        )
    if sample_weight is not None and sample_weight.ndim == len(leading) + 1:
        if sample_weight.shape[-1] != n_members:
            raise ValueError(
                f"`sample_weight` must have a last dimension of {n_members}, one weight for each "
                f"member, got shape {tuple(sample_weight.shape)}."
            )
        sample_weight = sample_weight.expand(*leading, n_members).reshape(-1, n_members).T
    elif sample_weight is not None:
        if sample_weight.shape == leading[:1]:
            sample_weight = sample_weight.reshape(-1, *[1] * (len(leading) - 1))
        elif sample_weight.shape != leading:
            raise ValueError(
                f"`sample_weight` must have shape {tuple(leading[:1])} or "
                f"{tuple(leading)}, got {tuple(sample_weight.shape)}."
            )
        sample_weight = sample_weight.expand(leading).reshape(-1)
    # Never in half precision, whose three digits are too few for sums of products.
    dtype = torch.promote_types(torch.promote_types(features.dtype, dtype), torch.float32)
    width = features.shape[-1] // n_members
    return MemberRows(
        features.reshape(-1, n_members, width).transpose(0, 1).to(dtype),
        targets.reshape(-1, n_targets).to(dtype),
        None if sample_weight is None else sample_weight.to(dtype),
        total,
    )


def as_dtype(features: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast features to the dtype of the weights; autocast itself casts half precision."""
    half = features.dtype in HALF
    if half and torch.is_autocast_enabled(features.device.type):
        return features
    return features.to(dtype)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Without autocast: in half precision a solve would lose most of its digits."""
    if not torch.is_autocast_enabled(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def add_rows(
    held: Sequence[Moments | None], rows: MemberRows, *, center: bool, decay: float = 1.0
) -> list[Moments]:
    """Moments of each member's rows, and of the earlier ones times ``decay``."""
    weights = rows.weights(len(rows.features))
    known = [linalg.scale_moments(block, decay) for block in held if block is not None]
    if known and len(rows.targets) <= FEW and (weights[0] is None or weights[0] is weights[-1]):
        alone = len(known) == 1
        features = rows.features[0] if alone else rows.features
        wide = _widened(features, rows.targets, weights[0])
        block = linalg.add_moments(known[0] if alone else together(known), *wide, center=center)
        _check_added(features, rows.targets, weights[0], block)
        return [block] if alone else each(block)
    found = []
    # Many rows are added for one member after the other: the copies of all of them at once would
    # not stay in the processor's cache.
    for i, (features, weight) in enumerate(zip(rows.features, weights, strict=True)):
        own = _with_weight(features, rows.targets, weight)
        block = linalg.moments(*_widened(*own), center=center)
        _check_added(*own, block)
        if known:
            block = linalg.merge_moments(known[i], block, center=center)
        found.append(block)
    return found


def _with_weight(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows of one member, without those that weigh nothing if they are most: it is faster."""
    if sample_weight is None or sample_weight.device.type != "cpu":
        return features, targets, sample_weight
    own = sample_weight.nonzero().flatten()
    if 2 * len(own) >= len(sample_weight):
        return features, targets, sample_weight
    return features[own], targets[own], sample_weight[own]


def _widened(*parts: Tensor | None) -> Any:
    """In float64 if the device supports it.

    Sums of products over many rows lose half the digits of float32.
    """
    return (part if part is None or part.device.type == "mps" else part.double() for part in parts)


def _check_added(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None, block: Moments
) -> None:
    squares = block.gram.diagonal(dim1=-2, dim2=-1)
    check_solved(features, targets, sample_weight, squares, block.target_square, block.cross)


def together(blocks: Sequence[Moments]) -> Moments:
    """Moments of several members, stacked."""
    if len(blocks) == 1:
        return Moments(*(part.unsqueeze(0) for part in blocks[0]))
    return Moments(*map(torch.stack, zip(*blocks, strict=True)))


def each(block: Moments) -> list[Moments]:
    """Moments of each member from those of all."""
    return [Moments(*parts) for parts in zip(*block, strict=True)]


def check_solved(
    features: Tensor, targets: Tensor, sample_weight: Tensor | None, *solved: Tensor
) -> None:
    """Raise if the solution is not finite, and name the rows that are the cause.

    Rows that are not finite make the solution not finite, and the solution is cheaper to check than
    all rows.
    """
    if features.device.type != "cpu":
        return
    if all(math.isfinite(float(part.sum())) for part in solved):
        return
    given = {"features": features, "targets": targets, "sample_weight": sample_weight}
    for name, value in given.items():
        if value is None:
            continue
        if value.ndim == 3:  # features of several layers, (m, n, d)
            value = value.movedim(1, 0)
        if name == "sample_weight":
            value = value.movedim(-1, 0)
        bad = ~torch.isfinite(value.flatten(1) if value.ndim > 1 else value[:, None]).all(1)
        if bool(bad.any()):
            rows = bad.nonzero().flatten()
            raise NotFiniteError(
                name,
                f"`{name}` must be finite, but {len(rows)} of {len(bad)} rows contain NaN or "
                f"infinity, the first at index {int(rows[0])}. Remove or impute such rows.",
            )
        if name == "sample_weight" and bool((value < 0).any()):
            raise ValueError(f"`sample_weight` must not be negative, got {float(value.min()):g}.")
    if not all(bool(torch.isfinite(part).all()) for part in solved):
        largest = float(features.abs().max()), float(targets.abs().max())
        raise NotFiniteError(
            "features" if largest[0] >= largest[1] else "targets",
            f"The values are too large to be squared in {features.dtype}: features go up to "
            f"{largest[0]:g}, targets up to {largest[1]:g}. Scale them.",
        )
