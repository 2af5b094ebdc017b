"""TableReader: from a frame with categories, text and gaps to one coded number per column."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .contents import (
    Categorical,
    ColumnContent,
    checked_levels,
    chosen_columns,
    content_of,
    position_of,
    with_given,
)
from .expansion import Levels
from .frames import Column, as_frame, columns_of
from .target_means import (
    MOST_TARGETS,
    TargetMeans,
    folds_of_rows,
    is_shared,
    level_checksums,
    out_of_fold_means,
    outnumber_indicators,
)

__all__ = ["TableReader", "unpacked"]


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
        chosen = chosen_columns(categorical, titles)
        given: dict[int, Any] = {}
        for each, levels in (categories or {}).items():
            position = position_of(each, titles, "categories")
            if position in given:
                raise ValueError(f"`categories` lists levels of column {titles[position]!r} twice.")
            given[position] = levels
        for position in given:
            chosen[position] = True
        columns = list(columns_of(X, name, [each is not True for each in chosen]))
        contents = [content_of(each, pick) for each, pick in zip(columns, chosen, strict=True)]
        for position, levels in given.items():
            contents[position] = with_given(contents[position], columns[position], levels)
        if all(each.is_plain for each in columns) and all(c.levels is None for c in contents):
            return None
        return cls(contents, None if frame is None else list(map(str, titles)))

    @classmethod
    def of_numbers(cls, n_columns: int) -> TableReader:
        """A reader for columns of numbers, whatever their names."""
        return cls([ColumnContent()] * n_columns, None)

    @property
    def levels(self) -> list[Levels]:
        """What each coded column holds, for :class:`~sklearn_cfll.columns.expansion.Expansion`.

        The codes of a category with means are not used. Beside indicators, the mean of a row would
        tell its target: the two add up to the mean of the level.
        """
        computed = [
            Levels(source=column)
            for column, means in self.means.items()
            for _ in range(means.means.shape[1])
        ]
        unused = Levels(is_used=False)
        coded = [
            unused if column in self.means else each.coded
            for column, each in enumerate(self.contents)
        ]
        return [*coded, *computed]

    def has_levels(self, column: Any, listed: Any) -> bool:
        """Whether a column, given by name or index, has these levels."""
        names = range(len(self.contents)) if self.names is None else self.names
        content = self.contents[position_of(column, list(names), "categories")]
        found = checked_levels(f"Column {column!r} of `X`", listed)
        kind = str if content.holds_text else float
        try:
            return content.levels is not None and set(map(kind, found)) == set(content.levels)
        except ValueError:
            return False

    def in_order(self, X: Any) -> Any:
        """X with the columns of a frame in the order of the fit, if it has the same names."""
        frame = as_frame(X)
        if frame is None or self.names is None:
            return X
        place = {str(name): index for index, name in enumerate(frame.columns)}
        if list(place) == self.names or set(place) != set(self.names):
            return X  # scikit-learn's check names columns that differ
        return frame[:, [place[name] for name in self.names]].to_native()

    def with_means(
        self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray, groups: Any = None
    ) -> TableReader:
        """A reader that gives the mean targets of categories of many levels.

        A category is left as it is if most of its rows have a level that occurs in one group alone:
        rows of other groups say nothing of it.

        Parameters
        ----------
        codes : ndarray of shape (n, p)
        targets : ndarray of shape (n, k)
        weight : ndarray of shape (n,)
        groups : ndarray of shape (n,), optional
        """
        many = [
            i
            for i, each in enumerate(self.contents)
            if not each.ordered
            and outnumber_indicators(codes[:, i], each.coded.n_levels, weight)
            and is_shared(codes[:, i], groups)
        ]
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

        Parameters are those of :meth:`with_means`; rows of a group share a fold.
        """
        codes = codes[:, : len(self.contents)]
        # By the levels themselves: their codes depend on which other levels there are.
        named = [
            column if content.levels is None else level_checksums(content.levels, column)
            for content, column in zip(self.contents, codes.T, strict=True)
        ]
        folds = folds_of_rows(np.column_stack(named), targets, groups)
        parts = [codes]
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
