"""Several processes on one or more machines train one model, each on rows of its own.

torchrun --nproc-per-node 2 examples/distributed_torchrun.py

Each process calls the same `fit`. Here it makes its rows; elsewhere it would read its own files.
On SLURM, start one process per task and pass on what `torchrun` would set::

    export MASTER_PORT=29500
    export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    srun bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID python ...'
"""

from __future__ import annotations

import os
import sys

from sklearn.datasets import make_friedman1

from sklearn_cfll import CFLLRegressor, TrainingCheckpoint


def main(checkpoint: str | None = None) -> float:
    rank = int(os.environ.get("RANK", 0))
    # Other rows in each process; processes need not have equally many.
    X, y = make_friedman1(1500 + 500 * rank, n_features=10, noise=0.5, random_state=rank)
    X_test, y_test = make_friedman1(1000, n_features=10, noise=0.5, random_state=100)
    callbacks = [] if checkpoint is None else [TrainingCheckpoint(checkpoint)]
    model = CFLLRegressor(max_epochs=20, random_state=0, callbacks=callbacks).fit(X, y)
    score = model.score(X_test, y_test)
    # Every process ends with the same model: one of them saves it.
    print(f"process {rank}: R² {score:.6f} after {model.n_iter_} epochs", flush=True)
    return score


if __name__ == "__main__":
    main(*sys.argv[1:])
