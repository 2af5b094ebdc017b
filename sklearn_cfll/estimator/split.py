"""Which rows are trained on, and which are held out: some for all members, or a fold for each."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import is_regressor
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset

from .._warnings import user_level
from ..final_solve.offset import less_offset
from ..training.batches import RowsDataset, spread
from ..training.folds import FoldRows, Folds
from .arrays import told_of
from .checks import Checked, check_data
from .distinct import Distinct
from .effects import warn_without_effect
from .network import Network
from .plan import Plan
from .validation_scale import warn_of_other_scale

__all__ = ["ONE_OF", "Parts", "Split", "crosses_folds", "draw_folds", "parts_of"]
__all__ += ["warn_of_equal_copies"]


ONE_OF = 16  # rows, of which one is held out by the members of two folds


class Split(NamedTuple):
    """Indices of the training rows and of the held-out rows."""

    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def draw(
        cls,
        n_rows: int,
        n_held: int,
        classes: np.ndarray | None,
        seed: int,
        groups: np.ndarray | None = None,
    ) -> Split:
        """Hold out random rows, stratified by class if there are enough of each.

        With ``groups``, whole groups are held out: about as many of them as rows were asked for.
        """
        if n_rows - n_held < 2:
            raise ValueError(
                f"`validation_fraction` holds out {n_held} of {n_rows} rows, which leaves "
                f"{max(0, n_rows - n_held)} to train on. Use a smaller fraction, or pass `X_val` "
                "and `y_val`."
            )
        if groups is not None:
            drawn = GroupShuffleSplit(1, test_size=n_held / n_rows, random_state=seed)
            return cls(*next(drawn.split(groups, groups=groups)))
        if classes is not None:
            counts = np.unique(classes, return_counts=True)[1]
            if counts.min() < 2 or len(counts) > min(n_held, n_rows - n_held):
                classes = None  # too few rows to have every class in both parts
        train, held = train_test_split(
            np.arange(n_rows), test_size=n_held, stratify=classes, random_state=seed
        )
        return cls(np.sort(train), np.sort(held))


def draw_folds(n_folds: int, like: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """The fold of each row; folds are of one size up to a row.

    Parameters
    ----------
    n_folds : int
    like : ndarray of shape (n, c)
        Rows that are alike in it, in the order of its columns, are spread over the folds: classes,
        or values of y.
    groups : ndarray of shape (n,), or None
        Rows of a group get the same fold; folds then have about the same size.
    seed : int
    """
    random, n_rows = np.random.RandomState(seed), len(like)
    folds = np.empty(n_rows, dtype=np.int64)
    if groups is not None:
        names, codes = np.unique(groups, return_inverse=True)
        shuffled = random.permutation(len(names))[codes]  # it decides between groups of one size
        for fold, (_, held_out) in enumerate(GroupKFold(n_folds).split(like, groups=shuffled)):
            folds[held_out] = fold
        return folds
    order = np.lexsort((random.random_sample(n_rows), *like.T[::-1]))
    rounds = random.random_sample((-(-n_rows // n_folds), n_folds)).argsort(1)
    folds[order] = rounds.ravel()[:n_rows]
    return folds


def draw_second(
    folds: np.ndarray, n_folds: int, groups: np.ndarray | None, seed: int
) -> np.ndarray:
    """A second fold for one row of ``ONE_OF`` (or group), the next one; -1 for all others."""
    codes = np.arange(len(folds))
    if groups is not None:
        codes = np.unique(groups, return_inverse=True)[1]
    n_units = codes.max() + 1
    chosen = np.random.RandomState(seed).permutation(n_units)[: n_units // ONE_OF]
    return np.where(np.isin(codes, chosen), (folds + 1) % n_folds, -1)


class Parts(NamedTuple):
    """All rows of a fit in their order, the training rows and the held-out rows.

    With ``folds``, each of the two is all rows, with weights of each member: see
    :class:`~sklearn_cfll.training.folds.FoldRows`.
    """

    rows: RowsDataset
    train: RowsDataset
    valid: RowsDataset | None
    folds: Folds | None = None
    grouped: bool = False  # whether rows of a group are held out together
    own_weight: np.ndarray | None = None  # of the held-out rows, without class weights
    place: np.ndarray | None = None  # among ``rows``, of each row of a small fit without copies

    @classmethod
    def crossed(cls, rows: RowsDataset, folds: Folds, left_out: Tensor | None = None) -> Parts:
        """Each member trains on the rows outside its fold and is evaluated on those in it.

        ``left_out`` are targets of the held-out rows, if they are others.
        """
        held_out = rows
        if left_out is not None:
            held_out = RowsDataset(rows.inputs, left_out, rows.sample_weight)
        return cls(rows, FoldRows(rows, folds, False), FoldRows(held_out, folds, True), folds)

    @property
    def before(self) -> RowsDataset:
        """Rows to which scales and the offset are fitted before training.

        Cross-fitted members share them, so they are all rows.
        """
        return self.train if self.folds is None else self.rows

    def watched(self, n_rows: int) -> RowsDataset | None:
        """Held-out rows on which each epoch is evaluated: with folds at most ``n_rows``, evenly.

        They are this worker's own.
        """
        if self.valid is None:
            return None
        valid = self.valid.own
        if self.folds is None:
            return valid
        watched: RowsDataset = valid.spread(max(1, n_rows * len(valid) // len(self.valid)))
        return watched

    def judged(self, n_rows: int) -> Parts:
        """The same with at most so many held-out rows, which judge the final solve, evenly."""
        held = self.valid
        if held is None or len(held) <= n_rows:
            return self
        chosen = spread(len(held), n_rows)
        own = None if self.own_weight is None else self.own_weight[chosen.numpy()]
        if self.folds is None:
            return self._replace(valid=held.subset(chosen), own_weight=own)
        rows, train, valid = (part.subset(chosen) for part in (self.rows, self.train, held))
        return Parts(rows, train, valid, self.folds.subset(chosen), self.grouped, own)

    def less(self, offset: Any) -> Parts:
        """The same rows, with the residuals of the offset as targets.

        With folds, a held-out row's target is its residual under the offset fitted to all others,
        or to all other folds if there are groups, whose rows tell of one another.
        """
        if offset is None:
            return self
        rows = less_offset(self.rows, offset)
        if self.folds is not None:
            assert rows.targets is not None
            if self.grouped:
                left_out = self._less_other_folds(offset, self.folds)
            else:
                left_out = rows.targets * (1.0 + offset.left_out_shift(rows))
            return Parts.crossed(rows, self.folds, left_out)
        train, valid = self.train, self.valid
        train = less_offset(train, offset)
        return Parts(rows, train, None if valid is None else less_offset(valid, offset))

    def _less_other_folds(self, offset: Any, folds: Folds) -> Tensor:
        """Targets less what the offset predicts if it is fitted without the row's fold."""
        assert self.rows.targets is not None
        left = self.rows.targets.clone()
        for fold in range(folds.n_folds):
            own, others = ((folds.of_row == fold) == inside for inside in (True, False))
            other = offset.refitted(self.rows.subset(others.nonzero().flatten()))
            held = less_offset(self.rows.subset(own.nonzero().flatten()), other)
            assert held.targets is not None
            left[own] = held.targets
        return left


