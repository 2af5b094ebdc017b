"""Table of parameters without effect in combination with others, and the warning for them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .._warnings import user_level
from ..backbones.mlp import MLPBackbone
from ..training.optimizers import optimizer_class

__all__ = ["changed_parameters", "warn_of", "warn_of_fixed_features", "warn_without_effect"]

# Values that switch an option off, so that no warning is needed with any backbone.
OFF: dict[str, tuple[Any, ...]] = {
    "dropout": (0,),
    "linear_part": (False, "auto"),
    "validation_fraction": (0,),
}


class Rule(NamedTuple):
    """Parameters, the condition under which they have no effect, and the end of the warning."""

    names: tuple[str, ...]
    applies: Callable[[Any, Any], bool]
    reason: str


class Situation(NamedTuple):
    """Facts about a fit besides its parameters."""

    holds_out: bool  # some of the training rows are held out
    given: bool  # X_val and y_val were passed
    stream: bool = False  # the model is begun by `partial_fit`
    crosses: bool = False  # each member holds out its own fold


RULES = (
    Rule(
        ("hidden_layer_sizes", "activation", "dropout"),
        lambda est, _: est.backbone is not None,
        "together with a `backbone`: it describes the default perceptron. Set it on the backbone, "
        "or omit the backbone.",
    ),
    Rule(
        ("linear_part",),
        lambda est, _: est.backbone is not None and not isinstance(est.backbone, MLPBackbone),
        "together with a `backbone` other than MLPBackbone.",
    ),
    Rule(
        ("linear_part",),
        lambda est, fit: fit.stream and getattr(est, "linear_part", None) is True,
        "in `partial_fit` without a previous `fit`: later rows would change it.",
    ),
    Rule(
        ("decay",),
        lambda est, _: est.batch_size == "full",
        'with `batch_size`="full": each batch holds all rows, and no memory is kept.',
    ),
    Rule(
        ("early_stopping",),
        lambda est, fit: est.early_stopping is True and not fit.holds_out and not fit.given,
        "with `validation_fraction`=0: no rows are held out.",
    ),
    Rule(
        ("n_iter_no_change", "tol"),
        lambda est, fit: est.early_stopping is False or not (fit.holds_out or fit.given),
        "without early stopping: `early_stopping` is False, `validation_fraction` is "
        "0, or there are too few rows (fewer than 10, or than 40 without cross-fitting).",
    ),
    Rule(
        ("validation_fraction",),
        lambda _, fit: fit.crosses,
        "with `cross_fit`=True: every row is held out once.",
    ),
    Rule(
        ("validation_fraction",),
        lambda _, fit: fit.given,
        "together with `X_val` and `y_val`, which are used instead.",
    ),
    Rule(
        ("validation_fraction",),
        lambda _, fit: not fit.holds_out and not fit.given,
        'because no rows are held out: `early_stopping` is False, or "auto" with few rows (fewer '
        "than 10, or than 40 without cross-fitting).",
    ),
    Rule(
        ("weight_decay",),
        lambda est, _: (
            "weight_decay" not in inspect.signature(optimizer_class(est.optimizer)).parameters
        ),
        "with an `optimizer` that has no weight decay.",
    ),
)

OF_TRAINING = ("optimizer", "learning_rate", "learning_rate_schedule", "weight_decay")


def warn_without_effect(
    estimator: Any,
    *,
    holds_out: bool,
    given: bool,
    stream: bool = False,
    crosses: bool = False,
) -> None:
    """Warn about changed parameters without effect; raise if two contradict each other.

    Parameters
    ----------
    estimator : estimator
        Estimator with valid parameters.
    holds_out : bool
        Whether rows are held out by ``validation_fraction``.
    given : bool
        Whether ``X_val`` and ``y_val`` were passed.
    stream : bool, default=False
        Whether the model is begun by ``partial_fit``.
    crosses : bool, default=False
        Whether each member holds out its own fold.
    """
    own = getattr(estimator.backbone, "n_members", None)
    changed = dict(changed_parameters(estimator))
    default = inspect.signature(type(estimator).__init__).parameters["n_members"].default
    if own is not None and estimator.n_members not in (default, own):
        raise ValueError(
            f"`n_members`={estimator.n_members} was given with `backbone`={estimator.backbone!r}, "
            f"which has its own n_members={own}. Set it on the backbone only."
        )
    situation = Situation(holds_out, given, stream, crosses)
    for rule in RULES:
        if rule.applies(estimator, situation):
            warn_of([name for name in rule.names if name in changed], changed, rule.reason)


def warn_of_fixed_features(estimator: Any, *, holds_out: bool) -> None:
    """Warn about training parameters if the backbone has no weights to train.

    The fit is then only the final solve, whose ridge is chosen on held-out rows if there are any.
    """
    changed = dict(changed_parameters(estimator))
    solved: tuple[str, ...] = ("decay", "update_order", "batch_size", "n_iter_no_change", "tol")
    solved = (*solved, "ridge") if holds_out else solved
    parameters = (*OF_TRAINING, *(solved if estimator.refit_last_layer else ()))
    names = [name for name in parameters if name in changed]
    warn_of(names, changed, "because the backbone has no parameters to train.")


def warn_of(names: list[str], values: dict[str, Any], reason: str) -> None:
    if not names:
        return
    listed = ", ".join(f"`{name}`={values[name]!r}" for name in names)
    has = "has" if len(names) == 1 else "have"
    warnings.warn(f"{listed} {has} no effect {reason}", UserWarning, stacklevel=user_level())


def changed_parameters(estimator: Any) -> Iterator[tuple[str, Any]]:
    """Parameters that differ from their defaults and are not switched off."""
    for name, parameter in inspect.signature(type(estimator).__init__).parameters.items():
        value = getattr(estimator, name, parameter.default)
        if parameter.default is parameter.empty or value is parameter.default:
            continue
        off = any(value is known or _same(value, known) for known in OFF.get(name, ()))
        if not off and not _same(value, parameter.default):
            yield name, value


def _same(value: Any, other: Any) -> bool:
    """Equality of settings; arrays and lists are compared as tuples."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | range):
        value = tuple(value)
    return type(value == other) is bool and value == other
