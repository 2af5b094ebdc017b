"""Backbones: recipes that build one, and the splitting-off of a network's last layer."""

from .fno import FNOBackbone
from .mlp import MLPBackbone

__all__ = ["FNOBackbone", "MLPBackbone"]
