"""Encoder: the interface of a column encoder, and the base of those of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .rows import Rows

__all__ = ["Encoder", "EncoderModule", "take_sizes"]


@runtime_checkable
class Encoder(Protocol):
    """A torch module from the columns of a table to numbers that a network sees.

    Its constructor takes hyperparameters; what is fitted are buffers, of any size.
    """

    @property
    def n_outputs(self) -> int:
        """Number of outputs per row, 0 if the encoder adds nothing for this table."""
        ...

    @property
    def column(self) -> Tensor:
        """Index of the input column that each output comes from; shape (n_outputs,)."""
        ...

    def fit(self, rows: Rows, sample_weight: Tensor | None = None) -> None:
        """Set the buffers from the rows of a fit.

        Parameters
        ----------
        rows : Rows
            n rows of p columns, of which ``rows.take(indices)`` returns some as a tensor: float64,
            on the CPU, whatever the device of the module.
        sample_weight : Tensor of shape (n,), optional
            A weight is a number of repetitions.
        """
        ...

    def __call__(self, rows: Tensor) -> Tensor:
        """Encode rows (n, p) as (n, n_outputs).

        Rows may be float64 in a float32 network; outputs have the dtype of the network.
        """
        ...


class EncoderModule(nn.Module):
    """A module whose buffers are set by a fit, so that their sizes are those of the last one.

    Buffers named in ``exact`` stay in float64 when the network is cast. They hold numbers in the
    units of the user's columns, which float32 may round too much (milliseconds since 1970) or not
    represent at all (1e-50). Outputs have the dtype of the network. Apple's MPS has no float64, so
    the buffers are cast there.
    """

    exact: ClassVar[tuple[str, ...]] = ()
    column: Tensor
    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("like", torch.empty(0), persistent=False)  # of the network's dtype

    @property
    def n_outputs(self) -> int:
        """Number of outputs per row."""
        return len(self.column)

    def _set(self, **arrays: Any) -> None:
        """Set buffers, which keep their dtype and device."""
        for name, array in arrays.items():
            value = torch.as_tensor(np.ascontiguousarray(array))
            setattr(self, name, value.to(getattr(self, name)))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = {name: getattr(self, name) for name in self.exact}
        for name, buffer in kept.items():  # the device that `fn` moves to may lack float64
            self._buffers[name] = buffer.to(self.like.dtype)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.like.device.type != "mps":
            for name, buffer in kept.items():
                self._buffers[name] = buffer.to(self.like.device, torch.float64)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        take_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def take_sizes(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Give all buffers of a module the sizes that they have in a state, before it is loaded."""
    for name, own in list(module.named_buffers()):
        value = state_dict.get(prefix + name)
        if value is not None and value.shape != own.shape:
            parent, _, last = name.rpartition(".")
            empty = torch.empty_like(value, device=own.device, dtype=own.dtype)
            module.get_submodule(parent)._buffers[last] = empty
