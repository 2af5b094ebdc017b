"""scikit-learn's side: thin estimators over the training engine."""

from .classifier import CFLLClassifier
from .instrumental import CFLLIVRegressor
from .regressor import CFLLRegressor

__all__ = ["CFLLClassifier", "CFLLIVRegressor", "CFLLRegressor"]
