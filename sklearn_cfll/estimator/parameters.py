"""One source for the parameters that the estimators share: what is legal, what they mean."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

from .._compat import Interval, InvalidParameterError, Options, StrOptions
from ..backbones.mlp import ACTIVATIONS
from ..backbones.parameters import RealInterval
from ..heads.closed_form import MEMORIES
from ..training.optimizers import OPTIMIZERS
from ..training.schedules import SCHEDULES
from ..training.steps import UPDATE_ORDERS
from .defaults import DEFAULTS

__all__ = ["CONSTRAINTS", "refuse_mistaken_kinds", "shared_docs"]

CONSTRAINTS: dict[str, Any] = {
    "backbone": "no_validation",  # build_backbone says what is wrong with it
    "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "activation": [StrOptions(set(ACTIVATIONS))],
    "dropout": [RealInterval(0, 1, closed="left")],
    "n_bins": [Options(Integral, {0}), Interval(Integral, 2, None, closed="left")],
    "n_members": [Interval(Integral, 1, None, closed="left")],
    "spread_columns": ["boolean"],
    "scale_columns": ["boolean"],
    "ridge": [RealInterval(0, None, closed="left"), StrOptions({"auto"})],
    "decay": [RealInterval(0, 1, closed="both")],
    "memory": [StrOptions(set(MEMORIES))],
    "update_order": [StrOptions(set(UPDATE_ORDERS))],
    "optimizer": [StrOptions(set(OPTIMIZERS)), type],
    "learning_rate": [RealInterval(0, None, closed="neither"), StrOptions({"auto"})],
    "weight_decay": [RealInterval(0, None, closed="left"), StrOptions({"auto"})],
    "learning_rate_schedule": [StrOptions({*SCHEDULES, "auto"})],
    "batch_size": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto", "full"})],
    "max_epochs": [Interval(Integral, 1, None, closed="left"), StrOptions({"auto"})],
    "early_stopping": ["boolean", StrOptions({"auto"})],
    "validation_fraction": [RealInterval(0, 1, closed="left"), StrOptions({"auto"})],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "tol": [RealInterval(0, None, closed="left")],
    "refit_last_layer": ["boolean"],
    "device": [str, torch.device],
    "precision": [StrOptions({"auto", "float32", "float64"})],
    "compile": ["boolean"],
    "n_threads": [Interval(Integral, 1, None, closed="left"), None],
    "callbacks": [list, None],
    "warm_start": ["boolean"],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}

PARAMETERS = """backbone : None, torch.nn.Module, recipe or callable, default=None
        What computes the features. None is a multilayer perceptron from the next seven
        parameters, with inputs standardised inside. A module is copied at fit; a callable
        takes ``input_shape``, the shape of one sample, and returns a module (options are bound
        by ``functools.partial(make, width=32)``); a recipe has ``build(input_shape)`` and
        parameters of its own (``backbone__...`` in a grid), as
        :class:`~sklearn_cfll.backbones.MLPBackbone`. Where a network ends in an
        ``nn.Linear`` or a convolution with kernel 1, that layer is split off and replaced; a
        softmax after it is an error. Inputs are passed as floats; integers stay integers
        (``torch.int64``) where the network refuses floats (``nn.Embedding``). A dict of arrays
        as X is passed as keyword arguments of the network's forward.
    hidden_layer_sizes : tuple of int, default={sizes}
        Widths of the perceptron; the last is the number of features.
    activation : {{"relu", "tanh", "silu", "gelu", "elu", "identity"}}, default="relu"
        Of the perceptron.
    dropout : float, default=0.0
        Of the perceptron, between its hidden layers.
    n_bins : int, default={n_bins}
        Of the perceptron: half of each layer's units are a network of their own that sees the
        columns cut into this many bins of equal weight (piecewise linear encoding), the other
        half the columns as they are. A column of few values (up to four times as many, of 16
        rows each on average) is cut at every value: codes of categories may stand in any order.
        0 or 1: one network on the columns as they are.
    n_members : int, default={n_members}
        Perceptrons that are trained side by side on the same batches, each with a last layer of
        its own; the mean of their predictions is the model's. All have the sizes above.
    spread_columns : bool, default={spread_columns}
        Of the perceptron: columns whose middle half is narrow beside their tails (lognormal ones,
        counts that are mostly zero) are replaced by their normal scores, a quantile transform.
        Bins tell apart the values of such columns too.
    scale_columns : bool, default=True
        Of the perceptron, with 75 training rows or more beside held-out ones: multiply columns,
        once standardised, by how much predictions move along them, as far as two short runs on
        halves of the rows agree; both are undone. Columns that say nothing about y then disturb
        less.
    ridge : float or "auto", default="auto"
        Pull of the last layer towards its memory, relative to the mean feature power.
        Small follows each batch, large averages over many. "auto" is
        ``0.12 * d * min(1, d / batch_size) ** 2`` for a network of d features: 30 where d is
        256 in batches of 256, 0.5 where it is 64; fewer than 40 training rows count as a batch of
        40; 0.1 for fields, where each sample has many rows; and 0.01 in full batches, where it is
        the ridge penalty itself.
    decay : float, default=1.0
        Share of the earlier information that survives a batch: 1 is the paper's proximal
        update, 0 forgets.
    memory : {{"proximal", "statistics"}}, default="proximal"
        What the last layer remembers: its last weights, or decayed moments of all rows
        seen (with ``decay=1`` the exact ridge fit to them while the backbone rests).
    update_order : {{"last_layer_first", "backbone_first"}}, default="last_layer_first"
        Which moves first on each batch. "last_layer_first" is cheaper and, with the final
        refit, was as good or better on most tasks; "backbone_first" is the paper's
        algorithm and takes a second forward pass.
    optimizer : {{"adamw", "adam", "sgd", ...}} or torch.optim.Optimizer class, default="adamw"
        Of the backbone.
    learning_rate : float or "auto", default="auto"
        Of the optimiser, at the start of the schedule. "auto" is 0.02, and {field_rate} where each
        sample has positions (fields, in regression). Two to ten times what Adam on all layers takes
        is stable, because the last layer is solved again on every batch. On tables 0.03 had a lower
        validation error than 0.003 and 0.01 on five of six tasks (benchmarks/tuned.py); the rate of
        fields was found with Fourier neural operators (benchmarks/fields.py).
    weight_decay : float or "auto", default={weight_decay}
        Of the backbone, as the optimiser defines it. "auto": for a perceptron under AdamW what
        shrinks its weights by exp(-3) in ``max_epochs``, were it not for their gradients (of few
        steps, less); 0 for others.
    learning_rate_schedule : {{"auto", "cosine", "constant", "linear", "one_cycle"}}, default="auto"
        Over ``max_epochs``, step by step. "auto" is "cosine", and "one_cycle" (ten per cent of
        warm-up, then a cosine) where each sample has positions (fields, in regression).
    batch_size : int, "auto" or "full", default={batch_size}
        Rows a batch, spread evenly. "auto": for a perceptron an eighth of the training rows, 256
        at least and 1,024 at most; {field_batch} samples where each has positions (fields, in
        regression); 256 for others. "full" is the deterministic method: all rows in one batch, the
        last layer their exact ridge fit at every step.
    max_epochs : int or "auto", default="auto"
        Passes over the training rows. "auto" is {max_epochs}, and {field_epochs} where each sample
        has positions (fields, in regression).
    early_stopping : bool or "auto", default="auto"
        Hold rows out, watch their loss, keep the best epoch. "auto": from 40 rows on.
    validation_fraction : float or "auto", default="auto"
        Share of the rows held out. "auto" is a tenth, of fewer than 400 rows 40 of them or a
        quarter, whichever is less.
    n_iter_no_change : int, default={patience}
        Epochs without improvement of the held-out loss before training stops.
    tol : float, default=0.0
        Improvement that counts.
    refit_last_layer : bool, default=True
        Finish with an exact ridge fit of the last layer on all rows, in evaluation mode,
        its ridge chosen on held-out rows where there are any, else by generalised
        cross-validation on the training rows.
    {own}
    device : str or torch.device, default="auto"
        "auto" is CUDA where there is one, else the CPU.
    precision : {{"auto", "float32", "float64"}}, default="auto"
        "auto" is float64 up to 300 rows on a CPU, and where targets, or the columns that a
        ``backbone`` of your own sees as they are, would be blurred by float32; else float32.
        Predictions come in the precision they were computed in, in float64 where float32 cannot
        hold y.
    compile : bool, default=False
        Compile the backbone by ``torch.compile``.
    n_threads : int, default=None
        Threads that fit and predict compute with on the CPU. None is one thread, unless the
        network's products are so large (2e9 multiply-adds, far above those of the default
        networks) that sharing them pays also where other processes keep the cores busy; then it
        is ``torch.get_num_threads()``. On cores of your own more threads may be faster, from some
        thousand rows on and for networks on images and fields. The caller's number is put back
        afterwards; another number moves results by rounding.
    callbacks : list of skorch callbacks, default=None
    warm_start : bool, default=False
        Let ``fit`` go on from the previous one. Settings of the training that were changed in
        between (the optimiser, rates, penalties, ``memory``, batch and epochs) take effect, as
        they do in ``partial_fit``. A change of the network, ``precision``, ``normalize_y`` or
        ``linear_part`` raises an error; ``device``, ``compile`` and ``random_state`` take effect
        at the next fit that starts anew.
    random_state : int, RandomState instance or None, default=None
        Initial weights, shuffling, dropout and the held-out rows. The global random states
        are left alone: None takes fresh entropy from the operating system, so that
        ``numpy.random.seed`` and ``torch.manual_seed`` do not make a fit repeatable; an int does.
    verbose : int, default=0
        1 shows a progress bar, 2 skorch's table."""

