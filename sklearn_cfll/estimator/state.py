"""An estimator's state as arrays plus the recipe that rebuilds its modules.

Pickle, joblib, copies and :meth:`save` use it. It holds no live module, optimiser or device tensor,
so a model that was fitted on a GPU can be loaded on a CPU. It holds everything that was determined
at fit, so later changes of the estimator's parameters have no effect.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from skorch.history import History
from torch import Tensor, nn

from .. import persistence
from .._version import __version__
from ..backbones.splitting import Backbone
from ..heads.member import SETTINGS
from ..training.optimizers import OPTIMIZERS, optimizer_class
from ..training.torch_settings import default_modes, resolve_device
from .plan import Plan
from .state_checks import (
    INPUT_DTYPES,
    check_attributes,
    check_learnt,
    check_optimizer,
    check_packed,
    check_sizes,
    part_of,
    try_out,
)
from .targets import TargetLayout, TargetScale

__all__ = ["StateMixin"]


class StateMixin:
    """Mixin for copying, pickling, saving and loading a fitted estimator."""

    random_state: Any

    def save(self, path: Any) -> None:
        """Save the fitted estimator to one file that can be loaded without running code.

        An existing file is replaced only once the new one is complete and on the disk. If the
        process is killed before that, a file named ``.(32 digits).tmp`` remains in the same
        directory and can be deleted.

        Parameters
        ----------
        path : str or path-like

        Warns
        -----
        UserWarning
            If something is not in the file: a ``backbone`` or ``optimizer`` that is code must be
            passed again to :meth:`load`; callbacks and metadata requests must be set again. A
            ``random_state`` that is a generator is saved as the seed that was drawn from it.

        Raises
        ------
        TypeError
            If a parameter holds something else that is not plain data.
        """
        check_is_fitted(self)
        state = self.__getstate__()
        packed = state["_packed"]
        plan, settled = packed["plan"], packed["plan"]["parameters"]
        plan["recipe"] = code_out(plan["recipe"], "backbone", needed=True)
        packed["optimizer_class"] = code_out(packed["optimizer_class"], "optimizer", needed=True)
        settled["backbone"] = code_out(settled["backbone"], "backbone")
        for name in ("backbone", "optimizer"):
            state[name] = code_out(state[name], name)
        write(self, state, plan["seed"], path)

    @classmethod
    def load(
        cls, path: Any, *, backbone: Any = None, optimizer: Any = None, device: str = "cpu"
    ) -> Any:
        """Load an estimator that was saved with :meth:`save`.

        No code named in the file is run, and nothing is compiled: a backbone that was
        compiled at fit predicts uncompiled, which may differ by rounding.

        Parameters
        ----------
        path : str or path-like
        backbone : optional
            The ``backbone`` at fit, if it was code: a module or a callable.
            Recipes of this package are in the file.
        optimizer : class, optional
            The ``optimizer`` at fit, if it was a class other than those that have a name.
        device : str, default="cpu"
            Device of the loaded estimator, whatever the device at fit.

        Returns
        -------
        estimator

        Raises
        ------
        ModelFileError
            If the file was not written by :meth:`save`, was changed since, or holds another class
            of estimator, or if a required ``backbone`` or ``optimizer`` is not passed.
        """
        where = str(resolve_device(device))
        state = persistence.load(cls.__name__, path, {"backbone": backbone, "optimizer": optimizer})
        with persistence.naming(path):
            check_attributes(cls, state)
            packed = state["_packed"]
            check_packed(packed)
            check_sizes(packed, state)
            check_learnt(cls, state, packed)
            packed["compile"] = False
            if state["optimizer"] is None:  # set after fit, to code that was not passed again
                state["optimizer"] = packed["optimizer_class"]
            names = state.pop("feature_names_in_", None)
            estimator: Any = cls.__new__(cls)
            with naming_backbone(backbone):
                estimator.__setstate__({**state, "callbacks": None, "device_": where})
            check_optimizer(estimator.net_.optimizer_)
            try_out(estimator)
            if names is not None:
                estimator.feature_names_in_ = names
        return estimator

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return to_arrays(state)

    @default_modes()
    def __setstate__(self, state: dict[str, Any]) -> None:
        from_arrays(self, state)


@contextlib.contextmanager
def naming_backbone(backbone: Any) -> Iterator[None]:
    """Explain in errors that the backbone passed to `load` differs from the one at fit."""
    try:
        yield
    except Exception as error:
        if backbone is None:
            raise
        raise persistence.ModelFileError(
            f"the given `backbone` differs from the one at fit: {str(error).rstrip('.')}. "
            "Pass the same module, with the same sizes, or the same callable."
        ) from error


def code_out(value: Any, parameter: str, *, needed: bool = False) -> Any:
    """Placeholder for a value that a file cannot hold."""
    if persistence.is_plain(value):
        return value
    kind = type(value).__name__
    if isinstance(value, type) or kind == "function":
        description = f"the {'class' if isinstance(value, type) else kind} {value.__name__}"
    else:
        description = f"an instance of {kind}"
    return persistence.Code(description, parameter, needed)


def write(estimator: Any, state: dict[str, Any], seed: int, path: Any) -> None:
    """Write a state to a file, and warn about what is not in it."""
    dropped = []
    for name, again in (
        ("callbacks", "`callbacks` (`set_params`)"),
        ("_skl_callbacks", "scikit-learn's callbacks (`set_callbacks`)"),
        ("_metadata_request", "metadata requests (`set_fit_request` and its like)"),
    ):
        if state.pop(name, None):
            dropped.append(again)
    if isinstance(estimator.random_state, np.random.RandomState):
        state["random_state"] = seed
    persistence.save(type(estimator).__name__, state, path)
    absent = {part.parameter: part.kind for part in _codes(state)}
    if not absent and not dropped:
        return
    text = f"The file {str(path)!r} holds arrays and plain data only."
    if absent:
        arguments = ", ".join(f"`{name}` ({kind})" for name, kind in absent.items())
        text += f" Pass these arguments of the fit to `load` again: {arguments}."
    if dropped:
        text += f" Set these again after `load`: {', '.join(dropped)}."
    warnings.warn(text, UserWarning, stacklevel=3)


def _codes(value: Any) -> list[persistence.Code]:
    if isinstance(value, persistence.Code):
        return [value]
    parts = value.values() if isinstance(value, dict) else ()
    return [code for part in parts for code in _codes(part)]


def to_arrays(state: dict[str, Any]) -> dict[str, Any]:
    """An estimator's ``__dict__`` with the net and the backbone as plain data."""
    state = dict(state)
    net = state.pop("net_", None)
    if net is None:
        return state
    plan, offset = state.pop("_plan"), state.pop("_offset")
    backbone, layer = plan.backbone, net.module_.last_layer
    optimizer = None if net.optimizer_ is None else net.optimizer_.state_dict()
    if optimizer is not None and not optimizer["state"]:
        optimizer = None  # no step yet, so nothing to keep
    names = {optimizer: name for name, optimizer in OPTIMIZERS.items()}
    state["_packed"] = {
        "format": persistence.FORMAT,
        "version": __version__,
        "module": map_tensors(net.module_.state_dict()),
        "offset": None if offset is None else map_tensors(offset.state_dict()),
        "last_layer": {name: getattr(layer, name) for name in ("n_members", *SETTINGS)},
        "optimizer": map_tensors(optimizer),
        "optimizer_class": names.get(net.optimizer, net.optimizer),
        "compile": bool(net.compile),
        "history": [dict(row, batches=[]) for row in net.history],
        "plan": {
            **{each.name: getattr(plan, each.name) for each in fields(plan) if each.init},
            "parameters": dict(plan.parameters),
            "dtype": dtype_name(plan.dtype),
            "device": None,
        },
        "backbone": (backbone.feature_shape, backbone.channels_first, backbone.removed),
        "input_dtype": map_values(dtype_name, backbone.input_dtype),
        "layout": tuple(plan.layout),
        "scale": tuple(plan.scale),
    }
    state["device_"] = str(state["device_"])
    return state


