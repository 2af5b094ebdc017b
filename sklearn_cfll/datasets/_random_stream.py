"""Random number generator of a ``random_state``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state

__all__ = ["random_stream"]


def random_stream(random_state: Any) -> np.random.RandomState:
    """Like ``check_random_state``, but None takes fresh entropy, not NumPy's global state."""
    return np.random.RandomState() if random_state is None else check_random_state(random_state)
