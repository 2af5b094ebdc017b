"""ParquetDataset: a Parquet file or directory, read in blocks of rows."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from .blocks import Block

__all__ = ["ParquetDataset"]


class ParquetDataset(IterableDataset[Any]):
    """Rows of a Parquet file or directory for ``fit``, ``partial_fit`` and ``predict``.

    They are read in blocks through pyarrow's scanner, so that memory does not grow with their
    number. Columns may hold numbers, categories, text and gaps, as in a frame.

    Files may hold a column in different types: integers and floats, text and categories with other
    levels, or no value at all, and some files may lack a column, whose values are gaps there.

    Training reads the row groups in another random order in each epoch, and shuffles rows within
    blocks. If the file is sorted, row groups of at most some ten thousand rows mix it best.

    Parameters
    ----------
    path : str or path
        A file, or a directory of files with the same columns. Directories named ``key=value``
        become columns.
    target : str or list of str
        Column of the target, or columns of several.
    weight : str, optional
        Column of the sample weights.
    columns : list of str, optional
        Columns of X; default all others.
    block_rows : int, default=65536
        Rows that are read at once.

    Raises
    ------
    ImportError
        If pyarrow is not installed (extra ``parquet``).
    ValueError
        If a column does not exist or is of kinds in two files that do not go together, or if a
        target or weight is missing in a row.

    Examples
    --------
    >>> import tempfile, numpy as np, pyarrow as pa, pyarrow.parquet as pq
    >>> from sklearn_cfll import CFLLRegressor
    >>> from sklearn_cfll.data import ParquetDataset
    >>> x = np.linspace(0, 1, 500)
    >>> path = tempfile.mkdtemp() + "/rows.parquet"
    >>> pq.write_table(pa.table({"x": x, "y": np.sin(6 * x)}), path)
    >>> rows = ParquetDataset(path, "y")
    >>> CFLLRegressor(max_epochs=5, random_state=0).fit(rows).predict(rows).shape
    (500,)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        target: str | Sequence[str],
        *,
        weight: str | None = None,
        columns: Sequence[str] | None = None,
        block_rows: int = 2**16,
    ) -> None:
        self.path, self.target, self.weight = path, target, weight
        self.block_rows = block_rows
        open_ = functools.partial(
            _arrow().dataset, os.fspath(path), format="parquet", partitioning="hive"
        )
        self._data = open_(schema=_common_schema(open_()))
        if not self._data.files:
            raise ValueError(f"{os.fspath(path)!r} holds no Parquet files.")
        known = self._data.schema.names
        own = [target] if isinstance(target, str) else list(target)
        others = [*own, *([] if weight is None else [weight])]
        self.columns = [n for n in known if n not in others] if columns is None else list(columns)
        for name in (*others, *self.columns):
            if name not in known:
                raise ValueError(
                    f"{os.fspath(path)!r} has no column {name!r}. Its columns are {known}."
                )
        for name in own:
            if name in self.columns:
                raise ValueError(f"Column {name!r} is a target: leave it out of `columns`.")
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise ValueError(f"`columns` lists {twice[0]!r} more than once.")
        if not self.columns:
            raise ValueError(f"No column of {os.fspath(path)!r} is left for X: {known}.")

    def __len__(self) -> int:
        """Number of rows, from the files' metadata."""
        return int(self._data.count_rows())

    def __iter__(self) -> Iterator[Block]:
        """Blocks of rows in the order of the files."""
        return self.blocks()

    def blocks(self, seed: int | None = None) -> Iterator[Block]:
        """Blocks (X, y, sample_weight) of rows, X as a pyarrow table.

        Parameters
        ----------
        seed : int, optional
            Of the order of the row groups; default their order in the files.
        """
        names = list(dict.fromkeys([*self.columns, *self._own]))
        options = {"schema": self._data.schema, "columns": names, "batch_size": self.block_rows}
        # One row group at a time: a scanner of the whole data set reads up to 1 GiB ahead.
        groups = [g for file in self._data.get_fragments() for g in file.split_by_row_group()]
        order = np.arange(len(groups))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(groups))
        for index in order:
            for batch in groups[index].scanner(**options).to_batches():
                if batch.num_rows:
                    yield self._block(batch)

    @property
    def _own(self) -> list[str]:
        """Columns of the targets, and of the weight."""
        own = [self.target] if isinstance(self.target, str) else list(self.target)
        return own if self.weight is None else [*own, self.weight]

    def _block(self, batch: Any) -> Block:
        import pyarrow as pa

        table = pa.Table.from_batches([batch])
        if isinstance(self.target, str):
            y = self._known(table, self.target)
        else:
            y = np.column_stack([self._known(table, name) for name in self.target])
        weight = None if self.weight is None else self._known(table, self.weight)
        return Block(table.select(self.columns), y, weight)

    def _known(self, table: Any, name: str) -> np.ndarray:
        """A column without gaps."""
        column = table.column(name)
        found: np.ndarray = column.to_numpy()
        n_missing = column.null_count
        if not n_missing and found.dtype.kind == "f":
            n_missing = int(np.isnan(found).sum())
        if n_missing:
            raise ValueError(
                f"Column {name!r} of {os.fspath(self.path)!r} has no value in {n_missing} of "
                f"{len(column)} rows that were read together. Drop such rows."
            )
        return found


def _common_schema(data: Any) -> Any:
    """One schema for all files: that of the first may have other types, or fewer columns."""
    import pyarrow as pa

    # For each column, its types and a file of each.
    found: dict[str, dict[Any, str]] = {}
    for file in data.get_fragments():
        for field in file.physical_schema:
            found.setdefault(field.name, {}).setdefault(field.type, file.path)
    for field in data.schema:  # and columns of directories
        found.setdefault(field.name, {field.type: ""})
    return pa.schema([(name, _common_type(name, types)) for name, types in found.items()])


def _common_type(name: str, types: dict[Any, str]) -> Any:
    """The type that holds all values of a column."""
    import pyarrow as pa

    known = [each for each in types if not pa.types.is_null(each)] or list(types)
    if len(known) == 1:
        return known[0]
    plain = [each.value_type if pa.types.is_dictionary(each) else each for each in known]
    schemas = [pa.schema([(name, each)]) for each in plain]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException as error:
        said = " and ".join(f"{each} in {types[each]!r}" for each in known[:2])
        raise ValueError(
            f"Column {name!r} is {said}, which do not go together. Write it in one type, or leave "
            "it out of `columns`."
        ) from error


def _arrow() -> Any:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            "ParquetDataset needs pyarrow: pip install 'sklearn-cfll[parquet]'."
        ) from error
    return pyarrow.dataset
