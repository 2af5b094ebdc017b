"""FNOBackbone: the recipe of a Fourier neural operator without its last map."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from .._compat import Interval, StrOptions
from .._validation import check_parameters, positive_integers
from ..columns.scaling import Standardize

__all__ = ["FNOBackbone"]


class ChannelStandardize(Standardize):
    """Centre and scale each channel of (n, channels, grid...) over all training points."""

    channel_axis: int | None

    def __init__(self, n_channels: int, channel_axis: int | None) -> None:
        super().__init__(n_channels)
        self.channel_axis = channel_axis  # within one sample of the user's X; None: no such axis

    @torch.no_grad()
    def adapt_to(self, mean: Tensor, std: Tensor) -> None:
        """Pool the statistics of single entries of X over the grid."""
        if self.channel_axis is None:
            mean, std = mean[None], std[None]
        else:
            mean, std = (part.movedim(self.channel_axis, 0) for part in (mean, std))
        mean, std = mean.flatten(1), std.flatten(1)
        pooled = mean.mean(1)
        variance = (std.square() + (mean - pooled[:, None]).square()).mean(1)
        super().adapt_to(pooled, variance.sqrt())

    def forward(self, inputs: Tensor) -> Tensor:
        shape = (-1, *[1] * (inputs.ndim - 2))
        return (inputs - self.mean.reshape(shape)) / self.scale.reshape(shape)


class FieldFeatures(nn.Module):
    """Map fields (n, ...) in the user's layout to features (n, grid..., d).

    Parameters
    ----------
    operator : torch.nn.Module
        Maps (n, channels, grid...) to (n, d, grid...).
    n_channels : int
        Channels of the input, coordinates not counted.
    n_dim : int
        Axes of the grid.
    channel_axis : int or None
        Axis of the channels within a sample; None if samples have no such axis.
    coordinates : bool
        Append each point's coordinates as ``n_dim`` channels.
    """

    def __init__(
        self,
        operator: nn.Module,
        n_channels: int,
        n_dim: int,
        channel_axis: int | None,
        coordinates: bool,
    ) -> None:
        super().__init__()
        self.standardize = ChannelStandardize(n_channels, channel_axis)
        self.operator = operator
        self.n_channels, self.n_dim = n_channels, n_dim
        self.channel_axis, self.coordinates = channel_axis, coordinates
        self.channels_first = channel_axis != -1  # layout of targets that is tried first
        self.register_state_dict_post_hook(_drop_metadata)

    def forward(self, inputs: Tensor) -> Tensor:
        fields = self._channels_first(inputs)
        fields = self.standardize(fields)
        if self.coordinates:
            fields = torch.cat([fields, unit_grid(fields)], 1)
        return self.operator(fields).movedim(1, -1)

    def _channels_first(self, inputs: Tensor) -> Tensor:
        """Inputs as (n, channels, grid...); the grid may differ from that at fit."""
        if self.channel_axis is None:
            fields = inputs.unsqueeze(1)
        elif self.channel_axis == -1:
            fields = inputs.movedim(-1, 1)
        else:
            fields = inputs
        if fields.ndim != 2 + self.n_dim or fields.shape[1] != self.n_channels:
            expected = _layout(self.channel_axis, self.n_dim, self.n_channels)
            raise ValueError(f"X must have shape {expected}, got {tuple(inputs.shape)}.")
        return fields


def unit_grid(fields: Tensor) -> Tensor:
    """Coordinates i / size in [0, 1) of every point; (n, n_dim, grid...)."""
    sizes = fields.shape[2:]
    axes = [torch.arange(size, device=fields.device, dtype=fields.dtype) / size for size in sizes]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(fields), *grid.shape)


def _drop_metadata(
    module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    # neuraloperator's models add their constructor's arguments under this key, which torch's
    # strict loading of a module that holds such a model then refuses.
    state.pop("_metadata", None)


class FNOBackbone(BaseEstimator):
    """Recipe of a Fourier neural operator; its last pointwise map is the closed-form layer.

    The network is ``neuralop.models.FNO`` of the package neuraloperator without the last linear map
    of its projection. Features have shape (n, grid..., d), and all points of the grid share the
    last layer that is solved for. A model trained on one grid predicts on any other. Channels are
    standardised inside, by statistics of the training samples.

    Parameters
    ----------
    n_modes : int or tuple of int, default=16
        Fourier modes kept along each axis, counting positive and negative frequencies (as in
        neuraloperator: 16 modes keep the frequencies 0 to 8 of a real field's last axis). An
        integer applies to all axes. It must not exceed the size of the training grid.
    hidden_channels : int, default=32
        Width of the Fourier layers.
    n_layers : int, default=4
        Number of Fourier layers.
    lifting_channel_ratio : float, default=2.0
        Hidden width of the pointwise network before the Fourier layers, divided by
        ``hidden_channels``.
    projection_channel_ratio : float, default=2.0
        Number of features d, divided by ``hidden_channels``.
    channels : {"first", "last"} or None, default=None
        Position of the channels in X: None for X of shape (n, grid...), "first" for
        (n, channels, grid...), "last" for (n, grid..., channels). A scalar parameter of a
        sample (a viscosity) is a channel that is constant on the grid.
    positional_embedding : {"grid"} or None, default="grid"
        "grid" appends the coordinates of each point, in [0, 1), as channels.
    norm : {"group_norm", "instance_norm"} or None, default=None
        Normalisation in the Fourier layers.
    domain_padding : float or None, default=None
        Pad each axis by this share of its size, for fields that are not periodic.
    options : dict, default=None
        Further keyword arguments of ``neuralop.models.FNO``, e.g. ``{"factorization":
        "tucker", "rank": 0.1}``.

    Notes
    -----
    neuraloperator computes Fourier layers in single precision even if the rest is double.

    References
    ----------
    Z. Li et al., "Fourier neural operator for parametric partial differential equations",
    International Conference on Learning Representations (2021), arXiv 2010.08895.

    Examples
    --------
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.backbones import FNOBackbone
    >>> model = CFLLRegressor(FNOBackbone(n_modes=(12, 12)), batch_size=20)
    >>> model.set_params(backbone__hidden_channels=24).backbone.hidden_channels
    24
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_modes": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "hidden_channels": [Interval(Integral, 1, None, closed="left")],
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "lifting_channel_ratio": [Interval(Real, 0, None, closed="neither")],
        "projection_channel_ratio": [Interval(Real, 0, None, closed="neither")],
        "channels": [StrOptions({"first", "last"}), None],
        "positional_embedding": [StrOptions({"grid"}), None],
        "norm": [StrOptions({"group_norm", "instance_norm"}), None],
        "domain_padding": [Interval(Real, 0, None, closed="left"), None],
        "options": [dict, None],
    }

    def __init__(
        self,
        n_modes: int | Sequence[int] = 16,
        hidden_channels: int = 32,
        n_layers: int = 4,
        *,
        lifting_channel_ratio: float = 2.0,
        projection_channel_ratio: float = 2.0,
        channels: str | None = None,
        positional_embedding: str | None = "grid",
        norm: str | None = None,
        domain_padding: float | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.n_modes = n_modes
        self.hidden_channels = hidden_channels
        self.n_layers = n_layers
        self.lifting_channel_ratio = lifting_channel_ratio
        self.projection_channel_ratio = projection_channel_ratio
        self.channels = channels
        self.positional_embedding = positional_embedding
        self.norm = norm
        self.domain_padding = domain_padding
        self.options = options

    def build(self, input_shape: tuple[int, ...]) -> nn.Module:
        """Build a new module for samples of this shape, initialised from torch's generator.

        Returns
        -------
        torch.nn.Module
            Maps (n, \\*input_shape) to features (n, grid..., d).
        """
        check_parameters(self)
        fno = _import_fno()
        self._check_options(fno)
        channel_axis, n_channels, grid = self._read_shape(input_shape)
        coordinates = self.positional_embedding == "grid"
        network = fno(
            n_modes=self._modes(len(grid)),
            in_channels=n_channels + len(grid) * coordinates,
            out_channels=1,
            hidden_channels=self.hidden_channels,
            n_layers=self.n_layers,
            lifting_channel_ratio=self.lifting_channel_ratio,
            projection_channel_ratio=self.projection_channel_ratio,
            positional_embedding=None,  # that of FNO keeps the grid of one device and dtype
            norm=self.norm,
            domain_padding=self.domain_padding,
            **dict(self.options or {}),
        )
        projection = network.projection
        projection.out_channels = projection.fcs[-1].in_channels  # it reshapes its output to this
        projection.fcs[-1] = nn.Identity()
        return FieldFeatures(network, n_channels, len(grid), channel_axis, coordinates)

    def _check_options(self, fno: Any) -> None:
        """Check what depends on two parameters, or on the installed neuraloperator."""
        for name in ("lifting_channel_ratio", "projection_channel_ratio"):
            if self.hidden_channels * getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` must leave at least one channel, got {getattr(self, name)!r} with "
                    f"hidden_channels={self.hidden_channels}."
                )
        known = inspect.signature(fno).parameters
        own = {"in_channels", "out_channels", *self.get_params(deep=False)}
        for name in self.options or {}:
            if name in own:
                raise ValueError(
                    f"`options` contains {name!r}, which FNOBackbone sets itself: pass it as a "
                    "parameter of FNOBackbone, if it is one."
                )
            if name not in known:
                raise ValueError(
                    f"`options` contains {name!r}, which is not an argument of "
                    f"neuralop.models.FNO: it takes {sorted(set(known) - own)}."
                )

    def _read_shape(self, input_shape: Any) -> tuple[int | None, int, tuple[int, ...]]:
        """Axis of the channels, their number, and the grid of a sample of this shape."""
        if isinstance(input_shape, dict):
            raise ValueError(
                f"FNOBackbone takes one field per sample, but X has several inputs: {input_shape}. "
                "Stack them as channels, or use a backbone whose forward takes them by name."
            )
        shape = tuple(input_shape)
        if not 1 <= len(positive_integers(self.n_modes) or ()) <= 3:
            raise ValueError(
                "`n_modes` must hold positive integers, one for each of the one to three axes of "
                f"the grid, got {self.n_modes!r}."
            )
        wrong = self._misfit(self.channels, shape)
        if wrong is None:
            return _cut(self.channels, shape)
        others = [each for each in (None, "first", "last") if each != self.channels]
        fits = [each for each in others if self._misfit(each, shape) is None]
        message = f"With channels={self.channels!r} and n_modes={self.n_modes!r}, {wrong}"
        if fits:
            readings = " and ".join(f"channels={each!r} ({_reading(each, shape)})" for each in fits)
            message += f" `channels` states where X has its channels, if any: {readings} "
            message += "would fit." if len(fits) == 1 else "would both fit."
        raise ValueError(message)

    def _misfit(self, channels: str | None, shape: tuple[int, ...]) -> str | None:
        """Why samples of this shape cannot have their channels there; None if they can."""
        modes: Any = self.n_modes
        n_dim = None if isinstance(modes, Integral) else len(modes)
        axis, _, grid = _cut(channels, shape)
        if len(grid) not in (1, 2, 3) or n_dim not in (None, len(grid)) or len(shape) == 0:
            dimensions = (1, 2, 3) if n_dim is None else (n_dim,)
            expected = " or ".join(_layout(axis, n) for n in dimensions)
            return (
                f"X must have shape {expected}, got samples of shape {shape}. `n_modes` has one "
                "entry per axis of the grid."
            )
        if any(mode > size for mode, size in zip(self._modes(len(grid)), grid, strict=True)):
            return (
                f"samples of shape {shape} are {_reading(channels, shape)}. `n_modes` must be at "
                f"most the grid's size along each axis, got {modes!r} for a grid of {grid}: modes "
                "above it would stay untrained, and degrade predictions on a finer grid."
            )
        return None

    def _modes(self, n_dim: int) -> tuple[int, ...]:
        """Modes along each axis of the grid."""
        modes = positive_integers(self.n_modes)
        assert modes is not None
        return modes * n_dim if isinstance(self.n_modes, Integral) else modes


def _cut(channels: str | None, shape: tuple[int, ...]) -> tuple[int | None, int, tuple[int, ...]]:
    """Axis of the channels, their number, and the grid of a sample of this shape."""
    if channels is None or not shape:
        axis = {None: None, "first": 0, "last": -1}[channels]
        return axis, 1, shape
    return (0, shape[0], shape[1:]) if channels == "first" else (-1, shape[-1], shape[:-1])


def _reading(channels: str | None, shape: tuple[int, ...]) -> str:
    """Interpretation of a sample, in words."""
    axis, n_channels, grid = _cut(channels, shape)
    if axis is None:
        return f"one field on a grid of {grid}"
    return f"{n_channels} channel{'s' * (n_channels != 1)} on a grid of {grid}"


def _layout(channel_axis: int | None, n_dim: int, n_channels: int | None = None) -> str:
    """The shape of X in words: "(n, channels, grid_1, grid_2)"."""
    axes = [f"grid_{i + 1}" for i in range(n_dim)]
    channels = "channels" if n_channels is None else str(n_channels)
    if channel_axis is not None:
        axes.insert(0 if channel_axis == 0 else n_dim, channels)
    return f"(n, {', '.join(axes)})"


def _import_fno() -> Any:
    """neuraloperator's FNO, imported only when needed: the import takes seconds."""
    try:
        with warnings.catch_warnings():  # importing it changes the global warning filters
            from neuralop.models import FNO
    except ImportError as error:
        raise ImportError(
            "FNOBackbone needs the package neuraloperator: pip install sklearn-cfll[operators]"
        ) from error
    return FNO
