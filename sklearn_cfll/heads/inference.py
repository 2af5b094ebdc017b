"""LastLayer: a head, with the variances and leave-one-out residuals that its moments give."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import linalg
from .rows import full_precision
from .solving import SolvedLayer

__all__ = ["LastLayer"]


class LastLayer(SolvedLayer):
    """A head that also says how certain its fit to the rows in the moments is.

    :class:`SolvedLayer` says what members are.
    """

    def ridge_path(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, k, d) and intercepts (r, k) for each of r ridges, from one decomposition."""
        weights, biases = self.member_paths(ridges)
        return torch.cat(list(weights), 2) / self.n_members, biases.mean(0)

    def member_paths(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (m, r, k, d) and intercepts (m, r, k) of each member for r ridges."""
        weights, biases = [], []
        for member, block in zip(self.members, self._held_moments("ridge_path"), strict=True):
            with full_precision(block.gram.device):
                weight, bias = linalg.ridge_path(block, ridges, eps=member.eps)
            if member.shrinkage is not None:
                factor = member.shrinkage.to(weight)
                weight, bias = factor[:, None] * weight, factor * bias
            weights.append(weight)
            biases.append(bias)
        return torch.stack(weights), torch.stack(biases)

    def leverage(self, features: Tensor, ridge: float | None = None) -> Tensor:
        """Variance of the predicted mean at new rows for unit noise variance; shape (...).

        See :func:`linalg.leverage`; it is the mean over the members. ``ridge`` defaults to that of
        the last solve.
        """
        return self._leverages("leverage", features, ridge).mean(0)

    def variance(
        self,
        features: Tensor,
        noise_variance: Tensor | float = 1.0,
        left_out: Tensor | None = None,
    ) -> Tensor:
        """Predictive variance of a new observation.

        It is ``σ² (1 + leverage)``, averaged over the members, plus the variance of the members'
        predictions.

        Parameters
        ----------
        features : Tensor of shape (..., d)
        noise_variance : float or Tensor of shape (k,), default=1.0
            σ², preferably estimated on held-out rows: residuals of the training rows are too small.
        left_out : Tensor of shape (...), optional
            Sample weights of rows that are in the moments. The variance of each row is then that
            under the fit to all other rows.

        Returns
        -------
        Tensor of shape (..., k)

        Raises
        ------
        RuntimeError
            If there are no moments, that is, before :meth:`refit` with ``memory="proximal"``.
        """
        with full_precision(features.device):
            leverage = self._leverages("variance", features)
            if left_out is not None:
                rest = 1.0 - leverage * left_out
                leverage = leverage / rest.clamp_min(torch.finfo(leverage.dtype).eps)
            noise = torch.as_tensor(noise_variance, device=leverage.device, dtype=leverage.dtype)
            own = (1.0 + leverage).unsqueeze(-1) * noise.expand(self.out_features)
            own = own.to(torch.promote_types(features.dtype, torch.float32))
            return own.mean(0) + self.member_predictions(features).var(0, correction=0)

    def covariance_factors(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the covariance of the predicted means at several rows.

        Their products are what :meth:`variance` adds up for single rows, except for the noise:
        ``σ² weights @ weights.T`` is the mean covariance of the members' fits, and ``between`` that
        of their predictions.

        Parameters
        ----------
        features : Tensor of shape (n, d)

        Returns
        -------
        weights : Tensor of shape (n, q), float64
            For unit noise variance.
        between : Tensor of shape (n, m, k)
            Deviations of the members' predictions from their mean, divided by ``√m``.
        """
        means, bases, constants = self.leverage_bases()
        rows = features.reshape(len(features), self.n_members, -1).movedim(1, 0)
        with full_precision(features.device):
            weights = (rows.to(bases) - means) @ bases
            predictions = self.member_predictions(features)
        last = constants[:, None, None].expand(-1, len(features), 1)
        root = self.n_members**0.5
        between = (predictions - predictions.mean(0)).movedim(0, 1) / root
        return torch.cat([weights, last], 2).movedim(0, 1).flatten(1) / root, between

    def leverage_bases(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean features (m, 1, d), basis (m, d, d) and constant (m,) of each member's leverage.

        See :func:`linalg.leverage_basis`.
        """
        blocks = self._held_moments("leverage_bases")
        ridge = self.ridge if self.final_ridge is None else self.final_ridge
        means, bases, constants = [], [], []
        for member, block in zip(self.members, blocks, strict=True):
            options = {"fit_intercept": self.fit_intercept, "eps": member.eps}
            with full_precision(block.gram.device):
                basis, constant = linalg.leverage_basis(block, ridge, **options)
            means.append(block.feature_mean.unsqueeze(0))
            bases.append(basis)
            constants.append(constant)
        return torch.stack(means), torch.stack(bases), torch.stack(constants)

    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """Residuals of rows in the moments, each under the fit to all *other* rows.

        Shapes are as in :meth:`step`, with one weight per row; the result has the shape of targets.
        """
        shares = self._leverages("leave_one_out_residuals", features, ridge)
        if sample_weight is not None:
            shares = shares * sample_weight
        # The difference is 0 for an exactly fitted row.
        rests = (1.0 - shares).clamp_min(torch.finfo(shares.dtype).eps)
        found = []
        with full_precision(features.device):
            predictions = self.member_predictions(features)
        parts = zip(self.members, predictions, shares, rests, strict=True)
        for member, prediction, share, rest in parts:
            residuals = targets - prediction
            if member.shrinkage is None:
                residuals = residuals / rest.unsqueeze(-1)
            else:
                # y - β f₋ᵢ, where f₋ᵢ = f - h / (1 - h) (y - f) is the fit without the row.
                own = member.shrinkage * targets - prediction
                residuals = residuals + (share / rest).unsqueeze(-1) * own
            found.append(residuals)
        return torch.stack(found).mean(0)

    def _leverages(self, method: str, features: Tensor, ridge: float | None = None) -> Tensor:
        """Leverage of each row in each member; shape (m, ...)."""
        blocks = self._held_moments(method)
        ridge = self.final_ridge if ridge is None else ridge
        ridge = self.ridge if ridge is None else ridge
        found = []
        parts = zip(self.members, blocks, features.chunk(self.n_members, -1), strict=True)
        with full_precision(features.device):
            for member, block, part in parts:
                rows = part.reshape(-1, part.shape[-1]).to(block.gram)
                share = linalg.leverage(
                    rows, block, ridge, fit_intercept=self.fit_intercept, eps=member.eps
                )
                found.append(share)
        return torch.stack(found).reshape(-1, *features.shape[:-1])
