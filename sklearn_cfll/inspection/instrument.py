"""InstrumentDisplay: a dose-response curve with its band, beside the average effect."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ._support import axes_or_new

__all__ = ["InstrumentDisplay"]

POINTS = 60
TAIL = 0.02  # of the treatment, beyond which the curve is not drawn


class InstrumentDisplay:
    """Outcome as a function of one treatment, with its band and a line of the average effect.

    The line has the slope of the partially linear effect and meets the curve at the median dose. A
    curve that leaves it within its band is evidence of a nonlinear effect.

    Parameters
    ----------
    x : array-like of shape (n_points,)
        Doses, in ascending order.
    curve, lower, upper : array-like of shape (n_points,)
        The structural function and the ends of its band.
    effect, std_error : float, default=None
        Average effect per unit of the treatment and its standard error. Without them no line is
        drawn.
    x_name, y_name : str
        Labels of the axes.
    coverage : float, default=0.9
        Nominal coverage probability of the band, for the legend.
    simultaneous : bool, default=False
        Whether that is of all doses at once, for the legend.

    Attributes
    ----------
    curve_ : matplotlib Line2D
    band_ : matplotlib PolyCollection
    effect_line_ : matplotlib Line2D or None
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn_cfll.inspection import InstrumentDisplay
    >>> display = InstrumentDisplay([0, 1, 2], [0, 1, 3], [-1, 0, 2], [1, 2, 4], effect=1.5)
    >>> display.line()
    array([-0.5,  1. ,  2.5])
    """

    def __init__(
        self,
        x: Any,
        curve: Any,
        lower: Any,
        upper: Any,
        effect: float | None = None,
        std_error: float | None = None,
        *,
        x_name: str = "treatment",
        y_name: str = "outcome",
        coverage: float = 0.9,
        simultaneous: bool = False,
    ) -> None:
        given = {"x": x, "curve": curve, "lower": lower, "upper": upper}
        arrays = {name: np.asarray(value, float) for name, value in given.items()}
        for name, array in arrays.items():
            if array.ndim != 1 or array.shape != arrays["x"].shape:
                raise ValueError(
                    f"`{name}` must have shape {arrays['x'].shape}, as `x`, got {array.shape}."
                )
        if (np.diff(arrays["x"]) < 0).any():
            raise ValueError("`x` must be in ascending order.")
        self.x, self.curve = arrays["x"], arrays["curve"]
        self.lower, self.upper = arrays["lower"], arrays["upper"]
        self.effect, self.std_error = effect, std_error
        self.x_name, self.y_name = x_name, y_name
        self.coverage, self.simultaneous = coverage, simultaneous

    def line(self) -> np.ndarray:
        """Values of the line of the average effect at the doses; shape (n_points,)."""
        if self.effect is None:
            raise ValueError("`effect` is None: there is no line.")
        middle = len(self.x) // 2
        line: np.ndarray = self.curve[middle] + self.effect * (self.x - self.x[middle])
        return line

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        C: Any = None,
        *,
        treatment: int = 0,
        coverage: float = 0.9,
        simultaneous: bool = False,
        y_name: str = "outcome",
        ax: Any = None,
    ) -> InstrumentDisplay:
        """Draw the curve of one treatment over the range of the sample.

        Parameters
        ----------
        estimator : CFLLIVRegressor
            Fitted.
        X : array-like or frame of shape (n_samples, n_treatments)
            Treatments of the sample. The curve is drawn from the 2nd to the 98th percentile of one
            column; the others are set to their medians.
        C : array-like or frame of shape (n_samples, n_confounders), default=None
            Controls, required if the estimator was fitted with them. All are set to their medians;
            pass one row for the curve at that row.
        treatment : int, default=0
            The column of X.
        coverage : float, default=0.9
            Nominal coverage probability of the band.
        simultaneous : bool, default=False
            Whether the band is to contain the whole curve, rather than each of its points.
        y_name : str, default="outcome"
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        InstrumentDisplay
        """
        check_is_fitted(estimator)
        values = np.asarray(X, dtype=float)
        if values.ndim != 2 or not 0 <= treatment < values.shape[1]:
            raise ValueError(
                f"`treatment` must be a column of X, which has shape {values.shape}, got "
                f"{treatment!r}."
            )
        low, middle, high = np.quantile(values[:, treatment], [TAIL, 0.5, 1 - TAIL])
        half = POINTS // 2
        doses = np.concatenate([np.linspace(low, middle, half + 1)[:-1], [middle]])
        doses = np.concatenate([doses, np.linspace(middle, high, half + 1)[1:]])
        rows = np.repeat(np.median(values, axis=0)[None], len(doses), axis=0)
        rows[:, treatment] = doses
        X, C = _like(X, rows), _medians(C, len(doses))
        curve = estimator.predict(X, C)
        lower, upper = estimator.predict_interval(
            X, C, coverage=coverage, simultaneous=simultaneous
        )
        effect, error = None, None
        if getattr(estimator, "effect_", None) is not None:
            effect = float(estimator.effect_.estimate[treatment])
            error = float(estimator.effect_.std_error[treatment])
        names = [str(name) for name in getattr(X, "columns", ())]
        x_name = names[treatment] if names else f"treatment {treatment}"
        return cls(
            doses, curve, lower, upper, effect, error,
            x_name=x_name, y_name=y_name, coverage=coverage, simultaneous=simultaneous,
        ).plot(ax=ax)  # fmt: skip

    def plot(self, *, ax: Any = None) -> InstrumentDisplay:
        """Draw the curve, its band and the line of the average effect.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        self
        """
        ax = axes_or_new(type(self).__name__, ax)
        label = f"{self.coverage:.0%} {'simultaneous ' * self.simultaneous}band"
        self.band_ = ax.fill_between(
            self.x, self.lower, self.upper, alpha=0.25, linewidth=0, label=label
        )
        (self.curve_,) = ax.plot(self.x, self.curve, label="structural function")
        self.effect_line_ = None
        if self.effect is not None and np.isfinite(self.effect):
            label = f"average effect {self.effect:.3g}"
            label += "" if self.std_error is None else f" (standard error {self.std_error:.2g})"
            (self.effect_line_,) = ax.plot(self.x, self.line(), "--", color="0.3", label=label)
        ax.set(xlabel=self.x_name, ylabel=self.y_name)
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _medians(C: Any, n: int) -> Any:
    """The median of each control, repeated n times; None without controls."""
    if C is None:
        return None
    values = np.asarray(C, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    return _like(C, np.repeat(np.median(values, axis=0)[None], n, axis=0))


def _like(given: Any, rows: np.ndarray) -> Any:
    """Rows as a frame with the columns of another, or as the array that they are."""
    names = getattr(given, "columns", None)
    return rows if names is None else type(given)({n: rows[:, j] for j, n in enumerate(names)})
