"""CFLLClassifier: the parts of the estimator specific to classification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ._compat import StrOptions, fit_context
from .columns import ColumnEncoder
from .estimator.base import BaseCFLL
from .estimator.decisions import Decisions
from .estimator.defaults import DEFAULTS
from .estimator.fitted import FittedModel
from .estimator.labels import (
    check_classes,
    checked_labels,
    class_weights,
    classes_of,
    indicators,
)
from .estimator.parameters import Auto, Precision, Schedule, shared_docs
from .estimator.run import Run
from .estimator.split import Parts
from .final_solve.prediction_sets import set_scores
from .final_solve.probabilities import Probabilities
from .final_solve.refit import Refit

__all__ = ["CFLLClassifier"]


@shared_docs(
    sizes="(128, 128)",
    columns="ColumnEncoder(n_bins=16, quantiles=True)",
    few_rows=", nor do fewer than 1,000 rows",
    n_members=8,
    weight_decay="0.0",
    batch_size='"auto"',
    max_epochs=100,
    patience=20,
    per_feature=0.12,
    alone="which is 3.8 for d = 128 and batches of 256",
    oof_score="It is the accuracy of single members, a little below that of their mean.",
    own="""class_weight : dict, list of dict, "balanced" or None, default=None
        Class weights, by which ``sample_weight`` is multiplied. For multilabel targets, a list of
        dicts, one per label, with the weights of 0 and 1; the weights of the labels of a row are
        multiplied.""",
)
class CFLLClassifier(ClassifierMixin, Decisions, BaseCFLL):
    """Neural-network classification with a closed-form last layer.

    The loss is the squared error on one-hot targets (one column for two classes, one column per
    label for multilabel targets). Therefore the weights of the last linear layer can be solved for
    on every batch; the layers below are trained by gradient descent. X may be a table as it comes,
    with categories, text and gaps: nothing has to be scaled or encoded.

    Parameters
    ----------
    {parameters}

    Attributes
    ----------
    {attributes}
    oof_proba_ : ndarray of shape (n_samples, n_classes)
        Probabilities of each row by the members that held it out. Only available with
        cross-fitted members.
    classes_ : ndarray of shape (n_classes,)
        Labels; the indices of the labels for multilabel targets.
    multilabel_ : bool
        Whether y was multilabel at fit.

    References
    ----------
    Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_cfll import CFLLClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> CFLLClassifier(max_epochs=20, random_state=0).fit(X, y).score(X, y) > 0.9
    True
    """

    _decision_threshold = 0.5  # halfway between a class's indicators 0 and 1
    # benchmarks/classifier_defaults.py. Bins: benchmarks/tables_as_they_come.py (development
    # sets of fewer than 500 rows lost by them).
    defaults = replace(
        DEFAULTS,
        epochs=100,
        bins_from=1000,
        bins_share=0.25,  # with a half, classes in clusters suffer
        quantiles=True,
        fields_differ=False,
        ridge_per_feature_of_members=DEFAULTS.ridge_per_feature,
    )
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseCFLL._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        hidden_layer_sizes: int | Sequence[int] = (128, 128),
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
        weight_decay: float | Auto = 0.0,
        learning_rate_schedule: Schedule = "auto",
        batch_size: int | Literal["auto", "full"] = "auto",
        max_epochs: int | Auto = "auto",
        early_stopping: bool | Auto = "auto",
        cross_fit: bool | Auto = "auto",
        validation_fraction: float | Auto = "auto",
        n_iter_no_change: int = 20,
        tol: float = 0.0,
        refit_last_layer: bool = True,
        local_part: bool = True,
        class_weight: dict[Any, float] | list[dict[Any, float]] | Literal["balanced"] | None = None,
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
        self.class_weight = class_weight
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
        self,
        X: Any,
        y: Any = None,
        classes: Any = None,
        sample_weight: Any = None,
        categories: Any = None,
    ) -> CFLLClassifier:
        """Train for one epoch on these rows; the first call fixes classes, sizes, bins and levels.

        After ``fit``, a few rows change the model little: they are added to the moments from which
        the last layer is solved, and the backbone is updated in proportion to their number relative
        to the rows that the model was fitted to. Without a previous ``fit``, the learning rate
        stays constant and the scales of the columns are updated with the rows seen so far. A call
        takes tens of milliseconds even for a few rows, so pass larger chunks if possible.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes that will occur; required in the first call if y lacks some of them. By
            default, the classes of the first rows are used.
        categories : dict, default=None
            All levels of categories that will occur, by the column's name or index; a level of
            text or a number. By default the levels of the first rows are used, and others count as
            unseen: as rare levels, or as the mean of all levels if there are none.

        Returns
        -------
        self
        """
        with self._previous_fit_kept():
            if classes is not None:
                given = check_classes(classes)
                if not self.__sklearn_is_fitted__():
                    self._given_classes = given
                elif not np.array_equal(given, self.classes_):
                    raise ValueError(
                        f"`classes`={classes!r} is not the same as on last call to partial_fit, "
                        f"was: {self.classes_!r}. Omit it, or fit again."
                    )
            try:
                return self._partial_fit(X, y, sample_weight, categories)
            finally:
                self.__dict__.pop("_given_classes", None)

    def decision_function(self, X: Any) -> np.ndarray:
        """Estimated class indicators minus 0.5; the class with the largest one is predicted.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,) for two classes, else (n_samples, n_classes)
            Positive for the second class, or for a label that applies.
        """
        check_is_fitted(self)
        scores = self._outputs(X) - self._decision_threshold
        return scores[:, 0] if self._is_binary else scores

    def predict(self, X: Any) -> np.ndarray:
        """Predict classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples,), or (n_samples, n_labels) of 0 and 1 for multilabel
        """
        outputs = self._outputs(X)  # first, because it checks that the model is fitted
        return self._named(self._decisions(outputs))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Class probabilities.

        With squared loss, a score estimates the probability itself. Scores are kept positive by a
        softplus and a floor, raised to a power, and normalised; floor and power minimise the log
        loss on held-out rows. Without such rows, the power is 1 and the floor 0.01. Other ways
        are compared by ``benchmarks/classification.py --calibration``.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Rows sum to one. For multilabel targets, the probability of each label.
        """
        outputs = self._outputs(X)  # first, because it checks that the model is fitted
        return self._probabilities(outputs, self._model.probabilities)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithm of :meth:`predict_proba`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    # -- specific to classification --------------------------------------------------

    def _encode_targets(self, y: Any, *, reset: bool) -> np.ndarray:
        y, kind = checked_labels(y, self)
        multilabel = kind == "multilabel-indicator"
        if reset:
            self.multilabel_ = multilabel
            given = getattr(self, "_given_classes", None)
            self.classes_ = classes_of(y, given, multilabel)
        elif multilabel != self.multilabel_:
            raise ValueError(f"y is {kind}, unlike the y of the first fit.")
        return y.astype(np.float64) if multilabel else indicators(y, self.classes_)

    def _fit_weights(self, y: np.ndarray, sample_weight: np.ndarray | None) -> np.ndarray | None:
        return class_weights(self, y, sample_weight)

    def _n_network_outputs(self, y: np.ndarray) -> int | None:
        return len(self.classes_)  # networks often have two outputs for two classes

    def _stratify(self, y: np.ndarray) -> np.ndarray | None:
        if self.multilabel_:
            return np.unique(y, axis=0, return_inverse=True)[1].ravel()
        return y.astype(np.int64) if y.ndim == 1 else y.argmax(1)

    def _calibrated(self, model: FittedModel, run: Run, parts: Parts, solved: Refit) -> FittedModel:
        """Fit the map from scores to probabilities.

        With folds, each held-out score is that of one member: see :meth:`Probabilities.sharpened`.
        """
        valid = parts.rows if parts.folds is not None else parts.valid
        if valid is None:
            return model
        assert valid.targets is not None and solved.calibration is not None
        targets = valid.targets.double().cpu().numpy()
        scores = targets - solved.calibration.residuals.double().cpu().numpy()
        weights = None if valid.sample_weight is None else valid.sample_weight.cpu().numpy()
        exclusive = self._is_exclusive
        found = sharper = Probabilities.fit(scores, targets, weights, exclusive=exclusive)
        if parts.folds is not None:
            pairs = solved.out_of_fold.pairs.double().cpu().numpy()
            weights = None if weights is None else weights[solved.out_of_fold.twice.cpu().numpy()]
            sharper = found.sharpened(pairs, weights, parts.folds.n_folds, exclusive=exclusive)
        scores = (
            None
            if self.multilabel_
            else set_scores(found, targets, solved.calibration, exclusive, parts.own_weight)
        )
        return replace(model, probabilities=sharper, of_one=found, scores=scores)

    def _out_of_fold_score(
        self, parts: Parts, solved: Refit, sample_weight: np.ndarray | None
    ) -> float:
        """Accuracy; that of single members, which is a little below that of their mean."""
        assert parts.rows.targets is not None and solved.calibration is not None
        wanted = parts.rows.targets.cpu().numpy()
        outputs = wanted - solved.calibration.residuals.cpu().numpy()
        right = self._decisions(outputs) == self._decisions(wanted)
        right = right if right.ndim == 1 else right.all(axis=1)
        return float(np.average(right, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
