"""Which rows are trained on, and which are held out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from sklearn.base import is_regressor
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from ..final_solve.offset import less_offset
from ..training.batches import RowsDataset
from .arrays import told_of
from .checks import Checked, check_data
from .effects import warn_without_effect
from .plan import Plan
from .validation_scale import warn_of_other_scale

__all__ = ["Parts", "Split", "parts_of"]


class Split(NamedTuple):
    """Indices of the training rows and of the held-out rows."""

    train: np.ndarray
    held_out: np.ndarray

    @classmethod
    def draw(cls, n_rows: int, n_held: int, classes: np.ndarray | None, seed: int) -> Split:
        """Hold out random rows, stratified by class if there are enough of each."""
        if n_rows - n_held < 2:
            raise ValueError(
                f"`validation_fraction` holds out {n_held} of {n_rows} rows, which leaves "
                f"{max(0, n_rows - n_held)} to train on. Use a smaller fraction, or pass `X_val` "
                "and `y_val`."
            )
        if classes is not None:
            counts = np.unique(classes, return_counts=True)[1]
            if counts.min() < 2 or len(counts) > min(n_held, n_rows - n_held):
                classes = None  # too few rows to have every class in both parts
        train, held = train_test_split(
            np.arange(n_rows), test_size=n_held, stratify=classes, random_state=seed
        )
        return cls(np.sort(train), np.sort(held))


class Parts(NamedTuple):
    """All rows of a fit in their order, the training rows and the held-out rows."""

    rows: RowsDataset
    train: RowsDataset
    valid: RowsDataset | None

    def less(self, offset: Any) -> Parts:
        """The same rows, with the residuals of the offset as targets."""
        rows, train = less_offset(self.rows, offset), less_offset(self.train, offset)
        return Parts(rows, train, None if self.valid is None else less_offset(self.valid, offset))


def parts_of(estimator: Any, plan: Plan, checked: Checked, X_val: Any, y_val: Any) -> Parts:
    """The parts of checked rows; some are held out unless validation rows are given."""
    if (X_val is None) != (y_val is None) and not isinstance(X_val, Dataset):
        raise ValueError("Give both `X_val` and `y_val`, or neither.")
    defaults, given, n_rows = estimator.defaults, X_val is not None, len(checked.y)
    holds_out = not given and estimator.validation_fraction != 0
    holds_out = holds_out and defaults.holds_out(estimator.early_stopping, n_rows)
    warn_without_effect(estimator, holds_out=holds_out, given=given)
    data = plan.dataset(checked)
    if given:
        with told_of("In `X_val` and `y_val`, called X and y here"):
            held_out = check_data(estimator, X_val, y_val, None, plan=plan, min_samples=1)
            valid = plan.dataset(estimator._tame_held_out(held_out))
        warn_of_other_scale(data, valid, plan.scale if is_regressor(estimator) else None)
        return Parts(data, data, valid)
    if not holds_out:
        return Parts(data, data, None)
    if n_rows < 10:
        raise ValueError(
            f"`early_stopping`=True holds out rows and needs at least 10, got n_samples={n_rows}. "
            'Use early_stopping="auto" or False, or give `X_val` and `y_val`.'
        )
    n_held = defaults.n_held_out(estimator.validation_fraction, n_rows)
    classes = estimator._stratify(checked.y)
    split = Split.draw(n_rows, n_held, classes, plan.network.seed)
    return Parts(data, data.subset(split.train), data.subset(split.held_out))
