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
from .statistics import spread_rows
from .target_means import (
    TargetMeans,
    few_targets,
    folds_of_rows,
    is_shared,
    level_checksums,
    out_of_fold_means,
    outnumber_indicators,
)
from .value_levels import MOST_ROWS, are_names, level_codes, may_be_names

__all__ = ["TableReader", "unpacked"]


class TableReader:
    """Codes the columns of a table: numbers stay numbers, levels become 0, 1, ..., gaps NaN.

    A level that was not seen at fit has the code -1.

    Parameters
    ----------
    contents : sequence of ColumnContent
    names : list of str, or None
        Names of the columns at fit, as text, by which columns in another order are found.
    values : dict
        Increasing values of columns of numbers that are names too, by index. Their codes follow
        those of all columns.
    means : dict
        Mean targets of the levels of some columns, by the index of their codes. They come last.
    """

    def __init__(
        self,
        contents: Sequence[ColumnContent],
        names: list[str] | None,
        values: Mapping[int, np.ndarray] | None = None,
        means: Mapping[int, TargetMeans] | None = None,
    ) -> None:
        self.contents, self.names = tuple(contents), names
        self.values, self.means = dict(values or {}), dict(means or {})

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

    def described(self) -> dict[Any, str]:
        """What has become of each column, in words, by its name or index."""
        found = {}
        for place, (name, content) in enumerate(zip(self._titles, self.contents, strict=True)):
            found[name] = content.described()
            codes = {place}
            if place in self.values:
                codes.add(len(self.contents) + list(self.values).index(place))
                found[name] += f", and category of {len(self.values[place])} values"
            if codes & set(self.means):
                found[name] += ", by mean targets"
        return found

    @property
    def _titles(self) -> list[Any]:
        """Names of the columns, or their indices."""
        return list(range(len(self.contents))) if self.names is None else list(self.names)

    @property
    def _coded(self) -> list[Levels]:
        """What each column of codes holds, before means take the place of some."""
        more = [Levels(len(each), source=column) for column, each in self.values.items()]
        return [*(each.coded for each in self.contents), *more]

    @property
    def levels(self) -> list[Levels]:
        """What each coded column holds, for :class:`~sklearn_cfll.columns.expansion.Expansion`.

        The codes of a category with means are not used. Beside indicators, the mean of a row would
        tell its target: the two add up to the mean of the level.
        """
        coded, computed = self._coded, []
        for place, means in self.means.items():
            own = coded[place].source
            source = place if own is None else own
            computed += [Levels(source=source)] * means.means.shape[1]
            coded[place] = Levels(source=own, is_used=False)
        return [*coded, *computed]

    def has_levels(self, column: Any, listed: Any) -> bool:
        """Whether a column, given by name or index, has these levels."""
        content = self.contents[position_of(column, self._titles, "categories")]
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

    def with_values(
        self, rows: np.ndarray, targets: np.ndarray, weight: np.ndarray, groups: Any = None
    ) -> TableReader:
        """A reader that also codes the values of columns of integers that are names.

        Parameters
        ----------
        rows : ndarray of shape (n, p)
            Coded rows of a fit.
        targets : ndarray of shape (n, k)
        weight : ndarray of shape (n,)
        groups : ndarray of shape (n,), optional
        """
        step = -(-len(rows) // min(MOST_ROWS, len(spread_rows(*rows.shape))))
        some = rows[::step], targets[::step], weight[::step]
        numbers = np.array([content.levels is None for content in self.contents])
        candidates = np.flatnonzero(numbers & may_be_names(some[0]))
        if not len(candidates):
            return self
        of_some = None if groups is None else groups[::step]
        folds = self._folds(some[0], some[1], of_some)
        found = {
            int(column): np.unique(rows[~np.isnan(rows[:, column]), column])
            for column in candidates
            if are_names(some[0][:, column], *some[1:], folds, of_some, rows.shape[1])
        }
        return TableReader(self.contents, self.names, found)

    def with_means(
        self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray, groups: Any = None
    ) -> TableReader:
        """A reader that gives the mean targets of categories of many levels.

        A category is left as it is if most of its rows have a level that occurs in one group alone:
        rows of other groups say nothing of it. Parameters are those of :meth:`with_values`, for
        rows with the codes of its values.
        """
        many = [
            place
            for place, each in enumerate(self._coded)
            if not each.ordered
            and outnumber_indicators(codes[:, place], each.n_levels, weight)
            and is_shared(codes[:, place], groups)
        ]
        return self._with_means_of(many, codes, targets, weight)

    def with_means_again(
        self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray
    ) -> TableReader:
        """A reader with means of the same columns, from these rows."""
        return self._with_means_of(list(self.means), codes, targets, weight)

    def _with_means_of(
        self, places: list[int], codes: np.ndarray, targets: np.ndarray, weight: np.ndarray
    ) -> TableReader:
        n_levels, targets = [each.n_levels for each in self._coded], few_targets(targets)
        means = {
            place: TargetMeans.fit(codes[:, place], n_levels[place], targets, weight)
            for place in places
        }
        return TableReader(self.contents, self.names, self.values, means)

    def out_of_fold(
        self, codes: np.ndarray, targets: np.ndarray, weight: np.ndarray, groups: Any = None
    ) -> np.ndarray:
        """Coded rows of a fit, whose mean targets are those of rows outside their fold.

        Parameters are those of :meth:`with_means`; rows of a group share a fold.
        """
        parts = [codes]
        if self.means:
            folds, coded = self._folds(codes, targets, groups), self._coded
            targets = few_targets(targets)
        for place in self.means:
            n_levels = coded[place].n_levels
            parts.append(out_of_fold_means(codes[:, place], n_levels, targets, weight, folds))
        return np.hstack(parts)

    def _folds(self, codes: np.ndarray, targets: np.ndarray, groups: Any) -> np.ndarray:
        """Fold of each row, by its levels themselves: codes depend on which others there are."""
        named = [
            column if content.levels is None else level_checksums(content.levels, column)
            for content, column in zip(self.contents, codes.T, strict=False)
        ]
        return folds_of_rows(np.column_stack(named), targets, groups)

    def with_codes(self, rows: np.ndarray) -> np.ndarray:
        """Coded columns (n, p), followed by the codes of values that are names."""
        more = [level_codes(rows[:, column], levels) for column, levels in self.values.items()]
        return np.column_stack([rows, *more]) if more else rows

    def read(self, X: Any, name: str = "X") -> np.ndarray:
        """Coded rows in float64; the columns of X are those of the fit."""
        parse = [not each.holds_text for each in self.contents]
        coded = [
            _codes(column, content)
            for column, content in zip(columns_of(X, name, parse), self.contents, strict=True)
        ]
        codes = self.with_codes(np.column_stack(coded))
        computed = [means(codes[:, place]) for place, means in self.means.items()]
        return np.column_stack([codes, *computed]) if computed else codes

    def pack(self) -> dict[str, Any]:
        """Arrays and plain data."""
        contents = tuple((_packed(each.levels), each.ordered) for each in self.contents)
        means = tuple((place, each.means) for place, each in self.means.items())
        values = tuple(self.values.items())
        return {"contents": contents, "names": self.names, "values": values, "means": means}

    @classmethod
    def unpack(cls, packed: dict[str, Any]) -> TableReader:
        """Inverse of :meth:`pack`."""
        contents = [ColumnContent(unpacked(each), ordered) for each, ordered in packed["contents"]]
        means = {place: TargetMeans(each) for place, each in packed["means"]}
        return cls(contents, packed["names"], dict(packed["values"]), means)


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
    """Codes of the levels of a column, -1 for unknown ones, or its numbers; NaN for gaps."""
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
    code = {level: float(i) for i, level in enumerate(content.levels)} | {None: math.nan}
    found = np.array([code.get(each, -1.0) for each in column.values.tolist()])
    return found if known is None else np.where(np.isnan(known), math.nan, found)
