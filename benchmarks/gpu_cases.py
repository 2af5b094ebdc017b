"""What is compared between a CPU and a GPU: estimators, their data, and what they predict.

A case is a function of a device and a precision that returns a fitted estimator and new rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLIVRegressor, CFLLRegressor
from sklearn_cfll.backbones import FNOBackbone
from sklearn_cfll.datasets import make_burgers, make_demand_design

N_ROWS, N_COLUMNS, N_NEW = 600, 6, 200
BRIEF: dict[str, Any] = {"max_epochs": 6, "random_state": 0}
Outputs = dict[str, np.ndarray]


class Data(NamedTuple):
    """Training rows and further arguments of ``fit``; new rows."""

    X: Any
    y: Any
    new: Any
    new_y: Any
    options: dict[str, Any] = {}  # noqa: RUF012

    def rounded(self, precision: str) -> Data:
        """With inputs changed by about a unit in the last place of the precision."""
        if not isinstance(self.X, np.ndarray) or self.X.dtype.kind != "f":
            return self
        eps = 2 * np.finfo("float64" if precision == "float64" else "float32").eps
        signs = np.random.default_rng(1).choice([-1, 1], self.X.shape)
        return self._replace(X=np.asarray(self.X * (1 + eps * signs), self.X.dtype))


class Case(NamedTuple):
    """An estimator, how it is fitted and on what."""

    kind: type
    data: Callable[[], Data]
    settings: dict[str, Any]
    fit: Callable[[Any, Data], Any] = lambda model, data: model.fit(data.X, data.y, **data.options)
    precisions: tuple[str, ...] = ("float32", "float64")
    of_rows: tuple[str, ...] = ("std", "interval")  # what it says of single rows

    def fitted(self, data: Data, device: str, precision: str) -> Any:
        """A new estimator, fitted on this device."""
        settings = BRIEF | {"device": device, "precision": precision} | self.settings
        if settings.get("backbone") is None:
            settings.pop("backbone", None)
        return self.fit(self.kind(**settings), data)


# -- data -----------------------------------------------------------------------------------


def table(n_rows: int = N_ROWS, n_targets: int = 1) -> Data:
    X = np.random.default_rng(0).normal(size=(n_rows + N_NEW, N_COLUMNS))
    signal = np.stack(
        [X[:, i] * X[:, i + 1] + np.sin(3 * X[:, i + 2]) for i in range(n_targets)], 1
    )
    y = signal + 0.1 * np.random.default_rng(1).normal(size=signal.shape)
    y = y[:, 0] if n_targets == 1 else y
    return Data(X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:])


def weighted() -> Data:
    data = table()
    weight = np.random.default_rng(2).integers(1, 4, len(data.X)).astype(float)
    return data._replace(options={"sample_weight": weight})


def in_other_form(change: Callable[[Any], Any]) -> Callable[[], Data]:
    def changed() -> Data:
        data = table()
        return data._replace(X=change(data.X), new=change(data.new))

    return changed


def named(X: np.ndarray) -> dict[str, np.ndarray]:
    return {"left": X[:, :3], "right": X[:, 3:]}


def memory_map(X: np.ndarray) -> np.ndarray:
    found = np.memmap(Path(tempfile.mkdtemp()) / "X", X.dtype, "w+", shape=X.shape)
    found[:] = X
    return found


def dataset() -> Data:
    data = table()
    X, y = (torch.from_numpy(part) for part in (data.X, data.y))
    return data._replace(X=TensorDataset(X, y), y=None)


def categories() -> Data:
    X = np.random.default_rng(0).integers(0, 5, (N_ROWS + N_NEW, 3))
    y = np.sin(X.astype(float)).sum(1)
    return Data(X[:N_ROWS], y[:N_ROWS], X[N_ROWS:], y[N_ROWS:])


def classes() -> Data:
    data = table(n_targets=2)
    cut = [np.digitize(y[:, 0], [-1, 1]) for y in (data.y, data.new_y)]
    return data._replace(y=cut[0], new_y=cut[1])


def labels() -> Data:
    data = table(n_targets=3)
    return data._replace(y=(data.y > 0).astype(int), new_y=(data.new_y > 0).astype(int))


def images() -> Data:
    X = np.random.default_rng(0).normal(size=(N_ROWS, 3, 12, 12)).astype(np.float32)
    X[:, 0, :6] += np.random.default_rng(1).normal(size=(N_ROWS, 1, 1)).astype(np.float32)
    y = (X[:, 0, :6].mean((1, 2)) > X[:, 0, 6:].mean((1, 2))).astype(int)
    half = N_ROWS // 2
    return Data(X[:half], y[:half], X[half:], y[half:])


def demand() -> Data:
    found = make_demand_design(N_ROWS, random_state=0)
    options = {"Z": found.Z, "C": found.C}
    return Data(found.X, found.y, (found.X, found.C), found.y, options)


def fields(points: int, n_dim: int) -> Callable[[], Data]:
    def made() -> Data:
        if n_dim == 1:
            X, y = make_burgers(60, points, random_state=0)
        else:
            X = np.random.default_rng(0).normal(size=(60, points, points)).cumsum(1).cumsum(2)
            X = X / X.std()
            y = X * np.roll(X, 1, 1) - np.roll(X, 2, 2)
        return Data(X[:40], y[:40], X[40:], y[40:])

    return made


# -- networks that a user would pass -----------------------------------------------------------


class Joined(nn.Module):
    """A network with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 16), nn.Linear(N_COLUMNS - 3, 16)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.cat([self.left(left), self.right(right)], 1))


