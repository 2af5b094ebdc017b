"""A small regressor, its rows, and a small convolution."""

from sklearn.datasets import make_friedman1
from torch import nn

from sklearn_cfll import CFLLRegressor

X, y = make_friedman1(150, n_features=6, noise=0.3, random_state=0)


def regressor(backbone=None, **parameters):
    defaults = {"hidden_layer_sizes": (16,), "max_epochs": 15, "random_state": 0, "n_members": 1}
    defaults["linear_part"] = False
    return CFLLRegressor(backbone, **{**defaults, **parameters})


def convolutional_network():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )
