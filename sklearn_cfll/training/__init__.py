"""skorch's side: the net, batches of tensors, schedules, callbacks, the final refit."""

from .net import CFLLNet

__all__ = ["CFLLNet"]
