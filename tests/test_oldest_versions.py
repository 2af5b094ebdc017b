"""The least versions that are declared are those that `make test-oldest` installs."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
NEWER = {"torch"}  # of older ones there are CUDA builds only: docs/development.md


def declared():
    """Every requirement of the package and of the extras that the tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["plot"], *extras["operators"], *extras["test"]]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def pins():
    text = (ROOT / "constraints-oldest.txt").read_text()
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, flags=re.MULTILINE))


def test_every_package_is_pinned():
    assert set(pins()) == set(declared())


@pytest.mark.parametrize("name", sorted(set(declared()) - NEWER))
def test_pins_are_the_declared_minima(name):
    (specifier,) = declared()[name].specifier
    assert specifier.operator == ">="
    assert Version(pins()[name]) == Version(specifier.version)


@pytest.mark.parametrize("name", sorted(NEWER))
def test_newer_pins_are_allowed(name):
    assert declared()[name].specifier.contains(pins()[name])


def test_extras_declare_the_same_minima():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = declared()
    for extra in ("plot", "operators", "bench"):
        for one in map(Requirement, project["optional-dependencies"][extra]):
            assert one.specifier == known.get(one.name, one).specifier
