"""Displays: plots of fitted estimators, as in scikit-learn.

Each display has ``from_estimator``, ``plot(ax=...)`` and, if arrays are sufficient,
``from_predictions``; artists are stored in attributes that end in ``_``. Displays need matplotlib
(extra ``[plot]``), which is imported when something is drawn.
"""

from .field import FieldDisplay
from .instrument import InstrumentDisplay
from .prediction_interval import PredictionIntervalDisplay
from .ridge_path import RidgePathDisplay
from .training_curve import TrainingCurveDisplay

__all__ = [
    "FieldDisplay",
    "InstrumentDisplay",
    "PredictionIntervalDisplay",
    "RidgePathDisplay",
    "TrainingCurveDisplay",
]
