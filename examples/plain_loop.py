"""Both update orders as plain PyTorch loops: three lines change.

The last layer of a small network is replaced by ``ClosedFormLastLayer``. The optimiser holds
the backbone's parameters alone; the last layer has none. After the loop one call refits it to all
rows, with a ridge of its own: the ridge of the loop is for batches.

    python examples/plain_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sklearn_cfll import ClosedFormLastLayer


def make_loader(generator: torch.Generator) -> DataLoader:
    x = torch.rand(2000, 4, generator=generator) * 2 - 1
    y = torch.sin(3 * x[:, :1] * x[:, 1:2]) + torch.cos(4 * x[:, 2:3]) * x[:, 3:4]
    rows = TensorDataset(x, y)
    return DataLoader(rows, batch_size=100, shuffle=True, generator=generator, drop_last=True)


def make_backbone() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU())


def last_layer_first(loader: DataLoader, epochs: int) -> nn.Module:
    """Solve on each batch, then step the backbone with the new weights held."""
    backbone = make_backbone()
    head = ClosedFormLastLayer(in_features=128, out_features=1, ridge=15.0)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, y in loader:
            prediction = head.update(backbone(x), y)  # solves, then predicts
            loss = F.mse_loss(prediction, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nn.Sequential(backbone, head)


def backbone_first(loader: DataLoader, epochs: int) -> nn.Module:
    """Step the backbone with the stored weights, then solve on its new features.

    Algorithm 1 of arXiv 2510.04606.
    """
    backbone = make_backbone()
    head = ClosedFormLastLayer(in_features=128, out_features=1, ridge=15.0)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, y in loader:
            loss = F.mse_loss(head(backbone(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                head.update(backbone(x), y)
    return nn.Sequential(backbone, head)


def all_layers(loader: DataLoader, epochs: int) -> nn.Module:
    """What both replace: Adam on an ordinary last layer too."""
    model = nn.Sequential(make_backbone(), nn.Linear(128, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        for x, y in loader:
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def refit(model: nn.Sequential, loader: DataLoader) -> None:
    """The exact fit of the last layer to all rows; it chooses its ridge from their moments."""
    backbone, head = model.eval()
    head.refit((backbone(x), y) for x, y in loader)


def main(epochs: int = 20) -> dict[str, float]:
    """Train all three on the same batches; mean squared error on fresh rows."""
    torch.set_num_threads(1)
    fresh = make_loader(torch.Generator().manual_seed(1)).dataset.tensors
    errors = {}
    for fit in (last_layer_first, backbone_first, all_layers):
        loader = make_loader(torch.Generator().manual_seed(0))
        model = fit(loader, epochs)
        with torch.no_grad():
            errors[fit.__name__] = float(F.mse_loss(model(fresh[0]), fresh[1]))
        line = f"{fit.__name__:18s} test MSE {errors[fit.__name__]:.5f}"
        if isinstance(model[1], ClosedFormLastLayer):
            refit(model, loader)
            with torch.no_grad():
                error = float(F.mse_loss(model(fresh[0]), fresh[1]))
            errors[f"{fit.__name__}, refitted"] = error
            line += f"; refitted {error:.5f} (ridge {model[1].final_ridge:.1e})"
        print(line)
    return errors


if __name__ == "__main__":
    main()
