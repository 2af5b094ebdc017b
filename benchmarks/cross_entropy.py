"""Our classifier's networks trained by cross-entropy, and a small residual network for images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from calibration import fitted_logits
from networks import Setting, keep_best, train
from scipy.special import softmax
from tasks import Task
from torch import Tensor, nn

from sklearn_cfll import CFLLClassifier
from sklearn_cfll.backbones import MLPBackbone

RATES = (1e-3, 3e-3, 1e-2)
WIDTHS = (16, 32, 64)


def columns_of(split: Task, seed: int) -> nn.Module:
    """What `CFLLClassifier` does to its columns before the network sees them."""
    model = CFLLClassifier(n_members=1, n_iter_no_change=1, random_state=seed)
    model.fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])
    return model.backbone_.columns.float()


def perceptron(columns: nn.Module, n_classes: int, seed: int) -> nn.Sequential:
    """A network of two layers of 256 units with an output layer."""
    torch.manual_seed(seed)
    backbone = MLPBackbone().build((len(columns.column),))
    return nn.Sequential(columns, backbone, nn.Linear(256, n_classes))


def fit(net: nn.Module, split: Task, setting: Setting, patience: int = 20) -> float:
    """Adam on all layers, cosine schedule; the epoch of least held-out log loss is kept.

    Returns that log loss.
    """
    X, y = (torch.as_tensor(part) for part in split.train)
    torch.manual_seed(setting.seed)  # of random flips
    loop = train(net, (X.float(), y), setting, loss_of=F.cross_entropy)

    def held_out() -> float:
        logits = torch.from_numpy(outputs(net, split.valid[0]))
        net.train()
        return float(F.cross_entropy(logits, torch.as_tensor(split.valid[1])))

    return keep_best(loop, net, held_out, patience)[0]


def outputs(net: nn.Module, X: np.ndarray) -> np.ndarray:
    """Outputs in evaluation mode."""
    net.eval()
    with torch.no_grad():
        parts = [net(part) for part in torch.as_tensor(X, dtype=torch.float32).split(1024)]
    return torch.cat(parts).double().numpy()


def probabilities(split: Task, seed: int) -> dict[str, np.ndarray]:
    """Of the test rows at the rate of least held-out log loss, plain and with a temperature."""
    n_classes = int(split.known[1].max()) + 1
    columns = columns_of(split, seed)
    best, chosen = np.inf, nn.Module()
    for rate in RATES:
        net = perceptron(columns, n_classes, seed)
        loss = fit(net, split, Setting("adam", rate, epochs=100, seed=seed))
        if loss < best:
            best, chosen = loss, net
    valid, test = outputs(chosen, split.valid[0]), outputs(chosen, split.test[0])
    # A quarter: the calibration starts at four times the scores, here at the logits.
    calibrate: Callable[[np.ndarray], np.ndarray] = fitted_logits(
        "temperature", valid / 4, split.valid[1]
    )
    return {
        "cross-entropy": softmax(test, axis=1),
        "cross-entropy, temperature": calibrate(test / 4),
    }


class RandomFlip(nn.Module):
    """Half of the images mirrored while training."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return images
        flipped = torch.rand(len(images), 1, 1, 1) < 0.5
        return torch.where(flipped, images.flip(-1), images)


class Block(nn.Module):
    """Two convolutions beside a shortcut; halves the image where ``stride`` is 2."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()),
            *(nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)),
        )
        same = n_in == n_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(n_in, n_out, 1, stride, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def residual_network(input_shape: tuple[int, ...]) -> nn.Sequential:
    """Features of images (3, 32, 32): three stages of one block, then the mean over pixels."""
    layers = [RandomFlip(), nn.Conv2d(input_shape[0], WIDTHS[0], 3, 2, 1, bias=False)]
    layers += [nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    for n_in, n_out in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
        layers.append(Block(n_in, n_out, 1 if n_in == n_out else 2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
