"""Kinds of X for a user's backbone, and what its forward does to dtypes and shapes."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits, make_friedman1, make_regression
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLRegressor
from small_networks import X, convolutional_network, regressor, y

# -- images and fields ------------------------------------------------------------------------


# -- kinds of X -------------------------------------------------------------------------------


class Pairs(Dataset):
    """Single samples, as users write them."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return torch.as_tensor(X[index]), y[index]


class Inputs(Pairs):
    """Samples without a target."""

    def __getitem__(self, index):
        return torch.as_tensor(X[index])


def memory_map(tmp_path):
    np.save(tmp_path / "X.npy", X)
    return np.load(tmp_path / "X.npy", mmap_mode="r")


KINDS_OF_X = {
    "list": lambda path: X.tolist(),
    "memmap": memory_map,
    "csr": lambda path: scipy.sparse.csr_matrix(X),
    "csc": lambda path: scipy.sparse.csc_matrix(X),
    "sparse_array": lambda path: scipy.sparse.csr_array(X),
    "tensor": lambda path: torch.as_tensor(X),
    "fortran_order": lambda path: np.asfortranarray(X),
    "reversed_view": lambda path: X[::-1][::-1],
    "pandas": lambda path: pd.DataFrame(X, columns=list("abcdef")),
    "polars": lambda path: pl.DataFrame(X, schema=list("abcdef")),
    "dataset": lambda path: Inputs(),
}


@pytest.mark.parametrize("kind", KINDS_OF_X)
def test_every_kind_of_input_gives_the_same_fit(kind, tmp_path):
    given = KINDS_OF_X[kind](tmp_path)
    model = regressor(max_epochs=4, batch_size=40)
    expected = model.fit(X, y).predict(X)
    model.fit(given, y)
    np.testing.assert_allclose(model.predict(given), expected, rtol=1e-6)
    np.testing.assert_allclose(model.predict(given, return_std=True)[0], expected, rtol=1e-6)
    assert model.n_features_in_ == 6
    assert hasattr(model, "feature_names_in_") == (kind in ("pandas", "polars"))
    model.adapt(given, y).partial_fit(given, y)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, np.uint8, bool])
def test_any_numeric_dtype_works_first_time(dtype):
    whole = (10 * X).astype(dtype)
    model = regressor(max_epochs=4)
    expected = model.fit(whole.astype(np.float64), y).predict(whole.astype(np.float64))
    np.testing.assert_allclose(model.fit(whole, y).predict(whole), expected, rtol=1e-7)


@pytest.mark.parametrize("dataset", [Pairs(), TensorDataset(torch.tensor(X), torch.tensor(y))])
def test_dataset_that_holds_the_targets_needs_no_y(dataset):
    model = regressor(max_epochs=4, batch_size=40)
    expected = model.fit(X, y).predict(X)
    model.fit(dataset)
    np.testing.assert_allclose(model.predict(dataset), expected, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-6)
    model.partial_fit(dataset)


def test_dataset_takes_weights_and_a_validation_set():
    model = regressor(max_epochs=3)
    weights = np.random.default_rng(0).uniform(0, 2, len(X))
    weights[:5] = 0
    expected = model.fit(X, y, weights, X_val=X, y_val=y).predict(X)
    np.testing.assert_allclose(
        model.fit(Pairs(), sample_weight=weights, X_val=Pairs()).predict(X), expected, rtol=1e-6
    )


def test_dataset_of_images_classifies():
    digits = load_digits()
    images = torch.as_tensor(digits.images[:800, None] / 16, dtype=torch.float32)
    dataset = TensorDataset(images[:400], torch.as_tensor(digits.target[:400]))
    model = CFLLClassifier(convolutional_network(), max_epochs=8, batch_size=64, random_state=0)
    assert model.fit(dataset).score(images[400:], digits.target[400:800]) > 0.85


def test_memory_map_of_images_works(tmp_path):
    digits = load_digits()
    np.save(tmp_path / "images.npy", digits.images[:300, None].astype(np.float32))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    model = CFLLClassifier(convolutional_network(), max_epochs=3, batch_size=64, random_state=0)
    mapped = model.fit(images, digits.target[:300]).decision_function(images)
    held = model.fit(np.array(images), digits.target[:300]).decision_function(np.array(images))
    np.testing.assert_array_equal(mapped, held)


def test_sparse_rows_are_made_dense_a_batch_at_a_time(monkeypatch):
    sparse = scipy.sparse.random(6000, 50, density=0.05, format="csr", random_state=0)
    targets = np.asarray(sparse.sum(1)).ravel()
    sizes = []
    toarray = scipy.sparse.csr_matrix.toarray

    def counted(matrix, *args, **kwargs):
        sizes.append(matrix.shape[0])
        return toarray(matrix, *args, **kwargs)

    monkeypatch.setattr(type(sparse), "toarray", counted)
    regressor(nn.Linear(50, 1), max_epochs=1, batch_size=100).fit(sparse, targets)
    assert 100 <= max(sizes) <= 2000  # the largest batch of predictions


