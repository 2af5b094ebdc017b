"""The ridge of the final solve where no rows are held out to choose it.

Tables: networks are trained on all rows (early_stopping=False). Then the last layer is left as it
is, refitted to all rows with the ridge that each rule chooses, or refitted towards the weights
that training left ("anchored"). Test errors relative to no refit, geometric means over the seeds.

- fixed: 0.1 below 200 rows, else 0.001.
- anchored: the training ridge, pulled towards the trained weights in place of zero.
- GCV: generalised cross-validation. x1.4, x2, x3: each parameter counts so often.
- few: x2, below ten rows per feature at most 0.32.
- rule: few, and below ten rows per feature no larger than leaves one and a half times the residuals
  of training (linalg.final_ridge), what the estimators do.
- best: the ridge with the least test error.

Fields: a Fourier neural operator on Burgers' equation, 800 samples.

    python benchmarks/final_ridge.py --data DIR            # about 10 minutes on an idle core
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import PLAIN
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1
from torch import Tensor, nn

from sklearn_cfll import CFLLRegressor, linalg
from sklearn_cfll.datasets import make_burgers
from sklearn_cfll.training.schedules import cosine

RIDGES = torch.tensor(linalg.RIDGES, dtype=torch.float64)
SETS = ("diabetes", "friedman1, noise 0.5", "friedman1, noise 1", "digits", "breast cancer")
SETS += ("concrete", "energy")
SIZES = {20: 6, 40: 6, 60: 6, 120: 6, 300: 4, 1000: 3, 5000: 2}  # rows and seeds
TEST_ROWS = 1000
NETWORKS = {"four networks of 64-64, the defaults": {}, "one network of 256-256": PLAIN}
RULES = ("fixed", "anchored", "GCV", "x1.4", "x2", "x3", "few", "rule", "best")


def load(name: str, n_rows: int, seed: int, data: Path | None) -> list[np.ndarray] | None:
    """Training and test rows of a set, or None where it has too few."""
    if name.startswith("friedman1"):
        noise = float(name.split()[-1])
        X, y = make_friedman1(n_rows + TEST_ROWS, 10, noise=noise, random_state=seed)
    elif name == "diabetes":
        X, y = load_diabetes(return_X_y=True)
    elif name == "breast cancer":
        X, y = load_breast_cancer(return_X_y=True)
    elif name == "digits":
        X, y = load_digits(return_X_y=True)
        y = np.eye(10)[y]
    elif data is None or not (data / f"{name}.npz").exists():
        return None
    else:
        stored = np.load(data / f"{name}.npz")
        X, y = stored["X"], stored["y"]
    y = y.reshape(len(y), -1).astype(float)
    if len(X) < n_rows + 100:
        return None
    order = np.random.default_rng(seed).permutation(len(X))
    train, test = order[:n_rows], order[n_rows:][:TEST_ROWS]
    return [X[train], y[train], X[test], y[test]]


def errors(parts: list[np.ndarray], settings: dict, seed: int) -> list[float]:
    """Test errors of no refit and of RULES."""
    X, y, X_test, y_test = parts
    options = {**settings, "early_stopping": False, "refit_last_layer": False}
    model = CFLLRegressor(**options, random_state=seed).fit(X, y if y.shape[1] > 1 else y[:, 0])
    layer, n = model.net_.module_.last_layer, len(X)
    layers = [layer] if layer.n_members == 1 else list(layer.members)
    scale = model._plan.scale
    targets, wanted = (torch.as_tensor((part - scale.mean) / scale.scale) for part in (y, y_test))
    features, test = (
        torch.as_tensor(model.features(part)).double().chunk(len(layers), 1) for part in (X, X_test)
    )
    blocks = [linalg.moments(rows, targets) for rows in features]
    trained = [part.weight.double() for part in layers]
    own = [(part.weight, part.bias) for part in layers]

    def error(fits: list[tuple[Tensor, Tensor]]) -> float:
        outputs = [rows @ w.T + b for rows, (w, b) in zip(test, fits, strict=True)]
        return float((torch.stack(outputs).mean(0) - wanted).square().mean())

    def anchored(block: linalg.Moments, weight: Tensor) -> tuple[Tensor, Tensor]:
        left = block._replace(cross=block.cross - weight @ block.gram)
        weight = weight + linalg.solve_moments(left, layers[0].ridge)[0]
        return weight, block.target_mean - weight @ block.feature_mean

    def least(optimism: float) -> Tensor:
        found = [linalg.cross_validation_errors(b, RIDGES, optimism=optimism)[0] for b in blocks]
        return RIDGES[int(torch.stack(found).sum(0).argmin())]

    path = [error([linalg.solve_moments(b, float(r)) for b in blocks]) for r in RIDGES]
    at = {float(r): value for r, value in zip(RIDGES, path, strict=True)}
    fixed = min(at, key=lambda r: abs(np.log(r / (0.1 if n < 200 else 0.001))))
    return [
        error([(w, part.bias.double()) for w, part in zip(trained, layers, strict=True)]),
        at[fixed],
        error([anchored(block, w) for block, w in zip(blocks, trained, strict=True)]),
        *(at[float(least(optimism))] for optimism in (1.0, 1.4, 2.0, 3.0)),
        at[linalg.final_ridge(blocks, n)],
        at[linalg.final_ridge(blocks, n, trained=own)],
        min(path),
    ]


def tables(data: Path | None) -> None:
    for network, settings in NETWORKS.items():
        print(f"\nTest error relative to no refit: {network}")
        print(f"{'':28s}{'no refit':>10s}" + "".join(f"{rule:>10s}" for rule in RULES))
        for n_rows, n_seeds in SIZES.items():
            means = []
            for name in SETS:
                runs = [load(name, n_rows, seed, data) for seed in range(n_seeds)]
                found = [
                    errors(parts, settings, seed)
                    for seed, parts in enumerate(runs)
                    if parts is not None
                ]
                if not found:
                    continue
                rows = np.array(found)
                mean = np.exp(np.log(rows[:, 1:] / rows[:, :1]).mean(0))
                means.append(mean)
                cells = "".join(f"{value:10.3f}" for value in mean)
                print(f"{f'{name}, {n_rows} rows':28s}{rows[:, 0].mean():10.4f}{cells}", flush=True)
            for label, mean in (
                ("geometric mean", np.exp(np.log(means).mean(0))),
                ("worst", np.max(means, 0)),
            ):
                print(f"{f'{label}, {n_rows} rows':38s}" + "".join(f"{v:10.3f}" for v in mean))


def fields(epochs: int, seed: int = 0) -> None:
    """Relative L2 on 200 test samples; the whole network under Adam beside it."""
    from sklearn_cfll.backbones import FNOBackbone

    X, y = make_burgers(1000, 64, random_state=0)
    (X, X_test), (y, y_test) = ((part[:800], part[800:]) for part in (X, y))
    recipe = FNOBackbone(n_modes=16, hidden_channels=16, n_layers=3)

    def relative(prediction: np.ndarray) -> float:
        gaps = np.linalg.norm(prediction - y_test, axis=1) / np.linalg.norm(y_test, axis=1)
        return float(gaps.mean())

    print(f"\nBurgers, 800 samples of 64 points, {epochs} epochs: relative L2 on 200 others")
    options = {"backbone": recipe, "max_epochs": epochs, "batch_size": 20, "random_state": seed}
    options |= {"learning_rate": 0.005, "n_iter_no_change": epochs, "precision": "float32"}

    fitted: list[CFLLRegressor] = []

    def show(label: str, fit: Callable[[], tuple[float, str]]) -> None:
        start = time.perf_counter()
        value, note = fit()
        seconds = time.perf_counter() - start
        print(f"{label:46s}{value:8.4f}{seconds:8.0f} s  {note}", flush=True)

    def closed_form(**kind) -> tuple[float, str]:
        fitted.append(CFLLRegressor(**options, **kind).fit(X, y))
        error = relative(fitted[-1].predict(X_test))
        solved = fitted[-1].refit_last_layer
        return error, f"final ridge {fitted[-1].final_ridge_:.3g}" if solved else ""

    held = {"early_stopping": True, "validation_fraction": 0.1}
    show("held-out rows choose epoch and final ridge", lambda: closed_form(**held))
    show(
        "no rows held out, no refit",
        lambda: closed_form(early_stopping=False, refit_last_layer=False),
    )
    show("no rows held out, the rule", lambda: closed_form(early_stopping=False))
    fitted[-1].net_.module_.last_layer.solve(0.001)
    show(
        "no rows held out, fixed ridge",
        lambda: (relative(fitted[-1].predict(X_test)), "final ridge 0.001"),
    )
    for rate in (1e-3, 3e-3, 1e-2, 3e-2):
        show(
            f"all layers, Adam, rate {rate:g}",
            lambda rate=rate: (relative(adam(recipe, X, y, X_test, epochs, rate, seed)), ""),
        )


def adam(recipe, X, y, X_test, epochs: int, rate: float, seed: int) -> np.ndarray:
    """The whole network by gradient, same batches' size and schedule."""
    torch.manual_seed(seed)
    net = nn.Sequential(recipe.build(X.shape[1:]), nn.Linear(32, 1), nn.Flatten(-2))
    mean, std = y.mean(), y.std()
    inputs = torch.as_tensor((X - X.mean()) / X.std()).float()
    fresh = torch.as_tensor((X_test - X.mean()) / X.std()).float()
    targets = torch.as_tensor((y - mean) / std).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    generator, step = torch.Generator().manual_seed(seed), 0
    n_batches = len(X) // 20
    for _ in range(epochs):
        for rows in torch.randperm(len(X), generator=generator).chunk(n_batches):
            optimizer.param_groups[0]["lr"] = rate * cosine(step / (epochs * n_batches))
            optimizer.zero_grad()
            nn.functional.mse_loss(net(inputs[rows]), targets[rows]).backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        return mean + std * net(fresh).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--epochs", type=int, default=10, help="of the fields")
    parser.add_argument("--only", choices=["tables", "fields"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "fields":
        tables(options.data)
    if options.only != "tables":
        fields(options.epochs)


if __name__ == "__main__":
    main()
