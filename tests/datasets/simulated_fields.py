"""Designs as the tests call them; errors, orders and coefficients of simulated fields."""

from functools import partial

import numpy as np

from sklearn_cfll.datasets import make_demand_design, make_sprite_design
from sklearn_cfll.datasets._random_fields import from_fft_order

DESIGNS = {
    "demand": partial(make_demand_design, 50),
    "demand-images": partial(make_demand_design, 50, images=True),
    "sprites": partial(make_sprite_design, 20, 16),
}


def error(values, reference):
    return np.linalg.norm(values - reference) / np.linalg.norm(reference)


def orders(errors):
    """Observed orders of accuracy where each step or cell is half the one before."""
    return np.log2(np.divide(errors[:-1], errors[1:]))


def coefficients(values):
    """The trigonometric polynomial through values (n_samples, points, ...), as the solvers take."""
    points, axes = values.shape[-1], range(1, values.ndim)
    spectrum = np.fft.rfftn(values, axes=tuple(axes), norm="forward")
    return from_fft_order(spectrum, (points - 1) // 2)
