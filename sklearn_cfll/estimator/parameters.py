"""Constraints and documentation of the parameters that the estimators share."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import torch

from .._compat import Interval, InvalidParameterError, StrOptions
from .._validation import Choice, RealInterval
from ..backbones.mlp import ACTIVATIONS
from ..columns.encoder import ColumnEncoder
from ..heads.memory import MEMORIES
from ..training.distribution import told_to_all
from ..training.optimizers import OPTIMIZERS
from ..training.schedules import SCHEDULES
from ..training.update_orders import UPDATE_ORDERS
from .defaults import DEFAULTS

__all__ = ["CONSTRAINTS", "Auto", "CheckedParameters", "Precision", "Schedule", "shared_docs"]

# Types of parameters; "auto" is resolved by the table of defaults.
Auto = Literal["auto"]
Precision = Literal["auto", "float32", "float64", "bf16"]
Schedule = Literal["auto", "cosine", "constant", "linear", "one_cycle"]

CONSTRAINTS: dict[str, Any] = {
    "backbone": "no_validation",  # build_backbone validates it
    "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "activation": [Choice(ACTIVATIONS)],
    "dropout": [RealInterval(0, 1, closed="left")],
    "n_members": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "columns": [ColumnEncoder, StrOptions({"passthrough"}), None],
    "categorical_features": ["array-like", Integral, str, None],
    "ridge": [RealInterval(0, None, closed="left"), StrOptions({"auto"})],
    "decay": [RealInterval(0, 1, closed="both")],
    "memory": [Choice(MEMORIES)],
    "update_order": [Choice(UPDATE_ORDERS)],
    "optimizer": [Choice(OPTIMIZERS), type],
    "learning_rate": [RealInterval(0, None, closed="neither"), StrOptions({"auto"})],
    "weight_decay": [RealInterval(0, None, closed="left"), StrOptions({"auto"})],
    "learning_rate_schedule": [StrOptions({*SCHEDULES, "auto"})],
    "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto", "full"})],
    "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "cross_fit": ["boolean", StrOptions({"auto"})],
    "early_stopping": ["boolean", StrOptions({"auto"})],
    "validation_fraction": [RealInterval(0, 1, closed="left"), StrOptions({"auto"})],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [RealInterval(0, None, closed="left")],
    "refit_last_layer": ["boolean"],
    "local_part": ["boolean"],
    "device": [str, torch.device],
    "precision": [StrOptions({"auto", "float32", "float64", "bf16"})],
    "compile": ["boolean"],
    "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    "callbacks": [list, None],
    "warm_start": ["boolean"],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}

PARAMETERS = """backbone : None, torch.nn.Module, recipe or callable, default=None
        Network that computes the features. None is the
        :class:`~sklearn_cfll.backbones.MLPBackbone` that the next four parameters describe. A
        module is copied at fit. A callable takes ``input_shape``, the shape of one sample, and
        returns a module (bind options with ``functools.partial(make, width=32)``). A recipe, such
        as :class:`~sklearn_cfll.backbones.FNOBackbone`, has a method ``build(input_shape)`` and
        its own parameters (``backbone__...`` in a grid). If a network ends in an ``nn.Linear`` or a
        convolution with kernel size 1, that layer is split off and replaced; a softmax after it is
        an error. Inputs are passed as floats; integers stay integers (``torch.int64``) if the
        network does not accept floats (``nn.Embedding``). If X is a dict of arrays, they are passed
        as keyword arguments to the network's forward.
    hidden_layer_sizes : int or tuple of int, default={sizes}
        Widths of the hidden layers of the perceptron; the last is the number of features.
    activation : {{"relu", "tanh", "silu", "gelu", "elu", "identity"}}, default="relu"
        Activation function of the perceptron.
    dropout : float, default=0.0
        Dropout rate between the hidden layers of the perceptron.
    n_members : int or "auto", default="auto"
        Number of networks that are trained side by side on the same batches, each with its own last
        layer; their predictions are averaged. "auto" is {n_members} perceptrons of the sizes above,
        or the one network of a ``backbone``. With a number, a module is copied with its weights,
        and a callable or recipe is built that many times.
    columns : ColumnEncoder, "passthrough" or None, default=None
        What the network sees of the columns of X. None is ``{columns}`` before a perceptron, and
        "passthrough" before other networks: they receive X unchanged, so that integers stay
        integers. A perceptron with a layer of one unit gets no bins{few_rows}. A
        :class:`~sklearn_cfll.ColumnEncoder` may stand before any network on tables. To search over
        its parameters (``columns__n_bins`` in a grid), pass it: None has none.
    categorical_features : "from_dtype", array-like or None, default="from_dtype"
        Which columns of a table are categories, if its columns are encoded. "from_dtype": columns
        of a frame whose dtype is a category or text, and text in arrays of objects; text in arrays
        that is a number in every row is a number. Otherwise names of columns, indices, or a mask;
        None for no column. Levels have no order, unless the dtype says so.
    ridge : float or "auto", default="auto"
        Strength of the penalty towards the previous weights (or moments, see ``memory``), relative
        to the mean feature power. With a small value the last layer fits each batch, with a large
        one it averages over many. "auto" is ``{per_feature} * d * min(1, d / batch_size) ** 2`` for
        networks with d features each, {alone}. With fewer than 40
        training rows it is that of a single network, and batches count as at most 40 rows. It is at
        least 0.1 for fields, where each sample has many rows, and 0.01 in full batches, where it is
        the ridge penalty itself. The final solve chooses its own ridge (``final_ridge_``).
    decay : float, default=1.0
        Fraction of the earlier information that is kept at each batch: 1 is the paper's proximal
        update, 0 ignores earlier batches.
    memory : {{"proximal", "statistics"}}, default="proximal"
        Memory of the last layer: its previous weights, or decayed moments of all rows seen (with
        ``decay=1``, the exact ridge fit to them while the backbone is frozen).
    update_order : {{"last_layer_first", "backbone_first"}}, default="last_layer_first"
        Which part is updated first on each batch. "backbone_first" is the paper's algorithm and
        takes a second forward pass. "last_layer_first" is cheaper and, with the final refit, was as
        good or better on most tasks.
    optimizer : {{"adamw", "adam", "sgd", ...}} or torch.optim.Optimizer class, default="adamw"
        Optimiser of the backbone.
    learning_rate : float or "auto", default="auto"
        Learning rate at the start of the schedule. "auto" is 0.02, and {field_rate} if each sample
        has positions (fields, in regression). Two to ten times the learning rate of Adam on all
        layers is stable, because the last layer is re-solved on every batch. On tables, 0.03 had a
        lower validation error than 0.003 and 0.01 on five of six tasks (benchmarks/tuned.py); the
        rate for fields was tuned with Fourier neural operators (benchmarks/fields.py).
    weight_decay : float or "auto", default={weight_decay}
        Weight decay of the backbone, as the optimiser defines it. With "auto", for a perceptron
        with AdamW, the decay alone would shrink the weights by exp(-3) over ``max_epochs`` (by less
        in a few steps); it is 0 otherwise.
    learning_rate_schedule : {{"auto", "cosine", "constant", "linear", "one_cycle"}}, default="auto"
        Learning-rate schedule over ``max_epochs``, updated at each step. "auto" is "cosine", and
        "one_cycle" (10% warm-up, then a cosine) if each sample has positions (fields, in
        regression).
    batch_size : int, "auto" or "full", default={batch_size}
        Samples per batch; batch sizes differ by at most one. "auto" is, for a perceptron, an eighth
        of the training rows, at least 256 and at most 1,024; {field_batch} if each sample has
        positions (fields, in regression); 256 for other networks. "full" is the deterministic
        method: all rows form one batch, and the last layer is their exact ridge fit at every step.
    max_epochs : int or "auto", default="auto"
        Maximum number of passes over the training rows. "auto" is {max_epochs}, and {field_epochs}
        if each sample has positions (fields, in regression).
    cross_fit : bool or "auto", default="auto"
        Whether each of the networks ("members") holds out its own fold of the rows, instead of one
        part of them for all. Together they are then trained on all rows, and every row has a
        prediction by a member that never saw it (:attr:`oof_prediction_`). These predictions choose
        the epoch, one for all members, and the final ridge, and say how large errors are. There are
        as many folds as members, at most ten; they are stratified by class, or by y, and keep the
        rows of a group together. Of fewer than 40 rows, those with the same inputs share a fold,
        and copies count as one row of their weight. "auto" is False for fewer than four members, if
        no rows are held out (see ``early_stopping``), if ``X_val`` is passed, or if
        ``validation_fraction`` is a number; else True.
    early_stopping : bool or "auto", default="auto"
        Whether to hold rows out, monitor their loss and keep the best epoch. "auto" is True from 40
        rows on, and with ``cross_fit`` from ten rows of different inputs on. Without held-out rows
        there are no standard deviations, intervals or out-of-fold scores.
    validation_fraction : float or "auto", default="auto"
        Fraction of the rows to hold out, the same for all members. "auto" is a tenth; for fewer
        than 400 rows it is 40 rows or a quarter, whichever is less. A number switches ``cross_fit``
        off if that is "auto", and has no effect if it is True.
    n_iter_no_change : int, default={patience}
        Number of epochs without improvement of the loss of the held-out rows before training stops.
    tol : float, default=0.0
        Smallest decrease of the validation loss that counts as an improvement.
    refit_last_layer : bool, default=True
        Whether to finish with an exact ridge fit of the last layer on all rows, in evaluation mode.
        Its ridge is chosen on held-out rows if there are any, else by generalised cross-validation
        on the training rows.
    local_part : bool, default=True
        Whether to add a kernel smoother of the out-of-fold residuals to the predictions, if it
        lowers the leave-one-out error of these residuals clearly (by 2.5 standard errors, and by
        half a percent). It finds what rows share that are very near each other, such as repeated
        measurements; ``resolved_["local_part"]`` says whether it was added. The model then holds
        the rows (at most 32,768), and predicts more slowly. It requires cross-fitted members,
        encoded ``columns``, 500 rows, all in one process, and no ``groups``. Rows that are added
        later do not change it.
    {own}
    device : str or torch.device, default="auto"
        "auto" is CUDA if available, else the CPU.
    precision : {{"auto", "float32", "float64", "bf16"}}, default="auto"
        "auto" is float64 up to 300 rows on a CPU, and if float32 is too coarse for the targets, or
        for the columns that your own ``backbone`` receives unscaled; else float32. Predictions have
        the precision of the computation, or float64 if float32 cannot hold y. "bf16" is float32
        with the backbone's products in bfloat16 (:class:`torch.autocast`): for large networks on
        hardware that has it. Features, and so predictions, have about three digits then; the last
        layer is still solved in float32 and float64. :meth:`to_torch` computes in float32.
    compile : bool, default=False
        Whether to compile the backbone with ``torch.compile``.
    n_threads : int, default=None
        Number of CPU threads of fit and predict. None is one thread, unless the network's products
        are so large (2e9 multiply-adds, far more than in the default networks) that several threads
        pay off even if other processes keep the cores busy; then it is ``torch.get_num_threads()``.
        On idle cores more threads may be faster from some thousand rows on and for networks on
        images and fields. The caller's setting is restored afterwards. Another number of threads
        changes results by rounding.
    callbacks : list of skorch callbacks, default=None
        Called during training, as in skorch, such as those of ``sklearn_cfll.training``.
    warm_start : bool, default=False
        Whether ``fit`` continues from the previous fit. Training parameters that were changed in
        between (the optimiser, rates, penalties, ``memory``, batch and epochs) take effect, as in
        ``partial_fit``. A change of the network, ``columns``, ``precision``, ``normalize_y`` or
        ``linear_part`` raises an error; ``device``, ``compile`` and ``random_state`` take effect
        at the next fit from scratch.
    random_state : int, RandomState instance or None, default=None
        Controls the initial weights, shuffling, dropout and the held-out rows. The global random
        states are not used: None takes fresh entropy from the operating system, so
        ``numpy.random.seed`` and ``torch.manual_seed`` do not make a fit reproducible; an int does.
    verbose : int, default=0
        1 shows a progress bar, 2 skorch's table."""

