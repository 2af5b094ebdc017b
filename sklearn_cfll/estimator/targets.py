"""Conversion of the user's y to rows of k columns in the backbone's layout, and back."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..linalg import is_constant
from .arrays import LARGEST_32, SMALLEST_32

__all__ = ["TargetLayout", "TargetScale"]


class TargetLayout(NamedTuple):
    """How y's dimensions map to (n, positions..., k).

    Attributes
    ----------
    own_shape : tuple of int
        Dimensions of y that are not positions, () for one target. (n,) and (n, 1) differ here, so
        that predictions have the shape of y.
    channels_first : bool
        y is (n, own_shape..., positions...) instead of (n, positions..., own_shape...).
    """

    own_shape: tuple[int, ...]
    channels_first: bool

    @property
    def n_targets(self) -> int:
        return math.prod(self.own_shape)

    @classmethod
    def infer(
        cls, y_shape: tuple[int, ...], feature_shape: tuple[int, ...], channels_first: bool
    ) -> TargetLayout:
        """Match y's shape to that of the features (n, positions..., d).

        If both layouts fit, ``channels_first`` decides.
        """
        positions, trailing = feature_shape[:-1], y_shape[1:]
        m = len(positions)
        own = len(trailing) - m
        at_end, at_start = own >= 0 and trailing[own:] == positions, trailing[:m] == positions
        if at_end and (channels_first or not at_start):
            return cls(trailing[:own], True)
        if at_start:
            return cls(trailing[m:], False)
        grid = ", ".join(map(str, positions))
        raise ValueError(
            f"The backbone gives features at positions ({grid}), so y must have shape "
            f"(n, {grid}), (n, {grid}, n_targets) or (n, n_targets, {grid}), got {y_shape}. For "
            "one target per sample, the backbone must pool over positions."
        )

    def check(self, y_shape: tuple[int, ...], n_positions: int) -> None:
        """Raise if y has another layout than at fit; the number of positions may differ."""
        own = self.own_shape
        found = y_shape[1 : 1 + len(own)] if self.channels_first else y_shape[1 + n_positions :]
        if len(y_shape) != 1 + len(own) + n_positions or found != own:
            positions = tuple(f"positions_{i + 1}" for i in range(n_positions))
            parts = (*own, *positions) if self.channels_first else (*positions, *own)
            expected = ", ".join(map(str, ("n", *parts))) + ("" if parts else ",")
            raise ValueError(
                f"y has shape {y_shape}, but the estimator was fitted on targets of shape "
                f"({expected})."
            )

    def to_rows(self, y: np.ndarray) -> np.ndarray:
        """y as (n, positions..., k)."""
        m = len(self.own_shape)
        if self.channels_first:
            flat = y.reshape(len(y), self.n_targets, *y.shape[1 + m :])
            return np.moveaxis(flat, 1, -1)
        return y.reshape(*y.shape[: y.ndim - m], self.n_targets)

    def from_rows(self, rows: np.ndarray) -> np.ndarray:
        """Predictions (n, positions..., k) in y's own layout."""
        if self.channels_first:
            rows = np.moveaxis(rows, -1, 1)
            return rows.reshape(len(rows), *self.own_shape, *rows.shape[2:])
        return rows.reshape(*rows.shape[:-1], *self.own_shape)


class TargetScale(NamedTuple):
    """Mean and standard deviation of each target over the training rows; shape (k,)."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def identity(cls, n_targets: int) -> TargetScale:
        return cls(np.zeros(n_targets), np.ones(n_targets))

    @classmethod
    def fit(cls, rows: np.ndarray, sample_weight: np.ndarray | None) -> TargetScale:
        """Weighted statistics; a constant target keeps scale one."""
        mean, std = weighted_mean_std(rows, sample_weight)
        constant = is_constant(std, mean, float(np.finfo(np.float64).eps))
        return cls(mean, np.where(constant, 1.0, std))

    def transform(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) / self.scale

    def inverse(self, rows: np.ndarray) -> np.ndarray:
        """Convert to y's units, in the precision of ``rows`` if it can hold them, else float64."""
        sizes = [abs(each) for each in (*self.mean.tolist(), *self.scale.tolist()) if each]
        if max(sizes) > LARGEST_32 or min(sizes) < SMALLEST_32:
            rows = rows.astype(np.float64)
        return rows * self.scale.astype(rows.dtype) + self.mean.astype(rows.dtype)


def weighted_mean_std(
    rows: np.ndarray, sample_weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over all dimensions but the last, in float64."""
    positions = tuple(range(rows.ndim - 1))
    if sample_weight is None:
        mean = rows.mean(axis=positions, dtype=np.float64)
        variance = np.square(rows - mean).mean(axis=positions, dtype=np.float64)
    else:
        weights = sample_weight.reshape(-1, *[1] * (rows.ndim - 1))
        weights = np.broadcast_to(weights, (*rows.shape[:-1], 1))
        total = weights.sum()
        mean = (rows * weights).sum(axis=positions) / total
        variance = (np.square(rows - mean) * weights).sum(axis=positions) / total
    return mean, np.sqrt(variance)
