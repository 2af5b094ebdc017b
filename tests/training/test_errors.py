"""The error of a batch, from which the backbone's gradient comes."""

import pytest
import torch

from helpers import draw
from sklearn_cfll import ClosedFormLastLayer, EnsembleLastLayer
from sklearn_cfll.training.errors import error_gradient, squared_error, training_error

M, D, K = 3, 5, 2


def test_each_member_gets_the_gradient_of_its_own_error():
    options = {"ridge": 0.7, "dtype": torch.float64}
    together = EnsembleLastLayer(M * D, K, n_members=M, **options)
    alone = [ClosedFormLastLayer(D, K, **options) for _ in range(M)]
    features, targets = draw(40, M * D).requires_grad_(), draw(40, K)
    weights = torch.rand(40, dtype=torch.float64)
    together.step(features.detach(), targets, weights, 40.0)
    error, prediction = training_error(together, features, targets, weights)
    (found,) = torch.autograd.grad(error, features)
    expected = []
    for layer, block in zip(alone, features.detach().split(D, -1), strict=True):
        block = block.clone().requires_grad_()
        layer.step(block.detach(), targets, weights, 40.0)
        own = squared_error(layer(block), targets, weights)
        expected.append(torch.autograd.grad(own, block)[0])
    torch.testing.assert_close(found, torch.cat(expected, 1))
    torch.testing.assert_close(prediction, together(features))


def test_weights_are_repetitions_over_the_number_of_samples():
    prediction, targets = draw(8, K), draw(8, K, seed=1)
    counts = torch.arange(8.0, dtype=torch.float64)
    repeated = [part.repeat_interleave(counts.long(), 0) for part in (prediction, targets)]
    expected = squared_error(*repeated) * counts.sum() / 8
    torch.testing.assert_close(squared_error(prediction, targets, counts), expected)


@pytest.mark.parametrize("weighted", ["not", "rows", "members"])
@pytest.mark.parametrize("shape", [(40,), (12, 3), (4, 3, 2)], ids=["rows", "lines", "images"])
@pytest.mark.parametrize("k", [1, K])
@pytest.mark.parametrize("m", [1, M])
def test_the_gradient_of_the_own_loss_is_that_of_autograd(m, k, shape, weighted):
    Head = ClosedFormLastLayer if m == 1 else EnsembleLastLayer
    options = {} if m == 1 else {"n_members": m}
    layer = Head(m * D, k, ridge=0.7, dtype=torch.float64, **options)
    features = draw(shape[0], m * D * (n := torch.Size(shape[1:]).numel())).reshape(*shape, m * D)
    targets = draw(shape[0], k * n, seed=1).reshape(*shape, k)
    sizes = {"rows": shape[:1], "members": (shape[0], *[1] * (len(shape) - 1), m)}
    weights = None if weighted == "not" else torch.rand(sizes[weighted], dtype=torch.float64)
    layer.step(features, targets)
    features.requires_grad_()
    error, prediction = training_error(layer, features, targets, weights)
    (expected,) = torch.autograd.grad(error, features)
    *own, found = error_gradient(layer, features, targets, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(own, [error, prediction])
    assert own[0].requires_grad and not found.requires_grad