def perceptron(n_outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(N_COLUMNS, 32), nn.BatchNorm1d(32), nn.ReLU()),
        *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, n_outputs)),
    )


def embedding() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 16), nn.Tanh())


def convolutions(channels: int = 8, n_outputs: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()),
        *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, n_outputs)),
    )


class Operator(nn.Module):
    """neuraloperator's own network as a backbone, with features last."""

    def __init__(self, n_modes: int = 8) -> None:
        super().__init__()
        from neuralop.models import FNO

        torch.manual_seed(0)
        modes = (n_modes, n_modes)
        self.network = FNO(modes, in_channels=1, out_channels=16, hidden_channels=16, n_layers=2)

    def forward(self, fields: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network(fields.unsqueeze(1))
        return found.movedim(1, -1)


# -- ways to fit ------------------------------------------------------------------------------


def in_parts(model: Any, data: Data) -> Any:
    for part in np.array_split(np.arange(len(data.X)), 3):
        model.partial_fit(data.X[part], data.y[part])
    return model


def adapted(model: Any, data: Data) -> Any:
    half = len(data.X) // 2
    return model.fit(data.X[:half], data.y[:half]).adapt(data.X[half:], data.y[half:] + 1)


def twice(model: Any, data: Data) -> Any:
    return model.fit(data.X, data.y).fit(data.X, data.y)


def loaded_on_the_other(model: Any, data: Data) -> Any:
    """Fitted on the other device, loaded on the wanted one and trained on there."""
    wanted = model.device
    other = "cpu" if str(wanted) != "cpu" or not torch.cuda.is_available() else "cuda"
    half = len(data.X) // 2
    model.set_params(device=other).partial_fit(data.X[:half], data.y[:half])
    moved = moved_to(model, wanted)
    return moved.partial_fit(data.X[half:], data.y[half:]).partial_fit(data.X, data.y)


def moved_to(model: Any, device: str) -> Any:
    """The fitted model, saved and loaded on a device."""
    path = Path(tempfile.mkdtemp()) / "model"
    model.save(path)
    code = {}
    given = getattr(model, "backbone", None)
    if given is not None and not isinstance(given, FNOBackbone):
        code = {"backbone": given}
    return type(model).load(path, device=device, **code)


REGRESSOR, CLASSIFIER = CFLLRegressor, CFLLClassifier
FOURIER = FNOBackbone(n_modes=8, hidden_channels=12, n_layers=2)
PAIR = FNOBackbone(n_modes=(8, 8), hidden_channels=12, n_layers=2)
ALL = FNOBackbone(n_modes=(16, 16), hidden_channels=12, n_layers=2)
CASES: dict[str, Case] = {
    "default ensemble": Case(REGRESSOR, table, {}),
    "few rows, linear part": Case(REGRESSOR, lambda: table(150), {}),
    "sample weights": Case(REGRESSOR, weighted, {}),
    "three targets": Case(REGRESSOR, lambda: table(n_targets=3), {}),
    "one wide network": Case(REGRESSOR, table, {"n_members": 1, "hidden_layer_sizes": (256, 256)}),
    "dropout": Case(REGRESSOR, table, {"dropout": 0.1}),
    "memory of statistics": Case(REGRESSOR, table, {"memory": "statistics"}),
    "backbone first": Case(REGRESSOR, table, {"update_order": "backbone_first"}),
    "full batch": Case(REGRESSOR, table, {"batch_size": "full"}),
    "no refit, nothing held out": Case(
        REGRESSOR, table, {"refit_last_layer": False, "early_stopping": False}, of_rows=()
    ),
    "own network": Case(REGRESSOR, table, {"backbone": perceptron()}),
    "own network, 4 members": Case(
        REGRESSOR, table, {"backbone": lambda shape: perceptron(), "n_members": 4}
    ),
    "two named inputs": Case(REGRESSOR, in_other_form(named), {"backbone": Joined()}),
    "embeddings": Case(REGRESSOR, categories, {"backbone": embedding()}),
    "sparse matrix": Case(REGRESSOR, in_other_form(scipy.sparse.csr_matrix), {}),
    "memory map": Case(REGRESSOR, in_other_form(memory_map), {"backbone": perceptron()}),
    "torch Dataset": Case(REGRESSOR, dataset, {"backbone": perceptron()}),
    "three classes": Case(CLASSIFIER, classes, {}),
    "several labels": Case(CLASSIFIER, labels, {}),
    "convolutions": Case(CLASSIFIER, images, {"backbone": convolutions()}),
    "instruments": Case(CFLLIVRegressor, demand, {"max_epochs": 20}),
    "instruments, batches": Case(CFLLIVRegressor, demand, {"max_epochs": 6, "batch_size": 128}),
    "partial_fit": Case(REGRESSOR, table, {}, in_parts, of_rows=("std",)),
    "adapt": Case(REGRESSOR, table, {}, adapted),
    "warm start": Case(REGRESSOR, table, {"warm_start": True}, twice),
    "loaded on the other device": Case(REGRESSOR, table, {}, loaded_on_the_other, of_rows=("std",)),
    "FNO, 64 points": Case(REGRESSOR, fields(64, 1), {"backbone": FOURIER}),
    "FNO, 50 points": Case(REGRESSOR, fields(50, 1), {"backbone": FOURIER}),
    "FNO, 32 x 32": Case(REGRESSOR, fields(32, 2), {"backbone": PAIR}),
    "FNO, 24 x 24": Case(REGRESSOR, fields(24, 2), {"backbone": PAIR}),
    "FNO, 16 x 16, all modes": Case(REGRESSOR, fields(16, 2), {"backbone": ALL}),
    "neuralop, 32 x 32": Case(REGRESSOR, fields(32, 2), {"backbone": lambda shape: Operator()}),
    "neuralop, 24 x 24": Case(REGRESSOR, fields(24, 2), {"backbone": lambda shape: Operator()}),
    "compiled": Case(REGRESSOR, table, {"compile": True}, precisions=("float32",)),
    "compiled own network": Case(
        REGRESSOR, table, {"backbone": perceptron(), "compile": True}, precisions=("float32",)
    ),
}


# -- what they predict --------------------------------------------------------------------------


def outputs(case: Case, model: Any, new: Any) -> Outputs:
    """All predictions for new rows."""
    if isinstance(model, CFLLIVRegressor):
        return dict(zip(("f", "std"), model.predict(*new, return_std=True), strict=True))
    if isinstance(model, CFLLClassifier):
        return {"scores": model.decision_function(new), "probabilities": model.predict_proba(new)}
    found = {"mean": model.predict(new), "features": model.features(new)}
    if "std" in case.of_rows:
        found["std"] = model.predict(new, return_std=True)[1]
        found["covariance"] = model.predict(new[:20], return_cov=True)[1] if is_table(new) else 0
    if "interval" in case.of_rows:
        found["lower"], found["upper"] = model.predict_interval(new)
    if is_table(new):
        found["torch"] = as_module(model, new).reshape(found["mean"].shape)
        if new.dtype.kind == "f":
            found["importances"] = model.feature_importances_
    return found


def is_table(new: Any) -> bool:
    return isinstance(new, np.ndarray) and new.ndim == 2 and new.shape[1] <= N_COLUMNS


def as_module(model: Any, new: np.ndarray) -> np.ndarray:
    """Predictions of the plain torch module."""
    module = model.to_torch()
    dtype = torch.int64 if new.dtype.kind == "i" else torch.float64
    if new.dtype.kind == "f" and model.backbone is not None:
        dtype = next(module.parameters()).dtype
    with torch.no_grad():
        found: np.ndarray = module(torch.from_numpy(np.array(new)).to(dtype)).numpy()
    return found


def score(model: Any, data: Data) -> float:
    """The estimator's own score on new rows."""
    if isinstance(model, CFLLIVRegressor):
        return float(model.score(data.X, data.y, data.options["Z"], data.options["C"]))
    return float(model.score(data.new, data.new_y))


def difference(found: Outputs, wanted: Outputs) -> float:
    """Largest absolute difference in units of the standard deviation of each output."""
    differences = []
    for name, values in wanted.items():
        a, b = np.asarray(found[name], float), np.asarray(values, float)
        differences.append(np.abs(a - b).max() / (b.std() or 1.0))
    return float(max(differences))


def agreement(case: Case, device: str, precision: str) -> dict[str, Any]:
    """One case on a CPU and on another device.

    ``fits`` is the difference between the predictions of two fits, ``rounded`` the same for two
    fits on the CPU whose inputs differ in the last place, ``moved`` that between a fitted model and
    itself on the other device, with all that it predicts of rows.
    """
    data = case.data()
    models = {
        where: case.fitted(data, where, precision) for where in dict.fromkeys(("cpu", device))
    }
    models["rounded"] = case.fitted(data.rounded(precision), "cpu", precision)
    found = {name: outputs(case, model, data.new) for name, model in models.items()}
    predictions = {name: dict([next(iter(each.items()))]) for name, each in found.items()}
    moved = [
        difference(outputs(case, moved_to(models[here], there), data.new), found[here])
        for here, there in (("cpu", device), (device, "cpu"))
    ]
    return {
        "fits": difference(predictions[device], predictions["cpu"]),
        "rounded": difference(predictions["rounded"], predictions["cpu"]),
        "moved": max(moved),
        "score": score(models["cpu"], data),
        "score on device": score(models[device], data),
    }


def nudged(case: Case, precision: str) -> dict[str, Any]:
    """What a change of new rows in the last place does to all outputs of a model, on the CPU.

    It is what rounding alone can do, and the measure of ``moved``.
    """
    data = case.data()
    model = case.fitted(data, "cpu", precision)
    new = data._replace(X=data.new).rounded(precision).X
    found, wanted = outputs(case, model, new), outputs(case, model, data.new)
    each = {name: difference({name: found[name]}, {name: wanted[name]}) for name in wanted}
    most = max(each, key=lambda name: each[name])
    return {"nudged": each[most], "output": most}
