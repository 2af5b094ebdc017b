"""Columns cut into bins, and the network that sees them."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.backbones.mlp import Blocks
from sklearn_cfll.columns.bins import PiecewiseLinear, bin_edges


def rows(n=200, p=3, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, p)))


def encoding(edges):
    layer = PiecewiseLinear().double()
    layer.set_edges([np.asarray(column, dtype=float) for column in edges])
    return layer


def binned(model):
    return any(isinstance(part, Blocks) for part in model.backbone_.modules())


def test_bins_hold_equal_shares_of_the_rows():
    values = rows(1000, 2)
    for column, edges in zip(values.T, bin_edges(values, None, 8), strict=True):
        assert len(edges) == 9
        assert edges[0] == column.min() and edges[-1] == column.max()
        counts, _ = np.histogram(column.numpy(), edges)
        assert abs(counts - 125).max() <= 1


def test_many_equal_values_make_fewer_bins():
    values = torch.tensor([[0.0, 5.0, 0.0], [0.0, 5.0, 1.0], [0.0, 5.0, 1.0], [3.0, 5.0, 2.0]])
    edges = bin_edges(values.double(), None, 16)
    assert [column.tolist() for column in edges] == [[0.0, 3.0], [5.0], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_bins_of_a_frequent_value_go_to_the_other_rows(weighted):
    rng = np.random.default_rng(0)
    gains = np.where(rng.random(4000) < 0.9, 0.0, rng.lognormal(size=4000))
    weights = rng.integers(1, 3, 4000) if weighted else np.ones(4000, dtype=int)
    (edges,) = bin_edges(
        torch.as_tensor(gains)[:, None], torch.as_tensor(weights) if weighted else None, 16
    )
    assert 14 <= len(edges) <= 17 and edges[0] == 0.0 and edges[-1] == gains.max()
    rest = np.repeat(gains, weights)
    shares = np.histogram(rest[rest > 0], edges[1:])[0] / (rest > 0).sum()
    assert shares.max() < 0.15
    if weighted:
        (repeated,) = bin_edges(torch.as_tensor(rest)[:, None], None, 16)
        np.testing.assert_array_equal(repeated, edges)


def test_a_column_of_few_values_has_an_edge_at_each():
    codes = torch.arange(30).repeat(20).double()
    values = torch.stack([codes, codes.flip(0) ** 2, rows(600, 1)[:, 0]], dim=1)
    for n_values, lengths in ((30, [30, 30, 5]), (29, [5, 5, 5])):
        edges = bin_edges(values, None, 4, n_values)
        assert [len(column) for column in edges] == lengths
    assert len(bin_edges(values[:479], None, 4, 99)[0]) == 5  # fewer than 16 rows a value
    weight = torch.ones(600).double()
    weight[codes == 7] = 0.0  # as if these rows were not there
    assert 7.0 not in bin_edges(values, weight, 4, 99)[0]


def test_codes_in_any_order_are_distinguished():
    rng = np.random.RandomState(0)
    codes = rng.randint(40, size=900)
    y = rng.randn(40)[codes] + 0.1 * rng.randn(900)
    X = np.column_stack([codes, rng.randn(900)])
    model = CFLLRegressor(max_epochs=20, random_state=0).fit(X[:700], y[:700])
    assert model.score(X[700:], y[700:]) > 0.95  # 0.76 with 16 bins of equal weight


@pytest.mark.parametrize("scale", [1.0, 1 / 3, 1e-4, 7e5])
def test_a_weight_is_a_number_of_repetitions(scale):
    values, counts = rows(60, 4), torch.from_numpy(np.random.default_rng(1).integers(0, 5, 60))
    repeated = bin_edges(values.repeat_interleave(counts, 0), None, 12)
    kept = counts > 0
    weighted = bin_edges(values[kept], counts[kept] * scale, 12)
    for left, right in zip(repeated, weighted, strict=True):
        np.testing.assert_array_equal(left, right)


def test_order_of_rows_does_not_matter_and_scale_goes_through():
    values = rows(50, 2)
    edges = bin_edges(values, None, 5)
    shuffled = bin_edges(values.flip(0), None, 5)
    moved = bin_edges(3.0 * values + 2.0, None, 5)
    for plain, other, scaled in zip(edges, shuffled, moved, strict=True):
        np.testing.assert_array_equal(plain, other)
        np.testing.assert_allclose(3.0 * plain + 2.0, scaled, rtol=1e-12)


def test_encoding_passes_through_each_bin_and_is_flat_outside():
    layer = encoding([[0.0, 1.0, 3.0], [2.0], [-1.0, 1.0]])
    inputs = torch.tensor(
        [[-5.0, 0.0, -1.0], [0.5, 2.0, 0.0], [2.0, 9.0, 1.0], [99.0, 0.0, 7.0]]
    ).double()
    expected = [[-1, -1, -1], [0, -1, 0], [1, 0, 1], [1, 1, 1]]
    assert layer(inputs).tolist() == expected
    assert layer.n_outputs == 3 and layer.column.tolist() == [0, 0, 2]
    assert layer.float()(inputs).dtype == torch.float32  # that of the network


def test_a_linear_layer_on_it_is_any_piecewise_linear_function_with_these_edges():
    values = rows(300, 1)
    edges = bin_edges(values, None, 6)
    knots = np.random.default_rng(2).normal(size=len(edges[0]))
    wanted = np.interp(values[:, 0].numpy(), edges[0], knots)
    encoded = encoding(edges)(values).numpy()
    design = np.column_stack([encoded, np.ones(len(values))])
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    np.testing.assert_allclose(design @ solution, wanted, atol=1e-10)


def test_large_offsets_keep_their_bins_in_float32():
    stamps = (1.6e9 + 1024.0 * torch.arange(64)).reshape(-1, 1).float()
    edges = bin_edges(stamps, None, 8)
    assert len(edges[0]) == 9
    encoded = encoding(edges).float()(stamps)
    assert (encoded.diff(dim=0) >= 0).all() and encoded.unique(dim=0).shape[0] == 64


def test_a_quarter_of_the_units_see_the_bins():
    module = clone(MLPBackbone((9, 6), bins_share=0.25)).build((15,), widths=(3, 12))
    widths = [
        [part.out_features for part in network if isinstance(part, nn.Linear)]
        for network in module.networks
    ]
    assert widths == [[7, 5], [2, 1]]
    assert module.double()(rows(7, 15)).shape == (7, 6)


def test_a_layer_too_narrow_to_be_shared_is_named():
    model = CFLLRegressor(hidden_layer_sizes=(8, 1), columns=ColumnEncoder(n_bins=4))
    with pytest.raises(ValueError, match=r"split among 2 encodings .* must be at least 2, got"):
        model.fit(rows().numpy(), rows()[:, 0].numpy())


def test_bins_help_where_the_target_jumps():
    rng = np.random.default_rng(0)
    X = rng.uniform(size=(1200, 3))
    y = np.sign(np.sin(40 * X[:, 0])) + X[:, 1]
    settings = {"hidden_layer_sizes": (32, 32), "max_epochs": 20, "random_state": 0}
    score = {
        n: CFLLRegressor(columns=ColumnEncoder(n), **settings)
        .fit(X[:800], y[:800])
        .score(X[800:], y[800:])
        for n in (0, 32)
    }
    assert score[32] > score[0] + 0.3


@pytest.mark.parametrize(
    ("X", "has_bins"),
    [
        (np.random.default_rng(0).normal(size=(40, 3)), True),
        (np.random.default_rng(0).integers(0, 2, (40, 3)), False),  # one bin is the column
        (np.random.default_rng(0).normal(size=(40, 1500)), False),  # most of the network
    ],
    ids=["continuous", "binary", "wide"],
)
def test_bins_are_used_where_they_say_something(X, has_bins):
    model = CFLLRegressor(n_members=1, max_epochs=1, random_state=0).fit(X, X.sum(1))
    assert binned(model) == has_bins


@pytest.mark.parametrize(
    ("sizes", "columns"), [((8, 8), ColumnEncoder(0)), ((1,), None), (5, None)], ids=str
)
def test_one_network_where_bins_are_off_or_cannot_be(sizes, columns):
    X = rows(50).numpy()
    model = CFLLRegressor(
        hidden_layer_sizes=sizes, columns=columns, n_members=1, max_epochs=1, random_state=0
    ).fit(X, X[:, 0])
    assert binned(model) == (sizes == 5)


def test_binned_models_survive_saving(tmp_path):
    X = rows(80).numpy()
    model = CFLLClassifier(columns=ColumnEncoder(), max_epochs=2, random_state=0).fit(
        X, X[:, 0] > 0
    )
    assert binned(model)
    model.save(tmp_path / "model.npz")
    opened = CFLLClassifier.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(model.predict_proba(X), opened.predict_proba(X))


@pytest.mark.parametrize("kind", ["sparse", "memmap", "dataset"])
def test_edges_are_the_same_however_the_rows_are_held(kind, tmp_path):
    X = rows(90).float().numpy()
    y = X[:, 0] + X[:, 1]
    if kind == "sparse":
        held = scipy.sparse.csr_matrix(X)
    elif kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        held = np.load(tmp_path / "X.npy", mmap_mode="r")
    else:
        held = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    settings = {"max_epochs": 2, "random_state": 0, "precision": "float32", "n_members": 1}
    plain = CFLLRegressor(**settings).fit(X, y)
    model = CFLLRegressor(**settings).fit(held, y)
    assert binned(model)
    np.testing.assert_allclose(model.predict(X), plain.predict(X), rtol=1e-5)