ATTRIBUTES = """backbone_ : torch.nn.Module
        The trained backbone.
    columns_ : dict of str
        How each column of a table is used, in words, by its name or index: "number", or "category
        of 51 levels".
    feature_importances_ : ndarray of shape (n_features_in_,)
        Influence of each column on the predictions: their variance over the training rows along all
        that the network sees of the column, to first order. They sum to one. Columns along which
        the predictions are curved count for more than their share:
        :func:`sklearn.inspection.permutation_importance` does not overstate them. Only available if
        X is a table.
    last_layer_coef_ : ndarray of shape (n_outputs_, d)
        Weights of the last layer on :meth:`features`, in y's units.
    last_layer_intercept_ : ndarray of shape (n_outputs_,)
    final_ridge_ : float
        Ridge of the final solve; it differs from the ``ridge`` of training.
    resolved_ : dict
        Settings of the last run, with every "auto" replaced by its value (ridge, learning rate,
        weight decay, batch size, epochs, precision ...).
    ridge_path_ : dict
        "ridge" and "error": mean squared error on the held-out rows for every ridge tried in the
        final solve (of cross-fitted members: of each on its fold). Only available if rows are held
        out and ``refit_last_layer=True``.
    decay_ : float
        Decay used in training.
    noise_variance_ : ndarray of shape (n_outputs_,)
        Mean squared residual on the held-out rows, if there are any (with cross-fitted members less
        the variance between them, which their mean does not have); else on the training rows, where
        it is too small.
    oof_prediction_ : ndarray of y's shape at fit
        Prediction of each row by the members that held it out. Only available with cross-fitted
        members.
    oof_score_ : float
        :meth:`score` to be expected on new rows, from :attr:`oof_prediction_`. It
        compares settings without cross-validation. Only available with cross-fitted members.
        {oof_score}
    history_ : list of dict
        Per epoch: epoch, train_loss, valid_loss, learning_rate, seconds.
    n_iter_ : int
        Number of epochs trained.
    best_iteration_ : int
        The epoch that was kept.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Only available if X has column names.
    n_outputs_ : int
    device_ : torch.device
    net_ : CFLLNet
        The underlying skorch net."""


