"""Turn the user's backbone into a module that maps samples to features."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Iterator
from typing import Any, TypeVar

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

__all__ = ["build_backbone", "cast_module", "input_shape_of", "kept_recipe"]
__all__ += ["rebuild_backbone", "takes_generator"]

Module = TypeVar("Module", bound=nn.Module)
# Up to this number of named inputs with several possible dtypes, all combinations are tried.
MAX_COMBINED = 10


def build_backbone(
    backbone: Any,
    sample: Inputs,
    dtype: torch.dtype | None = None,
    n_outputs: int | None = None,
    *,
    exact: bool = True,
    **options: Any,
) -> Backbone:
    """Build or copy a backbone, and split off the last linear layer of a whole network.

    Inputs are passed as floats of ``dtype``. Integers, and whole numbers in floats, are passed as
    integers (``torch.int64``) if the network rejects floats because it looks them up. Booleans
    among named inputs (masks) are unchanged if the network accepts them.

    Parameters
    ----------
    backbone : torch.nn.Module, recipe, or callable
        A module is deep-copied; a recipe has ``build(input_shape)`` and builds a backbone,
        never a whole network; a callable takes ``input_shape``, one sample's shape (a dict of
        shapes for named inputs).
    sample : Tensor of shape (m, ...), or dict of them
        A few rows of input, on which the module is tried. A dict for a module whose
        forward takes keyword arguments.
    dtype : torch.dtype, optional
        Floating dtype of the computation; default that of ``sample``.
    n_outputs : int, optional
        Number of targets per sample; see :func:`split_last_layer`.
    exact : bool, default=True
        Whether floats of ``dtype`` represent all integers exactly. If not, integers are tried
        first.
    **options
        ``generator`` and ``widths``, for a recipe whose ``build`` takes them.

    Returns
    -------
    Backbone

    Raises
    ------
    TypeError, ValueError
        If ``backbone`` is none of these, or if its output cannot be used as features.
    """
    first = next(iter(sample.values())) if isinstance(sample, dict) else sample
    dtype = first.dtype if dtype is None else dtype
    with _hint_at_an_instance(backbone):
        module = _instantiate(backbone, input_shape_of(sample), options)
        module = cast_module(module, first.device, dtype)
    failures = []
    for form in _forms(sample, dtype, exact):
        try:
            if _is_recipe(backbone):
                return keep_whole(module, form)
            return split_last_layer(module, form, n_outputs)
        except CannotTakeInputs as error:
            failures.append(error)
    with _hint_at_an_instance(backbone):
        raise _explain(failures, module, sample) from failures[0]


def kept_recipe(backbone: Any) -> Any:
    """A copy of the user's backbone that is independent of later changes to the original.

    The copy of a module shares its tensors with the original: only the structure is needed to
    rebuild it, and a pickle then stores the tensors once.
    """
    memo = {}
    if isinstance(backbone, nn.Module):
        memo = {id(part): part for part in (*backbone.parameters(), *backbone.buffers())}
    try:
        return copy.deepcopy(backbone, memo)
    except Exception:  # a callable may refer to objects that cannot be copied
        return backbone


def rebuild_backbone(
    backbone: Any,
    sample: Inputs,
    dtype: torch.dtype,
    like: Backbone,
    **options: Any,
) -> Backbone:
    """Build the same modules as at fit, untrained, into which a state is loaded.

    ``like`` states which layer was split off; its own module is not used.
    """
    first = next(iter(sample.values())) if isinstance(sample, dict) else sample
    with _hint_at_an_instance(backbone):
        module = _instantiate(backbone, input_shape_of(sample), options)
        module = cast_module(module, first.device, dtype)
    if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
        with torch.no_grad():
            module(**sample) if isinstance(sample, dict) else module(sample)
    return like._replace(module=strip_last_layer(module, like.removed, like.channels_first))


def cast_module(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """Move to a device and a real dtype; complex weights (Fourier layers) stay complex."""
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, complex_dtype)
        return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)

    return module._apply(cast)


def takes_generator(backbone: Any) -> bool:
    """Whether ``backbone`` is a recipe whose ``build`` has a parameter ``generator``."""
    return "generator" in _options_taken(backbone)


def _options_taken(backbone: Any) -> set[str]:
    """Names of the parameters of a recipe's ``build``."""
    return set(inspect.signature(backbone.build).parameters) if _is_recipe(backbone) else set()


def _is_recipe(backbone: Any) -> bool:
    return hasattr(backbone, "build") and not isinstance(backbone, type | nn.Module)


def input_shape_of(sample: Inputs) -> Any:
    """Shape of one sample; a dict of shapes for named inputs."""
    if isinstance(sample, dict):
        return {name: tuple(each.shape[1:]) for name, each in sample.items()}
    return tuple(sample.shape[1:])


def _instantiate(backbone: Any, input_shape: Any, options: dict[str, Any]) -> nn.Module:
    """A new module: changes to it do not affect the user's objects."""
    if isinstance(backbone, nn.Module):
        # The module inside `torch.compile` is split; `compile=True` compiles the backbone.
        return copy_module(_check_trainable(getattr(backbone, "_orig_mod", backbone)))
    if _is_recipe(backbone):
        taken = options.keys() & _options_taken(backbone)
        module = backbone.build(input_shape, **{name: options[name] for name in taken})
    elif callable(backbone):
        module = _call(backbone, input_shape)
    else:
        raise TypeError(
            "`backbone` must be None, a torch.nn.Module, a recipe with a "
            "`build(input_shape)` method, or a callable that returns a module, got "
            f"{backbone!r:.200}."
        )
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"`backbone` must build a torch.nn.Module, but {backbone!r} built a "
            f"{type(module).__name__} from a sample's shape, {input_shape}."
        )
    module = _check_trainable(getattr(module, "_orig_mod", module))
    # It may return a network that the user keeps. One that cannot be copied is used directly.
    with contextlib.suppress(TypeError):
        module = copy_module(module)
    return module


