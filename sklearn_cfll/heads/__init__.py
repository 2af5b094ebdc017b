"""Last layers whose weights are computed in closed form, and their common protocol."""

from .closed_form import ClosedFormLastLayer
from .ensemble import EnsembleLastLayer
from .protocol import Head

__all__ = ["ClosedFormLastLayer", "EnsembleLastLayer", "Head"]
