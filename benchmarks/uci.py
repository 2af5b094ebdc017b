"""The published table of UCI regression sets: test error, log-likelihood, intervals.

Six sets with the 20 splits of Hernández-Lobato & Adams (2015). (i) The literature's protocol: one
hidden layer of 50 ReLU units, 40 or 400 epochs, every choice made inside the training rows; the
closed form, five of its networks, and Adam on all layers, beside published figures. (ii) This
package's defaults beside those of other regressors, measured in the same run.

    python benchmarks/uci.py --data DIR                        # all of it, many hours
    python benchmarks/uci.py --data DIR --models cfll40 adam40 --seeds 5
    python benchmarks/uci.py --report                          # print the stored records again
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from harness import RESULTS, Bench, Record, cells, print_origin
from measures import of_regression, stopwatch
from models import REGRESSORS, gaussian_process, muted
from pandas import DataFrame
from sklearn.preprocessing import StandardScaler
from tasks import UCI, uci_split
from uci_models import (
    COVERAGE,
    MEMBERS,
    Prediction,
    adam,
    cfll,
    closed_form,
    mixture,
    normal,
    single,
)

FEW_SPLITS = {("adam400", "kin8nm"): 5, ("adam400", "power-plant"): 5}
GP_ROWS = 2000

# By epochs, measure and method; the file says where from.
PUBLISHED = json.loads((RESULTS / "published_uci.json").read_text())
TITLES = {"rmse": "Test RMSE", "log_likelihood": "Test log-likelihood"}
MEASURES = (*TITLES, "squared_z", "coverage", "seconds")
DEFAULTS = {  # name in the records: how it is called in the table, in models.py
    "cfll": ("CFLLRegressor()", "CFLLRegressor"),
    "hgb": ("HistGradBoost", "HistGradBoost"),
    "mlp": ("MLPRegressor", "MLPRegressor"),
    "realmlp": ("RealMLP-TD-S", "RealMLP-TD-S"),
    "ridge": ("RidgeCV", "plain RidgeCV"),
    "gp": ("GaussianProc.", ""),
}


def record_of(
    prediction: Prediction, y: np.ndarray, seconds: float, notes: dict[str, Any] | None = None
) -> Record:
    mean, std, interval = prediction
    return of_regression(y, mean, std, interval) | {"seconds": seconds} | (notes or {})


def closed(rows: list[np.ndarray], place: Record) -> list[Record]:
    """Two records: a single network, and the mixture of five."""
    X, X_test, y, y_test = rows
    name, seed = place["model"], place["split"]
    epochs = int(name.removeprefix("cfll"))
    with stopwatch() as taken:
        options, members = cfll(X, y, seed, epochs)
        one = single(members[0], X_test)
    first = record_of(one, y_test, taken["seconds"], options)
    with stopwatch() as more:
        for i in range(len(members), MEMBERS):
            members.append(closed_form(X, y, epochs, MEMBERS * seed + i, options))
        together = mixture(members[:MEMBERS], X_test)
    seconds = taken["seconds"] + more["seconds"]
    second = record_of(together, y_test, seconds, options)
    return [first, {"model": f"{name}x{MEMBERS}"} | second]


def all_layers(rows: list[np.ndarray], place: Record) -> Record | None:
    X, X_test, y, y_test = rows
    name, seed = place["model"], place["split"]
    if seed >= FEW_SPLITS.get((name, place["set"]), 20):
        return None
    with stopwatch() as taken:
        notes, prediction = adam(X, y, X_test, seed, int(name.removeprefix("adam")))
    return record_of(prediction, y_test, taken["seconds"], notes)


def default(rows: list[np.ndarray], place: Record) -> Record:
    """A regressor at its defaults; ours has deviations and intervals, too."""
    X, X_test, y, y_test = rows
    with muted(), stopwatch() as taken:
        model = REGRESSORS[DEFAULTS[place["model"]][1]](place["split"]).fit(X, y)
    ours = place["model"] == "cfll"
    prediction = single(model, X_test) if ours else Prediction(np.ravel(model.predict(X_test)))
    return record_of(prediction, y_test, taken["seconds"])


def of_process(rows: list[np.ndarray], place: Record) -> Record:
    """A Gaussian process of 2,000 rows at most."""
    X, X_test, y, y_test = rows
    chosen = np.random.RandomState(place["split"]).permutation(len(y))[:GP_ROWS]
    with stopwatch() as taken:
        scale = StandardScaler().fit(X[chosen])
        model = gaussian_process(X.shape[1], place["split"])
        model.fit(scale.transform(X[chosen]), y[chosen])
    prediction = normal(*model.predict(scale.transform(X_test), return_std=True))
    return record_of(prediction, y_test, taken["seconds"], {"rows": len(chosen)})


MODELS = {
    "cfll40": closed,
    "adam40": all_layers,
    "cfll400": closed,
    "adam400": all_layers,
    **dict.fromkeys(list(DEFAULTS)[:-1], default),
    "gp": of_process,
}


def cell(values: np.ndarray, digits: int, width: int = 20) -> str:
    """Mean ± standard error, and the number of splits where it is not 20."""
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return f"{'-':>{width}s}"
    text = f"{values.mean():.{digits}f}"
    if len(values) > 1:
        text += f"±{values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"
    if len(values) < 20:
        text += f" ({len(values)})"
    return f"{text:>{width}s}"


class Report:
    """Tables of sets and models; ``values`` has one line per set and split."""

    def __init__(self, records: list[Record], sets: list[str]) -> None:
        self.sets = sets
        found = DataFrame(records)
        measures = [name for name in MEASURES if name in found]
        self.values = found.pivot_table(measures, ["set", "split"], "model", aggfunc="last")

    def column(self, model: str, name: str, measure: str) -> np.ndarray:
        """One value per split, NaN where there is none."""
        if (measure, model) not in self.values:
            return np.full(20, np.nan)
        return self.values[measure, model].reindex([(name, i) for i in range(20)]).to_numpy()

    def line(self, name: str, models: list[str], measure: str, digits: int) -> None:
        """Print the cells of one set."""
        digits += (name, measure) == ("kin8nm", "rmse")
        print("".join(cell(self.column(model, name, measure), digits) for model in models))

    def protocol(self, epochs: int) -> None:
        ours = [f"cfll{epochs}", f"cfll{epochs}x5", f"adam{epochs}"]
        labels = ["CFLL", "5 CFLL", "Adam"]
        for measure, title in TITLES.items():
            published = PUBLISHED[str(epochs)][measure]
            print(f"\n{title}, one hidden layer of 50, {epochs} epochs")
            print(f"{'':17s}" + cells([*published, *labels], ">20s"))
            for name in self.sets:
                theirs = [row[UCI.index(name)] for row in published.values() if name in UCI]
                print(f"{name:17s}" + cells(theirs, ">20s"), end="")
                self.line(name, ours, measure, 3)
        print(f"\nRMSE less Adam's, split by split, {epochs} epochs")
        print(f"{'':17s}" + cells(labels[:2], ">20s"))
        for name in self.sets:
            base = self.column(ours[2], name, "rmse")
            gaps = [cell(self.column(model, name, "rmse") - base, 4) for model in ours[:2]]
            print(f"{name:17s}" + "".join(gaps))

    def table(self, title: str, models: dict[str, str], measure: str, digits: int) -> None:
        print(f"\n{title}")
        print(f"{'':17s}" + cells(models.values(), ">20s"))
        for name in self.sets:
            print(f"{name:17s}", end="")
            self.line(name, list(models), measure, digits)


def report(records: list[Record], sets: list[str]) -> None:
    print(
        "Mean ± standard error over the 20 splits of Hernández-Lobato & Adams (2015); another\n"
        "number of splits in brackets. PBP, MC dropout 2016, deep ensembles: as cited by\n"
        "Lakshminarayanan et al. (2017), not read again in their own papers. MC dropout 2018 and\n"
        "its point network: result files of yaringal/DropoutUncertaintyExps.\n"
        "CFLL: rate, ridge, update order, and Adam: rate, batch size, by held-out training rows.\n"
        "5 CFLL: the mixture of five such networks. Gaussian process: 2,000 random rows at most,\n"
        "one length scale a column and noise by marginal likelihood."
    )
    tables = Report(records, sets)
    for epochs in (40, 400):
        tables.protocol(epochs)
    models = {"cfll40": "CFLL 40", "cfll40x5": "5 CFLL 40", "cfll400": "CFLL 400"}
    models |= {"cfll400x5": "5 CFLL 400", "cfll": "CFLLRegressor()", "gp": "GP"}
    tables.table(f"Coverage of the {COVERAGE:.0%} interval", models, "coverage", 3)
    tables.table("Mean squared standardised residual", models, "squared_z", 3)
    labels = {name: label for name, (label, _) in DEFAULTS.items()}
    for measure, title in TITLES.items():
        tables.table(f"{title}, default settings", labels, measure, 3)
    tables.table("Seconds to fit, default settings", labels, "seconds", 2)


def main(arguments: list[str] | None = None) -> None:
    small = {"tasks": ["diabetes"], "models": ["cfll", "ridge", "adam40"]}
    bench = Bench(__doc__, "uci", arguments, seeds=20, smallest=small)
    tasks = bench.grid(UCI, uci_split, ("set", "split"))
    bench.run(tasks, MODELS, ("set", "split", "model"))
    print_origin(bench.records)
    report(bench.records, bench.options.tasks or UCI)


if __name__ == "__main__":
    main()
