"""Every block of the user guide runs as it stands, after what a reader of it has."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.datasets import load_digits, make_friedman1
from torch import nn

import sklearn_cfll.datasets
from sklearn_cfll import CFLLRegressor
from sklearn_cfll.datasets import make_burgers

GUIDE = Path(__file__).parents[1] / "docs" / "guide.md"


def blocks_of_the_guide():
    """Blocks by the heading that they stand below."""
    found = {}
    for part in re.split(r"^## ", GUIDE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```python\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL)
        if blocks:
            found[part.splitlines()[0]] = blocks
    return found


BLOCKS = blocks_of_the_guide()
X, y = make_friedman1(200, n_features=5, noise=0.5, random_state=0)
rng = np.random.default_rng(0)


def table():
    split = {"X_train": X[:150], "y_train": y[:150], "X_val": X[150:], "y_val": y[150:]}
    return {"X": X, "y": y, **split}


def backbones():
    def build(input_shape, width):
        return nn.Sequential(nn.Linear(*input_shape, width), nn.ReLU())

    named = {"prices": rng.normal(size=(60, 3)), "shop": rng.integers(0, 20, 60)}
    return {"my_module": nn.Linear(5, 8), "build": build, "y": rng.normal(size=60), **named}


def images():
    digits = load_digits()
    return {"images": digits.images[:200], "labels": digits.target[:200]}


def few_samples(n_samples, grid, **options):
    return make_burgers(min(n_samples, 40), grid, **options)


def operators():
    pytest.importorskip("neuralop")
    return {"X_on_512_points": make_burgers(2, 512, random_state=1)[0]}


def instruments():
    Z, C, hidden = (rng.normal(size=(200, k)) for k in (1, 2, 1))
    treatment = Z + C[:, :1] + hidden
    outcome = np.sin(treatment[:, 0]) + C[:, 1] + hidden[:, 0]
    return {"X": treatment, "y": outcome, "Z": Z, "C": C, "X_new": treatment[:5], "C_new": C[:5]}


def pictures():
    pytest.importorskip("matplotlib").use("Agg")
    frame = pd.DataFrame(X, columns=["dose", *"abcd"])
    model = CFLLRegressor(random_state=0).fit(frame[:150], y[:150])
    y_pred, (lower, upper) = model.predict(frame), model.predict_interval(frame)
    fields = rng.normal(size=(60, 12))
    network = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3, padding=1), nn.Tanh())
    operator = CFLLRegressor(nn.Sequential(*network, nn.Conv1d(4, 1, 1)), random_state=0)
    return {
        "model": model,
        "X_test": frame[150:],
        "y_test": y[150:],
        "X_grid": frame[:20].sort_values("dose"),
        "x": X[:, 0],
        "y": y,
        "y_pred": y_pred,
        "lower": lower,
        "upper": upper,
        "operator": operator.fit(fields, np.tanh(fields)[:, None]),
        "fields": fields[:5],
        "solutions": np.tanh(fields[:5])[:, None],
    }


def sales():
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    Path("sales").mkdir()
    parquet.write_table(arrow.table({"size": X[:, 0], "price": y}), "sales/part.parquet")
    return {}


def fitted():
    return {"model": CFLLRegressor(random_state=0).fit(X[:150], y[:150]), "X": X}


# What a reader has before the blocks of each section.
GIVEN = {
    "Six lines": dict,
    "A table as it comes": table,
    "A table of numbers": table,
    "A backbone of your own": backbones,
    "Images and fields": images,
    "Neural operators": operators,
    "Uncertainty": fitted,
    "Instrumental variables": instruments,
    "Pictures": pictures,
    "Larger than memory": sales,
    "After fitting": lambda: fitted() | {"X_more": X[150:], "y_more": y[150:]},
}


def test_every_section_with_code_is_run():
    assert BLOCKS.keys() == GIVEN.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of so few rows and epochs
@pytest.mark.parametrize("section", BLOCKS)
def test_blocks_run_one_after_the_other(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # one of them saves a model
    # Two epochs and forty samples: here the code is to run, not to learn.
    few = dataclasses.replace(CFLLRegressor.defaults, epochs=2, field_epochs=2)
    monkeypatch.setattr(CFLLRegressor, "defaults", few)
    monkeypatch.setattr(
        sklearn_cfll.datasets,
        "make_burgers",
        lambda _, grid, **seed: make_burgers(40, grid, **seed),
    )
    names = {"__name__": "guide", **GIVEN[section]()}
    with sklearn.config_context():  # one of them turns routing on
        for number, block in enumerate(BLOCKS[section], start=1):
            exec(compile(block, f"{GUIDE.name}, {section}, block {number}", "exec"), names)
