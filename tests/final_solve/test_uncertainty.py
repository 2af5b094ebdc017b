"""Intervals, leave-one-out residuals and the ridge path: what the closed form gives for free."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from torch import nn

from sklearn_cfll import CFLLRegressor, ColumnEncoder, linalg
from sklearn_cfll.backbones import FNOBackbone
from sklearn_cfll.estimator.checks import check_data
from sklearn_cfll.estimator.defaults import DEFAULTS
from sklearn_cfll.estimator.split import Split
from sklearn_cfll.final_solve.calibration import Calibration as FullCalibration
from sklearn_cfll.final_solve.calibration import left_out_residuals, pulled
from sklearn_cfll.final_solve.intervals import KEPT, Scores
from sklearn_cfll.final_solve.offset import less_offset
from sklearn_cfll.linalg import RIDGES


def Calibration(scores, weights, n_samples):
    """Scores alone: what residuals they come from does not matter here."""
    inflation = pulled(scores.double().square(), weights, n_samples)
    return FullCalibration(scores, weights, n_samples, scores, inflation)


def draw(n, seed, spread):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + spread(X) * rng.normal(size=n)


SPREADS = {
    "equal": lambda X: 0.3,
    "growing": lambda X: 0.1 + 0.5 * np.abs(X[:, 0]),
}


@pytest.fixture(scope="module", params=SPREADS)
def noisy(request):
    spread = SPREADS[request.param]
    X, y = draw(1500, 0, spread)
    X_val, y_val = draw(1500, 1, spread)
    model = CFLLRegressor(hidden_layer_sizes=(32,), max_epochs=10, random_state=0)
    return model.fit(X, y, X_val=X_val, y_val=y_val), *draw(4000, 2, spread)


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.99])
def test_intervals_cover_as_asked(noisy, coverage):
    model, X, y = noisy
    lower, upper = model.predict_interval(X, coverage)
    covered = np.mean((lower <= y) & (y <= upper))
    # Three standard errors of a share of 1,500 calibration and 4,000 test rows.
    assert abs(covered - coverage) < 3 * np.sqrt(coverage * (1 - coverage) * (1 / 1500 + 1 / 4000))


def test_intervals_are_nested_and_centred(noisy):
    model, X, _ = noisy
    inner, outer = model.predict_interval(X, 0.6), model.predict_interval(X, 0.95)
    assert (outer[0] < inner[0]).all() and (inner[1] < outer[1]).all()
    np.testing.assert_allclose((inner[0] + inner[1]) / 2, model.predict(X), rtol=1e-4, atol=1e-5)


def test_intervals_move_and_scale_with_the_targets():
    X, y = draw(300, 0, SPREADS["equal"])
    settings = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    settings["cross_fit"] = False  # folds are drawn by the order of y, which -100 reverses
    plain = CFLLRegressor(**settings).fit(X, y).predict_interval(X)
    moved = CFLLRegressor(**settings).fit(X, 7 - 100 * y).predict_interval(X)
    np.testing.assert_allclose(moved[0], 7 - 100 * plain[1], rtol=1e-7)
    np.testing.assert_allclose(moved[1], 7 - 100 * plain[0], rtol=1e-7)


def test_intervals_cover_quiet_and_noisy_rows_alike(noisy):
    model, X, y = noisy
    lower, upper = model.predict_interval(X, 0.9)
    covered = (lower <= y) & (y <= upper)
    order = np.abs(X[:, 0]).argsort()  # what the noise grows with, where it does
    quiet, loud = covered[order[:1300]].mean(), covered[order[-1300:]].mean()
    assert abs(quiet - 0.9) < 0.06 and abs(loud - 0.9) < 0.06


def test_deviation_follows_the_noise():
    X, y = draw(3000, 0, SPREADS["growing"])
    model = CFLLRegressor(hidden_layer_sizes=(64,), max_epochs=20, random_state=0).fit(X, y)
    X_test, y_test = draw(2000, 1, SPREADS["growing"])
    mean, std = model.predict(X_test, return_std=True)
    assert np.corrcoef(std, SPREADS["growing"](X_test))[0, 1] > 0.9
    assert np.mean(((y_test - mean) / std) ** 2) == pytest.approx(1, abs=0.15)


def test_even_noise_stays_a_constant():
    X, y = draw(3000, 0, SPREADS["equal"])
    kinds = []
    for seed in range(5):
        model = CFLLRegressor(hidden_layer_sizes=(8,), max_epochs=5, random_state=seed)
        model.fit(X[:, :1], y - np.sin(2 * X[:, 0]))
        kinds.append(bool(model._model.noise.weight.any()))
    assert sum(kinds) <= 2  # a standard error is passed by chance one time in six


@pytest.mark.filterwarnings("error")
def test_one_held_out_row_gives_constant_noise():
    X, y = draw(10, 0, SPREADS["growing"])
    model = CFLLRegressor(
        max_epochs=2, early_stopping=True, validation_fraction=0.1, random_state=0
    ).fit(X, y)
    assert not model._model.noise.weight.any()


def test_noise_of_weighted_rows_is_that_of_repeated_rows():
    X, y = draw(300, 0, SPREADS["growing"])
    X_val, y_val = draw(300, 1, SPREADS["growing"])
    times = np.random.default_rng(0).integers(1, 4, len(X))
    settings = {"backbone": nn.Sequential(nn.Linear(3, 5), nn.Tanh()), "batch_size": "full"}
    settings |= {"max_epochs": 2, "learning_rate": 1e-9, "random_state": 0, "normalize_y": False}
    settings |= {"precision": "float64"}
    weighted = CFLLRegressor(**settings).fit(X, y, times, X_val=X_val, y_val=y_val)
    repeated = CFLLRegressor(**settings).fit(
        X.repeat(times, 0), y.repeat(times), X_val=X_val, y_val=y_val
    )
    assert weighted.final_ridge_ == repeated.final_ridge_
    for part, other in zip(weighted._model.noise, repeated._model.noise, strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-5)


def test_intervals_of_several_targets_have_their_shape_and_spread():
    X, y = draw(400, 0, SPREADS["equal"])
    Y = np.stack([y, np.random.default_rng(5).normal(size=400)], axis=1)
    model = CFLLRegressor(hidden_layer_sizes=(16,), max_epochs=10, random_state=0).fit(X, Y)
    lower, upper = model.predict_interval(X)
    assert lower.shape == upper.shape == Y.shape
    width = (upper - lower).mean(0) / Y.std(0)
    assert width[1] > 1.5 * width[0]  # pure noise is harder than a function


def test_intervals_of_fields_have_their_shape():
    X = np.random.default_rng(0).normal(size=(40, 16))
    backbone = FNOBackbone(n_modes=4, hidden_channels=4, n_layers=1)
    model = CFLLRegressor(backbone, max_epochs=2, early_stopping=True, random_state=0)
    lower, upper = model.fit(X, X.cumsum(1)).predict_interval(X[:3], 0.5)
    assert lower.shape == upper.shape == (3, 16)
    assert not hasattr(model, "loo_residuals_")  # points are not left out one by one


def test_intervals_survive_keeping(noisy, tmp_path):
    model, X, _ = noisy
    expected = model.predict_interval(X[:5])
    model.save(tmp_path / "model.npz")
    for copy in pickle.loads(pickle.dumps(model)), CFLLRegressor.load(tmp_path / "model.npz"):
        np.testing.assert_array_equal(copy.predict_interval(X[:5]), expected)


@pytest.mark.parametrize("value", [0.0, 3.0, 100000.3])
def test_a_constant_target_has_intervals_of_no_width(value):
    X = np.random.default_rng(0).normal(size=(400, 3))
    model = CFLLRegressor(max_epochs=3, random_state=0).fit(X, np.full(400, value))
    lower, upper = model.predict_interval(X[:5])
    np.testing.assert_allclose(lower, value, rtol=1e-6)
    np.testing.assert_allclose(upper, value, rtol=1e-6)
    assert np.all(model.predict(X[:5], return_std=True)[1] < 1e-6 * max(1.0, value))


def test_intervals_need_Split():
    X, y = draw(50, 0, SPREADS["equal"])
    model = CFLLRegressor(max_epochs=1, early_stopping=False).fit(X, y)
    with pytest.raises(ValueError, match="`predict_interval` needs rows that the network was"):
        model.predict_interval(X)
    with pytest.raises(ValueError, match="`return_std` needs rows that the network was not"):
        model.predict(X, return_std=True)
    model.set_params(early_stopping=True, validation_fraction=0.1).fit(X, y)
    with pytest.raises(ValueError, match="`coverage`=0.9 needs at least 9 held-out rows of equal"):
        model.predict_interval(X)
    for coverage in (1.5, ".9"):
        with pytest.raises(ValueError, match=f"`coverage` must lie .*, got {coverage!r}"):
            model.predict_interval(X, coverage)


def test_quantile_is_the_finite_sample_one():
    scores = Scores.of(Calibration(torch.tensor([[3.0], [1.0], [4.0], [2.0]]), torch.ones(4), 4))
    found = [scores.quantile(coverage)[0] for coverage in (0.2, 0.4, 0.41, 0.79, 0.8)]
    np.testing.assert_allclose(found * scores.inflation, [1, 2, 3, 4, 4], rtol=1e-12)


def test_deviations_are_scaled_by_the_Split_and_twenty_others():
    values = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)).double()
    scores = Scores.of(Calibration(values, torch.ones(60), 60))
    expected = (values.square().sum(0) + 20 * 1.5) / 80
    np.testing.assert_allclose(scores.inflation**2, expected, rtol=1e-12)


def test_deviations_predicted_too_small_are_mended_and_intervals_stay():
    values = torch.rand(5000, 1, generator=torch.Generator().manual_seed(0)).double()
    ones = torch.ones(5000)
    plain, tenfold = (Scores.of(Calibration(v, ones, 5000)) for v in (values, 10 * values))
    # What is predicted a tenth as large comes out alike, but for the twenty others ...
    np.testing.assert_allclose(tenfold.inflation, 10 * plain.inflation, rtol=0.01)
    # ... and half an interval, deviation × inflation × quantile, exactly so.
    half = [np.float64(v) * s.inflation * s.quantile(0.9) for v, s in ((1, plain), (0.1, tenfold))]
    np.testing.assert_allclose(*half, rtol=1e-12)


def test_quantile_counts_a_weight_as_repetitions():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(20, 2, generator=generator)
    times = torch.randint(1, 4, (20,), generator=generator)
    weighted = Scores.of(Calibration(values, times.double(), 20))
    assert weighted.n_samples == pytest.approx(int(times.sum()) ** 2 / int((times**2).sum()))
    rows = values.repeat_interleave(times, 0)  # each says nothing new
    repeated = Scores.of(Calibration(rows, torch.ones(len(rows)), weighted.n_samples))
    for coverage in np.linspace(0.05, 0.9, 18):
        np.testing.assert_allclose(
            weighted.quantile(coverage), repeated.quantile(coverage), rtol=1e-12
        )
    np.testing.assert_allclose(weighted.inflation, repeated.inflation, rtol=1e-12)


def test_many_scores_are_thinned_without_moving_quantiles():
    values = torch.rand(10 * KEPT, 1, generator=torch.Generator().manual_seed(0))
    scores = Scores.of(Calibration(values, torch.ones(len(values)), len(values)))
    assert len(scores.sizes.values) == KEPT
    found = scores.inflation * scores.quantile(0.9)
    np.testing.assert_allclose(found, values.quantile(0.9), atol=2e-4)


def test_leave_one_out_equals_refitting_without_the_row():
    X, y = draw(30, 0, SPREADS["equal"])
    frozen = nn.Identity()  # nothing to train: ridge regression, whose ridge is the penalty
    settings = {"backbone": frozen, "ridge": 0.3, "normalize_y": False, "precision": "float64"}
    model = CFLLRegressor(**settings).fit(X, y)
    moments = model.net_.module_.last_layer.moments
    penalty = 0.3 * float(moments.gram.diagonal().sum()) / 3
    expected = []
    for i in range(len(X)):
        rest_X, rest_y = np.delete(X, i, 0), np.delete(y, i)
        centred = rest_X - rest_X.mean(0)
        gram = centred.T @ centred + penalty * np.eye(3)
        weight = np.linalg.solve(gram, centred.T @ (rest_y - rest_y.mean()))
        expected.append(y[i] - rest_y.mean() - (X[i] - rest_X.mean(0)) @ weight)
    np.testing.assert_allclose(model.loo_residuals_, expected, rtol=1e-9)
    assert model.loo_score_ == pytest.approx(r2_score(y, y - expected))


def test_leave_one_out_keeps_the_order_of_the_rows():
    X, y = draw(400, 0, lambda X: 0.05)
    y[37] += 50.0
    model = CFLLRegressor(nn.Identity(), max_epochs=1, random_state=0).fit(X, y)
    assert model.loo_residuals_.shape == y.shape
    assert model.loo_residuals_.argmax() == 37
    model.partial_fit(X[:20], y[:20])
    assert not hasattr(model, "loo_score_")


@pytest.mark.parametrize("options", [{}, {"early_stopping": False}, {"refit_last_layer": False}])
def test_leave_one_out_is_refused_where_the_network_has_seen_the_row(options):
    X, y = draw(60, 0, SPREADS["equal"])
    model = CFLLRegressor(max_epochs=1, **options).fit(X, y)
    with pytest.raises(AttributeError, match="no `loo_score_`.*was not trained on it"):
        model.loo_score_  # noqa: B018
    assert not hasattr(model, "loo_residuals_")


def test_ridge_path_holds_the_choice(noisy):
    model, _, _ = noisy
    path = model.ridge_path_
    np.testing.assert_array_equal(path["ridge"], RIDGES)
    assert path["ridge"][path["error"].argmin()] == model.final_ridge_
    assert path["error"].min() == pytest.approx(model.noise_variance_.mean())


def test_no_ridge_path_without_held_out_rows(noisy):
    X, y = draw(60, 0, SPREADS["equal"])
    assert not hasattr(CFLLRegressor(max_epochs=1, early_stopping=False).fit(X, y), "ridge_path_")


@pytest.mark.parametrize("linear_part", [True, False])
def test_scores_are_those_of_a_last_layer_fitted_to_all_other_rows(linear_part):
    """Each held-out row against the final fit without it, found here by refitting."""
    X, y = draw(120, 0, SPREADS["equal"])
    model = CFLLRegressor(
        hidden_layer_sizes=(6,), n_members=2, max_epochs=3, linear_part=linear_part,
        columns=ColumnEncoder(0, importance=False), random_state=0,
    ).fit(X, y)  # fmt: skip
    rows = Split.draw(120, DEFAULTS.n_held_out("auto", 120), None, 0).held_out
    net, offset, plan = model.net_, model._model.offset, model._model.plan
    data = plan.dataset(check_data(model, X, y, None, plan=plan, min_samples=1))
    data = less_offset(data, offset)
    features, targets, _ = next(net.labelled_features(data))
    lefts = []
    for part, member in zip(features.chunk(2, -1), net.module_.last_layer.members, strict=True):
        power = member.moments.gram.diagonal().mean() / member.moments.total
        penalty = member.moments_ridge * power * 120
        share = 1.0 if member.shrinkage is None else member.shrinkage
        predictions = []
        for i in rows:  # the penalty is held fixed while a row is left out
            rest = np.delete(np.arange(120), i)
            block = linalg.moments(part[rest], targets[rest])
            weight = torch.linalg.solve(block.gram + penalty * torch.eye(6), block.cross.T).T
            predictions.append(block.target_mean + weight @ (part[i] - block.feature_mean))
        lefts.append(targets[rows] - share * torch.stack(predictions))
    expected = torch.stack(lefts).mean(0)
    if linear_part:  # its own prediction without the row, in place of that with it
        shares = offset.layer.leverage(offset.columns(data.X[rows]))[:, None]
        expected = expected + shares / (1 - shares) * targets[rows]
    left_out = left_out_residuals(net, data.subset(rows), lambda *_: None, offset)
    found = torch.cat([residuals for residuals, *_ in left_out])
    torch.testing.assert_close(found, expected)
    assert model._model.scores.n_samples == len(rows)


@pytest.mark.parametrize("seed", range(3))
def test_a_zero_inflated_target_is_covered(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2500, 3))
    y = np.where(rng.random(2500) < 0.05, 10 * rng.exponential(size=2500), 0.0)
    model = CFLLRegressor(hidden_layer_sizes=(16, 16), max_epochs=10, random_state=seed)
    model.fit(X[:1500], y[:1500])
    lower, upper = model.predict_interval(X[1500:], coverage=0.9)
    assert ((lower <= y[1500:]) & (y[1500:] <= upper)).mean() > 0.85


def test_deviations_of_rare_events_are_no_smaller_than_the_training_rows_say():
    rng = np.random.default_rng(3)
    X = rng.normal(size=(3000, 3))
    y = np.where(rng.random(3000) < 0.01, rng.exponential(size=3000) * 10, 0.0)
    mean = None
    for seed in range(3):
        model = CFLLRegressor(max_epochs=4, random_state=seed).fit(X[:800], y[:800])
        mean, std = model.predict(X[800:], return_std=True)
        assert np.sqrt(np.mean(((mean - y[800:]) / std) ** 2)) < 1.5


def test_held_out_rows_count_by_their_weights():
    X, y = draw(300, 0, SPREADS["equal"])
    weights = np.where(np.arange(300) % 30 == 0, 1.0, 1e-9)
    model = CFLLRegressor(max_epochs=2, random_state=0).fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="needs at least 19 held-out rows of equal weight"):
        model.predict_interval(X, 0.95)
    equal = CFLLRegressor(max_epochs=2, random_state=0).fit(X, y, sample_weight=np.full(300, 7.0))
    assert equal._model.scores.n_samples == pytest.approx(equal.resolved_["n_held_out"])
