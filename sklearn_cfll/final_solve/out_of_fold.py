"""The final solve of cross-fitted members, and what rows say about members that never saw them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import linalg
from ..heads import Head
from ..heads.member import Kept
from ..linalg import RIDGES
from ..training.batches import RowsDataset, spread
from ..training.folds import FoldRows
from .calibration import Calibration, pulled, with_noise
from .local_part import LocalPart
from .noise import NoiseModel, fit_noise, noise_inputs, points_as_rows
from .refit import Refit, shrinkage_factor

__all__ = ["OutOfFold", "refit_crossed"]

# Smallest share of the squared residuals of single members that remains for their mean: the rest
# is taken off for the spread between members, which is an estimate too.
LEAST_LEFT = 0.1
# Rows by which the growth of the spread is pulled to one, and its largest value.
PRIOR, MOST_GROWTH = 10, 10.0
FIXED_POINT = 10  # iterations


class OutOfFold(NamedTuple):
    """Each row as seen by the members that hold it out.

    Attributes
    ----------
    predictions : Tensor of shape (n, ..., k)
        Mean prediction of the members whose fold it is.
    spread : Tensor of shape (n, ..., k)
        Variance between the predictions of members that have not seen the row, estimated by that of
        all members times a factor: rows that two members hold out show how much more these differ.
    growth : Tensor of shape (k,)
        That factor.
    excess : Tensor of shape (n, ..., k)
        Mean squared error that the prediction of all members does not have. That of a single
        member's prediction is larger by the variance between members; of the mean of m members by
        ``1/m`` of it.
    twice : Tensor of shape (q,)
        Indices of the rows that two folds hold out.
    pairs : Tensor of shape (2, q, ..., k)
        Their mean predictions by the members of each of the two.
    """

    predictions: Tensor
    spread: Tensor
    growth: Tensor
    excess: Tensor
    twice: Tensor
    pairs: Tensor

    @classmethod
    def of(cls, net: Any, held_out: FoldRows) -> OutOfFold:
        """Predict every row; last layers must not have been fitted to their own folds."""
        layer, folds, start = net.module_.last_layer, held_out.folds, 0
        predictions, spreads, pairs, chosen = [], [], [], []
        share = 1 / torch.bincount(folds.of_member, minlength=folds.n_folds).clamp_min(1)
        for features in net.iterate_features(held_out):
            part = slice(start, start + len(features))
            found = layer.member_predictions(features)
            first = folds.first(part)
            mean = mean_of(found, first)
            predictions.append(mean)
            spreads.append(found.var(0))
            twice = (folds.second[part] >= 0).nonzero().flatten()
            also = (folds.held_out(part) & ~first)[twice]
            pairs.append(torch.stack([mean[twice], mean_of(found[:, twice], also)]))
            chosen.append(twice + start)
            start = part.stop
        spread, both, twice = torch.cat(spreads), torch.cat(pairs, 1), torch.cat(chosen)
        growth = torch.ones_like(spread.flatten(0, -2)[0])
        if len(twice):
            # Means of a and b members differ by (1/a + 1/b) of the variance of one.
            apart = (both[0] - both[1]).square()
            shares = share[folds.of_row[twice]] + share[folds.second[twice]]
            unseen, seen = apart / along(shares, apart), spread[twice]
            growth = _growth(unseen.flatten(0, -2), seen.flatten(0, -2))
        spread = growth * spread
        excess = along(share[folds.of_row] - 1 / folds.n_members, spread) * spread
        return cls(torch.cat(predictions), spread, growth, excess, twice, both)

    def moved(self, shift: Tensor) -> OutOfFold:
        """The same with something (n, ..., k) added to the predictions of each row."""
        pairs = self.pairs + shift[self.twice]
        return self._replace(predictions=self.predictions + shift, pairs=pairs)


def along(values: Tensor, like: Tensor) -> Tensor:
    """Values (n,) of rows, to be multiplied with a tensor (n, ..., k)."""
    return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


def _growth(unseen: Tensor, seen: Tensor) -> Tensor:
    """Ratio of the mean variances (rows, k) of members that have not and that have seen a row."""
    weight, mean = PRIOR / len(seen), seen.mean(0)
    least = torch.finfo(seen.dtype).tiny
    found: Tensor = (unseen.mean(0) + weight * mean) / ((1 + weight) * mean).clamp_min(least)
    return found.clamp(1.0, MOST_GROWTH)


def mean_of(predictions: Tensor, chosen: Tensor) -> Tensor:
    """Mean (n, ..., k) of the predictions (m, n, ..., k) of members chosen (n, m) for each row."""
    share = (chosen / chosen.sum(1, keepdim=True)).T.to(predictions)
    return (share.reshape(*share.shape, *[1] * (predictions.ndim - 2)) * predictions).sum(0)


def refit_crossed(
    net: Any,
    rows: RowsDataset,
    train: FoldRows,
    held_out: FoldRows,
    lowest: float = 0.0,
    offset: Any = None,
    most: int = 2**15,
    *,
    exact: bool = True,
    local: bool = False,
    exclusive: bool = False,
) -> Refit:
    """Solve exactly for the last layers of cross-fitted members.

    Each member is fitted without its fold first. Out-of-fold rows choose one ridge for all, by the
    mean of the members' errors, and the noise. At last each member is fitted to all rows.

    Parameters
    ----------
    net : CFLLNet
        Trained net, whose last layer is changed.
    rows, train, held_out : RowsDataset
        All rows, and the two views of them by which members were trained and are evaluated. Targets
        are residuals of the offset; those of ``held_out`` are of the offset without the row.
    lowest : float, default=0.0
        Smallest ridge that may be chosen.
    offset : Offset, optional
    most : int, default=32768
        Rows by which the ridge is chosen and noise is estimated; evenly spread if there are more.
    exact : bool, default=True
        Whether to solve. Otherwise the weights stay those of training.
    local : bool, default=False
        Whether to add a smoother of the out-of-fold residuals, if it helps; the net must have an
        encoding of columns.
    exclusive : bool, default=False
        Whether the targets are indicators of classes.
    """
    every, held_out = held_out, held_out.spread(most)
    layer, ridge, errors, shrinkage = net.module_.last_layer, 0.0, None, None
    if exact:
        with net.naming_divergence():
            layer.refit(net.labelled_features(train.own), ridge=1.0)
        errors = path_errors(net, held_out, layer.member_paths(torch.tensor(RIDGES)))
        first = sum(each < lowest for each in RIDGES)
        ridge = RIDGES[first + int(errors[first:].mean(1).argmin())]
        layer.solve(ridge)
    found = OutOfFold.of(net, held_out)
    assert held_out.targets is not None
    if exact and offset is not None:
        shrinkage = shrinkage_factor(found.predictions, held_out.targets, held_out.sample_weight)
        layer.solve(ridge, shrinkage)
        found = found._replace(
            predictions=shrinkage.to(found.spread) * found.predictions,
            spread=shrinkage.to(found.spread).square() * found.spread,
            excess=shrinkage.to(found.spread).square() * found.excess,
        )
    residuals, smoother = held_out.targets - found.predictions, None
    doubt: Tensor | None = None
    if local:
        columns = net.module_.backbone.columns
        smooth = LocalPart.fit(columns, held_out, residuals, apart=not exclusive)
        if smooth is not None:
            smoother, left, doubt = smooth
            found, residuals = found.moved(residuals - left), left
    of_one = _mean(residuals.double().square(), held_out)
    level = _less(of_one, _mean(found.excess.double(), held_out))
    noise, others = None, None
    if exact:
        noise, *others = _noise(net, held_out, residuals, of_one, level)
    calibration = _calibration(net, held_out, residuals, found, level, others, doubt)
    found_all, blocks = residuals if isinstance(rows, RowsDataset) else None, None
    if found_all is not None and every is not held_out:
        found_all, blocks = _all_residuals(net, train, every, smoother)
        found_all[spread(len(every), most)] = residuals
    if exact and blocks is not None and offset is None and rows.own is rows:
        layer.recall(blocks)
        layer.solve(ridge)
    elif exact:  # targets of held-out rows are less another offset, or others have more rows
        layer.refit(net.labelled_features(rows.own), ridge=ridge)
        layer.solve(ridge, shrinkage)
    solved = Refit(ridge, level, exact, errors, noise, calibration, offset)
    return solved._replace(out_of_fold=found, residuals=found_all, local_part=smoother)


def _all_residuals(
    net: Any, train: FoldRows, held_out: FoldRows, smoother: LocalPart | None
) -> tuple[Tensor, list[Kept] | None]:
    """Out-of-fold residuals of all rows, and the moments of all rows for each member.

    The same pass adds up the moments of held-out rows: those of the others are known already, and
    together they are those of all rows.
    """
    layer, start, found = net.module_.last_layer, 0, []
    other = copy.deepcopy(layer)
    other.reset_memory()
    for features, targets, sample_weight in net.labelled_features(held_out):
        part = slice(start, start := start + len(features))
        predictions = layer.member_predictions(features)
        residuals = targets - mean_of(predictions, held_out.folds.first(part))
        if smoother is not None:
            residuals = residuals - smoother(held_out.inputs.take(part))
        found.append(residuals)
        if layer.holds_moments:
            other.accumulate(features, targets, sample_weight)
    if not layer.holds_moments:
        return torch.cat(found), None
    blocks: list[Kept] = []
    scales = zip(train.scale.tolist(), held_out.scale.tolist(), strict=True)
    for member, held, (of_train, of_held) in zip(layer.members, other.members, scales, strict=True):
        seen = linalg.scale_moments(member.moments, 1 / of_train)
        rest = linalg.scale_moments(held.moments, 1 / of_held)
        merged = linalg.merge_moments(seen, rest, center=layer.fit_intercept)
        blocks.append((merged, member.shrinkage))
    return torch.cat(found), blocks


def path_errors(net: Any, held_out: FoldRows, paths: tuple[Tensor, Tensor]) -> Tensor:
    """Mean squared out-of-fold error of each target, for r ridges; shape (r, k).

    Parameters
    ----------
    paths : tuple
        Weights (m, r, k, d) and intercepts (m, r, k) of members fitted without their folds.
    """
    weights, biases = paths
    errors = torch.zeros_like(biases[0])
    total: Tensor | float = 0.0
    for features, targets, sample_weight in net.labelled_features(held_out):
        for j, block in enumerate(features.chunk(len(weights), -1)):
            weight = sample_weight[..., j].reshape(-1)
            # Without the rows that weigh nothing it is faster, but a host waits for their number.
            own = weight > 0 if weight.device.type == "cpu" else slice(None)
            rows, row_weight = points_as_rows(block[own], weight[own])
            wanted = targets[own].reshape(-1, targets.shape[-1]).to(weights)
            assert row_weight is not None
            predictions = rows.to(weights) @ weights[j].mT + biases[j][:, None]
            errors = errors + row_weight.to(weights) @ (predictions - wanted).square()
            total = total + row_weight.double().sum()
    return errors / total


def _noise(
    net: Any, held_out: FoldRows, residuals: Tensor, of_one: Tensor, level: Tensor
) -> list[NoiseModel]:
    """Noise models from out-of-fold residuals: of all rows, for odd folds and for even folds.

    Those for odd folds are fitted to even folds, and the reverse. Their mean is the ``level`` of
    the prediction of all members, not the mean squared residual ``of_one``.
    """
    second = odd_folds(held_out)

    def half(chosen: Tensor) -> Iterator[tuple[Tensor, Tensor, Any]]:
        indices, start = chosen.nonzero().flatten(), 0
        weight = held_out.sample_weight
        for features in net.iterate_features(held_out.subset(indices)):
            part = indices[start : start + len(features)]
            yield features, residuals[part], None if weight is None else weight[part]
            start += len(features)

    layer: Head = net.module_.last_layer
    halves = functools.partial(half, ~second), functools.partial(half, second)
    models = fit_noise(layer, [halves, halves[::-1]], of_one)
    return [each.scaled(level.cpu().numpy(), of_one.cpu().numpy()) for each in models]


def _calibration(
    net: Any,
    held_out: FoldRows,
    residuals: Tensor,
    found: OutOfFold,
    level: Tensor,
    noise: list[NoiseModel] | None,
    doubt: Tensor | None,
) -> Calibration:
    """Out-of-fold residuals relative to predicted deviations, scaled to those of the mean.

    Variances are multiplied by the mean squared score less its excess (:class:`OutOfFold`). The
    noise of a row is that of the model for its fold, which it has not shaped. ``doubt`` is added to
    it: see :class:`LocalPart`.
    """
    layer, floor = net.module_.last_layer, torch.finfo(level.dtype).tiny
    if layer.holds_moments:
        parts, start = [], 0
        for features in net.iterate_features(held_out):
            part = slice(start, start := start + len(features))
            variance = layer.variance(features, level)
            if noise is not None:
                odd = odd_folds(held_out, part).reshape(-1, *[1] * (features.ndim - 1))
                of_odd, of_even = (each(noise_inputs(layer, features)) for each in noise)
                variance = with_noise(variance, level, torch.where(odd, of_odd, of_even))
            parts.append(variance)
        # New rows are seen by no member, and members differ more on them.
        more = (1 - 1 / found.growth) * found.spread
        variance = (torch.cat(parts) + more).to(level)
    else:
        variance = level + found.spread.to(level)
    inflation, base = torch.ones_like(level), variance
    # It multiplies the variance and not the doubt, so that it has to be found step by step.
    for _ in range(1 if doubt is None else FIXED_POINT):
        variance = (base if doubt is None else base + doubt / inflation).clamp_min(floor)
        squares = residuals.to(level).square() / variance
        of_one = _mean(squares, held_out)
        of_mean = _less(of_one, _mean(found.excess.to(level) / variance, held_out))
        scores = (squares * (of_mean / of_one.clamp_min(floor))).sqrt().copysign(residuals)
        rows, row_weight = points_as_rows(scores, held_out.sample_weight)
        weights = rows.new_ones(len(rows)) if row_weight is None else row_weight
        inflation = pulled(rows.square(), weights, len(residuals))
    return Calibration(rows, weights, len(residuals), residuals, inflation)


def odd_folds(rows: FoldRows, part: slice = slice(None)) -> Tensor:
    """Whether the fold of each row has an odd number; bool, shape (n,)."""
    return rows.folds.of_row[part] % 2 == 1


def _less(of_one: Tensor, excess: Tensor) -> Tensor:
    """A mean square less its excess, which is an estimate too: a share is always left."""
    return torch.maximum(of_one - excess, LEAST_LEFT * of_one)


def _mean(values: Tensor, rows: RowsDataset) -> Tensor:
    """Weighted mean over samples and positions; shape (k,)."""
    flat, weight = points_as_rows(values, rows.sample_weight)
    return flat.mean(0) if weight is None else weight.to(flat) @ flat / weight.to(flat).sum()
