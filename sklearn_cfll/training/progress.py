"""Progress: the stages of a fit by name, on one bar and with their seconds in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self

from skorch.dataset import get_len
from tqdm.auto import tqdm

__all__ = ["LOGGER", "Progress"]

LOGGER = logging.getLogger("sklearn_cfll")


class Progress:
    """The stages of a fit: one bar of rows with their rate and the time left, and a log.

    Each stage leaves a record "NAME: SECONDS s" at the level INFO of the logger "sklearn_cfll".

    Parameters
    ----------
    shown : bool
        Whether to show the bar, on stderr.
    """

    def __init__(self, shown: bool) -> None:
        self._bar: Any = tqdm(unit="row", unit_scale=True, disable=not shown)
        self._name, self._begun = "", 0.0

    def stage(self, name: str, n_rows: int | None = None) -> None:
        """Begin a stage of this name, which reads ``n_rows`` in all if that is known."""
        self._end()
        self._name, self._begun = name, time.perf_counter()
        self._bar.reset(n_rows)
        self._bar.set_description(name)

    def rows(self, n_rows: int) -> None:
        """Count rows as read."""
        self._bar.update(n_rows)

    def over(self, batches: Iterable[Any]) -> Iterator[Any]:
        """These batches, whose rows are counted."""
        for batch in batches:
            yield batch
            self.rows(get_len(batch[0] if isinstance(batch, list | tuple) else batch))

    def say(self, **found: str) -> None:
        """Show these values beside the bar."""
        self._bar.set_postfix(found, refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the last stage, and leave the bar as it is."""
        self._end()
        self._bar.close()

    def _end(self) -> None:
        if self._name:
            LOGGER.info("%s: %.3f s", self._name, time.perf_counter() - self._begun)
        self._name = ""
