"""Named inputs for backbones with several arguments, and integer inputs for embeddings."""

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
    """Convert several named inputs to arrays and check that their lengths agree."""
    if estimator.backbone is None:
        raise ValueError(
            f"X is a {type(X).__name__} of several inputs ({', '.join(map(repr, X))}). Pass a "
            "`backbone` whose forward takes them as keyword arguments, or stack them in one array."
        )
    if not list(X):  # the length of a SliceDict is its number of rows
        raise ValueError("X is an empty dict: it must hold at least one input.")
    names = [name for name in X if not (isinstance(name, str) and name.isidentifier())]
    if names:
        raise ValueError(
            f"The keys of X must be valid keyword arguments of the backbone, got {names[0]!r}."
        )
    inputs = {name: _check_one(estimator, name, X[name], min_samples) for name in X}
    lengths = {name: _length(part) for name, part in inputs.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"The inputs in X must all have the same number of rows, got {lengths}.")
    if reset:  # from an earlier fit; several inputs have no single number of columns
        for name in ("n_features_in_", "feature_names_in_"):
            vars(estimator).pop(name, None)
    return inputs


def _check_one(estimator: Any, name: str, part: Any, min_samples: int) -> Any:
    """Check one input; a memory map is returned unchanged."""
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
    """Raise if X does not hold the inputs that the estimator was fitted on."""
    names = list(sample_shape) if isinstance(sample_shape, dict) else None
    given = None if scipy.sparse.issparse(X) else X  # a sparse DOK matrix is a Mapping too
    if isinstance(X, Dataset):
        item = X[0] if len(X) else None  # type: ignore[arg-type]
        given = item[0] if isinstance(item, tuple | list) else item
    found = list(given) if isinstance(given, Mapping) else None
    if names is None and found is None:
        return
    if names is None or found is None:
        kinds = ["one array" if each is None else f"inputs named {each}" for each in (found, names)]
        raise ValueError(f"X holds {kinds[0]}, but the estimator was fitted on {kinds[1]}.")
    missing = [name for name in names if name not in found]
    extra = [name for name in found if name not in names]
    if missing or extra:
        parts = [f"{word} {each}" for word, each in (("lacks", missing), ("adds", extra)) if each]
        raise ValueError(
            f"X {' and '.join(parts)}: the estimator was fitted on inputs named {names}."
        )


def integers_fit(X: Any, dtype: torch.dtype) -> bool:
    """Whether this dtype holds the integers in X exactly; a Dataset is not read."""
    largest = 2 / torch.finfo(dtype).eps
    for part in X.values() if isinstance(X, Mapping) else [X]:
        wide = isinstance(part, np.ndarray) and part.dtype.kind in "iu" and part.dtype.itemsize > 2
        if wide and max(-int(part.min()), int(part.max())) > largest:
            return False
    return True


def n_samples(X: Any) -> int:
    """Number of rows of checked inputs."""
    return _length(next(iter(X.values())) if isinstance(X, Mapping) else X)


def _length(part: Any) -> int:
    return part.shape[0] if hasattr(part, "shape") else len(part)


def out_of_range(backbone: nn.Module, X: Any) -> ValueError:
    """Error for integers that are out of range for the embeddings of the backbone."""
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
        "An integer in X is out of range for the embeddings of the backbone. They take indices "
        f"from 0 to num_embeddings - 1, and num_embeddings is {sizes or 'unknown'}; the integers "
        f"in X range from {ranges or 'unknown'}. Use larger embeddings, or add an entry for values "
        "that were not seen at fit."
    )
