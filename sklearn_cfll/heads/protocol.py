"""Head: the interface of a last layer that training and the final solve use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Head"]


@runtime_checkable
class Head(Protocol):
    """A linear layer on features (..., d) whose weights are computed in closed form.

    :class:`ClosedFormLastLayer` and :class:`EnsembleLastLayer` are heads. The methods are
    documented in :class:`ClosedFormLastLayer`, which also defines the shapes.

    Attributes
    ----------
    n_members : int
        Number of networks that give the features. Each has its own block of features and its own
        solve.
    weight : Tensor of shape (k, d)
    bias : Tensor of shape (k,), or None without intercept
    in_features, out_features : int
        Numbers d of features and k of targets.
    """

    n_members: int
    in_features: Any
    out_features: Any

    @property
    def weight(self) -> Tensor:
        """Weights of the prediction on all features; shape (k, d)."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """Intercept; shape (k,)."""
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
    ) -> Any:
        """Add rows to the moments, without a solve."""
        ...

    def solve(self, ridge: float | None = None, shrinkage: Tensor | None = None) -> Any:
        """Exact ridge fit to all rows in the moments."""
        ...

    def refit(self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None) -> Any:
        """Exact ridge fit over batches of rows, in one pass."""
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

    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """Residuals of rows in the moments, each under the fit to all other rows."""
        ...
