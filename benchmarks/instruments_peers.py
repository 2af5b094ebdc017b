"""Estimators that the instrumental-variable regression is measured against, each in few lines.

All have one form: ``fit(X, y, Z, C, seed)`` returns ``predict(X, C)``, the structural function.
``X`` treatments, ``y`` outcome, ``Z`` instruments, ``C`` observed confounders or None; all
arrays of rows. A method that cannot be used on the data raises ``NotApplicable``.

Needs ``pip install linearmodels econml``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np
from models import PLAIN
from scipy.linalg import eigh
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    PolynomialFeatures,
    SplineTransformer,
    StandardScaler,
)

from sklearn_cfll import CFLLIVRegressor, CFLLRegressor

Rows = np.ndarray
Predict = Callable[[Rows, Rows | None], np.ndarray]

FEW = 5  # columns; above, no polynomials of them are taken
COMPONENTS = 10  # principal components that stand for an image
RIDGES = 10.0 ** np.arange(-7, 3.1, 0.5)  # per row


class NotApplicable(ValueError):
    """The method needs other data than these."""


def beside(*blocks: Rows | None) -> Rows:
    """The blocks' columns in one array; None is no column."""
    return np.column_stack([block for block in blocks if block is not None])


def tensor(first: Rows, *others: Rows) -> Rows:
    """Row-wise Kronecker product: of every row, the products of one column of each."""
    for other in others:
        first = np.einsum("ni,nj->nij", first, other).reshape(len(first), -1)
    return first


