"""skorch's side: the net, batches of tensors, schedules, callbacks, the final refit."""

from .callbacks import WeightAveraging
from .net import CFLLNet

__all__ = ["CFLLNet", "WeightAveraging"]
