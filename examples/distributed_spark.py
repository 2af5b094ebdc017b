"""Spark starts the workers, and each of them calls `fit` on the rows that it reads.

spark-submit examples/distributed_spark.py        # or python, for Spark on this machine

`TorchDistributor` starts the function as `torchrun` does, and returns the first worker's model.
"""

from __future__ import annotations

from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

N_WORKERS = 2


def train() -> object:
    import os

    from sklearn.datasets import make_friedman1

    from sklearn_cfll import CFLLRegressor

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    X, y = make_friedman1(4000, n_features=10, noise=0.5, random_state=0)  # a worker's own files
    return CFLLRegressor(max_epochs=20, random_state=0).fit(X[rank::size], y[rank::size])


def main() -> float:
    from sklearn.datasets import make_friedman1

    spark = SparkSession.builder.master(f"local[{N_WORKERS}]").appName("cfll").getOrCreate()
    model = TorchDistributor(num_processes=N_WORKERS, local_mode=True, use_gpu=False).run(train)
    X_test, y_test = make_friedman1(1000, n_features=10, noise=0.5, random_state=1)
    score = model.score(X_test, y_test)
    print(f"R² {score:.4f}, {model.n_iter_} epochs")
    spark.stop()
    return score


if __name__ == "__main__":
    main()
