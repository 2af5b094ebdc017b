"""Random numbers that depend only on a seed and leave the global state unchanged.

The package's own networks draw from separate generators that no other thread uses. Code that cannot
be given a generator (``nn.Dropout`` in a user's network, the initial weights of another package)
draws from torch's global generators. Their state is replaced for the duration of one step, or of
the construction of a network, and by one thread at a time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.dropout import SeededDropout

__all__ = ["LentStream", "draw_seed", "draws_globally", "global_seed", "mix_seed"]
__all__ += ["own_generator"]

# Held while the state of torch's global generators is changed. Reentrant: a callback may fit.
_GLOBAL_GENERATORS = threading.RLock()

# Modules of these packages draw random numbers only through the classes below.
_KNOWN_PACKAGES = ("torch.nn.", "sklearn_cfll.", "neuralop.")
_DRAWING = (
    nn.modules.dropout._DropoutNd,
    nn.RReLU,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.MultiheadAttention,
    nn.RNNBase,
)


def mix_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch; neighbouring seeds and epochs give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1


def own_generator(device: Any, seed: int) -> torch.Generator:
    """A separate generator on this device."""
    return torch.Generator(torch.device(device)).manual_seed(seed)


def global_seed() -> int:
    """A seed from torch's global generator, never from the stream of a :class:`LentStream`."""
    with _GLOBAL_GENERATORS:
        return int(torch.randint(2**31 - 1, (), device="cpu"))


class LentStream:
    """A stream of random numbers that torch's global generators return within :meth:`lent`.

    Each use continues where the previous one ended.

    Parameters
    ----------
    device : torch.device or str
        Its generator is seeded in addition to that of the CPU.
    seed : int
    """

    def __init__(self, device: Any, seed: int) -> None:
        device = torch.device(device)
        self._devices = [torch.device("cpu")] + [device] * (device.type != "cpu")
        self._seed = seed
        self._states: list[Tensor] | None = None  # None before the first use

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Use this stream, then restore the caller's state; other threads wait."""
        if self._states is None:
            self._states = [own_generator(each, self._seed).get_state() for each in self._devices]
        with _GLOBAL_GENERATORS:
            before = [_get_state(device) for device in self._devices]
            try:
                self._set(self._states)
                yield
            finally:
                self._states = [_get_state(device) for device in self._devices]
                self._set(before)

    def _set(self, states: list[Tensor]) -> None:
        for device, state in zip(self._devices, states, strict=True):
            _set_state(device, state)

    def batches(self, iterable: Iterable[Any]) -> Iterator[Any]:
        """The batches of the iterable, fetched within :meth:`lent`."""
        with self.lent():
            iterator = iter(iterable)
        done = object()
        while True:
            with self.lent():
                batch = next(iterator, done)
            if batch is done:
                return
            yield batch


def draws_globally(module: nn.Module) -> bool:
    """Whether a forward pass, or the first one of a lazy network, may draw random numbers.

    Modules whose code is not known are assumed to do so.
    """
    return any(_draws(part) for part in module.modules()) or any(
        isinstance(parameter, nn.UninitializedParameter) for parameter in module.parameters()
    )


def _draws(part: nn.Module) -> bool:
    if isinstance(part, SeededDropout):
        return False
    if isinstance(part, _DRAWING):
        share = getattr(part, "p", getattr(part, "dropout", 1.0))
        return bool(share)
    return not type(part).__module__.startswith(_KNOWN_PACKAGES)


def _get_state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.random.default_generator.get_state()
    return torch.get_device_module(device).get_rng_state(*_named(device))


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.random.default_generator.set_state(state)
    else:
        torch.get_device_module(device).set_rng_state(state, *_named(device))


def _named(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one


def fresh_seed() -> int:
    """A seed from the operating system's entropy."""
    return int(np.random.default_rng().integers(2**31 - 1))


def draw_seed(random_state: Any) -> int:
    """A seed from ``random_state``; None uses fresh entropy, not NumPy's global state."""
    if random_state is None:
        return fresh_seed()
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(random_state)
