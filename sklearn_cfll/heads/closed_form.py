"""ClosedFormLastLayer: a linear layer whose weights are computed in closed form."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import linalg
from .inference import LastLayer
from .member import FIT_BUFFERS, Member, as_linear
from .memory import MEMORIES, memory_of
from .protocol import Memory
from .rows import as_dtype

__all__ = ["SOLVERS", "ClosedFormLastLayer"]

SOLVERS = ("auto", "cholesky", *linalg.SOLVERS)


class ClosedFormLastLayer(LastLayer, Member):
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
    memory : {"proximal", "statistics"} or Memory, default="proximal"
        "proximal" keeps the previous weights. "statistics" keeps the decayed moments of all rows
        seen: with ``decay=1`` and a frozen backbone, the result is the exact ridge fit to all rows,
        whatever their order and their split into batches. An object is a memory of your own, see
        :class:`~sklearn_cfll.heads.Memory`.
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

    n_members = 1  # number of networks that give the features, see EnsembleLastLayer

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        ridge: float = 1.0,
        decay: float = 1.0,
        memory: str | Memory = "proximal",
        solver: str = "auto",
        fit_intercept: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value, known in (("memory", memory, MEMORIES), ("solver", solver, SOLVERS)):
            if isinstance(value, str) and value not in known:
                raise ValueError(f"`{name}` must be one of {list(known)}, got {value!r}.")
        if not isinstance(memory, str | Memory):
            raise ValueError(
                f"`memory` must be one of {list(MEMORIES)} or a Memory, got {memory!r}."
            )
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
        # The memory may change later, so there are buffers for each of them.
        states = [each.state for each in (*MEMORIES.values(), memory_of(memory))]
        self.optional_buffers = tuple(dict.fromkeys(sum(states, FIT_BUFFERS)))
        for name in self.optional_buffers:
            self.register_buffer(name, None)

    @property
    def members(self) -> tuple[ClosedFormLastLayer]:  # type: ignore[override]
        """The layer itself: it is an ensemble of one."""
        return (self,)

    def forward(self, features: Tensor) -> Tensor:
        """Predict ``features @ weight.T + bias``; shape (..., k)."""
        if self.in_features is None or self.out_features is None:
            k = self.out_features or 1
            return F.linear(features, features.new_zeros(k, features.shape[-1]))
        weight = self.weight
        return F.linear(as_dtype(features, weight.dtype), weight, self.bias)

    def member_predictions(self, features: Tensor) -> Tensor:
        """Predictions of the only member; shape (1, ..., k)."""
        prediction: Tensor = self(features)
        return prediction.unsqueeze(0)

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
        features, targets, sample_weight, total
            As for :meth:`step`.

        Returns
        -------
        Tensor of shape (..., k)
            Predictions with the new weights.
        """
        self.step(features.detach(), targets, sample_weight, total)
        return self.forward(features)

    # -- sizes ----------------------------------------------------------------------

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
        for name in self.optional_buffers:
            value = state_dict.get(prefix + name)
            if value is None:
                setattr(self, name, None)
            elif getattr(self, name) is None or getattr(self, name).shape != value.shape:
                setattr(self, name, torch.empty_like(value, device=self.weight.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
