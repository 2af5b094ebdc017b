"""Learning-rate schedules: functions of progress in [0, 1] that return a factor."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES"]


def constant(progress: float) -> float:
    """The same learning rate throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter 2017, without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))


def linear(progress: float) -> float:
    """A straight line from 1 to 0."""
    return max(0.0, 1.0 - progress)


def one_cycle(progress: float) -> float:
    """A linear increase over the first tenth, then a cosine to 0 (after Smith & Topin 2018)."""
    warm_up = 0.1
    if progress < warm_up:
        return 0.04 + 0.96 * progress / warm_up
    return cosine((progress - warm_up) / (1.0 - warm_up))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "one_cycle": one_cycle,
}


def mean_factor(schedule: str) -> float:
    """Mean of a schedule's factor over its run."""
    progress = [step / 100 for step in range(101)]
    return math.fsum(map(SCHEDULES[schedule], progress)) / len(progress)