def shared_docs(**own: Any) -> Any:
    """Fill the shared parameters and attributes into a class docstring."""

    def fill(cls: type) -> type:
        if cls.__doc__:  # stripped under python -OO
            fields = {
                "field_rate": DEFAULTS.field_learning_rate,
                "field_epochs": DEFAULTS.field_epochs,
                "field_batch": DEFAULTS.field_batch,
            }
            parameters = PARAMETERS.format(**own, **fields)
            attributes = ATTRIBUTES.format(**own)
            cls.__doc__ = cls.__doc__.replace("{parameters}", parameters).replace(
                "{attributes}", attributes
            )
        return cls

    return fill


class CheckedParameters:
    """Mixin that names mistaken parameters."""

    columns: Any

    def set_params(self, **params: Any) -> Any:
        """Set parameters; those of ``columns`` require a `ColumnEncoder`.

        Parameters
        ----------
        **params
            As in scikit-learn, ``columns__n_bins=8`` sets a parameter of a parameter.

        Returns
        -------
        self
        """
        columns = params.get("columns", self.columns)
        inner = [name for name in params if name.startswith("columns__")]
        if inner and not isinstance(columns, ColumnEncoder):
            raise ValueError(
                f"`{inner[0]}` is a parameter of a ColumnEncoder, but `columns` is {columns!r}. "
                "Pass one: `columns`=ColumnEncoder(...)."
            )
        parent: Any = super()
        return parent.set_params(**params)

    def _validate_params(self) -> None:
        parent: Any = super()
        with told_to_all():
            refuse_mistaken_kinds(self)
            parent._validate_params()


