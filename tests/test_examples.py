"""The examples run, and show what they say they show."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.slow
def test_plain_loops_of_both_orders_beat_adam_on_all_layers(capsys):
    errors = load("plain_loop.py")["main"]()
    assert errors["last_layer_first"] < errors["all_layers"]
    assert errors["backbone_first"] < errors["all_layers"]
    assert "backbone_first" in capsys.readouterr().out


@pytest.mark.slow
def test_tabular_example_predicts_and_reopens_its_model(capsys):
    assert load("tabular.py")["main"]() > 0.75
    assert "same probabilities: True" in capsys.readouterr().out


@pytest.mark.slow
def test_burgers_surrogate_predicts_on_a_finer_grid(tmp_path, monkeypatch):
    pytest.importorskip("neuralop")
    monkeypatch.chdir(tmp_path)  # it draws burgers.png
    coarse, fine = load("burgers.py")["main"]()
    assert coarse < 0.03
    assert fine < 1.2 * coarse
