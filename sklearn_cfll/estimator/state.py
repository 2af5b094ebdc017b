"""An estimator's state as arrays and plain data, for copies, pickles and files.

It holds no live module, optimiser or device tensor, so a model that was fitted on a GPU can be
loaded on a CPU. It holds everything that was determined at fit, so later changes of the estimator's
parameters have no effect.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from .. import persistence
from .._warnings import user_level
from ..training.torch_settings import default_modes, resolve_device
from .file_checks import check_attributes
from .packing import available_device, check_version

__all__ = ["StateMixin"]


class StateMixin:
    """Mixin for copying, pickling, saving and loading a fitted estimator.

    An estimator defines what it packs (``_pack``, ``_unpack``), where its packed state holds code
    (``_code_in``), and the checks of a file (``_check_file``, ``_check_loaded``).
    """

    random_state: Any
    _model: Any  # what a fit leaves
    _code_parameters: ClassVar[tuple[str, ...]]  # parameters that may be code

    def __sklearn_is_fitted__(self) -> bool:
        return "_model" in self.__dict__

    def _fitted(self, name: str) -> Any:
        """The fitted model; AttributeError before a fit, so that hasattr is False."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__} has no `{name}` before it is fitted.")
        return self._model

    def save(self: Any, path: Any) -> None:
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
            If something is not in the file: a network or optimiser that is code must be passed
            again to :meth:`load`; callbacks and metadata requests must be set again. A
            ``random_state`` that is a generator is saved as the seed that was drawn from it.

        Raises
        ------
        TypeError
            If a parameter holds something else that is not plain data.
        """
        check_is_fitted(self)
        state = self.__getstate__()
        for holder, key, parameter in self._code_in(state["_packed"]):
            holder[key] = code_out(holder[key], parameter, needed=True)
        for name in self._code_parameters:
            state[name] = code_out(state[name], name)
        write(self, state, path)

    @classmethod
    def load(cls: Any, path: Any, *, device: str = "cpu", **code: Any) -> Any:
        """Load an estimator that was saved with :meth:`save`.

        No code named in the file is run, and nothing is compiled: a backbone that was
        compiled at fit predicts uncompiled, which may differ by rounding.

        Parameters
        ----------
        path : str or path-like
        device : str, default="cpu"
            Device of the loaded estimator, whatever the device at fit.
        **code
            Parameters that were code at fit, such as ``backbone=`` for a module or a callable, or
            ``optimizer=`` for a class that has no name. :meth:`save` warns about them. Recipes of
            this package are in the file.

        Returns
        -------
        estimator

        Raises
        ------
        ModelFileError
            If the file was not written by :meth:`save`, was changed since, or holds another class
            of estimator, or if a required parameter is not passed.
        """
        for name in code:
            if name not in cls._code_parameters:
                raise TypeError(
                    f"{cls.__name__}.load() got an unexpected keyword argument {name!r}. It takes "
                    f"`device` and parameters that are code: {', '.join(cls._code_parameters)}."
                )
        where = str(resolve_device(device))
        state = persistence.load(cls.__name__, path, dict.fromkeys(cls._code_parameters) | code)
        with persistence.naming(path):
            check_attributes(cls, state)
            cls._check_file(state)
            packed = state["_packed"] = {**state["_packed"], "device": where}
            names = state.pop("feature_names_in_", None)
            estimator: Any = cls.__new__(cls)
            with naming_backbone(code):
                estimator.__setstate__(state)
            estimator._check_loaded(packed)
            if names is not None:
                estimator.feature_names_in_ = names
        return estimator

    def __getstate__(self: Any) -> dict[str, Any]:
        parent: Any = super()
        state = dict(parent.__getstate__())
        return self._pack(state) if self.__sklearn_is_fitted__() else state

    @default_modes()
    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        state = dict(state)
        packed = state.pop("_packed", None)
        if packed is not None:
            check_version(packed)
            state |= self._unpack(packed, available_device(packed["device"]))
        vars(self).update(state)

    # -- hooks ------------------------------------------------------------------------

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with ``_packed`` (arrays and plain data) in place of fitted objects."""
        raise NotImplementedError

    @classmethod
    def _unpack(cls, packed: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """The fitted objects, on a device."""
        raise NotImplementedError

    @classmethod
    def _code_in(cls, packed: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
        """Places where a packed state may hold code: a dict, its key, and the parameter."""
        raise NotImplementedError

    @classmethod
    def _check_file(cls, state: dict[str, Any]) -> None:
        """Check a state from a file before anything is built from it."""

    def _check_loaded(self, packed: dict[str, Any]) -> None:
        """Check what was built from a file."""


@contextlib.contextmanager
def naming_backbone(code: dict[str, Any]) -> Iterator[None]:
    """Explain in errors that a network passed to `load` differs from the one at fit."""
    try:
        yield
    except Exception as error:
        given = [name for name, value in code.items() if value is not None and "backbone" in name]
        if not given:
            raise
        raise persistence.ModelFileError(
            f"the given `{given[0]}` differs from the one at fit: {str(error).rstrip('.')}. "
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


def write(estimator: Any, state: dict[str, Any], path: Any) -> None:
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
        state["random_state"] = state["_packed"]["seed"]
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
    warnings.warn(text, UserWarning, stacklevel=user_level())


def _codes(value: Any) -> list[persistence.Code]:
    if isinstance(value, persistence.Code):
        return [value]
    parts = value.values() if isinstance(value, dict) else ()
    return [code for part in parts for code in _codes(part)]
