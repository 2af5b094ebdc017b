"""The sprite design: the treatment is an image, confounded by the position of its sprite."""

from __future__ import annotations

from functools import partial
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import Bunch

from .._compat import Interval, StrOptions, validate_params
from ._random_stream import random_stream

__all__ = ["make_sprite_design"]

_FORMS = 10
_PIXEL_NOISE = 0.1
_OUTCOME_NOISE = 0.5
# Sizes at scale 1, in widths of the image. Both shapes have 1/16 of the area of the image.
_HALF_SIDE = 0.125
_SEMI_AXES = (0.25 / np.sqrt(2 * np.pi) * 2, 0.25 / np.sqrt(2 * np.pi))
_MARGIN = 0.22  # of the centre, so that every sprite lies within the image


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "size": [Interval(Integral, 8, None, closed="left")],
        "shape": [StrOptions({"ellipse", "square"})],
        "confounding": [Interval(Real, None, None, closed="neither")],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_sprite_design(
    n_samples: int = 1000,
    size: int = 64,
    *,
    shape: str = "ellipse",
    confounding: float = 32.0,
    random_state: Any = None,
) -> Bunch:
    """Generate images as treatments, an instrumental-variable design similar to dSprites.

    A bright sprite of scale ``~ U[0.5, 1]``, rotation ``~ U[0, 2π]`` and position
    ``x, y ~ U[0, 1]`` is drawn on a dark square, and noise is added. The outcome is ::

        f(X) + confounding * (y - 1/2) + 0.5 e,    f(X) = (‖A X‖² / 10 - 5000) / 1000

    with ``e ~ N(0, 1)`` and a fixed ``A`` of 10 rows. The vertical position affects both the
    outcome and the image. Scale, rotation and horizontal position are independent of it, so they
    are instruments.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    size : int, default=64
        Number of pixels along each axis of an image.
    shape : {"ellipse", "square"}, default="ellipse"
        Shape of the sprite. The ellipse is twice as long as wide.
    confounding : float, default=32.0
        Effect of the vertical position on the outcome.
    random_state : int, RandomState instance or None, default=None
        Seed of the sample. ``A`` and the grid are the same for every seed.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the keys

        X : ndarray of shape (n_samples, size * size)
            The treatment: flattened images from 0 to 1, plus noise of standard deviation 0.1.
        images : ndarray of shape (n_samples, size, size)
            The same images, not flattened.
        y : ndarray of shape (n_samples,)
            The outcome.
        Z : ndarray of shape (n_samples, 3)
            The instruments: scale, rotation and horizontal position.
        C : None
            No observed confounders.
        confounder : ndarray of shape (n_samples,)
            The vertical position, which an estimator must not see.
        structural : callable
            ``structural(X, C=None)``: f, of shape (n_samples,).
        grid : :class:`~sklearn.utils.Bunch`
            ``X``, ``C`` and ``y = f(X)`` of 588 images without noise: 7 × 7 positions,
            3 scales, 4 rotations.

    Notes
    -----
    The design follows Xu et al. [1]_ but does not use dSprites itself [2]_. The sprites are drawn
    with edges blurred over one pixel, and their scale, rotation and position vary continuously.
    ``A`` is uniform on [0, 1], drawn with a fixed seed and multiplied by ``(64 / size)²``, so that
    ``f`` has the same range at any size (about -5 to 15, with a standard deviation of 4.5; that of
    the confounder's term is 9.2). As in [1]_, the sum of squares is a mean over the rows of ``A``,
    and ``f`` is evaluated at the image with its noise.

    References
    ----------
    .. [1] L. Xu et al., "Learning deep features in instrumental variable regression",
       International Conference on Learning Representations (2021).
    .. [2] L. Matthey et al., "dSprites: disentanglement testing sprites dataset" (2017).

    Examples
    --------
    >>> from sklearn_cfll.datasets import make_sprite_design
    >>> data = make_sprite_design(n_samples=20, size=32, random_state=0)
    >>> data.images.shape, data.X.shape, data.Z.shape, data.grid.X.shape
    ((20, 32, 32), (20, 1024), (20, 3), (588, 1024))
    """
    rng = random_stream(random_state)
    scale = rng.uniform(0.5, 1.0, n_samples)
    rotation = rng.uniform(0.0, 2 * np.pi, n_samples)
    x, y = rng.uniform(size=(2, n_samples))
    noise = rng.standard_normal(n_samples)
    images = rng.standard_normal((n_samples, size, size))
    images *= _PIXEL_NOISE
    for image, *latent in zip(images, scale, rotation, x, y, strict=True):
        image += render(size, shape, *latent)
    X = images.reshape(n_samples, -1)

    structural = partial(_quadratic_form, weights=_weights(size))
    return Bunch(
        X=X,
        images=images,
        y=structural(X) + confounding * (y - 0.5) + _OUTCOME_NOISE * noise,
        Z=np.column_stack([scale, rotation, x]),
        C=None,
        confounder=y,
        structural=structural,
        grid=_grid(size, shape, structural),
    )


def _grid(size: int, shape: str, structural: partial[np.ndarray]) -> Bunch:
    positions = np.linspace(0, 1, 7)
    rotations = 0.5 * np.pi * np.arange(4) + 0.25  # not along the axes
    levels = product((0.5, 0.75, 1.0), rotations, positions, positions)
    X = np.stack([render(size, shape, *latent).ravel() for latent in levels])
    return Bunch(X=X, C=None, y=structural(X))


def _weights(size: int) -> np.ndarray:
    """A of shape (10, size²), equal for all seeds; f has the same range at any size."""
    return np.random.RandomState(0).uniform(size=(_FORMS, size * size)) * (64 / size) ** 2


def _quadratic_form(X: Any, C: Any = None, *, weights: np.ndarray) -> np.ndarray:
    """f of images of shape (n_samples, size²)."""
    return (np.mean((np.asarray(X) @ weights.T) ** 2, axis=1) - 5000.0) / 1000.0


def render(size: int, shape: str, scale: float, rotation: float, x: float, y: float) -> np.ndarray:
    """Image (size, size) of a sprite: 0 outside, 1 inside, with edges blurred over one pixel.

    ``x`` is measured from the left and ``y`` from the top. At 0 and 1 the sprite still fits in the
    image.
    """
    centres = (np.arange(size) + 0.5) / size
    right = centres[None, :] - (_MARGIN + (1 - 2 * _MARGIN) * x)
    down = centres[:, None] - (_MARGIN + (1 - 2 * _MARGIN) * y)
    along = np.cos(rotation) * right + np.sin(rotation) * down
    across = -np.sin(rotation) * right + np.cos(rotation) * down
    if shape == "square":
        distance = np.maximum(abs(along), abs(across)) - scale * _HALF_SIDE
    else:
        a, b = (scale * axis for axis in _SEMI_AXES)
        # First-order distance: an implicit function divided by the norm of its gradient.
        radius = np.hypot(along / a, across / b)
        slope = np.hypot(along / a**2, across / b**2)
        inside = np.full_like(radius, -1.0)
        distance = np.divide(radius * (radius - 1), slope, out=inside, where=slope > 0)
    return np.clip(0.5 - size * distance, 0.0, 1.0)
