"""Regression with instrumental variables: the estimator and its modules."""

from .instrumental import CFLLIVRegressor

__all__ = ["CFLLIVRegressor"]