def test_wide_integers_and_many_targets_keep_their_values():
    inputs, targets = make_regression(160, 4, n_targets=2, random_state=0)
    model = regressor().fit(inputs[:60], (1000 * targets[:60]).astype(np.int64))
    assert model.predict(inputs).dtype.kind == "f"
    assert model.score(inputs[60:], 1000 * targets[60:]) > 0.9


# -- what forward does to its output ----------------------------------------------------------


class Casts(nn.Module):
    """Returns another dtype than that of training."""

    def __init__(self, dtype, whole):
        super().__init__()
        self.body, self.dtype = nn.Linear(5, 8), dtype
        self.last = nn.Linear(8, 1) if whole else nn.Tanh()

    def forward(self, inputs):
        return self.last(torch.relu(self.body(inputs))).to(self.dtype)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_outputs_in_another_dtype(dtype, precision, whole):
    X, y = make_friedman1(60, n_features=5, random_state=0)
    model = CFLLRegressor(Casts(dtype, whole), precision=precision, max_epochs=2, random_state=0)
    prediction, deviation = model.fit(X, y).predict(X, return_std=True)
    assert model.features(X).shape == (60, 8)  # the last layer is split off all the same
    assert prediction.dtype == deviation.dtype == precision
    inputs = torch.as_tensor(X, dtype=getattr(torch, precision))
    network = model.to_torch()(inputs).detach().double().numpy()
    # Rounding to half precision counts only where the network itself ends in the last layer.
    half = {torch.bfloat16: 0.15, torch.float16: 0.02} if whole else {}
    np.testing.assert_allclose(network[:, 0], prediction, rtol=0, atol=half.get(dtype, 1e-4))
    assert np.isfinite(model.partial_fit(X[:3], y[:3]).predict(X)).all()


class CastsInside(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.body, self.dtype = nn.Linear(5, 4, dtype=dtype), dtype

    def forward(self, inputs):
        return torch.relu(self.body(inputs.to(self.dtype)))


def test_inputs_that_forward_casts():
    X, y = make_friedman1(60, n_features=5, random_state=0)
    for dtype in (torch.float32, torch.float64):
        for n_rows in (60, 600):  # of float64 and of float32 by default
            X, y = make_friedman1(n_rows, n_features=5, random_state=0)
            model = CFLLRegressor(CastsInside(dtype), max_epochs=1).fit(X, y)
            assert model.resolved_["precision"] == str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=r"same dtype.*`precision`.*remove casts"):
        CFLLRegressor(CastsInside(torch.bfloat16)).fit(X, y)


class Squeezes(nn.Module):
    def __init__(self, n_features, last=None, positions=False):
        super().__init__()
        self.positions = positions
        self.body, self.last = nn.Conv2d(1, n_features, (3, 1 if positions else 3)), last

    def forward(self, inputs):
        features = torch.relu(self.body(inputs)).squeeze()
        features = features.movedim(-2, -1) if self.positions else features
        return features if self.last is None else self.last(features).squeeze()


@pytest.mark.parametrize("kind", ["features", "whole", "positions"])
def test_squeeze_does_not_lose_the_only_row(kind):
    images = np.random.default_rng(0).normal(size=(50, 1, 3, 3))
    y = images[:, 0, 0] if kind == "positions" else images[:, 0, 0, 0]
    last = nn.Linear(4, 1) if kind == "whole" else None
    backbone = Squeezes(4, last, positions=kind == "positions")
    model = CFLLRegressor(backbone, max_epochs=1, random_state=0).fit(images, y)
    one = model.predict(images[:1])
    assert one.shape == y[:1].shape
    np.testing.assert_allclose(one, model.predict(images)[:1], rtol=1e-9)
    assert model.partial_fit(images[:1], y[:1]).predict(images[:1]).shape == one.shape


def test_batch_normalisation_keeps_its_statistics_while_a_fit_goes_on():
    X, y = make_friedman1(400, n_features=5, noise=0.5, random_state=0)
    norm = nn.BatchNorm1d(32)
    backbone = nn.Sequential(nn.Linear(5, 32), norm, nn.ReLU(), nn.Linear(32, 1))
    model = CFLLRegressor(backbone, max_epochs=20, random_state=0).fit(X[:200], y[:200])
    before = model.score(X[300:], y[300:])
    for row in range(200, 210):  # torch takes no statistics of a single row
        model.partial_fit(X[row : row + 1], y[row : row + 1])
    for rows in np.arange(210, 250).reshape(-1, 2):
        model.partial_fit(X[rows], y[rows])
    assert model.score(X[300:], y[300:]) > before - 0.02
    for call in (
        lambda: CFLLRegressor(backbone).partial_fit(X[:1], y[:1]),
        lambda: CFLLRegressor(backbone, batch_size=1).fit(X[:50], y[:50]),
    ):
        with pytest.raises(ValueError, match=r"batch normalisation.*`batch_size`.*LayerNorm"):
            call()
