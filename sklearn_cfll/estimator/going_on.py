"""Incremental learning: new rows change a model in proportion to their relative weight."""

from __future__ import annotations

import math
import warnings
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from ..columns.bins import PiecewiseLinear
from ..columns.scaling import LIMIT, Standardize
from ..columns.statistics import input_statistics
from ..final_solve.offset import less_offset
from ..final_solve.refit import Refit, mean_squared_residuals, path_errors
from ..heads.memory import memory_of
from ..linalg import RIDGES
from ..training.batches import BatchIterator, RowsDataset
from ..training.torch_settings import use_threads
from .checks import Checked, Parts, check_data
from .effects import warn_without_effect

__all__ = ["ColumnMoments", "GoingOnMixin", "share_kept", "total_weight"]

# The moments of earlier rows were computed on outdated features. A run whose learning rates sum to
# this value leaves exp(-1) of their weight. Three times as much and a third of the forgetting were
# no better on two simulated streams (benchmarks/going_on.py).
FORGOTTEN_BY = 1 / 3
MOST_ROWS_REMEMBERED, SHARE_SEEN = 1024, 0.2
# The ridge of a stream's solve before any ridge was evaluated on new rows.
STREAM_RIDGE = 0.01


def share_kept(total_rate: float) -> float:
    """Weight that earlier rows keep after steps whose learning rates sum to ``total_rate``."""
    return math.exp(-total_rate / FORGOTTEN_BY)


class ColumnMoments(NamedTuple):
    """Weight, means and variances of the input columns of a stream so far."""

    total: float
    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, rows: RowsDataset) -> ColumnMoments:
        mean, std = (
            part.cpu().numpy() for part in input_statistics(rows.inputs, rows.sample_weight)
        )
        return cls(total_weight(rows), mean, std**2)

    def merge(self, other: ColumnMoments) -> ColumnMoments:
        """Moments of both together (Chan, Golub, LeVeque 1979)."""
        total = self.total + other.total
        share = other.total / total
        gap = other.mean - self.mean
        variance = self.variance + share * (other.variance - self.variance)
        return ColumnMoments(
            total, self.mean + share * gap, variance + share * (1 - share) * gap**2
        )

    def share_kept(self, after: ColumnMoments) -> float:
        """Weight that earlier rows keep when the columns are scaled by ``after`` instead."""
        old, new = np.sqrt(self.variance), np.sqrt(after.variance)
        known = (old > 0) & (new > 0)  # constant columns do not count
        if not known.any():
            return 1.0
        shift = np.abs(after.mean - self.mean)[known] / new[known]
        stretch = np.abs(np.log(new[known] / old[known]))
        return float(np.exp(-np.max(shift + stretch)))


