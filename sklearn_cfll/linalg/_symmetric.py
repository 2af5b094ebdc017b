"""Symmetric positive semi-definite systems with a penalty on the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inverse_values", "solve_symmetric"]


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
