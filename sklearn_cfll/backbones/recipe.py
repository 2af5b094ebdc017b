"""From what the user calls a backbone to a module that maps samples to features."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .splitting import (
    Backbone,
    CannotTakeInputs,
    Inputs,
    copy_module,
    keep_whole,
    split_last_layer,
    strip_last_layer,
)

__all__ = ["build_backbone", "cast_module", "input_shape_of", "rebuild_backbone"]

# Named inputs that may be floats or not, of which all combinations are tried.
MAX_COMBINED = 5

BIND = "functools.partial(make, width=32) for a function make(input_shape, width)"


def build_backbone(
    backbone: Any, sample: Inputs, dtype: torch.dtype | None = None, n_outputs: int | None = None
) -> Backbone:
    """Build, or copy, a backbone and split off the last linear layer of a whole network.

    Floats are passed in ``dtype``. Integers stay integers (``torch.int64``) where the network
    takes nothing else, or has an embedding; else they are passed in ``dtype`` too. Among named
    inputs each is passed as it is where the network takes it, truth values (masks) included.

    Parameters
    ----------
    backbone : torch.nn.Module, recipe, or callable
        A module is deep-copied; a recipe has ``build(input_shape)`` and builds a backbone,
        never a whole network; a callable takes ``input_shape``, one sample's shape (a dict of
        shapes for named inputs).
    sample : Tensor of shape (m, ...), or dict of them
        A few rows of input, to see what the module makes of them. A dict for a module whose
        forward takes keyword arguments.
    dtype : torch.dtype, optional
        Floating dtype to compute in; that of ``sample`` where it is left out.
    n_outputs : int, optional
        Number of targets of a sample; see :func:`split_last_layer`.

    Returns
    -------
    Backbone

    Raises
    ------
    TypeError, ValueError
        Where it is none of these, or its output cannot serve as features.
    """
    first = next(iter(sample.values())) if isinstance(sample, dict) else sample
    dtype = first.dtype if dtype is None else dtype
    with _hint_at_an_instance(backbone):
        module = cast_module(_instantiate(backbone, input_shape_of(sample)), first.device, dtype)
    failures = []
    for form in _forms(sample, dtype, as_given=_has_embedding(module)):
        try:
            if _is_recipe(backbone):
                return keep_whole(module, form)
            return split_last_layer(module, form, n_outputs)
        except CannotTakeInputs as error:
            failures.append(error)
    with _hint_at_an_instance(backbone):
        raise _explain(failures, module, sample) from failures[0]


def rebuild_backbone(backbone: Any, sample: Inputs, dtype: torch.dtype, like: Backbone) -> Backbone:
    """The same modules as at fit, untrained: for a state that is loaded into them.

    ``like`` says which layer was split off; its own module is not looked at.
    """
    first = next(iter(sample.values())) if isinstance(sample, dict) else sample
    module = _instantiate(backbone, input_shape_of(sample))
    module = cast_module(module, first.device, dtype)
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        with torch.no_grad():
            module(**sample) if isinstance(sample, dict) else module(sample)
    return like._replace(module=strip_last_layer(module, like.removed, like.channels_first))


def cast_module(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move to a device and a real dtype; complex weights (Fourier layers) stay complex."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, complex_dtype)
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return module._apply(cast)


def _is_recipe(backbone: Any) -> bool:
    return hasattr(backbone, "build") and not isinstance(backbone, type | nn.Module)


def input_shape_of(sample: Inputs) -> Any:
    """Shape of one sample, a dict of shapes for named inputs."""
    if isinstance(sample, dict):
        return {name: tuple(each.shape[1:]) for name, each in sample.items()}
    return tuple(sample.shape[1:])


def _instantiate(backbone: Any, input_shape: Any) -> nn.Module:
    """A module of its own: nothing that is done to it is seen by the user's objects."""
    if isinstance(backbone, nn.Module):
        return copy_module(backbone)
    if _is_recipe(backbone):
        module = backbone.build(input_shape)
    elif callable(backbone):
        module = _call(backbone, input_shape)
    else:
        raise TypeError(
            "`backbone` must be None, a torch.nn.Module, a recipe with a "
            "`build(input_shape)` method, or a callable that returns a module, got "
            f"{backbone!r}."
        )
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`backbone` must build a torch.nn.Module, {backbone!r} built a "
            f"{type(module).__name__}."
        )
    # It may hand out a network that the user keeps. One that cannot be copied is taken as it is.
    with contextlib.suppress(TypeError):
        module = copy_module(module)
    return module


