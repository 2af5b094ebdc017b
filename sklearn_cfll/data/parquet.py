"""ParquetDataset: a Parquet file or directory, read in blocks of rows."""

from __future__ import annotations

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
        If a column does not exist, or if a target or weight is missing in a row.

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
        self._data = _arrow().dataset(os.fspath(path), format="parquet", partitioning="hive")
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
        if column.null_count:
            raise ValueError(
                f"Column {name!r} of {os.fspath(self.path)!r} has no value in "
                f"{column.null_count} of {len(column)} rows that were read together. Drop such "
                "rows."
            )
        found: np.ndarray = column.to_numpy()
        return found


def _arrow() -> Any:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            "ParquetDataset needs pyarrow: pip install 'sklearn-cfll[parquet]'."
        ) from error
    return pyarrow.dataset
