"""From a table's columns to what a network sees: standardising, bins, normal scores."""

from .encoder import ColumnEncoder
from .protocol import Encoder

__all__ = ["ColumnEncoder", "Encoder"]
