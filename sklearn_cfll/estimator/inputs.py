"""Inputs by name, for a backbone whose forward takes several, and integers that it looks up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.utils import check_array
from torch import nn
from torch.utils.data import Dataset

from .arrays import as_columns, as_table, named_columns

__all__ = ["check_named_inputs", "check_names", "integers_fit", "n_samples", "out_of_range"]


def check_named_inputs(
    estimator: Any, X: Mapping[str, Any], *, reset: bool, min_samples: int
) -> dict[str, Any]:
    """Each of several inputs as an array, of as many rows as the others."""
    if estimator.backbone is None:
        raise ValueError(
            f"X is a {type(X).__name__} of several inputs ({', '.join(map(repr, X))}): give a "
            "`backbone` whose forward takes them as keyword arguments, or put them into one array."
        )
    if not list(X):  # a SliceDict's length is that of its rows
        raise ValueError("X is an empty dict: it must hold at least one input.")
    names = [name for name in X if not (isinstance(name, str) and name.isidentifier())]
    if names:
        raise ValueError(
            f"The names of inputs in X are keyword arguments of the backbone, got {names[0]!r}."
        )
    inputs = {name: _check_one(estimator, name, X[name], min_samples) for name in X}
    lengths = {name: _length(part) for name, part in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The inputs in X must all have the same number of rows, got {lengths}.")
    if reset:  # of an earlier fit: columns of several inputs have no common number
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return inputs


def _check_one(estimator: Any, name: str, part: Any, min_samples: int) -> Any:
    """One input; a memory map stays one."""
    name = f"X[{name!r}]"
    given = part if isinstance(part, np.memmap) else as_table(part, name)
    try:
        with named_columns(given, name):
            checked = check_array(
                given,
                accept_sparse="csr",
                dtype="numeric",
                ensure_2d=False,
                allow_nd=True,
                ensure_min_samples=min_samples,
                ensure_min_features=0,
                estimator=estimator,
                input_name=name,
            )
        lazy = isinstance(part, np.memmap)
        return part if lazy else as_columns(checked, given, name, integers=True)
    except (ValueError, TypeError) as error:
        if name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {error}") from error


def check_names(X: Any, sample_shape: Any) -> None:
    """Raise where X does not hold the inputs that the estimator was fitted on."""
    names = list(sample_shape) if isinstance(sample_shape, dict) else None
    given = None if scipy.sparse.issparse(X) else X  # a dictionary of keys is a Mapping too
    if isinstance(X, Dataset):
        item = X[0] if len(X) else None  # type: ignore[arg-type]
        given = item[0] if isinstance(item, tuple | list) else item
    found = list(given) if isinstance(given, Mapping) else None
    if names is None and found is None:
        return
    if names is None or found is None:
        told = ["one array" if each is None else f"inputs named {each}" for each in (found, names)]
        raise ValueError(f"X holds {told[0]}, but the estimator was fitted on {told[1]}.")
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        told = [f"{word} {each}" for word, each in (("lacks", missing), ("adds", extra)) if each]
        raise ValueError(
            f"X {' and '.join(told)}: the estimator was fitted on inputs named {names}."
        )


def integers_fit(X: Any, dtype: torch.dtype) -> bool:
    """Whether the integers in X are the same as floats of this dtype; a Dataset's are not read."""
    largest = 2 / torch.finfo(dtype).eps
    for part in X.values() if isinstance(X, Mapping) else [X]:
        wide = isinstance(part, np.ndarray) and part.dtype.kind in "iu" and part.dtype.itemsize > 2
        if wide and max(-int(part.min()), int(part.max())) > largest:
            return False
    return True


def n_samples(X: Any) -> int:
    """Rows of checked inputs, whatever they come in."""
    return _length(next(iter(X.values())) if isinstance(X, Mapping) else X)


def _length(part: Any) -> int:
    return part.shape[0] if hasattr(part, "shape") else len(part)


def out_of_range(backbone: nn.Module, X: Any) -> ValueError:
    """What to say where a backbone looked up an integer that it has no entry for."""
    sizes = {
        name: part.num_embeddings
        for name, part in backbone.named_modules()
        if isinstance(part, nn.Embedding | nn.EmbeddingBag)
    }
    parts = X if isinstance(X, Mapping) else {"X": X}
    ranges = {
        name: f"{np.min(part)} to {np.max(part)}"
        for name, part in parts.items()
        if isinstance(part, np.ndarray) and part.dtype.kind in "iu" and part.size
    }
    return ValueError(
        "The backbone looked up an integer of X that is out of range. Its embeddings hold the "
        f"indices 0 to num_embeddings - 1, num_embeddings being {sizes or 'unknown'}; the "
        f"integers in X go from {ranges or 'unknown'}. Give larger embeddings, or one more entry "
        "for values that were not seen at fit."
    )
