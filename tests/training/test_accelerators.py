"""Claims: on an accelerator the host waits for no number, and copies indices once per epoch.

They hold on any machine: a tensor on torch's device "meta" has no numbers to look at, so code that
looks at one raises.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_cfll import ClosedFormLastLayer, EnsembleLastLayer
from sklearn_cfll.columns.rows import ChosenRows, as_rows
from sklearn_cfll.estimator.plan import PREDICTION_ROWS, prediction_batch
from sklearn_cfll.final_solve import out_of_fold
from sklearn_cfll.heads import MEMORIES, MemberRows
from sklearn_cfll.heads.closed_form import SOLVERS
from sklearn_cfll.training.batches import BatchIterator, RowsDataset
from sklearn_cfll.training.folds import FoldRows, Folds
from sklearn_cfll.training.optimizers import optimizer_options

N, WIDTH = 300, 256


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n_members", [1, 3])
@pytest.mark.parametrize("weights", [None, (), "each"], ids=["none", "rows", "members"])
def test_no_update_looks_at_a_number(memory, solver, n_members, weights):
    options = {"out_features": 1, "memory": memory, "solver": solver, "device": "meta"}
    if n_members == 1:
        head = ClosedFormLastLayer(WIDTH, **options)
    else:
        head = EnsembleLastLayer(n_members * WIDTH, n_members=n_members, **options)
    if weights is not None:
        shape = (n_members, N) if weights == "each" else (N,)
        weights = torch.empty(shape, device="meta")
    features = torch.empty(n_members, N, WIDTH, device="meta")
    rows = MemberRows(features, torch.empty(N, 1, device="meta"), weights, float(N))
    for _ in range(2):  # the second one has a memory of the first
        MEMORIES[memory].update(head.members, rows)
    assert head.members[0].weight.shape == (1, WIDTH)


def test_out_of_fold_errors_look_at_no_number():
    meta = {"device": "meta"}
    batch = torch.empty(N, 6, **meta), torch.empty(N, 1, **meta), torch.empty(N, 2, **meta)
    net = SimpleNamespace(labelled_features=lambda data: [batch, batch])
    paths = torch.empty(2, 5, 1, 3, **meta), torch.empty(2, 5, 1, **meta)
    assert out_of_fold.path_errors(net, None, paths).shape == (5, 1)


class CopiesFromCPU(TorchDispatchMode):
    """Counts copies of tensors from the CPU to another device."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        to = kwargs.get("device")
        if "_to_copy" in str(function) and to is not None and to.type != args[0].device.type:
            self.number += 1
        return function(*args, **kwargs)


def dataset(in_folds, chosen):
    rows = as_rows(torch.empty(N, 3, device="meta"), "meta", torch.float32)
    weight, targets = torch.empty(N, device="meta"), torch.empty(N, 1, device="meta")
    data = RowsDataset(rows, targets, weight)
    if in_folds:
        folds = Folds(*torch.empty(2, N, dtype=torch.int64, device="meta"), 4, 8)
        data = FoldRows(data, folds, False, torch.empty(8, device="meta"))
    return data.subset(torch.arange(N)) if chosen else data


@pytest.mark.parametrize("in_folds", [False, True])
@pytest.mark.parametrize("chosen", [False, True])
def test_the_order_of_an_epoch_is_copied_once(in_folds, chosen):
    iterator = BatchIterator(dataset(in_folds, chosen), 20, shuffle=True)
    with CopiesFromCPU() as copies:
        batches = list(iterator)
    assert len(batches) == 15 and batches[0].inputs.device.type == "meta"
    assert copies.number == 1


class OnDevice(torch.Tensor):
    """Indices that, like those on an accelerator, NumPy cannot read."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.numpy:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        found = super().__torch_function__(function, types, args, kwargs or {})
        moves = function in (torch.Tensor.to, torch.Tensor.cpu)
        return found.as_subclass(torch.Tensor) if moves else found


@pytest.mark.parametrize("chosen", [False, True])
@pytest.mark.parametrize("source", [scipy.sparse.csr_array, lambda X: X.astype(">f8")])
def test_rows_in_main_memory_take_indices_from_a_device(source, chosen):
    X = np.arange(12.0).reshape(6, 2)
    rows = as_rows(source(X), "cpu", torch.float64, lazy=True)
    indices = torch.tensor([4, 1]).as_subclass(OnDevice)
    found = ChosenRows(rows, indices).take(slice(None)) if chosen else rows.take(indices)
    np.testing.assert_array_equal(found, X[[4, 1]])


@pytest.mark.parametrize(
    ("kind", "fused"), [(torch.optim.Adam, True), (torch.optim.Adagrad, False)]
)
def test_no_fused_kernel_is_asked_for_that_only_a_cpu_has(kind, fused):
    assert optimizer_options(kind, nn.Linear(2, 2)) == {"fused": True}
    assert optimizer_options(kind, nn.Linear(2, 2, device="meta")) == {"fused": fused}


@pytest.mark.parametrize(("device", "factor"), [("cpu", 1), ("meta", 8)])
def test_perceptrons_predict_more_rows_at_once_on_an_accelerator(device, factor):
    where = torch.device(device)
    network = SimpleNamespace(is_perceptron=True, device=where, feature_shape=(8,))
    assert prediction_batch(network) == factor * PREDICTION_ROWS
    network.is_perceptron = False  # its rows may be images
    assert prediction_batch(network) == PREDICTION_ROWS
