"""Symmetric positive semi-definite systems with a penalty on the diagonal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["inverse_values", "solve_near", "solve_symmetric"]

# A solution is accepted if its next correction would be smaller than this fraction of it. After so
# many steps, a factorisation is cheaper.
NEAR, MOST_STEPS = 1e-12, 5
# Smallest cosine between two vectors whose product is a divisor.
LEAST_COSINE = 1e-8
TINY = float(np.finfo(np.float64).tiny)


def solve_symmetric(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    """Solve ``X (matrix + penalty·I) = rows`` for a positive semi-definite matrix.

    All arguments may have leading dimensions for several systems, including a tensor penalty.

    It uses a Cholesky factorisation. If that fails, or if the penalty is zero, it uses an
    eigendecomposition without the numerically null directions (the minimum-norm solution). On an
    accelerator, a failure gives NaN instead, because a check would stall the device.
    """
    if not isinstance(penalty, Tensor) and penalty == 0.0:
        return _solve_by_eigenvalues(matrix, 0.0, rows)
    shift = penalty.unsqueeze(-1) if isinstance(penalty, Tensor) else penalty
    shifted = matrix.clone()
    shifted.diagonal(dim1=-2, dim2=-1).add_(shift)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if matrix.device.type == "cpu":
        if bool(info.any()):
            return _solve_by_eigenvalues(matrix, shift, rows)
    else:
        factor = torch.where(info[..., None, None] == 0, factor, torch.nan)
    solved: Tensor = torch.cholesky_solve(rows.mT, factor)
    return solved.mT


def solve_near(
    matrix: Tensor, penalty: Tensor, rows: Tensor, start: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Solve ``X (matrix + penalty·I) = rows`` by the inverse of a system that is near.

    Conjugate gradients, preconditioned with that inverse, start from a solution that is near. Their
    corrections are about the error, because the inverse times the system is about the identity, so
    that the result is as exact as that of :func:`solve_symmetric`, however often the returned
    inverse is used again. After one more row the difference of the two systems has about rank one:
    this takes two steps, and the first of them shows the inverse of the new system (the symmetric
    rank-one update [1]_, which is then the formula of Sherman and Morrison).

    Parameters
    ----------
    matrix, inverse : Tensor of shape (d, d)
    penalty : Tensor of shape ()
    rows, start : Tensor of shape (k, d)

    Returns
    -------
    solution : Tensor of shape (k, d)
    inverse : Tensor of shape (d, d)
        Closer to that of ``matrix + penalty·I``. Both are None if the given one is not near enough.

    References
    ----------
    .. [1] J. Nocedal, S. J. Wright, "Numerical optimization", 2nd edition (2006), section 6.2.
    """
    # Sums and products of vectors in NumPy, where they take a third of the time; products with
    # matrices in torch, whose number of threads is that of the call.
    found: np.ndarray = start.numpy().astype(np.float64)
    changes = []
    for own, wanted in zip(found, rows.numpy(), strict=True):
        change = _improve(matrix, float(penalty), wanted, own, inverse)
        if change is None:
            return None
        changes.append(change)
    return torch.from_numpy(found), _with_rank_one(inverse, *changes[0])


def _improve(
    matrix: Tensor, shift: float, wanted: np.ndarray, found: np.ndarray, inverse: Tensor
) -> tuple[np.ndarray, np.ndarray] | None:
    """Solve for one row in place, or return None.

    Returns a vector that the system takes to the second result, and the inverse to that less the
    first result.
    """
    left = wanted - _times(matrix, found, shift)
    toward = correction = _times(inverse, left)
    square, change = float(left @ correction), None
    last_size = float(correction @ correction)
    for _ in range(MOST_STEPS):
        product = _times(matrix, toward, shift)
        length = square / max(float(toward @ product), TINY)
        found += length * toward
        left -= length * product
        before, correction = correction, _times(inverse, left)
        if change is None:  # the inverse times `product` should be `toward`
            change = toward - (before - correction) / max(length, TINY), product
        size = float(correction @ correction)
        if size**2 <= NEAR**2 * float(found @ found) * last_size:  # the next is as much smaller
            found += correction
            return change
        last_size = size
        last, square = square, float(left @ correction)
        toward = correction + square / max(last, TINY) * toward
    return None


def _times(matrix: Tensor, vector: np.ndarray, shift: float = 0.0) -> np.ndarray:
    """Product with a symmetric matrix, plus ``shift`` times the identity."""
    given = torch.from_numpy(vector)
    product: np.ndarray = torch.addmv(given, matrix, given, beta=shift).numpy()
    return product


def _with_rank_one(inverse: Tensor, missed: np.ndarray, product: np.ndarray) -> Tensor:
    """The inverse, changed so that its product with one vector is larger by ``missed``."""
    divisor = float(missed @ product)
    if not divisor**2 > LEAST_COSINE**2 * float(missed @ missed) * float(product @ product):
        return inverse
    change = torch.from_numpy(missed)
    return torch.addr(inverse, change / divisor, change)


def _solve_by_eigenvalues(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(rows, torch.nan)  # eigh would raise; NaN is caught upstream
    values, vectors = torch.linalg.eigh(matrix)
    inverse = inverse_values(values, penalty).unsqueeze(-2)
    solved: Tensor = ((rows @ vectors) * inverse) @ vectors.mT
    return solved


def inverse_values(values: Tensor, penalty: Tensor | float) -> Tensor:
    """Inverse eigenvalues (..., d) of a penalised matrix, zero for numerically null directions."""
    shifted = values.clamp_min(0.0) + penalty
    cutoff = values[..., -1:].clamp_min(0.0) * torch.finfo(values.dtype).eps * values.shape[-1]
    return torch.where(shifted > cutoff, 1.0 / shifted, torch.zeros_like(shifted))
