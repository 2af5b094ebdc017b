"""Last layers whose weights are solved for."""

from .closed_form import ClosedFormLastLayer
from .ensemble import EnsembleLastLayer

__all__ = ["ClosedFormLastLayer", "EnsembleLastLayer"]
