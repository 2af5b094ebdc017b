"""One file per fitted estimator: arrays and a JSON text, opened without running code.

The file is an ordinary ``.npz``, so :func:`numpy.load` shows its content: ``array_0``,
``array_1``, ...; ``content``, the JSON text in UTF-8, which holds everything else and the SHA-256
of every array; and ``digest``, the SHA-256 of that text.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path
from typing import IO, Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import numpy as np
import torch

from ._version import __version__
from .backbones.fno import FNOBackbone
from .backbones.mlp import MLPBackbone
from .columns.encoder import ColumnEncoder
from .training.optimizers import OPTIMIZERS

__all__ = ["Code", "ModelFileError", "dtype_name", "is_plain", "load", "naming", "recipe_name"]
__all__ += ["save"]


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype in the module torch."""
    return str(dtype).removeprefix("torch.")


FORMAT = 3
# Names that a file may contain; a name that is not in these tables is rejected.
RECIPES = {each.__name__: each for each in (ColumnEncoder, FNOBackbone, MLPBackbone)}
DTYPES = {
    dtype_name(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.complex64, torch.complex128, torch.bool),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
ARRAY_KINDS = "biufcmMSU"  # kinds of NumPy dtypes: numbers, dates and text, no objects
DEEPEST = 60  # levels of nested lists; files from `save` have less than half of it
LONGEST_RANGE = 10_000


class ModelFileError(ValueError):
    """Raised for a file that ``save`` did not write, that was changed since, or is incomplete.

    The message names the file and the problem. A file that is missing or may not be read raises an
    :class:`OSError`, as usual.
    """


class Code(NamedTuple):
    """Placeholder, in a state that is written to a file, for a value that is code.

    Attributes
    ----------
    kind : str
        Description of the value, for messages.
    parameter : str
        Parameter of ``load`` that supplies the value.
    needed : bool
        Whether the value is required to rebuild the fitted model; otherwise None replaces it.
    """

    kind: str
    parameter: str
    needed: bool


def save(name: str, state: dict[str, Any], path: Any) -> None:
    """Write an estimator's state (see ``__getstate__``); an old file is kept until this is done.

    Parameters
    ----------
    name : str
        Name of the estimator's class.
    state : dict
        Plain data, arrays, recipes of this package, and :class:`Code`.
    path : str or path-like

    Raises
    ------
    TypeError
        For any other value, with the name of the attribute, before anything is written.
    """
    arrays: dict[str, np.ndarray] = {}
    encoded = {key: _encode(value, arrays, key) for key, value in state.items()}
    content = {"format": FORMAT, "version": __version__, "class": name, "state": encoded}
    with _replacing(path) as file, ZipFile(file, "w", ZIP_STORED) as archive:
        digests = {key: _add(archive, key, array) for key, array in arrays.items()}
        text = json.dumps({**content, "sha256": digests}).encode()
        digest = _add(archive, "content", np.frombuffer(text, np.uint8))
        _add(archive, "digest", np.frombuffer(bytes.fromhex(digest), np.uint8))


def load(name: str, path: Any, code: dict[str, Any]) -> dict[str, Any]:
    """Read the state that :func:`save` wrote.

    Memory and time are bounded by the file's own size.

    Parameters
    ----------
    name : str
        Name of the class that is expected.
    path : str or path-like
    code : dict
        Replacements for code that is not in the file, by parameter of ``load``.

    Raises
    ------
    ModelFileError
        If anything is wrong with the file.
    """
    with Path(path).open("rb") as file, naming(path):
        content, arrays = _read(file)
        if content.get("class") != name:
            found = str(content.get("class"))
            raise ModelFileError(f"it holds a {found}; open it with {found}.load.")
        state = content.get("state")
        if not isinstance(state, dict):
            raise ModelFileError("`state` is missing.")
        reader = _Reader(arrays, code)
        state = {key: reader.decode(value) for key, value in state.items()}
        if arrays:
            raise ModelFileError(f"{next(iter(arrays))} is not used by the content.")
        return state


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Turn any error in a file's content into a ModelFileError that names the file."""
    try:
        yield
    except Exception as error:
        # EINVAL: the content points to a place before the start of the file.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        what = str(error) if isinstance(error, ModelFileError) else repr(error)
        raise ModelFileError(f"The model file {str(path)!r} cannot be opened: {what}") from error


def is_plain(value: Any) -> bool:
    """Whether :func:`save` can write a value."""
    try:
        _encode(value, {}, "")
    except TypeError:
        return False
    return True


def recipe_name(recipe: Any) -> str | None:
    """The name of a recipe class of this package, None for anything else."""
    name = type(recipe).__name__
    return name if RECIPES.get(name) is type(recipe) else None


# -- bytes ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(path: Any) -> Iterator[IO[bytes]]:
    """Open a new file that replaces ``path`` once it is completely written to disk.

    If the process ends before that, or if another process writes too, ``path`` is a complete file.
    """
    target = Path(os.path.realpath(path))  # a symbolic link is kept
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(target.parent))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "Only a regular file can be replaced", str(path))
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            if target.exists():
                shutil.copymode(target, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not possible on Windows and some file systems
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _add(archive: ZipFile, name: str, array: np.ndarray) -> str:
    """Write an array as one member of the archive; return the SHA-256 of the member."""
    buffer = io.BytesIO()
    array = np.asarray(array, order="C")
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    archive.writestr(f"{name}.npy", buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _read(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON object and the arrays of a file, all checked against their digests."""
    size = os.fstat(file.fileno()).st_size
    try:
        archive = ZipFile(file)
    except Exception as error:
        raise ModelFileError(f"it was not written by `save`, or is truncated ({error}).") from error
    with archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ModelFileError("two of its members have the same name.")
        if not {"content.npy", "digest.npy"} <= set(members):
            raise ModelFileError("it was not written by `save`, or was written by another version.")
        # Nothing is compressed, so that members cannot be larger than the file.
        if sum(info.file_size for info in members.values()) > size or any(
            info.compress_type != ZIP_STORED or info.file_size != info.compress_size
            for info in members.values()
        ):
            raise ModelFileError("its members are compressed, or claim to be larger than the file.")

        def read(name: str, digest: str | None) -> np.ndarray:
            try:
                raw = archive.read(members.pop(f"{name}.npy"))
                if digest not in (None, hashlib.sha256(raw).hexdigest()):
                    raise ModelFileError("it does not match its SHA-256, so it was changed")
                return _as_array(raw)
            except Exception as error:
                what = str(error) if isinstance(error, ModelFileError) else repr(error)
                raise ModelFileError(f"{name}: {what}.") from error

        digest = read("digest", None).tobytes().hex()
        content = json.loads(read("content", digest).tobytes())
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise ModelFileError("content: it was not written by `save`.")
        if content["format"] != FORMAT:
            age = "a newer" if content["format"] > FORMAT else "an older"
            raise ModelFileError(
                f"it was written by {age} version of sklearn_cfll ({content.get('version')})."
            )
        digests = content.get("sha256")
        if not isinstance(digests, dict):
            raise ModelFileError("content: `sha256` is missing.")
        arrays = {name: read(name, str(digest)) for name, digest in digests.items()}
        if members:
            raise ModelFileError(f"{next(iter(members))}: `save` writes no such member.")
        return content, arrays


def _as_array(raw: bytes) -> np.ndarray:
    """An array from the bytes of an .npy file, whose length must match its header."""
    stream = io.BytesIO(raw)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ModelFileError("its array format is not version 1.0")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order or dtype.kind not in ARRAY_KINDS:
        raise ModelFileError(f"its dtype is {dtype}")
    offset = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(raw) - offset:
        raise ModelFileError(f"it has {len(raw) - offset} bytes for {shape} numbers of {dtype}")
    return np.ndarray(shape, dtype, buffer=raw, offset=offset).copy()


# -- values ---------------------------------------------------------------------------------------


def _encode(value: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """Encode plain data as JSON: a type that JSON lacks becomes an object with one key.

    Arrays are collected in ``arrays``."""

    def encode(part: Any) -> Any:
        return _encode(part, arrays, where)

    if isinstance(value, np.generic) and not isinstance(value, str | float):
        value = float(value) if isinstance(value, np.longdouble) else value.item()
    if value is None or isinstance(value, str | bool | float):
        return value
    if isinstance(value, int) and value.bit_length() < 1000:
        return value
    if isinstance(value, Real) and not isinstance(value, int):  # a fraction
        return float(value)
    if isinstance(value, Code):
        return {"code": list(value)}
    if isinstance(value, list):
        return [encode(part) for part in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(part) for part in value]}
    if isinstance(value, range) and len(value) <= LONGEST_RANGE:
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, torch.dtype) and value in DTYPES.values():
        return {"dtype": dtype_name(value)}
    if recipe_name(value) is not None:
        return {"recipe": [recipe_name(value), encode(value.get_params(deep=False))]}
    for name, optimizer in OPTIMIZERS.items():
        if value is optimizer:
            return {"optimizer": name}
    if hasattr(value, "__array__") and not isinstance(value, type):  # also a Series or a Tensor
        array = np.asarray(value)
        if array.dtype.kind in ARRAY_KINDS:
            name = f"array_{len(arrays)}"
            arrays[name] = array
            return {"array": name}
        if array.dtype == object and array.ndim == 1:
            return {"objects": encode(array.tolist())}
    kind = type(value).__name__
    raise TypeError(
        f"`{where}` holds {value!r:.80} of type {kind}, which a file of arrays and plain data "
        "cannot contain. Change it before `save`, or pickle the estimator."
    )


class _Reader:
    """Inverse of :func:`_encode`."""

    def __init__(self, arrays: dict[str, np.ndarray], code: dict[str, Any]) -> None:
        self.arrays, self.code = arrays, code
        self.kinds: dict[str, Callable[[Any], Any]] = {
            "array": self._array,
            "objects": self._objects,
            "tuple": tuple,
            "range": self._range,
            "dict": dict,
            "device": torch.device,
            "dtype": DTYPES.__getitem__,
            "recipe": self._recipe,
            "optimizer": OPTIMIZERS.__getitem__,
            "code": self._code,
        }

    def decode(self, value: Any, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise ModelFileError("its lists are nested too deeply.")
        if isinstance(value, list):
            return [self.decode(part, depth + 1) for part in value]
        if not isinstance(value, dict):
            return value
        ((kind, body),) = value.items()
        body = self.decode(body, depth + 1)
        try:
            return self.kinds[kind](body)
        except ModelFileError:
            raise
        except Exception as error:
            raise ModelFileError(f"content: {kind} cannot be {body!r:.80}.") from error

    def _array(self, name: str) -> np.ndarray:
        return self.arrays.pop(name)  # each array is used once and copied later

    def _objects(self, values: list[Any]) -> np.ndarray:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    def _range(self, ends: list[int]) -> range:
        if len(range(*ends)) > LONGEST_RANGE:
            raise ModelFileError(f"content: range cannot be {ends}.")
        return range(*ends)

    def _recipe(self, body: list[Any]) -> Any:
        name, parameters = body
        return RECIPES[name](**parameters)

    def _code(self, body: list[Any]) -> Any:
        kind, parameter, needed = body
        given = self.code[parameter]
        if given is None and needed:
            raise ModelFileError(
                f"the estimator was fitted with {kind} as `{parameter}`, which is code and not "
                f"in the file: pass the same object as `{parameter}`."
            )
        return given
