"""CFLLIVRegressor, the estimator of instrumental-variable regression."""

from __future__ import annotations

from typing import Any, ClassVar

from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.metrics import r2_score

from .._compat import fit_context
from ..estimator.arrays import as_targets, as_values, as_weights
from ..training.torch_settings import default_modes, use_threads
from .attributes import InstrumentAttributes
from .data import check_instrument_data, check_stage1_sample
from .identification import check_identified
from .parameters import CONSTRAINTS, warn_without_effect
from .report import warn_of
from .run import fit_instruments

__all__ = ["CFLLIVRegressor"]


class CFLLIVRegressor(RegressorMixin, InstrumentAttributes, BaseEstimator):
    """Instrumental-variable regression by neural networks with closed-form last layers.

    It estimates the structural function ``f`` of ``y = f(X, C) + e``, where the noise ``e`` may be
    correlated with the treatments ``X`` but not with the instruments ``Z`` or the observed
    confounders ``C``. The first stage predicts features of the treatment from features of the
    instruments and confounders. The second stage predicts the outcome from the predicted treatment
    features, the confounder features and their products. Both last layers are ridge fits. All
    features are trained by gradient descent, those of the treatment through the first stage.

    Parameters
    ----------
    treatment_backbone, instrument_backbone, covariate_backbone : optional
        Networks that compute the features of X, of Z (together with C) and of C. None is a
        multilayer perceptron with the parameters below; the treatment itself is added to the
        features of its perceptron. "identity" uses the columns unchanged. A ``torch.nn.Module``,
        a recipe or a callable as in :class:`CFLLRegressor` takes inputs of any shape, such as
        images.
    treatment_hidden_sizes : tuple of int or "auto", default="auto"
        Widths of the perceptron; the last is the number of features. "auto" is (16, 4), or
        (64, 32, 16) with more than 100 columns, when the treatment itself is not a feature.
    instrument_hidden_sizes : tuple of int, default=(64, 16)
        Widths of the perceptron. Larger ones overfit the first stage, which shrinks effects.
    covariate_hidden_sizes : tuple of int, default=(128, 32, 16)
        Widths of the perceptron.
    activation : {"tanh", "relu", "silu", "gelu", "elu", "identity"}, default="tanh"
    stage1_ridge : float, default=0.01
        Ridge penalty of the first stage per row, on features with standard deviation one.
    stage2_ridge : float or "auto", default="auto"
        Ridge penalty of the second stage per row. If this or one of the next two parameters is
        "auto", predictions are averaged over a few values, weighted by held-out likelihood;
        ``shrinkage_`` contains the most likely values.
    interaction_scale : float or "auto", default="auto"
        Scale of the products of treatment and confounder features; 0 omits them.
    feature_scale : float or "auto", default="auto"
        Scale of the perceptron's treatment features relative to the treatment itself; 0 makes the
        structural function linear in X for given C.
    n_folds : int, default=4
        Folds are used for early stopping and the band. Predictions are averages over folds.
    n_repeats : int, default=2
        Number of repeated splits into folds, over which predictions are averaged too. Two splits
        into four folds had a smaller error and a more stable band than one into five or ten.
    cross_fit : bool, default=True
        Whether to split the training rows of a fold into halves and predict the treatment of each
        half by a first stage fitted to the other. Without it, the estimate is biased towards that
        of direct regression.
    linear_part : bool, default=True
        Whether to fit the networks to what a linear instrumental-variable regression leaves over.
        Held-out rows decide how much of either is used. It requires columns and the default
        ``treatment_backbone``.
    diagnose : bool, default=True
        Whether to also compute ``effect_``, and the direct regression of y on X and C for
        ``preferred_``. Weak instruments and a preference against them are warned of.
    learning_rate : float, default=0.01
        Learning rate of Adam, for all nets.
    batch_size : int, "full" or "auto", default="auto"
        Rows per step. "auto" is all rows up to 10,000 rows, and 1024 with more; the last layers
        are then solved by proximal updates.
    max_epochs : int, default=300
    n_iter_no_change : int, default=10
        Training stops after this many epochs without a better held-out loss.
    device : str or torch.device, default="auto"
    precision : {"auto", "float32", "float64"}, default="auto"
        Floating-point precision of the nets; the second stage is always solved in float64.
        "auto" is float64 up to 400 rows on a CPU, else float32.
    n_threads : int, default=None
        Number of CPU threads of fit and predict. None is one thread, because the matrix products
        of these nets are too small to parallelise. The caller's number is restored afterwards.
    random_state : int, RandomState instance or None, default=None
        Controls the folds and the initial weights. The global random states are not used: None
        takes fresh entropy from the operating system, so ``numpy.random.seed`` and
        ``torch.manual_seed`` do not make a fit reproducible; an int does.
    verbose : int, default=0
        If positive, held-out losses are printed during training.

    Attributes
    ----------
    shrinkage_ : dict
        The most likely ``interactions``, ``features``, ``ridge``, and parts of the linear fit.
    resolved_ : dict
        The value used for each "auto", by parameter name; the most likely value for the three
        parameters that are averaged over.
    held_out_loss_ : float
        Loss of the second stage on held-out rows, relative to the variance of y.
    stage1_score_ : float
        Coefficient of determination of the treatment, predicted by first stages that were not
        fitted to the row; NaN without instruments.
    preferred_ : {"instrument", "direct", "neither"}
        The regression to rely on. "neither" if the instruments are weak, or if the average slope of
        the function and the linear slope differ in sign beyond their errors; "direct" if its
        squared error is expected to be smaller (only with ``diagnose=True``, or without Z).
    effect_ : Bunch
        Average effect of each treatment, with errors and confidence sets; its entries are listed
        at the attribute. Only with ``diagnose=True`` and columns as inputs.
    diagnostics_ : dict
        The figures that :meth:`summary` prints.
    history_ : list of dict
        One dict per record, with the keys epoch, valid_loss and running_mean.
    n_iter_ : int
        Number of epochs trained.
    best_iteration_ : int
        The epoch that was kept.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
    device_ : torch.device

    Notes
    -----
    Without Z (``fit(X, y)``) the estimator is a direct regression of y on X and C.

    With metadata routing, ``set_fit_request(Z=True, C=True)`` and similar requests pass Z and C
    through pipelines and searches. :meth:`score` with Z needs no ground truth.

    References
    ----------
    .. [1] L. Xu et al., "Learning deep features in instrumental variable regression",
       International Conference on Learning Representations (2021).
    .. [2] A. Galashov et al., "Closed-Form Last Layer Optimization", arXiv 2510.04606.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cfll import CFLLIVRegressor
    >>> rng = np.random.default_rng(0)
    >>> Z, hidden, noise = rng.normal(size=(3, 500))
    >>> X = Z + hidden + 0.3 * noise
    >>> y = 2 * X - 3 * hidden  # regression of y on X would find a slope of about 0.5
    >>> model = CFLLIVRegressor(random_state=0).fit(X[:, None], y, Z=Z)
    >>> low, high = model.predict([[-1.0], [1.0]])
    >>> bool(1.6 < (high - low) / 2 < 2.4)
    True
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = CONSTRAINTS

    def __init__(
        self,
        treatment_backbone: Any = None,
        instrument_backbone: Any = None,
        covariate_backbone: Any = None,
        *,
        treatment_hidden_sizes: Any = "auto",
        instrument_hidden_sizes: Any = (64, 16),
        covariate_hidden_sizes: Any = (128, 32, 16),
        activation: str = "tanh",
        stage1_ridge: float = 0.01,
        stage2_ridge: Any = "auto",
        interaction_scale: Any = "auto",
        feature_scale: Any = "auto",
        n_folds: int = 4,
        n_repeats: int = 2,
        cross_fit: bool = True,
        linear_part: bool = True,
        diagnose: bool = True,
        learning_rate: float = 0.01,
        batch_size: Any = "auto",
        max_epochs: int = 300,
        n_iter_no_change: int = 10,
        device: Any = "auto",
        precision: str = "auto",
        n_threads: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.treatment_backbone = treatment_backbone
        self.instrument_backbone = instrument_backbone
        self.covariate_backbone = covariate_backbone
        self.treatment_hidden_sizes = treatment_hidden_sizes
        self.instrument_hidden_sizes = instrument_hidden_sizes
        self.covariate_hidden_sizes = covariate_hidden_sizes
        self.activation = activation
        self.stage1_ridge = stage1_ridge
        self.stage2_ridge = stage2_ridge
        self.interaction_scale = interaction_scale
        self.feature_scale = feature_scale
        self.n_folds = n_folds
        self.n_repeats = n_repeats
        self.cross_fit = cross_fit
        self.linear_part = linear_part
        self.diagnose = diagnose
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.n_iter_no_change = n_iter_no_change
        self.device = device
        self.precision = precision
        self.n_threads = n_threads
        self.random_state = random_state
        self.verbose = verbose

    # -- fitting --------------------------------------------------------------------

    @fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        Z: Any = None,
        C: Any = None,
        sample_weight: Any = None,
        X_stage1: Any = None,
        Z_stage1: Any = None,
        C_stage1: Any = None,
        groups: Any = None,
    ) -> CFLLIVRegressor:
        """Fit both stages.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_treatments)
            Treatments. With a ``treatment_backbone``, samples may have any shape.
        y : array-like of shape (n_samples,)
            Outcome.
        Z : array-like of shape (n_samples, n_instruments), default=None
            Instruments. If None, y is regressed on X and C directly.
        C : array-like of shape (n_samples, n_confounders), default=None
            Controls (observed confounders), used in both stages.
        sample_weight : array-like of shape (n_samples,), default=None
            Numbers of repetitions, or shares, which are scaled to a mean of one if it is below.
        X_stage1, Z_stage1, C_stage1 : optional
            Separate sample for the first stage, used instead of cross-fitting.
        groups : array-like of shape (n_samples,), default=None
            Clusters, such as persons of whom there are several rows. Rows of one are held out
            together, and the errors of ``effect_`` are clustered.

        Returns
        -------
        self
            If fit raises an error, the previous fit is kept.
        """
        before = dict(self.__dict__)
        try:
            with default_modes(), use_threads(self.n_threads or 1):
                data = check_instrument_data(self, X, y, Z, C, sample_weight, groups)
                first_sample = check_stage1_sample(self, X_stage1, Z_stage1, C_stage1, data)
                check_identified(self, data)
                warn_without_effect(self, data)
                self._model = fit_instruments(self, data, first_sample)
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise
        if self.diagnose and Z is not None:
            warn_of(self.diagnostics_, data.names["X"])
        return self

    # -- using ----------------------------------------------------------------------

    @default_modes()
    def predict(self, X: Any, C: Any = None, return_std: bool = False) -> Any:
        """Predict the structural function: the expected outcome if the treatment were set to X.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_treatments)
        C : array-like of shape (n_samples, n_confounders), default=None
            Required if it was passed to fit.
        return_std : bool, default=False
            Whether to also return the standard deviation of the estimate (not of an outcome),
            from which :meth:`predict_interval` computes a band.

        Returns
        -------
        f : ndarray of shape (n_samples,)
        std : ndarray of shape (n_samples,)
            Only with ``return_std=True``. The larger of two: of the estimate (the posterior of the
            last layers, scaled to the level of a jackknife over folds), and of smooth functions of
            the treatments given the instruments, which includes the bias of the estimate.
        """
        rows = self._rows(X, None, C)
        with use_threads(self.n_threads or 1):
            mean = self._model.predict(rows)
            if not return_std:
                return mean
            return mean, self._model.deviation(rows).astype(mean.dtype)

    @default_modes()
    def score(self, X: Any, y: Any, Z: Any = None, C: Any = None, sample_weight: Any = None) -> Any:
        """Coefficient of determination of the projected outcome, or without Z of f(X, C).

        With instruments, ``E[f(X, C) | Z, C]`` is scored. This needs no ground truth, because the
        noise is uncorrelated with it. A search can rank structural functions by this score, as
        far as the instruments identify them. Its maximum is below one if the instruments do not
        explain all of the treatment.

        Parameters
        ----------
        X, y, Z, C, sample_weight
            As in :meth:`fit`.

        Returns
        -------
        float
        """
        y = as_values(as_targets(y), self)
        sample_weight = None if sample_weight is None else as_weights(sample_weight, y)
        rows = self._rows(X, Z, C)
        with use_threads(self.n_threads or 1):
            fitted = self._model.predict(rows) if Z is None else self._model.projected(rows)
        return r2_score(y, fitted, sample_weight=sample_weight)
