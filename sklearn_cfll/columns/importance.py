"""Importance of columns: an additive model of all of them in which few columns have a part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .bins import PiecewiseLinear
from .expansion import Expansion
from .rows import as_rows

__all__ = ["AdditiveScreen", "additive_screen", "random_directions", "screened_features"]

N_RAMPS = 6  # piecewise linear functions of a column of numbers
FARTHEST = 4.0  # in standard deviations, for the straight line beside them
# Penalties from the largest one, at which no column has a part, each .7 times the one before.
RATIO, N_PENALTIES = 0.7, 14
N_STEPS = 20  # accelerated proximal steps for each penalty, from the solution for the one before
WORSE = 1.02  # the path ends where the error on held-out rows exceeds its minimum so much
MOST_TARGETS = 4  # more are replaced by so many random sums of them


class AdditiveScreen(NamedTuple):
    """What each column adds to an additive model.

    Attributes
    ----------
    sizes : Tensor of shape (m, p)
        Mean square of each column's part, in each member's model.
    matters : Tensor of shape (m, p)
        Whether each member's model has a part of the column at the largest penalty whose error on
        held-out rows is within one standard error of the least. True for all columns if a model
        without any is as good: then nothing is known of them.
    """

    sizes: Tensor
    matters: Tensor


def screened_features(expansion: Expansion, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Functions of single columns, and the table's column that each is a function of.

    A column of numbers has six ramps between its quantiles and a straight line, clipped at four
    standard deviations; a category has its indicators.

    Parameters
    ----------
    expansion : Expansion
    rows : Tensor of shape (n, q)
        Expanded rows.
    """
    n = expansion.n_numbers
    numbers = rows[:, :n].double().cpu()
    parts, column = [], []
    if n:
        line = (numbers - numbers.mean(0)) / numbers.std(0).clamp_min(1e-300)
        ramps = PiecewiseLinear(N_RAMPS, most=4 * N_RAMPS * n)
        ramps.fit(as_rows(numbers, "cpu", torch.float64))
        own = expansion.column[:n].cpu()
        parts, column = [line.clamp(-FARTHEST, FARTHEST).float()], [own]
        if ramps.n_outputs:
            parts.append(ramps(numbers).float())
            column.append(own[ramps.column])
    if len(expansion.share):
        parts.append(expansion.standardised(rows[:, n:].double()).float().cpu())
        column.append(expansion.column[n:].cpu())
    return torch.cat(parts, 1), torch.cat(column)


def additive_screen(
    features: Tensor, column: Tensor, targets: Tensor, train: Tensor, held_out: Tensor
) -> AdditiveScreen:
    """Fit an additive model with a group lasso, whose penalty held-out rows choose.

    The rows that a member holds out influence only the choice of the penalty, which is the same for
    all members.

    Parameters
    ----------
    features : Tensor of shape (n, q)
        Functions of single columns.
    column : Tensor of shape (q,)
        Column that each feature is a function of.
    targets : Tensor of shape (n, k)
    train, held_out : Tensor of shape (n, m)
        Weights of the rows in the model of each member, and in its error.

    Returns
    -------
    AdditiveScreen

    References
    ----------
    Yuan, Lin, "Model selection and estimation in regression with grouped variables", 2006. Beck,
    Teboulle, "A fast iterative shrinkage-thresholding algorithm", 2009. Tibshirani et al., "Strong
    rules for discarding predictors in lasso-type problems", 2012.
    """
    model = _GroupLasso(features, column, targets, train)
    judged = held_out / held_out.sum()
    squares, models = [], []
    errors: list[float] = []
    for coefficients, residuals in model.path():
        squares.append((residuals.square().sum(2) * judged).sum(1))
        models.append(coefficients)
        errors.append(float(squares[-1].sum()))
        if errors[-1] > WORSE * min(errors):
            break
    best = min(range(len(errors)), key=errors.__getitem__)
    sparsest = next(i for i in range(best + 1) if not _is_worse(squares[i], squares[best]))
    matters = model.norms(models[sparsest]).T > 0
    return AdditiveScreen(model.sizes(models[best]), matters if sparsest else ~matters)


def _is_worse(squares: Tensor, best: Tensor) -> bool:
    """Whether an error exceeds the best one by more than the standard error of the difference."""
    difference = squares - best
    error = difference.std() * len(difference) ** 0.5
    return bool(difference.sum() > error)


