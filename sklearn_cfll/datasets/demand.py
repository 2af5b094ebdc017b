"""The demand design: sales depend on an endogenous price, with fuel cost as instrument."""

from __future__ import annotations

from functools import cache
from itertools import product
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import Bunch

from .._compat import Interval, validate_params
from ._random_stream import random_stream

__all__ = ["make_demand_design"]

_N_TYPES = 7


@validate_params(
    {
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "rho": [Interval(Real, -1, 1, closed="both")],
        "noise_scale": [Interval(Real, 0, None, closed="left")],
        "instrument_strength": [Interval(Real, None, None, closed="neither")],
        "images": ["boolean"],
        "random_state": ["random_state"],
    },
    prefer_skip_nested_validation=True,
)
def make_demand_design(
    n_samples: int = 1000,
    rho: float = 0.5,
    noise_scale: float = 158.0,
    *,
    instrument_strength: float = 1.0,
    images: bool = False,
    random_state: Any = None,
) -> Bunch:
    """Generate sales of airline tickets, a benchmark design for instrumental variables.

    Time ``t ~ U[0, 10]``, customer type ``s`` uniform on 1 to 7, fuel cost ``c ~ N(0, 1)``,
    demand shock ``v ~ N(0, 1)`` and noise ``e ~ N(rho v, 1 - rho²)`` give ::

        h(t) = 2 ((t - 5)⁴ / 600 + exp(-4 (t - 5)²) + t / 10 - 2)
        price = 25 + (instrument_strength * c + 3) h(t) + v
        sales = 100 + (10 + price) s h(t) - 2 price + noise_scale * e

    The price is correlated with the noise through ``v``. The cost affects the price and is
    independent of the noise, so it is an instrument.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of rows.
    rho : float, default=0.5
        Correlation of the noise with the demand shock, from -1 to 1.
    noise_scale : float, default=158.0
        Standard deviation of the noise of the sales. 158 is the scale of Hartford et al. [1]_
        (about the standard deviation of the noiseless sales). With 1, as in [2]_ and [3]_,
        confounding is negligible and direct regression is better than any instrument.
    instrument_strength : float, default=1.0
        Factor of the effect of the cost on the price; near 0 the instrument is weak.
    images : bool, default=False
        Whether the customer type is given as an image of a digit from
        :func:`sklearn.datasets.load_digits`.
    random_state : int, RandomState instance or None, default=None
        Seed of the sample.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With the keys

        X : ndarray of shape (n_samples, 1)
            The treatment, the price.
        y : ndarray of shape (n_samples,)
            The outcome, the sales.
        Z : ndarray of shape (n_samples, 1)
            The instrument, the cost.
        C : ndarray of shape (n_samples, 2)
            The observed confounders, time and customer type. With ``images=True`` the shape is
            (n_samples, 65): time and the 8 × 8 pixels of the digit, from 0 to 1.
        structural : callable
            ``structural(X, C)``: the noiseless sales, of shape (n_samples,). With
            ``images=True`` the type of an image is that of the most similar digit.
        grid : :class:`~sklearn.utils.Bunch`
            ``X``, ``C`` and noiseless ``y`` at 2,800 points: 20 prices from 10 to 25 × 20 times
            from 0 to 10 × 7 types, the last varying fastest. It is the same for every seed. Its
            images of digits are not used in the sample.

    References
    ----------
    .. [1] J. Hartford et al., "Deep IV: a flexible approach for counterfactual prediction",
       International Conference on Machine Learning (2017).
    .. [2] R. Singh, M. Sahani and A. Gretton, "Kernel instrumental variable regression", Advances
       in Neural Information Processing Systems (2019).
    .. [3] L. Xu et al., "Learning deep features in instrumental variable regression",
       International Conference on Learning Representations (2021).

    Examples
    --------
    >>> from sklearn_cfll.datasets import make_demand_design
    >>> data = make_demand_design(n_samples=500, rho=0.9, random_state=0)
    >>> data.X.shape, data.y.shape, data.Z.shape, data.C.shape
    ((500, 1), (500,), (500, 1), (500, 2))
    >>> data.grid.X.shape, data.grid.y.shape
    ((2800, 1), (2800,))
    """
    rng = random_stream(random_state)
    time = rng.uniform(0, 10, n_samples)
    customer = rng.randint(1, _N_TYPES + 1, n_samples)
    cost, shock, independent = rng.standard_normal((3, n_samples))
    noise = rho * shock + np.sqrt(1 - rho**2) * independent
    price = 25 + (instrument_strength * cost + 3) * _season(time) + shock
    sales = _sales(price, time, customer) + noise_scale * noise
    return Bunch(
        X=price[:, None],
        y=sales,
        Z=cost[:, None],
        C=_confounders(time, customer, rng if images else None, held_out=False),
        structural=_structural_by_image if images else _structural,
        grid=_grid(images),
    )


def _grid(images: bool) -> Bunch:
    levels = product(np.linspace(10, 25, 20), np.linspace(0, 10, 20), range(1, _N_TYPES + 1))
    price, time, customer = np.array(list(levels)).T
    # The seed is fixed, so that the grid does not depend on the sample.
    rng = np.random.RandomState(0) if images else None
    return Bunch(
        X=price[:, None],
        C=_confounders(time, customer.astype(int), rng, held_out=True),
        y=_sales(price, time, customer),
    )


def _season(time: np.ndarray) -> np.ndarray:
    """h(t): the price sensitivity over the year."""
    return 2 * ((time - 5) ** 4 / 600 + np.exp(-4 * (time - 5) ** 2) + time / 10 - 2)


def _sales(price: np.ndarray, time: np.ndarray, customer: np.ndarray) -> np.ndarray:
    return 100 + (10 + price) * customer * _season(time) - 2 * price


# Module-level functions instead of closures, so that a data set can be pickled.
def _structural(X: Any, C: Any) -> np.ndarray:
    """Noiseless sales as a function of price (n, 1), and time and customer type (n, 2)."""
    X, C = np.asarray(X), np.asarray(C)
    return _sales(X[:, 0], C[:, 0], C[:, 1])


def _structural_by_image(X: Any, C: Any) -> np.ndarray:
    """Noiseless sales as a function of price (n, 1), and time and digit image (n, 65)."""
    X, C = np.asarray(X), np.asarray(C)
    pixels, labels = _digits()
    return _sales(X[:, 0], C[:, 0], labels[pairwise_distances_argmin(C[:, 1:], pixels)])


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels from 0 to 1 and labels of the digits 1 to 7."""
    digits = load_digits()
    wanted = (digits.target >= 1) & (digits.target <= _N_TYPES)
    return digits.data[wanted] / 16.0, digits.target[wanted]


def _confounders(
    time: np.ndarray, customer: np.ndarray, rng: np.random.RandomState | None, *, held_out: bool
) -> np.ndarray:
    """Columns of time and customer type, or of time and images if there is an ``rng``."""
    if rng is None:
        return np.column_stack([time, customer])
    pixels, labels = _digits()
    images = np.empty((len(customer), pixels.shape[1]))
    for label in range(1, _N_TYPES + 1):
        rows = customer == label
        # The sample and the grid use alternate digits.
        choices = np.flatnonzero(labels == label)[int(held_out) :: 2]
        images[rows] = pixels[rng.choice(choices, rows.sum())]
    return np.column_stack([time, images])
