"""Symmetric positive semi-definite systems with a penalty on the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["solve_symmetric"]


def solve_symmetric(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    """Solve ``X (matrix + penalty·I) = rows`` for a positive semi-definite matrix.

    Cholesky; where that fails, and for a penalty of zero, an eigendecomposition with the
    numerically null directions left out (the minimum-norm solution). On an accelerator a
    failure is marked by NaN instead of being looked up: looking would stall the device.
    """
    if not isinstance(penalty, Tensor) and penalty == 0.0:
        return _solve_by_eigenvalues(matrix, 0.0, rows)
    shifted = matrix.clone()
    shifted.diagonal().add_(penalty)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if matrix.device.type == "cpu":
        if bool(info):
            return _solve_by_eigenvalues(matrix, penalty, rows)
    else:
        factor = torch.where(info == 0, factor, torch.nan)
    solved: Tensor = torch.cholesky_solve(rows.T, factor)
    return solved.T


def _solve_by_eigenvalues(matrix: Tensor, penalty: Tensor | float, rows: Tensor) -> Tensor:
    if not bool(torch.isfinite(matrix).all()):
        return torch.full_like(rows, torch.nan)  # eigh would raise; NaN is caught upstream
    values, vectors = torch.linalg.eigh(matrix)
    shifted = values.clamp_min(0.0) + penalty
    cutoff = values[-1].clamp_min(0.0) * torch.finfo(values.dtype).eps * matrix.shape[0]
    inverse = torch.where(shifted > cutoff, 1.0 / shifted, torch.zeros_like(shifted))
    return ((rows @ vectors) * inverse) @ vectors.T
