"""Neural networks whose last layer is solved in closed form, for scikit-learn."""

from .ensemble_last_layer import EnsembleLastLayer
from .estimators import CFLLClassifier, CFLLIVRegressor, CFLLRegressor
from .last_layer import ClosedFormLastLayer
from .persistence import ModelFileError
from .training import CFLLNet, WeightAveraging

__version__ = "0.1.0"

__all__ = [
    "CFLLClassifier",
    "CFLLIVRegressor",
    "CFLLNet",
    "CFLLRegressor",
    "ClosedFormLastLayer",
    "EnsembleLastLayer",
    "ModelFileError",
    "WeightAveraging",
]
