"""ClosedFormLastLayer: a linear layer whose weights are computed in closed form."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import linalg
from ..linalg import Moments

__all__ = ["ClosedFormLastLayer", "NotFiniteError", "as_linear"]

F32 = torch.float32
HALF = (torch.float16, torch.bfloat16)
MEMORIES = ("proximal", "statistics")
SOLVERS = ("auto", "cholesky", *linalg.SOLVERS)
_MOMENT_BUFFERS = tuple(f"moments_{name}" for name in Moments._fields)
_FIT_BUFFERS = (*_MOMENT_BUFFERS, "moments_ridge", "shrinkage")
_OPTIONAL_BUFFERS = (*_FIT_BUFFERS, "feature_power")
Memory = tuple[Moments | None, Tensor | None]  # moments and shrinkage
# The penalty is relative to the feature power, or to this share of its running mean if that is
# larger: in a batch whose features hardly vary, a penalty close to zero would make the weights
# erratic. Each batch enters the running mean with weight 0.01.
LEAST_SHARE, NEWEST_SHARE = 1e-3, 0.01

_Method = TypeVar("_Method", bound=Callable[..., Any])


class NotFiniteError(ValueError):
    """Raised if no weights can be computed from the rows; ``argument`` names the array at fault."""

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(message)
        self.argument = argument


def _in_full_precision(method: _Method) -> _Method:
    """Disable autocast in a method: in half precision a solve would lose most of its digits."""

    @functools.wraps(method)
    def outside(self: Any, *args: Any, **kwargs: Any) -> Any:
        device_type = self.weight.device.type
        if not torch.is_autocast_enabled(device_type):
            return method(self, *args, **kwargs)
        with torch.autocast(device_type, enabled=False):
            return method(self, *args, **kwargs)

    return outside  # type: ignore[return-value]


class ClosedFormLastLayer(nn.Module):
    """Linear last layer whose weights minimise the squared loss in closed form.

    It has no parameters, only buffers, so an optimiser over ``model.parameters()`` trains only the
    backbone. Call :meth:`update` on each batch in the training loop::

        prediction = head.update(backbone(x), y)  # solves, then predicts
        F.mse_loss(prediction, y).backward()      # gradient of the backbone, weights fixed

    Parameters
    ----------
    in_features : int, optional
        Number d of features. As in torch's lazy modules, a size that is not given is inferred from
        the first features and targets. Until then the layer predicts zeros, for a single target if
        ``out_features`` is not given either.
    out_features : int, optional
        Number k of targets.
    ridge : float, default=1.0
        Strength α of the penalty towards the previous weights (towards zero with
        ``memory="statistics"``), relative to the mean feature power, so that its effect does not
        depend on the scale of the features. ``ridge=0`` interpolates a batch with fewer rows than
        features, and the backbone then learns nothing. It is used by updates on batches only;
        :meth:`refit` chooses its own ridge.
    decay : float, default=1.0
        Factor γ on the earlier information at each update. With ``"proximal"`` memory, 1 is the
        paper's update and 0 fits each batch from scratch; with ``"statistics"``, it is the
        forgetting factor of recursive least squares.
    memory : {"proximal", "statistics"}, default="proximal"
        "proximal" keeps the previous weights. "statistics" keeps the decayed moments of all rows
        seen: with ``decay=1`` and a frozen backbone, the result is the exact ridge fit to all rows,
        whatever their order and their split into batches.
    solver : {"auto", "cholesky", "primal", "dual", "cg"}, default="auto"
        Solver of a proximal update. "auto" uses conjugate gradients if they are cheaper and
        accurate, otherwise the smaller of the two factorisations.
    fit_intercept : bool, default=True
        Whether to fit an intercept, which is never penalised.
    device, dtype : optional
        As for :class:`torch.nn.Linear`.

    Attributes
    ----------
    weight : Tensor of shape (out_features, in_features)
    bias : Tensor of shape (out_features,), or None without intercept
        Same names and shapes as in :class:`torch.nn.Linear`, whose ``state_dict`` can be loaded;
        :meth:`to_linear` converts back.
    feature_power : Tensor of shape (), or None
        Running mean of the feature power of the batches. The penalty on a batch is relative to at
        least a thousandth of it.
    final_ridge : float or None
        Ridge of the last exact solve (:meth:`refit`, :meth:`solve`).

    Notes
    -----
    Features may have any leading dimensions, ``(..., in_features)``: on a grid, each point is a row
    of the solve.

    With features in float16 or bfloat16, as under autocast, the solve is done in float32; the
    weights keep the dtype of the layer.

    Features, targets or sample weights that are NaN or infinite raise a ValueError and leave the
    layer unchanged. On an accelerator they are not checked, because each check would make the host
    wait for the device: the weights, and hence the loss, become NaN.

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
    feature_power: Tensor | None
    n_members = 1  # number of networks that give the features, see EnsembleLastLayer

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
        # A dimension whose size is not known yet has length zero.
        shape = out_features or 0, in_features or 0
        self.register_buffer("weight", torch.zeros(*shape, **factory))
        self.register_buffer("bias", torch.zeros(shape[0], **factory) if fit_intercept else None)
        for name in _MOMENT_BUFFERS:
            self.register_buffer(name, None)
        self.register_buffer("moments_ridge", None)  # of the last solve; `variance` needs it
        self.register_buffer("shrinkage", None)
        self.register_buffer("feature_power", None)

    # -- predicting -----------------------------------------------------------------

    def forward(self, features: Tensor) -> Tensor:
        """Predict ``features @ weight.T + bias``; shape (..., k)."""
        if self.in_features is None or self.out_features is None:
            k = self.out_features or 1
            return F.linear(features, features.new_zeros(k, features.shape[-1]))
        return F.linear(self._in_own_dtype(features), self.weight, self.bias)

    def member_predictions(self, features: Tensor) -> Tensor:
        """Predictions of the only member; shape (1, ..., k)."""
        prediction: Tensor = self(features)
        return prediction.unsqueeze(0)

    @_in_full_precision
    def variance(
        self,
        features: Tensor,
        noise_variance: Tensor | float = 1.0,
        left_out: Tensor | None = None,
    ) -> Tensor:
        """Predictive variance of a new observation, ``σ² (1 + leverage)``.

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
        self._held_moments("variance")
        leverage = self.leverage(features)
        if left_out is not None:
            rest = 1.0 - leverage * left_out
            leverage = leverage / rest.clamp_min(torch.finfo(leverage.dtype).eps)
        noise = torch.as_tensor(noise_variance, device=leverage.device, dtype=leverage.dtype)
        variance = (1.0 + leverage).unsqueeze(-1) * noise.expand(self.out_features)
        return variance.to(torch.promote_types(features.dtype, torch.float32))

    @_in_full_precision
    def leverage(self, features: Tensor, ridge: float | None = None) -> Tensor:
        """Variance of the predicted mean at new rows for unit noise variance; shape (...).

        See :func:`linalg.leverage`. ``ridge`` defaults to that of the last solve.
        """
        block = self._held_moments("leverage")
        rows = features.reshape(-1, self.in_features).to(block.gram)
        ridge = self._solved_ridge() if ridge is None else ridge
        leverage = linalg.leverage(
            rows, block, ridge, fit_intercept=self.fit_intercept, eps=self._eps
        )
        return leverage.reshape(features.shape[:-1])

    @_in_full_precision
    def leave_one_out_residuals(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        ridge: float | None = None,
    ) -> Tensor:
        """Residuals of rows in the moments, each under the fit to all *other* rows.

        Shapes are as in :meth:`update`, with one weight per row; the result has the shape of
        targets.
        """
        share: Tensor = self.leverage(features, ridge)
        if sample_weight is not None:
            share = share * sample_weight
        rest = (1.0 - share).clamp_min(torch.finfo(share.dtype).eps)  # 0 for an exactly fitted row
        residuals: Tensor = targets - self(features)
        if self.shrinkage is None:
            return residuals / rest.unsqueeze(-1)
        # y - β f₋ᵢ, where f₋ᵢ = f - h / (1 - h) (y - f) is the fit without the row.
        own: Tensor = self.shrinkage * targets - self(features)
        return residuals + (share / rest).unsqueeze(-1) * own

    @_in_full_precision
    def ridge_path(self, ridges: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (r, k, d) and intercepts (r, k) for each of r ridges, from one decomposition."""
        block = self._held_moments("ridge_path")
        weights, biases = linalg.ridge_path(block, ridges, eps=self._eps)
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
        """Solve for the weights on this batch, given the memory, then predict.

        No gradient flows through the solve (envelope theorem), only from the predictions into
        ``features``.

        Parameters
        ----------
        features : Tensor of shape (..., d)
        targets : Tensor of shape (..., k)
        sample_weight : Tensor of shape (...), or (n,) for one weight per sample, optional
        total : float, optional
            Divisor of the batch's weighted squared error; default the sum of its weights. A loop
            over mini-batches, with weights that average one over all rows, passes the number of
            rows in the batch.

        Returns
        -------
        Tensor of shape (..., k)
            Predictions with the new weights.
        """
        self.step(features.detach(), targets, sample_weight, total)
        return F.linear(self._in_own_dtype(features), self.weight, self.bias)

    @torch.no_grad()
    @_in_full_precision
    def step(
        self,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None = None,
        total: float | None = None,
    ) -> None:
        """:meth:`update` without the prediction."""
        rows, wanted, weights = self._as_rows(features, targets, sample_weight)
        if self.memory == "statistics":
            self._hold(self._with_rows(self.moments, rows, wanted, weights, self.decay))
            self._solve(self.ridge)
            return
        self._take(self._proximal_step(rows, wanted, self.weight, weights, total))

    def _proximal_step(
        self,
        rows: Tensor,
        targets: Tensor,
        weight: Tensor,
        sample_weight: Tensor | None,
        total: float | None,
        power: Tensor | None = None,
    ) -> linalg.ProximalStep:
        """Compute the result of :meth:`step` for one or several layers without changing them."""
        power = self.feature_power if power is None else power
        found = linalg.proximal_step(
            rows,
            targets,
            weight.to(rows.dtype),
            ridge=self.ridge,
            decay=self.decay,
            sample_weight=sample_weight,
            total=total,
            fit_intercept=self.fit_intercept,
            solver=self.solver,
            least_power=None if power is None else LEAST_SHARE * power.to(rows.dtype),
        )
        _check_solved(rows, targets, sample_weight, found.weight, found.bias)
        return found

    def _take(self, found: linalg.ProximalStep) -> None:
        """Take over the result of a proximal step."""
        if self.holds_moments:
            self.reset_memory()  # moments of an earlier refit do not match the new weights
        usual = self._buffers["feature_power"]
        # Bypass nn.Module.__setattr__, see `_assign`.
        self._buffers["feature_power"] = (
            found.power if usual is None else usual.lerp(found.power.to(usual), NEWEST_SHARE)
        )
        self._assign(found.weight, found.bias)

    @torch.no_grad()
    @_in_full_precision
    def accumulate(
        self, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> ClosedFormLastLayer:
        """Add rows to the moments without solving; shapes are as in :meth:`update`."""
        rows = self._as_rows(features, targets, sample_weight)
        self._hold(self._with_rows(self.moments, *rows))
        return self

    @torch.no_grad()
    @_in_full_precision
    def solve(
        self, ridge: float | None = None, shrinkage: Tensor | None = None
    ) -> ClosedFormLastLayer:
        """Ridge fit to all rows in the moments, penalised towards zero.

        Parameters
        ----------
        ridge : float, optional
            Relative to the mean feature power. Default: that of the last solve; if there was none,
            it is chosen as in :meth:`refit`, with weights taken as repetitions.
        shrinkage : Tensor of shape (out_features,), optional
            Factor on the predictions of the fit, kept for later solves; initially one.
        """
        block = self._held_moments("solve")
        if ridge is None:
            ridge = self.final_ridge
        if ridge is None:
            ridge = self._chosen_ridge([block], float(block.total), [self])
        if shrinkage is not None:
            self.shrinkage = shrinkage.to(self.weight)
        self._solve(ridge)
        return self

    def refit(
        self, batches: Iterable[tuple[Tensor, ...]], *, ridge: float | None = None
    ) -> ClosedFormLastLayer:
        """Exact ridge fit over batches of rows, in one pass and O(d²) memory.

        Parameters
        ----------
        batches : iterable of (features, targets) or (features, targets, sample_weight)
            Features should be computed by the backbone in evaluation mode.
        ridge : float, optional
            Relative to the mean feature power. By default it is chosen from the moments of the rows
            by generalised cross-validation (:func:`linalg.final_ridge`); the layer's own ``ridge``
            is only for updates on batches. The ridge with the smallest error on held-out rows is
            better than either (:meth:`ridge_path`).

        Returns
        -------
        self
            :attr:`final_ridge` is the ridge that was used. The moments are kept, for
            :meth:`variance` and for more rows (:meth:`accumulate`, then :meth:`solve`).

        Raises
        ------
        ValueError
            If rows are not finite, or if there are no rows; the layer is left unchanged.
        """
        blocks, n_rows = self._moments_of(batches, [self], [lambda features: features])
        self.reset_memory()
        self._hold(blocks[0])
        return self.solve(self._chosen_ridge(blocks, n_rows, [self]) if ridge is None else ridge)

    def reset_memory(self) -> None:
        """Discard the moments of earlier rows and the shrinkage; the weights are kept."""
        for name in _FIT_BUFFERS:
            setattr(self, name, None)

    def take_memory(self) -> Memory:
        """Return the moments and the shrinkage, and discard them (see :meth:`recall`)."""
        memory = self.moments, self.shrinkage
        self.reset_memory()
        return memory

    def recall(self, memory: Memory, share: float = 1.0) -> None:
        """Restore the result of :meth:`take_memory`, with weights multiplied by ``share``."""
        block, self.shrinkage = memory
        if block is not None:
            self._hold(linalg.scale_moments(block, share))

    # -- sizes ----------------------------------------------------------------------

    @property
    def has_sizes(self) -> bool:
        """Whether both sizes are known."""
        return self.in_features is not None and self.out_features is not None

    def materialize(self, in_features: int, out_features: int) -> None:
        """Set sizes that are not known yet; known sizes are kept."""
        self.in_features = in_features if self.in_features is None else self.in_features
        self.out_features = out_features if self.out_features is None else self.out_features
        self.weight = self.weight.new_zeros(self.out_features, self.in_features)
        if self.bias is not None:
            self.bias = self.bias.new_zeros(self.out_features)

    def materialize_for(self, features: Tensor, targets: Tensor) -> None:
        """Infer unknown sizes from features and targets with the same leading shape."""
        if not self.has_sizes and features.shape[:-1] == targets.shape[:-1]:
            self.materialize(features.shape[-1], targets.shape[-1])

    # -- exchanging -----------------------------------------------------------------

    @property
    def moments(self) -> Moments | None:
        """Moments of the rows seen, or None (see :class:`linalg.Moments`)."""
        if self.moments_total is None:
            return None
        return Moments(*(getattr(self, name) for name in _MOMENT_BUFFERS))

    @property
    def holds_moments(self) -> bool:
        """Whether there are moments for another solve."""
        return self._buffers["moments_total"] is not None

    @property
    def final_ridge(self) -> float | None:
        """Ridge of the last exact solve, None if there was none since the last update."""
        return None if self.moments_ridge is None else float(self.moments_ridge)

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
        # Moments are optional: take the shapes of those loaded, discard those that are missing.
        for name in _OPTIONAL_BUFFERS:
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
        """Flatten leading dimensions; repeat a weight per sample over its positions."""
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
            sample_weight = sample_weight.expand(leading).reshape(-1)
        # Never in half precision, whose three digits are too few for sums of products.
        dtype = torch.promote_types(torch.promote_types(features.dtype, self.weight.dtype), F32)
        return (
            features.reshape(-1, self.in_features).to(dtype),
            targets.reshape(-1, self.out_features).to(dtype),
            None if sample_weight is None else sample_weight.to(dtype),
        )

    def _in_own_dtype(self, features: Tensor) -> Tensor:
        """Cast features to the dtype of the weights; autocast itself casts half precision."""
        half = features.dtype in HALF
        if half and torch.is_autocast_enabled(features.device.type):
            return features
        return features.to(self.weight.dtype)

    @property
    def _eps(self) -> float:
        """Machine epsilon of the features, which are computed in the weights' dtype."""
        return torch.finfo(torch.promote_types(self.weight.dtype, F32)).eps

    def _with_rows(
        self,
        held: Moments | None,
        features: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        decay: float = 1.0,
    ) -> Moments:
        """Moments of these rows and of the earlier ones."""
        # Sums of products over many rows lose half the digits of float32, so moments are added up
        # in float64 if the device supports it.
        rows = features, targets, sample_weight
        if features.device.type != "mps":
            features, targets = features.double(), targets.double()
            sample_weight = None if sample_weight is None else sample_weight.double()
        block = linalg.moments(features, targets, sample_weight, center=self.fit_intercept)
        _check_solved(*rows, block.gram.diagonal(), block.target_square, block.cross)
        if held is None:
            return block
        held = linalg.scale_moments(held, decay)
        return linalg.merge_moments(held, block, center=self.fit_intercept)

    @torch.no_grad()
    @_in_full_precision
    def _moments_of(
        self,
        batches: Iterable[tuple[Tensor, ...]],
        layers: list[ClosedFormLastLayer],
        own: list[Callable[[Tensor], Tensor]],
    ) -> tuple[list[Moments], float]:
        """Moments of all rows for each of several layers, and the number of rows."""
        blocks: list[Moments | None] = [None] * len(layers)
        weights: list[Tensor] = []
        for features, *rest in batches:
            targets, sample_weight = rest if len(rest) > 1 else (rest[0], None)
            for i, layer in enumerate(layers):
                rows = layer._as_rows(own[i](features), targets, sample_weight)
                blocks[i] = layer._with_rows(blocks[i], *rows)
            weights.append(rows[0].new_ones(len(rows[0])) if rows[2] is None else rows[2])
        held = [block for block in blocks if block is not None]
        if not held:
            raise ValueError("`batches` has no rows. A generator is exhausted after one pass.")
        return held, linalg.count_rows(torch.cat(weights))

    @_in_full_precision
    def _chosen_ridge(
        self, blocks: list[Moments], n_rows: float, layers: Iterable[ClosedFormLastLayer]
    ) -> float:
        """A common ridge for several layers, given the moments of the same rows for each."""
        trained = [(layer.weight, layer.bias) for layer in layers]
        kind: dict[str, Any] = {"fit_intercept": self.fit_intercept, "eps": self._eps}
        return linalg.final_ridge(blocks, n_rows, trained=trained, **kind)

    def _hold(self, block: Moments) -> None:
        for name, value in zip(_MOMENT_BUFFERS, block, strict=True):
            setattr(self, name, value)

    def _solve(self, ridge: float) -> None:
        block = self._held_moments("solve")
        self.moments_ridge = torch.tensor(ridge, dtype=block.total.dtype)
        weight, bias = linalg.solve_moments(block, ridge, eps=self._eps)
        if self.shrinkage is not None:
            factor = self.shrinkage.to(weight)
            weight, bias = factor[:, None] * weight, factor * bias
        self._assign(weight, bias)

    def _solved_ridge(self) -> float:
        return self.ridge if self.final_ridge is None else self.final_ridge

    def _assign(self, weight: Tensor, bias: Tensor) -> None:
        # Not in place: an autograd graph may still hold the old tensors. This bypasses
        # nn.Module.__setattr__, which would cost as much as the solve for the intercept.
        buffers = self._buffers
        buffers["weight"] = weight.to(self.weight.dtype)
        if self.fit_intercept:
            buffers["bias"] = bias.to(self.weight.dtype)

    def _held_moments(self, method: str) -> Moments:
        block = self.moments
        if block is None:
            raise RuntimeError(
                f"`{method}` needs the moments of the training rows, but there are none: "
                'call `refit(batches)` first, or train with memory="statistics".'
            )
        return block


def _check_solved(
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
