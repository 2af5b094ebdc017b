"""Training with skorch: the net, batches of tensors, schedules and callbacks."""

from .callbacks import WeightAveraging
from .net import CFLLNet

__all__ = ["CFLLNet", "WeightAveraging"]
