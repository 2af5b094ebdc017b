"""Full-batch mode over six decades of ridge: where the default of that mode comes from.

Validation MSE chooses, test MSE is printed beside it; mean of the seeds.

    python benchmarks/full_batch.py --data DIR       # about 4 minutes
"""

from __future__ import annotations

from harness import Bench, Record, means, print_origin, print_table
from models import PLAIN
from networks import errors_of
from tasks import BUNDLED, Task, load_task

from sklearn_cfll import CFLLRegressor

RIDGES = ("0.0001", "0.001", "0.01", "0.1", "1", "10")


def fit(task: Task, place: Record) -> Record:
    n = place["epochs"]
    settings = {
        "batch_size": "full",
        "ridge": float(place["model"]),
        "max_epochs": n,
        "n_iter_no_change": n,
    }
    model = CFLLRegressor(**PLAIN | settings, random_state=place["seed"])
    model.fit(*task.train, X_val=task.valid[0], y_val=task.valid[1])
    return dict(zip(("valid", "test"), errors_of(model.predict, task), strict=True))


def main(arguments: list[str] | None = None) -> None:
    bench = Bench(__doc__, "full_batch", arguments, seeds=2, smallest={"tasks": ["diabetes"]})
    names = (*BUNDLED, "energy", "concrete")
    tasks = bench.grid(names, load_task, epochs=5 if bench.small else 150)
    models = dict.fromkeys(RIDGES, fit)
    bench.run(tasks, models, ("task", "seed", "epochs", "model"))
    print_origin(bench.records)
    for part in ("valid", "test"):
        print_table(f"{part} MSE by ridge, full batch", means(bench.records, part))


if __name__ == "__main__":
    main()
