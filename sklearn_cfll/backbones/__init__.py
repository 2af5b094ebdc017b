"""Backbones: recipes that build them, and splitting off a network's last layer."""

from .fno import FNOBackbone
from .mlp import MLPBackbone

__all__ = ["FNOBackbone", "MLPBackbone"]