def direct(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Plain regression of the outcome on treatments and confounders: what an instrument mends."""
    # Without bins: the network that the stored records are of.
    model = CFLLRegressor(**PLAIN, random_state=seed).fit(beside(X, C), y)
    return lambda X, C: model.predict(beside(X, C))


def direct_nets(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Plain regression by the nets, folds and averages of CFLLIVRegressor, no instrument given."""
    model = CFLLIVRegressor(random_state=seed).fit(X, y, C=C)
    return lambda X, C: model.predict(X, C)


def cfll_iv_fast(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """CFLLIVRegressor in a hurry: one split into folds, larger steps, no diagnostics."""
    model = CFLLIVRegressor(n_repeats=1, learning_rate=0.03, diagnose=False, random_state=seed)
    model.fit(X, y, Z=Z, C=C)
    return lambda X, C: model.predict(X, C)


# Two-stage least squares -------------------------------------------------------------------


def two_stage(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Two-stage least squares, linear in everything."""
    if X.shape[1] > Z.shape[1]:
        raise NotApplicable("more treatments than instruments")
    coef = _iv2sls(y, beside(np.ones(len(X)), C), X, Z)
    return lambda X, C: beside(np.ones(len(X)), C, X) @ coef


def two_stage_cubic(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Two-stage least squares on all monomials of total degree at most 3."""
    if X.shape[1] > min(FEW, Z.shape[1]):
        raise NotApplicable("more treatment terms than instrument terms")

    def monomials(first: Rows) -> tuple[Callable[[Rows, Rows | None], Rows], np.ndarray]:
        basis = make_pipeline(StandardScaler(), PolynomialFeatures(3)).fit(beside(first, C))
        exogenous = (basis[-1].powers_[:, : first.shape[1]] == 0).all(1)
        return lambda first, C: basis.transform(beside(first, C)), exogenous

    regressors, exogenous = monomials(X)
    instruments, repeated = monomials(Z)
    terms = regressors(X, C)
    coef = np.empty(terms.shape[1])
    excluded = instruments(Z, C)[:, ~repeated]
    order = np.r_[np.flatnonzero(exogenous), np.flatnonzero(~exogenous)]
    coef[order] = _iv2sls(y, terms[:, exogenous], terms[:, ~exogenous], excluded)
    return lambda X, C: regressors(X, C) @ coef


def _iv2sls(y: Rows, exogenous: Rows, endogenous: Rows, instruments: Rows) -> np.ndarray:
    from linearmodels.iv import IV2SLS

    return IV2SLS(y, exogenous, endogenous, instruments).fit().params.to_numpy()


def econml_sieve(degree: int) -> Callable[..., Predict]:
    """EconML's sieve estimator with polynomials of treatments, confounders and instruments."""

    def fit(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
        from econml.iv.sieve import DPolynomialFeatures, SieveTSLS
        from econml.utilities import cross_product

        if X.shape[1] > min(FEW, Z.shape[1]):
            raise NotApplicable("more treatment terms than instrument terms")
        scale_X, scale_Z = StandardScaler().fit(X), StandardScaler().fit(Z)
        scale_C = StandardScaler().fit(C) if C is not None else None
        # It asks for a feature to interact with: without confounders a column of ones.
        features = lambda C, n: np.ones((n, 1)) if C is None else scale_C.transform(C)  # noqa: E731
        polynomials = PolynomialFeatures(degree)
        sieve = SieveTSLS(
            t_featurizer=polynomials,
            x_featurizer=FunctionTransformer() if C is None else polynomials,
            z_featurizer=polynomials,
            dt_featurizer=DPolynomialFeatures(degree),
        )
        sieve.fit(y, scale_X.transform(X), Z=scale_Z.transform(Z), X=features(C, len(X)))

        def predict(X: Rows, C: Rows | None) -> np.ndarray:
            # Its public `effect` is a difference of two treatments: the level is its last stage.
            treatment = sieve._t_featurizer.transform(scale_X.transform(X))
            context = sieve._x_featurizer.transform(features(C, len(X)))
            terms = cross_product(treatment, context)
            return sieve._model_Y.predict(beside(np.ones(len(X)), terms))

        return predict

    return fit


# Spline sieves -----------------------------------------------------------------------------


def spline_sieve(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Two-stage ridge regression on cubic splines, knots and ridges by cross-validation.

    Regressors: additive splines of the treatments (of an image: of its principal components)
    times additive splines of the confounders. Instruments: the product of the instruments'
    splines, times the same of the confounders.
    """
    many = X.shape[1] > FEW
    reduce = PCA(COMPONENTS, random_state=seed).fit(X) if many else FunctionTransformer()
    ones = lambda rows: np.ones((len(rows), 1))  # noqa: E731

    def candidate(knots: int) -> tuple[float, Predict]:
        of_X = _splines(reduce.transform(X), knots)
        of_Z = [_splines(column[:, None], knots) for column in Z.T]
        of_C = ones if C is None else _splines(C, knots)

        def regressors(X: Rows, C: Rows | None) -> Rows:
            return tensor(of_X(reduce.transform(X)), of_C(X if C is None else C))

        terms = [splines(column[:, None]) for splines, column in zip(of_Z, Z.T, strict=True)]
        return _sieve(regressors, X, C, tensor(*terms, of_C(Z if C is None else C)), y, seed)

    return min(map(candidate, (3, 5, 8) if Z.shape[1] < 3 else (3,)), key=itemgetter(0))[1]


def told_sieve(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """The same, told the demand design's form: (1, price) × (1, type) × splines of time."""
    if C is None or C.shape[1] != 2:
        raise NotApplicable("only for the demand design")

    def candidate(knots: int) -> tuple[float, Predict]:
        of_time = SplineTransformer(knots, include_bias=True).fit([[0.0], [10.0]])

        def basis(first: Rows, C: Rows) -> Rows:
            ones = np.ones(len(C))
            return tensor(beside(ones, first), beside(ones, C[:, 1]), of_time.transform(C[:, :1]))

        return _sieve(basis, X, C, basis(Z, C), y, seed)

    return min(map(candidate, (8, 14, 20)), key=itemgetter(0))[1]


def _splines(rows: Rows, knots: int) -> Callable[[Rows], Rows]:
    """A one and cubic splines of each column, knots at its quantiles if it has many values."""
    parts = []
    for column in rows.T:
        where = "quantile" if len(np.unique(column)) > 20 else "uniform"
        splines = SplineTransformer(
            knots, knots=where, extrapolation="linear", include_bias=False
        ).fit(column[:, None])
        parts.append(splines.transform)

    def transform(rows: Rows) -> Rows:
        columns = [part(column[:, None]) for part, column in zip(parts, rows.T, strict=True)]
        return beside(np.ones(len(rows)), *columns)

    return transform


def _sieve(
    regressors: Callable[[Rows, Rows | None], Rows],
    X: Rows,
    C: Rows | None,
    instruments: Rows,
    y: Rows,
    seed: int,
) -> tuple[float, Predict]:
    """Both stages by ridge regression; returns also the held-out second-stage loss.

    That loss, over five folds which neither stage sees, chooses the second stage's ridge.
    """
    scale = StandardScaler()
    S, T = scale.fit_transform(regressors(X, C)), StandardScaler().fit_transform(instruments)

    def stages(rows: np.ndarray, held: np.ndarray, ridges: np.ndarray) -> tuple[Rows, ...]:
        """Coefficients, means and the predictions on the held rows, for each ridge."""
        stage1 = RidgeCV(RIDGES * len(rows), alpha_per_target=True).fit(T[rows], S[rows])
        predicted, center = stage1.predict(T[rows]), y[rows].mean()
        shift = predicted.mean(0)
        coefs = _ridge_path(predicted - shift, y[rows] - center, ridges)
        return coefs, shift, center, center + (stage1.predict(T[held]) - shift) @ coefs

    errors = np.zeros(len(RIDGES))
    for train, held in KFold(5, shuffle=True, random_state=seed).split(y):
        *_, fitted = stages(train, held, RIDGES)
        errors += np.square(y[held, None] - fitted).mean(0) / 5
    rows, best = np.arange(len(y)), errors.argmin()
    coefs, shift, center, _ = stages(rows, rows[:1], RIDGES[[best]])
    return errors[
        best
    ], lambda X, C: center + (scale.transform(regressors(X, C)) - shift) @ coefs[:, 0]


def _ridge_path(features: Rows, y: Rows, ridges: np.ndarray) -> np.ndarray:
    """Coefficients (columns, ridges) that minimise ``‖y - F w‖² / n + ridge ‖w‖²``."""
    values, vectors = eigh(features.T @ features / len(y))
    right = vectors.T @ (features.T @ y) / len(y)
    return vectors @ (right[:, None] / (np.maximum(values, 0)[:, None] + ridges))


# Kernel instrumental-variable regression -------------------------------------------------------

PENALTIES = np.logspace(-10, -2, 50)


def kernel_iv(X: Rows, y: Rows, Z: Rows, C: Rows | None = None, seed: int = 0) -> Predict:
    """Kernel instrumental variables of Singh, Sahani & Gretton (2019).

    Gaussian kernels of (X, C) and of (Z, C) whose bandwidths are median distances, column by
    column; half of the rows to each stage. The first ridge is validated on the second stage's
    rows, the second ridge on the first stage's outcomes, as there. Written in the eigenfeatures
    of the kernel matrix, which makes the second stage a plain ridge regression. The outcome is
    centred.
    """
    first, second = train_test_split(np.arange(len(y)), train_size=0.5, random_state=seed)
    inputs, instruments = beside(X, C), beside(Z, C)
    kernel_X, kernel_Z = _gaussian(inputs[first]), _gaussian(instruments[first])
    K, K12 = kernel_X(inputs[first]), kernel_X(inputs[second])

    # Stage 1: weights of the first rows that predict the features of the second ones.
    values, vectors = eigh(kernel_Z(instruments[first]))
    turned = vectors.T @ kernel_Z(instruments[second])
    shrink = 1 / (np.maximum(values, 0) + len(first) * PENALTIES[:, None])
    square = (vectors.T @ K @ vectors) * (turned @ turned.T)
    linear = np.einsum("ij,ij->i", vectors.T @ K12, turned)
    losses = np.einsum("ri,ij,rj->r", shrink, square, shrink, optimize=True) - 2 * shrink @ linear
    weights = vectors @ (shrink[losses.argmin()][:, None] * turned)

    # Stage 2: ridge regression on the predicted features.
    values, vectors = eigh(K)
    kept = values > 1e-12 * values[-1]
    to_features = vectors[:, kept] / np.sqrt(values[kept])
    features = K @ to_features
    predicted = weights.T @ features
    center = y.mean()
    U, s, Vt = np.linalg.svd(predicted, full_matrices=False)
    damped = s / (s**2 + len(second) * PENALTIES[:, None])
    coefs = Vt.T @ (damped * (U.T @ (y[second] - center))).T
    errors = np.square(y[first, None] - center - features @ coefs).mean(0)
    coef = to_features @ coefs[:, errors.argmin()]
    return lambda X, C: center + kernel_X(beside(X, C)).T @ coef


def _gaussian(rows: Rows) -> Callable[[Rows], np.ndarray]:
    """Kernel matrix (rows, others) as a function of the others."""
    if rows.shape[1] > 2 * FEW:  # an image: one bandwidth for all pixels
        scale = np.median(pdist(rows))
    else:
        scale = np.array([np.median(pdist(column[:, None])) for column in rows.T])
    return lambda others: np.exp(-0.5 * cdist(rows / scale, others / scale, "sqeuclidean"))
