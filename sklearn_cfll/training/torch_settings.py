"""The device, and the torch settings of a call, which are restored afterwards."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

import torch

__all__ = ["callers_threads", "default_modes", "resolve_device", "use_threads"]

KINDS = ("cpu", "cuda", "mps", "xpu")

_NUMBER_OF_THREADS = threading.Lock()
_callers = threading.local()


@contextlib.contextmanager
def default_modes() -> Iterator[None]:
    """Enable gradients, disable inference mode and autocast, use the CPU as the default device.

    All of these are settings of the calling thread. A fit needs gradients wherever it is called,
    its last layer is solved in the precision of the data, and a prediction does not depend on the
    caller.
    """
    if _are_default():
        yield
        return
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _are_default() -> bool:
    """Whether there is nothing to change."""
    modes = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    if not modes or torch.empty(0).device.type != "cpu":
        return False
    return not any(map(torch.is_autocast_enabled, KINDS))


@contextlib.contextmanager
def use_threads(n_threads: int) -> Iterator[None]:
    """Use this number of threads in the calling thread; other threads keep theirs.

    Raises
    ------
    ValueError
        If there are more than 16 threads per core: with some thousands, torch hangs or crashes.
    """
    if n_threads > 16 and n_threads > (most := 16 * (os.cpu_count() or 1)):
        raise ValueError(
            f"`n_threads`={n_threads} is more than 16 per core of this machine. Use at most "
            f"{most}; more than one per core gives no gain."
        )
    with _NUMBER_OF_THREADS:
        before = torch.get_num_threads()
    within = getattr(_callers, "number", None)
    _callers.number = within or before
    try:
        if n_threads != before:
            _set_num_threads(n_threads)
        yield
    finally:
        if n_threads != before:
            _set_num_threads(before)
        _callers.number = within


def callers_threads() -> int:
    """The calling thread's number of threads outside all :func:`use_threads` blocks."""
    return getattr(_callers, "number", None) or torch.get_num_threads()


def _set_num_threads(n_threads: int) -> None:
    """Set the number of threads of the calling thread alone.

    ``torch.set_num_threads`` also sets the initial number of threads that have not used torch yet.
    A new thread reads that number before the call and restores it afterwards.
    """
    is_read, is_set = threading.Event(), threading.Event()

    def keep_number_of_new_threads() -> None:
        number = torch.get_num_threads()
        is_read.set()
        is_set.wait()
        torch.set_num_threads(number)

    with _NUMBER_OF_THREADS:
        new_thread = threading.Thread(target=keep_number_of_new_threads)
        new_thread.start()
        try:
            is_read.wait()
            torch.set_num_threads(n_threads)
        finally:
            is_set.set()
            new_thread.join()


def resolve_device(device: Any) -> torch.device:
    """The torch device; "auto" is CUDA if it is available, otherwise the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:  # TypeError: not a string
        reason = f": {error}" if isinstance(error, RuntimeError) else ""
        raise ValueError(
            f'`device`={device!r} is neither "auto" nor a torch device such as "cpu" or '
            f'"cuda:0"{reason}'
        ) from error
    try:
        if resolved.type == "meta":
            raise RuntimeError("its tensors have no data")
        torch.empty(0, device=resolved)
    except Exception as error:  # of many kinds: AssertionError, ImportError, RuntimeError...
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        here += ["mps"] * torch.backends.mps.is_available()
        kind = resolved.type
        name = str(resolved) if any(kind in other for other in here) else f"{kind.upper()} device"
        raise ValueError(
            f"`device`={device!r} was requested, but torch finds no usable {name} on this "
            f'machine, only {", ".join(here)}. Use device="auto" for the best available device, '
            'or device="cpu".'
        ) from error
    return resolved
