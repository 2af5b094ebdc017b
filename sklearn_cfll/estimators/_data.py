"""Checks on X, y and sample weights, before any work starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    validate_data,
)
from torch.utils.data import Dataset

__all__ = [
    "check_inputs",
    "check_lengths",
    "check_sample_shape",
    "check_targets_given",
    "check_weights",
    "targets_of_dataset",
]


def check_inputs(estimator: Any, X: Any, *, reset: bool, min_samples: int = 1) -> Any:
    """X as an array that the backbone can take, with scikit-learn's checks and messages."""
    if isinstance(X, Dataset):
        if len(X) < min_samples:  # type: ignore[arg-type]
            raise ValueError(
                f"Found a Dataset with {len(X)} sample(s) while a minimum of "  # type: ignore
                f"{min_samples} is required by {type(estimator).__name__}."
            )
        if reset:
            item = X[0]
            inputs = torch.as_tensor(item[0] if isinstance(item, tuple | list) else item)
            estimator.n_features_in_ = inputs.shape[0]
        return X
    if isinstance(X, torch.Tensor):
        X = X.detach().cpu().numpy()
    return validate_data(
        estimator,
        X,
        reset=reset,
        accept_sparse="csr",
        dtype="numeric",
        allow_nd=estimator.backbone is not None,
        ensure_min_samples=min_samples,
    )


def check_sample_shape(X: Any, sample_shape: tuple[int, ...]) -> None:
    """Samples with more than one dimension must have as many as at fit, and their channels."""
    if isinstance(X, Dataset) or X.ndim - 1 == len(sample_shape):
        return
    raise ValueError(
        f"X has samples of shape {tuple(X.shape[1:])}, but the estimator was fitted on "
        f"samples of shape {sample_shape}."
    )


def check_weights(
    sample_weight: Any, X: Any
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Rows of positive weight (None: all) and their weights, mean one (None: all equal).

    Rows of weight zero are dropped: a weight means a number of repetitions.
    """
    if sample_weight is None:
        return None, None
    n_samples = len(X) if isinstance(X, Dataset) else X.shape[0]  # type: ignore[arg-type]
    reference = np.empty((n_samples, 1)) if isinstance(X, Dataset) else X
    weights = _check_sample_weight(
        sample_weight, reference, dtype=np.float64, ensure_non_negative=True
    )
    kept = np.flatnonzero(weights)
    if len(kept) == 0:
        raise ValueError(
            "All entries of `sample_weight` are zero: there is nothing to fit. Give at "
            "least one row a positive weight."
        )
    weights = weights[kept]
    rows = kept if len(kept) < n_samples else None
    if np.all(weights == weights[0]):
        return rows, None
    return rows, weights / weights.mean()


def check_targets_given(estimator: Any, y: Any) -> None:
    if y is None:
        raise ValueError(
            f"{type(estimator).__name__} requires y to be passed, but the target y is None."
        )


def targets_of_dataset(dataset: Dataset) -> np.ndarray:
    """Targets of a Dataset of (inputs, target) pairs, gathered in one pass."""
    targets = [np.asarray(dataset[i][1]) for i in range(len(dataset))]  # type: ignore[arg-type]
    return np.stack(targets)


def check_lengths(X: Any, y: np.ndarray) -> None:
    if isinstance(X, Dataset):
        if len(X) != len(y):  # type: ignore[arg-type]
            raise ValueError(f"X has {len(X)} samples, y has {len(y)}.")  # type: ignore[arg-type]
        return
    check_consistent_length(X, y)