ATTRIBUTES = """backbone_ : torch.nn.Module
        The trained backbone.
    feature_importances_ : ndarray of shape (n_features_in_,)
        Mean squared slope of the predictions along each input column over the training rows, in
        units of the columns' standard deviations; sums to one. Where X is a table.
    last_layer_coef_ : ndarray of shape (n_outputs_, d)
        Weights of the last layer on :meth:`features`, in y's units.
    last_layer_intercept_ : ndarray of shape (n_outputs_,)
    final_ridge_ : float
        Ridge of the final solve: another number than the ``ridge`` of training.
    resolved_ : dict
        What the last run went by: the numbers that every "auto" stood for (ridge, learning rate,
        weight decay, batch size, epochs, precision ...).
    ridge_path_ : dict
        "ridge", "error": mean squared error of the held-out rows for every ridge tried in the
        final solve. Where rows are held out and ``refit_last_layer=True``.
    decay_ : float
        Decay in force while training.
    noise_variance_ : ndarray of shape (n_outputs_,)
        Mean squared residual, of held-out rows where there are any; of training rows it is too
        small.
    history_ : list of dict
        Per epoch: epoch, train_loss, valid_loss, learning_rate, seconds.
    n_iter_ : int
        Epochs trained.
    best_iteration_ : int
        The epoch that was kept.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Where X had column names.
    n_outputs_ : int
    device_ : torch.device
    net_ : CFLLNet
        The skorch net inside."""


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
            cls.__doc__ = cls.__doc__.replace("{parameters}", parameters).replace(
                "{attributes}", ATTRIBUTES
            )
        return cls

    return fill


