"""Warnings about, and clipping of, targets that are orders of magnitude beyond all others."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch

from .._warnings import user_level
from ..training.batches import RowsDataset
from .checks import Checked

__all__ = ["clip_wild", "disregard_wild", "tame_added", "tame_targets", "warn_of_wild_targets"]
__all__ += ["wild_bounds"]

# One target of 1e6 among tens dominates the squared error. The gap is the ratio of a distance from
# the median to the next smaller one. One sample in a hundred of a Cauchy distribution has such a
# gap, and one in a thousand of a lognormal distribution with deviation 2.3
# (benchmarks/wild_targets.py).
GAP = 100.0
# Wild targets may form a sequence, such as 1e3, 1e5 and 1e7 among tens: a smaller gap counts if the
# farthest target is GAP² times as far as the targets below the gap.
STEP = 10.0
# Largest share of wild targets in the weight of all rows that differ from the median. Up to SHARE
# they are clipped; up to AT_MOST they are only named, since so many are not errors; beyond there is
# no warning.
SHARE, AT_MOST = 0.02, 0.1
NAMED = 3  # rows that a warning lists
MOST_POINTS = 2**22  # for the median of fields

# Distance of targets that are added to a fit, in standard deviations of its targets, beyond which
# they are named. They are clipped only if they are 100 times as far as any target of the fit.
FAR_TARGET = 100.0

REMEDY = (
    "drop these rows if they are wrong, or transform y with "
    "sklearn.compose.TransformedTargetRegressor if they are correct."
)


class Wild(NamedTuple):
    """Rows with wild targets, bounds of the others, ratio of distances, whether they are few."""

    rows: np.ndarray
    low: float
    high: float
    times: float
    few: bool


Found = list[tuple[Any, Wild]]  # with an index into y


def wild_bounds(y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Smallest and largest target without the wild ones.

    Targets are wild if a few of them, at most 2% of the rows (or one of up to 50), are 100 times as
    far from the median as all others; or 10 times, if the farthest is 10,000 times as far. Rows
    that equal the median do not count, because in a column of mostly one value every other value is
    far from it.

    Parameters
    ----------
    y : ndarray of shape (n,)
    weights : ndarray of shape (n,)
        Numbers of repetitions.
    """
    wild = find_wild(y[:, None], weights)
    if wild is None or not wild.few:
        return float(y.min()), float(y.max())
    return wild.low, wild.high


def find_wild(values: np.ndarray, weights: np.ndarray) -> Wild | None:
    """Wild rows of one target (n, 1) or of a field (n, points), by each farthest point."""
    if len(values) < 2:
        return None
    middle = _median(values, weights)
    distance = np.maximum(values.max(axis=1) - middle, middle - values.min(axis=1))
    order = distance.argsort(kind="stable")
    order = order[np.searchsorted(distance[order], 0.0, side="right") :]
    if len(order) < 2:
        return None
    ranked = distance[order]
    above = weights[order][::-1].cumsum()[::-1]  # weight of a row and of all farther ones
    total = above[0] * (1 + 1e-9)
    ladder = (ranked[1:] > STEP * ranked[:-1]) & (ranked[-1] > GAP**2 * ranked[:-1])
    gaps = (ranked[1:] > GAP * ranked[:-1]) | ladder
    few = gaps & (above[1:] <= min(max(1.0, SHARE * total), AT_MOST * total))
    found = few if few.any() else gaps & (above[1:] <= AT_MOST * total)
    if not found.any():
        return None
    reach = ranked[found.argmax()]
    kept = values[distance <= reach]
    rows = np.flatnonzero(distance > reach)
    times = distance[rows].min() / reach
    return Wild(rows, float(kept.min()), float(kept.max()), float(times), bool(few.any()))


def tame_targets(checked: Checked) -> Checked:
    """Clip a few wild targets to the nearest other one, and warn about them."""
    few, many = _found(checked)
    done = "Training clips them to that range, because they would dominate the squared error"
    for text in _remarks(checked, "y", few, many, done):
        warnings.warn(text, UserWarning, stacklevel=user_level())
    if not few:
        return checked
    y = checked.y.copy()
    for part, wild in few:
        y[part] = y[part].clip(wild.low, wild.high)
    return checked._replace(y=y)