class _GroupLasso:
    """Additive models of m members, with a penalty on the norm of each column's coefficients."""

    def __init__(self, features: Tensor, column: Tensor, targets: Tensor, train: Tensor) -> None:
        spread = features.std(0, correction=0)
        known = spread > 1e-6  # constant features have no part
        order = column[known].argsort(stable=True)
        self.column = column[known][order]
        self.features = ((features - features.mean(0)) / spread)[:, known][:, order]
        self.n_columns = int(column.max()) + 1
        self.weight = train / train.sum(0)
        # The mean of each member's own rows.
        self.targets = targets[:, None] - (self.weight.T @ targets)
        width = torch.bincount(self.column, minlength=self.n_columns)
        self.penalty = width.clamp_min(1).to(features).sqrt()[:, None]

    def norms(self, coefficients: Tensor) -> Tensor:
        """Norm of the coefficients (q, m, k) of each column and member; shape (p, m)."""
        squares = coefficients.square().sum(2)
        total = squares.new_zeros(self.n_columns, squares.shape[1])
        return total.index_add(0, self.column, squares).sqrt()

    def sizes(self, coefficients: Tensor) -> Tensor:
        """Mean square of each column's part in each member; shape (m, p)."""
        found = coefficients.new_zeros(self.n_columns, coefficients.shape[1])
        for column in self.norms(coefficients).sum(1).nonzero().flatten().tolist():
            chosen = self.column == column
            part = torch.einsum("nq,qmk->nmk", self.features[:, chosen], coefficients[chosen])
            found[column] = part.square().mean(0).sum(1)
        return found.T

    def path(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Coefficients (q, m, k) and residuals (n, m, k).

        At first no column has a part; then the penalty decreases.
        """
        n_members, n_targets = self.targets.shape[1:]
        coefficients = self.features.new_zeros(self.features.shape[1], n_members, n_targets)
        residuals = self.targets
        yield coefficients, residuals
        size = 1.05 * self._largest_curvature()
        slope = self._slope(self.features, residuals)
        before = float((self.norms(slope) / self.penalty).max())
        for _ in range(N_PENALTIES if before > 0 else 0):
            penalty = RATIO * before
            # Columns that may get a part (the strong rule), besides those that have one.
            steep = (self.norms(slope) / self.penalty).amax(1) >= 2 * penalty - before
            chosen = (steep | (self.norms(coefficients).amax(1) > 0))[self.column]
            own = self._minimise(coefficients, chosen, penalty, size)
            coefficients = coefficients.index_put((chosen.nonzero().flatten(),), own)
            fitted = self.features[:, chosen] @ own.flatten(1)
            residuals = self.targets - fitted.reshape(self.targets.shape)
            yield coefficients, residuals
            slope, before = self._slope(self.features, residuals), penalty

    def _minimise(
        self, coefficients: Tensor, chosen: Tensor, penalty: float, size: float
    ) -> Tensor:
        """Coefficients of the chosen features after some accelerated proximal steps."""
        features, column = self.features[:, chosen], self.column[chosen]
        columns, place = torch.unique_consecutive(column, return_inverse=True)
        bound = penalty * self.penalty[columns] / size
        now = ahead = coefficients[chosen]
        momentum = 1.0
        for _ in range(N_STEPS):
            fitted = (features @ ahead.flatten(1)).reshape(self.targets.shape)
            moved = ahead + self._slope(features, self.targets - fitted) / size
            squares = moved.square().sum(2)
            norms = squares.new_zeros(bound.shape[0], squares.shape[1])
            norms = norms.index_add(0, place, squares).sqrt()
            kept = (1.0 - bound / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_min(0.0)
            after = moved * kept[place].unsqueeze(2)
            faster = (1.0 + math.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
            ahead = after + (momentum - 1.0) / faster * (after - now)
            now, momentum = after, faster
        return now

    def _slope(self, features: Tensor, residuals: Tensor) -> Tensor:
        """Weighted products of features and residuals; shape (q, m, k)."""
        weighted = (residuals * self.weight.unsqueeze(2)).flatten(1)
        return (features.T @ weighted).reshape(-1, *residuals.shape[1:])

    def _largest_curvature(self) -> float:
        """A bound on the largest eigenvalue of the weighted features' second moments."""
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(self.features.shape[1], generator=generator)
        weight = self.weight.amax(1)
        length = vector.norm()
        for _ in range(20):
            vector = self.features.T @ (weight * (self.features @ (vector / length)))
            length = vector.norm().clamp_min(1e-30)
        return float(length)


def random_directions(n_targets: int, most: int) -> Tensor:
    """Unit vectors, one per target; for more than ``most`` targets, sums with random signs."""
    if n_targets <= most:
        return torch.eye(n_targets)
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(2, (most, n_targets), generator=generator) - 1.0
