"""Decisions: from outputs of a classifier to labels and probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np

from .left_out import honest

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

    @property
    def oof_prediction_(self) -> np.ndarray:
        """Class of each row at fit by members that held it out; shape as :meth:`predict`."""
        return self._named(self._decisions(honest(self, "oof_prediction_")[0]))

    @property
    def oof_proba_(self) -> np.ndarray:
        """Probabilities of each row at fit by members that held it out."""
        return self._probabilities(honest(self, "oof_proba_")[0])

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

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        found = self._model.probabilities(outputs, exclusive=self._is_exclusive)
        return np.hstack([1.0 - found, found]) if self._is_binary else found