def refuse_mistaken_kinds(estimator: Any) -> None:
    """Raise for invalid optimisers and callbacks, and name a valid alternative."""
    optimizer = getattr(estimator, "optimizer", None)
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer)
        known = {each: name for name, each in OPTIMIZERS.items()}
        given = f'optimizer="{known[kind]}"' if kind in known else f"optimizer={kind.__name__}"
        raise InvalidParameterError(
            f"The 'optimizer' parameter of {type(estimator).__name__} is an instance of "
            f"{kind.__name__}, whose parameters are not those of the copy of the backbone that is "
            f"trained. Pass its name or class, {given}; `learning_rate` and `weight_decay` are "
            "parameters of the estimator."
        )
    if callable(optimizer) and not isinstance(optimizer, type):
        raise InvalidParameterError(
            f"The 'optimizer' parameter of {type(estimator).__name__} must be a name or a class, "
            f"got {optimizer!r}. To set options of an optimiser, define a subclass of it."
        )
    callbacks = getattr(estimator, "callbacks", None)
    for callback in callbacks if isinstance(callbacks, list) else ():
        named = isinstance(callback, tuple) and len(callback) == 2
        part = callback[1] if named else callback
        if not (isinstance(part, type) or hasattr(part, "on_train_begin")):
            raise InvalidParameterError(
                f"The 'callbacks' parameter of {type(estimator).__name__} must hold skorch "
                f"callbacks or (name, callback) pairs, got {callback!r}."
            )
