"""Neural networks whose last layer is solved in closed form, for scikit-learn."""

from ._version import __version__
from .classifier import CFLLClassifier
from .columns import ColumnEncoder
from .heads import ClosedFormLastLayer, EnsembleLastLayer
from .instruments import CFLLIVRegressor
from .persistence import ModelFileError
from .regressor import CFLLRegressor
from .training import CFLLNet, TrainingCheckpoint, WeightAveraging

__all__ = [
    "CFLLClassifier",
    "CFLLIVRegressor",
    "CFLLNet",
    "CFLLRegressor",
    "ClosedFormLastLayer",
    "ColumnEncoder",
    "EnsembleLastLayer",
    "ModelFileError",
    "TrainingCheckpoint",
    "WeightAveraging",
    "__version__",
]
