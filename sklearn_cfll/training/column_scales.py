"""Scales of input columns and feature importances, from the slopes of the predictions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..columns.encoder import EncodedColumns
from ..columns.expansion import Expansion
from ..columns.importance import AdditiveScreen, random_directions
from ..columns.scaling import Standardize
from ..columns.statistics import spread_rows
from ..heads.module import CFLLModule
from .batches import RowsDataset

__all__ = ["FEWEST_ROWS", "FIRST_RUN_STEPS", "column_scales", "slopes"]

# Smallest number of training rows; halves of fewer gave no information (benchmarks/columns.py).
FEWEST_ROWS = 75
# Training steps on each half of the rows before slopes are computed; twice and four times as many
# gave no more information (benchmarks/columns.py).
FIRST_RUN_STEPS = 20
# Shares of the largest mean product: columns above the first count as equal, columns below the
# second as noise. Scales differ by a factor of 4.5 at most; with all rows, factors of 3.2 and 10
# gained less (benchmarks/columns.py).
HIGHEST, LOWEST = 0.3, 0.015
MANY = 20  # columns; the lower bounds of more of them together are no more than those of so many
OFF = 1e-5  # of a column that neither networks nor an additive model find any influence of
MOST_DIRECTIONS = 16
WIDTH = 2**11  # least count of entries per row, for the activations inside a network


def slopes(module: CFLLModule, dataset: RowsDataset, *, apart: bool = False) -> Tensor:
    """Derivatives of the predictions with respect to standardised columns.

    Parameters
    ----------
    module : CFLLModule
    dataset : RowsDataset
        n rows of p columns; if there are many, every second, third... row is used.
    apart : bool, default=False
        Whether to return those of each member.

    Returns
    -------
    Tensor of shape (n, k, p), or (m, n, k, p) for members apart
        Derivatives times the root of the sample weights. With more than 16 targets, k is the number
        of random sums of them; the expected square of each sum is the sum of squares over all
        targets.
    """
    directions = random_directions(module.last_layer.out_features, MOST_DIRECTIONS)
    directions = directions.to(dataset.inputs.device)
    inputs, _, sample_weight = dataset.batch(rows_of_slopes(module, dataset, apart))
    # Zero for a constant column: the network learnt nothing about it, and its slope is random.
    encoded = encoding_of(module)
    standardize = next((part for part in module.modules() if isinstance(part, Standardize)), None)
    if standardize is None:
        deviation = _deviation(inputs, sample_weight).expand_as(inputs)
    else:
        columns, unit = (encoded or standardize).units(inputs)
        deviation = _deviation(columns, sample_weight) * unit
    if sample_weight is not None:
        deviation = deviation * sample_weight.sqrt()[:, None]
    module.eval()
    if apart:  # copies, so that one pass tells the members apart
        inputs = inputs.expand(module.last_layer.n_members, *inputs.shape).clone()
    inputs.requires_grad_()
    found = []
    for direction in directions:
        # One pass for all rows, because the slopes of a row do not depend on the others. A compiled
        # backbone cannot keep its graph for the next direction.
        if apart:
            features = module.features(inputs)
            totals = module.last_layer.member_predictions(features).sum((0, 1))
        else:
            totals = module(inputs).sum(0)
        total = totals @ direction.to(totals)
        slope = torch.autograd.grad(total, inputs)[0]
        slope = slope if encoded is None else encoded.expansion.centred(slope)
        found.append(slope * deviation)
    return torch.stack(found, dim=-2)


def rows_of_slopes(module: CFLLModule, dataset: RowsDataset, apart: bool = False) -> Tensor:
    """Indices of the rows at which slopes are computed."""
    n_directions = min(module.last_layer.out_features, MOST_DIRECTIONS)
    n_numbers = max(WIDTH, n_directions * dataset.inputs.shape[1])
    return spread_rows(len(dataset), n_numbers * (module.last_layer.n_members if apart else 1))


def encoding_of(module: nn.Module) -> EncodedColumns | None:
    """The encoding of the columns in a module; None if it does not begin with standardising."""
    encoded = next((part for part in module.modules() if isinstance(part, EncodedColumns)), None)
    standardises = encoded is not None and isinstance(encoded.encoders[0], Standardize)
    return encoded if standardises else None


def _deviation(columns: Tensor, sample_weight: Tensor | None) -> Tensor:
    """Weighted standard deviation of each column; shape (p,)."""
    if sample_weight is None:
        return columns.std(0, correction=0)
    share = sample_weight / sample_weight.sum()
    return (share @ (columns - share @ columns).square()).sqrt()


def column_scales(
    first: Tensor,
    second: Tensor,
    expansion: Expansion | None = None,
    screen: AdditiveScreen | None = None,
) -> Tensor:
    """Root of the mean product of two networks' slopes, one number per column.

    This is the diagonal of the average gradient outer product without the noise: slopes that one
    network learnt by chance from its half of the rows are not shared by the other network. Slopes
    tell of interactions; an additive model, which uses all rows, tells better of columns that
    matter alone. The larger of both counts, and a column without influence in either is switched
    off.

    Parameters
    ----------
    first, second : Tensor of shape (..., n, k, q)
        :func:`slopes` at the same rows, of networks trained on two halves.
    expansion : Expansion, optional
        What has made these q columns of the p of a table: one scale for all that comes from one.
    screen : AdditiveScreen, optional

    Returns
    -------
    Tensor of shape (..., p), float64
        Scales within bounds, with a mean square of one.

    References
    ----------
    Radhakrishnan, Beaglehole, Pandit, Belkin, "Mechanism for feature learning in neural networks
    and backpropagation-free machine learning models", Science 383 (2024), arXiv 2212.13881:
    it uses outer products of one network's slopes. The two halves are not part of that method.
    """
    products = (first.double() * second.double()).sum((-3, -2))
    products = products if expansion is None else expansion.by_column(products)
    found = _shares(products)
    kept = found.clamp(LOWEST, HIGHEST)
    if screen is not None:
        sizes = _shares(screen.sizes.to(found), unknown=0.0).reshape(found.shape)
        # Products of noise are as often negative as positive; a few columns say little of it.
        most = LOWEST * max(1.0, found.shape[-1] / MANY)
        noise = (-found.amin(-1, keepdim=True)).clamp(0.0, most)
        matters = screen.matters.to(found.device).reshape(found.shape) | (found > noise)
        lowest = LOWEST * (MANY / matters.sum(-1, keepdim=True)).clamp_max(1.0)
        kept = torch.maximum(torch.maximum(found, sizes), lowest).clamp_max(HIGHEST)
        kept = torch.where(matters, kept, OFF)
    return (kept / kept.mean(-1, keepdim=True)).sqrt()


def _shares(values: Tensor, unknown: float = 1.0) -> Tensor:
    """Values over the largest; ``unknown`` if that is no positive number."""
    highest = values.amax(-1, keepdim=True)
    known = (highest > 0) & (highest < torch.inf)
    return torch.where(known, values / highest, unknown)