def parts_of(estimator: Any, plan: Plan, checked: Checked, X_val: Any, y_val: Any) -> Parts:
    """The parts of checked rows; some are held out unless validation rows are given."""
    if (X_val is None) != (y_val is None) and not isinstance(X_val, Dataset):
        raise ValueError("Give both `X_val` and `y_val`, or neither.")
    defaults, given, n_rows = estimator.defaults, X_val is not None, len(checked.y)
    data, n_members = plan.dataset(checked), plan.network.n_members
    holds_out = not given and estimator.validation_fraction != 0
    crosses = crosses_folds(estimator, n_members, holds_out=holds_out, given=given)
    distinct = None
    if crosses and n_rows < defaults.held_out_from:
        distinct = Distinct.of(data, checked.groups)
    n_units = n_rows if distinct is None else distinct.n_inputs
    if n_units < 2:  # not all rows can be held out together
        distinct = None
    holds_out = holds_out and defaults.holds_out(estimator.early_stopping, n_units, crosses=crosses)
    crosses = crosses_folds(estimator, n_members, holds_out=holds_out, given=given)
    holds_out = holds_out or crosses
    warn_without_effect(estimator, holds_out=holds_out, given=given, crosses=crosses)
    if checked.groups is not None and not holds_out:
        _warn_of_groups(given)
    if not crosses:
        warn_of_equal_copies(plan.network)
    if given:
        with told_of("In `X_val` and `y_val`, called X and y here"):
            held_out = check_data(estimator, X_val, y_val, None, plan=plan, min_samples=1)
            valid = plan.dataset(estimator._tame_held_out(held_out))
        scale, columns = plan.scale if is_regressor(estimator) else None, plan.network.columns
        n_numbers = None if columns is None else columns.expansion.n_numbers
        warn_of_other_scale(data, valid, scale, n_numbers)
        return Parts(data, data, valid)
    if not holds_out:
        return Parts(data, data, None)
    least = min(10, defaults.least_rows(crosses))
    if n_rows < least:
        cause = "`cross_fit`=True" if estimator.cross_fit is True else "`early_stopping`=True"
        raise ValueError(
            f"{cause} holds out rows and needs at least {least} of positive weight, got "
            f"n_samples={n_rows}. "
            'Use "auto" or False, or give `X_val` and `y_val`.'
        )
    seed, classes, groups = plan.network.seed, estimator._stratify(checked.y), checked.groups
    if not crosses:
        n_held = defaults.n_held_out(estimator.validation_fraction, n_rows)
        split = Split.draw(n_rows, n_held, classes, seed, groups)
        own = None if checked.own_weight is None else checked.own_weight[split.held_out]
        parts = Parts(data, data.subset(split.train), data.subset(split.held_out))
        return parts._replace(grouped=groups is not None, own_weight=own)
    y, own = checked.y, checked.own_weight
    if distinct is not None:
        data, own = distinct.of_rows(data), distinct.total(own)
        first, y = distinct.first, y[distinct.first]
        classes = None if classes is None else classes[first]
        groups = distinct.units(groups)
    n_folds = min(n_members, defaults.most_folds)
    if groups is not None:
        n_folds = min(n_folds, len(np.unique(groups)))
    if classes is not None:
        like = classes[:, None]
    else:  # fields by their mean
        like = y.reshape(*y.shape[:2], -1).mean(-1).reshape(len(y), -1)
    folds = draw_folds(n_folds, like, groups, seed)
    second = draw_second(folds, n_folds, groups, seed)
    of_row, also = (torch.as_tensor(part, device=data.inputs.device) for part in (folds, second))
    parts = Parts.crossed(data, Folds(of_row, also, n_folds, n_members))
    place = None if distinct is None else distinct.place
    return parts._replace(grouped=checked.groups is not None, own_weight=own, place=place)


