"""Uneven columns spread out by their quantiles."""

import numpy as np
import pytest
import torch
from sklearn.datasets import make_friedman1
from sklearn.preprocessing import QuantileTransformer

from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.normal_scores import NormalScores, score_tables
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.heads.module import CFLLModule
from sklearn_cfll.training.batches import RowsDataset
from sklearn_cfll.training.column_scales import slopes

GENERATOR = torch.Generator().manual_seed(0)
NORMAL = torch.randn(2000, 1, generator=GENERATOR, dtype=torch.float64)
SHAPES = {
    "lognormal": lambda z: (1.5 * z).exp(),
    "cubed": lambda z: z**3,
    "mostly zero": lambda z: (z - 1.0).clamp_min(0.0),
    "two tails, zero between": lambda z: z * (z.abs() > 2.0),
}
EVEN = {
    "normal": lambda z: z,
    "uniform": lambda z: torch.special.ndtr(z),
    "exponential": lambda z: -torch.special.ndtr(-z).log(),
    "two values": lambda z: (z > 2.0).double(),
    "constant": lambda z: 0.0 * z,
}


def standardize(tables, X):
    module = NormalScores(X.shape[1]).double()
    module.adapt_to(X.mean(0), X.std(0, correction=0))
    module.set_tables(tables)
    return module


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scores_have_mean_zero_and_deviation_one_and_keep_the_order(shape):
    X = shape(NORMAL)
    Z = standardize(score_tables(X, None), X)(X)
    assert abs(float(Z.mean())) < 0.03
    assert float(Z.std()) == pytest.approx(1.0, abs=0.03)
    order = X[:, 0].argsort()
    assert bool((Z[order, 0].diff() >= 0).all())
    assert len(Z.unique()) >= min(len(X.unique()), 50)  # as many values as there were


@pytest.mark.parametrize("shape", EVEN.values(), ids=EVEN)
def test_even_columns_are_standardised_as_ever(shape):
    assert score_tables(shape(NORMAL), None) == [None]


def test_scores_are_those_of_scikit_learns_quantile_transformer():
    X = SHAPES["lognormal"](NORMAL)
    transformer = QuantileTransformer(n_quantiles=129, output_distribution="normal")
    theirs = transformer.fit_transform(X.numpy()).clip(-3, 3)
    ours = standardize(score_tables(X, None), X)(X).numpy()
    middle = np.abs(theirs) < 2.3  # beyond, theirs go to infinity within the outer quantiles
    correlation = np.corrcoef(ours[middle], theirs[middle])[0, 1]
    assert correlation > 0.9999


def test_even_columns_beside_uneven_ones_pass_as_they_are():
    X = torch.cat([NORMAL, SHAPES["cubed"](NORMAL), 5.0 + NORMAL.flip(0)], 1)
    module = standardize(score_tables(X, None), X)
    plain = (X - X.mean(0)) / X.std(0, correction=0)
    torch.testing.assert_close(module(X)[:, [0, 2]], plain[:, [0, 2]])
    assert not torch.allclose(module(X)[:, 1], plain[:, 1], atol=0.1)


def test_any_increasing_map_of_an_uneven_column_gives_the_same_scores_at_its_quantiles():
    X = SHAPES["lognormal"](NORMAL)
    ((values, scores),) = score_tables(X, None)
    ((mapped, same),) = score_tables(X**3, None)
    np.testing.assert_allclose(mapped, values**3)
    np.testing.assert_array_equal(same, scores)


def test_weights_mean_repetitions():
    X = SHAPES["lognormal"](NORMAL[:200])
    counts = torch.randint(0, 4, (200,), generator=GENERATOR)
    ((repeated, scores),) = score_tables(X.repeat_interleave(counts, 0), None)
    ((weighted, same),) = score_tables(X, counts.double())
    np.testing.assert_array_equal(weighted, repeated)
    np.testing.assert_array_equal(same, scores)


def test_scores_stay_what_they_are_beyond_the_training_rows():
    X = SHAPES["lognormal"](NORMAL)
    module = standardize(score_tables(X, None), X)
    ends = torch.stack([X.min(0).values, X.max(0).values])
    beyond = torch.tensor([[-1e9], [1e9]], dtype=torch.float64)
    torch.testing.assert_close(module(beyond), module(ends))


def test_values_that_float32_cannot_tell_apart_give_finite_scores_and_slopes():
    X = 1e8 + SHAPES["lognormal"](NORMAL)
    module = standardize(score_tables(X, None), X).float()
    inputs = X.float().requires_grad_()
    module(inputs).sum().backward()
    assert bool(module(inputs).isfinite().all()) and bool(inputs.grad.isfinite().all())


@pytest.mark.parametrize("names", [["lognormal"], ["lognormal", "mostly zero", "cubed"]])
def test_unit_is_one_over_the_slope(names):
    X = torch.cat([SHAPES[name](NORMAL[:300]) for name in names] + [NORMAL[:300]], 1)
    module = standardize(score_tables(X, None), X)
    inputs = (X + 1e-6).requires_grad_()  # between the values of the tables
    module(inputs).sum().backward()
    inside = inputs.grad != 0
    assert float(inside.double().mean()) > 0.9
    product = (inputs.grad * module.unit(inputs))[inside]
    torch.testing.assert_close(product, torch.ones_like(product))


def test_slopes_are_by_scores():
    """A prediction linear in the scores has slopes all equal, however long the tail."""

    class Last(torch.nn.Module):
        out_features = 1

        def forward(self, features):
            return features

    X = SHAPES["lognormal"](NORMAL)
    module = CFLLModule(standardize(score_tables(X, None), X), Last())
    found = slopes(module, RowsDataset(as_rows(X, "cpu", torch.float64)))[:, 0, 0]
    inside = found != 0
    assert float(inside.double().mean()) > 0.98
    torch.testing.assert_close(found[inside], torch.full_like(found[inside], float(found.max())))
    assert float(found.max()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("Estimator", [CFLLClassifier, CFLLRegressor])
def test_spread_models_survive_saving(Estimator, tmp_path):
    X = SHAPES["lognormal"](NORMAL.reshape(500, 4)).numpy()
    y = X[:, 0] > 1.0
    model = Estimator(columns=ColumnEncoder(quantiles=True), max_epochs=2, random_state=0).fit(X, y)
    assert any(isinstance(part, NormalScores) for part in model.backbone_.modules())
    model.save(tmp_path / "model.npz")
    opened = Estimator.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(model.predict(X), opened.predict(X))
    network = model.to_torch()
    assert bool(network(torch.as_tensor(X[:3]).to(next(network.parameters()))).isfinite().all())


@pytest.mark.slow
def test_a_classifier_hardly_minds_how_columns_are_recorded():
    """Friedman's function of columns recorded as exp(3 z) instead of z."""
    X, y = make_friedman1(1200, n_features=6, noise=0.5, random_state=0)
    z = torch.special.ndtri(torch.as_tensor(X).clamp(1e-9, 1 - 1e-9)).numpy()
    y = y > np.median(y)
    scores = {}
    for name, columns in {"normal": z, "lognormal": np.exp(3 * z)}.items():
        for spread in (False, True):
            model = CFLLClassifier(columns=ColumnEncoder(0, spread), random_state=0)
            scores[name, spread] = model.fit(columns[:800], y[:800]).score(columns[800:], y[800:])
    assert scores["normal", True] == scores["normal", False]
    assert scores["lognormal", True] > scores["normal", True] - 0.05
    assert scores["lognormal", False] < scores["normal", True] - 0.1
