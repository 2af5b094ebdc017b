"""Cache of simulated arrays: one npz file per set of parameters, with a checksum."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from .._warnings import user_level

__all__ = ["CONSTRAINT", "cached"]

# Allowed values of `cache_dir`, for scikit-learn's parameter validation.
CONSTRAINT = [str, os.PathLike, None]

# Part of every file name; to be increased when the results of a simulator change.
_VERSION = 1


class _Unreadable(Exception):
    """A cached file is damaged; the message says how."""


def cached(
    simulate: Callable[[], tuple[np.ndarray, ...]],
    name: str,
    parameters: Mapping[str, Any],
    *,
    random_state: Any,
    cache_dir: str | os.PathLike[str] | None,
) -> tuple[np.ndarray, ...]:
    """Return the arrays of ``simulate()``, read from ``cache_dir`` if stored there and intact.

    The file name contains ``name``, ``parameters`` and ``random_state``. The last must be an
    integer, because nothing else gives the same data in another session. If a file cannot be read,
    or its content does not match the SHA-256 stored in it, the arrays are computed again, with a
    warning.
    """
    if cache_dir is None:
        return simulate()
    if not isinstance(random_state, Integral):
        raise ValueError(
            f"`cache_dir` needs an integer `random_state`, got {random_state!r}: only an integer "
            "gives the same data on every call. Pass random_state=0, or cache_dir=None."
        )
    path = Path(cache_dir) / _file_name(name, {**parameters, "seed": int(random_state)})
    if path.exists():
        try:
            return _read(path)
        except _Unreadable as error:
            warnings.warn(
                f"The cached file {path} is damaged ({error}); it is computed again.",
                UserWarning,
                stacklevel=user_level(),
            )
    arrays = simulate()
    _write(path, arrays)
    return arrays


def _file_name(name: str, parameters: Mapping[str, Any]) -> str:
    """Readable file name, equal on all systems: ``burgers-n_samples=5-...-v1.npz``."""
    settings = [f"{key}={_plain(value)}" for key, value in parameters.items()]
    return "-".join([name, *settings, f"v{_VERSION}"]) + ".npz"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "_".join(map(_plain, value))
    return str(value) if isinstance(value, (Integral, str)) else repr(float(value))


def _digest(arrays: tuple[np.ndarray, ...]) -> str:
    """SHA-256 of dtypes, shapes and values."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(path: Path) -> tuple[np.ndarray, ...]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = str(archive["sha256"])
            arrays = tuple(archive[f"array_{i}"] for i in range(len(archive.files) - 1))
    except Exception as error:  # a damaged file can raise zip, zlib, header and key errors
        raise _Unreadable(f"{type(error).__name__}: {error}") from error
    if _digest(arrays) != stored:
        raise _Unreadable("its content does not match its SHA-256")
    return arrays


def _write(path: Path, arrays: tuple[np.ndarray, ...]) -> None:
    """Write under a temporary name and rename, so that incomplete files are never read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {f"array_{i}": array for i, array in enumerate(arrays)}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, sha256=np.array(_digest(arrays)), **content)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
