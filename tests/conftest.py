"""Shared by all tests."""

import os

# Before SciPy is imported: scikit-learn's check of array-API input is skipped without it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import itertools

import pytest
import torch

from sklearn_cfll.instruments.partially_linear import SMOOTH
from sklearn_cfll.training import seeding

# Several workers with several threads each wait for one another: on two cores ten times
# slower than one thread a worker.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_networks_every_time():
    """Networks that a test builds itself start from torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_seeds_every_time(monkeypatch):
    """Estimators without a `random_state` draw other seeds at each fit, but the same in each run.

    A threshold that one seed in ten misses would fail by chance.
    """
    seeds = itertools.count(1)
    monkeypatch.setattr(seeding, "fresh_seed", lambda: next(seeds))


@pytest.fixture(autouse=True)
def _short_fits_to_the_controls(request, monkeypatch):
    """Networks of the controls train for a few epochs where what they predict is not tested.

    They take most of the time of a small fit with instruments.
    """
    tested = request.node.path.stem == "test_effect"
    if not (tested or request.node.get_closest_marker("slow")):
        monkeypatch.setitem(SMOOTH, "max_epochs", 3)
