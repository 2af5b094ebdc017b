"""One row of a FieldDisplay: lines for fields on one axis, images for those on two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["draw_images", "draw_lines"]

Field = np.ndarray


def draw_lines(
    axes: Any,
    truth: Field,
    prediction: Field,
    std: Field | None,
    extent: Sequence[float] | None,
    n_std: float,
    *,
    legend: bool,
) -> None:
    """Truth and prediction on the first axes, the error on the second, the band on both."""
    left, right = (0, len(truth) - 1) if extent is None else extent
    x, error = np.linspace(left, right, len(truth)), prediction - truth
    axes[0].plot(x, truth, color="0.2", label="truth")
    axes[0].plot(x, prediction, "--", color="tab:orange", label="prediction")
    axes[1].plot(x, error, color="tab:red", label="prediction - truth")
    if std is not None:
        reach, style = n_std * std, {"alpha": 0.25, "linewidth": 0, "color": "tab:orange"}
        label = f"± {n_std:g} std"
        axes[0].fill_between(x, prediction - reach, prediction + reach, label=label, **style)
        axes[1].fill_between(x, -reach, reach, label=label, **style)
    for axis in axes:
        axis.margins(x=0)
        if legend:
            axis.legend(fontsize="small")


def draw_images(
    axes: Any,
    truth: Field,
    prediction: Field,
    std: Field | None,
    extent: Sequence[float] | None,
    cmap: str,
) -> None:
    """Truth and prediction on one colour scale, error and standard deviation on separate ones."""
    error = prediction - truth
    both, largest = np.stack([truth, prediction]), np.nanmax(np.abs(error))
    shared = {"vmin": np.nanmin(both), "vmax": np.nanmax(both), "cmap": cmap}
    _image(axes[0], truth, extent, **shared)
    _colour_bar(_image(axes[1], prediction, extent, **shared))
    _colour_bar(_image(axes[2], error, extent, vmin=-largest, vmax=largest, cmap="RdBu_r"))
    if std is not None:
        _colour_bar(_image(axes[3], std, extent, vmin=0.0, vmax=None, cmap="viridis"))


def _image(axis: Any, field: Field, extent: Sequence[float] | None, **scale: Any) -> Any:
    return axis.imshow(field.T, origin="lower", extent=extent, **scale)


def _colour_bar(image: Any) -> None:
    beside = image.axes.inset_axes((1.04, 0.0, 0.05, 1.0))  # as high as the image, in any layout
    bar = image.axes.figure.colorbar(image, cax=beside)
    bar.formatter.set_powerlimits((-3, 4))
