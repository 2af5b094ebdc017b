"""Training steps on a GPU, ours and those of a plain PyTorch loop, and what they wait for."""

from __future__ import annotations

import copy
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_cases import convolutions
from skorch.callbacks import Callback
from torch import Tensor, nn

from sklearn_cfll import CFLLNet, CFLLRegressor, ClosedFormLastLayer, EnsembleLastLayer
from sklearn_cfll.backbones import FNOBackbone

N_STEPS, WARM_UP, TIMED = 50, 2, 4  # steps per epoch; epochs before and within the measured time


class Task(NamedTuple):
    """Rows on the device, a backbone without its last layer, and the number of members."""

    X: Tensor
    y: Tensor
    backbone: nn.Module
    n_features: int
    batch_size: int
    n_members: int = 1

    @property
    def n_steps(self) -> int:
        return -(-len(self.X) // self.batch_size)


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# -- networks -------------------------------------------------------------------------------


def perceptron_task(
    width: int, batch_size: int, n_outputs: int, device: str, steps: int = N_STEPS
) -> Task:
    generator = torch.Generator(device).manual_seed(0)
    X = torch.randn(steps * batch_size, 32, device=device, generator=generator)
    y = torch.stack([torch.sin(2 * X[:, i]) * X[:, i + 1] for i in range(n_outputs)], 1)
    torch.manual_seed(0)
    layers = [nn.Linear(32, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return Task(X, y, nn.Sequential(*layers).to(device), width, batch_size)


def image_task(batch_size: int, device: str, steps: int = N_STEPS, channels: int = 64) -> Task:
    X = torch.randn(steps * batch_size, 3, 32, 32, device=device)
    y = torch.randn(len(X), 10, device=device)
    backbone = convolutions(channels)[:-1].to(device)
    return Task(X, y, backbone, 9 * channels, batch_size)


def field_task(batch_size: int, device: str, steps: int = 20, points: int = 64) -> Task:
    X = torch.randn(steps * batch_size, points, points, device=device)
    y = X.roll(1, 1).unsqueeze(-1)
    torch.manual_seed(0)
    modes = min(16, points)
    backbone = FNOBackbone(n_modes=(modes, modes)).build((points, points)).to(device)
    return Task(X, y, backbone, 64, batch_size)


def ensemble_task(model: CFLLRegressor, X: np.ndarray, y: np.ndarray, device: str) -> Task:
    """The network of a default fit, the encoding of the columns included."""
    module = model.net_.module_
    backbone, head = copy.deepcopy(module.backbone).train(), module.last_layer
    rows = torch.from_numpy(X).to(device), torch.from_numpy(y[:, None]).float().to(device)
    size = model.resolved_["batch_size"]
    return Task(*rows, backbone, head.in_features, size, head.n_members)


# -- ways to train ----------------------------------------------------------------------------


class WithHead(nn.Module):
    """All layers by gradient descent: the last layers of the members are parameters."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        width = task.n_features // task.n_members
        weight = torch.randn(task.n_members, width, task.y.shape[-1]) / width**0.5
        self.backbone = task.backbone
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(task.n_members, 1, task.y.shape[-1]))

    def forward(self, rows: Tensor) -> Tensor:
        features = self.backbone(rows)
        m, d = self.weight.shape[:2]
        apart = features.reshape(-1, m, d).transpose(0, 1)
        found = torch.baddbmm(self.bias, apart, self.weight)
        return found.reshape(m, *features.shape[:-1], found.shape[-1])


def adam(module: nn.Module, capturable: bool = False) -> torch.optim.Optimizer:
    parameters = list(module.parameters())
    complex_ = any(p.is_complex() for p in parameters)
    return torch.optim.Adam(parameters, lr=1e-3, fused=not complex_, capturable=capturable)


Epoch = Callable[[], float]  # trains an epoch and returns its seconds


def clocked(epoch: Callable[[], None]) -> Epoch:
    """With the seconds by the clock of the host, until the device has finished."""

    def timed() -> float:
        synchronize()
        start = time.perf_counter()
        epoch()
        synchronize()
        return time.perf_counter() - start

    return timed


def plain_loop(task: Task) -> Epoch:
    """A loop that never waits for the device within an epoch."""
    net = WithHead(task).to(task.X.device)
    optimizer = adam(net)

    def epoch() -> None:
        for chosen in torch.randperm(len(task.X), device=task.X.device).tensor_split(task.n_steps):
            loss = (net(task.X[chosen]) - task.y[chosen]).square().flatten(1).mean(1).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return clocked(epoch)


class Watched(Callback):
    """Calls a function after each epoch, with its seconds by the clock of the host."""

    def __init__(self, before: Callable[[], None], after: Callable[[float], None]) -> None:
        self.before, self.after = before, after

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        synchronize()
        self.before()
        self.start_ = time.perf_counter()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        synchronize()
        self.after(time.perf_counter() - self.start_)


def our_net(task: Task, **settings: Any) -> CFLLNet:
    """CFLLNet on the same backbone, with the ridge of the defaults for its width and batch."""
    head = ClosedFormLastLayer if task.n_members == 1 else EnsembleLastLayer
    members = {} if task.n_members == 1 else {"last_layer__n_members": task.n_members}
    complex_ = any(p.is_complex() for p in task.backbone.parameters())
    return CFLLNet(
        task.backbone,
        optimizer=torch.optim.Adam,
        optimizer__fused=not complex_,
        lr=1e-3,
        lr_schedule="cosine",
        last_layer=head,
        **members,
        last_layer__ridge=10.0,
        device=str(task.X.device),
        batch_size=task.batch_size,
        random_state=0,
        verbose=0,
        **settings,
    )


def our_epochs(task: Task, **settings: Any) -> Epoch:
    """Epochs of CFLLNet; the first call initialises it."""
    net = our_net(task, max_epochs=1, **settings).initialize()

    def epoch() -> float:
        net.partial_fit(task.X, task.y)
        seconds: float = net.history[-1, "dur"]  # it ends when the losses are on the host
        return seconds

    return epoch


def replayed(task: Task, make: Callable[[Tensor, Tensor], Callable[[], None]]) -> Epoch:
    """Steps on a fixed batch as one CUDA graph, which is replayed for every batch."""
    X, y = task.X[: task.batch_size].clone(), task.y[: task.batch_size].clone()
    step = make(X, y)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def epoch(step: Any = step) -> None:  # which holds the tensors that the graph writes to
        for chosen in torch.randperm(len(task.X), device=X.device).split(task.batch_size):
            if len(chosen) == task.batch_size:
                torch.index_select(task.X, 0, chosen, out=X)
                torch.index_select(task.y, 0, chosen, out=y)
                graph.replay()
        if not all(bool(torch.isfinite(p).all()) for p in task.backbone.parameters()):
            raise FloatingPointError("the captured steps diverged")

    return clocked(epoch)


def captured_loop(task: Task) -> Epoch:
    """The plain loop as a graph."""

    def make(X: Tensor, y: Tensor) -> Callable[[], None]:
        net = WithHead(task).to(X.device)
        optimizer = adam(net, capturable=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            (net(X) - y).square().flatten(1).mean(1).sum().backward()
            optimizer.step()

        return step

    return replayed(task, make)


def captured_steps(task: Task) -> Epoch:
    """Our steps, last layer first, as a graph.

    The package does not do this: the layer's buffers are copied to fixed places after each step.
    """

    def make(X: Tensor, y: Tensor) -> Callable[[], None]:
        options = {"in_features": task.n_features, "out_features": y.shape[-1], "ridge": 10.0}
        head: Any = ClosedFormLastLayer(**options, device=X.device)
        if task.n_members > 1:
            head = EnsembleLastLayer(**options, n_members=task.n_members, device=X.device)
        optimizer = adam(task.backbone, capturable=True)
        for member in head.members:
            member.remember(feature_power=torch.ones((), device=X.device))
        names = ("weight", "bias", "feature_power")
        kept = [(m, name, getattr(m, name).clone()) for m in head.members for name in names]

        def step() -> None:
            for member, name, value in kept:
                member.remember(**{name: value})
            optimizer.zero_grad(set_to_none=True)
            features = task.backbone(X)
            head.step(features.detach(), y)
            loss = (head.member_predictions(features) - y).square().flatten(1).mean(1).sum()
            loss.backward()
            optimizer.step()
            for member, name, value in kept:
                value.copy_(getattr(member, name))

        return step

    return replayed(task, make)


WAYS: dict[str, Callable[[Task], Epoch]] = {
    "PyTorch loop, fused Adam": plain_loop,
    "CFLL, last layer first": our_epochs,
    "CFLL, backbone first": lambda task: our_epochs(task, update_order="backbone_first"),
    "CFLL, Cholesky": lambda task: our_epochs(task, last_layer__solver="cholesky"),
    "CFLL, CUDA graph": captured_steps,
    "PyTorch loop, CUDA graph": captured_loop,
    "CFLL, reduce-overhead": lambda task: our_epochs(
        task, compile=True, compile__mode="reduce-overhead"
    ),
}


# -- measures ---------------------------------------------------------------------------------


def milliseconds(epoch: Epoch, n_steps: int, timed: int = TIMED) -> dict[str, float]:
    """Median and range of the time of a step, from whole epochs."""
    found = [1e3 * epoch() / n_steps for _ in range(WARM_UP + timed)][WARM_UP:]
    return {"ms": float(np.median(found)), "least": min(found), "most": max(found)}


class Waits:
    """Places where the host waits for the device, counted while it is switched on."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()

    def __enter__(self) -> Waits:
        self.caught = warnings.catch_warnings(record=True)
        self.log = self.caught.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(*error)
        for each in self.log or ():
            if "synchroniz" in str(each.message):
                path = Path(each.filename)
                self.found[f"{'/'.join(path.parts[-2:])}:{each.lineno}"] += 1


def waits(epoch: Epoch, n_steps: int) -> dict[str, Any]:
    """Waits of an epoch: those of every step, per step, and the others."""
    if not torch.cuda.is_available():
        return {}
    with Waits() as seen:
        epoch()
    often = {place: n for place, n in seen.found.items() if n >= n_steps}
    return {
        "waits_per_step": sum(often.values()) / n_steps,
        "waits_per_epoch": sum(seen.found.values()) - sum(often.values()),
        "places": dict(seen.found.most_common(12)),
    }


def kernels(epoch: Epoch, n_steps: int) -> dict[str, float]:
    """Kernels and copies per step, and the milliseconds that the device is busy with them."""
    if not torch.cuda.is_available():
        return {}
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        epoch()
        synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    events = [e for e in profile.events() if e.device_type == on_device and "#" not in e.name]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e3
    return {"kernels": len(events) / n_steps, "busy_ms": busy / n_steps}
