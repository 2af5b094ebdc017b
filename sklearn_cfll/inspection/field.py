"""FieldDisplay: truth, prediction, error and standard deviation of fields, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._field_panels import draw_images, draw_lines
from ._field_selection import as_list, check_fields, check_index, select_fields
from ._support import axes_grid, import_pyplot

__all__ = ["FieldDisplay"]


class FieldDisplay:
    """Fields and their predictions, one row each.

    Fields on one axis are drawn as lines: truth and prediction with its band, and the error. Fields
    on two axes are drawn as images, with the first axis to the right and the second upwards: truth
    and prediction share a colour scale, that of the error (prediction minus truth) is centred at
    zero, and that of the standard deviation starts at zero.

    Parameters
    ----------
    y_true, y_pred : array-like of shape (n_rows, grid_1) or (n_rows, grid_1, grid_2)
        All of them are drawn; :meth:`from_predictions` selects some.
    y_std : array-like of the same shape, default=None
        Predictive standard deviations.
    labels : list of str, default=None
        A name for each row, shown if there are several.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (n_rows, n_panels)
        The panels are prediction and error for lines; truth, prediction, error and, if given,
        standard deviation for images.
    figure_ : matplotlib Figure

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cfll.inspection import FieldDisplay
    >>> y = np.zeros((2, 16, 16))
    >>> FieldDisplay(y, y + 0.1).panels
    ('truth', 'prediction', 'error')
    """

    def __init__(
        self, y_true: Any, y_pred: Any, y_std: Any = None, labels: list[str] | None = None
    ) -> None:
        self.y_true, self.y_pred, self.y_std = check_fields(y_true, y_pred, y_std)
        if self.y_true.ndim not in (2, 3):
            raise ValueError(
                "`y_true` must have shape (n_rows, grid_1) or (n_rows, grid_1, grid_2), got "
                f"{self.y_true.shape}. `from_predictions` selects channels and planes."
            )
        if labels is not None and len(labels) != len(self.y_true):
            raise ValueError(f"`labels` must name {len(self.y_true)} rows, got {len(labels)}.")
        self.labels = labels

    @property
    def panels(self) -> tuple[str, ...]:
        """Titles of the columns."""
        if self.y_true.ndim == 2:
            return ("prediction", "error")
        return ("truth", "prediction", "error", *(() if self.y_std is None else ("std",)))

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        sample: int | Sequence[int] = 0,
        return_std: bool = True,
        **options: Any,
    ) -> FieldDisplay:
        """Predict some samples and draw them.

        Parameters
        ----------
        estimator : fitted regressor of fields
        X, y : array-like of shape (n_samples, ...)
        sample : int or sequence of int, default=0
            The samples to predict, one row each.
        return_std : bool, default=True
            Whether to draw the predictive standard deviation too.
        **options
            As in :meth:`from_predictions`.

        Returns
        -------
        FieldDisplay
        """
        import_pyplot(cls.__name__)
        X, y, chosen = np.asarray(X), np.asarray(y), as_list(sample)
        if len(X) != len(y):
            raise ValueError(f"X and y must have the same length, got {len(X)} and {len(y)}.")
        for i in chosen:
            check_index("sample", i, len(X))
        if hasattr(estimator, "predict_proba"):
            raise TypeError(
                f"`estimator` must be a regressor of fields, got {type(estimator).__name__}."
            )
        predicted = estimator.predict(X[chosen], **({"return_std": True} if return_std else {}))
        parts = predicted if return_std else (predicted,)
        options.setdefault("labels", [f"sample {i}" for i in chosen])
        return cls.from_predictions(y[chosen], *parts, sample=range(len(chosen)), **options)

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_pred: Any,
        y_std: Any = None,
        *,
        sample: int | Sequence[int] = 0,
        channel: int = 0,
        channels: str | None = None,
        plane: tuple[int, int] | None = None,
        labels: list[str] | None = None,
        ax: Any = None,
        **options: Any,
    ) -> FieldDisplay:
        """Draw selected fields.

        Parameters
        ----------
        y_true, y_pred, y_std : array-like of shape (n_samples, grid...)
            With an axis of channels as stated by ``channels``; ``y_std`` may be None.
        sample : int or sequence of int, default=0
            Samples to draw, one row each.
        channel : int, default=0
            Channel to draw, if there are several.
        channels : {"first", "last"} or None, default=None
            Position of the channels: None for (n, grid...), "first" for
            (n, channels, grid...), "last" for (n, grid..., channels).
        plane : tuple of two int, default=None
            The plane to draw for fields on three axes: axis of the grid (0, 1 or 2) and index on
            it.
        labels
            As in the constructor; default the sample numbers.
        ax, **options
            As in :meth:`plot`.

        Returns
        -------
        FieldDisplay
        """
        import_pyplot(cls.__name__)
        samples = as_list(sample)
        truth, prediction, std = (
            None if part is None else select_fields(part, samples, channel, channels, plane)
            for part in check_fields(y_true, y_pred, y_std)
        )
        labels = [f"sample {i}" for i in samples] if labels is None else labels
        return cls(truth, prediction, std, labels).plot(ax=ax, **options)

    def plot(
        self,
        *,
        ax: Any = None,
        extent: Sequence[float] | None = None,
        n_std: float = 2.0,
        cmap: str = "viridis",
    ) -> FieldDisplay:
        """Draw the fields.

        Parameters
        ----------
        ax : array-like of matplotlib Axes of shape (n_rows, n_panels), default=None
            With one row, the shape may be (n_panels,). If None, a new figure is created.
        extent : sequence of float, default=None
            Ends of the grid: (left, right) for lines, (left, right, bottom, top) for images.
            Default the indices of the points.
        n_std : float, default=2
            Half width of the band around lines, in standard deviations.
        cmap : str, default="viridis"
            Colour map of truth and prediction.

        Returns
        -------
        self
        """
        n_rows, lines = len(self.y_true), self.y_true.ndim == 2
        shape, size = (n_rows, len(self.panels)), (4.8, 2.2) if lines else (3.3, 2.8)
        self.axes_ = axes_grid(type(self).__name__, ax, shape, size, sharex=True, sharey=not lines)
        self.figure_ = self.axes_[0, 0].figure
        for i, axes in enumerate(self.axes_):
            std = None if self.y_std is None else self.y_std[i]
            row = (axes, self.y_true[i], self.y_pred[i], std, extent)
            if lines:
                draw_lines(*row, n_std, legend=i == 0)
            else:
                draw_images(*row, cmap)
            if self.labels is not None and n_rows > 1:
                axes[0].set_ylabel(self.labels[i])
        for axis, title in zip(self.axes_[0], self.panels, strict=True):
            axis.set_title(title)
        return self
