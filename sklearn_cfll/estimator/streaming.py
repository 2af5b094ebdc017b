"""Streaming: a fit to rows that are read in blocks, at constant memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import is_regressor

from ..columns.frames import as_frame
from ..columns.statistics import ENTRIES, occurrences
from ..data.blocks import Block, blocks_of, cut, joined
from ..training.batches import RowsDataset
from ..training.distribution import refuse_workers
from ..training.folds import FoldRows, Folds
from ..training.progress import Progress
from ..training.seeding import LentStream, draw_seed
from ..training.streams import StreamRows
from ..training.torch_settings import use_threads
from .checks import check_data
from .effects import warn_of_fixed_features, warn_without_effect
from .fitted import FittedModel
from .known_rows import checksums
from .nets import new_net, standardise_inside
from .plan import Plan, make_plan
from .run import Run
from .scaled_columns import may_scale_columns, scale_columns
from .split import ONE_OF, Parts, crosses_folds, warn_of_equal_copies
from .wild_targets import clip_wild

__all__ = ["StreamingMixin"]

MOST_IN_BLOCK = 2**17  # rows that are shuffled together
LEAST_BATCHES = 4  # of a block
GOLDEN = 0x9E3779B97F4A7C15  # 2 ** 64 over the golden ratio: its multiples are far apart
TEXT = ("String", "Categorical", "Enum", "Object", "Boolean")


class Look(NamedTuple):
    """What the first pass over a stream has seen.

    Attributes
    ----------
    sample : Block
        Rows drawn at random, and one of each label and level of a category.
    n_rows : int
    """

    sample: Block
    n_rows: int


class StreamingMixin:
    """Mixin of ``fit``, ``partial_fit`` and ``predict`` for streams of rows.

    The first pass draws a sample of the rows, from which columns, scales and classes are known, and
    which judges afterwards. Which rows a member holds out follows from a checksum of the row, so
    that it is the same in each pass, in whatever order the rows come.
    """

    def _fit_stream(
        self: Any, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any, groups: Any
    ) -> Any:
        """Fit to a stream; see :meth:`fit`."""
        refuse_workers("`fit` to a stream of rows")
        _check_arguments(self, y=y, sample_weight=sample_weight, groups=groups, X_val=X_val)
        with self._previous_fit_kept() as (settings, _):
            progress = settings.enter_context(Progress(shown=self.verbose == 1))
            progress.stage("first pass", _length(X))
            seed = draw_seed(self.random_state)
            source = _Source(X, seed)
            look = first_look(source, progress, labels=not is_regressor(self))
            progress.stage("columns")
            sample = look.sample
            checked = check_data(
                self, sample.X, sample.y, sample.sample_weight, plan=None, min_samples=2
            )
            checked = self._tame_targets(checked)
            plan = make_plan(self, checked)
            rows = plan.dataset(checked)
            net = new_net(plan, self.optimizer, self.compile, self.memory)
            settings.enter_context(net.followed(progress))
            run = Run(self, plan, net)
            task = self._init_callback_context(max_subtasks=run.epochs)
            reader = _Reader(self, source, plan, look, rows, run)
            parts, train = reader.parts(rows)
            settings.enter_context(use_threads(run.n_threads(look.n_rows)))
            standardise_inside(plan.network, net, parts.before)
            if not run.trains:
                warn_of_fixed_features(self, holds_out=parts.valid is not None)
            if may_scale_columns(run, parts):
                progress.stage("scales of columns")
                scale_columns(run, parts, None)
            run.configure(len(train), run.epochs)
            as_fitted = self._as_fitted(run, FittedModel(plan, net.module_))
            callbacks = run.callbacks(parts, task, (X, y), as_fitted)
            progress.stage("epochs", run.epochs * len(train))
            with run.explained(parts, sample.X):
                net.run(train, parts.watched(self.defaults.most_watched), callbacks)
            if not self.warm_start:
                net.reset_optimizer()
            of_stream: Any = {"rows": reader.rest(rows), "train": train}
            rest = parts._replace(**of_stream)
            self._finish(run, parts, rest, None, checked)
            self._known_rows.n_known = float(look.n_rows)
            return self._end(task, X, y, as_fitted)

    def _partial_fit_stream(self: Any, X: Any, y: Any, sample_weight: Any, categories: Any) -> Any:
        """One pass over a stream: each of its blocks is a call of ``partial_fit``."""
        _check_arguments(self, y=y, sample_weight=sample_weight)
        with self._previous_fit_kept():  # a later block may fail
            for block in _Source(X, draw_seed(self.random_state)).blocks():
                self._partial_fit(block.X, block.y, block.sample_weight, categories)
        return self

    def _outputs_of_stream(self: Any, X: Any) -> np.ndarray:
        """Raw predictions of all rows in the order of the stream."""
        found = [self._outputs(block.X) for block in _Source(X, 0).blocks()]
        if not found:
            raise ValueError("The stream X has no rows.")
        return np.concatenate(found)


class _Source:
    """Passes over a stream whose own random numbers, if it draws any, come from a seed."""

    def __init__(self, X: Any, seed: int) -> None:
        self.X, self.seed = X, seed

    def blocks(self, seed: int | None = None) -> Iterator[Block]:
        """One pass; a seed may change the order."""
        blocks = blocks_of(self.X, seed)
        if hasattr(self.X, "blocks"):
            return blocks
        return LentStream("cpu", self.seed if seed is None else seed).batches(blocks)


def first_look(source: _Source, progress: Progress, *, labels: bool) -> Look:
    """Count the rows of a stream, and draw some of them.

    Each row gets a random number, and those with the smallest are kept. Rows that hold a new label
    or level are kept in any case.
    """
    random, known = np.random.default_rng(source.seed), _Known(labels)
    held: list[Block] = []
    keys: list[np.ndarray] = []
    n_rows, most, bound = 0, 0, 1.0
    for block in source.blocks():
        if block.y is None:
            raise ValueError("The stream has no targets: give (inputs, target) pairs.")
        _check_numbers(block, n_rows)
        most = most or max(2, ENTRIES // max(1, math.prod(block.X.shape[1:])))
        key = random.random(len(block))
        key[known.new_rows(block)] = -1.0
        chosen = np.flatnonzero(key < bound)
        held.append(block.take(chosen))
        keys.append(key[chosen])
        n_rows += len(block)
        progress.rows(len(block))
        if sum(map(len, keys)) > 2 * most:
            held, keys, bound = _smallest(held, keys, most)
    if not held:
        raise ValueError(
            "The stream has no rows."
            if hasattr(source.X, "blocks")
            else "The stream has no rows. An iterator can be read only once: pass an "
            "IterableDataset whose `__iter__` starts anew."
        )
    held, keys, _ = _smallest(held, keys, most)
    return Look(held[0], n_rows)


def _check_numbers(block: Block, start: int) -> None:
    """Raise for numbers of a block that cannot be fitted; its first row is number ``start``."""
    parts = {"X": block.X, "The target": block.y, "The weight": block.sample_weight}
    for name, part in parts.items():
        array = part if isinstance(part, np.ndarray) else np.empty(0)
        if array.dtype.kind != "f":
            continue
        bad = np.isinf(array) if name == "X" else ~np.isfinite(array)
        if bad.any():
            first = tuple(np.argwhere(bad)[0].tolist())
            raise ValueError(
                f"{name} holds {array[first]:g} in row {start + first[0]} of the stream, which is "
                "not finite. Replace it, or leave the row out."
            )


def _smallest(
    held: list[Block], keys: list[np.ndarray], most: int
) -> tuple[list[Block], list[np.ndarray], float]:
    """The rows with the smallest keys in their order, and the largest key among them."""
    block, key = joined(held), np.concatenate(keys)
    if len(key) <= most:
        return [block], [key], 1.0
    chosen = np.sort(key.argpartition(most)[:most])
    return [block.take(chosen)], [key[chosen]], float(key[chosen].max())


class _Known:
    """Labels and levels of text columns that have been seen."""

    def __init__(self, labels: bool) -> None:
        self.labels = labels
        self.seen: dict[Any, set[Any]] = {}

    def new_rows(self, block: Block) -> list[int]:
        """Rows in which a label or level occurs first."""
        columns: list[tuple[Any, Any, Any]] = []
        if self.labels:
            y = np.asarray(block.y)
            labels = y.tolist() if y.ndim == 1 else list(map(tuple, y.tolist()))
            columns.append((None, labels, lambda: labels))
        frame = as_frame(block.X)
        for index, name in enumerate(() if frame is None else frame.columns):
            assert frame is not None
            column = frame[:, index]
            if type(column.dtype).__name__ in TEXT or str(column.dtype) in TEXT:
                columns.append((name, column.unique().to_list(), column.to_list))
        found = []
        for name, values, whole in columns:
            seen = self.seen.setdefault(name, set())
            new = set(values) - seen
            if new:
                rows = whole()
                found += [rows.index(value) for value in new]
                seen |= new
        return found


class _Reader:
    """From blocks of a stream to rows that the net takes, with what each member may see of them."""

    def __init__(
        self, estimator: Any, source: _Source, plan: Plan, look: Look, rows: RowsDataset, run: Run
    ) -> None:
        self.estimator, self.source, self.plan, self.look = estimator, source, plan, look
        assert rows.targets is not None
        self.reach = float(rows.targets.abs().max())
        batch = run.batch_rows(look.n_rows)
        entries = max(1, math.prod(rows.inputs.shape[1:]))
        whole = max(LEAST_BATCHES * batch, min(MOST_IN_BLOCK, ENTRIES // entries))
        n_blocks = max(1, round(look.n_rows / whole))
        edges = [look.n_rows * i // n_blocks for i in range(n_blocks + 1)]
        self.sizes = np.diff(edges).tolist()
        defaults, n_members = estimator.defaults, plan.network.n_members
        holds = estimator.validation_fraction != 0
        holds = holds and defaults.holds_out(estimator.early_stopping, look.n_rows, crosses=False)
        self.crosses = crosses_folds(estimator, n_members, holds_out=holds, given=False)
        self.holds_out = holds or self.crosses
        self.n_folds = min(n_members, defaults.most_folds) if self.crosses else 0
        warn_without_effect(estimator, holds_out=holds, given=False, crosses=self.crosses)
        if not self.crosses:
            warn_of_equal_copies(plan.network)
        self.share = 0.1
        if estimator.validation_fraction != "auto":
            self.share = float(estimator.validation_fraction)

    # -- passes over the stream --------------------------------------------------------

    def every(self, sample: RowsDataset) -> StreamRows:
        """All rows."""
        return StreamRows(self._passes(lambda rows: rows), self.sizes, sample)

    def rest(self, sample: RowsDataset) -> StreamRows:
        """Rows of the last pass: those that training has held out, or all if members differ."""
        if self.crosses or not self.holds_out:
            return self.every(sample)
        return StreamRows(
            self._passes(lambda rows: rows.subset(np.flatnonzero(self.held_out(rows)))),
            self.sizes,
            sample,
        )

    def parts(self, sample: RowsDataset) -> tuple[Parts, StreamRows]:
        """The parts of the sample, and the training rows of the stream."""
        if not self.holds_out:
            return Parts(sample, sample, None), self.every(sample)
        if not self.crosses:
            held = self.held_out(sample)
            train, valid = (sample.subset(np.flatnonzero(own)) for own in (~held, held))
            return Parts(sample, train, valid), StreamRows(
                self._passes(lambda rows: rows.subset(np.flatnonzero(~self.held_out(rows)))),
                self.sizes,
                train,
            )
        parts = Parts.crossed(sample, self.folds(sample))
        scale = parts.train.scale  # type: ignore[attr-defined]

        def seen(rows: RowsDataset) -> RowsDataset:
            return FoldRows(rows, self.folds(rows), False, scale)

        return parts, StreamRows(self._passes(seen), self.sizes, parts.train)

    def _passes(
        self, view: Callable[[RowsDataset], RowsDataset]
    ) -> Callable[[int | None], Iterator[RowsDataset]]:
        def one_pass(seed: int | None) -> Iterator[RowsDataset]:
            n_rows = 0
            for block in cut(self.source.blocks(seed), self.sizes):
                n_rows += len(block)
                if n_rows > self.look.n_rows:
                    break
                yield view(self._rows(block))
            if n_rows != self.look.n_rows:
                more = "more" if n_rows > self.look.n_rows else "fewer"
                raise ValueError(
                    f"The stream gave {self.look.n_rows} rows in the first pass and {more} in "
                    "another. It must give the same rows each time it is iterated over: an "
                    "iterator is exhausted after one pass."
                )

        return one_pass

    def _rows(self, block: Block) -> RowsDataset:
        """Checked rows of a block, with wild targets clipped."""
        estimator, plan = self.estimator, self.plan
        checked = check_data(
            estimator, block.X, block.y, block.sample_weight, plan=plan, min_samples=1
        )
        rows = plan.dataset(checked, as_added=True)
        if is_regressor(estimator):
            clip_wild(rows, self.reach)
        return rows

    # -- what is held out --------------------------------------------------------------

    def held_out(self, rows: RowsDataset) -> np.ndarray:
        """Whether each row is held out, the same in each pass; bool, shape (n,)."""
        found: np.ndarray = (numbers(rows) >> np.uint64(11)) < self.share * 2**53
        return found

    def folds(self, rows: RowsDataset) -> Folds:
        """The folds of rows, the same in each pass."""
        number, n_folds = numbers(rows), np.uint64(self.n_folds)
        fold = (number % n_folds).astype(np.int64)
        also = (number // n_folds) % np.uint64(ONE_OF) == 0
        second = np.where(also, (fold + 1) % self.n_folds, -1)
        device = rows.inputs.device
        of_row, of_second = (torch.as_tensor(part, device=device) for part in (fold, second))
        return Folds(of_row, of_second, self.n_folds, self.plan.network.n_members)


def numbers(rows: RowsDataset) -> np.ndarray:
    """A number of 64 bits for each row, by its checksum; other numbers for copies in a block.

    If all copies of a row were held out together, a table of few different rows would be judged by
    targets that a member had never seen for them.
    """
    found = checksums(rows)
    copies: np.ndarray = found + occurrences(found).astype(np.uint64) * np.uint64(GOLDEN)
    return copies


def _length(X: Any) -> int | None:
    """Number of rows if the stream knows it."""
    with contextlib.suppress(TypeError):
        if hasattr(X, "blocks"):
            return len(X)
    return None


def _check_arguments(estimator: Any, **given: Any) -> None:
    """Raise for arguments and parameters that need all rows at once."""
    for name, value in given.items():
        if value is not None:
            instead = {
                "y": "The stream itself gives (inputs, target) pairs.",
                "sample_weight": "The stream may give it as a third entry of each pair.",
            }.get(name, "Pass arrays, or a map-style Dataset.")
            raise ValueError(f"`{name}` cannot be given together with a stream. {instead}")
    if getattr(estimator, "class_weight", None) == "balanced":
        raise ValueError(
            '`class_weight`="balanced" needs all rows at once. Pass a dict of weights of the '
            "classes instead."
        )
    if estimator.batch_size == "full":
        raise ValueError('`batch_size`="full" needs all rows in memory. Pass arrays, or a number.')
