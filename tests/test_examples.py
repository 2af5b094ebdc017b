"""The examples run, and show what they say they show."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def load(name):
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.slow
def test_plain_loops_of_both_orders_beat_adam_on_all_layers(capsys):
    errors = load("plain_loop.py")["main"]()
    assert errors["last_layer_first"] < errors["all_layers"]
    assert errors["backbone_first"] < errors["all_layers"]
    for order in ("last_layer_first", "backbone_first"):
        assert errors[f"{order}, refitted"] < errors[order]
    assert "backbone_first" in capsys.readouterr().out


@pytest.mark.slow
def test_tabular_example_predicts_and_reopens_its_model(capsys):
    assert load("tabular.py")["main"]() > 0.75
    assert "same probabilities: True" in capsys.readouterr().out


@pytest.mark.slow
def test_a_raw_frame_is_scored_explained_and_saved(capsys):
    assert load("tables.py")["main"]() > 0.8
    assert "same probabilities: True" in capsys.readouterr().out


@pytest.mark.slow
def test_burgers_surrogate_predicts_on_a_finer_grid(tmp_path, monkeypatch):
    pytest.importorskip("neuralop")
    monkeypatch.chdir(tmp_path)  # it draws burgers.png
    coarse, fine = load("burgers.py")["main"]()
    assert coarse < 0.03
    assert fine < 1.2 * coarse


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most", "of_adam"), [("darcy", 0.045, 1.0), ("navier_stokes", 0.13, 1.15)]
)
def test_surrogates_in_two_dimensions_against_adam_on_all_layers(
    name, most, of_adam, tmp_path, monkeypatch
):
    pytest.importorskip("neuralop")
    monkeypatch.chdir(tmp_path)  # each draws its picture
    errors = load(f"{name}.py")["main"]()
    assert errors["closed form"] < min(most, of_adam * errors["adam"])
    assert errors.get("finer grid", 0.0) < 1.2 * errors["closed form"]
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.slow
def test_intervals_example_covers_alike_in_quiet_and_noisy_places(tmp_path, monkeypatch):
    pytest.importorskip("mapie")
    pytest.importorskip("crepes")
    monkeypatch.chdir(tmp_path)  # it draws intervals.png
    measured = load("intervals.py")["main"]()
    assert all(abs(overall - 0.9) < 0.03 for overall, _, _ in measured.values())
    assert all(abs(part - 0.9) < 0.04 for part in measured["predict_interval"])


@pytest.mark.slow
def test_two_parameters_are_enough_to_see_the_closed_form(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it draws landscape.png and landscape.gif
    losses = load("landscape.py")["main"]()
    good, low, dead = losses["relu"]
    for ends in (good, low, *losses["tanh"]):
        assert ends["closed form"] < min(0.02, 1.01 * ends["gradient descent"])
    assert dead["closed form"] > 0.5  # from θ < 0 no step leads across zero
    assert (tmp_path / "landscape.png").exists() and (tmp_path / "landscape.gif").exists()


@pytest.mark.slow
def test_the_readme_is_short_and_its_code_runs_as_it_stands(capsys):
    text, *rest = (ROOT / "README.md").read_text().split("```python\n")
    blocks = [part.split("```")[0] for part in rest]
    words = " ".join([text, *(part.split("```", 1)[1] for part in rest)]).split()
    assert len(words) <= 450
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published", "low", "high"),
    [("schooling", (0.0747, 0.1315), 0.09, 0.14), ("married_women", (0.1075, 0.0614), 0.04, 0.08)],
)
def test_effects_on_textbook_data_are_near_two_stage_least_squares(
    name, published, low, high, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("linearmodels")
    pytest.importorskip("ivmodels")
    monkeypatch.chdir(tmp_path)  # it draws its picture
    *linear, effect = load(f"{name}.py")["main"]()
    assert linear == pytest.approx(published, abs=1e-4)
    assert low < effect < high
    assert "Anderson-Rubin" in capsys.readouterr().out
    assert (tmp_path / f"{name}.png").exists()


@pytest.mark.slow
def test_processes_that_torchrun_starts_end_with_one_score():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]  # a free port
    done = subprocess.run(
        [*command, str(EXAMPLES / "distributed_torchrun.py")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    scores = re.findall(r"process \d: R² (\S+)", done.stdout)
    assert len(scores) == 2 and scores[0] == scores[1] and float(scores[0]) > 0.9
