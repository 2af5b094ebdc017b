"""Last layers whose weights are computed in closed form, and their common protocol."""

from .closed_form import ClosedFormLastLayer
from .ensemble import EnsembleLastLayer
from .member import Member
from .memory import MEMORIES
from .protocol import Head, Memory
from .rows import MemberRows

__all__ = [
    "MEMORIES",
    "ClosedFormLastLayer",
    "EnsembleLastLayer",
    "Head",
    "Member",
    "MemberRows",
    "Memory",
]
