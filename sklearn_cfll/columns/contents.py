"""What the columns of a table hold: which of them are categories, and their levels."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import numpy as np

from .._warnings import user_level
from .expansion import NUMBER, Levels
from .frames import Column, check_exact, is_number

__all__ = ["Categorical", "ColumnContent", "checked_levels", "chosen_columns", "content_of"]
__all__ += ["position_of", "with_given"]

Categorical = Any  # "from_dtype", names, indices, a mask, or None

# With fewer levels, text of numbers and of words may well be a category.
LEAST_MIXED = 20
MARKS = "$€£¥% "  # around the number of an amount


class ColumnContent(NamedTuple):
    """What a column held at fit.

    Attributes
    ----------
    levels : tuple of str or of float, or None
        Sorted levels of a category; those of an ordered category in its order. None for numbers. A
        column of gaps alone has no levels: whatever comes later counts as a gap.
    ordered : bool
    given : bool
        Whether the user listed the levels, some of which may be in later rows only.
    """

    levels: tuple[Any, ...] | None = None
    ordered: bool = False
    given: bool = False

    @property
    def coded(self) -> Levels:
        """Number of levels, whether they are ordered, and whether they were given."""
        return NUMBER if self.levels is None else Levels(len(self.levels), *self[1:])

    def described(self) -> str:
        """What the column held, in words."""
        if self.levels is None:
            return "number"
        kind = "ordered category" if self.ordered else "category"
        return f"{kind} of {len(self.levels)} levels" if self.levels else "only gaps"

    @property
    def holds_text(self) -> bool:
        """Whether the levels are text."""
        return bool(self.levels) and isinstance(self.levels[0], str)  # type: ignore[index]


def chosen_columns(
    categorical: Categorical, names: list[Any]
) -> list[bool | Literal["from_dtype"]]:
    """For each column whether it is a category, or that its dtype says so."""
    if categorical is None:
        return [False] * len(names)
    if isinstance(categorical, str) and categorical == "from_dtype":
        return ["from_dtype"] * len(names)
    given = [categorical] if isinstance(categorical, str | Integral) else list(categorical)
    if given and all(isinstance(each, bool | np.bool_) for each in given):
        if len(given) != len(names):
            raise ValueError(
                f"`categorical_features` is a mask of {len(given)} columns, but X has "
                f"{len(names)}. Give one boolean for each column."
            )
        return [bool(each) for each in given]
    chosen = [False] * len(names)
    for each in given:
        chosen[position_of(each, names)] = True
    return list(chosen)


def position_of(given: Any, names: list[Any], argument: str = "categorical_features") -> int:
    """Position of a column that is given by its name or its index."""
    if isinstance(given, str):
        if given not in names:
            known = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
            raise ValueError(
                f"`{argument}` names {given!r}, but the columns of X are {known}. Use names of a "
                "frame's columns, or indices"
                + ("." if argument == "categories" else ', a mask, "from_dtype" or None.')
            )
        return names.index(given)
    if not isinstance(given, Integral) or isinstance(given, bool | np.bool_):
        raise ValueError(
            f"`{argument}` must hold names or indices"
            + ("" if argument == "categories" else ", or booleans throughout")
            + f", got {given!r}."
        )
    index = int(given)
    if not -len(names) <= index < len(names):
        raise ValueError(
            f"`{argument}` holds the index {index}, but X has {len(names)} columns, 0 to "
            f"{len(names) - 1}."
        )
    return index % len(names)


def content_of(column: Column, chosen: bool | Literal["from_dtype"]) -> ColumnContent:
    """What a column holds, from the rows of a fit."""
    if not chosen and column.is_text:
        value = next(each for each in column.values if each is not None)
        raise ValueError(
            f"{column.label} holds {value!r:.60}, which is not a number, and "
            "`categorical_features` leaves it out. Add the column, or use "
            '`categorical_features`="from_dtype", which takes all text as categories, and give '
            'columns of codes a categorical dtype: `.astype("category")`.'
        )
    if chosen is True or column.is_text or column.order is not None:
        return _levels_of(column)
    return ColumnContent(() if np.isnan(column.values).all() else None)


def _levels_of(column: Column) -> ColumnContent:
    """The levels that occur."""
    found = {each for each in column.values.tolist() if each is not None and each == each}
    if isinstance(column.order, list):
        return ColumnContent(tuple(each for each in column.order if each in found), ordered=True)
    if not column.is_text and column.order is None:
        check_exact(column.label, list(found))
    many = column.is_text and column.order is None and len(found) >= LEAST_MIXED
    if many and not _warn_of_numbers(column, found):
        _warn_of_identifiers(column, found)
    return ColumnContent(tuple(sorted(found)))


def checked_levels(label: str, given: Any) -> list[Any]:
    """Levels that the user listed, all text or all numbers."""
    listed = [] if isinstance(given, str) or np.ndim(given) != 1 else list(given)
    text = [isinstance(each, str) for each in listed]
    numbers = [
        isinstance(each, Real | np.bool_) and bool(np.isfinite(float(each))) for each in listed
    ]
    if not listed or not (all(text) or all(numbers)):
        raise ValueError(
            f"`categories` must list the levels of {label}, all text or all finite numbers, got "
            f"{given!r:.80}. A gap needs no entry."
        )
    if all(numbers):
        check_exact(label, listed)
    return listed


def with_given(content: ColumnContent, column: Column, given: Any) -> ColumnContent:
    """The content of a column whose levels the user listed."""
    listed = checked_levels(column.label, given)
    text = content.holds_text or any(isinstance(each, str) for each in listed)
    levels = list(dict.fromkeys(str(each) if text else float(each) for each in listed))
    known = list(content.levels or ())
    unlisted = [each for each in known if each not in levels]
    if unlisted:
        raise ValueError(
            f"{column.label} holds {unlisted[0]!r:.60}, which `categories` does not list. Add it, "
            "or omit the column: its levels are then those of the first rows."
        )
    if not content.ordered:
        levels = sorted(levels)
    elif [each for each in levels if each in known] != known:
        raise ValueError(
            f"`categories` lists the levels of {column.label}, an ordered category, in another "
            f"order than its dtype: {known!r:.120}. List them in that order."
        )
    return ColumnContent(tuple(levels), content.ordered, given=True)


def _warn_of_numbers(column: Column, levels: set[str]) -> bool:
    """Warn if most of the text is numbers or amounts, but not names such as postal codes."""
    numbers = {each for each in levels if is_number(each)}
    others = levels - numbers
    amounts = {each for each in others if is_number(each.strip(MARKS).replace(",", ""))}
    measured = len(numbers) + len(amounts) > len(levels) / 2 and (others or not _are_names(numbers))
    if measured:
        such = [min(each) for each in (numbers, amounts, others - amounts) if each]
        warnings.warn(
            f"{column.label} is text, and becomes a category, but most of its {len(levels)} levels "
            f"are numbers: {', '.join(f'{each!r:.60}' for each in such)}. If it holds "
            'measurements, convert it first: `pandas.to_numeric(..., errors="coerce")`, without '
            'signs such as "%". If it holds names, convert it to a categorical dtype: '
            '`.astype("category")`.',
            UserWarning,
            stacklevel=user_level(),
        )
    return bool(measured)


def _are_names(numbers: set[str]) -> bool:
    """Whether text of numbers may well be names: digits of one length, or with leading zeros."""
    padded = any(each.startswith("0") and len(each) > 1 for each in numbers)
    return all(map(str.isdigit, numbers)) and (padded or len(set(map(len, numbers))) == 1)


def _warn_of_identifiers(column: Column, levels: set[str]) -> None:
    """Warn if most rows have a text of their own, as names, dates or amounts do."""
    n_known = sum(each is not None for each in column.values)
    if len(levels) > n_known / 2:
        warnings.warn(
            f"{column.label} holds {len(levels)} different texts in {n_known} rows, such as "
            f"{min(levels)!r:.60}: as a category it says next to nothing of new rows. Drop it, or "
            "convert it first: dates with pandas.to_datetime and skrub.DatetimeEncoder, amounts "
            "with pandas.to_numeric, text with skrub.StringEncoder.",
            UserWarning,
            stacklevel=user_level(),
        )
