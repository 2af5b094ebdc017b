"""Each term and each factor of each formula is needed: without it, its check fails."""

import ast
import types
from pathlib import Path

import numpy as np
import pytest

import checks
import formulas

TREE = ast.parse(Path(formulas.__file__).read_text())


def operations(tree):
    """Sums, products and quotients within the formulas, in the order of the file."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.BinOp)]


def without(index, side):
    """The formulas with one operand of one operation left out."""
    tree = ast.parse(Path(formulas.__file__).read_text())
    target = operations(tree)[index]

    class Remove(ast.NodeTransformer):
        def visit_BinOp(self, node):
            return getattr(node, side) if node is target else self.generic_visit(node)

    module = types.ModuleType("mutant")
    exec(
        compile(ast.fix_missing_locations(Remove().visit(tree)), "mutant", "exec"), module.__dict__
    )
    return module


def fails(check, module):
    try:
        with np.errstate(all="ignore"):
            check(module)
    except (AssertionError, ValueError, IndexError, TypeError, np.linalg.LinAlgError):
        return True
    return False


def label(index):
    return ast.unparse(operations(TREE)[index])[:60]


@pytest.mark.parametrize("index", range(len(operations(TREE))), ids=label)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_formula_without_a_part_of_it_fails(index, side):
    module = without(index, side)
    assert any(fails(check, module) for check in checks.CHECKS.values())
