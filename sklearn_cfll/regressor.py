"""CFLLRegressor: the parts of the estimator specific to regression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.metrics import r2_score

from ._compat import StrOptions, fit_context
from .columns import ColumnEncoder
from .estimator.arrays import as_targets, as_values, as_weights
from .estimator.base import BaseCFLL
from .estimator.checks import Checked
from .estimator.fitted import FittedModel
from .estimator.left_out import honest, leave_one_out_score, left_out
from .estimator.parameters import Auto, Precision, Schedule, shared_docs
from .estimator.plan import Plan
from .estimator.run import Run
from .estimator.split import Parts
from .estimator.targets import TargetScale
from .estimator.uncertainty import Uncertainty
from .estimator.wild_targets import disregard_wild, tame_added, tame_targets
from .final_solve.intervals import Scores
from .final_solve.out_of_fold import LEAST_LEFT
from .final_solve.refit import Refit
from .training.torch_settings import default_modes

__all__ = ["CFLLRegressor"]

FEW_ROWS = 20.0  # in a stream, before the scale of its targets is known


@shared_docs(
    sizes="(64, 64)",
    columns="ColumnEncoder(n_bins=16)",
    few_rows="",
    n_members=8,
    weight_decay='"auto"',
    batch_size='"auto"',
    max_epochs=60,
    patience=15,
    per_feature=0.012,
    alone="and ten times that for fewer than four of them",
    oof_score="""The squared errors are reduced by the variance between members, which their mean
        does not have. Targets that were clipped count as clipped.""",
    own="""normalize_y : bool, default=True
        Whether to standardise the targets for training.
    linear_part : bool or "auto", default="auto"
        Whether to fit a ridge regression first and the perceptron to its residuals. The prediction
        of the perceptron is then shrunk in proportion to its uncertainty on the held-out rows.
        "auto" is True below 600 rows, if rows are held out and no ``groups`` are given. Only
        available with a perceptron.""",
)
class CFLLRegressor(RegressorMixin, Uncertainty, BaseCFLL):
    """Neural-network regression with a closed-form last layer.

    The weights of the last linear layer are solved for on every batch, and once more on all rows at
    the end; the layers below are trained by gradient descent. X may be a table as it comes, with
    categories, text and gaps: nothing has to be scaled or encoded.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}
    loo_residuals_ : ndarray of y's shape at fit
        ``y - prediction`` of each row with the last layer fitted to all others. Only available if
        the backbone has no parameters to train; one that was trained on the row would make them too
        small.
    loo_score_ : float
        Coefficient of determination of the leave-one-out predictions.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn_cfll import CFLLRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = CFLLRegressor(max_epochs=20, random_state=0).fit(X[:300], y[:300])
    >>> model.score(X[300:], y[300:]) > 0.4
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseCFLL._parameter_constraints,
        "normalize_y": ["boolean"],
        "linear_part": ["boolean", StrOptions({"auto"})],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        hidden_layer_sizes: int | Sequence[int] = (64, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        n_members: int | Auto = "auto",
        columns: ColumnEncoder | Literal["passthrough"] | None = None,
        categorical_features: Any = "from_dtype",
        ridge: float | Auto = "auto",
        decay: float = 1.0,
        memory: str = "proximal",
        update_order: str = "last_layer_first",
        optimizer: str | type[torch.optim.Optimizer] = "adamw",
        learning_rate: float | Auto = "auto",
        weight_decay: float | Auto = "auto",
        learning_rate_schedule: Schedule = "auto",
        batch_size: int | Literal["auto", "full"] = "auto",
        max_epochs: int | Auto = "auto",
        early_stopping: bool | Auto = "auto",
        cross_fit: bool | Auto = "auto",
        validation_fraction: float | Auto = "auto",
        n_iter_no_change: int = 15,
        tol: float = 0.0,
        refit_last_layer: bool = True,
        local_part: bool = True,
        normalize_y: bool = True,
        linear_part: bool | Auto = "auto",
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        compile: bool = False,
        n_threads: int | None = None,
        callbacks: list[Any] | None = None,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.dropout = dropout
        self.n_members = n_members
        self.columns = columns
        self.categorical_features = categorical_features
        self.ridge = ridge
        self.decay = decay
        self.memory = memory
        self.update_order = update_order
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.learning_rate_schedule = learning_rate_schedule
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.early_stopping = early_stopping
        self.cross_fit = cross_fit
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.refit_last_layer = refit_last_layer
        self.local_part = local_part
        self.normalize_y = normalize_y
        self.linear_part = linear_part
        self.device = device
        self.precision = precision
        self.compile = compile
        self.n_threads = n_threads
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @fit_context(prefer_skip_nested_validation=True)
    def partial_fit(
        self, X: Any, y: Any = None, sample_weight: Any = None, categories: Any = None
    ) -> CFLLRegressor:
        """Train for one epoch on these rows; the first call determines sizes, bins and levels.

        After ``fit``, a few rows change the model little: they are added to the moments from which
        the last layer is solved, and the backbone is updated in proportion to their number relative
        to the rows that the model was fitted to. Without a previous ``fit``, the learning rate
        stays constant and the scales of the columns are updated with the rows seen so far. A call
        takes tens of milliseconds even for a few rows, so pass larger chunks if possible.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        categories : dict, default=None
            All levels of categories that will occur, by the column's name or index; a level of
            text or a number. By default the levels of the first rows are used, and others count as
            unseen: as rare levels, or as the mean of all levels if there are none.

        Returns
        -------
        self
        """
        return self._partial_fit(X, y, sample_weight, categories)

    @default_modes()
    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        return_std : bool, default=False
            Whether to also return the standard deviation of a new observation: the uncertainty of
            the last layer (Bayesian linear regression on the features), the differences between
            members, and the noise, estimated from the residuals of the held-out rows. The noise
            depends on the row if that explains the residuals better. Deviations are scaled so that
            the standardised residuals of the held-out rows have a mean square of one, regularised
            by 20 pseudo-observations with variance 1.5, because these rows have chosen epoch and
            ridge too. With cross-fitted members, whose residuals are larger than those of their
            mean, the variance between members is first taken off the squared residuals.
        return_cov : bool, default=False
            Whether to also return the covariance of new observations at the rows of X, whose
            diagonal is the square of that standard deviation. Rows are correlated by the
            uncertainty of the fit; their noise is independent.

        Returns
        -------
        y : ndarray of y's shape at fit
        std : ndarray of the same shape
            With ``return_std=True``.
        cov : ndarray of shape (n_samples, n_samples), or (n_samples, n_samples, k) for k targets
            With ``return_cov=True``.
        """
        if return_std and return_cov:
            raise ValueError(
                "`return_std` and `return_cov` cannot both be True. The deviations are the roots "
                "of the diagonal of the covariance."
            )
        if return_cov:
            return self._with_covariance(X)
        if return_std:
            return self._with_deviations(X)
        outputs = self._outputs(X)  # first, because it checks that the model is fitted
        return self._model.plan.layout.from_rows(outputs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination; fields are scored point by point.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        float
        """
        y, prediction = as_values(as_targets(y), self), self.predict(X)
        weight = None if sample_weight is None else as_weights(sample_weight, y)
        if y.ndim > 2:
            y, prediction = y.reshape(len(y), -1), prediction.reshape(len(y), -1)
        return r2_score(y, prediction, sample_weight=weight)

    # -- specific to regression ------------------------------------------------------

    def _calibrated(self, model: FittedModel, run: Run, parts: Parts, solved: Refit) -> FittedModel:
        """Add what standard deviations, intervals and leave-one-out scores need."""
        known = None if solved.calibration is None else Scores.of(solved.calibration)
        left_out = None
        if solved.exact and not run.trains and not run.network.on_fields:
            left_out = leave_one_out_score(run, parts, solved.ridge)
        return replace(model, scores=known, noise=solved.noise, left_out=left_out)

    def _out_of_fold_score(
        self, parts: Parts, solved: Refit, sample_weight: np.ndarray | None
    ) -> float:
        """Coefficient of determination, from out-of-fold errors less their excess over the mean's.

        Several outputs count equally, and so do the points of fields, as in :meth:`score`.
        """
        assert parts.rows.targets is not None and solved.calibration is not None
        squares = solved.calibration.residuals.square()
        of_one, excess, wanted = (
            part.flatten(1).double().cpu().numpy()
            for part in (squares, solved.out_of_fold.excess, parts.rows.targets)
        )
        of_one, excess = (np.average(p, axis=0, weights=sample_weight) for p in (of_one, excess))
        error = np.maximum(of_one - excess, LEAST_LEFT * of_one)
        mean = np.average(wanted, axis=0, weights=sample_weight)
        spread = np.average((wanted - mean) ** 2, axis=0, weights=sample_weight)
        share = np.divide(error, spread, out=(error > 0) * 1.0, where=spread > 0)
        return float(1.0 - share.mean())

    @property
    def oof_prediction_(self) -> np.ndarray:
        """Prediction of each row at fit by members that held it out, in y's shape."""
        return self._fitted("oof_prediction_").plan.layout.from_rows(
            honest(self, "oof_prediction_")[0]
        )

    @property
    def loo_residuals_(self) -> np.ndarray:
        """Residual of each training row under the fit to all others, in y's shape at fit."""
        return left_out(self, "loo_residuals_")[0]

    @property
    def loo_score_(self) -> float:
        """Coefficient of determination of the leave-one-out predictions."""
        return left_out(self, "loo_score_")[1]

    def _takes_linear_part(self, plan: Plan, parts: Parts) -> bool:
        if not plan.network.is_perceptron or self.linear_part != "auto":
            return bool(self.linear_part) and plan.network.is_perceptron
        if parts.grouped:  # leave-one-out errors, which choose its ridge, say nothing then
            return False
        few = len(parts.rows) < self.defaults.linear_part_below
        return few and parts.valid is not None and self.refit_last_layer

    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        return as_values(y, self)

    def _tame_targets(self, checked: Checked) -> Checked:
        return tame_targets(checked)

    def _tame_held_out(self, checked: Checked) -> Checked:
        return disregard_wild(checked, "y_val")

    def _tame_added(self, checked: Checked) -> Checked:
        # The scale of a stream is that of its first rows; without `normalize_y` there is none.
        plan, known_rows = self._model.plan, self._known_rows
        few = known_rows.is_stream and known_rows.n_known < FEW_ROWS
        if few or not plan.parameters["normalize_y"]:
            return checked
        known, reach = known_rows.n_known, known_rows.target_reach
        return tame_added(checked, plan, known, reach, clip=not known_rows.is_stream)

    def _fit_scale(self, rows: np.ndarray, sample_weight: np.ndarray | None) -> TargetScale:
        if not self.normalize_y:
            return super()._fit_scale(rows, sample_weight)
        return TargetScale.fit(rows, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
