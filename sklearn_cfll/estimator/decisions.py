"""Decisions: from outputs of a classifier to labels and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from ..final_solve.intervals import check_coverage
from ..final_solve.prediction_sets import in_set
from ..final_solve.probabilities import Probabilities
from .left_out import honest, no_residuals

__all__ = ["Decisions"]


class Decisions:
    """Mixin of a classifier: what its outputs, and those of out-of-fold rows, say."""

    classes_: np.ndarray
    multilabel_: bool
    _model: Any
    _decision_threshold: float

    @property
    def _is_binary(self) -> bool:
        return not self.multilabel_ and len(self.classes_) == 2

    @property
    def _is_exclusive(self) -> bool:
        """Whether each row belongs to one of at least three classes, with a score for each."""
        return not (self._is_binary or self.multilabel_)

    def predict_set(self: Any, X: Any, coverage: float = 0.9) -> np.ndarray:
        """Sets of classes that contain the true class with a given probability.

        Adaptive prediction sets [1]_: the classes of a row in descending order of probability, each
        as long as those before it sum to at most a bound. The bound is a conformal quantile of the
        sums before the true class over the held-out rows. Sets hold at least one class, and few
        where the classifier is certain. If sets of one class are right more often than
        ``coverage``, the coverage is that of these.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
        coverage : float, default=0.9
            Probability between 0 and 1.

        Returns
        -------
        ndarray of bool of shape (n_samples, n_classes)
            Whether each of ``classes_`` belongs to the set.

        Raises
        ------
        ValueError
            If no rows were held out at fit, too few for this coverage, or for multilabel targets.

        References
        ----------
        .. [1] Y. Romano, M. Sesia, E. Candès, "Classification with valid and adaptive coverage",
           NeurIPS 2020, arXiv 2006.02544. Instead of a random part of its probability, the last
           class always belongs to the set.
        """
        check_coverage(coverage)
        check_is_fitted(self)
        if self.multilabel_:
            raise ValueError(
                "`predict_set` needs classes that exclude each other, but y was multilabel at fit. "
                "Use `predict_proba`, or fit one classifier per label."
            )
        if self._model.scores is None:
            raise ValueError(f"`predict_set` {no_residuals(self)}")
        bound = self._model.scores.quantile(coverage)[0]
        # The bound is of probabilities by the map for one member, as those of the rows held out.
        return in_set(self._probabilities(self._outputs(X), self._model.of_one), bound)

    @property
    def oof_prediction_(self) -> np.ndarray:
        """Class of each row at fit by members that held it out; shape as :meth:`predict`."""
        return self._named(self._decisions(honest(self, "oof_prediction_")[0]))

    @property
    def oof_proba_(self) -> np.ndarray:
        """Probabilities of each row at fit by members that held it out."""
        outputs = honest(self, "oof_proba_")[0]
        return self._probabilities(outputs, self._model.of_one)

    def _decisions(self, outputs: np.ndarray) -> np.ndarray:
        """Index of the class of each row, or whether each label applies."""
        if self.multilabel_:
            return (outputs > self._decision_threshold).astype(np.int64)
        if self._is_binary:
            return (outputs[:, 0] > self._decision_threshold).astype(np.int64)
        return outputs.argmax(1)

    def _named(self, decisions: np.ndarray) -> np.ndarray:
        """The labels of these indices."""
        return decisions if self.multilabel_ else self.classes_[decisions]

    def _probabilities(self, outputs: np.ndarray, of: Probabilities) -> np.ndarray:
        """Probabilities of all classes, by a map that suits these outputs."""
        found = of(outputs, exclusive=self._is_exclusive)
        return np.hstack([1.0 - found, found]) if self._is_binary else found
