"""Neural networks whose last layer is solved in closed form, for scikit-learn."""

from .classifier import CFLLClassifier
from .heads import ClosedFormLastLayer, EnsembleLastLayer
from .instruments import CFLLIVRegressor
from .persistence import ModelFileError
from .regressor import CFLLRegressor
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
