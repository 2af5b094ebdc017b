"""Tables, pictures and verdicts of the paper's experiments, from the records of ``paper.py``.

The limits of the verdicts were set while the first runs were under way: a claim about errors is
*seen* if both orders of the closed form have the lower test error in at least four fifths of the
cases, *seen in part* if at least one order has it in at least half of them. The page is
``paper_page.md``, filled in.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from harness import RESULTS, Record, geometric_mean, print_table, read_records

OPTIMIZERS = ("SGD", "momentum", "Adam")
ORDERS = ("last layer first", "backbone first")
SHORT = {"all layers": "all", "last layer first": "last", "backbone first": "back"}
SEEN, IN_PART = 0.8, 0.5
LIMIT = 1.1  # of a ratio: behind by more than a tenth
COLORS = {"all layers": "tab:blue", "last layer first": "tab:red", "backbone first": "tab:orange"}


def short(method: str) -> str:
    order, optimizer = method.rsplit(", ", 1)
    return f"{SHORT.get(order, 'CE')} {optimizer}"


def of(records: list[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def final(record: Record) -> float:
    return float(np.mean(record["curve"][-1]))


def cases(records: list[Record], kind: str) -> dict[tuple, dict[str, Record]]:
    """Records by (task, batch size), then by method."""
    found: dict[tuple, dict[str, Record]] = {}
    for record in of(records, kind):
        case = found.setdefault((record["task"], record["batch_size"]), {})
        case[record["method"]] = record
    return found


def ratios(records: list[Record], kind: str, order: str, ours: str, theirs: str) -> np.ndarray:
    """Final test error of the closed form over that of a rival, case by case."""
    mine, rival = f"{order}, {ours}", theirs if ", " in theirs else f"all layers, {theirs}"
    pairs = [
        (final(case[mine]), final(case[rival]))
        for case in cases(records, kind).values()
        if mine in case and rival in case
    ]
    values = np.array(pairs).reshape(-1, 2)
    return np.maximum(values[:, 0], 1e-9) / np.maximum(values[:, 1], 1e-9)


def epochs_needed(record: Record, goal: float) -> int | None:
    """Epochs until the mean over seeds is no higher than the goal."""
    below = np.flatnonzero(np.mean(record["curve"], axis=1) <= goal)
    return int(below[0]) + 1 if len(below) else None


# -- the text ------------------------------------------------------------------------------------


def print_errors(records: list[Record], kind: str, title: str, form: str = ".4f") -> None:
    rows = {
        f"{task}, {size}": {short(name): final(record) for name, record in case.items()}
        for (task, size), case in cases(records, kind).items()
    }
    print_table(title, pd.DataFrame(rows).T, form)


def print_ratios(records: list[Record], kind: str) -> None:
    sizes = sorted({record["batch_size"] for record in of(records, kind)})
    if not sizes:
        return
    print("\nerror over that of all layers by the same optimiser: geometric mean (lower in)")
    print(f"{'batch size':24s}" + "".join(f"{size:>16d}" for size in sizes) + f"{'all':>16s}")
    for order in ORDERS:
        for name in OPTIMIZERS:
            cells = []
            for size in (*sizes, None):
                chosen = [r for r in of(records, kind) if size in (None, r["batch_size"])]
                found = ratios(chosen, kind, order, name, name)
                text = "-"
                if len(found):
                    text = f"{geometric_mean(found):.3f} ({(found < 1).sum()}/{len(found)})"
                cells.append(text)
            print(f"{order + ', ' + name:24s}" + "".join(f"{cell:>16s}" for cell in cells))


def seconds_of(records: list[Record]) -> dict[tuple[str, int], float]:
    """Of an epoch of one network on tables, by method and batch size."""
    return {(r["method"], r["batch_size"]): r["seconds"] for r in of(records, "times")}


def speeds(records: list[Record], kind: str, order: str, name: str) -> list[tuple]:
    """(epochs, epochs of the rival, time over the rival's) until its final error, case by case."""
    found, seconds = [], seconds_of(records)
    for (_, size), case in cases(records, kind).items():
        mine, rival = case.get(f"{order}, {name}"), case.get(f"all layers, {name}")
        if mine is None or rival is None:
            continue
        needed, all_of_it = epochs_needed(mine, final(rival)), epochs_needed(rival, final(rival))
        if "seconds" in mine:
            cost = mine["seconds"] / rival["seconds"]
        else:
            cost = seconds[mine["method"], size] / seconds[rival["method"], size]
        found.append((needed, all_of_it, cost * needed / all_of_it if needed else None))
    return found


def print_speeds(records: list[Record], kind: str) -> None:
    if not of(records, kind):
        return
    print(
        "\nuntil the final error of all layers by the same optimiser: cases in which it is reached,"
    )
    print("and medians over these of epochs / epochs of all layers, and of time / time")
    for order in ORDERS:
        for name in OPTIMIZERS:
            found = speeds(records, kind, order, name)
            done = [(one / other, time) for one, other, time in found if one]
            if done:
                epochs, time = np.median(done, axis=0)
                print(
                    f"{order + ', ' + name:28s}{len(done):3d} of {len(found)}"
                    f"{epochs:8.2f}{time:8.2f}"
                )


def report(records: list[Record]) -> None:
    print_errors(
        records, "regression", "Regression: test MSE (standardised targets), task and batch size"
    )
    print_ratios(records, "regression")
    print_speeds(records, "regression")
    print_errors(
        records, "classification", "Classification: share of wrong labels (CE: cross-entropy)"
    )
    print_ratios(records, "classification")
    print_memories(records)
    print_errors(records, "operators", "Burgers' equation, FNO: test relative L2, by batch size")
    print_ratios(records, "operators")
    print_speeds(records, "operators")
    print_errors(records, "instruments", "Instruments: squared error of the structural function")
    print_ratios(records, "instruments")
    times = {
        size: {short(m): 1e3 * s for (m, at), s in seconds_of(records).items() if at == size}
        for _, size in seconds_of(records)
    }
    print_table(
        "Milliseconds of an epoch of one network, by batch size", pd.DataFrame(times).T, ".1f"
    )
    print_failures(records)


def print_memories(records: list[Record]) -> None:
    rows: dict[str, dict[str, float]] = {}
    for (task, size), case in cases(records, "memories").items():
        for name, record in case.items():
            memory, optimizer = name.rsplit(", ", 1)
            line = rows.setdefault(f"{optimizer}, {memory}", {})
            line[f"{task}, {size}"] = final(record)
    table = pd.DataFrame(rows).T
    print_table("Memories, last layer first: test MSE; rate and ridge chosen for each", table)


def print_failures(records: list[Record]) -> None:
    print("\n" + textwrap.fill(behind(records)[0], 100))
    print(
        "\nShare of the rates (and ridges) that were tried and diverged; cases whose best rate is"
    )
    print("the least or largest that was tried")
    for kind in ("regression", "classification", "operators", "instruments"):
        by_method: dict[str, list[Record]] = {}
        for record in of(records, kind):
            by_method.setdefault(record["method"], []).append(record)
        for name, chosen in by_method.items():
            lost = np.mean([record["diverged"] for record in chosen])
            edges = sum(record["edge"] for record in chosen)
            print(f"{kind:16s}{name:28s}{lost:6.3f}   {edges} of {len(chosen)}")


# -- verdicts -------------------------------------------------------------------------------------


def verdict(shares: Iterable[float]) -> str:
    shares = list(shares)
    if min(shares) >= SEEN:
        return "seen"
    return "seen in part" if max(shares) >= IN_PART else "not seen"


def on_errors(records: list[Record], kind: str, ours: str, theirs: str) -> tuple[str, str]:
    """Verdict on a claim about test errors, and the figures behind it."""
    found = {order: ratios(records, kind, order, ours, theirs) for order in ORDERS}
    if not all(len(values) for values in found.values()):
        return "not measured", ""
    parts = [
        f"{order} {(values < 1).sum()} of {len(values)} (ratio {geometric_mean(values):.2f})"
        for order, values in found.items()
    ]
    found_verdict = verdict((values < 1).mean() for values in found.values())
    tasks = {task for task, _ in cases(records, kind)}
    if len(tasks) == 1:
        found_verdict += f" ({len(cases(records, kind))} cases of one task)"
    return found_verdict, "; ".join(parts)


def on_memory(records: list[Record]) -> tuple[str, str]:
    shares, parts = [], []
    for size in sorted({record["batch_size"] for record in of(records, "memories")}):
        found = []
        for (_, at), case in cases(records, "memories").items():
            for name in ("SGD", "Adam") if at == size else ():
                kept, none = f"previous weights (proximal), {name}", f"nothing, {name}"
                if kept in case and none in case:
                    found.append(final(case[kept]) / final(case[none]))
        if found:
            shares.append(float(np.mean(np.array(found) < 1)))
            parts.append(f"batches of {size}: {geometric_mean(np.array(found)):.2f}")
    if not shares:
        return "not measured", ""
    return verdict(shares), "error over that without memory, geometric mean, " + "; ".join(parts)


def on_wide_networks() -> tuple[str, str]:
    runs = [r for r in read_records(RESULTS / "theory.jsonl") if r["part"] == "lazy"]
    wide = [r for r in runs if r["width"] >= 4096]
    if not wide:
        return "not measured", ""
    close = [
        int(np.sum(np.abs(np.array(r["rate"]) / np.array(r["rate_own"]) - 1) <= 0.05)) for r in wide
    ]
    seeds, largest = len(wide[0]["rate"]), max(max(r["end"]) for r in runs)
    text = f"training loss at most {largest:.1e} in all {sum(len(r['end']) for r in runs)} runs; "
    text += "; ".join(
        f"width {r['width']}: late rate within 5% of the equation's in {n} of {seeds}"
        for r, n in zip(wide, close, strict=True)
    )
    good = largest < 1e-10 and min(close) >= 0.9 * seeds
    return ("seen" if good else "seen in part"), text


def on_one_step() -> tuple[str, str]:
    found = read_records(RESULTS / "one_step.jsonl")
    shares, parts = [], []
    for part, title in (
        ("draws", "random points"),
        ("run", "points along a training run, at its own rate"),
    ):
        points = [record for record in found if record["part"] == part]
        texts = []
        for order in ORDERS if points else ():
            gain = {
                what: np.array(
                    [
                        r[order]["solve"] + r[order][what][-1] - r["all layers"][what][-1]
                        for r in points
                    ]
                )
                for what in ("predicted", "measured")
            }
            shares.append(float((gain["measured"] > 0).mean()))
            right = (np.sign(gain["predicted"]) == np.sign(gain["measured"])).mean()
            texts.append(
                f"{order} takes off more in {shares[-1]:.0%}; "
                f"the first order predicts the sign in {right:.0%}"
            )
        if texts:
            parts.append(f"{len(points)} {title}: " + "; ".join(texts))
    if not shares:
        return "not measured", ""
    return verdict(shares), ". ".join(parts)


def claims(records: list[Record]) -> list[tuple[str, str, str]]:
    """Claim, verdict, figures."""
    alternating = "Equivalent to gradient steps on the backbone and closed-form updates in turn"
    rows = [
        (
            alternating,
            ("seen", "an identity, [derived](theory.md#the-gradient) and tested in float64"),
        ),
        ("A batch is traded off against earlier ones", on_memory(records)),
        ("Converges in the neural tangent kernel regime", on_wide_networks()),
        ("One step gains over one of SGD", on_one_step()),
    ]
    kinds = {
        "regression": "Regression tables",
        "operators": "Neural operators",
        "instruments": "Causal inference (instruments)",
        "classification": "Classification, squared loss (first version of the abstract)",
    }
    for kind, title in kinds.items():
        for name in OPTIMIZERS:
            text = f"{title}: better than {'SGD with momentum' if name == 'momentum' else name}"
            rows.append((text, on_errors(records, kind, name, name)))
    rows.append(
        (
            "Classification, squared loss: better than cross-entropy by Adam (ours to ask)",
            on_errors(records, "classification", "Adam", "cross-entropy, Adam"),
        )
    )
    return [(claim, *found) for claim, found in rows]


# -- the page -------------------------------------------------------------------------------------

PAGE = Path(__file__).parent / "paper_page.md"


def write_page(records: list[Record], path: Path) -> None:
    rows = "\n".join(
        f"| {claim} | **{found}** | {text} |" for claim, found, text in claims(records)
    )
    seconds = seconds_of(records)
    sizes = sorted({size for _, size in seconds})
    lines = ["| ms per epoch, batches of | " + " | ".join(map(str, sizes)) + " |"]
    lines.append("|---" * (len(sizes) + 1) + "|")
    for name in dict.fromkeys(method for method, _ in seconds):
        cells = [f"{1e3 * seconds[name, size]:.1f}" for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    speed_lines = []
    for order in ORDERS:
        for name in OPTIMIZERS:
            found = speeds(records, "regression", order, name)
            done = [(one / other, time) for one, other, time in found if one]
            if done:
                epochs, time = np.median(done, axis=0)
                speed_lines.append(
                    f"| {order}, {name} | {epochs:.2f} | {time:.2f} | {len(done)} of {len(found)} |"
                )
    path.write_text(
        PAGE.read_text().format(
            seeds={
                kind: max((record["seeds"] for record in of(records, kind)), default=0)
                for kind in ("regression", "operators", "instruments")
            },
            table=rows,
            times="\n".join(lines),
            speeds="\n".join(speed_lines),
            failures=failures(records),
        )
    )


def behind(records: list[Record]) -> tuple[str, pd.DataFrame]:
    """How often each order is behind all layers by more than a tenth; these ratios, by case."""
    ratio: dict[str, dict[str, float]] = {}
    for kind in ("regression", "classification", "operators", "instruments"):
        for (task, size), case in cases(records, kind).items():
            for order in ORDERS:
                for name in OPTIMIZERS:
                    mine, rival = case.get(f"{order}, {name}"), case.get(f"all layers, {name}")
                    if mine is not None and rival is not None:
                        values = ratio.setdefault(f"{order}, {name}", {})
                        values[f"{task}, {size}"] = final(mine) / max(final(rival), 1e-9)
    table = pd.DataFrame(ratio)
    if table.empty:
        return "Nothing was compared.", table
    lost = table > LIMIT
    parts = [f"{name} {lost[name].sum()} of {table[name].count()}" for name in table]
    both = sum(
        int(lost[[f"{order}, {name}" for order in ORDERS]].all(axis=1).sum())
        for name in OPTIMIZERS
        if all(f"{order}, {name}" in table for order in ORDERS)
    )
    text = (
        f"The closed form is behind all layers by more than a tenth in {int(lost.sum().sum())} of "
        f"{table.count().sum()} comparisons (a case, an order, an optimiser): {', '.join(parts)}. "
        f"In {both} of {len(table) * len(OPTIMIZERS)} both orders are."
    )
    return text, table.where(lost).dropna(how="all")


def failures(records: list[Record]) -> str:
    """Where the closed form is behind by more than a tenth, and what diverged."""
    text, table = behind(records)
    if len(table):
        text += "\n\nThe error over that of all layers, where it is above 1.1:\n\n"
        text += "| task, batches of | " + " | ".join(table.columns) + " |\n"
        text += "|---" * (1 + table.shape[1]) + "|\n"
        for case, row in table.iterrows():
            cells = ["" if np.isnan(value) else f"{value:.2f}" for value in row]
            text += f"| {case} | " + " | ".join(cells) + " |\n"
    measured = [r for r in records if "edge" in r and r["kind"] != "memories"]
    edges = {
        name: [r["edge"] for r in measured if r["method"].startswith(name)]
        for name in ("all layers", *ORDERS)
    }
    text += "\nThe best rate is the least or the largest that was tried (a wider search might "
    text += "help): "
    text += ", ".join(f"{name} {sum(found)} of {len(found)}" for name, found in edges.items())
    lost = {
        name: np.mean([r["diverged"] for r in measured if r["method"].startswith(name)] or [0.0])
        for name in ("all layers", *ORDERS)
    }
    text += ". Share of the runs that diverged, over all rates tried: "
    text += ", ".join(f"{name} {share:.1%}" for name, share in lost.items()) + "."
    methods = [f"{order}, {name}" for order in ("all layers", *ORDERS) for name in OPTIMIZERS]
    missing = [
        f"{task}, batches of {size}, {name}"
        for kind in ("regression", "classification", "operators", "instruments")
        for (task, size), case in cases(records, kind).items()
        for name in methods
        if name not in case
    ]
    return text + (f"\n\nNot measured: {'; '.join(missing)}." if missing else "")


# -- pictures -------------------------------------------------------------------------------------


def draw_pictures(records: list[Record], folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def save(figure, name: str) -> None:
        figure.savefig(folder / f"paper_{name}.png", dpi=80)
        plt.close(figure)

    def legend(figure, axes) -> None:
        """Of every line that is in some panel."""
        found = {}
        for ax in np.ravel(axes):
            handles, labels = ax.get_legend_handles_labels()
            found |= dict(zip(labels, handles, strict=True))
        handles, labels = list(found.values()), list(found)
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)

    def curves(ax, case: dict[str, Record], names: tuple[str, ...]) -> None:
        for order, color in COLORS.items():
            for name, style in zip(names, ("-", "--"), strict=False):
                record = case.get(f"{order}, {name}")
                if record is not None:
                    values = np.mean(record["curve"], axis=1)
                    label = f"{order}, {name}"
                    ax.semilogy(range(1, len(values) + 1), values, style, color=color, label=label)

    found = cases(records, "regression")
    tasks = list(dict.fromkeys(task for task, _ in found))
    if tasks:
        figure, axes = plt.subplots(
            2, len(tasks), figsize=(2.6 * len(tasks), 5), layout="constrained", squeeze=False
        )
        for row, size in zip(axes, (8, 128), strict=True):
            for ax, task in zip(row, tasks, strict=True):
                curves(ax, found.get((task, size), {}), ("Adam", "SGD"))
                ax.set_title(f"{task}, batch {size}", fontsize=9)
                ax.tick_params(labelsize=7, which="both")
            row[0].set_ylabel("test MSE", fontsize=8)
        for ax in axes[-1]:
            ax.set_xlabel("epoch", fontsize=8)
        legend(figure, axes)
        save(figure, "curves")
        figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained", sharey=True)
        sizes = sorted({size for _, size in found})
        for ax, name in zip(axes, OPTIMIZERS, strict=True):
            for order in ORDERS:
                rows = [
                    ratios(
                        [r for r in records if r["batch_size"] == size],
                        "regression",
                        order,
                        name,
                        name,
                    )
                    for size in sizes
                ]
                ax.semilogx(
                    sizes, [geometric_mean(row) for row in rows], color=COLORS[order], label=order
                )
                for size, row in zip(sizes, rows, strict=True):
                    ax.plot([size] * len(row), row, ".", color=COLORS[order], alpha=0.6)
            ax.axhline(1, color="k", lw=0.8, ls=":")
            ax.set(
                title=name if name == "Adam" else f"SGD{' with momentum' * (name == 'momentum')}",
                xlabel="batch size",
                yscale="log",
            )
            ax.set_xticks(sizes, sizes)
        axes[0].set_ylabel("test error / all layers")
        axes[0].legend(fontsize=8)
        save(figure, "ratios")
    found = cases(records, "memories")
    if found:
        tasks = list(dict.fromkeys(task for task, _ in found))
        figure, axes = plt.subplots(
            1, 2 * len(tasks), figsize=(5.2 * len(tasks), 3.4), layout="constrained", squeeze=False
        )
        panels = ((task, name) for task in tasks for name in ("SGD", "Adam"))
        for ax, (task, name) in zip(axes[0], panels, strict=True):
            sizes = sorted(size for at, size in found if at == task)
            for memory in dict.fromkeys(m.rsplit(", ", 1)[0] for m in found[task, sizes[0]]):
                values = [final(found[task, size][f"{memory}, {name}"]) for size in sizes]
                ax.loglog(sizes, values, "o-", ms=3, label=memory)
            ax.set_xticks(sizes, sizes)
            ax.set(title=f"{task}, {name}", xlabel="batch size")
        axes[0, 0].set_ylabel("test MSE")
        legend(figure, axes)
        save(figure, "memories")
    fields = cases(records, "operators") | cases(records, "instruments")
    if fields:
        figure, axes = plt.subplots(
            1, len(fields), figsize=(2.6 * len(fields), 3.2), layout="constrained", squeeze=False
        )
        operators = len(cases(records, "operators"))
        for index, (ax, ((task, size), case)) in enumerate(
            zip(axes[0], fields.items(), strict=True)
        ):
            curves(ax, case, ("Adam", "SGD"))
            ax.set_title(f"{task}, batch {size}", fontsize=9)
            ax.set_xlabel("epoch", fontsize=8)
            if index in (0, operators):
                what = "test relative L2" if index < operators else "structural MSE"
                ax.set_ylabel(what, fontsize=8)
            ax.tick_params(labelsize=7, which="both")
        legend(figure, axes)
        save(figure, "fields")
