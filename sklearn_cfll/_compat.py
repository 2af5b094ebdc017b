"""scikit-learn's private names, and what differs between versions of it and of torch."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    Options,
    StrOptions,
    validate_parameter_constraints,
    validate_params,
)
from sklearn.utils.validation import _check_sample_weight as check_sample_weight

__all__ = ["CallbackSupportMixin", "Interval", "InvalidParameterError", "Options", "StrOptions"]
__all__ += ["check_sample_weight", "fit_context", "is_exporting", "validate_parameter_constraints"]
__all__ += ["validate_params"]

try:  # scikit-learn >= 1.9; an older one is served without its callbacks
    from sklearn.callback import CallbackSupportMixin
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stand-in: no callbacks before scikit-learn 1.9."""

        def _init_callback_context(self, **kwargs: Any) -> None:
            return None


def is_exporting() -> bool:
    """Whether torch traces a module for an ONNX file; never before torch 2.7."""
    exporting: bool = getattr(torch.compiler, "is_exporting", lambda: False)()
    return exporting