def _check_trainable(module: nn.Module) -> nn.Module:
    """Raise for TorchScript: its parameters cannot be cast and trained in a copy."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"holds a TorchScript module, {name!r}" if name else "is a TorchScript module"
            raise TypeError(
                f"`backbone` {where}, which cannot be copied and trained. Pass the torch.nn.Module "
                "from which it was made; the result of `to_torch` can be scripted or traced after "
                "the fit."
            )
    return module


def _call(backbone: Any, input_shape: Any) -> Any:
    """Call a callable with a sample's shape."""
    try:
        return _call_with_shape(backbone, input_shape)
    except (TypeError, AttributeError) as error:
        # A class and a wrong signature have their own messages.
        if isinstance(backbone, type) or type(input_shape).__name__ not in str(error):
            raise
        raise TypeError(
            f"`backbone` {backbone!r} is called with the shape of a sample, {input_shape}, and "
            f"must return a torch.nn.Module. It raised: {error}. Put a function of tensors "
            "into a module, for example nn.Sequential(nn.Linear(4, 32), nn.ReLU())."
        ) from error


def _call_with_shape(backbone: Any, input_shape: Any) -> Any:
    try:
        signature = inspect.signature(backbone)
    except (TypeError, ValueError):  # Python cannot determine it
        return backbone(input_shape)
    try:
        signature.bind(input_shape)
    except TypeError as error:
        raise TypeError(
            ("" if isinstance(backbone, type) else f"`backbone` {backbone!r} does not fit: ")
            + f"it is called with one argument, the shape of a sample, here {input_shape}, but "
            f"takes ({', '.join(signature.parameters)}). Bind further arguments with "
            "functools.partial(make, width=32)."
        ) from error
    first = next(iter(signature.parameters.values()))
    of_torch = isinstance(backbone, type) and backbone.__module__.startswith("torch.nn.")
    if of_torch and first.default is not inspect.Parameter.empty:
        # nn.ReLU would take the shape for `inplace`.
        raise TypeError(f"its argument {first.name!r} is not a shape.")
    return backbone(input_shape)


@contextlib.contextmanager
def _hint_at_an_instance(backbone: Any) -> Iterator[None]:
    """Suggest an alternative to a class that cannot be built from a sample's shape."""
    try:
        yield
    except Exception as error:
        if not isinstance(backbone, type):
            raise
        name, kind = backbone.__name__, TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"`backbone` is the class {name}, which cannot be called with a sample's shape: "
            f"{str(error).rstrip('.')}. Pass an instance, {name}(...), or, if the network "
            "depends on the shape of X, a function of that shape that returns an instance."
        ) from error


def _forms(sample: Inputs, dtype: torch.dtype, exact: bool) -> list[Inputs]:
    """The sample in each combination of dtypes that a network may need, likely ones first."""
    if not isinstance(sample, dict):
        return list(_options(sample, dtype, exact, truth=False))
    options = {name: _options(each, dtype, exact, truth=True) for name, each in sample.items()}
    choices = {name: len(each) for name, each in options.items() if len(each) > 1}
    if len(choices) <= MAX_COMBINED:
        picked = set(itertools.product(*(range(n) for n in choices.values())))
    else:  # all the same way, or all but one
        n = len(choices)
        alone = {tuple(int(i == j) for j in range(n)) for i in range(n)}
        picked = {(0,) * n, (1,) * n, *alone, *(tuple(1 - i for i in each) for each in alone)}
    forms: list[Inputs] = []
    for pick in sorted(picked, key=lambda pick: (sum(pick), pick)):
        index = dict(zip(choices, pick, strict=True))
        forms.append({name: each[index.get(name, 0)] for name, each in options.items()})
    return forms


def _options(each: Tensor, dtype: torch.dtype, exact: bool, *, truth: bool) -> tuple[Tensor, ...]:
    """One input in each dtype to try, in order."""
    if each.dtype == torch.bool:
        return (each, each.to(dtype)) if truth else (each.to(dtype),)
    if not each.is_floating_point():
        return (each.to(dtype), each.long()) if exact else (each.long(), each.to(dtype))
    whole = bool((each == each.round()).all())
    return (each.to(dtype), each.long()) if whole else (each.to(dtype),)


def _explain(
    failures: list[CannotTakeInputs], module: nn.Module, sample: Inputs
) -> CannotTakeInputs:
    """One error for all failed attempts to pass the inputs."""
    if "same dtype" in str(failures[0]):
        return CannotTakeInputs(
            f"{failures[0]} Its weights were cast to the dtype of training (see `precision`): "
            "remove casts to a fixed dtype from its forward."
        )
    looks_up = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
    if isinstance(sample, dict):
        return failures[-1 if looks_up else 0]
    if not sample.is_floating_point():
        return CannotTakeInputs(" ".join(map(str, failures[::-1] if looks_up else failures)))
    if not looks_up:
        return failures[0]
    return CannotTakeInputs(
        f"{failures[0]} The network has an embedding, which looks up integers, but X contains "
        "other numbers: encode them (`OrdinalEncoder`), or pass a dict of named inputs if only "
        "some of them are looked up."
    )
