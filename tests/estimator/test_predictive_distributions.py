"""Covariances, draws, quantiles and sets of classes: all from the same held-out rows."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris, make_classification, make_friedman1
from torch import nn

from helpers import friedman
from sklearn_cfll import CFLLClassifier, CFLLRegressor, linalg
from sklearn_cfll.final_solve.intervals import Ranked, Scores
from sklearn_cfll.final_solve.prediction_sets import in_set

BRIEF = {"hidden_layer_sizes": (16,), "max_epochs": 4, "random_state": 0}


@pytest.fixture(scope="module")
def skewed():
    """A model of targets whose noise is exponential, and new rows."""
    X, y = make_friedman1(4000, random_state=0)
    y = y + np.random.default_rng(0).exponential(2.0, size=4000)
    model = CFLLRegressor(hidden_layer_sizes=(32, 32), max_epochs=15, random_state=0)
    model.fit(X[:1000], y[:1000])
    return model, X[1000:], y[1000:]


# -- covariances and draws --------------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_leverages_are_squared_lengths_in_their_basis(fit_intercept, ridge):
    rng = np.random.default_rng(0)
    features, targets = torch.as_tensor(rng.normal(size=(40, 6))), torch.zeros(40, 1).double()
    block = linalg.moments(features, targets, center=fit_intercept)
    new = torch.as_tensor(rng.normal(size=(9, 6)))
    options = {"fit_intercept": fit_intercept}
    basis, constant = linalg.leverage_basis(block, ridge, **options)
    found = ((new - block.feature_mean) @ basis).square().sum(1) + constant**2
    expected = linalg.leverage(new, block, ridge, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("n_targets", [1, 2])
@pytest.mark.parametrize("n_members", [1, 4])
def test_the_diagonal_of_the_covariance_is_the_variance(n_targets, n_members):
    X, y = friedman(150)
    y = y if n_targets == 1 else np.column_stack([y, y**2])
    model = CFLLRegressor(n_members=n_members, **BRIEF).fit(X, y)
    mean, cov = model.predict(X[:20], return_cov=True)
    expected, std = model.predict(X[:20], return_std=True)
    assert cov.shape == ((20, 20) if n_targets == 1 else (20, 20, 2))
    np.testing.assert_allclose(mean, expected, rtol=1e-9)
    diagonal = np.moveaxis(np.diagonal(cov), -1, 0)
    np.testing.assert_allclose(np.sqrt(diagonal), std, rtol=1e-6)
    np.testing.assert_allclose(cov, np.swapaxes(cov, 0, 1), rtol=1e-9, atol=1e-12)
    first = cov if n_targets == 1 else cov[..., 0]
    assert np.linalg.eigvalsh(first).min() > 0


@pytest.mark.parametrize("option", ["return_std", "return_cov"])
def test_features_are_computed_once(option):
    X, y = friedman(150)
    model = CFLLRegressor(n_members=1, **BRIEF).fit(X, y)
    calls = []
    model.backbone_.register_forward_hook(lambda *_: calls.append(1))
    model.predict(X, **{option: True})
    assert len(calls) == 1


def test_near_rows_are_correlated_and_far_ones_hardly():
    X, y = friedman(150)
    model = CFLLRegressor(**BRIEF).fit(X, y)
    near = np.vstack([X[0], X[0] + 1e-3, X[1]])
    draws = model.sample_y(near, 4000, noise=False)
    correlation = np.corrcoef(draws)
    assert correlation[0, 1] > 0.999 > 0.9 > abs(correlation[0, 2])


def test_draws_have_the_mean_and_the_covariance(skewed):
    model, X, _ = skewed
    mean, cov = model.predict(X[:10], return_cov=True)
    draws = model.sample_y(X[:10], 40_000, random_state=3)
    assert draws.shape == (10, 40_000)
    np.testing.assert_allclose(draws.mean(1), mean, atol=0.05)
    np.testing.assert_allclose(np.cov(draws), cov, atol=0.05 * cov.max())
    pair = [model.sample_y(X[:10], 9, random_state=3) for _ in range(2)]
    np.testing.assert_array_equal(*pair)
    assert (model.sample_y(X[:10], 100, noise=False).std(1) < draws.std(1)).all()


def test_fixed_features_have_the_covariance_of_bayesian_regression():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.normal(size=60)
    model = CFLLRegressor(nn.Identity(), ridge=0.1, precision="float64", early_stopping=False)
    model.fit(X, y)
    new, centred = rng.normal(size=(5, 3)), X - X.mean(0)
    penalty = model.final_ridge_ * 60 * np.square(centred).mean()
    inverse = np.linalg.inv(centred.T @ centred + penalty * np.eye(3))
    apart = (new - X.mean(0)) @ inverse @ (new - X.mean(0)).T + 1 / 60
    cov = model.predict(new, return_cov=True)[1]
    off = ~np.eye(5, dtype=bool)
    ratio = cov[off] / apart[off]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    assert ratio[0] == pytest.approx(model.noise_variance_[0], rel=0.3)


# -- quantiles --------------------------------------------------------------------------------


def test_quantiles_follow_the_shape_of_the_noise(skewed):
    model, X, y = skewed
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    found = model.predict_quantiles(X, levels)
    assert found.shape == (len(X), 5) and (np.diff(found, axis=1) > 0).all()
    # Quantiles of so few rows of the fit vary by a few hundredths from draw to draw.
    np.testing.assert_allclose((y[:, None] < found).mean(0), levels, atol=0.07)
    mean = model.predict(X)
    upper, lower = found[:, 4] - mean, mean - found[:, 0]
    assert (upper > 1.3 * lower).all()
    np.testing.assert_array_equal(model.predict_quantiles(X, 0.25), found[:, 1])


def test_quantiles_are_order_statistics_on_the_safe_side():
    values = np.array([[-2.0], [-1.0], [0.0], [1.0], [3.0]])
    ranked = Ranked.of(values, np.ones(5)), Ranked.of(values, np.ones(5))
    scores = Scores(*ranked, 5.0, np.ones(1))
    # Of five rows, the sixth parts lie at the rows themselves.
    found = [scores.signed_quantile(i / 6)[0] for i in range(1, 6)]
    np.testing.assert_array_equal(found, values[:, 0])
    assert scores.signed_quantile(0.6)[0] == 1.0 and scores.signed_quantile(0.4)[0] == -1.0
    with pytest.raises(ValueError, match="`quantiles`=0.1 needs at least 9 held-out rows"):
        scores.signed_quantile(0.1)


@pytest.mark.parametrize("quantiles", [0.0, [0.5, 1.0], -0.3])
def test_quantiles_that_are_no_probabilities_are_named(skewed, quantiles):
    model, X, _ = skewed
    with pytest.raises(ValueError, match="`quantiles` must lie between 0 and 1"):
        model.predict_quantiles(X, quantiles)


@pytest.mark.parametrize("quantiles", [[], "a", None, [[0.1, 0.9]], ["b"]])
def test_quantiles_that_are_no_numbers_are_named(skewed, quantiles):
    model, X, _ = skewed
    with pytest.raises(ValueError, match="`quantiles` must"):
        model.predict_quantiles(X, quantiles)


@pytest.mark.parametrize("n_samples", [0, -1, 1.5, True])
def test_numbers_of_draws_are_checked(skewed, n_samples):
    model, X, _ = skewed
    with pytest.raises(ValueError, match="`n_samples` must be a positive integer"):
        model.sample_y(X, n_samples)


# -- sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5])
def test_sets_have_the_coverage_and_are_small_where_the_classifier_is_certain(n_classes):
    X, y = make_classification(
        4000, 10, n_informative=6, n_classes=n_classes, flip_y=0.3, random_state=0
    )
    model = CFLLClassifier(max_epochs=10, hidden_layer_sizes=(32,), random_state=0)
    model.fit(X[:1500], y[:1500])
    proba, accuracy = model.predict_proba(X[1500:]), model.score(X[1500:], y[1500:])
    sizes = []
    for coverage in (0.8, 0.9, 0.97):
        chosen = model.predict_set(X[1500:], coverage)
        covered = chosen[np.arange(2500), y[1500:]].mean()
        # Held-out rows are judged by single members, and the mean of all is right more often.
        assert -0.03 < covered - max(coverage, accuracy) < 0.06
        assert chosen[np.arange(2500), proba.argmax(1)].all()
        sizes.append(chosen.sum(1).mean())
    assert sizes[0] < sizes[1] < sizes[2]
    certain = proba.max(1) > np.quantile(proba.max(1), 0.9)
    assert chosen[certain].sum(1).mean() < chosen[~certain].sum(1).mean()


def test_probabilities_of_a_rarer_class_keep_its_share():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5000, 5))
    labels = (0.4 * inputs[:, 0] + rng.normal(size=5000) > 0.9).astype(int)
    model = CFLLClassifier(max_epochs=10, random_state=0).fit(inputs[:1000], labels[:1000])
    share = model.predict_proba(inputs[1000:])[:, 1].mean()
    assert share == pytest.approx(labels[1000:].mean(), abs=0.03)
    sets = model.predict_set(inputs[1000:], 0.9)
    assert sets[np.arange(4000), labels[1000:]].mean() > 0.87


def test_a_set_holds_the_likelier_classes_first():
    probabilities = np.array([[0.1, 0.6, 0.3], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(in_set(probabilities, 0.0), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(in_set(probabilities, 0.6), [[0, 1, 1], [1, 1, 0]])
    assert in_set(probabilities, 1.0).all()


def test_sets_need_exclusive_classes_and_held_out_rows():
    X, y = load_iris(return_X_y=True)
    model = CFLLClassifier(**BRIEF).fit(X, np.column_stack([y > 0, y > 1]).astype(int))
    with pytest.raises(ValueError, match="`predict_set` needs classes that exclude each other"):
        model.predict_set(X)
    model = CFLLClassifier(**BRIEF, early_stopping=False).fit(X, y)
    with pytest.raises(ValueError, match="`predict_set` needs rows that the network was not"):
        model.predict_set(X)


# -- what they need ---------------------------------------------------------------------------

CALLS = {
    "return_cov": lambda model, X: model.predict(X, return_cov=True),
    "sample_y": lambda model, X: model.sample_y(X),
    "predict_quantiles": lambda model, X: model.predict_quantiles(X),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_named(name):
    X, y = friedman(60)
    model = CFLLRegressor(**BRIEF, early_stopping=False).fit(X, y)
    with pytest.raises(ValueError, match=f"`{name}` needs rows that the network was not trained"):
        CALLS[name](model, X)
    model = CFLLRegressor(**BRIEF, refit_last_layer=False).fit(X, y)
    with pytest.raises(ValueError, match=f"`{name}` needs the moments"):
        CALLS[name](model, X)


def test_deviations_or_covariances():
    X, y = friedman(60)
    model = CFLLRegressor(**BRIEF).fit(X, y)
    with pytest.raises(ValueError, match="`return_std` and `return_cov` cannot both be True"):
        model.predict(X, return_std=True, return_cov=True)


def test_fields_have_no_covariance():
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(60, 1, 9)).astype("f4")
    network = nn.Conv1d(1, 4, 3, padding=1)
    model = CFLLRegressor(nn.Sequential(network, nn.Conv1d(4, 1, 1)), max_epochs=1, random_state=0)
    model.fit(fields, fields[:, 0])
    with pytest.raises(ValueError, match="`sample_y` needs one prediction per sample"):
        model.sample_y(fields)


def test_they_survive_saving(tmp_path, skewed):
    model, X, _ = skewed
    model.save(tmp_path / "model.npz")
    for other in (CFLLRegressor.load(tmp_path / "model.npz"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict_quantiles(X), model.predict_quantiles(X))
        np.testing.assert_allclose(other.sample_y(X[:5]), model.sample_y(X[:5]), rtol=1e-12)
    X, y = load_iris(return_X_y=True)
    classifier = CFLLClassifier(**BRIEF).fit(X, y)
    classifier.save(tmp_path / "classifier.npz")
    other = CFLLClassifier.load(tmp_path / "classifier.npz")
    np.testing.assert_array_equal(other.predict_set(X), classifier.predict_set(X))
