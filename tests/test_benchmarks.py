"""Claims: the smallest case of every benchmark runs; records and the page of docs agree."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import reference
from sklearn_cfll import CFLLClassifier, CFLLRegressor

FOLDER = Path(__file__).parents[1] / "benchmarks"
RESULTS = FOLDER / "results"
NO_SCRIPT = {"report"}
SCRIPTS = sorted(
    path.stem
    for path in FOLDER.glob("*.py")
    if "if __name__" in path.read_text() and path.stem not in NO_SCRIPT
)
SLOW = {"classification", "classifier_defaults", "columns", "cross_fitted", "field_ridge"}
# More than three seconds each.
SLOW |= {"gpu", "honest", "instruments_textbook", "large", "operators", "tables_as_they_come"}
SLOW |= {"instruments_band", "outliers", "overheads", "ranks", "ridge_rules", "step_parts", "steps"}
SLOW |= {"theory", "uci"}
REPORTED = sorted(set(SCRIPTS) & {path.stem for path in RESULTS.glob("*.jsonl")})

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not in an installed package")
Load = Callable[[str], types.ModuleType]


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """Import a benchmark; its names are forgotten afterwards."""
    pytest.importorskip("pandas")
    before, path, n_threads = set(sys.modules), list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path[:] = path
    torch.set_num_threads(n_threads)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == FOLDER:
            del sys.modules[name]


@pytest.mark.parametrize(
    "script", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in SCRIPTS]
)
def test_the_smallest_case_runs_and_stores_its_origin(script, load, tmp_path, capsys, monkeypatch):
    for kind in (CFLLRegressor, CFLLClassifier):  # it is to run, not to learn
        few = dataclasses.replace(kind.defaults, epochs=2, field_epochs=2)
        monkeypatch.setattr(kind, "defaults", few)
    file = tmp_path / "records.jsonl"
    load(script).main(["--smallest", "--results", str(file)])
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert records
    for record in records:
        assert {"commit", "versions", "machine", "threads"} <= set(record["origin"])
    assert "commit" in capsys.readouterr().out


@pytest.mark.parametrize("script", REPORTED)
def test_a_report_prints_what_is_kept(script, load, capsys):
    load(script).main(["--report"])
    assert (RESULTS / f"{script}.txt").read_text().startswith(capsys.readouterr().out)


def test_the_page_of_benchmarks_shows_what_is_kept(load):
    report = load("report")
    assert report.main(["--check"]) == 0
    pages = "".join(page.read_text() for page in report.PAGES)
    shown = set(re.findall(r"<!-- (\S+) -->", pages))
    assert shown == {path.name for path in RESULTS.glob("*.txt")}


def test_a_run_goes_on_where_it_stopped(load, tmp_path):
    harness, file, calls = load("harness"), tmp_path / "records.jsonl", []

    def model(task, place):
        calls.append((place["task"], place["model"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"value": task}

    def run():
        bench = harness.Bench("", "none", ["--results", str(file)], seeds=2)
        tasks = bench.grid(["a", "b"], lambda name, seed, where: seed)
        bench.run(tasks, {"one": model}, ("task", "seed", "model"))
        return bench.records

    with pytest.raises(KeyboardInterrupt):
        run()
    assert [record["task"] for record in run()] == ["a", "b", "a", "b"]
    assert calls == [("a", "one"), ("b", "one"), ("a", "one"), ("a", "one"), ("b", "one")]


def test_a_report_names_the_origin_that_is_stored(load, capsys):
    harness = load("harness")
    origin = harness.origin() | {"commit": "0123456789", "machine": "abacus"}
    harness.print_origin([{"value": 1}, {"value": 2, "origin": origin}])
    unknown, known = capsys.readouterr().out.splitlines()
    assert "the commit is unknown" in unknown
    assert "commit 0123456789" in known and "abacus" in known


def test_what_needs_a_missing_file_or_package_is_left_out(load, tmp_path, capsys):
    harness, tasks = load("harness"), load("tasks")
    bench = harness.Bench("", "none", ["--results", str(tmp_path / "none.jsonl")], seeds=1)

    def needy(task, place):
        import a_package_that_is_missing  # noqa: F401

    models = {"needy": needy, "one": lambda task, place: {"n": len(task.train[0])}}
    bench.run(bench.grid(["energy", "diabetes"], tasks.load_task), models, ("task", "model"))
    assert [(record["task"], record["model"]) for record in bench.records] == [("diabetes", "one")]
    said = capsys.readouterr().err
    assert "energy" in said and "a_package_that_is_missing" in said


def test_thresholds_are_replaced_in_a_subclass(load):
    models = load("models")
    changed = models.with_defaults(models.CFLLRegressor, folds_from=5)
    assert changed.defaults.folds_from == 5
    assert models.CFLLRegressor.defaults.folds_from == 10
    X = np.random.default_rng(0).normal(size=(8, 2))
    kept = [kind(max_epochs=2).fit(X, X[:, 0]) for kind in (models.CFLLRegressor, changed)]
    assert [model.history_[0]["valid_loss"] is None for model in kept] == [True, False]


@pytest.mark.parametrize("memory", ["proximal", "statistics"])
def test_last_layers_side_by_side_equal_the_reference(memory, load):
    loops = load("paper_loops")
    kind = {"proximal": reference.Proximal, "statistics": reference.Statistics}[memory]
    method = loops.Method("sgd", "last_layer_first", memory, 0.9)
    layer = loops.Solved(5, 2, torch.tensor([0.1, 2.0]), method)
    memories, expected = [kind(), kind()], [torch.zeros(6, 2, dtype=torch.float64)] * 2
    for _ in range(3):
        features, targets = torch.randn(2, 9, 5) + 1.0, torch.randn(2, 9, 2)
        layer.step(features, targets)
        for member, ridge in enumerate((0.1, 2.0)):
            rows = features[member].double(), targets[member].double()
            expected[member] = memories[member].solve(expected[member], *rows, ridge, 0.9)
    for member, wanted in enumerate(expected):
        found = torch.cat([layer.weight[member].T, layer.bias[member]])
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_no_script_reaches_into_private_names():
    of_peers = {"sieve"}  # EconML's estimator gives no level of its prediction
    for path in FOLDER.glob("*.py"):
        text = path.read_text()
        owners = set(re.findall(r"(\w+)\._(?!_|replace)[a-z]", text)) - {"self", "cls"} - of_peers
        assert not owners and "unittest.mock" not in text, path
