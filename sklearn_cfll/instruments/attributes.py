"""Fitted attributes of an instrumental estimator, and its state for copies and files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from ..estimator.packing import versions
from ..estimator.state import StateMixin
from ..final_solve.intervals import check_coverage
from ..training.torch_settings import default_modes, use_threads
from .data import check_new_rows
from .fitted import FittedInstruments
from .networks import ROLES
from .stages import InstrumentRows
from .state_checks import check_instruments, check_models, try_out
from .summary import Summary, summarise

__all__ = ["InstrumentAttributes"]


class InstrumentAttributes(StateMixin):
    """Mixin of attributes that only a fitted instrumental estimator has."""

    _model: FittedInstruments

    _code_parameters = ROLES

    @property
    def shrinkage_(self) -> dict[str, float]:
        """The most likely shrinkage."""
        return self._fitted("shrinkage_").models.shrinkage._asdict()

    @property
    def resolved_(self) -> dict[str, Any]:
        """The value used for each "auto"."""
        return self._fitted("resolved_").resolved

    @property
    def held_out_loss_(self) -> float:
        """Loss of the second stage on held-out rows."""
        return self._fitted("held_out_loss_").models.held_out_loss

    @property
    def stage1_score_(self) -> float:
        """Coefficient of determination of the treatment on held-out rows."""
        return self._fitted("stage1_score_").diagnostics.get("stage1_score", float("nan"))

    @property
    def preferred_(self) -> str:
        """The regression to rely on."""
        return self._fitted("preferred_").preferred

    @property
    def effect_(self) -> Bunch:
        """Average effect of each treatment in a partially linear regression.

        ``y = X θ + g(C) + e``: outcome, treatments and instruments are replaced by residuals of
        cross-fitted networks of C, and two-stage least squares (without Z, least squares) is
        fitted to these. θ is the average slope, for a binary treatment the average difference; if
        effects differ between rows, a mean weighted by how much Z moves X.

        Its entries are, for p treatments:

        - ``treatment_names``: list of str
        - ``estimate``, ``std_error``, ``p_value``: ndarray of shape (p,). Errors are robust to
          heteroscedasticity, or clustered with ``fit(..., groups=)``.
        - ``interval``: ndarray of shape (p, 2), at 95%, with quantiles of t with ``df`` degrees of
          freedom; it is too narrow if the instruments are weak.
        - ``anderson_rubin``: one array of shape (m, 2) per treatment, the m intervals of a 95%
          confidence set that is valid with weak instruments. It may be unbounded or empty (m = 0).
          For one treatment it is as robust as the errors. For several it is computed by ivmodels
          (extra ``[iv]``), assumes independent errors of one variance, and is None otherwise.
        - ``conditional_likelihood_ratio``: the same, shorter with more instruments than treatments;
          from ivmodels, under these assumptions, or None.
        - ``tf_std_error``: with one treatment and one instrument, the error that makes
          ``estimate ± 1.96 · error`` valid with a weak instrument (Lee et al., 2022); else None.
        - ``first_stage_f``: ndarray of shape (p,), robust or clustered F of the instruments;
          of each treatment net of the others, if there are several.
        - ``curve_estimate``, ``curve_std_error``: ndarray of shape (p,), average derivative of the
          structural function (for a binary treatment, average difference) and its jackknife error.
        - ``is_binary``, ``covariance_type`` ("robust" or "clustered"), ``n_clusters``,
          ``n_samples``, ``n_instruments``, ``df``.
        """
        found = self._fitted("effect_").effect
        if found is None:
            raise AttributeError(
                "`effect_` needs diagnose=True, and columns as inputs: it is not available for "
                "user-defined networks of X or Z, or for samples of other shapes."
            )
        return Bunch(**found)

    @property
    def diagnostics_(self) -> dict[str, Any]:
        """Figures on the instruments; empty without them."""
        return self._fitted("diagnostics_").diagnostics

    @property
    def history_(self) -> list[dict[str, Any]]:
        """Losses of each record."""
        return self._fitted("history_").models.history

    @property
    def n_iter_(self) -> int:
        """Number of epochs trained."""
        return self._fitted("n_iter_").models.n_epochs

    @property
    def best_iteration_(self) -> int:
        """The epoch that was kept."""
        return self._fitted("best_iteration_").models.best_epoch

    @property
    def device_(self) -> torch.device:
        """Where the model computes."""
        return self._fitted("device_").plan.device

    @default_modes()
    def predict_interval(
        self: Any, X: Any, C: Any = None, coverage: float = 0.9, simultaneous: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Band of the structural function: intervals ``predict(X, C) ± q · std``.

        The intervals are about the function at X, not about an outcome: single outcomes vary more.
        They cover on average over the rows: where the function changes faster than the instruments
        can tell, they cover less, and more where it is smooth. With weak instruments they are too
        narrow.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_treatments)
        C : array-like of shape (n_samples, n_confounders), default=None
            Required if it was passed to fit.
        coverage : float, default=0.9
            Probability between 0 and 1.
        simultaneous : bool, default=False
            Whether the band is to contain the function at all rows of X at once (sup-t), rather
            than at each row. It is wider; q depends on the rows that are passed, so pass those of
            one curve.

        Returns
        -------
        lower, upper : ndarray of shape (n_samples,)
        """
        check_coverage(coverage)
        mean, std = self.predict(X, C, return_std=True)
        q = norm.ppf(0.5 + coverage / 2)
        if simultaneous:
            with use_threads(self.n_threads or 1):
                q = self._model.sup_t(self._rows(X, None, C), coverage)
        half = (q * std).astype(mean.dtype)
        return mean - half, mean + half

    def summary(self) -> Summary:
        """Tables: fit, strength of the instruments, average effect, tests, size of confounding.

        Returns
        -------
        Summary
            It is printed as text, or as HTML in a notebook. Its ``to_frame()`` and ``to_latex()``
            give the effects.
        """
        check_is_fitted(self)
        return summarise(self._model)

    def _rows(self, X: Any, Z: Any, C: Any) -> InstrumentRows:
        """Validated inputs on the device."""
        check_is_fitted(self)
        plan = self._model.plan
        return plan.rows(*check_new_rows(self, plan, X, Z, C))

    # -- state ----------------------------------------------------------------------

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        model = state.pop("_model")
        packed = {
            **versions(),
            "device": str(model.plan.device),
            "seed": model.plan.seed,
            "model": model.pack(),
        }
        return {**state, "_packed": packed}

    @classmethod
    def _unpack(cls, packed: dict[str, Any], device: torch.device) -> dict[str, Any]:
        return {"_model": FittedInstruments.unpack(packed["model"], device)}

    @classmethod
    def _code_in(cls, packed: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
        return [(packed["model"]["plan"]["recipes"], role, role) for role in ROLES]

    @classmethod
    def _check_file(cls, state: dict[str, Any]) -> None:
        check_instruments(state["_packed"])

    def _check_loaded(self, packed: dict[str, Any]) -> None:
        check_models(packed["model"], self._model.models.networks)
        try_out(self)
