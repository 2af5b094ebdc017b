"""EnsembleLastLayer: a closed-form last layer for each of several networks."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import linalg
from .closed_form import ClosedFormLastLayer, Memory, _in_full_precision, as_linear

__all__ = ["EnsembleLastLayer"]


def _shared(name: str) -> Any:
    """A setting that all members have in common."""

    def write(self: Any, value: Any) -> None:
        for member in self.members:
            setattr(member, name, value)

    return property(lambda self: getattr(self.members[0], name), write)


class EnsembleLastLayer(nn.Module):
    """Closed-form last layers of several networks; the prediction is their mean.

    The features of the networks are concatenated. Each member is a :class:`ClosedFormLastLayer` on
    its own block of features and is solved separately; together they are one linear layer on all
    features. Training uses the error of each member (:meth:`member_predictions`): trained on the
    error of the mean, the members would be parts of one network.

    Parameters
    ----------
    in_features : int, optional
        Number of all features; the first ``in_features / n_members`` belong to the first member.
        Sizes that are not given are inferred from the first rows, see :class:`ClosedFormLastLayer`.
    out_features : int, optional
    n_members : int, default=4
    **options
        Options of each member, see :class:`ClosedFormLastLayer`.

    Attributes
    ----------
    members : torch.nn.ModuleList of ClosedFormLastLayer
    weight : Tensor of shape (out_features, in_features)
    bias : Tensor of shape (out_features,), or None

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import EnsembleLastLayer
    >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> targets = features @ torch.ones(8, 1)
    >>> head = EnsembleLastLayer(8, 1, n_members=2, ridge=1e-6)
    >>> head.step(features, targets)
    >>> head(features).shape, head.member_predictions(features).shape
    (torch.Size([64, 1]), torch.Size([2, 64, 1]))
    """

    members: Any  # a ModuleList, whose items are not typed
    ridge, decay, memory, solver = map(_shared, ("ridge", "decay", "memory", "solver"))

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        n_members: int = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_features: Any = in_features  # int, or None until the first rows are seen
        self.out_features: Any = out_features
        self.n_members = n_members
        width = self._width(in_features or 0) or None
        self.members = nn.ModuleList(
            ClosedFormLastLayer(width, out_features, **options) for _ in range(n_members)
        )
        self.fit_intercept = self.members[0].fit_intercept

    # -- sizes ----------------------------------------------------------------------

    @property
    def has_sizes(self) -> bool:
        """Whether both sizes are known."""
        return self.in_features is not None and self.out_features is not None

    def materialize_for(self, features: Tensor, targets: Tensor) -> None:
        """See :meth:`ClosedFormLastLayer.materialize_for`."""
        if not self.has_sizes:
            self._width(features.shape[-1])
            for member, block in self._parts(features):
                member.materialize_for(block, targets)
            self._take_sizes()

    def _take_sizes(self) -> None:
        """Copy the sizes from the members once they are known."""
        first, *_ = self.members
        if first.has_sizes:
            self.in_features = self.n_members * first.in_features
            self.out_features = first.out_features

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        loaded = state_dict.get(f"{prefix}members.0.weight")
        if not self.has_sizes and loaded is not None and loaded.numel():  # as the members do
            self.in_features = self.in_features or self.n_members * loaded.shape[1]
            self.out_features = self.out_features or loaded.shape[0]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _width(self, in_features: int) -> int:
        """Number of features per member."""
        if self.n_members < 1 or in_features % self.n_members:
            raise ValueError(
                f"`in_features` must be a multiple of `n_members`, got {in_features} and "
                f"{self.n_members}."
            )
        return in_features // self.n_members

    # -- predicting -----------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        return torch.cat([member.weight for member in self.members], 1) / self.n_members

    @property
    def bias(self) -> Tensor | None:
        if not self.fit_intercept:
            return None
        return self._stacked("bias").mean(0)

    def forward(self, features: Tensor) -> Tensor:
        """Mean of the members' predictions; shape (..., k)."""
        return self.member_predictions(features).mean(0)

    def member_predictions(self, features: Tensor) -> Tensor:
        """Predictions of each member; shape (m, ..., k)."""
        if not self.has_sizes:
            return torch.stack([member(block) for member, block in self._parts(features)])
        rows = self.members[0]._in_own_dtype(self._rows(features))
        weight = self._stacked("weight")
        if self.fit_intercept:
            predictions = torch.baddbmm(self._stacked("bias").unsqueeze(1), rows, weight.mT)
        else:
            predictions = torch.bmm(rows, weight.mT)
        return predictions.reshape(self.n_members, *features.shape[:-1], self.out_features)

    def leverage(self, features: Tensor, ridge: float | None = None) -> Tensor:
        """Mean leverage of the members; shape (...)."""
        parts = self._parts(features)
        return torch.stack([member.leverage(block, ridge) for member, block in parts]).mean(0)

    def variance(
        self,
        features: Tensor,
        noise_variance: Tensor | float = 1.0,
        left_out: Tensor | None = None,
    ) -> Tensor:
        """Predictive variance of a new observation; shape (..., k).

        The sum of ``σ² (1 + leverage)``, averaged over the members, and the variance of their
        predictions.
        """
        own = [
            member.variance(block, noise_variance, left_out)
            for member, block in self._parts(features)
        ]
        spread = self.member_predictions(features).var(0, correction=0)
        return torch.stack(own).mean(0) + spread

    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """See :meth:`ClosedFormLastLayer.leave_one_out_residuals`; mean over the members."""
        residuals = [
            member.leave_one_out_residuals(block, targets, sample_weight, ridge)
            for member, block in self._parts(features)
        ]
        return torch.stack(residuals).mean(0)

    # -- solving --------------------------------------------------------------------

    @torch.no_grad()
    @_in_full_precision
    def step(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> None:
        """See :meth:`ClosedFormLastLayer.step`; narrow members are solved together."""
        self.materialize_for(features, targets)
        first, *_ = self.members
        if first.memory == "statistics":
            self._add(features, targets, sample_weight, first.decay)
            for member in self.members:
                member._solve(first.ridge)
            return
        for member, step in zip(
            self.members, self._steps(features, targets, sample_weight, total), strict=True
        ):
            member._take(step)

    def _steps(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        total: float | None,
    ) -> list[linalg.ProximalStep]:
        """Compute the proximal step of each member without changing it."""
        first, *_ = self.members
        parts = list(self._parts(features))
        rows, wanted, weights = first._as_rows(parts[0][1], targets, sample_weight)
        if self._conjugate_gradients(features):
            return [
                member._proximal_step(
                    block.reshape(rows.shape).to(rows), wanted, member.weight, weights, total
                )
                for member, block in parts
            ]
        powers = None if first.feature_power is None else self._stacked("feature_power")
        found = first._proximal_step(
            self._rows(features).to(rows), wanted, self._stacked("weight"), weights, total, powers
        )
        return [linalg.ProximalStep(*each) for each in zip(*found, strict=True)]

    @torch.no_grad()
    @_in_full_precision
    def accumulate(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> EnsembleLastLayer:
        """See :meth:`ClosedFormLastLayer.accumulate`."""
        self.materialize_for(features, targets)
        self._add(features, targets, sample_weight)
        return self

    def _add(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        decay: float = 1.0,
    ) -> None:
        """Add rows to the moments of all members, or of none if they are not finite."""
        blocks = [
            member._with_rows(member.moments, *member._as_rows(part, targets, sample_weight), decay)
            for member, part in self._parts(features)
        ]
        for member, block in zip(self.members, blocks, strict=True):
            member._hold(block)

    def solve(
        self, ridge: float | None = None, shrinkage: Tensor | None = None
    ) -> EnsembleLastLayer:
        """See :meth:`ClosedFormLastLayer.solve`."""
        for member in self.members:
            member.solve(ridge, shrinkage)
        return self

    def refit(
        self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None
    ) -> EnsembleLastLayer:
        """See :meth:`ClosedFormLastLayer.refit`; all members share one ridge."""
        first, *_ = self.members
        own = [functools.partial(self._block, i) for i in range(self.n_members)]
        blocks, n_rows = first._moments_of(batches, list(self.members), own)
        self._take_sizes()
        self.reset_memory()
        for member, block in zip(self.members, blocks, strict=True):
            member._hold(block)
        if ridge is None:
            ridge = first._chosen_ridge(blocks, n_rows, self.members)
        return self.solve(ridge)

    @property
    def final_ridge(self) -> float | None:
        """See :attr:`ClosedFormLastLayer.final_ridge`."""
        ridge: float | None = self.members[0].final_ridge
        return ridge

    def ridge_path(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, k, m · d) and intercepts (r, k) for r ridges shared by all members."""
        weights, biases = zip(*(member.ridge_path(ridges) for member in self.members), strict=True)
        return torch.cat(weights, 2) / self.n_members, torch.stack(biases).mean(0)

    def reset_memory(self) -> None:
        """See :meth:`ClosedFormLastLayer.reset_memory`."""
        for member in self.members:
            member.reset_memory()

    def take_memory(self) -> list[Memory]:
        """See :meth:`ClosedFormLastLayer.take_memory`."""
        return [member.take_memory() for member in self.members]

    def recall(self, memory: list[Memory], share: float = 1.0) -> None:
        """See :meth:`ClosedFormLastLayer.recall`."""
        for member, own in zip(self.members, memory, strict=True):
            member.recall(own, share)

    @property
    def moments_total(self) -> Tensor | None:
        """Total weight of the rows in the moments, the same for all members."""
        total: Tensor | None = self.members[0].moments_total
        return total

    @property
    def holds_moments(self) -> bool:
        """Whether there are moments for another solve."""
        holds: bool = self.members[0].holds_moments
        return holds

    def to_linear(self) -> nn.Linear:
        """A plain :class:`torch.nn.Linear` on all features, with the weights of the mean."""
        return as_linear(self.weight, self.bias)

    def _conjugate_gradients(self, features: Tensor) -> bool:
        """Whether members are so wide that conjugate gradients on each one are cheaper."""
        first, *_ = self.members
        n_rows = features.numel() // self.in_features
        sizes = n_rows, first.in_features, self.out_features, first.ridge
        return bool(first.solver == "auto" and linalg.choose_solver(*sizes) == "cg")

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(member, name) for member in self.members])

    def _block(self, member: int, features: Tensor) -> Tensor:
        return features.chunk(self.n_members, -1)[member]

    def _parts(self, features: Tensor) -> zip[tuple[Any, Tensor]]:
        """Each member and its features."""
        return zip(self.members, features.chunk(self.n_members, -1), strict=True)

    def _rows(self, features: Tensor) -> Tensor:
        """Each member's features as rows; shape (m, n, d)."""
        shape = *features.shape[:-1], self.n_members, -1
        return features.reshape(shape).flatten(0, -3).movedim(1, 0)