def _warn_of_groups(given: bool) -> None:
    reason = "`X_val` was given" if given else "no rows are held out"
    warnings.warn(
        f"`groups` has no effect because {reason}: it says which rows are held out together.",
        UserWarning,
        stacklevel=user_level(),
    )


def warn_of_equal_copies(network: Network) -> None:
    """Warn if several members would be one and the same network, trained on the same rows."""
    if network.copies > 1 and isinstance(network.recipe, nn.Module):
        warnings.warn(
            f"`n_members`={network.copies} copies of a module start with the same weights, and "
            "without folds they stay equal. Use cross_fit=True, or pass a function that builds the "
            "`backbone`, which is called for each.",
            UserWarning,
            stacklevel=user_level(),
        )


def crosses_folds(estimator: Any, n_members: int, *, holds_out: bool, given: bool) -> bool:
    """Whether each member holds out its own fold."""
    if estimator.cross_fit == "auto":
        enough = n_members >= estimator.defaults.cross_fit_from
        return holds_out and enough and estimator.validation_fraction == "auto"
    if not estimator.cross_fit:
        return False
    if given:
        raise ValueError(
            "`cross_fit`=True holds out a fold of the rows for each member, but `X_val` and "
            "`y_val` were given too. Omit them, or use cross_fit=False."
        )
    if n_members < 2:
        raise ValueError(
            "`cross_fit`=True needs several networks, each of which holds out its own fold, but "
            "there is one. Set `n_members` to 2 or more (8 is usual)."
        )
    return True
