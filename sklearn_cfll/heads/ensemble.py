"""EnsembleLastLayer: a closed-form last layer for each of several networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .closed_form import ClosedFormLastLayer
from .inference import LastLayer
from .member import SETTINGS, as_linear
from .rows import as_dtype

__all__ = ["EnsembleLastLayer"]


def _shared(name: str) -> Any:
    """A setting that all members have in common."""

    def write(self: Any, value: Any) -> None:
        for member in self.members:
            setattr(member, name, value)

    return property(lambda self: getattr(self.members[0], name), write)


class EnsembleLastLayer(LastLayer):
    """Closed-form last layers of several networks; the prediction is their mean.

    The features of the networks are concatenated. Each member is a :class:`ClosedFormLastLayer` on
    its own block of features and is solved separately; together they are one linear layer on all
    features. In a training loop, add up the errors of the members. On the error of their mean, they
    would be trained as parts of one network::

        features = backbone(x)                          # of all networks, side by side
        head.step(features.detach(), y)                 # solves the last layer of each
        errors = head.member_predictions(features) - y  # (m, n, k)
        errors.square().mean((1, 2)).sum().backward()   # gradient of the backbone, weights fixed

    Parameters
    ----------
    in_features : int, optional
        Number of all features; the first ``in_features / n_members`` belong to the first member.
        Sizes that are not given are inferred from the first rows, see :class:`ClosedFormLastLayer`.
    out_features : int, optional
        Number k of targets.
    n_members : int, default=4
        Number m of networks.
    **options
        Options of each member, such as ``ridge``, see :class:`ClosedFormLastLayer`.

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

    ridge, decay, memory, solver = map(_shared, SETTINGS)

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        n_members: int = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.n_members = n_members
        width = self._width(in_features or 0) or None
        self.members = nn.ModuleList(
            ClosedFormLastLayer(width, out_features, **options) for _ in range(n_members)
        )
        self.fit_intercept = self.members[0].fit_intercept

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
            return torch.stack([member(block) for member, block in self.parts(features)])
        weight = self._stacked("weight")
        # Each member's features as rows; shape (m, n, d).
        rows = features.reshape(-1, self.n_members, weight.shape[-1]).movedim(1, 0)
        rows = as_dtype(rows, weight.dtype)
        if self.fit_intercept:
            predictions = torch.baddbmm(self._stacked("bias").unsqueeze(1), rows, weight.mT)
        else:
            predictions = torch.bmm(rows, weight.mT)
        return predictions.reshape(self.n_members, *features.shape[:-1], self.out_features)

    def parts(self, features: Tensor) -> zip[tuple[ClosedFormLastLayer, Tensor]]:
        """Each member and its features."""
        return zip(self.members, features.chunk(self.n_members, -1), strict=True)

    def to_linear(self) -> nn.Linear:
        """A plain :class:`torch.nn.Linear` on all features, with the weights of the mean."""
        return as_linear(self.weight, self.bias)

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(member, name) for member in self.members])

    @property
    def moments_total(self) -> Tensor | None:
        """Total weight of the rows in the moments, the same for all members."""
        total: Tensor | None = self.members[0].moments_total
        return total

    # -- sizes ----------------------------------------------------------------------

    def materialize_for(self, features: Tensor, targets: Tensor) -> None:
        """Infer unknown sizes from features and targets with the same leading shape."""
        if self.has_sizes:
            return
        self._width(features.shape[-1])
        for member, block in self.parts(features):
            member.materialize_for(block, targets)
        if self.members[0].has_sizes:
            self.in_features = self.n_members * self.members[0].in_features
            self.out_features = self.members[0].out_features

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
