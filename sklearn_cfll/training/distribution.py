"""Distribution: the workers of `torch.distributed` that fit one model together."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from joblib.parallel import get_active_backend  # type: ignore[import-untyped]
from torch import Tensor, nn

from ..heads.together import AloneHead, Together, TogetherHead, counted
from .seeding import mix_seed
from .torch_settings import resolve_device

__all__ = [
    "Alone",
    "Group",
    "Workers",
    "alone",
    "n_workers",
    "refuse_workers",
    "told_to_all",
    "workers_of_fit",
]

# Seconds after which a worker gives up waiting for the others; CFLL_TIMEOUT overrides it. A worker
# that ends, by an error or a signal, closes its connections, and the others notice at once.
TIMEOUT = 300.0
ALONE = "For a model of its own in each, call it within `with sklearn_cfll.training.alone():`."

_own = threading.local()


class Workers(Protocol):
    """Processes that train one model on rows that each of them holds a part of.

    Attributes
    ----------
    rank, size : int
        Number of this worker, and number of workers.
    head : Together
        How the last layer sees the rows of all workers.
    """

    rank: int
    size: int
    head: Together

    def place(self, device: torch.device) -> torch.device:
        """The device of this worker, of those of its machine."""
        ...

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over the workers, the same bits for all of them."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The values of all workers, by rank."""
        ...

    def first(self, value: Any) -> Any:
        """The value of the first worker."""
        ...

    def adopt(self, module: nn.Module) -> None:
        """Set the state of a module to that of the first worker's."""
        ...

    def own_seed(self, seed: int) -> int:
        """A seed of this worker's own, from one that all share."""
        ...

    def mean_error(self, error: Tensor, parameters: Iterable[Tensor], batch: Any) -> Tensor:
        """The error of the joint batch; gradients become those of this error."""
        ...

    def mean(self, values: Sequence[float], weights: Sequence[float]) -> float:
        """Weighted mean over the values of all workers."""
        ...

    def any_(self, flag: bool) -> bool:
        """Whether the flag of any worker is set."""
        ...

    def all_or_none(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Raise in all workers if the block raises in one."""
        ...


class Alone:
    """One process holds all rows."""

    rank, size = 0, 1
    head: Together = AloneHead()

    def place(self, device: torch.device) -> torch.device:
        return device

    def sum_(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def first(self, value: Any) -> Any:
        return value

    def adopt(self, module: nn.Module) -> None:
        pass

    def own_seed(self, seed: int) -> int:
        return seed

    def mean_error(self, error: Tensor, parameters: Iterable[Tensor], batch: Any) -> Tensor:
        return error

    def mean(self, values: Sequence[float], weights: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    def any_(self, flag: bool) -> bool:
        return flag

    def all_or_none(self, what: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Group:
    """Workers of a process group of `torch.distributed`, for the duration of one fit.

    Numbers travel over gloo between CPUs, or over NCCL between GPUs; objects always over gloo. The
    groups are the fit's own: when a worker leaves them, the others that wait for it get an error.

    Parameters
    ----------
    device : torch.device
        Where tensors are summed.
    timeout : float
        Seconds to wait for another worker.
    """

    def __init__(self, device: torch.device, timeout: float) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        wait = datetime.timedelta(seconds=timeout)
        with named_errors(self.rank, self.size):
            self.objects: Any = dist.new_group(backend="gloo", timeout=wait)
            self.tensors: Any = self.objects
            if device.type == "cuda":
                self.tensors = dist.new_group(backend="nccl", timeout=wait)
        self.head: Together = TogetherHead(self.sum_)

    def close(self) -> None:
        """Leave the groups."""
        groups = [self.objects, *([self.tensors] if self.tensors is not self.objects else [])]
        self.objects = self.tensors = None
        for group in groups:
            with contextlib.suppress(Exception):
                dist.destroy_process_group(group)

    def place(self, device: torch.device) -> torch.device:
        return _own_device(device)

    def sum_(self, values: Tensor) -> Tensor:
        sent = values.detach().to(self.device, copy=True)
        with named_errors(self.rank, self.size):
            dist.all_reduce(sent, group=self.tensors)
        return sent.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        with named_errors(self.rank, self.size):
            dist.all_gather_object(found, value, group=self.objects)
        return found

    def first(self, value: Any) -> Any:
        found = [value]
        with named_errors(self.rank, self.size):
            dist.broadcast_object_list(found, src=0, group=self.objects)
        return found[0]

    def adopt(self, module: nn.Module) -> None:
        with torch.no_grad(), named_errors(self.rank, self.size):
            for tensor in module.state_dict().values():
                sent = tensor.detach().contiguous().to(self.device)
                dist.broadcast(sent, src=0, group=self.tensors)
                tensor.copy_(sent)

    def own_seed(self, seed: int) -> int:
        return mix_seed(seed, self.rank) if self.rank else seed

    def mean_error(self, error: Tensor, parameters: Iterable[Tensor], batch: Any) -> Tensor:
        trained = [each for each in parameters if each.requires_grad]
        n_rows = counted(batch.targets, batch.sample_weight)
        parts = [
            torch.zeros_like(each).flatten() if each.grad is None else each.grad.flatten()
            for each in trained
        ]
        own = [error.detach().reshape(1), error.new_ones(1)]
        # In place: each copy of all gradients costs as much as a product of a small network.
        sums = self.sum_(torch.cat([each.to(error) for each in (*parts, *own)]).mul_(n_rows))
        means = sums[:-1].div_(sums[-1])
        for each, mean in zip(trained, means.split([*map(Tensor.numel, trained), 1]), strict=False):
            each.grad = mean.to(each).reshape(each.shape)
        return means[-1]

    def mean(self, values: Sequence[float], weights: Sequence[float]) -> float:
        pairs = torch.tensor([values, weights], dtype=torch.float64)
        product = pairs[0] * pairs[1]
        found = self.sum_(torch.stack([product.sum(), pairs[1].sum()]))
        return float(found[0] / found[1])

    def any_(self, flag: bool) -> bool:
        return bool(self.sum_(torch.tensor([float(flag)])) > 0)

    @contextlib.contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        told = self.gather(None if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        others = [(rank, each) for rank, each in enumerate(told) if each is not None]
        if others:
            rank, text = others[0]
            raise RuntimeError(f"{what} failed in worker {rank} of {self.size}: {text}")


@contextlib.contextmanager
def named_errors(rank: int, size: int) -> Iterator[None]:
    """Say what an error of gloo or NCCL means."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of several kinds
        raise RuntimeError(
            f"Worker {rank} of {size} lost another one, which has failed, was killed, does not "
            "call `fit` too, or did not answer in time: see what it has said. No model was kept "
            "here. Start all workers again; with TrainingCheckpoint, training goes on from the "
            f"last epoch. {ALONE} ({type(error).__name__}: {str(error).splitlines()[0]:.200})"
        ) from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Fit without the other workers of `torch.distributed`: each fit in the block has its own rows.

    The setting is that of the calling thread.
    """
    before = getattr(_own, "alone", False)
    _own.alone = True
    try:
        yield
    finally:
        _own.alone = before


def n_workers() -> int:
    """Number of processes that call this fit together, 1 if this one is alone.

    A worker of joblib is alone: a search hands each of its workers a fit of its own.
    """
    joined = dist.is_available() and dist.is_initialized()
    if not (joined or "RANK" in os.environ) or getattr(_own, "alone", False):
        return 1
    backend, _ = get_active_backend()
    if getattr(backend, "nesting_level", 0):
        return 1
    return dist.get_world_size() if joined else int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def workers_of_fit(device: torch.device) -> Iterator[Workers]:
    """The workers that call a fit together.

    They are those of the process group that is initialised, as Ray Train and Spark's
    TorchDistributor do. Otherwise it is initialised from RANK, WORLD_SIZE, MASTER_ADDR and
    MASTER_PORT, as `torchrun` sets them, and destroyed when the process ends.
    """
    if n_workers() == 1:
        yield Alone()
        return
    timeout = float(os.environ.get("CFLL_TIMEOUT", TIMEOUT))
    device = _own_device(device)
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        rank, wait = int(os.environ["RANK"]), datetime.timedelta(seconds=timeout)
        with named_errors(rank, n_workers()):
            dist.init_process_group(backend, timeout=wait)
        atexit.register(_leave)
    workers = Group(device, timeout)
    try:
        yield workers
    finally:
        workers.close()


@contextlib.contextmanager
def told_to_all() -> Iterator[None]:
    """Raise in all workers if the block, before they have met in a fit, raises in one."""
    try:
        yield
    except Exception:
        if n_workers() == 1:
            raise
        # The first thing that the others do in a fit is to ask whether all of them are well.
        with workers_of_fit(resolve_device("auto")) as workers, workers.all_or_none("`fit`"):
            raise


def _own_device(device: torch.device) -> torch.device:
    """A GPU of its own for each worker of a machine, by LOCAL_RANK."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def refuse_workers(what: str) -> None:
    """Raise if several workers call what they cannot do together."""
    found = n_workers()
    if found > 1:
        raise RuntimeError(
            f"{what} does not train on several workers yet, but torch.distributed has {found}: "
            f"each would end with another model. {ALONE}"
        )
