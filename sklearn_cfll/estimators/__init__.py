"""scikit-learn's side: thin estimators over the training engine."""

from .classifier import CFLLClassifier
from .regressor import CFLLRegressor

__all__ = ["CFLLClassifier", "CFLLRegressor"]
