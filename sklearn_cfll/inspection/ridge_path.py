"""RidgePathDisplay: how the ridge of the final solve was chosen."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._support import axes_or_new, fitted_attribute

__all__ = ["RidgePathDisplay"]


class RidgePathDisplay:
    """Validation error for each ridge tried in the final solve, and the chosen ridge.

    If the chosen ridge is at either end of the path, the best ridge may lie beyond it.

    Parameters
    ----------
    ridges : array-like of shape (n_ridges,)
        Relative to the mean feature power, as the parameter ``ridge``.
    errors : array-like of shape (n_ridges,)
        Mean squared error on the validation set, over all targets.
    chosen : float, default=None
        Ridge of the final solve; default the one with the smallest error.

    Attributes
    ----------
    line_ : matplotlib Line2D
    chosen_marker_ : matplotlib Line2D
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn_cfll.inspection import RidgePathDisplay
    >>> RidgePathDisplay([0.1, 1.0, 10.0], [0.5, 0.3, 0.4]).chosen
    1.0
    """

    def __init__(self, ridges: Any, errors: Any, chosen: float | None = None) -> None:
        self.ridges, self.errors = np.asarray(ridges, float), np.asarray(errors, float)
        if self.ridges.ndim != 1 or self.errors.shape != self.ridges.shape or not self.ridges.size:
            raise ValueError(
                "`ridges` and `errors` must both have shape (n_ridges,), got "
                f"{self.ridges.shape} and {self.errors.shape}."
            )
        self.chosen = float(self.ridges[self.errors.argmin()] if chosen is None else chosen)

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> RidgePathDisplay:
        """Draw the path of a fitted estimator.

        Parameters
        ----------
        estimator : CFLLRegressor or CFLLClassifier
            Fitted with ``refit_last_layer=True`` and a validation set. For a pipeline or a search,
            pass its last step, ``pipeline[-1]``.
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        RidgePathDisplay
        """
        remedy = (
            "the ridge of the final solve is chosen from a path if refit_last_layer=True and "
            "rows are held out (early_stopping=True, or `X_val` and `y_val` at fit)."
        )
        path = fitted_attribute(cls.__name__, estimator, "ridge_path_", remedy)
        return cls(path["ridge"], path["error"], estimator.final_ridge_).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> RidgePathDisplay:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        self
        """
        ax = axes_or_new(type(self).__name__, ax)
        order = self.ridges.argsort()
        ridges, errors = self.ridges[order], self.errors[order]
        (self.line_,) = ax.plot(ridges, errors, ".-", label="ridges tried")
        height = np.interp(np.log(self.chosen), np.log(ridges), errors)
        (self.chosen_marker_,) = ax.plot(
            self.chosen, height, "o", color="tab:orange", label=f"chosen: {self.chosen:.2g}"
        )
        ax.set(xscale="log", yscale="log", xlabel="ridge", ylabel="mean squared error, held-out")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self
