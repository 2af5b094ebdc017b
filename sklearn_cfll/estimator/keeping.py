"""Keeping: a failed call leaves the fitted state and torch's settings as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ..training.torch_settings import default_modes, use_threads

__all__ = ["PreviousFitKept"]


class PreviousFitKept:
    """Mixin of an estimator's calls that change it, or compute."""

    @contextlib.contextmanager
    def _torch_settings(self: Any) -> Iterator[contextlib.ExitStack]:
        """Set torch's default modes and one thread, or ``n_threads``.

        The block may enter another number of threads into the stack. The caller's settings are
        restored when it ends.
        """
        with contextlib.ExitStack() as settings:
            settings.enter_context(default_modes())
            settings.enter_context(use_threads(int(self.n_threads or 1)))
            yield settings

    @contextlib.contextmanager
    def _previous_fit_kept(self: Any) -> Iterator[tuple[contextlib.ExitStack, Any]]:
        """Restore the previous fitted state if the block raises.

        Yields the stack of `_torch_settings` and the previous state of the module, if any.
        """
        net = self._own_net if self.__sklearn_is_fitted__() else None
        before, snapshot = dict(self.__dict__), (None,) if net is None else net.snapshot()
        try:
            with self._torch_settings() as settings:
                yield settings, snapshot[0]
        except BaseException:
            # scikit-learn tears down its callbacks afterwards and needs these attributes.
            begun = ("_callback_fit_ctx", "_skl_callbacks_to_teardown")
            before |= {name: self.__dict__[name] for name in begun if name in self.__dict__}
            self.__dict__.clear()
            self.__dict__.update(before)
            if net is not None:
                net.restore(snapshot)
            raise
