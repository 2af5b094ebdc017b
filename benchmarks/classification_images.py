"""Images for the classification study: a small residual network, trained in both ways."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from classification_models import Split, cross_entropy_fit, measures, outputs
from scipy.special import softmax
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from sklearn_cfll import CFLLClassifier

EPOCHS, BATCH, WIDTHS = 15, 64, (16, 32, 64)
RATES = (1e-3, 3e-3, 1e-2)


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
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(n_out),
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


def load_images(data: Path, seed: int) -> Split:
    """The customary test images, a tenth of the others held out; channels standardised."""
    stored = np.load(data / "cifar10_5k.npz")
    n_train = int(stored["n_train"])
    X = stored["X"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    X = (X - X[:n_train].mean((0, 2, 3), keepdims=True)) / X[:n_train].std((0, 2, 3), keepdims=True)
    y = stored["y"].astype(np.int64)
    train, valid = train_test_split(
        np.arange(n_train), test_size=0.1, stratify=y[:n_train], random_state=seed
    )
    return Split((X[train], y[train]), (X[valid], y[valid]), (X[n_train:], y[n_train:]))


def configurations() -> list[dict]:
    """Rates of cross-entropy; rates and ridges of the closed form."""
    runs = [{"model": "cross-entropy", "rate": rate} for rate in RATES]
    for ridge in ("auto", 10.0):
        runs += [{"model": "CFLL", "rate": rate, "ridge": ridge} for rate in RATES]
    return runs


def run_images(data: Path, config: dict, seed: int) -> list[dict]:
    """One record; ``valid_loss`` is the method's own loss of images that it was not fitted to."""
    split = load_images(data, seed)
    start = time.perf_counter()
    if config["model"] == "CFLL":
        model = CFLLClassifier(
            backbone=residual_network,
            learning_rate=config["rate"],
            ridge=config["ridge"],
            batch_size=BATCH,
            max_epochs=EPOCHS,
            n_iter_no_change=EPOCHS,
            random_state=seed,
        ).fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])
        test = model.predict_proba(split.test[0])
        loss = min(row["valid_loss"] for row in model.history_)
    else:
        torch.manual_seed(seed)
        net = nn.Sequential(*residual_network(split.train[0].shape[1:]), nn.Linear(64, 10))
        loss = cross_entropy_fit(
            net, split, config["rate"], seed, epochs=EPOCHS, patience=EPOCHS, batch_size=BATCH
        )
        test = softmax(outputs(net, split.test[0]), axis=1)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "valid_loss": loss, **measures(test, split.test[1])}
    return [{"model": config["model"], **found}]
