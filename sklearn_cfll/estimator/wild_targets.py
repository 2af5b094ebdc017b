"""Targets orders of magnitude beyond all others: a warning, and a value that training survives."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from .checks import Checked

__all__ = ["disregard_wild", "tame_added", "tame_targets", "warn_of_wild_targets"]
__all__ += ["wild_bounds"]

# Squared error of one target of 1e6 among tens is all that a fit sees. Times as far from the
# median as the next value: of a Cauchy distribution one sample in a hundred has such a gap, of a
# lognormal one of deviation 2.3 one in a thousand (benchmarks/wild_targets.py).
GAP = 100.0
# Wild targets may be a ladder, 1e3 and 1e5 and 1e7 among tens: a smaller gap counts where the
# farthest target lies GAP² times as far as what is below it.
STEP = 10.0
# Of the weight of all rows that differ from the median. More are no accident, and are left to say
# what they say; of more than a tenth there is no warning either.
SHARE, AT_MOST = 0.02, 0.1
NAMED = 3  # rows that a warning lists
MOST_POINTS = 2**22  # of fields, that their median is taken of

# Of rows that are added to a fit, in standard deviations of its targets: named, and left where
# they are no farther than 100 times as far as any of these.
FAR_TARGET = 100.0

REMEDY = (
    "drop these rows if they are wrong, or transform y by "
    "sklearn.compose.TransformedTargetRegressor if they are right."
)


class Wild(NamedTuple):
    """Rows whose targets are wild, bounds of all others, how many times as far, and if few."""

    rows: np.ndarray
    low: float
    high: float
    times: float
    few: bool


Found = list[tuple[Any, Wild]]  # with an index into y


def wild_bounds(y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Smallest and largest target once the wild ones are left out.

    Targets are wild where a few of them, at most 2% of the rows (or one of up to 50), are 100
    times as far from the median as all others; or 10 times, if the farthest is 10,000 times as
    far. Rows that equal the median do not count: in a column of mostly one value whatever
    differs from it is far from it.

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
    """Wild rows of one target (n, 1), or of a field (n, points): by the farthest point of each."""
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
    """Few wild targets clipped to the nearest other one; a warning names their rows."""
    few, many = _found(checked)
    done = "Training clips them to that range, for squared error would see little else"
    for text in _remarks(checked, "y", few, many, done):
        warnings.warn(text, UserWarning, stacklevel=5)
    if not few:
        return checked
    y = checked.y.copy()
    for part, wild in few:
        y[part] = y[part].clip(wild.low, wild.high)
    return checked._replace(y=y)


def disregard_wild(checked: Checked, name: str) -> Checked:
    """Held-out rows of which the few with wild targets weigh nothing; a warning names them."""
    few, many = _found(checked)
    done = "They weigh nothing in the choice of epoch and ridge"
    for text in _remarks(checked, name, few, many, done):
        warnings.warn(text, UserWarning, stacklevel=5)
    if not few:
        return checked
    weights = np.ones(len(checked.y)) if checked.sample_weight is None else checked.sample_weight
    weights = weights.copy()
    for _, wild in few:
        weights[wild.rows] = 0.0
    return checked._replace(sample_weight=weights)


def warn_of_wild_targets(checked: Checked, name: str) -> None:
    """Name the rows of wild targets that are left as they are."""
    done = "They are left as they are, and squared error sees little else"
    for text in _remarks(checked, name, *_found(checked), done):
        warnings.warn(text, UserWarning, stacklevel=6)


def tame_added(
    checked: Checked, plan: Any, known: float, reach: float, *, clip: bool = True
) -> Checked:
    """Few wild targets of new rows clipped to those of the fit; a warning of all far ones.

    Parameters
    ----------
    checked : Checked
        New rows.
    plan : Plan
        Of the fit, with the scale of its targets.
    known : float
        Weight of the rows behind the model.
    reach : float
        Largest distance of a known target from the mean at fit, in deviations; 0 where that is
        not known. Wild targets are 100 times as far.
    clip : bool, default=True
        False for a stream, whose first rows may be on another scale than all that follow.
    """
    scaled = plan.scale.transform(plan.layout.to_rows(checked.y))
    distance = np.abs(scaled).reshape(len(scaled), -1).max(axis=1)
    weights = np.ones(len(distance)) if checked.sample_weight is None else checked.sample_weight
    weights = weights * (checked.mean_weight / plan.mean_weight)
    # Some standardised target is as large as one, unless all were equal.
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
            "Such rows change it beyond recognition. Leave them out if they are wrong; if they are "
            "right, `fit` anew on a transformed y.",
            UserWarning,
            stacklevel=5,
        )
    if not wild.any():
        return checked
    warnings.warn(
        f"{_farthest(checked, distance, wild)} lies more than {GAP:g} times as far from the mean "
        f"as any target that the model was fitted to ({wild.sum()} of {len(wild)} rows do). They "
        "are clipped to the range of all others, for squared error would see little else. Leave "
        "them out if they are wrong; if they are right, `fit` anew on rows of both kinds.",
        UserWarning,
        stacklevel=5,
    )
    near = max(reach, distance[~wild].max(initial=0.0))
    y = checked.y.copy()
    y[wild] = plan.layout.from_rows(plan.scale.inverse(scaled[wild].clip(-near, near)))
    return checked._replace(y=y)


def _farthest(checked: Checked, distance: np.ndarray, rows: np.ndarray) -> str:
    """Of these rows the farthest, with its largest value."""
    row = int(np.where(rows, distance, -1.0).argmax())
    values = checked.y[row].ravel()
    return f"y[{_position(checked, row)}] = {values[np.abs(values).argmax()]:g}"


def _found(checked: Checked) -> tuple[Found, Found]:
    """Targets with few wild rows, and with many, each as an index into y; a field is one target."""
    y, weights = checked.y, checked.sample_weight
    # Only whether they stand for fewer than 50 rows matters; their sum must not overflow.
    unit = min(checked.mean_weight, 1e6)
    repetitions = unit * (np.ones(len(y)) if weights is None else weights)
    parts: list[Any] = [(slice(None), j) for j in range(y.shape[1])] if y.ndim == 2 else [...]
    wild = [(part, find_wild(y[part].reshape(len(y), -1), repetitions)) for part in parts]
    found = [(part, each) for part, each in wild if each is not None]
    return [pair for pair in found if pair[1].few], [pair for pair in found if not pair[1].few]


def _median(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted median of all entries; of many, of every second, third..."""
    step = -(-values.size // MOST_POINTS)
    some = values[:, ::step]
    flat, weight = some.ravel(), weights.repeat(some.shape[1])
    order = flat.argsort(kind="stable")
    half = 0.5 * weight.sum() * (1 - 1e-9)
    return float(flat[order[np.searchsorted(weight[order].cumsum(), half)]])


def _remarks(checked: Checked, name: str, few: Found, many: Found, done: str) -> list[str]:
    """What to say of each kind; ``done`` says what becomes of few wild targets."""
    texts = []
    if few:
        texts.append(f"{_listed(checked, name, few)}. {done}. Check them; {REMEDY}")
    if many:
        texts.append(
            f"{_listed(checked, name, many)}. They are too many to be taken for mistakes and are "
            f"left as they are, but squared error sees little else. Check them; {REMEDY}"
        )
    single = None if texts or checked.y.ndim > 1 else _single(checked)
    if single is not None:
        row, other = single
        texts.append(
            f"{name}[{_position(checked, row)}] = {checked.y[row]:.10g} is the only target that is "
            f"not {other:.10g}: squared error sees nothing else. Check it; drop the row if it is "
            "wrong."
        )
    return texts


def _single(checked: Checked) -> tuple[int, float] | None:
    """The one row, of 50 and more, whose target differs from all others, and what those are.

    Nothing tells a mistake from a rare event there.
    """
    y, weights = checked.y, checked.sample_weight
    weights = np.ones(len(y)) if weights is None else weights
    middle = _median(y[:, None], weights)
    rows = np.flatnonzero(y != middle)
    if len(rows) != 1 or weights[rows[0]] > SHARE * weights.sum():
        return None
    return int(rows[0]), middle


def _position(checked: Checked, row: Any) -> int:
    """Of a row in what the user gave."""
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
    """Digits that tell two numbers apart, and what lies between them."""
    size, width = max(abs(low), abs(high)), high - low
    return 6 if width <= 0 else min(17, max(6, 3 + math.ceil(math.log10(size / width))))
