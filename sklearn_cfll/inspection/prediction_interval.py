"""PredictionIntervalDisplay: predictions, their intervals and the observations."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import norm

from ..final_solve.intervals import check_coverage
from ._support import axes_or_new

__all__ = ["PredictionIntervalDisplay"]


class PredictionIntervalDisplay:
    """Prediction intervals along one variable: a feature, a dose, a time, or the rows' order.

    A band joins neighbours along ``x``, which is appropriate if rows differ only in ``x`` (one
    feature on a grid, the others fixed). Otherwise neighbours are unrelated and a band would be a
    zigzag, so that each row gets a bar.

    Parameters
    ----------
    x : array-like of shape (n_samples,)
    y_pred, lower, upper : array-like of shape (n_samples,)
        Predictions and the ends of their intervals.
    y_true : array-like of shape (n_samples,), default=None
        Observations, drawn as points; the legend gives the share inside the intervals.
    kind : {"band", "bars"}, default="band"
        Whether to join neighbours along ``x``.

    Attributes
    ----------
    line_ : matplotlib Line2D
        Predictions.
    band_ : matplotlib PolyCollection, or LineCollection of bars
    points_ : matplotlib Line2D or None
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn_cfll.inspection import PredictionIntervalDisplay
    >>> display = PredictionIntervalDisplay([0, 1], [2, 3], [1, 2], [3, 4], y_true=[2.5, 9])
    >>> display.coverage
    0.5
    """

    def __init__(
        self,
        x: Any,
        y_pred: Any,
        lower: Any,
        upper: Any,
        y_true: Any = None,
        *,
        kind: str = "band",
    ) -> None:
        if kind not in ("band", "bars"):
            raise ValueError(f'`kind` must be "band" or "bars", got {kind!r}.')
        self.kind = kind
        given = {"x": x, "y_pred": y_pred, "lower": lower, "upper": upper, "y_true": y_true}
        arrays = {k: np.asarray(v, float) for k, v in given.items() if v is not None}
        expected = arrays["x"].shape
        for name, array in arrays.items():
            if array.ndim != 1 or array.shape != expected:
                wanted = "(n_samples,)" if array.ndim != 1 else f"{expected}, as `x`"
                raise ValueError(
                    f"`{name}` must have shape {wanted}, got {array.shape}. For several targets, "
                    "pass one column to `from_predictions`."
                )
        if (arrays["lower"] > arrays["upper"]).any():
            raise ValueError("`lower` must not be above `upper`.")
        self.x, self.y_pred = arrays["x"], arrays["y_pred"]
        self.lower, self.upper = arrays["lower"], arrays["upper"]
        self.y_true = arrays.get("y_true")

    @property
    def coverage(self) -> float | None:
        """Share of the observations inside their interval."""
        if self.y_true is None:
            return None
        return float(np.mean((self.y_true >= self.lower) & (self.y_true <= self.upper)))

    @classmethod
    def from_predictions(
        cls,
        x: Any,
        y_pred: Any,
        lower: Any,
        upper: Any,
        y_true: Any = None,
        *,
        kind: str = "band",
        ax: Any = None,
    ) -> PredictionIntervalDisplay:
        """Draw intervals from any source: a conformal method, a bootstrap, a dose-response.

        Parameters
        ----------
        x, y_pred, lower, upper, y_true, kind
            As in the constructor.
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        PredictionIntervalDisplay
        """
        return cls(x, y_pred, lower, upper, y_true, kind=kind).plot(ax=ax)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        feature: int | str | None = None,
        coverage: float = 0.9,
        ax: Any = None,
    ) -> PredictionIntervalDisplay:
        """Draw the estimator's own intervals, or central normal ones.

        The latter, ``prediction ± z · std``, are used if it has no ``predict_interval``.

        Parameters
        ----------
        estimator : regressor with ``predict_interval``, or whose ``predict`` takes ``return_std``
        X : array-like or frame of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None
            Observations.
        feature : int or str, default=None
            Column of X along the horizontal axis; it may be a name if X is a frame. Intervals are a
            band if all other columns are constant, otherwise one bar per row. None selects the
            column that is not constant; if there are several, rows are sorted by their prediction.
        coverage : float, default=0.9
            Nominal coverage probability of the intervals.
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        PredictionIntervalDisplay
        """
        check_coverage(coverage)
        columns = _columns(X)
        varying = np.flatnonzero((columns != columns[:1]).any(axis=0))
        if feature is None and len(varying) <= 1:
            feature = int(varying[0]) if len(varying) else 0
        x, name = (None, "") if feature is None else _column(X, columns, feature)
        if hasattr(estimator, "predict_interval"):
            y_pred, ends = estimator.predict(X), estimator.predict_interval(X, coverage=coverage)
        else:
            y_pred, std = _with_std(estimator, X)
            reach = norm.ppf(0.5 + coverage / 2) * std
            ends = (y_pred - reach, y_pred + reach)
        lower, upper = ends
        kind = "band" if len(varying) <= 1 else "bars"
        if x is None:
            x, name = np.argsort(np.argsort(y_pred, kind="stable")), "row, sorted by prediction"
        display = cls(x, y_pred, lower, upper, y, kind=kind).plot(ax=ax)
        display.band_.set_label(f"{coverage:.0%} interval")
        display.ax_.set(xlabel=name)
        display.ax_.legend()
        return display

    def plot(self, *, ax: Any = None) -> PredictionIntervalDisplay:
        """Draw the intervals, the predictions and the observations.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        self
        """
        ax = axes_or_new(type(self).__name__, ax)
        order = self.x.argsort(kind="stable")
        x = self.x[order]
        ends = self.lower[order], self.upper[order]
        style: dict[str, Any] = {"alpha": 0.3, "label": "interval"}
        if self.kind == "band":
            self.band_ = ax.fill_between(x, *ends, linewidth=0, **style)
            marks: dict[str, Any] = {}
        else:
            self.band_ = ax.vlines(x, *ends, linewidth=2, color="C0", **style)
            marks = {"linestyle": "none", "marker": "_", "color": "C0"}
        (self.line_,) = ax.plot(x, self.y_pred[order], label="prediction", **marks)
        self.points_ = None
        if self.y_true is not None:
            label = f"observed, {self.coverage:.0%} inside"
            (self.points_,) = ax.plot(
                x, self.y_true[order], ".", color="0.3", markersize=4, label=label
            )
        ax.set(xlabel="x", ylabel="y")
        ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _with_std(estimator: Any, X: Any) -> Any:
    """Predictions and their standard deviations."""
    try:
        return estimator.predict(X, return_std=True)
    except TypeError as error:
        if "return_std" not in str(error):
            raise
        raise TypeError(
            f"PredictionIntervalDisplay needs a regressor with `predict_interval`, or whose "
            f"`predict` takes `return_std`; {type(estimator).__name__} has neither. Use "
            "`from_predictions` for intervals from another source."
        ) from error


def _columns(X: Any) -> np.ndarray:
    array = np.asarray(X)
    if array.ndim != 2:
        raise ValueError(f"X must have shape (n_samples, n_features), got {array.shape}.")
    return array


def _column(X: Any, columns: np.ndarray, feature: int | str) -> tuple[np.ndarray, str]:
    """Values and name of one column of an array or a frame."""
    names = [str(name) for name in getattr(X, "columns", ())]
    if isinstance(feature, str):
        if feature not in names:
            raise ValueError(f"`feature`={feature!r} is not a column of X, which has {names}.")
        feature = names.index(feature)
    if not 0 <= feature < columns.shape[1]:
        last = columns.shape[1] - 1
        raise ValueError(f"`feature` must lie between 0 and {last}, got {feature!r}.")
    name = names[feature] if names else f"feature {feature}"
    return columns[:, feature].astype(float), name
