"""Head and Memory: the interfaces of a last layer and of what it keeps of earlier batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, Self, runtime_checkable

from torch import Tensor

from .member import Kept, Member
from .rows import MemberRows

__all__ = ["Head", "Memory"]


@runtime_checkable
class Memory(Protocol):
    """What a last layer keeps of earlier batches, and how a batch updates its weights.

    An object of this kind has no state of its own: it serves any number of layers, and what it
    keeps are buffers of these, which are saved and copied with them. See ``heads/memory.py``.

    Attributes
    ----------
    holds_rows : bool
        Whether the rows of a batch stay in the layer's moments after an update. A second update on
        the same rows would then count them twice.
    state : tuple of str
        Names of the buffers that the memory keeps in each member. They are None at first and set by
        :meth:`Member.remember`.
    """

    @property
    def holds_rows(self) -> bool: ...

    @property
    def state(self) -> tuple[str, ...]: ...

    def update(self, members: Sequence[Member], rows: MemberRows) -> None:
        """Solve for the weights of all members on a batch, and keep what later batches need.

        Parameters
        ----------
        members : sequence of Member
            The layers of the head, with the same settings and sizes. :meth:`Member.assign` sets
            their weights. If an error is raised, none of them is changed.
        rows : MemberRows
            The batch, with the features of each member.
        """
        ...


@runtime_checkable
class Head(Protocol):
    """A linear layer on features (..., d) whose weights are computed in closed form.

    :class:`ClosedFormLastLayer` and :class:`EnsembleLastLayer` are heads. The methods are
    documented in :class:`LastLayer`, which implements them for any number of members.

    Attributes
    ----------
    n_members : int
        Number of networks that give the features. Each has its own block of features and its own
        solve.
    members : sequence of Member
        What holds the weights of each network.
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,), or None without intercept
    in_features, out_features : int
        Numbers d of features and k of targets; None before the first rows if they were not given.
    ridge, decay : float
    memory : str or Memory
    solver : str
        Settings of updates on batches, which may change between two of them.
    """

    n_members: int
    ridge: float
    decay: float
    memory: str | Memory
    solver: str

    @property
    def members(self) -> Sequence[Member]: ...

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    @property
    def holds_rows(self) -> bool:
        """Whether the rows of an update stay in the moments, see :class:`Memory`."""
        ...

    @property
    def holds_moments(self) -> bool:
        """Whether there are moments for another solve."""
        ...

    @property
    def moments_total(self) -> Tensor | None:
        """Total weight of the rows in the moments; None if there are no moments."""
        ...

    @property
    def final_ridge(self) -> float | None:
        """Ridge of the last exact solve, None if there was none since the last update."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Predict; shape (..., k)."""
        ...

    def member_predictions(self, features: Tensor) -> Tensor:
        """Predictions of each member; shape (m, ..., k)."""
        ...

    def step(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> None:
        """Update the weights on a batch."""
        ...

    def accumulate(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> Self:
        """Add rows to the moments, without a solve."""
        ...

    def accumulate_all(self, batches: Iterable[tuple[Tensor, ...]]) -> Self:
        """Add the rows of all batches to the moments, without a solve."""
        ...

    def solve(
        self, ridge: float | None = None, shrinkage: Tensor | None = None, *, near: bool = False
    ) -> Self:
        """Exact ridge fit to all rows in the moments."""
        ...

    def refit(self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None) -> Self:
        """Exact ridge fit over batches of rows, in one pass."""
        ...

    def kept_in_failure(self) -> AbstractContextManager[None]:
        """Restore weights and moments if the block raises."""
        ...

    def reset_memory(self) -> None:
        """Discard the moments of earlier rows."""
        ...

    def take_memory(self) -> list[Kept]:
        """Return the moments, and discard them."""
        ...

    def recall(self, kept: list[Kept], share: float = 1.0) -> None:
        """Restore the result of :meth:`take_memory`, with weights multiplied by ``share``."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All buffers, as those of a module."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object:
        """Set the buffers, as those of a module."""
        ...

    def member_paths(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (m, r, k, d) and intercepts (m, r, k) of each member for r ridges."""
        ...

    def ridge_path(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, k, d) and intercepts (r, k) for each of r ridges."""
        ...

    def leverage(self, features: Tensor, ridge: float | None = None) -> Tensor:
        """Variance of the predicted mean at new rows for unit noise variance; shape (...)."""
        ...

    def variance(
        self,
        features: Tensor,
        noise_variance: Tensor | float = 1.0,
        left_out: Tensor | None = None,
    ) -> Tensor:
        """Predictive variance of a new observation; shape (..., k)."""
        ...

    def covariance_factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the covariance of the predicted means at several rows."""
        ...

    def leverage_bases(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean features, basis and constant in which each member's leverage is a squared length."""
        ...

    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """Residuals of rows in the moments, each under the fit to all other rows."""
        ...