def disregard_wild(checked: Checked, name: str) -> Checked:
    """Set the weight of a few held-out rows with wild targets to zero, and warn about them."""
    few, many = _found(checked)
    done = "They are ignored in the choice of epoch and ridge"
    for text in _remarks(checked, name, few, many, done):
        warnings.warn(text, UserWarning, stacklevel=user_level())
    if not few:
        return checked
    weights = np.ones(len(checked.y)) if checked.sample_weight is None else checked.sample_weight
    weights = weights.copy()
    for _, wild in few:
        weights[wild.rows] = 0.0
    return checked._replace(sample_weight=weights)


def warn_of_wild_targets(checked: Checked, name: str) -> None:
    """Warn about wild targets that are left unchanged."""
    done = "They are left unchanged and dominate the squared error"
    for text in _remarks(checked, name, *_found(checked), done):
        warnings.warn(text, UserWarning, stacklevel=user_level())


def tame_added(
    checked: Checked, plan: Any, known: float, reach: float, *, clip: bool = True
) -> Checked:
    """Clip a few wild targets of new rows to those of the fit, and warn about all far ones.

    Parameters
    ----------
    checked : Checked
        New rows.
    plan : Plan
        Plan of the fit, with the scale of its targets.
    known : float
        Total weight of the rows that the model was fitted to.
    reach : float
        Largest distance of a known target from the mean at fit, in deviations; 0 if unknown.
        Wild targets are 100 times as far.
    clip : bool, default=True
        False for a stream, whose first rows may be on another scale than later ones.
    """
    scaled = plan.scale.transform(plan.layout.to_rows(checked.y))
    distance = np.abs(scaled).reshape(len(scaled), -1).max(axis=1)
    weights = np.ones(len(distance)) if checked.sample_weight is None else checked.sample_weight
    weights = weights * (checked.mean_weight / plan.mean_weight)
    # At least one standardised target is as large as one, unless all were equal.
    wild = (distance > GAP * reach) & (reach > 0.5)
    weight, total = weights[wild].sum(), known + weights.sum()
    if not clip or weight > min(max(1.0, SHARE * total), AT_MOST * total):
        wild[:] = False
    far = (distance > max(FAR_TARGET, STEP * reach)) & ~wild
    if far.any():
        warnings.warn(
            f"{_farthest(checked, distance, far)} lies more than {FAR_TARGET:g} standard "
            f"deviations from the targets that the model was fitted to ({far.sum()} of {len(far)} "
            "rows do). "
            "Such rows distort the model. Drop them if they are wrong; if they are correct, `fit` "
            "again on a transformed y.",
            UserWarning,
            stacklevel=user_level(),
        )
    if not wild.any():
        return checked
    warnings.warn(
        f"{_farthest(checked, distance, wild)} lies more than {GAP:g} times as far from the mean "
        f"as any target that the model was fitted to ({wild.sum()} of {len(wild)} rows do). They "
        "are clipped to the range of all others, because they would dominate the squared error. "
        "Drop them if they are wrong; if they are correct, `fit` again on old and new rows.",
        UserWarning,
        stacklevel=user_level(),
    )
    near = max(reach, distance[~wild].max(initial=0.0))
    y = checked.y.copy()
    y[wild] = plan.layout.from_rows(plan.scale.inverse(scaled[wild].clip(-near, near)))
    return checked._replace(y=y)


def clip_wild(rows: RowsDataset, reach: float) -> None:
    """Clip wild targets of a stream's rows to the range of its sample, and warn about them.

    ``reach`` is as for :func:`tame_added`.
    """
    assert rows.targets is not None
    wild = rows.targets.abs() > GAP * reach
    if reach <= 0.5 or not bool(wild.any()):
        return
    rows.targets = torch.where(wild, rows.targets.clamp(-reach, reach), rows.targets)
    warnings.warn(
        f"Some targets lie more than {GAP:g} times as far from the mean as any in a sample of the "
        "stream. They are clipped to the range of the sample, because they would dominate the "
        "squared error. Drop such rows if they are wrong.",
        UserWarning,
        stacklevel=user_level(),
    )


