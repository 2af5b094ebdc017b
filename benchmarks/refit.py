"""The last solve where no rows are held out to choose its ridge: what is safe?

Networks are trained with the estimator's defaults on all training rows. Then the last layer is
left as it is, refitted towards zero, or refitted towards the weights that training left
("anchored"). Validation rows serve only to show what a ridge chosen on them would have given.
Test MSE, mean of the seeds; sets of 100 rows show small data.

    python benchmarks/refit.py --data DIR            # about 4 minutes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from common import BUNDLED, PLAIN, Task, load_task, refit_errors
from sklearn.datasets import load_sample_image

from sklearn_cfll import CFLLRegressor, linalg

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def photo(seed: int) -> Task:
    """Colours of a photograph from pixel coordinates: a function a network underfits."""
    image = load_sample_image("china.jpg")[::4, ::4] / 255.0
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width] / width * 2 - 1
    X, y = np.c_[x.ravel(), y.ravel()], image.reshape(-1, 3)
    y = (y - y.mean(0)) / y.std(0)
    order = np.random.default_rng(seed).permutation(len(X))[:8000]
    parts = (order[:5000], order[5000:6000], order[6000:])
    return Task("photo", *((X[p].astype("float32"), y[p].astype("float32")) for p in parts))


def errors(task: Task, seed: int) -> list[float]:
    """Test errors: no refit, refits to zero, anchored refits, chosen on validation rows."""
    settings = PLAIN | {"max_epochs": 50, "early_stopping": False, "refit_last_layer": False}
    model = CFLLRegressor(**settings, random_state=seed).fit(*task.train)
    net, scale = model.net_, model._plan.scale
    X, y = (torch.from_numpy(part).double() for part in task.train)
    features = net.features(X.numpy()).double()
    block = linalg.moments(features, (y - torch.tensor(scale.mean)) / torch.tensor(scale.scale))
    trained = net.module_.last_layer.weight.double()
    test = net.features(task.test[0]).double()

    def error(weight: torch.Tensor, bias: torch.Tensor) -> float:
        outputs = (test @ weight.T + bias).numpy() * scale.scale + scale.mean
        return float(np.square(outputs - task.test[1]).mean())

    found = [error(trained, net.module_.last_layer.bias.double())]
    found += [error(*linalg.solve_moments(block, ridge)) for ridge in RIDGES]
    for ridge in RIDGES:
        left = block._replace(cross=block.cross - trained @ block.gram)
        weight = trained + linalg.solve_moments(left, ridge)[0]
        found.append(error(weight, block.target_mean - weight @ block.feature_mean))
    valid = (task.valid[0], (task.valid[1] - scale.mean) / scale.scale)
    standard = (task.test[0], (task.test[1] - scale.mean) / scale.scale)
    train = (task.train[0], (task.train[1] - scale.mean) / scale.scale)
    scaled = Task(task.name, train, valid, standard)
    by_valid = refit_errors(lambda X: net.features(X).double().numpy(), scaled)[1]
    return [*found, by_valid * float(np.square(scale.scale).mean())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the UCI sets (NAME.npz)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    header = "".join(f"{ridge:8g}" for ridge in RIDGES)
    print(
        f"Test MSE, mean of {len(options.seeds)} seeds. Left: refit towards zero; right: anchored"
    )
    print(f"{'':18s}{'none':>8s} | {header} | {header} | chosen")
    for name in (*BUNDLED, "photo", "energy", "concrete", "yacht"):
        for rows in (None, 100):
            results = []
            try:
                for seed in options.seeds:
                    task = photo(seed) if name == "photo" else load_task(name, seed, options.data)
                    if rows:
                        X, y = task.train
                        task = Task(name, (X[:rows], y[:rows]), task.valid, task.test)
                    results.append(errors(task, seed))
            except FileNotFoundError:
                print(f"{name}: no {name}.npz in --data, left out")
                continue
            mean = np.mean(results, axis=0)
            cells = "".join(f"{value:8.4f}" for value in mean[1:7])
            anchored = "".join(f"{value:8.4f}" for value in mean[7:13])
            label = name if rows is None else f"{name}, {rows} rows"
            print(f"{label:18s}{mean[0]:8.4f} | {cells} | {anchored} | {mean[13]:.4f}", flush=True)


if __name__ == "__main__":
    main()
