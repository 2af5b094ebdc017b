"""Regression with instrumental variables: the estimator, its warnings and its modules."""

from .identification import RedundantInstrumentWarning, UnderidentifiedWarning
from .instrumental import CFLLIVRegressor
from .report import (
    DirectRegressionPreferredWarning,
    SlopesDisagreeWarning,
    WeakInstrumentWarning,
)

__all__ = [
    "CFLLIVRegressor",
    "DirectRegressionPreferredWarning",
    "RedundantInstrumentWarning",
    "SlopesDisagreeWarning",
    "UnderidentifiedWarning",
    "WeakInstrumentWarning",
]
