"""Size of a network's matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .splitting import evaluation_mode

__all__ = ["product_size"]


class ProductSizes(TorchDispatchMode):
    """Record the multiply-adds of each matrix product and convolution of the calling thread.

    ``torch.utils.flop_counter.FlopCounterMode`` would put hooks on modules in all threads.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[float] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.sizes.append(count(*args, **kwargs, out_val=result) / 2)
        return result


@torch.enable_grad()  # otherwise fused layers hide their products
def product_size(module: nn.Module, sample: Tensor | dict[str, Tensor]) -> float:
    """Mean multiply-adds per sample of a product, weighted by its multiply-adds.

    Parameters
    ----------
    module : torch.nn.Module
    sample : Tensor of shape (m, ...), or dict of them
    """
    named = sample if isinstance(sample, dict) else None
    n_samples = len(sample) if named is None else len(next(iter(named.values())))
    with evaluation_mode(module), ProductSizes() as products:  # not a compiled pass
        module.forward(sample) if named is None else module.forward(**named)
    total = sum(products.sizes)
    return sum(size * size for size in products.sizes) / total / n_samples if total else 0.0
