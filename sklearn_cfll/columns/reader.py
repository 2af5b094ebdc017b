"""TableReader: from a frame with categories, text and gaps to one coded number per column."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, NamedTuple

import numpy as np

from .._warnings import user_level
from .expansion import NUMBER, Levels
from .frames import Column, as_frame, check_exact, columns_of, is_number
from .target_means import MANY_LEVELS, MOST_TARGETS, TargetMeans, folds_of_rows, out_of_fold_means

__all__ = ["ColumnContent", "TableReader", "unpacked"]

Categorical = Any  # "from_dtype", names, indices, a mask, or None

# With fewer levels, text of numbers and of words may well be a category.
LEAST_MIXED = 20


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

    @property
    def has_many_levels(self) -> bool:
        """Whether the mean targets of its levels are worth a column."""
        return self.levels is not None and not self.ordered and len(self.levels) > MANY_LEVELS

    @property
    def holds_text(self) -> bool:
        """Whether the levels are text."""
        return bool(self.levels) and isinstance(self.levels[0], str)  # type: ignore[index]


class TableReader:
    """Codes the columns of a table: numbers stay numbers, levels become 0, 1, ..., gaps NaN.

    Parameters
    ----------
    contents : sequence of ColumnContent
    names : list of str, or None
        Names of the columns at fit, as text, by which columns in another order are found.
    means : dict
        Mean targets of the levels of some columns, by index. They follow the coded columns.
    """

    def __init__(
        self,
        contents: Sequence[ColumnContent],
        names: list[str] | None,
        means: Mapping[int, TargetMeans] | None = None,
    ) -> None:
        self.contents, self.names, self.means = tuple(contents), names, dict(means or {})

    @classmethod
    def fit(
        cls,
        X: Any,
        categorical: Categorical,
        name: str = "X",
        categories: Mapping[Any, Any] | None = None,
    ) -> TableReader | None:
        """A reader for tables like X; None if NumPy makes the same numbers of all columns.

        Parameters
        ----------
        X : frame or ndarray
        categorical : "from_dtype", array-like of str, int or bool, or None
            Which columns are categories, as in scikit-learn's gradient boosting. "from_dtype":
            categories, text and objects that are text.
        name : str
            Name of the argument in messages.
        categories : dict, optional
            All levels of some columns, which are categories, by name or index.
        """
        frame = as_frame(X)
        titles = list(range(X.shape[1])) if frame is None else list(frame.columns)
        chosen = _chosen(categorical, titles)
        given = {
            _position(each, titles, "categories"): levels
            for each, levels in (categories or {}).items()
        }
        for position in given:
            chosen[position] = True
        columns = list(columns_of(X, name, [each is not True for each in chosen]))
        contents = [_content(each, pick) for each, pick in zip(columns, chosen, strict=True)]
        for position, levels in given.items():
            contents[position] = _with_given(contents[position], columns[position], levels)
        if all(each.is_plain for each in columns) and all(c.levels is None for c in contents):
            return None
        return cls(contents, None if frame is None else list(map(str, titles)))

    @classmethod
    def of_numbers(cls, n_columns: int) -> TableReader:
        """A reader for columns of numbers, whatever their names."""
        return cls([ColumnContent()] * n_columns, None)

    @property
    def levels(self) -> list[Levels]:
        """What each coded column holds, for :class:`~sklearn_cfll.columns.expansion.Expansion`."""
        computed = [
            Levels(source=column)
            for column, means in self.means.items()
            for _ in range(means.means.shape[1])
        ]
        return [*(each.coded for each in self.contents), *computed]

    def levels_of(self, given: Any) -> tuple[Any, ...] | None:
        """Levels of a column, by name or index."""
        names = range(len(self.contents)) if self.names is None else self.names
        return self.contents[_position(given, list(names), "categories")].levels

    def in_order(self, X: Any) -> Any:
        """X with the columns of a frame in the order of the fit, if it has the same names."""
        frame = as_frame(X)
        if frame is None or self.names is None:
            return X
        place = {str(name): index for index, name in enumerate(frame.columns)}
        if list(place) == self.names or set(place) != set(self.names):
            return X  # scikit-learn's check names columns that differ
        return frame[:, [place[name] for name in self.names]].to_native()

    def with_means(self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> TableReader:
        """A reader that also gives the mean targets of categories of many levels.

        Parameters
        ----------
        codes : ndarray of shape (n, p)
        targets : ndarray of shape (n, k)
        weight : ndarray of shape (n,)
        """
        many = [i for i, each in enumerate(self.contents) if each.has_many_levels]
        if not many or targets.shape[1] > MOST_TARGETS:
            return self
        means = {
            column: TargetMeans.fit(
                codes[:, column], self.contents[column].coded.n_levels, targets, weight
            )
            for column in many
        }
        return TableReader(self.contents, self.names, means)

    def out_of_fold(
        self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray, groups: Any = None
    ) -> np.ndarray:
        """Coded rows (n, p + q) of a fit, whose mean targets are those of rows outside their fold.

        Parameters are those of :meth:`with_means`, and groups (n,), which share a fold.
        """
        folds = folds_of_rows(codes[:, : len(self.contents)], targets, groups)
        parts = [codes[:, : len(self.contents)]]
        for column in self.means:
            n_levels = self.contents[column].coded.n_levels
            parts.append(out_of_fold_means(codes[:, column], n_levels, targets, weight, folds))
        return np.hstack(parts)

    def read(self, X: Any, name: str = "X") -> np.ndarray:
        """Coded rows (n, p + q) in float64; the columns are those of the fit."""
        parse = [not each.holds_text for each in self.contents]
        coded = [
            _codes(column, content)
            for column, content in zip(columns_of(X, name, parse), self.contents, strict=True)
        ]
        computed = [means(coded[column]) for column, means in self.means.items()]
        return np.column_stack([*coded, *computed])

    def pack(self) -> dict[str, Any]:
        """Arrays and plain data."""
        contents = tuple((_packed(each.levels), each.ordered) for each in self.contents)
        means = tuple((column, each.means) for column, each in self.means.items())
        return {"contents": contents, "names": self.names, "means": means}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> TableReader:
        """Inverse of :meth:`pack`."""
        contents = [ColumnContent(unpacked(each), ordered) for each, ordered in packed["contents"]]
        means = {column: TargetMeans(each) for column, each in packed["means"]}
        return cls(contents, packed["names"], means)


def _packed(levels: tuple[Any, ...] | None) -> Any:
    """Levels as arrays: numbers, or the bytes of all texts and where each ends."""
    if levels is None or not levels or not isinstance(levels[0], str):
        return None if levels is None else np.array(levels, dtype=np.float64)
    texts = [each.encode("utf-8", "surrogatepass") for each in levels]
    ends = np.cumsum([len(each) for each in texts])
    return np.frombuffer(b"".join(texts), np.uint8), ends


def unpacked(packed: Any) -> tuple[Any, ...] | None:
    """Levels from arrays."""
    if packed is None:
        return None
    if isinstance(packed, np.ndarray):
        return tuple(packed.tolist())
    data, ends = packed[0].tobytes(), packed[1].tolist()
    starts = [0, *ends[:-1]]
    parts = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    return tuple(each.decode("utf-8", "surrogatepass") for each in parts)


# -- which columns are categories ------------------------------------------------------


def _chosen(categorical: Categorical, names: list[Any]) -> list[bool | Literal["from_dtype"]]:
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
        chosen[_position(each, names)] = True
    return list(chosen)


def _position(given: Any, names: list[Any], argument: str = "categorical_features") -> int:
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


def _content(column: Column, chosen: bool | Literal["from_dtype"]) -> ColumnContent:
    """What a column holds, from the rows of a fit."""
    if not chosen and column.is_text:
        value = next(each for each in column.values if each is not None)
        raise ValueError(
            f"{column.label} holds {value!r:.60}, which is not a number, and "
            '`categorical_features` leaves it out. Use `categorical_features`="from_dtype", add '
            "the column, or encode it first."
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


def _with_given(content: ColumnContent, column: Column, given: Any) -> ColumnContent:
    """The content of a column whose levels the user listed."""
    listed = [given] if isinstance(given, str) or np.ndim(given) == 0 else list(given)
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
    """Warn if most of the text is numbers, as in a column with "?" for a gap."""
    others = [each for each in levels if not is_number(each)]
    mixed = 0 < len(others) < len(levels) / 2
    if mixed:
        warnings.warn(
            f"{column.label} is text, and becomes a category, but {len(levels) - len(others)} of "
            f"its {len(levels)} levels are numbers, and others are not, such as "
            f"{min(others)!r:.60}. If it holds measurements, convert it first: "
            'pandas.to_numeric(..., errors="coerce").',
            UserWarning,
            stacklevel=user_level(),
        )
    return mixed


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


# -- coding ----------------------------------------------------------------------------


def _codes(column: Column, content: ColumnContent) -> np.ndarray:
    """Codes of the levels of a column, or its numbers; NaN for gaps and unknown levels."""
    known = column.values if not column.is_text else None
    only_gaps = column.is_text and all(each is None for each in column.values)
    if only_gaps or (content.levels is not None and not content.levels):
        return np.full(len(column.values), np.nan)
    if content.levels is None:
        if known is not None:
            return known
        value = next(each for each in column.values if each is not None)
        raise ValueError(
            f"{column.label} holds {value!r:.60}, but held numbers when the model was fitted. "
            "Convert it to numbers, or fit again."
        )
    if content.holds_text and known is not None:
        if np.isnan(known).all():
            return known
        raise ValueError(
            f"{column.label} holds numbers such as {known[~np.isnan(known)][0]:g}, but held text "
            f"such as {content.levels[0]!r} when the model was fitted. Convert it to text, or "
            "fit again."
        )
    if not content.holds_text and known is None:
        raise ValueError(
            f"{column.label} holds text, but held numbers, as levels of a category, when the model "
            "was fitted. Convert it to numbers, or fit again."
        )
    code = {level: float(i) for i, level in enumerate(content.levels)}
    return np.array([code.get(each, math.nan) for each in column.values.tolist()])
