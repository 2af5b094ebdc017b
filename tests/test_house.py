"""The house: rooms import only from below, never in a circle, and say what they are."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sklearn_cfll

PACKAGE = Path(sklearn_cfll.__file__).parent
# From the top to the bottom. A room may import from itself and from what stands below it.
ROOMS = (
    "inspection",
    "instruments",
    "regressor",
    "classifier",
    "estimator",
    "final_solve",
    "persistence",
    "training",
    "heads",
    "backbones",
    "data",
    "columns",
    "linalg",
    "datasets",
    "_validation",
    "_warnings",
    "_compat",
    "_version",
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def name(path):
    """Dotted name below the package; that of a room for its ``__init__``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name(path) for path in FILES}


def imported(path):
    """Modules of the package that a file imports anywhere in it."""
    package = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
        module = ".".join(part for part in base if part)
        for alias in node.names:
            whole = f"{module}.{alias.name}".lstrip(".")
            if whole in MODULES:
                yield whole
            elif module in MODULES:
                yield module


def room(module):
    return module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_only_from_rooms_below(path):
    own = ROOMS.index(room(name(path)))
    above = {module for module in imported(path) if ROOMS.index(room(module)) < own}
    assert not above


def test_no_file_imports_in_a_circle():
    graph = {name(path): set(imported(path)) - {name(path)} for path in FILES}
    rooms = {name(path) for path in FILES if path.name == "__init__.py"}
    # A room's own files may import its name only as a whole.
    graph = {module: {each for each in uses if each not in rooms} for module, uses in graph.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_first_line_says_what_lives_there(path):
    first, *_ = ast.get_docstring(ast.parse(path.read_text())).splitlines()
    assert 20 < len(first) < 100 and first.endswith(".")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_and_classes_have_a_size_to_read(path):
    text = path.read_text()
    assert text.count("\n") < 400
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    assert all(node.end_lineno - node.lineno < 300 for node in classes)


def test_files_of_tests_have_names_of_their_own():
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(set(names)) == len(names)  # pytest imports them by name, whatever their folder


def test_the_page_for_developers_names_files_that_are_there():
    page = PACKAGE.parent / "docs" / "development.md"
    if not page.exists():  # an installed package
        pytest.skip("no docs")
    named = re.findall(r"`([a-z_/]+\.py)`", page.read_text())
    assert len(named) > 20
    missing = [n for n in named if not any((r / n).exists() for r in (PACKAGE, PACKAGE.parent))]
    assert not missing


@pytest.mark.parametrize("path", FILES, ids=name)
def test_private_names_of_scikit_learn_stand_in_one_file(path):
    if path.name == "_compat.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn."):
            words = [*node.module.split("."), *(alias.name for alias in node.names)]
            assert not [word for word in words if word.startswith("_")]


def test_instruments_are_imported_when_they_are_used():
    code = (
        "import sys, sklearn_cfll as package; "
        "assert not any(name.startswith('sklearn_cfll.instruments') for name in sys.modules); "
        "assert {'CFLLIVRegressor', 'CFLLRegressor'} < set(dir(package)); "
        "from sklearn_cfll import *; assert CFLLIVRegressor is package.instruments.CFLLIVRegressor"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sklearn_cfll.nothing  # noqa: B018
