"""ClosedFormLastLayer: a linear layer whose weights are solved for, not descended to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import linalg
from .linalg import Moments

__all__ = ["ClosedFormLastLayer", "as_linear"]

MEMORIES = ("proximal", "statistics")
SOLVERS = ("auto", "cholesky", *linalg.SOLVERS)
_MOMENT_BUFFERS = tuple(f"moments_{name}" for name in Moments._fields)
_COMING_AND_GOING = (*_MOMENT_BUFFERS, "moments_ridge", "shrinkage")


class ClosedFormLastLayer(nn.Module):
    """Linear last layer whose weights minimise the squared loss in closed form.

    It holds no parameters, only buffers: an optimiser over ``model.parameters()`` trains
    the backbone alone. Call :meth:`update` on each batch in the training loop::

        prediction = head.update(backbone(x), y)  # solves, then predicts
        F.mse_loss(prediction, y).backward()      # gradient of the backbone, weights held

    Parameters
    ----------
    in_features : int, optional
        Width d of the features. As in torch's lazy modules, a size that is not given is read
        off the first rows that the layer is solved for. Until then it predicts zeros, for a
        single target if ``out_features`` is not given either.
    out_features : int, optional
        Number k of targets.
    ridge : float, default=1.0
        Strength α of the pull towards the memory, relative to the mean feature power, so
        that it means the same for any backbone. ``ridge=0`` interpolates a batch with
        fewer rows than features, after which the backbone learns nothing.
    decay : float, default=1.0
        Share γ of the earlier information that survives an update. With ``"proximal"``
        memory 1 is the paper's update and 0 fits each batch afresh; with ``"statistics"``
        it is the forgetting factor of recursive least squares.
    memory : {"proximal", "statistics"}, default="proximal"
        "proximal" remembers the last weights; "statistics" the decayed moments of all rows
        seen: with ``decay=1`` and a frozen backbone the exact ridge fit to all of them, in
        any order and any split into batches.
    solver : {"auto", "cholesky", "primal", "dual", "cg"}, default="auto"
        How a proximal update is solved. "auto" takes conjugate gradients where they are
        cheaper and accurate, else the smaller of the two factorisations.
    fit_intercept : bool, default=True
        The intercept is never penalised.
    device, dtype : optional
        As for :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight : Tensor of shape (out_features, in_features)
    bias : Tensor of shape (out_features,), or None without intercept
        Same names and shapes as in :class:`torch.nn.Linear`: the two load each other's
        ``state_dict`` (a layer that also holds moments exports itself by
        :meth:`to_linear`).

    Notes
    -----
    Features may have any leading dimensions, ``(..., in_features)``: on a grid each point
    is a row of the solve.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606.

    Examples
    --------
    >>> import torch
    >>> from sklearn_cfll import ClosedFormLastLayer
    >>> features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    >>> targets = features @ torch.ones(8, 1) + 3.0
    >>> head = ClosedFormLastLayer(8, 1, ridge=1e-6)
    >>> prediction = head.update(features, targets)
    >>> bool(torch.allclose(prediction, targets, atol=1e-3))
    True
    """

    in_features: Any  # int, or None until the first rows are seen
    out_features: Any
    weight: Tensor
    bias: Tensor | None
    moments_total: Tensor | None
    moments_ridge: Tensor | None
    shrinkage: Tensor | None
    n_members = 1  # networks behind the features, see EnsembleLastLayer

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        ridge: float = 1.0,
        decay: float = 1.0,
        memory: str = "proximal",
        solver: str = "auto",
        fit_intercept: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_choice("memory", memory, MEMORIES)
        _check_choice("solver", solver, SOLVERS)
        if not ridge >= 0:
            raise ValueError(f"`ridge` must be zero or positive, got {ridge!r}.")
        if solver == "cg" and ridge == 0:
            raise ValueError('`solver`="cg" needs a positive `ridge`; use "auto" for ridge=0.')
        if not 0 <= decay <= 1:
            raise ValueError(f"`decay` must lie between 0 and 1, got {decay!r}.")
        self.in_features, self.out_features = in_features, out_features
        self.ridge, self.decay = ridge, decay
        self.memory, self.solver = memory, solver
        self.fit_intercept = fit_intercept
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        # Empty along a dimension whose size is not known yet.
        shape = out_features or 0, in_features or 0
        self.register_buffer("weight", torch.zeros(*shape, **factory))
        self.register_buffer("bias", torch.zeros(shape[0], **factory) if fit_intercept else None)
        for name in _MOMENT_BUFFERS:
            self.register_buffer(name, None)
        self.register_buffer("moments_ridge", None)  # of the last solve; variance needs it
        self.register_buffer("shrinkage", None)

    # -- predicting -----------------------------------------------------------------

    def forward(self, features: Tensor) -> Tensor:
        """Predict ``features @ weight.T + bias``; shape (..., k)."""
        if self.in_features is None or self.out_features is None:
            k = self.out_features or 1
            return F.linear(features, features.new_zeros(k, features.shape[-1]))
        return F.linear(features, self.weight, self.bias)

    def variance(self, features: Tensor, noise_variance: Tensor | float = 1.0) -> Tensor:
        """Predictive variance of a new observation, ``σ² (1 + leverage)``.

        Parameters
        ----------
        features : Tensor of shape (..., d)
        noise_variance : float or Tensor of shape (k,), default=1.0
            σ², best from held-out rows: residuals of the training rows are too small.

        Returns
        -------
        Tensor of shape (..., k)

        Raises
        ------
        RuntimeError
            Where no moments are held, that is before :meth:`refit` with
            ``memory="proximal"``.
        """
        self._held_moments("variance")
        leverage = self.leverage(features)
        noise = torch.as_tensor(noise_variance, device=leverage.device, dtype=leverage.dtype)
        variance = (1.0 + leverage).unsqueeze(-1) * noise.expand(self.out_features)
        return variance.to(features.dtype)

    def leverage(self, features: Tensor, ridge: float | None = None) -> Tensor:
        """Variance of the mean at new rows for noise of variance one; shape (...).

        See :func:`linalg.leverage`. ``ridge`` is that of the last solve unless given.
        """
        block = self._held_moments("leverage")
        rows = features.reshape(-1, self.in_features).to(block.gram)
        ridge = self._solved_ridge() if ridge is None else ridge
        leverage = linalg.leverage(rows, block, ridge, fit_intercept=self.fit_intercept)
        return leverage.reshape(features.shape[:-1])

    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """Residuals of rows in the moments, each under the fit to all *other* rows.

        Shapes as in :meth:`update`, weights one a row; the result has the shape of targets.
        """
        share: Tensor = self.leverage(features, ridge)
        if sample_weight is not None:
            share = share * sample_weight
        rest = (1.0 - share).clamp_min(torch.finfo(share.dtype).eps)  # of a row that fixes a weight
        residuals: Tensor = targets - self(features)
        if self.shrinkage is None:
            return residuals / rest.unsqueeze(-1)
        # y - β f₋ᵢ, where f₋ᵢ = f - h / (1 - h) (y - f) is the fit without the row.
        own: Tensor = self.shrinkage * targets - self(features)
        return residuals + (share / rest).unsqueeze(-1) * own

    def ridge_path(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, k, d) and intercepts (r, k) for each of r ridges, from one decomposition."""
        weights, biases = linalg.ridge_path(self._held_moments("ridge_path"), ridges)
        if self.shrinkage is None:
            return weights, biases
        return self.shrinkage.to(weights)[:, None] * weights, self.shrinkage.to(weights) * biases

    # -- solving --------------------------------------------------------------------

    def update(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> Tensor:
        """Solve for new weights on this batch and what is remembered, then predict.

        No gradient flows through the solve (envelope theorem); it flows from the result
        into ``features``.

        Parameters
        ----------
        features : Tensor of shape (..., d)
        targets : Tensor of shape (..., k)
        sample_weight : Tensor of shape (...), or (n,) for one weight a sample, optional
        total : float, optional
            Divides the batch's weighted squared error; default the sum of its weights. A
            loop over mini-batches with weights that average one over all rows passes the
            batch's number of rows.

        Returns
        -------
        Tensor of shape (..., k)
            Predictions with the new weights.
        """
        self.step(features.detach(), targets, sample_weight, total)
        return F.linear(features, self.weight, self.bias)

    @torch.no_grad()
    def step(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> None:
        """:meth:`update` without the prediction, for where that is not wanted."""
        rows, wanted, weights = self._as_rows(features, targets, sample_weight)
        if self.memory == "statistics":
            self._absorb(rows, wanted, weights, decay=self.decay)
            self._solve(self.ridge)
            return
        if self.holds_moments:
            self.reset_memory()  # of an earlier refit: no longer what the weights come from
        self._assign(*self._proximal_update(rows, wanted, self.weight, weights, total))

    def _proximal_update(
        self,
        rows: Tensor,
        targets: Tensor,
        weight: Tensor,
        sample_weight: Tensor | None,
        total: float | None,
    ) -> tuple[Tensor, Tensor]:
        return linalg.proximal_update(
            rows,
            targets,
            weight,
            ridge=self.ridge,
            decay=self.decay,
            sample_weight=sample_weight,
            total=total,
            fit_intercept=self.fit_intercept,
            solver=self.solver,
        )

    @torch.no_grad()
    def accumulate(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> ClosedFormLastLayer:
        """Add rows to the held moments without solving; shapes as in :meth:`update`."""
        self._absorb(*self._as_rows(features, targets, sample_weight), decay=1.0)
        return self

    @torch.no_grad()
    def solve(
        self, ridge: float | None = None, shrinkage: Tensor | None = None
    ) -> ClosedFormLastLayer:
        """Ridge fit to all rows in the held moments, pulled towards zero.

        Parameters
        ----------
        ridge : float, optional
            Relative to the mean feature power; default the layer's own.
        shrinkage : Tensor of shape (out_features,), optional
            Factor on what the fit predicts, kept for later solves; at first one.
        """
        self._held_moments("solve")
        if shrinkage is not None:
            self.shrinkage = shrinkage.to(self.weight)
        self._solve(self.ridge if ridge is None else ridge)
        return self

    def refit(
        self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None
    ) -> ClosedFormLastLayer:
        """Exact ridge fit over batches of rows, in one pass and O(d²) memory.

        Parameters
        ----------
        batches : iterable of (features, targets) or (features, targets, sample_weight)
        ridge : float, optional
            Relative to the mean feature power; default the layer's own.

        Returns
        -------
        self
            The moments stay, for :meth:`variance` and for more rows (:meth:`accumulate`).
        """
        self.reset_memory()
        for batch in batches:
            self.accumulate(*batch)
        return self.solve(ridge)

    def reset_memory(self) -> None:
        """Forget the moments of earlier rows and the shrinkage; the weights stay."""
        for name in _COMING_AND_GOING:
            setattr(self, name, None)

    # -- sizes ----------------------------------------------------------------------

    @property
    def has_sizes(self) -> bool:
        """Whether both sizes are known."""
        return self.in_features is not None and self.out_features is not None

    def materialize(self, in_features: int, out_features: int) -> None:
        """Fix sizes that are not known yet; those that are known stay."""
        self.in_features = in_features if self.in_features is None else self.in_features
        self.out_features = out_features if self.out_features is None else self.out_features
        self.weight = self.weight.new_zeros(self.out_features, self.in_features)
        if self.bias is not None:
            self.bias = self.bias.new_zeros(self.out_features)

    def materialize_for(self, features: Tensor, targets: Tensor) -> None:
        """Read sizes that are not known yet off rows that match each other."""
        if not self.has_sizes and features.shape[:-1] == targets.shape[:-1]:
            self.materialize(features.shape[-1], targets.shape[-1])

    # -- exchanging -----------------------------------------------------------------

    @property
    def moments(self) -> Moments | None:
        """Moments of the rows remembered, or None (see :class:`linalg.Moments`)."""
        if self.moments_total is None:
            return None
        return Moments(*(getattr(self, name) for name in _MOMENT_BUFFERS))

    @property
    def holds_moments(self) -> bool:
        """Whether there are moments to solve again from."""
        return self._buffers["moments_total"] is not None

    def to_linear(self) -> nn.Linear:
        """A plain :class:`torch.nn.Linear` with these weights."""
        return as_linear(self.weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"ridge={self.ridge:g}, decay={self.decay:g}, memory={self.memory!r}"
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        loaded = state_dict.get(prefix + "weight")
        if not self.has_sizes and loaded is not None and loaded.numel():
            self.materialize(loaded.shape[1], loaded.shape[0])
        # Moments come and go: take the shape of what is loaded, forget what is not in it.
        for name in _COMING_AND_GOING:
            value = state_dict.get(prefix + name)
            if value is None:
                setattr(self, name, None)
            elif getattr(self, name) is None or getattr(self, name).shape != value.shape:
                setattr(self, name, torch.empty_like(value, device=self.weight.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    # -- private --------------------------------------------------------------------

    def _as_rows(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Flatten leading dimensions; a weight a sample is repeated over its positions."""
        if self.in_features is None or self.out_features is None:
            self.materialize_for(features, targets)
        if features.shape[-1] != self.in_features and self.in_features is not None:
            raise ValueError(
                f"`features` must have {self.in_features} columns (in_features), "
                f"got shape {tuple(features.shape)}."
            )
        one_target = targets.ndim < features.ndim
        out_features = self.out_features or (1 if one_target else targets.shape[-1])
        expected = (*features.shape[:-1], out_features)
        if targets.shape != expected:
            raise ValueError(
                f"`targets` must have shape {tuple(expected)} to match features of shape "
                f"{tuple(features.shape)}, got {tuple(targets.shape)}. A single target "
                "needs its own last dimension: targets.unsqueeze(-1)."
            )
        if sample_weight is not None:
            leading = features.shape[:-1]
            if sample_weight.shape == leading[:1]:
                sample_weight = sample_weight.reshape(-1, *[1] * (len(leading) - 1))
            elif sample_weight.shape != leading:
                raise ValueError(
                    f"`sample_weight` must have shape {tuple(leading[:1])} or "
                    f"{tuple(leading)}, got {tuple(sample_weight.shape)}."
                )
            sample_weight = sample_weight.expand(leading).reshape(-1).to(features.dtype)
        return (
            features.reshape(-1, self.in_features),
            targets.reshape(-1, self.out_features).to(features.dtype),
            sample_weight,
        )

    def _absorb(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None, decay: float
    ) -> None:
        # Sums of products over many rows lose half the digits of float32, so moments are
        # added up in float64 wherever the device has it.
        if features.device.type != "mps":
            features, targets = features.double(), targets.double()
            sample_weight = None if sample_weight is None else sample_weight.double()
        block = linalg.moments(features, targets, sample_weight, center=self.fit_intercept)
        held = self.moments
        if held is not None:
            held = linalg.scale_moments(held, decay)
            block = linalg.merge_moments(held, block, center=self.fit_intercept)
        for name, value in zip(_MOMENT_BUFFERS, block, strict=True):
            setattr(self, name, value)

    def _solve(self, ridge: float) -> None:
        block = self._held_moments("solve")
        self.moments_ridge = torch.tensor(ridge, dtype=block.total.dtype)
        weight, bias = linalg.solve_moments(block, ridge)
        if self.shrinkage is not None:
            factor = self.shrinkage.to(weight)
            weight, bias = factor[:, None] * weight, factor * bias
        self._assign(weight, bias)

    def _solved_ridge(self) -> float:
        return self.ridge if self.moments_ridge is None else float(self.moments_ridge)

    def _assign(self, weight: Tensor, bias: Tensor) -> None:
        # New tensors, never in place: an autograd graph may still hold the old ones. Past
        # nn.Module.__setattr__, which would cost as much as the intercept's solve.
        buffers = self._buffers
        buffers["weight"] = weight.to(self.weight.dtype)
        if self.fit_intercept:
            buffers["bias"] = bias.to(self.weight.dtype)

    def _held_moments(self, method: str) -> Moments:
        block = self.moments
        if block is None:
            raise RuntimeError(
                f"`{method}` needs the moments of the training rows, and none are held: "
                'call `refit(batches)` first, or train with memory="statistics".'
            )
        return block


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


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}, got {value!r}.")
