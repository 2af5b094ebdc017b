"""Uncertainty: deviations, covariances, intervals, quantiles and draws of a regressor."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ..final_solve.intervals import check_coverage
from ..training.torch_settings import default_modes
from .covariance import Covariance
from .left_out import NO_MOMENTS, no_residuals

__all__ = ["Uncertainty"]


def check_quantiles(quantiles: Any) -> list[float]:
    """The probabilities of a number or a sequence of numbers."""
    levels = np.asarray(quantiles, dtype=object)
    if levels.ndim > 1 or levels.size == 0:
        raise ValueError(
            "`quantiles` must be a number between 0 and 1 or a sequence of such numbers, got "
            f"{quantiles!r}."
        )
    for level in levels.ravel():
        check_coverage(level, "quantiles")
    return [float(level) for level in levels.ravel()]


class Uncertainty:
    """Mixin of a regressor: what its fit says about new observations beside their mean."""

    def _knowing(self: Any, what: str, *, scores: bool = False) -> Any:
        """The fitted model; raise if it lacks what a method needs."""
        check_is_fitted(self)
        model = self._model
        if not model.n_judges or (scores and model.scores is None):
            raise ValueError(f"`{what}` {no_residuals(self)}")
        if not model.head.holds_moments:
            raise ValueError(f"`{what}` {NO_MOMENTS}")
        return model

    def _with_deviations(self: Any, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predictions and standard deviations in y's shape."""
        model = self._knowing("return_std")
        with self._rows_to_predict(X) as rows:
            mean, std = model.deviations(rows)
        layout = model.plan.layout
        return layout.from_rows(mean), layout.from_rows(std)

    def _covariance(self: Any, X: Any, what: str) -> Covariance:
        """The joint distribution of new observations at the rows of X."""
        model = self._knowing(what)
        if model.plan.network.on_fields:
            raise ValueError(
                f"`{what}` needs one prediction per sample, but samples have positions here."
            )
        with self._rows_to_predict(X) as rows:
            found: Covariance = model.covariance(rows)
        return found

    def _with_covariance(self: Any, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Predictions in y's shape, and the covariance of each target."""
        joint = self._covariance(X, "return_cov")
        layout = self._model.plan.layout
        cov = np.stack([joint.of(target) for target in range(layout.n_targets)], axis=-1)
        cov = cov.reshape(*cov.shape[:2], *layout.own_shape)
        return layout.from_rows(joint.mean), cov

    @default_modes()
    def sample_y(
        self: Any, X: Any, n_samples: int = 1, *, noise: bool = True, random_state: Any = 0
    ) -> np.ndarray:
        """Draw new observations at the rows of X from their joint normal distribution.

        The covariance is that of ``predict(X, return_cov=True)``. It is never formed, so that X may
        have many rows.

        Parameters
        ----------
        X : array-like of shape (n_samples_X, ...)
        n_samples : int, default=1
            Number of draws.
        noise : bool, default=True
            Whether to add the noise of observations. Without it, a draw is a plausible function,
            as Thompson sampling and Bayesian optimisation need it.
        random_state : int, RandomState instance or None, default=0

        Returns
        -------
        ndarray of shape (n_samples_X, n_samples), or (n_samples_X, k, n_samples) for k targets
        """
        if isinstance(n_samples, bool) or not isinstance(n_samples, Integral) or n_samples < 1:
            raise ValueError(f"`n_samples` must be a positive integer, got {n_samples!r}.")
        joint = self._covariance(X, "sample_y")
        draws = joint.draw(n_samples, noise, check_random_state(random_state))
        return draws.reshape(len(draws), *self._model.plan.layout.own_shape, n_samples)

    @default_modes()
    def predict_interval(self: Any, X: Any, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Prediction intervals that contain a new observation with a given probability.

        The intervals are conformal: ``predict(X) ± q · std``, where q is the quantile of the
        standardised absolute residuals of the held-out rows, each predicted without it. Each of
        several targets has this coverage. The same rows chose the epoch, the final ridge and the
        noise model, so the average coverage of rows like the training rows may be slightly below
        the nominal one. Coverage of at least the nominal level requires rows
        that were not used for model selection. With cross-fitted members all rows are held out,
        each by its own member, whose residual is larger than that of the mean of all: the residuals
        are scaled down by the variance between members.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        coverage : float, default=0.9
            Probability between 0 and 1.

        Returns
        -------
        lower, upper : ndarray of y's shape at fit

        Raises
        ------
        ValueError
            If no rows were held out at fit, or too few for this coverage.
        """
        check_coverage(coverage)
        model = self._knowing("predict_interval", scores=True)
        quantiles = model.scores.quantile(coverage)
        with self._rows_to_predict(X) as rows:
            mean, std = model.deviations(rows)
        half = (quantiles * std).astype(mean.dtype)
        lower, upper = (model.plan.layout.from_rows(end) for end in (mean - half, mean + half))
        return lower, upper

    @default_modes()
    def predict_quantiles(self: Any, X: Any, quantiles: Any = (0.05, 0.5, 0.95)) -> np.ndarray:
        """Quantiles of new observations.

        They are ``predict(X) + q · std`` with quantiles q of the standardised residuals of held-out
        rows, signs included: an uneven distribution of residuals gives uneven quantiles. They are
        as conformal as the intervals of :meth:`predict_interval`, and never cross.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        quantiles : float or sequence of float, default=(0.05, 0.5, 0.95)
            Probabilities between 0 and 1.

        Returns
        -------
        ndarray of y's shape at fit, with one more dimension at the end for a sequence

        Raises
        ------
        ValueError
            If no rows were held out at fit, or too few for one of the quantiles.
        """
        levels = check_quantiles(quantiles)
        model = self._knowing("predict_quantiles", scores=True)
        found = [model.scores.signed_quantile(level) for level in levels]
        with self._rows_to_predict(X) as rows:
            mean, std = model.deviations(rows)
        layout = model.plan.layout
        each = [layout.from_rows((mean + factor * std).astype(mean.dtype)) for factor in found]
        return each[0] if np.ndim(quantiles) == 0 else np.stack(each, axis=-1)
