"""Neural networks whose last layer is solved in closed form, for scikit-learn."""

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__
from .classifier import CFLLClassifier
from .columns import ColumnEncoder
from .heads import ClosedFormLastLayer, EnsembleLastLayer
from .persistence import ModelFileError
from .regressor import CFLLRegressor
from .training import CFLLNet, TrainingCheckpoint, WeightAveraging

if TYPE_CHECKING:
    from .instruments import CFLLIVRegressor

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


def __getattr__(name: str) -> Any:
    """Instruments are imported when they are used: they are a fifth of the package."""
    if name not in ("CFLLIVRegressor", "instruments"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    instruments = importlib.import_module(".instruments", __name__)
    return instruments if name == "instruments" else instruments.CFLLIVRegressor


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
