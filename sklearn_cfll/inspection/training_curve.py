"""TrainingCurveDisplay: the loss epoch by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._support import axes_or_new, fitted_attribute

__all__ = ["TrainingCurveDisplay"]

LABELS = {"epoch": "epoch", "seconds": "seconds of training"}


class TrainingCurveDisplay:
    """Training and validation loss by epoch or by second, and the epoch that was kept.

    Parameters
    ----------
    history : list of dict
        One row per epoch, as ``history_`` of an estimator: ``epoch``, ``train_loss`` and, if known,
        ``valid_loss``, ``learning_rate`` and ``seconds`` (of that epoch).
    best_iteration : int, default=None
        The epoch whose network was kept; it is marked on the validation curve.

    Attributes
    ----------
    train_line_, valid_line_ : matplotlib Line2D
        ``valid_line_`` is None if no rows were held out.
    best_marker_ : matplotlib Line2D or None
    learning_rate_line_ : matplotlib Line2D or None
        On ``learning_rate_ax_``, a twin axis.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    Examples
    --------
    >>> from sklearn_cfll.inspection import TrainingCurveDisplay
    >>> history = [{"epoch": 1, "train_loss": 0.9}, {"epoch": 2, "train_loss": 0.4}]
    >>> TrainingCurveDisplay(history).values("train_loss")
    array([0.9, 0.4])
    """

    def __init__(self, history: list[dict[str, Any]], best_iteration: int | None = None) -> None:
        if not history:
            raise ValueError("`history` must hold at least one epoch, got an empty list.")
        self.history, self.best_iteration = history, best_iteration

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        x: str = "epoch",
        show_learning_rate: bool = False,
        ax: Any = None,
    ) -> TrainingCurveDisplay:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : CFLLRegressor or CFLLClassifier
            Fitted. For a pipeline or a search, pass its last step, ``pipeline[-1]``.
        x, show_learning_rate, ax
            As in :meth:`plot`.

        Returns
        -------
        TrainingCurveDisplay
        """
        remedy = "for a pipeline or a search, pass the network itself, `pipeline[-1]`."
        history = fitted_attribute(cls.__name__, estimator, "history_", remedy)
        display = cls(history, getattr(estimator, "best_iteration_", None))
        return display.plot(x=x, show_learning_rate=show_learning_rate, ax=ax)

    def plot(
        self, *, x: str = "epoch", show_learning_rate: bool = False, ax: Any = None
    ) -> TrainingCurveDisplay:
        """Draw the curves.

        Parameters
        ----------
        x : {"epoch", "seconds"}, default="epoch"
            Seconds are accumulated over the epochs.
        show_learning_rate : bool, default=False
            Whether to show the learning rate, on a twin axis.
        ax : matplotlib Axes, default=None
            If None, a new figure is created.

        Returns
        -------
        self
        """
        if x not in LABELS:
            raise ValueError(f"`x` must be one of {list(LABELS)}, got {x!r}.")
        epochs, along = self.values("epoch"), self.values(x)
        if not np.isfinite(along).all():
            raise ValueError('`history` has epochs without "seconds"; use x="epoch".')
        along = np.cumsum(along) if x == "seconds" else along
        ax = axes_or_new(type(self).__name__, ax)
        valid = self.values("valid_loss")
        (self.train_line_,) = ax.plot(along, self.values("train_loss"), label="training")
        self.valid_line_ = self.best_marker_ = None
        if np.isfinite(valid).any():
            (self.valid_line_,) = ax.plot(along, valid, label="validation")
            # None after `partial_fit`, which trains one epoch and holds no rows out.
            kept = (epochs == self.best_iteration) & np.isfinite(valid)
            if kept.any():
                (self.best_marker_,) = ax.plot(
                    along[kept],
                    valid[kept],
                    "o",
                    color=self.valid_line_.get_color(),
                    label=f"kept: epoch {self.best_iteration}",
                )
        ax.set(xlabel=LABELS[x], ylabel="mean squared error, scaled targets", yscale="log")
        self._plot_learning_rate(ax, along, show_learning_rate)
        lines = [*ax.get_lines(), self.learning_rate_line_]
        ax.legend(handles=[line for line in lines if line is not None])
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _plot_learning_rate(self, ax: Any, along: np.ndarray, wanted: bool) -> None:
        self.learning_rate_ax_ = self.learning_rate_line_ = None
        if not wanted:
            return
        twin = ax.twinx()
        (self.learning_rate_line_,) = twin.plot(
            along, self.values("learning_rate"), ":", color="0.5", label="learning rate"
        )
        twin.set(ylabel="learning rate", ylim=(0, None))
        self.learning_rate_ax_ = twin

    def values(self, name: str) -> np.ndarray:
        """One column of the history, with NaN for missing values."""
        column = [row.get(name) for row in self.history]
        return np.array([np.nan if value is None else value for value in column])
