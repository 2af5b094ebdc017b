"""Shared by all tests."""

import os

# Before SciPy is imported: scikit-learn's check of array-API input is skipped without it.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import torch

# Several workers with several threads each wait for one another: on two cores ten times
# slower than one thread a worker.
torch.set_num_threads(1)
