"""Displays: pictures of fitted estimators, in the manner of scikit-learn's.

Each has ``from_estimator``, where arrays are enough ``from_predictions``, and ``plot(ax=...)``;
what was drawn stays in attributes that end in ``_``. They need matplotlib (extra ``[plot]``),
imported when something is drawn.
"""

from .field import FieldDisplay
from .prediction_interval import PredictionIntervalDisplay
from .ridge_path import RidgePathDisplay
from .training_curve import TrainingCurveDisplay

__all__ = [
    "FieldDisplay",
    "PredictionIntervalDisplay",
    "RidgePathDisplay",
    "TrainingCurveDisplay",
]
