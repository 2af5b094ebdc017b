"""Shared by all displays: import of matplotlib, and attributes of a fitted estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

__all__ = ["axes_grid", "axes_or_new", "fitted_attribute", "import_pyplot"]


def import_pyplot(display: str) -> Any:
    """``matplotlib.pyplot``, or an error that says how to install it."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{display} needs matplotlib: pip install sklearn-cfll[plot]") from error
    return plt


def axes_or_new(display: str, ax: Any) -> Any:
    """The axes to draw on; those of a new figure if None."""
    plt = import_pyplot(display)
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def axes_grid(
    display: str, ax: Any, shape: tuple[int, int], panel_size: tuple[float, float], **options: Any
) -> np.ndarray:
    """Axes (rows, panels): those given, or those of a new figure of suitable size."""
    plt = import_pyplot(display)
    if ax is None:
        size = (panel_size[0] * shape[1], panel_size[1] * shape[0])
        return plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", **options)[1]
    axes = np.array(ax, dtype=object)
    if axes.size != shape[0] * shape[1]:
        raise ValueError(f"`ax` must hold axes of shape {shape} (rows, panels), got {axes.shape}.")
    return axes.reshape(shape)


def fitted_attribute(display: str, estimator: Any, name: str, remedy: str) -> Any:
    """An attribute that only some fits set, or an error that says which ones do."""
    check_is_fitted(estimator)
    value = getattr(estimator, name, None)
    if value is None:
        raise ValueError(
            f"{display} needs an estimator with `{name}`, but this {type(estimator).__name__} "
            f"has none: {remedy}"
        )
    return value
