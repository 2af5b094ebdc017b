"""Regression with instrumental variables: the estimator and everything of its own."""

from .instrumental import CFLLIVRegressor

__all__ = ["CFLLIVRegressor"]
