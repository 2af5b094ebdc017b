"""Influence of each column of a table on the predictions, along what the network sees of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..columns.encoder import EncodedColumns
from ..columns.importance import random_directions
from ..columns.scaling import Standardize
from ..columns.statistics import spread_rows
from ..heads.module import CFLLModule
from .batches import RowsDataset
from .column_scales import MOST_DIRECTIONS, WIDTH, rows_of_slopes

__all__ = ["influences"]


def influences(module: CFLLModule, dataset: RowsDataset) -> Tensor | None:
    """Variance of the predictions along each column, to first order, summed over targets.

    What the network sees of a column (a standardised number, its bins, indicators, its share of a
    linear part) has the covariance C over the rows, and the predictions have the slopes g along it:
    the influence is the mean of ``g' C g``. For a number alone it is the mean squared slope times
    the variance. Slopes along the column itself would be enormous between narrow bins, where few
    rows lie, as in a column that is mostly zero.

    Parameters
    ----------
    module : CFLLModule
        It may contain a linear part beside the network.
    dataset : RowsDataset
        n rows of a table; if there are many, every second, third... row is used.

    Returns
    -------
    Tensor of shape (p,), or None
        None if inputs are not rows of numbers, if predictions are not differentiable with respect
        to them, or if predictions vary although the derivative is zero everywhere, as after a sign
        or a threshold.
    """
    sample = dataset.batch(slice(0, 2)).inputs  # some networks drop the dimension of one row
    if not isinstance(sample, Tensor) or sample.ndim != 2 or not sample.is_floating_point():
        return None
    module.eval()
    with torch.enable_grad():
        prediction = module(sample.clone().requires_grad_())
        if prediction.ndim != 2 or not prediction.requires_grad:
            return None
        rows = dataset.batch(rows_of_slopes(module, dataset))
        found = _influences(module, rows.inputs, rows.sample_weight)
    if bool(found.any()):
        return found
    predictions = module(dataset.batch(spread_rows(len(dataset), WIDTH)).inputs).detach()
    return None if bool(predictions.var(0, correction=0).any()) else found


def _influences(module: CFLLModule, inputs: Tensor, sample_weight: Tensor | None) -> Tensor:
    found: Tensor | None = None
    for direction in random_directions(module.last_layer.out_features, MOST_DIRECTIONS):
        # A compiled backbone cannot keep its graph for the next direction.
        with _seen_columns(module) as seen:
            inputs = inputs.detach().clone().requires_grad_()
            totals = module(inputs).sum(0)
        # Without an encoding, or if the network is compiled, the columns themselves.
        parts = seen or [(inputs, torch.arange(inputs.shape[1]), None)]
        leaves = [leaf for leaf, _, _ in parts]
        slopes = torch.autograd.grad(totals @ direction.to(totals), leaves, allow_unused=True)
        wide = [
            _slope(torch.zeros_like(leaf) if slope is None else slope, scale)
            for slope, (leaf, _, scale) in zip(slopes, parts, strict=True)
        ]
        values = torch.cat([_plain(leaf, scale) for leaf, _, scale in parts], 1)
        column = torch.cat([column for _, column, _ in parts]).to(values.device)
        weight = values.new_ones(len(values)) if sample_weight is None else sample_weight.double()
        variances = _variances(values, torch.cat(wide, 1), column, weight / weight.sum())
        found = variances if found is None else found + variances
    assert found is not None
    return found


def _variances(values: Tensor, slopes: Tensor, column: Tensor, weight: Tensor) -> Tensor:
    """Mean of g' C g for each column, with weights that sum to one; shape (p,)."""
    values = values - weight @ values
    found = values.new_zeros(int(column.max()) + 1)
    for index in column.unique().tolist():
        own = column == index
        covariance = values[:, own].T @ (values[:, own] * weight[:, None])
        found[index] = weight @ ((slopes[:, own] @ covariance) * slopes[:, own]).sum(1)
    return found


@contextlib.contextmanager
def _seen_columns(module: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Any]]]:
    """Collects what is made of the columns in a call: outputs, their columns, and their scales."""
    encodings = [part for part in module.modules() if isinstance(part, EncodedColumns)]
    inside = {id(part) for each in encodings for part in each.modules()}
    expansion = encodings[0].expansion if encodings else None
    seen: list[tuple[Tensor, Tensor, Any]] = []

    def of_encoding(part: Any, _: Any, output: Tensor) -> Tensor:
        leaf, scale = output.detach().requires_grad_(), part.column_scale
        apart = scale is not None and scale.ndim > output.ndim  # the network takes the scales
        seen.append((leaf, part.column, None if apart else scale))
        return leaf

    def of_linear_part(_part: Any, _: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        column = torch.arange(output.shape[1]) if expansion is None else expansion.column
        seen.append((leaf, column, None))
        return leaf

    hooks = [each.register_forward_hook(of_encoding) for each in encodings]
    if encodings:
        hooks += [
            part.register_forward_hook(of_linear_part)
            for part in module.modules()
            if isinstance(part, Standardize) and id(part) not in inside
        ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _plain(leaf: Tensor, scale: Tensor | None) -> Tensor:
    """Outputs (n, w) without the scales of columns, which members may have of their own."""
    if leaf.ndim == 2:
        return leaf.detach().double() if scale is None else leaf.detach().double() / scale.double()
    assert scale is not None
    return leaf[0].detach().double() / scale[0].double()


def _slope(slope: Tensor, scale: Tensor | None) -> Tensor:
    """Slopes (n, w) along these."""
    wide = slope.double() if scale is None else slope.double() * scale.double()
    return wide if wide.ndim == 2 else wide.sum(0)