def _call(backbone: Any, input_shape: Any) -> Any:
    """What a callable makes of a sample's shape."""
    try:
        parameters = inspect.signature(backbone).parameters
        takes_shape = _binds(backbone, input_shape)
    except (TypeError, ValueError):  # no signature to be had
        return backbone(input_shape)
    if not takes_shape:
        raise TypeError(
            f"`backbone` {backbone!r} is called with one argument, the shape of a sample, here "
            f"{input_shape}, and does not take that: its arguments are ({', '.join(parameters)})."
            + ("" if isinstance(backbone, type) else f" Bind all others: {BIND}.")
        )
    first = next(iter(parameters.values()), None)
    if (
        isinstance(backbone, type)
        and backbone.__module__.startswith("torch.nn.")
        and (first is None or first.default is not inspect.Parameter.empty)
    ):  # torch's own ReLU would take the shape for `inplace`
        raise TypeError(f"{backbone.__name__}'s argument {first and first.name!r} is no shape.")
    return backbone(input_shape)


def _binds(function: Any, *args: Any) -> bool:
    try:
        inspect.signature(function).bind(*args)
    except TypeError:
        return False
    return True


@contextlib.contextmanager
def _hint_at_an_instance(backbone: Any) -> Iterator[None]:
    """Say what to give in place of a class that is not built from a sample's shape."""
    try:
        yield
    except Exception as error:
        if not isinstance(backbone, type):
            raise
        name = backbone.__name__
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"`backbone` is the class {name}, which was called with a sample's shape: {error} "
            f"Give an instance, {name}(...), or, where the network depends on the shape of X, a "
            f"callable of it: `lambda input_shape: {name}(...)` or functools.partial({name}, ...)."
        ) from error


def _has_embedding(module: nn.Module) -> bool:
    return any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())


def _forms(sample: Inputs, dtype: torch.dtype, *, as_given: bool) -> Iterator[Inputs]:
    """The sample in each combination of dtypes that a network may want, likely ones first."""
    if not isinstance(sample, dict):
        whole = sample.to(dtype)
        if sample.is_floating_point() or sample.dtype == torch.bool:
            yield whole
        else:
            yield from (sample.long(), whole) if as_given else (whole, sample.long())
        return
    kept = {
        name: each if each.dtype == torch.bool else each.long()
        for name, each in sample.items()
        if not each.is_floating_point()
    }
    n = len(kept)
    combinations = set(itertools.product([False, True], repeat=n)) if n <= MAX_COMBINED else set()
    for i in range(n):  # of many: all as they are, none, or all but one
        alone = tuple(j == i for j in range(n))
        combinations |= {alone, tuple(not each for each in alone)}
    combinations |= {(False,) * n, (True,) * n}
    for cast in sorted(combinations, key=lambda cast: (sum(cast), cast)):
        floats = {name for name, wanted in zip(kept, cast, strict=True) if wanted}
        yield {
            name: kept[name] if name in kept and name not in floats else each.to(dtype)
            for name, each in sample.items()
        }


def _explain(
    failures: list[CannotTakeInputs], module: nn.Module, sample: Inputs
) -> CannotTakeInputs:
    """One error for all ways in which the inputs were tried."""
    told = [str(error) for error in failures[:2]]
    message = " ".join(
        told[:1] + [f"Neither did it take them otherwise: {each}" for each in told[1:]]
    )
    floats = isinstance(sample, Tensor) and sample.is_floating_point()
    if floats and _has_embedding(module):
        message += (
            " The network has an embedding, which looks up integers, and X holds floats: give X "
            "in an integer dtype (`X.astype(np.int64)`, `OrdinalEncoder(dtype=np.int64)`), or a "
            "dict of named inputs where only some of them are."
        )
    return CannotTakeInputs(message)
