"""Training with skorch: the net, batches of tensors, schedules and callbacks."""

from .callbacks import WeightAveraging
from .checkpoint import TrainingCheckpoint
from .distribution import alone
from .net import CFLLNet

__all__ = ["CFLLNet", "TrainingCheckpoint", "WeightAveraging", "alone"]
