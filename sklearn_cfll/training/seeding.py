"""Randomness that follows from a seed alone and leaves the global state as it was.

Our own networks draw from generators of their own, which no other thread sees. Code that cannot
be given one (``nn.Dropout`` in a user's network, the initial weights of another package) draws from
torch's global generators. These are lent to it for a step or the building of a network at a time,
to one thread after the other.
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

# Whoever changes the state of torch's global generators holds it. Reentrant: a callback may fit.
_GLOBAL_GENERATORS = threading.RLock()

# Modules of these packages draw nothing but through those of the kinds below.
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
    """A seed for one epoch; near seeds and epochs give unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]) >> 1


def own_generator(device: Any, seed: int) -> torch.Generator:
    """A generator on this device that nobody else draws from."""
    return torch.Generator(torch.device(device)).manual_seed(seed)


def global_seed() -> int:
    """A seed from torch's global generator, never one from a stream that it is lent to."""
    with _GLOBAL_GENERATORS:
        return int(torch.randint(2**31 - 1, (), device="cpu"))


class LentStream:
    """A stream of random numbers that torch's global generators give while they are lent to it.

    Lent again, they go on where the stream was left.

    Parameters
    ----------
    device : torch.device or str
        Its generator is seeded beside that of the CPU.
    seed : int
    """

    def __init__(self, device: Any, seed: int) -> None:
        device = torch.device(device)
        self._devices = [torch.device("cpu")] + [device] * (device.type != "cpu")
        self._seed = seed
        self._states: list[Tensor] | None = None  # before it is lent for the first time

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Put the caller's state back afterwards; other threads wait for their turn."""
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
        """What the iterable gives, fetched from this stream."""
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
    """Whether a network's passes or its first one, where it is lazy, may draw random numbers.

    Of modules whose code is not known nobody can say: for them the answer is yes.
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
    return () if device.type == "mps" else (device,)  # of which there is one


def draw_seed(random_state: Any) -> int:
    """A seed from ``random_state``; None takes fresh entropy, not NumPy's global state."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(random_state)
