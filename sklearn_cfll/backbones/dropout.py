"""Dropout that draws from a generator of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["SeededDropout", "seed_dropout"]


class SeededDropout(nn.Dropout):
    """:class:`torch.nn.Dropout` with the generator set by :func:`seed_dropout`.

    It drops the units that ``nn.Dropout`` would drop on a CPU if the global generator had the same
    seed. Without a generator, as in a copy, it is ``nn.Dropout``.
    """

    generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training or self.p == 0 or self.generator is None:
            return super().forward(inputs)
        kept = torch.empty_like(inputs).bernoulli_(1 - self.p, generator=self.generator)
        return inputs * kept.div_(1 - self.p)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "generator"}


def seed_dropout(module: nn.Module, generator: torch.Generator) -> None:
    """Make all :class:`SeededDropout` layers of a network draw from this generator, in order."""
    for part in module.modules():
        if isinstance(part, SeededDropout):
            part.generator = generator
