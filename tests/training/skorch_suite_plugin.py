"""pytest plugin: CFLLNet in the place of skorch's nets, for skorch's own tests.

Used by ``test_skorch_suite.py``. skorch's tests fetch their classes from the package when they
run, so that replacing its attributes is enough.
"""

import sys
import types

import skorch
import skorch.classifier
import skorch.net
import skorch.regressor
from skorch.dataset import ValidSplit

from sklearn_cfll import CFLLNet

FIFTH = ValidSplit(5)
NAMES = ("NeuralNet", "NeuralNetClassifier", "NeuralNetRegressor", "NeuralNetBinaryClassifier")


class Substitute(CFLLNet):
    """With skorch's default for ``train_split``, the one that CFLLNet documents otherwise."""

    def __init__(self, module, *, train_split=FIFTH, **kwargs):
        super().__init__(module, train_split=train_split, **kwargs)


for package in (skorch, skorch.net, skorch.regressor, skorch.classifier):
    for name in NAMES:
        if hasattr(package, name):
            setattr(package, name, Substitute)

try:
    import flaky  # noqa: F401
except ImportError:  # a decorator that repeats a test
    sys.modules["flaky"] = types.ModuleType("flaky")
    sys.modules["flaky"].flaky = lambda **_: lambda test: test
