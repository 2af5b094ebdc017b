"""Covariance: the joint distribution of new observations at several rows, and draws from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Covariance"]


class Covariance(NamedTuple):
    """Joint normal distribution of new observations at n rows, in y's units.

    Attributes
    ----------
    mean, std : ndarray of shape (n, k)
    weights : ndarray of shape (n, q)
        Its rows' products are the covariances of the fit for unit noise.
    level : ndarray of shape (k,)
        Standard deviation of the noise by which they are multiplied.
    between : ndarray of shape (n, m, k)
        Its rows' products are the covariances between members.
    """

    mean: np.ndarray
    std: np.ndarray
    weights: np.ndarray
    level: np.ndarray
    between: np.ndarray

    def noise(self, target: int) -> np.ndarray:
        """Variance of the noise at each row: what the uncertainty of the fit leaves of ``std``."""
        own = self.level[target] ** 2 * np.square(self.weights).sum(1)
        own = own + np.square(self.between[..., target]).sum(1)
        rest: np.ndarray = np.clip(self.std[:, target].astype(float) ** 2 - own, 0.0, None)
        return rest

    def of(self, target: int) -> np.ndarray:
        """Covariance (n, n) of the observations of one target."""
        between = self.between[..., target]
        fit = self.level[target] ** 2 * self.weights @ self.weights.T + between @ between.T
        found: np.ndarray = fit + np.diag(self.noise(target))
        return found

    def draw(self, n_samples: int, noise: bool, random: np.random.RandomState) -> np.ndarray:
        """Draws (n, k, n_samples), with independent noise at each row or without."""
        draws = np.empty((*self.mean.shape, n_samples))
        for target in range(self.mean.shape[1]):
            between = self.between[..., target]
            fit = self.weights @ random.standard_normal((self.weights.shape[1], n_samples))
            draws[:, target] = self.mean[:, target, None] + self.level[target] * fit
            draws[:, target] += between @ random.standard_normal((between.shape[1], n_samples))
            if noise:
                spread = np.sqrt(self.noise(target))[:, None]
                draws[:, target] += spread * random.standard_normal((len(self.mean), n_samples))
        return draws
