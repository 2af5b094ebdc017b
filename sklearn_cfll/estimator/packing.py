"""From tensors, dtypes and devices to plain data, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import persistence
from .._version import __version__

__all__ = ["available_device", "check_version", "map_arrays", "map_tensors", "map_values"]
__all__ += ["part_of", "versions"]


def versions() -> dict[str, Any]:
    """What a state says of the version that wrote it."""
    return {"format": persistence.FORMAT, "version": __version__}


def check_version(packed: dict[str, Any]) -> None:
    """Raise if a pickle has the format of another version."""
    if packed.get("format") != persistence.FORMAT:
        raise ValueError(
            f"The estimator was pickled by sklearn_cfll {packed.get('version')} in format "
            f"{packed.get('format')}, but this version reads format {persistence.FORMAT}. Load it "
            "with that version, or fit again."
        )


def available_device(name: str) -> torch.device:
    """The device of this name, or the CPU if this machine does not have it."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        return torch.device("cpu")
    return torch.device(name)


def map_values(function: Callable[[Any], Any], value: Any) -> Any:
    """Apply a function to a value, or to each value of a dict."""
    if isinstance(value, dict):
        return {key: function(part) for key, part in value.items()}
    return function(value)


def map_tensors(value: Any) -> Any:
    """Convert tensors to NumPy arrays in nested dicts, lists and tuples; tuples become plain."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {key: map_tensors(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(map_tensors(part) for part in value)
    return value


def map_arrays(value: Any, device: torch.device | str = "cpu") -> Any:
    """Inverse of :func:`map_tensors`, on a device."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()).to(device)
    if isinstance(value, dict):
        return {key: map_arrays(part, device) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(part, device) for part in value)
    return value


def part_of(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries of a state whose names start with a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
