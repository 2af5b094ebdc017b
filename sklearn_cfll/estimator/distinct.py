"""Distinct: the rows of a small fit without copies, so that weights equal repetitions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..training.batches import RowsDataset

__all__ = ["Distinct"]


class Distinct(NamedTuple):
    """The distinct rows among a few, in an order that does not depend on theirs.

    A row with the weight 3 must count as three copies of it do, which could be in different folds.
    So copies become one row of their total weight. Rows with the same inputs share a fold, even if
    their targets differ: a member that had seen only some of these targets would be misled about
    the others.

    Attributes
    ----------
    first : ndarray of shape (m,)
        Index of a row that each of the m distinct rows is.
    place : ndarray of shape (n,)
        The distinct row that each row is.
    inputs : ndarray of shape (m,)
        Numbers that are the same for rows with the same inputs.
    """

    first: np.ndarray
    place: np.ndarray
    inputs: np.ndarray

    @classmethod
    def of(cls, rows: RowsDataset, groups: np.ndarray | None) -> Distinct:
        """Of labelled rows; those of different ``groups`` are different."""
        given, targets, _ = rows.batch(slice(None))
        assert targets is not None
        parts = list(given.values()) if isinstance(given, dict) else [given]
        inputs = _joined(*parts)
        keys = [inputs, _joined(targets)]
        if groups is not None:
            keys.append(np.unique(groups, return_inverse=True)[1].reshape(-1, 1))
        _, first, place = np.unique(np.hstack(keys), axis=0, return_index=True, return_inverse=True)
        numbers = np.unique(inputs[first], axis=0, return_inverse=True)[1]
        return cls(first, place.ravel(), numbers.ravel())

    @property
    def n_inputs(self) -> int:
        """Number of different inputs."""
        return int(self.inputs.max()) + 1

    def units(self, groups: np.ndarray | None) -> np.ndarray | None:
        """What is held out together, of distinct rows; None if each row is by itself."""
        if groups is not None:
            return groups[self.first]
        return None if self.n_inputs == len(self.first) else self.inputs

    def total(self, weights: np.ndarray | None) -> np.ndarray | None:
        """Weights (m,) of the distinct rows, with mean one; None if all are equal."""
        found = np.bincount(self.place, weights)
        return None if np.all(found == found[0]) else found / found.mean()

    def of_rows(self, rows: RowsDataset) -> RowsDataset:
        """The distinct rows of the data set."""
        weights = rows.sample_weight
        total = self.total(None if weights is None else weights.double().cpu().numpy())
        found = rows.subset(self.first)
        assert found.targets is not None
        found.sample_weight = None if total is None else torch.from_numpy(total).to(found.targets)
        return found


def _joined(*parts: torch.Tensor) -> np.ndarray:
    """Everything that rows hold, side by side."""
    return np.hstack([part.reshape(len(part), -1).double().cpu().numpy() for part in parts])
