"""What differs between versions of scikit-learn."""

from __future__ import annotations

from typing import Any

__all__ = ["CallbackSupportMixin"]

try:  # scikit-learn >= 1.9; an older one is served without its callbacks
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in: no callbacks before scikit-learn 1.9."""

        def _init_callback_context(self, **kwargs: Any) -> None:
            return None