def refuse_mistaken_kinds(estimator: Any) -> None:
    """Say what to give in place of an optimiser that is none, or of callbacks that are none."""
    optimizer = getattr(estimator, "optimizer", None)
    if isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer)
        known = {each: name for name, each in OPTIMIZERS.items()}
        given = f'optimizer="{known[kind]}"' if kind in known else f"optimizer={kind.__name__}"
        raise InvalidParameterError(
            f"The 'optimizer' parameter of {type(estimator).__name__} is an instance of "
            f"{kind.__name__}, which holds other parameters than those of the copy of the backbone "
            f"that is trained. Give its name or class, {given}; `learning_rate` and "
            "`weight_decay` are parameters of the estimator."
        )
    if callable(optimizer) and not isinstance(optimizer, type):
        raise InvalidParameterError(
            f"The 'optimizer' parameter of {type(estimator).__name__} must be a name or a class, "
            f"got {optimizer!r}. Options of an optimiser are bound by a subclass of it."
        )
    callbacks = getattr(estimator, "callbacks", None)
    for callback in callbacks if isinstance(callbacks, list) else ():
        named = isinstance(callback, tuple) and len(callback) == 2
        part = callback[1] if named else callback
        if not (isinstance(part, type) or hasattr(part, "on_train_begin")):
            raise InvalidParameterError(
                f"The 'callbacks' parameter of {type(estimator).__name__} holds skorch callbacks, "
                f"or pairs of a name and one; got {callback!r}."
            )
