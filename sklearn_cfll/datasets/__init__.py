"""Simulators in the style of scikit-learn's ``make_*``: operator learning and instruments."""

from .burgers import make_burgers
from .darcy import make_darcy
from .demand import make_demand_design
from .navier_stokes import make_navier_stokes
from .sprites import make_sprite_design

__all__ = [
    "make_burgers",
    "make_darcy",
    "make_demand_design",
    "make_navier_stokes",
    "make_sprite_design",
]
