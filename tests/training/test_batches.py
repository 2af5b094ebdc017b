"""Batches by index selection: coverage, order, sources of rows, statistics of inputs."""

import numpy as np
import pytest
import scipy.sparse
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from helpers import on_disk
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.columns.statistics import input_statistics, robust_statistics
from sklearn_cfll.training.batches import BatchIterator, RowsDataset, fetch, unpack_batch
from sklearn_cfll.training.seeding import mix_seed

N, D = 23, 4


def make_array(dtype=np.float64):
    X = np.random.default_rng(0).normal(size=(N, D)).astype(dtype)
    X[X < -0.5] = 0.0  # something for a sparse matrix to leave out
    return X


class Samples(Dataset):
    """A user's data set of inputs, or of (input, target) pairs."""

    def __init__(self, X, pairs=False):
        self.X, self.pairs = X, pairs

    def __len__(self):
        return len(self.X)

    def __getitem__(self, index):
        return (self.X[index], float(index)) if self.pairs else self.X[index]


class Together(Samples):
    """A data set that gives many items in one call."""

    def __getitem__(self, index):
        raise AssertionError("items are fetched together")

    def __getitems__(self, indices):
        return [(self.X[i], float(i)) for i in indices]


SOURCES = {
    "array": lambda X, _: X,
    "float32": lambda X, _: X.astype(np.float32).astype(np.float64),
    "tensor": lambda X, _: torch.from_numpy(X),
    "csr": lambda X, _: scipy.sparse.csr_array(X),
    "csc": lambda X, _: scipy.sparse.csc_matrix(X),
    "coo": lambda X, _: scipy.sparse.coo_array(X),
    "memmap": on_disk,
    "dataset": lambda X, _: Samples(X),
    "pairs": lambda X, _: Samples(X, pairs=True),
    "together": lambda X, _: Together(X),
    "tensors": lambda X, _: TensorDataset(torch.from_numpy(X)),
    "subset": lambda X, _: Subset(Together(np.repeat(X, 2, axis=0)), range(0, 2 * len(X), 2)),
    "fortran": lambda X, _: np.asfortranarray(X),
}


def make_rows(X, dtype=torch.float64):
    return as_rows(X, "cpu", dtype)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("subset", [False, True], ids=["all", "subset"])
def test_all_sources_of_rows_give_equal_batches(source, dtype, subset, tmp_path):
    X = make_array(np.float32).astype(np.float64)  # float32 numbers: no rounding anywhere
    chosen = np.array([20, 3, 3, 11, 0, 7, 15]) if subset else np.arange(N)
    dataset = RowsDataset(make_rows(source(X, tmp_path), dtype), torch.arange(float(N)))
    if subset:
        dataset = dataset.subset(chosen)
    plain = TensorDataset(torch.from_numpy(X[chosen]).to(dtype), torch.arange(float(N))[chosen])
    batches = list(BatchIterator(dataset, 5, shuffle=True, seed=3))
    expected = list(BatchIterator(plain, 5, shuffle=True, seed=3))
    assert len(batches) == len(expected)
    for batch, (wanted_inputs, wanted_targets) in zip(batches, expected, strict=True):
        inputs, targets, weight = unpack_batch(batch)
        assert weight is None and inputs.dtype == dtype
        assert torch.equal(inputs, wanted_inputs) and torch.equal(targets, wanted_targets)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_slices_and_indices_take_the_same_rows(source, tmp_path):
    rows = make_rows(source(make_array(), tmp_path))
    assert len(rows) == N and tuple(rows.shape) == (N, D)
    assert torch.equal(rows.take(slice(4, 9)), rows.take(torch.arange(4, 9)))


def test_memory_map_stays_on_disk(tmp_path):
    mapped = on_disk(make_array(), tmp_path)
    rows = make_rows(mapped, torch.float32)
    assert rows.data.dtype == torch.float64  # a copy would have been cast
    assert rows.data.data_ptr() == mapped.ctypes.data
    assert RowsDataset(rows).subset([1, 2]).inputs.rows is rows


def test_integer_rows_become_floats():
    assert make_rows(np.arange(12).reshape(6, 2)).take(slice(0, 6)).dtype == torch.float64


