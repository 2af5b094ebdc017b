"""What CFLLNet needs to keep skorch's conventions: checks, listeners, files."""

from __future__ import annotations

import contextlib
import functools
import os
import uuid
from collections.abc import Iterator
from fnmatch import filter as matching
from pathlib import Path
from typing import Any

from skorch.callbacks import Callback, LRScheduler
from torch import nn

__all__ = ["check_criterion", "check_schedule", "listens", "parameter_groups", "written_whole"]


def check_criterion(criterion: Any) -> None:
    """Raise unless it is squared error: a class, an instance, or None of a trimmed net."""
    kind = criterion.func if isinstance(criterion, functools.partial) else criterion
    kind = kind if isinstance(kind, type) else type(kind)
    if criterion is not None and not issubclass(kind, nn.MSELoss):
        name = getattr(criterion, "__name__", None) or kind.__name__
        raise ValueError(
            f"`criterion` must be torch.nn.MSELoss or a subclass of it, got {name}: the last layer "
            "is solved in closed form, and only squared error has one. To add a penalty on the "
            "backbone, override `get_loss`; for classes use CFLLClassifier."
        )


def check_schedule(lr_schedule: str, callbacks: Any) -> None:
    """Raise where two would set the learning rate."""
    if lr_schedule == "constant" or not callbacks or isinstance(callbacks, str):
        return
    for item in callbacks:
        callback = item[1] if isinstance(item, tuple | list) else item
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, LRScheduler):
            raise ValueError(
                f"`lr_schedule`={lr_schedule!r} (`learning_rate_schedule` of the estimators) and "
                f'the callback {kind.__name__} would both set the learning rate. Choose "constant" '
                "beside the callback, or leave the callback out."
            )


def listens(listener: Any, hook: str, nothing: type = Callback) -> bool:
    """Whether this callback, or what only behaves like one, does something at this event."""
    own = hook in getattr(listener, "__dict__", ())
    return own or getattr(type(listener), hook, None) is not getattr(nothing, hook)


def parameter_groups(groups: Any, backbone: nn.Module) -> list[tuple[str, Any]]:
    """Groups of an optimiser whose patterns may name parameters as the user's module does."""
    names = [name for name, _ in backbone.named_parameters()]
    return [
        (f"backbone.{pattern}" if matching(names, pattern) else pattern, group)
        for pattern, group in groups
    ]


@contextlib.contextmanager
def written_whole(target: Any) -> Iterator[Any]:
    """A path beside the target that takes its place once it is written and on the disk.

    Whatever kills the writer leaves the old file. Open files are passed through.
    """
    if not isinstance(target, str | os.PathLike) or (
        os.path.exists(target) and not os.path.isfile(target)
    ):
        yield target
        return
    path = Path(os.path.realpath(target))  # a link goes on pointing to the new file
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield str(beside)
        with open(beside, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
