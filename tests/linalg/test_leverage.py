"""x"""

import torch

from helpers import draw
from sklearn_cfll import (
    linalg,
)


def test_constant_features_have_the_leverage_of_the_mean():
    features = torch.full((50, 3), 0.1).double()
    block = linalg.moments(features, draw(50, 1))
    found = linalg.leverage(features + 1e-17, block, 0.1)
    torch.testing.assert_close(found, torch.full((50,), 0.02).double())