@pytest.mark.parametrize("n_rows", [1, 2, 7, 10, 23, 24, 25])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 25, 100])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_cover_each_row_once_and_differ_by_at_most_one_row(n_rows, batch_size, shuffle):
    dataset = RowsDataset(make_rows(np.arange(float(n_rows))[:, None]))
    iterator = BatchIterator(dataset, batch_size, shuffle=shuffle, seed=1)
    batches = [batch[0].flatten() for batch in iterator]
    sizes = [len(batch) for batch in batches]
    assert len(batches) == len(iterator) == -(-n_rows // batch_size)
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size
    assert sorted(torch.cat(batches).tolist()) == list(range(n_rows))
    if not shuffle:
        assert torch.cat(batches).tolist() == list(range(n_rows))


def epoch_order(seed, epoch, n_earlier=0):
    iterator = BatchIterator(RowsDataset(make_rows(np.arange(50.0)[:, None])), 8, True, seed)
    iterator.epoch = epoch - n_earlier
    for _ in range(n_earlier):
        list(iterator)
    return torch.cat([batch[0] for batch in iterator]).flatten().tolist()


def test_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(0)
    expected = epoch_order(seed=5, epoch=3)
    torch.manual_seed(1)  # the global state has no say
    np.random.seed(1)
    assert epoch_order(seed=5, epoch=3) == expected
    assert epoch_order(seed=5, epoch=3, n_earlier=3) == expected
    others = [epoch_order(seed=5, epoch=4), epoch_order(seed=4, epoch=3), epoch_order(6, 3)]
    assert all(other != expected for other in others)


def test_shuffling_leaves_the_global_random_state():
    state = torch.get_rng_state()
    epoch_order(seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_one_batch_of_all_rows_is_never_shuffled():
    dataset = RowsDataset(make_rows(make_array()))
    ((inputs, *_),) = BatchIterator(dataset, N, shuffle=True)
    assert torch.equal(inputs, torch.from_numpy(make_array()))


def test_seeds_of_near_epochs_are_unrelated():
    seeds = {mix_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(seeds) == 400 and all(0 <= seed < 2**63 for seed in seeds)
    assert mix_seed(1, 2) != mix_seed(2, 1)


def test_weights_and_targets_follow_their_rows():
    X = np.arange(float(N))[:, None]
    dataset = RowsDataset(make_rows(X), torch.arange(N) * 10.0, torch.arange(N) * 100.0)
    chosen = dataset.subset(np.arange(1, N, 2))
    assert len(chosen) == len(range(1, N, 2))
    for part in (dataset, chosen):
        for inputs, targets, weight in BatchIterator(part, 4, shuffle=True):
            assert torch.equal(targets, inputs[:, 0] * 10.0)
            assert torch.equal(weight, inputs[:, 0] * 100.0)
    inputs, target, weight = chosen[2]
    assert (inputs.tolist(), target.item(), weight.item()) == ([5.0], 50.0, 500.0)


def test_subset_of_a_subset_counts_from_the_subset():
    dataset = RowsDataset(make_rows(np.arange(float(N))[:, None]), torch.arange(float(N)))
    chosen = dataset.subset([4, 9, 16, 22]).subset([3, 1])
    inputs, targets, _ = chosen.batch(slice(0, 2))
    assert inputs.flatten().tolist() == targets.tolist() == [22.0, 9.0]


def test_torch_subsets_fetch_whole_batches():
    dataset = RowsDataset(make_rows(np.arange(float(N))[:, None]), torch.arange(float(N)))
    inputs, targets, _ = fetch(Subset(Subset(dataset, [2, 4, 6, 8]), [3, 0]), slice(0, 2))
    assert inputs.flatten().tolist() == targets.tolist() == [8.0, 2.0]


def test_data_sets_that_fetch_several_rows_at_once_are_asked_once():
    calls = []

    class Several(Samples):
        def __getitems__(self, indices):
            calls.append(indices)
            return [self[index] for index in indices]

    batches = list(BatchIterator(Several(make_array(), pairs=True), 12))
    assert [len(call) for call in calls] == [len(batch[0]) for batch in batches] == [11, 12]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [("x", ("x", None, None)), (["x", "y"], ("x", "y", None)), (tuple("xyw"), ("x", "y", "w"))],
)
def test_batches_may_lack_targets_and_weights(batch, expected):
    assert unpack_batch(batch) == expected


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch_size", [5, 8192])
def test_input_statistics_are_weighted_means_and_deviations(weighted, dtype, batch_size):
    X = make_array(np.float32).astype(np.float64) + 1e3
    X = X.astype(np.float32).astype(np.float64)
    w = np.random.default_rng(1).integers(0, 4, N).astype(float) if weighted else np.ones(N)
    weight = torch.from_numpy(w).to(dtype) if weighted else None
    mean, std = input_statistics(make_rows(X, dtype), weight, batch_size)
    expected = np.average(X, axis=0, weights=w)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)
    variance = np.average((X - expected) ** 2, axis=0, weights=w)
    np.testing.assert_allclose(std, np.sqrt(variance), rtol=1e-9)
    assert mean.dtype == std.dtype == torch.float64


def robust(X, weight=None):
    weight = None if weight is None else torch.from_numpy(weight)
    return robust_statistics(make_rows(X, torch.float64), weight)[:2]


def test_entries_far_out_do_not_move_robust_statistics():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(5.0, 2.0, 400), rng.lognormal(size=400), np.arange(400) % 2])
    plain = input_statistics(make_rows(X, torch.float64), None)
    for found, expected in zip(robust(X), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)  # nothing is far out here
    spoilt = X.copy()
    spoilt[7], spoilt[8] = 1e12, -1e12
    mean, std = robust(spoilt)  # each counts as an entry some 35 deviations off
    assert ((mean - plain[0]).abs() < plain[1]).all() and (std < 4 * plain[1]).all()


def test_a_column_with_one_common_value_keeps_its_statistics():
    X = np.zeros((100, 1))
    X[:3] = 9.0
    mean, std = robust(X)
    np.testing.assert_allclose([mean.item(), std.item()], [X.mean(), X.std()], rtol=1e-14)


def test_robust_statistics_take_weights_as_repetitions_and_follow_units():
    rng = np.random.default_rng(1)
    X, counts = rng.standard_cauchy((60, 3)), rng.integers(1, 4, 60)
    weighted, repeated = robust(X, counts.astype(float)), robust(np.repeat(X, counts, axis=0))
    shifted = robust(2.0 * X + 5.0)
    for found, expected in zip(weighted, repeated, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(robust(X)[1] * 2.0, shifted[1], rtol=1e-12, atol=0)