class GoingOnMixin:
    """Mixin for ``partial_fit``, ``adapt`` and a warm-started ``fit``.

    ``_n_known`` is the total weight of the rows that the model was fitted to. After a ``fit`` the
    backbone has converged, so new rows update it at a small learning rate, in proportion to their
    weight relative to the earlier rows. The last layer is solved from the moments of all rows,
    including the new ones.
    """

    _left_out: Any  # regressors only

    def _partial_fit(self: Any, X: Any, y: Any, sample_weight: Any) -> Any:
        """Train for one epoch on these rows, with none held out; see :class:`GoingOnMixin`."""
        with self._previous_fit_kept() as settings:
            first = not self.__sklearn_is_fitted__()
            if not first:
                self._follow_parameters()
            checked = check_data(self, X, y, sample_weight, reset=first, min_samples=1)
            checked = self._tame_targets(checked)
            if not first:
                self._plan.check_targets(checked)
                checked = self._tame_added(checked)
            plan = self._make_plan(checked) if first else self._plan
            if first:
                warn_without_effect(self, holds_out=True, given=False)
                plan.mean_weight = 1.0  # a stream's weights are not normalised
            rows = plan.dataset(checked, as_added=True)
            settings.enter_context(use_threads(self._n_threads_to_train(len(rows))))
            noise, kept = None, 1.0
            if first:
                self._offset = None
            added = less_offset(rows, self._offset)
            if first:
                self._start(plan, added)
                self._is_stream, self._columns_seen = True, self._see_columns(added)
                self._ridge_errors = None
            else:
                # Before they are learnt, these rows serve as held-out rows.
                noise = mean_squared_residuals(self.net_, added)
                self._judge_ridges(added)
                kept = self._follow_scales(added)
            adds = memory_of(self.memory).holds_rows  # the pass itself adds the rows
            data = added if adds else less_offset(plan.dataset(checked), self._offset)
            rate = 1.0 if self._is_stream else self._restart_rate(added)
            before: Any = (None, None)
            if first and not adds:
                before = self.net_.module_.last_layer.take_memory(), None  # there are none yet
            elif not adds:
                before = self._take_last_layer()
            going_on = not self._is_stream
            self._configure(len(data), 1, stream=True, rate=rate, going_on=going_on)
            self._train(Parts(data, data, None), None, X, y)
            kept *= share_kept(self._total_rate())
            self._absorb(before, kept, added)
            self._learnt(rows, kept, first, noise)
        return self

    def _add_rows(
        self: Any, checked: Checked, parts: Parts, epochs: int, task: Any, X: Any, y: Any
    ) -> None:
        """Warm-started fit to fewer rows than the model was fitted to; they are added to these.

        This works like ``partial_fit``, but for several epochs. The best state on the held-out rows
        is kept, which may be the initial one.
        """
        rows = self._plan.dataset(checked, as_added=True)
        added = less_offset(rows, self._offset)
        noise = mean_squared_residuals(self.net_, added)
        kept = self._follow_scales(added)
        before = self._take_last_layer()
        rate = self._restart_rate(added)
        self._configure(len(parts.train), epochs, rate=rate, going_on=True)
        self._train(parts, task, X, y, warm=True)
        kept *= share_kept(self._total_rate())
        self._absorb(before, kept, added)
        self._learnt(rows, kept, False, noise)

    def _absorb(self: Any, before: Any, kept: float, rows: RowsDataset) -> None:
        """Update the last layer after a pass over these rows.

        It is solved from the moments of earlier rows, in ``before``, and of these rows. If no
        moments were held, the weights before and after the pass are averaged in proportion to the
        rows.
        """
        layer = self.net_.module_.last_layer
        memory, weights = before
        if memory is not None:
            layer.reset_memory()
            layer.recall(memory, kept)
            for batch in self.net_.labelled_features(rows):
                layer.accumulate(*batch)
            layer.solve(self._stream_ridge())
        elif weights is not None:
            known = kept * self._n_known
            share = total_weight(rows) / (known + total_weight(rows))
            found = layer.state_dict()
            layer.load_state_dict(found | {k: v.lerp(found[k], share) for k, v in weights.items()})
        self.net_.check_finite()

    def _take_last_layer(self: Any) -> Any:
        """Remove and return the memory of the last layer, or copy its weights if it has none."""
        layer = self.net_.module_.last_layer
        if layer.holds_moments:
            return layer.take_memory(), None
        state = layer.state_dict().items()
        return None, {k: v.clone() for k, v in state if k.rpartition(".")[2] in ("weight", "bias")}

    def adapt(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Add rows to the last layer's exact ridge fit; the backbone is not changed.

        The result equals a fit of the last layer to all rows, old and new, in any order. The old
        rows are not needed, because their moments are sufficient.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`. Weights are on the scale of those at fit.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If no moments are kept; fit with ``refit_last_layer=True`` or
            ``memory="statistics"``.
        """
        check_is_fitted(self)
        with self._previous_fit_kept() as settings:
            checked = check_data(self, X, y, sample_weight, reset=False, min_samples=1)
            checked = self._tame_targets(checked)
            self._plan.check_targets(checked)
            data = self._plan.dataset(self._tame_added(checked), as_added=True)
            settings.enter_context(use_threads(self._n_threads_to_predict(len(data))))
            layer = self.net_.module_.last_layer
            if not layer.holds_moments:
                raise ValueError(f"`adapt` {self._no_moments()}")
            if self._columns_seen is None:
                self._follow_scales(data)  # this only warns here
            for batch in self.net_.labelled_features(less_offset(data, self._offset)):
                layer.accumulate(*batch)
            layer.solve(self.final_ridge_)
            if not torch.isfinite(layer.weight).all():
                raise ValueError(
                    "`adapt` found non-finite values in X, y or the features. The "
                    "estimator was not changed."
                )
        return self

    def _forget_held_out(self: Any, parts: Parts) -> None:
        """Solve for the last layer again, without the rows that a warm-started fit holds out.

        At least as many rows as the model was fitted to are assumed to be the same rows or to
        replace them, and the run is an ordinary fit that starts from the current weights. The last
        layer may have been fitted to the rows that are now held out, and their loss would then be
        too low for any epoch to improve on.
        """
        layer = self.net_.module_.last_layer
        if self.refit_last_layer and layer.holds_moments and parts.valid is not None:
            layer.refit(self.net_.labelled_features(parts.train), ridge=self.final_ridge_)

    def _restart_rate(self: Any, rows: RowsDataset) -> float:
        """Fraction of the learning rate at which training of a fitted model continues.

        It is one for as many rows as the model was fitted to and enough steps for the optimiser to
        estimate the size of gradients.
        """
        steps = self._n_batches(len(rows))
        return min(1.0, total_weight(rows) / self._n_known) * min(
            1.0, steps / self.defaults.short_run
        )

    def _stream_ridge(self: Any) -> float:
        """Ridge of the last layer's solve; for a stream, the one that predicted best so far."""
        if self._is_stream and self._ridge_errors is not None:
            return RIDGES[int(self._ridge_errors.argmin())]
        if "final_ridge_" in self.__dict__:
            return self.final_ridge_
        own = self._own_ridge()
        return STREAM_RIDGE if own is None else own

    def _own_ridge(self: Any) -> float | None:
        """The parameter ``ridge`` if it is the penalty of a stream's solve, else None."""
        exact = self.net_.optimizer_ is None or self.batch_size == "full"
        return float(self.ridge) if exact and self.ridge != "auto" else None

    def _judge_ridges(self: Any, rows: RowsDataset) -> None:
        """Add up the squared errors of each ridge on a stream's rows before they are learnt."""
        layer = self.net_.module_.last_layer
        adds = memory_of(self.memory).holds_rows
        if not self._is_stream or not layer.holds_moments or adds:
            return
        if self._own_ridge() is not None or self._seen_before(rows):
            return
        errors = path_errors(self.net_, rows, layer.ridge_path(torch.tensor(RIDGES))).sum(1)
        new = total_weight(rows) * errors.double().cpu().numpy()
        before = 0.0 if self._ridge_errors is None else self._ridge_errors
        self._ridge_errors = before + new

    def _see_columns(self: Any, rows: RowsDataset) -> ColumnMoments | None:
        """Statistics of the columns if the backbone standardises them."""
        scaled = any(isinstance(p, Standardize) for p in self.net_.module_.backbone.modules())
        return ColumnMoments.of(rows) if scaled else None

    def _follow_scales(self: Any, rows: RowsDataset) -> float:
        """Update the scales of a stream's columns with later rows.

        Returns the weight that earlier rows keep in the last layer's moments.
        """
        parts = list(self.net_.module_.backbone.modules())
        scales = [part for part in parts if isinstance(part, Standardize)]
        if not scales:
            return 1.0
        new = ColumnMoments.of(rows)
        if self._columns_seen is None:  # after `fit`, scales are fixed
            _warn_of_other_columns(scales[0], new)
            return 1.0
        before = ColumnMoments(*self._columns_seen)  # a file holds plain tuples
        after = self._columns_seen = before.merge(new)
        mean, std = after.mean, np.sqrt(after.variance)
        for part in scales:
            part.adapt_to(*(torch.as_tensor(a, device=self.device_) for a in (mean, std)))
        for part in parts:
            if isinstance(part, PiecewiseLinear):
                _warn_of_narrow_bins(part, before, after)
        return before.share_kept(after)

    def _learnt(self: Any, rows: RowsDataset, kept: float, first: bool, noise: Any) -> None:
        """Update the attributes after a pass over new rows."""
        weight = total_weight(rows)
        layer = self.net_.module_.last_layer
        self.decay_ = layer.decay
        if first:
            ridge = layer.ridge if layer.holds_rows else self._stream_ridge()
            self._n_known = self._target_reach = 0.0
            # The noise is unknown yet: use the variance of the targets with the weight of one row.
            self._set_solved(Parts(rows, rows, None), Refit(ridge, torch.ones(self.n_outputs_)))
            self._n_judges = 1.0
        else:
            self.__dict__.pop("ridge_path_", None)  # from earlier rows and weights
            if "_left_out" in self.__dict__:
                self._left_out = None
            self.final_ridge_ = layer.final_ridge or self.final_ridge_
            if self._ridge_errors is not None:
                self._ridge_errors = kept * self._ridge_errors
            if self._n_judges and not self._seen_before(rows):
                self._n_judges *= kept
                share = weight / (self._n_judges + weight)
                before, new = self.noise_variance_, self._plan.unscale_variance(noise)
                self.noise_variance_ = (1 - share) * before + share * new
                self._n_judges += weight
                self._noise_changed(before, self.noise_variance_)
            self.resolved_ = self._resolved(Parts(rows, rows, None))
        if self._is_stream:
            assert rows.targets is not None
            self._target_reach = max(self._target_reach, float(rows.targets.abs().max()))
        self._remember_rows(rows)
        self._n_known = kept * self._n_known + weight
        self._merge_slopes(rows, weight / self._n_known)

    def _remember_rows(self: Any, rows: RowsDataset, *, anew: bool = False) -> None:
        """Keep checksums of learnt rows; repeated rows are uninformative about the noise."""
        known = np.empty(0, np.uint32) if anew else self.__dict__.get("_rows_seen", ())
        found = np.concatenate([np.asarray(known, np.uint32), _checksums(rows)])
        self._rows_seen = found[-MOST_ROWS_REMEMBERED:]

    def _seen_before(self: Any, rows: RowsDataset) -> bool:
        """Whether these rows were learnt before, as in a loop of epochs over the same rows."""
        return bool(np.isin(_checksums(rows), self._rows_seen).mean() > SHARE_SEEN)

    def _merge_slopes(self: Any, rows: RowsDataset, share: float) -> None:
        before = self.__dict__.get("_slope_squares")
        if before is None or len(rows) > 1:  # columns of a single row have no deviation
            new = self._measure_slopes(rows)
            known = before is not None and new is not None
            self._slope_squares = (1 - share) * before + share * new if known else new


def _checksums(rows: RowsDataset) -> np.ndarray:
    """Checksum of each row and its targets; many rows are evenly subsampled."""
    chosen = torch.arange(0, len(rows), -(-len(rows) // MOST_ROWS_REMEMBERED))
    found = []
    for batch in BatchIterator(rows.subset(chosen), 256):
        inputs = batch.inputs.values() if isinstance(batch.inputs, dict) else [batch.inputs]
        parts = [p.reshape(len(p), -1).cpu().numpy() for p in (*inputs, batch.targets)]
        found += [zlib.crc32(b"".join(map(bytes, row))) for row in zip(*parts, strict=True)]
    return np.array(found, dtype=np.uint32)


def _warn_of_other_columns(scale: Standardize, rows: ColumnMoments) -> None:
    """Warn if new rows lie far outside the scale of the rows at fit."""
    if scale.mean.shape != rows.mean.shape:
        return  # channels of images and fields
    mean, unit = (part.double().cpu().numpy() for part in (scale.mean, scale.scale))
    far = (np.abs(rows.mean - mean) > LIMIT * unit) | (np.sqrt(rows.variance) > LIMIT * unit)
    for column in np.flatnonzero(far)[:1]:
        warnings.warn(
            f"Column {column} of the new rows has mean {rows.mean[column]:.4g}; the model was "
            f"fitted with mean {mean[column]:.4g} and standard deviation {unit[column]:.4g}, which "
            "`partial_fit` keeps. Check the units of the rows. If they are the same, `fit` again "
            "on old and new rows together.",
            UserWarning,
            stacklevel=4,
        )


def _warn_of_narrow_bins(
    bins: PiecewiseLinear, before: ColumnMoments, after: ColumnMoments
) -> None:
    """Warn if a stream leaves the range of the rows that determined its bins.

    The text is the same each time, so that Python's filters show it once.
    """
    center, width = (part.double().cpu().numpy() for part in (bins.center, bins.width))

    def outside(seen: ColumnMoments) -> np.ndarray:
        spread = np.sqrt(seen.variance)
        return (np.abs(seen.mean - center) > width) | (spread > width)

    for column in np.flatnonzero(outside(after) & ~outside(before))[:1]:
        warnings.warn(
            f"The first rows of `partial_fit` cover only part of the range of column {column}; "
            f"its bins span {width[column]:.4g} around {center[column]:.4g}, and many later rows "
            "lie outside, where half of each network gets no information. Start with shuffled "
            "rows, or use `columns`=ColumnEncoder(n_bins=0).",
            UserWarning,
            stacklevel=4,
        )


def total_weight(rows: RowsDataset) -> float:
    return float(len(rows) if rows.sample_weight is None else rows.sample_weight.double().sum())
