"""A GPU beside the CPU: do they agree, what does a step cost, and what does it wait for?

    python benchmarks/gpu.py                      # about six minutes on one GPU
    python benchmarks/gpu.py --parts steps fits   # only these parts
    python benchmarks/gpu.py --smallest           # seconds, on any machine

Without a GPU everything runs on the CPU, which then agrees with itself. A case that fails is stored
with its error, and the rest goes on; so is a case that would begin after ``--minutes``. The parts:

agree   every estimator fitted on both devices from the same seed, and each model moved to the other
nudge   what a change of the inputs in the last place does to such a model, on the CPU
fft     inverse transforms of spectra that belong to no real field, and of those that do
steps   a training step of CFLLNet and of a plain loop that trains all layers of the same network
fits    whole default fits of 1e5 and 1e6 rows
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from gpu_cases import CASES, agreement, nudged
from gpu_steps import (
    TIMED,
    WAYS,
    Task,
    Waits,
    Watched,
    ensemble_task,
    field_task,
    image_task,
    kernels,
    milliseconds,
    perceptron_task,
    plain_loop,
    synchronize,
    waits,
)
from harness import Bench, Record, print_origin, print_table
from measures import stopwatch

from sklearn_cfll import CFLLRegressor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KEY = ("part", "task", "precision", "model")
PARTS = ("agree", "nudge", "fft", "steps", "fits")
TIGHT = {"float32": 1e-5, "tf32": 1e-5, "float64": 1e-10}  # of a model that is moved
COMPILED = {"MLP 256, batch 256", "default ensemble"}  # each compilation takes half a minute
# Estimators whose float32 products are also compared in TF32, which PyTorch uses for convolutions
# unless it is told otherwise.
IN_TF32 = ("default ensemble", "one wide network", "convolutions", "FNO, 32 x 32")
BEGIN = time.perf_counter()


def guarded(model: Callable[..., Record], minutes: float) -> Callable[..., Record]:
    """A failure becomes a record, and so does a case that there is no time for."""

    def measured(task: Any, place: Record) -> Record:
        if time.perf_counter() - BEGIN > 60 * minutes:
            return {"error": f"not begun within {minutes:g} minutes"}
        synchronize()
        start = time.perf_counter()
        try:
            found = model(task, place)
            torch.cuda.empty_cache()
        except Exception as error:
            traceback.print_exc()
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__} in {where.name}: {error}".splitlines()[0]
            found = {"error": said[:160]}
        print(place, {k: v for k, v in found.items() if k != "places"}, flush=True)
        return found | {"took": time.perf_counter() - start}

    return measured


# -- agreement --------------------------------------------------------------------------------


def use_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def agree(task: Any, place: Record) -> Record:
    tf32 = place["precision"] == "tf32"
    before = torch.backends.cudnn.allow_tf32
    use_tf32(tf32)
    try:
        return agreement(CASES[place["task"]], DEVICE, "float32" if tf32 else place["precision"])
    finally:
        use_tf32(False)
        torch.backends.cudnn.allow_tf32 = before


def nudge(task: Any, place: Record) -> Record:
    tf32 = place["precision"] == "tf32"
    return nudged(CASES[place["task"]], "float32" if tf32 else place["precision"])


def agreements() -> Iterator[Record]:
    for name, case in CASES.items():
        for precision in (*case.precisions, *(["tf32"] if name in IN_TF32 else [])):
            yield {"task": name, "precision": precision}


def symmetric(spectrum: torch.Tensor, points: int) -> torch.Tensor:
    """The nearest spectrum of a real field on (points, points)."""
    n_dim, axes = 2, (-2, -1)
    return torch.fft.rfftn(torch.fft.irfftn(spectrum, s=(points,) * n_dim, dim=axes), dim=axes)


def fft(task: Any, place: Record) -> Record:
    """Relative difference of ``irfftn`` between the devices, and where it is largest."""
    points = int(place["task"])
    generator = torch.Generator().manual_seed(0)
    shape = (8, points, points // 2 + 1)
    spectrum = torch.randn(*shape, dtype=torch.complex64, generator=generator)
    if place["model"] == "of a real field":
        spectrum = symmetric(spectrum, points)
    found = [
        torch.fft.irfftn(spectrum.to(where), s=(points, points), dim=(-2, -1)).cpu()
        for where in ("cpu", DEVICE)
    ]
    return {"apart": float((found[1] - found[0]).norm() / found[0].norm())}


# -- steps --------------------------------------------------------------------------------------


def rows_of_table(n_rows: int, n_columns: int = 20) -> tuple[np.ndarray, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(n_rows, n_columns))
    y = X[:, 0] * X[:, 1] + np.sin(3 * X[:, 2]) + 0.1 * np.random.default_rng(1).normal(size=n_rows)
    return X, y


@cache
def small_ensemble(n_rows: int) -> Task:
    X, y = rows_of_table(n_rows)
    model = CFLLRegressor(max_epochs=1, batch_size=1024, device=DEVICE, random_state=0).fit(X, y)
    return ensemble_task(model, X, y, DEVICE)


def fresh(task: Task) -> Task:
    return task._replace(backbone=copy.deepcopy(task.backbone))


def networks(small: bool) -> dict[str, Callable[[], Task]]:
    if small:
        return {"MLP 16, batch 32": lambda: perceptron_task(16, 32, 1, DEVICE, steps=3)}
    sizes = [(256, 256, 1), (256, 256, 10), (256, 16384, 1), (1024, 1024, 1), (1024, 8192, 1)]
    found: dict[str, Callable[[], Task]] = {}
    for width, batch, k in sizes:
        name = f"MLP {width}, batch {batch}" + (f", {k} targets" if k > 1 else "")
        found[name] = partial(perceptron_task, width, batch, k, DEVICE)
    found["default ensemble"] = lambda: fresh(small_ensemble(50 * 1024))
    found["CNN, batch 128"] = partial(image_task, 128, DEVICE)
    found["CNN, batch 1024"] = partial(image_task, 1024, DEVICE)
    found["FNO 64 x 64, batch 20"] = partial(field_task, 20, DEVICE)
    return found


def step(make: Callable[[], Task], place: Record) -> Record:
    way, task = WAYS[place["model"]], make()
    epoch = way(task)
    timed = milliseconds(epoch, task.n_steps, 2 if DEVICE == "cpu" else TIMED)
    return timed | waits(epoch, task.n_steps) | kernels(epoch, task.n_steps)


def ways_of(name: str, small: bool) -> list[str]:
    if DEVICE == "cpu":
        return [way for way in WAYS if "graph" not in way and "overhead" not in way]
    return [way for way in WAYS if way != "CFLL, reduce-overhead" or name in COMPILED]


# -- fits -----------------------------------------------------------------------------------------


def whole_fit(n_rows: int, place: Record, at: str) -> Record:
    """A default fit of few epochs: rows per second within epochs, and the seconds of the rest."""
    X, y = rows_of_table(n_rows)
    seen: list[Waits] = []
    counts = at == "cuda" and n_rows <= 10**5

    def before() -> None:
        if counts:
            seen.append(Waits().__enter__())

    def after(seconds: float) -> None:
        if counts:
            seen[-1].__exit__(None, None, None)

    def model(**settings: Any) -> CFLLRegressor:
        return CFLLRegressor(max_epochs=3, device=at, random_state=0, **settings)

    with stopwatch() as taken:
        fitted = model().fit(X, y)
    epochs = [row["seconds"] for row in fitted.history_]
    found = {
        "rows_per_second": n_rows / float(np.median(epochs[1:])),
        "epoch": float(np.median(epochs[1:])),
        "fit": taken["seconds"],
        "outside": taken["seconds"] - sum(epochs),
    }
    if counts:
        n_steps = -(-n_rows // fitted.resolved_["batch_size"])
        model(callbacks=[Watched(before, after)]).fit(X, y)
        last = seen[-1].found
        often = sum(n for n in last.values() if n >= n_steps)
        found["waits_per_step"] = often / n_steps
        found["waits_per_epoch"] = sum(last.values()) - often
        found["places"] = dict(last.most_common(12))
    with stopwatch() as taken:
        fitted.predict(X)
    return found | {"predicted_per_second": n_rows / taken["seconds"]}


def whole_loop(n_rows: int, place: Record, at: str) -> Record:
    """The plain loop on the network of such a fit."""
    X, y = rows_of_table(n_rows)
    few = slice(None, 20_000)
    size = min(1024, max(256, n_rows // 8))
    brief = CFLLRegressor(max_epochs=1, batch_size=size, device=at, random_state=0)
    task = ensemble_task(brief.fit(X[few], y[few]), X, y, at)
    found = milliseconds(plain_loop(task), task.n_steps, timed=1)
    seconds = found["ms"] * task.n_steps / 1e3
    return {"rows_per_second": n_rows / seconds, "epoch": seconds}


FITS: dict[str, tuple[Callable[..., Record], str, int]] = {  # and the largest number of rows
    "CFLLRegressor": (whole_fit, DEVICE, 10**6),
    "PyTorch loop, fused Adam": (whole_loop, DEVICE, 10**6),
    "CFLLRegressor, CPU": (whole_fit, "cpu", 10**5),
    "PyTorch loop, CPU": (whole_loop, "cpu", 10**5),
}


# -- report ---------------------------------------------------------------------------------


def report(records: list[Record]) -> None:
    print_origin(records)
    good = pd.DataFrame([r for r in records if "error" not in r])
    for part in PARTS:
        parts = ("agree", "nudge") if part == "agree" else (part,)
        rows = good[good["part"].isin(parts)].dropna(axis=1, how="all") if len(good) else good
        if len(rows) and part in REPORTS:
            REPORTS[part](rows)
    print("\nFailed or not begun:" if any("error" in r for r in records) else "\nNothing failed.")
    for record in (r for r in records if "error" in r):
        named = ", ".join(str(record[name]) for name in KEY if record.get(name))
        print(f"  {named}: {record['error']}")


def report_agree(rows: pd.DataFrame) -> None:
    table = rows[rows["part"] == "agree"].set_index(["task", "precision"])
    kinds = ["fits", "rounded", "moved"]
    if "nudged" in rows:
        found = rows[rows["part"] == "nudge"].set_index(["task", "precision"])
        table[["nudged", "output"]] = found[["nudged", "output"]].reindex(table.index)
        kinds += ["nudged", "output"]
    print_table(
        "Largest differences, in standard deviations of the output. Predictions of two fits, one\n"
        "on each device, and of two fits on the CPU whose inputs differ in the last place; all\n"
        "outputs of one model that is moved to the other device, and of one on the CPU if new\n"
        "rows change in the last place, with the output that changes most",
        table[kinds],
        ".1e",
    )
    table["apart"] = table["score on device"] - table["score"]
    print_table("Scores on new rows", table[["score", "score on device", "apart"]], ".4f")
    for precision, part in table.groupby(level="precision", sort=False):
        print(
            f"{precision}: {(part['moved'] <= TIGHT[precision]).sum()} of {len(part)} moved models "
            f"within {TIGHT[precision]:g}; largest difference of scores "
            f"{part['apart'].abs().max():.1e}"
        )


def report_fft(rows: pd.DataFrame) -> None:
    table = rows.pivot_table(index="task", columns="model", values="apart", sort=False)
    print_table("irfftn on both devices: relative difference, by points on a side", table, ".1e")


def report_steps(rows: pd.DataFrame) -> None:
    table = rows.set_index(["task", "model"])
    loops = rows[rows["model"] == "PyTorch loop, fused Adam"].set_index("task")["ms"]
    table["to loop"] = table["ms"] / loops.reindex(table.index.get_level_values("task")).to_numpy()
    if "busy_ms" in table:
        table["busy"] = table["busy_ms"] / table["ms"]
        table = table.rename(columns={"waits_per_step": "waits"})
    shown = ["ms", "least", "most", "to loop", "waits", "kernels", "busy"]
    title = "Milliseconds per step; waits of the host and kernels per step; share of time busy"
    print_table(title, table[[name for name in shown if name in table]], ".2f")
    places(rows)


def report_fits(rows: pd.DataFrame) -> None:
    table = rows.set_index(["task", "model"])
    shown = ["rows_per_second", "epoch", "fit", "outside", "predicted_per_second"]
    shown += ["waits_per_step", "waits_per_epoch"]
    table = table[[name for name in shown if name in table]]
    for name in (name for name in table if "per_second" in name):
        table[name] = table[name].round(-2)
    print_table("Fits of three epochs: rows per second of training; seconds", table, ",.2f")
    places(rows)


def places(rows: pd.DataFrame) -> None:
    """Where the host waits, by way to train: the most frequent places of all tasks."""
    if "places" not in rows:
        return
    for name, part in rows.groupby("model", sort=False):
        most = part["places"].dropna().map(lambda found: tuple(list(found)[:4]))
        print(f"{name} waits in: {sorted(set().union(*most))}")


REPORTS = {"agree": report_agree, "fft": report_fft, "steps": report_steps, "fits": report_fits}


def main(arguments: list[str] | None = None) -> None:
    parts = {"nargs": "+", "choices": PARTS, "default": list(PARTS)}
    minutes = {"type": float, "default": 7.0, "help": "nothing begins later than this"}
    bench = Bench(__doc__, "gpu", arguments, seeds=1, parts=parts, minutes=minutes)
    options, small = bench.options, bench.small
    wanted = options.parts
    safe = partial(guarded, minutes=options.minutes)

    few = {"own network", "16"}  # of the smallest case

    def chosen(tasks: list[tuple[Record, Any]], part: str) -> list[tuple[Record, Any]]:
        names = options.tasks
        if small and part not in ("steps", "fits"):
            names = few
        kept = [task for task in tasks if not names or task[0]["task"] in names]
        return kept if part in wanted else []

    nothing: Callable[[], Any] = lambda: None  # noqa: E731
    for part, how in (("agree", agree), ("nudge", nudge)):
        agreeing = [({"part": part} | place, nothing) for place in agreements()]
        bench.run(chosen(agreeing, part), {None: safe(how)}, KEY)
    sides = [({"part": "fft", "task": str(n)}, nothing) for n in (16, 24, 32, 48, 64, 96, 128, 256)]
    kinds = dict.fromkeys(("of no real field", "of a real field"), safe(fft))
    bench.run(chosen(sides, "fft"), kinds, KEY)
    for name, make in networks(small).items():
        task = ({"part": "steps", "task": name}, cache(lambda make=make: make))
        bench.run(chosen([task], "steps"), dict.fromkeys(ways_of(name, small), safe(step)), KEY)
    for n in (400,) if small else (10**5, 10**6):
        task = ({"part": "fits", "task": f"{n:,} rows"}, lambda n=n: n)
        models = {
            name: safe(partial(how, at=at)) for name, (how, at, most) in FITS.items() if n <= most
        }
        bench.run(chosen([task], "fits"), models, KEY)
    report(bench.records)


if __name__ == "__main__":
    main()
