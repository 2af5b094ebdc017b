"""Incremental learning: ``partial_fit``, ``adapt`` and a ``fit`` that starts from the last one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .._warnings import user_level
from ..data.blocks import is_stream
from ..final_solve.offset import less_offset
from ..final_solve.refit import mean_squared_residuals
from ..heads.memory import memory_of
from ..training.batches import RowsDataset
from ..training.distribution import refuse_workers
from ..training.optimizers import optimizer_class
from ..training.progress import Progress
from ..training.torch_settings import use_threads
from .additions import Additions
from .checks import Checked, check_data
from .column_moments import total_weight, warn_of_other_columns
from .effects import warn_without_effect
from .few_rows import labelled_features
from .fitted import FittedModel
from .known_rows import KnownRows
from .left_out import NO_MOMENTS
from .nets import new_net, standardise_inside
from .plain_row import plain_row
from .plan import make_plan
from .run import Run
from .split import Parts, parts_of
from .tables import check_categories, with_learned_columns
from .unchanged import check_unchanged

__all__ = ["IncrementalMixin"]


class IncrementalMixin:
    """Mixin of ``partial_fit``, ``adapt`` and a warm-started ``fit``."""

    def _follow_parameters(self: Any) -> None:
        """Apply a changed optimiser, and raise for changed parameters that are fixed after a fit.

        All other settings are read when they are needed.
        """
        self._validate_params()  # scikit-learn does not validate them in partial_fit
        check_unchanged(self, self._model.plan.parameters)
        self._own_net.change_optimizer(optimizer_class(self.optimizer))

    def _check_more(
        self: Any, X: Any, y: Any, sample_weight: Any, groups: Any = None, min_samples: int = 1
    ) -> Checked:
        """Check rows that are added to a fitted model."""
        plan = self._model.plan
        checked = check_data(self, X, y, sample_weight, groups, plan=plan, min_samples=min_samples)
        checked = self._tame_targets(checked)
        plan.check_targets(checked)
        tamed: Checked = self._tame_added(checked)
        return tamed

    def _begin_stream(self: Any, checked: Checked) -> tuple[Run, FittedModel]:
        """A new net for the first rows of a stream."""
        X = checked.X
        plain = isinstance(X, np.ndarray) and X.ndim == 2 and X.dtype.kind == "f"
        for column in np.flatnonzero(np.isnan(X).all(0))[:1] if plain else ():
            name = getattr(self, "feature_names_in_", range(X.shape[1]))[column]
            warnings.warn(
                f"Column {name!r} of `X` holds only gaps in these first rows, which settle how its "
                "values are seen in later calls. Begin with rows that hold values of each column, "
                "or drop it.",
                UserWarning,
                stacklevel=user_level(),
            )
        plan = make_plan(self, checked)
        warn_without_effect(self, holds_out=True, given=False, stream=True)
        plan.mean_weight = 1.0  # a stream's weights are not normalised
        net = new_net(plan, self.optimizer, self.compile, self.memory)
        return Run(self, plan, net), FittedModel(plan, net.module_)

    def _partial_fit(self: Any, X: Any, y: Any, sample_weight: Any, categories: Any) -> Any:
        """Train for one epoch on these rows, with none held out."""
        refuse_workers("`partial_fit`")
        if categories is not None and not isinstance(categories, Mapping):
            raise TypeError(
                "`categories` must be a dict of columns, by name or index, and the levels of each, "
                f"got {categories!r:.60}."
            )
        if is_stream(X):
            return self._partial_fit_stream(X, y, sample_weight, categories)
        with self._previous_fit_kept() as (settings, before):
            first = not self.__sklearn_is_fitted__()
            if categories is not None and not first:
                check_categories(categories, self._model.plan.reader)
            if first:
                checked = check_data(
                    self, X, y, sample_weight, plan=None, min_samples=1, categories=categories
                )
                checked = self._tame_targets(checked)
                (run, model), known_rows = self._begin_stream(checked), KnownRows(is_stream=True)
            else:
                self._follow_parameters()
                checked = self._check_more(X, y, sample_weight)
                model, known_rows = self._model, replace(self._known_rows)
                run = Run(self, model.plan, self._own_net, before)
            progress = settings.enter_context(Progress(shown=self.verbose == 1))
            settings.enter_context(run.net.followed(progress))
            net, plan, ridge = run.net, run.plan, None if first else model.final_ridge
            rows = plan.dataset(checked, as_added=True)
            settings.enter_context(use_threads(run.n_threads(len(rows))))
            added = less_offset(rows, model.offset)
            addition = Additions(run, known_rows, ridge, added)
            if first:
                standardise_inside(plan.network, net, added)
                addition.see_columns()
            else:
                # Before they are learnt, these rows serve as held-out rows.
                noise = mean_squared_residuals(net, less_offset(added, model.local_part))
                addition.judge_ridges()
                addition.follow_scales()
            adds = memory_of(self.memory).holds_rows  # the pass itself adds the rows
            if not adds:
                addition.take_last_layer()
            data = added if adds else less_offset(plan.dataset(checked), model.offset)
            run.configure(
                len(data),
                1,
                stream=True,
                share=1.0 if known_rows.is_stream else addition.restart_share,
                going_on=not known_rows.is_stream,
                fixed_rate=known_rows.is_stream,
                solved_ridge=ridge,
            )
            parts = Parts(data, data, None)
            callbacks = run.callbacks(parts, None, (X, y), None)
            progress.stage("rows", len(data))
            with run.explained(parts, X):
                net.run(data, None, callbacks)
            addition.absorb()
            model = addition.begun(model) if first else addition.improved(model, rows, noise)
            self._set_learnt(addition, model, rows)
        return self

    def _fit_again(
        self: Any, X: Any, y: Any, sample_weight: Any, X_val: Any, y_val: Any, groups: Any,
        settings: contextlib.ExitStack, before: Any,
    ) -> Any:  # fmt: skip
        """Continue the previous fit, with the parameters of now.

        At least as many rows as the model was fitted to are assumed to be the same rows or to
        replace them, and the run is an ordinary fit that starts from the current weights. Fewer
        rows are added to the earlier ones, like those of ``partial_fit``, but for several epochs;
        the best state on the held-out rows is kept, which may be the initial one.
        """
        self._follow_parameters()
        model, net, known_rows = self._model, self._own_net, replace(self._known_rows)
        plan, checked = model.plan, self._check_more(X, y, sample_weight, groups, min_samples=2)
        if len(checked.y) >= known_rows.n_known and plan.reader is not None and plan.reader.means:
            # These rows have given the means, or replace those that have.
            known = checked._replace(reader=plan.reader, groups=None)
            checked = with_learned_columns(self, known, again=True)._replace(groups=checked.groups)
            plan = replace(plan, reader=checked.reader)
        parts = parts_of(self, plan, checked, X_val, y_val)
        progress = settings.enter_context(Progress(shown=self.verbose == 1))
        rest, run = parts.less(model.offset), Run(self, plan, net, before)
        settings.enter_context(net.followed(progress))
        task = self._init_callback_context(max_subtasks=run.epochs)
        settings.enter_context(use_threads(run.n_threads(len(parts.train))))
        few = total_weight(parts.rows) < known_rows.n_known
        if few:
            rows = plan.dataset(checked, as_added=True)
            addition = Additions(
                run, known_rows, model.final_ridge, less_offset(rows, model.offset)
            )
            noise = mean_squared_residuals(net, less_offset(addition.rows, model.local_part))
            addition.follow_scales()
            addition.take_last_layer()
            share = addition.restart_share
            run.configure(len(rest.train), run.epochs, share=share, going_on=True)
        else:
            self._forget_held_out(rest)
            run.configure(len(rest.train), run.epochs)
        as_fitted = self._as_fitted(run, model)
        callbacks = run.callbacks(rest, task, (X, y), as_fitted, warm=True)
        progress.stage("epochs", run.epochs * len(rest.train))
        with run.explained(rest, X):
            net.run(rest.train, rest.watched(self.defaults.most_watched), callbacks)
        if few:
            addition.absorb()
            known_rows.is_stream, known_rows.columns, known_rows.ridge_errors = False, None, None
            self._set_learnt(addition, addition.improved(model, rows, noise), rows)
        else:
            self._finish(run, parts, rest, model.offset, checked)
            if parts.folds is not None and not self._known_rows.same_folds(known_rows):
                self._model = replace(self._model, out_of_fold=None)
                warnings.warn(
                    "This fit continues one on other rows or folds: members have been trained on "
                    "rows that they now hold out. The chosen epoch, intervals and probabilities "
                    "are too sure of themselves, and there is no `oof_score_`. Use "
                    "warm_start=False for other rows, or `partial_fit` to add rows.",
                    UserWarning,
                    stacklevel=user_level(),
                )
        return self._end(task, X, y, as_fitted)

    def _forget_held_out(self: Any, parts: Parts) -> None:
        """Solve for the last layer again, without the rows that are held out.

        It may have been fitted to them, and their loss would then be too low for any epoch to
        improve on.
        """
        head = self._model.head
        if self.refit_last_layer and head.holds_moments and parts.valid is not None:
            batches = self._own_net.labelled_features(parts.train)
            head.refit(batches, ridge=self._model.final_ridge)

    def _set_learnt(self: Any, addition: Additions, model: FittedModel, rows: RowsDataset) -> None:
        """Set the attributes after a pass over new rows."""
        share, before = addition.remember(rows), model.influences
        if before is None or len(rows) > 1:  # columns of a single row have no deviation
            new = model.influences_of(rows)
            if before is not None and new is not None:
                new = (1 - share) * before + share * new
            model = replace(model, influences=new)
        self._set_fitted(addition.run, model, addition.known_rows, Parts(rows, rows, None))

    def adapt(self: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
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
        refuse_workers("`adapt`")
        model, head = self._model, self._model.head
        with self._torch_settings() as settings, head.kept_in_failure():
            rows = plain_row(self, X, y, sample_weight)
            is_plain = rows is not None
            if rows is None:
                checked = self._check_more(X, y, sample_weight)
                rows = model.plan.dataset(checked, as_added=True)
            settings.enter_context(use_threads(self._n_threads_to_predict(len(rows))))
            if not head.holds_moments:
                raise ValueError(f"`adapt` {NO_MOMENTS}")
            added = less_offset(rows, model.offset)
            if self._known_rows.columns is None and not is_plain:
                warn_of_other_columns(model.plan.network, added)
            for features, *rest in labelled_features(model, added):
                head.accumulate(features, *rest)
            head.solve(model.final_ridge, near=True)
            if not torch.isfinite(head.weight).all():
                raise ValueError(
                    "`adapt` found non-finite values in X, y or the features. The "
                    "estimator was not changed."
                )
            if model.left_out is not None or model.out_of_fold is not None:
                self._model = replace(model, left_out=None, out_of_fold=None)
        return self