def _farthest(checked: Checked, distance: np.ndarray, rows: np.ndarray) -> str:
    """The farthest of these rows, with its largest value."""
    row = int(np.where(rows, distance, -1.0).argmax())
    values = checked.y[row].ravel()
    return f"y[{_position(checked, row)}] = {values[np.abs(values).argmax()]:g}"


def _found(checked: Checked) -> tuple[Found, Found]:
    """Targets with few and with many wild rows, as indices into y; a field is one target."""
    y, weights = checked.y, checked.sample_weight
    repetitions = checked.mean_repetitions * (np.ones(len(y)) if weights is None else weights)
    parts: list[Any] = [(slice(None), j) for j in range(y.shape[1])] if y.ndim == 2 else [...]
    wild = [(part, find_wild(y[part].reshape(len(y), -1), repetitions)) for part in parts]
    found = [(part, each) for part, each in wild if each is not None]
    return [pair for pair in found if pair[1].few], [pair for pair in found if not pair[1].few]


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted median of all entries, evenly subsampled if there are many."""
    step = -(-values.size // MOST_POINTS)
    some = values[:, ::step]
    flat, weight = some.ravel(), weights.repeat(some.shape[1])
    order = flat.argsort(kind="stable")
    half = 0.5 * weight.sum() * (1 - 1e-9)
    return float(flat[order[np.searchsorted(weight[order].cumsum(), half)]])


def _remarks(checked: Checked, name: str, few: Found, many: Found, done: str) -> list[str]:
    """Texts of the warnings; ``done`` describes the treatment of a few wild targets."""
    texts = []
    if few:
        texts.append(f"{_listed(checked, name, few)}. {done}. Check them; {REMEDY}")
    if many:
        texts.append(
            f"{_listed(checked, name, many)}. They are too many to be treated as errors and "
            f"are left unchanged, but they dominate the squared error. Check them; {REMEDY}"
        )
    single = None if texts or checked.y.ndim > 1 else _single(checked)
    if single is not None:
        row, other = single
        texts.append(
            f"{name}[{_position(checked, row)}] = {checked.y[row]:.10g} is the only target that is "
            f"not {other:.10g}: it alone determines the squared error. Check it; drop the row if "
            "it is wrong."
        )
    return texts


def _single(checked: Checked) -> tuple[int, float] | None:
    """The only row, of 50 or more, whose target differs from all others, and their value.

    An error cannot be distinguished from a rare event here.
    """
    y, weights = checked.y, checked.sample_weight
    if len(y) < 2:
        return None
    weights = np.ones(len(y)) if weights is None else weights
    middle = _median(y[:, None], weights)
    rows = np.flatnonzero(y != middle)
    if len(rows) != 1 or weights[rows[0]] > SHARE * weights.sum():
        return None
    return int(rows[0]), middle


def _position(checked: Checked, row: Any) -> int:
    """Position of a row in the user's data."""
    return int(row if checked.rows is None else checked.rows[row])


def _listed(checked: Checked, name: str, found: Found) -> str:
    """The first wild rows with their values, and the range of all others."""
    cells = []
    for part, wild in found:
        digits = _digits(wild.low, wild.high)
        for row in wild.rows:
            index: tuple[int, ...] = () if part is ... else (part[1],)
            if checked.y.ndim > 2:  # a field: its farthest point
                points = checked.y[row]
                off = np.maximum(wild.low - points, points - wild.high)
                index = tuple(map(int, np.unravel_index(off.argmax(), off.shape)))
            value = f"{checked.y[(row, *index)]:.{digits}g}"
            cells.append(((_position(checked, row), *index), value))
    cells.sort()
    listed = [f"{name}[{', '.join(map(str, where))}] = {value}" for where, value in cells[:NAMED]]
    more = f" and {len(cells) - NAMED} more" if len(cells) > NAMED else ""
    _, first = found[0]
    digits = _digits(first.low, first.high)
    return (
        f"{', '.join(listed)}{more}: at least {first.times:.3g} times as far from the median as "
        f"all other values, which lie between {first.low:.{digits}g} and {first.high:.{digits}g}"
    )


def _digits(low: float, high: float) -> int:
    """Number of digits that distinguishes two numbers and the values between them."""
    size, width = max(abs(low), abs(high)), high - low
    return 6 if width <= 0 else min(17, max(6, 3 + math.ceil(math.log10(size / width))))