def from_arrays(estimator: Any, state: dict[str, Any]) -> None:
    """Set an estimator's ``__dict__`` from :func:`to_arrays`, rebuilding its net."""
    state = dict(state)
    packed = state.pop("_packed", None)
    if packed is None:
        vars(estimator).update(state)
        return
    check_version(packed)
    state["device_"] = available_device(state["device_"])
    dtype = getattr(torch, packed["plan"]["dtype"])
    plan = Plan(**{**packed["plan"], "device": state["device_"], "dtype": dtype})
    if not isinstance(plan.sample_shape, dict):
        plan.sample_shape = tuple(plan.sample_shape)
    feature_shape, channels_first, removed = packed["backbone"]
    input_dtype = map_values(INPUT_DTYPES.__getitem__, packed["input_dtype"])
    plan.backbone = Backbone(
        nn.Identity(), tuple(feature_shape), channels_first, removed, input_dtype
    )
    own_shape, channels_first = packed["layout"]
    plan.layout = TargetLayout(tuple(own_shape), channels_first)
    plan.scale = TargetScale(*packed["scale"])
    plan.rebuild(map_arrays(part_of(packed["module"], "backbone.columns.")))
    settings = dict(packed["last_layer"])
    net = plan.make_net(
        optimizer_class(packed["optimizer_class"]),
        n_members=settings.pop("n_members"),
        memory=settings["memory"],
        compile=packed["compile"],
    )
    net.module_.load_state_dict(map_arrays(packed["module"]))
    offset = None
    if packed["offset"] is not None:
        offset = plan.make_offset()
        offset.load_state_dict(map_arrays(packed["offset"]))
    for name, value in settings.items():
        setattr(net.module_.last_layer, name, value)
    net.history_ = History(packed["history"])
    if packed["optimizer"] is not None and net.optimizer_ is not None:
        net.optimizer_.load_state_dict(map_arrays(packed["optimizer"]))
    vars(estimator).update(state, _plan=plan, _offset=offset, net_=net)


def check_version(packed: dict[str, Any]) -> None:
    """Raise if a pickle has the format of another version."""
    if packed.get("format") != persistence.FORMAT:
        raise ValueError(
            f"The estimator was pickled by sklearn_cfll {packed.get('version')} in format "
            f"{packed.get('format')}, but this version reads format {persistence.FORMAT}. Load it "
            "with that version, or fit again."
        )


def available_device(name: str) -> torch.device:
    """The device of this name, or the CPU if this machine does not have it."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        return torch.device("cpu")
    return torch.device(name)


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in the module torch."""
    return str(dtype).removeprefix("torch.")


def map_values(function: Any, value: Any) -> Any:
    """Apply a function to a value, or to each value of a dict."""
    if isinstance(value, dict):
        return {key: function(part) for key, part in value.items()}
    return function(value)


def map_tensors(value: Any) -> Any:
    """Convert tensors to NumPy arrays in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy().copy()
    if isinstance(value, dict):
        return {key: map_tensors(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(part) for part in value)
    return value


def map_arrays(value: Any) -> Any:
    """Inverse of :func:`map_tensors`."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: map_arrays(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_arrays(part) for part in value)
    return value
