"""Each term and each factor of each formula is needed: without it, its check fails.

Most mutants give other numbers; some cannot be computed or have another shape, and nothing is
compared. The two are told apart.
"""

import ast
import functools
import inspect
import types
from pathlib import Path

import numpy as np
import pytest

import checks
import formulas

SOURCE = Path(formulas.__file__).read_text()
TREE = ast.parse(SOURCE)
BROKEN = (checks.OtherShapeError, ValueError, IndexError, TypeError, np.linalg.LinAlgError)


def operations(tree):
    """Sums, products and quotients within the formulas, in the order of the file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]


def compiled(code):
    module = types.ModuleType("mutant")
    exec(compile(code, "mutant", "exec"), module.__dict__)
    return module


def without(index, side):
    """The formulas with one operand of one operation left out."""
    tree = ast.parse(SOURCE)
    target = operations(tree)[index]

    class Remove(ast.NodeTransformer):
        def visit_BinOp(self, node):
            return getattr(node, side) if node is target else self.generic_visit(node)

    return compiled(ast.fix_missing_locations(Remove().visit(tree)))


def outcomes(module):
    """Of all checks: "other" if numbers differ, "broken" if there are none to compare."""
    found = set()
    for check in checks.CHECKS.values():
        try:
            with np.errstate(all="ignore"):
                check(module)
        except AssertionError:
            return {"other"}
        except BROKEN:
            found.add("broken")
    return found


@functools.cache
def fate(index, side):
    return outcomes(without(index, side))


def label(index):
    return ast.unparse(operations(TREE)[index])[:60]


MUTANTS = range(len(operations(TREE)))


@pytest.mark.parametrize("index", MUTANTS, ids=label)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_formula_without_a_part_of_it_fails(index, side):
    assert fate(index, side)


def test_most_mutants_give_other_numbers():
    fates = [fate(index, side) for index in MUTANTS for side in ("left", "right")]
    broken = sum(each == {"broken"} for each in fates)
    assert broken < 0.3 * len(fates)  # 62 of 234; a singular matrix may go either way


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("centered(targets))[0]", "centered(targets))[-1]"),  # of ỸᵀỸ
        ("inner[1]", "inner[0]"),
        ("inner[1]", "inner[2]"),
        ("inner[1]", "inner[5]"),
        ("inner[-1]", "inner[-2]"),
        ("top(invariant(features, kernel))", "eigvalsh(invariant(features, kernel))[0]"),
        ("eigvalsh(centered(centered(kernel).T))", "eigvalsh(kernel)"),
    ],
)
def test_another_eigenvalue_in_the_bound_of_the_rate_fails(right, wrong):
    source = inspect.getsource(formulas.least_rate)
    assert source.count(right) == 1
    mutant = compiled(SOURCE.replace(source, source.replace(right, wrong)))
    assert outcomes(mutant) == {"other"}
