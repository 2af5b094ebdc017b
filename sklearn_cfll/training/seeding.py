"""Randomness that follows from a seed alone and leaves the global state as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["mix_seed", "preserved_random_state", "seed_torch"]


def mix_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; near seeds and epochs give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1


@contextlib.contextmanager
def preserved_random_state(device: Any, seed: int) -> Iterator[None]:
    """Seed torch inside the block; put the global random state back after it."""
    device = torch.device(device)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed_torch(device, seed)
        yield


def seed_torch(device: Any, seed: int) -> None:
    """Seed the generators in use: ``torch.manual_seed`` looks at every kind of device there is."""
    torch.random.default_generator.manual_seed(seed)
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).manual_seed(seed)
