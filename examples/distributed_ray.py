"""Ray Train starts the workers, and each of them calls `fit` on its part of the rows.

python examples/distributed_ray.py        # needs ray[train]

Ray's `TorchTrainer` has initialised `torch.distributed` when the function begins; `fit` uses it.
"""

from __future__ import annotations

import tempfile

import ray
from ray.train import Checkpoint, RunConfig, ScalingConfig, get_context, report
from ray.train.torch import TorchTrainer
from sklearn.datasets import make_friedman1

from sklearn_cfll import CFLLRegressor


def train() -> None:
    rank, size = get_context().get_world_rank(), get_context().get_world_size()
    X, y = make_friedman1(4000, n_features=10, noise=0.5, random_state=0)
    model = CFLLRegressor(max_epochs=20, random_state=0).fit(X[rank::size], y[rank::size])
    X_test, y_test = make_friedman1(1000, n_features=10, noise=0.5, random_state=1)
    with tempfile.TemporaryDirectory() as folder:
        kept = None
        if rank == 0:  # all workers have the same model
            model.save(f"{folder}/model.npz")
            kept = Checkpoint.from_directory(folder)
        report({"r2": model.score(X_test, y_test)}, checkpoint=kept)


def main(storage: str | None = None) -> float:
    ray.init(num_cpus=2, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            train,
            scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
            run_config=RunConfig(storage_path=storage or folder),
        )
        result = trainer.fit()
        with result.checkpoint.as_directory() as saved:
            model = CFLLRegressor.load(f"{saved}/model.npz")
    print(f"R² {result.metrics['r2']:.4f}, {model.n_iter_} epochs")
    ray.shutdown()
    return float(result.metrics["r2"])


if __name__ == "__main__":
    main()
