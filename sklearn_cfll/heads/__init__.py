"""Last layers whose weights are solved for, and the protocol that both keep."""

from .closed_form import ClosedFormLastLayer
from .ensemble import EnsembleLastLayer
from .protocol import Head

__all__ = ["ClosedFormLastLayer", "EnsembleLastLayer", "Head"]
