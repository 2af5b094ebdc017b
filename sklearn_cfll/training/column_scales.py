"""Scales of input columns, by how predictions move along them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..columns.scaling import Standardize
from .batches import RowsDataset, spread_rows
from .steps import CFLLModule

__all__ = ["FEWEST_ROWS", "FIRST_RUN_STEPS", "column_scales", "mean_squared_slopes", "slopes"]

# Of training; halves of fewer told nothing (benchmarks/columns.py).
FEWEST_ROWS = 75
# Of training on each half of the rows before slopes are looked at; twice and four times as
# many told as much (benchmarks/columns.py).
FIRST_RUN_STEPS = 20
# Shares of the largest mean product: above the first columns count as equal, below the second
# as noise. Scales differ by a factor of 4.5 at most: with all rows 3.2 and 10 gained less
# (benchmarks/columns.py).
HIGHEST, LOWEST = 0.3, 0.015
MOST_DIRECTIONS = 16
WIDTH = 2**11  # numbers that a row counts as at least: what it takes inside a network


def slopes(module: CFLLModule, dataset: RowsDataset) -> Tensor:
    """Derivatives of the predictions by standardised columns.

    Parameters
    ----------
    module : CFLLModule
    dataset : RowsDataset
        n rows of p columns; of many every second, third... is taken.

    Returns
    -------
    Tensor of shape (n, k, p)
        Times the root of the sample weights. Of more than 16 targets k is the number of random
        sums of them, whose squares are those of all in expectation.
    """
    directions = _directions(module.last_layer.out_features).to(dataset.inputs.device)
    n_numbers = len(directions) * dataset.inputs.shape[1]
    inputs, _, sample_weight = dataset.batch(spread_rows(len(dataset), max(WIDTH, n_numbers)))
    # Zero for a constant column: nothing was learnt of it, and its slope is that of chance.
    standardize = next((part for part in module.modules() if isinstance(part, Standardize)), None)
    if standardize is None:
        deviation = _deviation(inputs, sample_weight).expand_as(inputs)
    else:
        columns = standardize(inputs)
        deviation = _deviation(columns, sample_weight) * standardize.unit(inputs)
    if sample_weight is not None:
        deviation = deviation * sample_weight.sqrt()[:, None]
    module.eval()
    inputs.requires_grad_()
    found = []
    for direction in directions:
        # Of all rows at once: none touches another's slopes. A compiled backbone cannot keep its
        # graph for the next direction.
        totals = module(inputs).sum(0)
        total = totals @ direction.to(totals)
        found.append(torch.autograd.grad(total, inputs)[0] * deviation)
    return torch.stack(found, dim=1)


def _deviation(columns: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Weighted standard deviation of each column; shape (p,)."""
    if sample_weight is None:
        return columns.std(0, correction=0)
    share = sample_weight / sample_weight.sum()
    return (share @ (columns - share @ columns).square()).sqrt()


def mean_squared_slopes(module: CFLLModule, dataset: RowsDataset) -> Tensor | None:
    """Weighted mean square of :func:`slopes` for each column, summed over targets.

    Returns
    -------
    Tensor of shape (p,), or None
        None where inputs are not rows of numbers, or predictions have no derivative by them, or
        vary although it is zero everywhere, as behind a sign or a threshold.
    """
    sample = dataset.batch(slice(0, 2)).inputs  # of one row some networks drop the dimension
    if not isinstance(sample, Tensor) or sample.ndim != 2 or not sample.is_floating_point():
        return None
    module.eval()
    with torch.enable_grad():
        prediction = module(sample.clone().requires_grad_())
        if prediction.ndim != 2 or not prediction.requires_grad:
            return None
        found = slopes(module, dataset).double().square().sum(1).mean(0)
        if bool(found.any()):
            return found
        predictions = module(dataset.batch(spread_rows(len(dataset), WIDTH)).inputs).detach()
        return None if bool(predictions.var(0, correction=0).any()) else found


def column_scales(first: Tensor, second: Tensor) -> Tensor:
    """Root of the mean product of two networks' slopes, a number for each column.

    The diagonal of the average gradient outer product, without the noise: slopes that one half
    of the rows taught by chance the other half knows nothing of.

    Parameters
    ----------
    first, second : Tensor of shape (n, k, p)
        :func:`slopes` at the same rows of networks trained on two halves.

    Returns
    -------
    Tensor of shape (p,), float64
        Within bounds, of mean square one.

    References
    ----------
    Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in neural networks
    and backpropagation-free machine learning models", Science 383 (2024), arXiv 2212.13881:
    outer products of one network's slopes. The two halves are our own.
    """
    products = (first.double() * second.double()).sum((0, 1))
    highest = products.max()
    if not 0 < highest < torch.inf:
        return torch.ones_like(products)
    products = products.clamp(LOWEST * highest, HIGHEST * highest)
    return (products / products.mean()).sqrt()


def _directions(n_targets: int) -> Tensor:
    """Unit vectors, one a target; of many targets some sums with random signs."""
    if n_targets <= MOST_DIRECTIONS:
        return torch.eye(n_targets)
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randint(2, (MOST_DIRECTIONS, n_targets), generator=generator) - 1.0
