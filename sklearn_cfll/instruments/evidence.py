"""How far held-out rows speak for one structural function rather than another."""

from __future__ import annotations

import torch
from torch import Tensor

from .stages import InstrumentRows, Model, Networks, projected_outcome, structural_outcome

__all__ = ["log_evidence", "moment_likelihood"]

RANK = 1e-10  # relative size of numbers that count as zero
ROWS_PER_MOMENT = 8  # held-out rows per function of the instruments that residuals are tested with


def log_evidence(
    networks: Networks,
    records: list[Model],
    shares: Tensor,
    held: InstrumentRows,
    repetitions: float = 1.0,
) -> Tensor:
    """Log-likelihood of groups of candidates at held-out rows of one fold; shape (g,).

    The loss of the second stage compares candidates with the same offset. It is of no use between
    different ones: it contains the offset at the *predicted* treatment, and with weak instruments
    the error of this prediction is larger than all that the offset explains. So residuals at the
    actual treatment are tested for correlation with the instruments, and with what each group
    predicts from instruments and controls: its difference to the others is the function with the
    most power between them.

    Parameters
    ----------
    networks : Networks
    records : list of Model
        With one second stage per candidate; their functions are averaged.
    shares : Tensor of shape (g, c)
        Weights of the candidates within each group.
    held : InstrumentRows
        Held-out rows.
    repetitions : float
        Number of rows that a weight of one stands for.
    """
    assert held.outcome is not None
    found = [structural_outcome(networks, model, held)[..., 0].double() for model in records]
    structural = shares.to(found[0]) @ torch.stack(found).mean(0)
    residual = held.outcome[:, 0].double() - structural
    told = [projected_outcome(networks, model, held)[..., 0].double() for model in records]
    moments = (shares.to(told[0]) @ torch.stack(told).mean(0)).mT
    if held.instrument is not None and held.instrument.ndim == 2:
        moments = torch.cat([moments, held.instrument.double()], dim=1)
    weight = residual.new_ones(held.n_rows) if held.weight is None else held.weight.double()
    return moment_likelihood(residual.mT, moments, weight * repetitions)


def moment_likelihood(residual: Tensor, functions: Tensor, weight: Tensor) -> Tensor:
    """Concentrated likelihood of limited information: ``-n/2 log(r'r / r'Mr)`` per column.

    The residuals of the true function are uncorrelated with all functions of the instruments and
    controls. M removes a constant and such functions, their largest principal components if there
    are many.

    Parameters
    ----------
    residual : Tensor of shape (n, g)
    functions : Tensor of shape (n, m)
    weight : Tensor of shape (n,)
        Numbers of repetitions.

    Returns
    -------
    Tensor of shape (g,)
    """
    n, root = float(weight.sum()), weight.to(residual).sqrt().unsqueeze(1)
    centered = root * (functions - (functions * root.square()).sum(0) / n)
    length = centered.square().sum(0).sqrt()
    left, values, _ = torch.linalg.svd(
        centered / length.clamp_min(torch.finfo(length.dtype).tiny), full_matrices=False
    )
    kept = left[:, : max(1, round(n / ROWS_PER_MOMENT))]
    kept = kept[:, values[: kept.shape[1]] > RANK * values[:1]]
    rows = root * residual
    explained = (root.mT @ rows).square().sum(0) / n
    explained = explained + (kept.mT @ rows).square().sum(0)
    share = (explained / rows.square().sum(0)).nan_to_num(0.0).clamp_max(1.0 - RANK)
    return n / 2 * torch.log1p(-share)
