"""The ridge of a final fit to all rows, chosen from their moments if no rows are held out."""

from __future__ import annotations

import torch
from torch import Tensor

from ._moments import Moments, residual_square, ridge_path, without_noise

__all__ = ["RIDGES", "count_rows", "cross_validation_errors", "final_ridge"]

# Half a decade apart. The range suits noise-free and noisy targets, and the path costs one
# eigendecomposition, whatever its length.
RIDGES = tuple(float(r) for r in torch.logspace(-8, 3, 23, dtype=torch.float64))

# Features were trained on the targets of the same rows, so that the fit is closer to the targets
# than its number of parameters explains. Each parameter counts twice (benchmarks/final_ridge.py).
OPTIMISM = 2.0
# With fewer rows per feature than ENOUGH_ROWS, the rows determine the ridge poorly. It is then at
# most LARGEST_OF_FEW, and the squared residuals are at most MOST_RESIDUAL times those after
# training: with larger ridges the default networks lose up to 6% on tables of 20 to 60 rows, while
# a single wide network gains (benchmarks/final_ridge.py).
ENOUGH_ROWS, LARGEST_OF_FEW, MOST_RESIDUAL = 10.0, 0.32, 1.5
# Smallest share of the degrees of freedom that must remain after a fit.
LEAST_REST = 0.05
# Weights more than this many times the smallest are not taken as counts.
MOST_REPETITIONS = 1e4


def cross_validation_errors(
    block: Moments,
    ridges: Tensor,
    *,
    n_rows: float | None = None,
    optimism: float = 1.0,
    fit_intercept: bool = True,
    eps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised cross-validation of many ridges, from the moments alone.

    The criterion is ``V(λ) = RSS(λ) / n / (1 - c t(λ)/n)²``. With c = 1 it is that of [1]_: the
    mean squared leave-one-out residual, with the leverage of each row replaced by the mean
    leverage. With eigenvalues ``v`` and eigenvectors ``u`` of the Gram matrix, ``a = cross u`` and
    the penalty ``p = Σw · ridge · power``,

    - ``RSS(λ) = Σ (y - ȳ)² - Σ a² (v + 2p) / (v + p)²``, summed over targets as in training;
    - ``t(λ) = Σ v / (v + p)``, plus one for the intercept.

    Parameters
    ----------
    block : Moments
    ridges : Tensor of shape (r,)
        Dimensionless, positive.
    n_rows : float, optional
        ``n``, see :func:`count_rows`; default the sum of the weights, taken as repetitions.
    optimism : float, default=1.0
        ``c``. A value above one chooses a larger ridge, as in [2]_ against undersmoothing.
    fit_intercept : bool, default=True
    eps : float, optional
        As for :func:`solve_moments`.

    Returns
    -------
    errors : Tensor of shape (r,)
        ``V``, infinite if ``c t(λ)`` is within a twentieth of the number of rows: near that number,
        both residuals and degrees of freedom vanish, and their ratio is dominated by rounding.
    rounding : Tensor of shape (r,)
        Possible rounding error of each.

    References
    ----------
    .. [1] G. H. Golub, M. Heath, G. Wahba, "Generalized cross-validation as a method for
       choosing a good ridge parameter", Technometrics 21 (1979).
    .. [2] Y.-J. Kim, C. Gu, "Smoothing spline Gaussian regression: more scalable computation via
       efficient approximation", Journal of the Royal Statistical Society B 66 (2004).
    """
    block, power = without_noise(block, eps)
    values, vectors = torch.linalg.eigh(block.gram)
    values = values.clamp_min(0.0)
    penalties = (ridges.to(values) * power * block.total)[:, None]
    shifted = values + penalties
    explained = (block.cross @ vectors).square().sum(0)  # per eigenvector, summed over targets
    spread = block.target_square.sum()
    left = spread - (explained * (values + 2.0 * penalties) / shifted.square()).sum(1)
    # The difference of two sums has an error of some units in the last place of the larger one.
    noise = 1e3 * torch.finfo(values.dtype).eps * spread
    parameters = (values / shifted).sum(1) + float(fit_intercept)
    rest = 1.0 - optimism * parameters / (block.total if n_rows is None else n_rows)
    scale = torch.where(rest > LEAST_REST, 1.0 / rest.square(), torch.inf) / block.total
    tiny = torch.finfo(values.dtype).tiny  # zero times infinity would be NaN
    return torch.maximum(left, noise).clamp_min(tiny) * scale, noise.clamp_min(tiny) * scale


def final_ridge(
    blocks: list[Moments],
    n_rows: float,
    *,
    trained: list[tuple[Tensor, Tensor | None]] | None = None,
    fit_intercept: bool = True,
    eps: float | None = None,
) -> float:
    """The ridge of a final fit to rows that the features were trained on.

    It minimises :func:`cross_validation_errors`, with each parameter counted twice because the
    features depend on the targets. If several ridges have the same error up to rounding (noise-free
    targets, constant targets), it is the largest of them.

    With fewer than ten rows per feature, it is at most 0.32, and the squared residuals are at most
    one and a half times those of the ``trained`` weights, so that the fit is about as good as
    these (``benchmarks/final_ridge.py``).

    Parameters
    ----------
    blocks : list of Moments
        Moments of the same rows for each of several networks; the sum of their errors is minimised.
    n_rows : float
    trained : list of (Tensor of shape (k, d), Tensor of shape (k,) or None), optional
        Weights and intercept of each network before the fit.
    fit_intercept, eps
        As for :func:`cross_validation_errors`.

    Returns
    -------
    float
    """
    ridges = torch.tensor(RIDGES, dtype=torch.float64)
    if n_rows < ENOUGH_ROWS * blocks[0].gram.shape[0]:
        ridges = ridges[ridges <= LARGEST_OF_FEW]
        if trained is not None:
            ridges = ridges[: _near_training(blocks, ridges, trained, eps)]
    parts = [
        cross_validation_errors(
            block,
            ridges,
            n_rows=n_rows,
            optimism=OPTIMISM,
            fit_intercept=fit_intercept,
            eps=eps,
        )
        for block in blocks
    ]
    errors, rounding = (torch.stack(each).sum(0).cpu() for each in zip(*parts, strict=True))
    best = int(errors.argmin())
    return float(ridges[errors <= errors[best] + rounding[best]].max())


def _near_training(
    blocks: list[Moments],
    ridges: Tensor,
    trained: list[tuple[Tensor, Tensor | None]],
    eps: float | None,
) -> int:
    """Number of ridges, in ascending order, with residuals close to those after training."""
    most, left = 0.0, torch.zeros(len(ridges), dtype=blocks[0].gram.dtype)
    for block, own in zip(blocks, trained, strict=True):
        path = zip(*ridge_path(block, ridges, eps=eps), strict=True)
        left = left + torch.stack([residual_square(block, *fit) for fit in path]).cpu()
        most = most + float(residual_square(block, *own))
    return max(1, int((left <= MOST_RESIDUAL * most).sum()))


def count_rows(sample_weight: Tensor) -> float:
    """Number of rows that sample weights represent.

    Weights that are integer multiples of the smallest positive weight are counts: the result is
    their sum in that unit, as for repeated rows. Other weights only give the importance of a row,
    and each row counts once. The result does not change if all weights are multiplied by the same
    factor.
    """
    positive = sample_weight[sample_weight > 0].double()
    if len(positive) == 0:
        return 0.0
    counts = positive / positive.min()
    whole = counts.round()
    if float(whole.max()) <= MOST_REPETITIONS and torch.allclose(counts, whole, rtol=1e-5, atol=0):
        return float(whole.sum())
    return float(len(positive))
