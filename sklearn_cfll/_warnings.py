"""Where a warning points: at the line of the user's code that called this package."""

from __future__ import annotations

import sys

__all__ = ["user_level"]

PASSED = ("sklearn_cfll", "sklearn", "skorch", "torch", "contextlib")


def user_level() -> int:
    """The ``stacklevel`` of the first frame outside this package and those that call it back."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in PASSED:
        frame, level = frame.f_back, level + 1
    return level
