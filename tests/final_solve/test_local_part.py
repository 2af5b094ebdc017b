"""Local part: a kernel smoother of out-of-fold residuals."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import is_classifier

from helpers import BOTH, raw, small
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.columns.encoder import EncodedColumns
from sklearn_cfll.columns.expansion import NUMBER, Levels
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.columns.scaling import RobustStandardize
from sklearn_cfll.final_solve import local_part as module
from sklearn_cfll.final_solve.local_part import (
    PRIORS,
    STATE,
    LocalPart,
    distances,
    located,
    steps_of,
)
from sklearn_cfll.persistence import ModelFileError
from sklearn_cfll.training.batches import RowsDataset


def in_clusters(n=1200, seed=0, effect=1.0):
    """Rows in clusters of four, which share an effect that no smooth function of x describes."""
    rng = np.random.RandomState(seed)
    centres = np.random.RandomState(7).uniform(-2, 2, (300, 3))
    effects = effect * np.random.RandomState(8).normal(size=300)
    of_row = rng.randint(300, size=n)
    X = centres[of_row] + 0.003 * rng.normal(size=(n, 3))
    return X, np.sin(X[:, 0]) + effects[of_row] + 0.1 * rng.normal(size=n)


def rows_for(Estimator, n=1200, seed=0, effect=1.0):
    X, y = in_clusters(n, seed, effect)
    return X, y if Estimator is CFLLRegressor else (y > 0).astype(int)


def crossed(Estimator, **parameters):
    return small(Estimator, **{"n_members": 4, "max_epochs": 6, **parameters})


@pytest.fixture(scope="module", params=[CFLLRegressor, CFLLClassifier])
def pair(request):
    """The same fit with and without a local part, and new rows."""
    X, y = rows_for(request.param)
    fits = [crossed(request.param, local_part=each).fit(X, y) for each in (True, False)]
    return *fits, *rows_for(request.param, 400, 1)


def by_hand(part, places, alike=None):
    """The formula of the docstring, in numpy."""
    known, residuals, weights = (
        each.double().numpy() for each in (part.places, part.residuals, part.weights)
    )
    apart = np.abs(places[:, None] - known).sum(2)
    kernel = weights * np.exp(-apart / float(part.bandwidth))
    if alike is not None:
        kernel[alike[:, None] == alike] = 0
    return kernel @ residuals / (kernel.sum(1, keepdims=True) + float(part.prior))


def test_it_is_added_to_the_same_network(pair):
    model, without, X, _ = pair
    part = model._model.local_part
    assert model.resolved_["local_part"] and not without.resolved_["local_part"]
    inputs = torch.as_tensor(X, dtype=torch.float32)
    places = located(part.columns, inputs)[:, part.used].double().numpy()
    expected = by_hand(part, places) * model._model.plan.scale.scale
    found = np.reshape(raw(model, X) - raw(without, X), (len(X), -1))
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_known_rows_are_predicted_without_their_copies_and_themselves():
    X, y = in_clusters()
    fits = [crossed(CFLLRegressor, local_part=each).fit(X, y) for each in (True, False)]
    part, scale = fits[0]._model.local_part, fits[0]._model.plan.scale.scale
    found = (fits[0].oof_prediction_ - fits[1].oof_prediction_) / scale
    expected = by_hand(part, part.places.double().numpy(), y)
    np.testing.assert_allclose(found, expected[:, 0], atol=1e-5)


def test_it_lowers_the_error_of_new_rows_and_the_scores_say_so(pair):
    model, without, X, y = pair
    # It cannot know clusters of which there are no other rows.
    assert 1 - model.score(X, y) < 0.5 * (1 - without.score(X, y))
    assert abs(model.oof_score_ - model.score(X, y)) < 0.05
    if is_classifier(model):
        found = [-each.predict_log_proba(X)[np.arange(len(y)), y].mean() for each in pair[:2]]
        assert found[0] < 0.7 * found[1]
        return
    lower, upper = model.predict_interval(X)
    assert 0.85 < np.mean((lower <= y) & (y <= upper)) < 0.95
    assert np.mean(upper - lower) < 0.6 * np.mean(np.subtract(*without.predict_interval(X)[::-1]))
    mean, std = model.predict(X, return_std=True)
    np.testing.assert_allclose(mean, model.predict(X), rtol=1e-5, atol=1e-5)
    joint, cov = model.predict(X[:50], return_cov=True)
    np.testing.assert_allclose(joint, mean[:50], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(cov)), std[:50], rtol=1e-4)


def test_rows_alone_and_together_have_the_same_bits(pair):
    model, _, X, _ = pair
    together = raw(model, X)
    for i in (0, 17, 399):
        np.testing.assert_array_equal(raw(model, X[i : i + 1])[0], together[i])
    np.testing.assert_array_equal(raw(model, X[::-1])[::-1], together)


def test_it_is_kept_in_files_and_exported(pair, tmp_path):
    model, _, X, _ = pair
    expected = raw(model, X)
    model.save(tmp_path / "model.zip")
    for again in (
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        type(model).load(tmp_path / "model.zip"),
    ):
        np.testing.assert_array_equal(raw(again, X), expected)
    coded = torch.as_tensor(model.encode(X))
    with torch.no_grad():
        found = model.to_torch()(coded).numpy().reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if is_classifier(model):
        proba = model.to_torch(output="probabilities")(coded).detach().numpy()
        np.testing.assert_allclose(proba, model.predict_proba(X), atol=1e-5)
    else:
        both = model.to_torch(output="mean_std")(coded)
        mean, std = (each.detach().numpy()[:, 0] for each in both)
        np.testing.assert_allclose(mean, expected, atol=1e-5)
        np.testing.assert_allclose(std, model.predict(X, return_std=True)[1], rtol=1e-4)


@pytest.mark.slow
def test_onnx_files_hold_it(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    X, y = in_clusters()
    model = crossed(CFLLRegressor, max_epochs=2).fit(X, y)
    assert model.resolved_["local_part"]
    model.to_onnx(tmp_path / "model.onnx", X[:3])
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (name,) = (each.name for each in session.get_inputs())
    (found,) = session.run(None, {name: model.encode(X)})
    expected = raw(model, X)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def test_a_file_whose_arrays_do_not_fit_is_refused(pair):
    model, *_ = pair
    state = model.__getstate__()
    for name, wrong in (
        ("places", np.zeros((3, 1), np.float32)),
        ("used", np.array([0, 99])),
        ("steps", np.zeros(9, np.float32)),
        ("prior", np.array(-1.0)),
        ("residuals", None),
    ):
        packed = copy.deepcopy(state["_packed"])
        local = packed["model"]["local_part"]
        if wrong is None:
            del local[name]
        else:
            local[name] = wrong
        with pytest.raises(ModelFileError, match="local_part"):
            type(model)._check_file({**state, "_packed": packed})


@BOTH
def test_there_is_none_without_clusters(Estimator):
    X, y = rows_for(Estimator, effect=0.0)
    y = y if Estimator is CFLLClassifier else y + np.random.RandomState(3).normal(size=len(y))
    assert not crossed(Estimator).fit(X, y).resolved_["local_part"]


@pytest.mark.parametrize("moved", [0.0, 1e-7])
def test_copies_of_rows_are_no_evidence(moved):
    rng = np.random.RandomState(0)
    X, y = np.repeat(rng.normal(size=(400, 3)), 3, 0), np.repeat(rng.normal(size=400), 3)
    model = crossed(CFLLRegressor).fit(X + moved * rng.normal(size=X.shape), y)
    assert not model.resolved_["local_part"]


def test_repeated_measurements_are():
    rng = np.random.RandomState(0)
    places, effects = rng.uniform(-2, 2, (200, 3)), rng.normal(size=200)
    rows = rng.randint(200, size=1000)
    y = effects[rows] + 0.2 * rng.normal(size=1000)
    model = crossed(CFLLRegressor).fit(places[rows][:700], y[:700])
    assert model.resolved_["local_part"]
    assert model.score(places[rows][700:], y[700:]) > 0.7


def test_outputs_without_clusters_are_left_as_they_are():
    X, y = in_clusters()
    rng = np.random.RandomState(1)
    Y = np.column_stack([y, X @ rng.normal(size=(3, 3)) + 2 * rng.normal(size=(len(y), 3))])
    model = crossed(CFLLRegressor).fit(X, Y)
    without = crossed(CFLLRegressor, local_part=False).fit(X, Y)
    assert model.resolved_["local_part"]
    found, expected = model.predict(X), without.predict(X)
    np.testing.assert_allclose(found[:, 1:], expected[:, 1:], rtol=1e-5, atol=1e-5)
    assert np.abs(found[:, 0] - expected[:, 0]).max() > 0.1


def test_intervals_are_wide_where_no_rows_are_near():
    X, y = in_clusters()
    rng = np.random.RandomState(5)
    far = rng.uniform(-2, 2, (500, 3))
    y_far = np.sin(far[:, 0]) + rng.normal(size=500)
    models = [crossed(CFLLRegressor, local_part=each).fit(X, y) for each in (True, False)]
    covered = []
    for model in models:
        low, high = model.predict_interval(far)
        covered.append(np.mean((low <= y_far) & (y_far <= high)))
    assert covered[0] > covered[1] - 0.1
    near = models[0].predict(X, return_std=True)[1].mean()
    assert models[0].predict(far, return_std=True)[1].mean() > 1.5 * near


def test_exported_modules_have_gradients_and_can_be_traced(pair):
    model, _, X, _ = pair
    module, coded = model.to_torch(), torch.as_tensor(model.encode(X))
    inputs = coded.clone().requires_grad_()
    module(inputs).sum().backward()
    assert torch.isfinite(inputs.grad).all() and inputs.grad.abs().max() > 0
    traced = torch.jit.trace(module, coded[:3])
    with torch.no_grad():
        torch.testing.assert_close(traced(coded), module(coded))


def test_where_there_is_none():
    X, y = in_clusters()
    groups = np.arange(len(y)) // 2
    few = crossed(CFLLRegressor).fit(X[:400], y[:400])
    grouped = crossed(CFLLRegressor).fit(X, y, groups=groups)
    plain = crossed(CFLLRegressor, columns="passthrough").fit(X, y)
    one = crossed(CFLLRegressor, n_members=1).fit(X, y)
    for model in (few, grouped, plain, one):
        assert not model.resolved_["local_part"]


def test_columns_that_are_switched_off_do_not_count():
    X, y = in_clusters()
    noise = np.random.RandomState(1).normal(size=(len(X), 6))
    model = crossed(CFLLRegressor, max_epochs=10).fit(np.hstack([X, noise]), y)
    part = model._model.local_part
    assert part is not None
    found, scales = part.places.abs().mean(0), part.used
    of_signal, of_noise = found[scales < 3].mean(), found[scales >= 3].sum() / 6
    assert of_noise < 0.5 * of_signal


def test_categories_and_gaps_have_places():
    pandas = pytest.importorskip("pandas")
    X, y = in_clusters()
    frame = pandas.DataFrame(X, columns=list("abc"))
    frame.loc[::9, "a"] = np.nan
    frame["kind"] = np.where(y > 0, "high", "low")
    model = crossed(CFLLRegressor).fit(frame, y)
    assert model.resolved_["local_part"]
    assert np.isfinite(model.predict(frame)).all()
    turned = frame[["kind", "c", "b", "a"]]
    np.testing.assert_array_equal(model.predict(turned), model.predict(frame))


@pytest.mark.parametrize("n_members", [0, 3])
def test_distances_are_those_of_all_indicators(n_members):
    codes = torch.arange(200, dtype=torch.float64)
    coded = torch.stack([codes % 7, codes.sin(), codes % 3, codes % 2, codes * 0], 1)
    coded[::9, 1], coded[::5, 2] = torch.nan, torch.nan
    columns = EncodedColumns([RobustStandardize()], True).double()
    levels = [Levels(7), NUMBER, Levels(3), Levels(2), Levels(1)]
    columns.fit(as_rows(coded, "cpu", torch.float64), levels=levels)
    columns.scale_columns(torch.rand(*[n_members] * (n_members > 0), 5).double())
    rows = columns.expansion(coded)
    scale = columns.column_scale.reshape(-1, columns.column_scale.shape[-1]).mean(0)
    every = columns.standardised(rows) * scale
    places = located(columns, rows)
    found = distances(places, places, steps_of(columns))
    torch.testing.assert_close(found, torch.cdist(every, every, p=1))
    assert torch.equal(found == 0, (every[:, None] == every).all(2))


def test_weights_are_repetitions_of_the_rows_that_are_remembered():
    rng = np.random.RandomState(0)
    places, residuals, new = (torch.as_tensor(rng.normal(size=(n, 2))) for n in (60, 60, 20))
    often = torch.as_tensor(rng.randint(0, 4, size=60))
    each = torch.repeat_interleave(torch.arange(60), often)
    some = torch.tensor(0.3, dtype=torch.float64)
    found = []
    for rows, weights in ((slice(None), often.double()), (each, torch.ones(len(each)).double())):
        of_rows = torch.arange(2), places[rows], places[0, :0], residuals[rows], weights
        state = zip(STATE, (*of_rows, some, some, residuals[0], some), strict=True)
        part = LocalPart(None, **dict(state))
        found.append(part._predicted(part._weights(new) @ part._of_rows))
    torch.testing.assert_close(*found)


def test_bandwidth_and_prior_have_the_smallest_error_left_out():
    X, y = in_clusters(900)
    model = crossed(CFLLRegressor).fit(X, y)
    part, alike = copy.deepcopy(model._model.local_part), torch.as_tensor(y)

    def error(bandwidth, prior):
        part.bandwidth, part.prior = bandwidth, torch.tensor(prior)
        left = part.residuals - part._predicted(part._sums_without(torch.arange(900), alike))
        return float(left.double().square().sum())

    chosen, best = part.bandwidth.clone(), float(part.prior)
    least = error(chosen, best)
    assert min(error(chosen, prior) for prior in PRIORS) >= least * (1 - 1e-6)
    assert min(error(chosen * factor, best) for factor in (0.5, 2.0)) >= least * (1 - 1e-6)


def test_more_rows_than_are_judged_have_residuals(monkeypatch):
    """Rows that are not remembered are predicted by those that are."""
    X, y = in_clusters(1500)
    model = crossed(CFLLRegressor)
    monkeypatch.setattr(CFLLRegressor, "defaults", model.defaults.__class__(most_judged=1000))
    model.fit(X, y)
    part = model._model.local_part
    assert len(part.places) == 1000
    without = crossed(CFLLRegressor, local_part=False).fit(X, y)
    errors = [np.square(each.oof_prediction_ - y).mean() for each in (model, without)]
    assert errors[0] < 0.6 * errors[1]


def test_rows_that_are_looked_at_first_can_end_it(monkeypatch):
    X, y = in_clusters(1200, effect=0.0)
    seen = []
    whole = LocalPart._gains
    monkeypatch.setattr(module, "FIRST_ROWS", 300)
    monkeypatch.setattr(
        LocalPart,
        "_gains",
        lambda self, chosen, *more: seen.append(len(chosen)) or whole(self, chosen, *more),
    )
    crossed(CFLLRegressor).fit(X, y + np.random.RandomState(3).normal(size=len(y)))
    assert sum(seen) == 300


@BOTH
def test_rows_that_are_added_do_not_change_it(Estimator):
    X, y = rows_for(Estimator)
    model = crossed(Estimator).fit(X, y)
    before = model._model.local_part
    model.adapt(X[:5], y[:5])
    model.partial_fit(X[:50], y[:50])
    assert model._model.local_part is before
    assert model.score(X, y) > 0.8
    again = crossed(Estimator, warm_start=True).fit(X, y)
    before = again._model.local_part
    assert again.fit(X, y)._model.local_part not in (None, before)


def test_importances_are_those_of_the_network(pair):
    model, without, *_ = pair
    np.testing.assert_array_equal(model.feature_importances_, without.feature_importances_)


def test_one_column_of_copies_has_no_distances():
    encoder, zeros = ColumnEncoder(importance=False).build(), torch.zeros(600, 1)
    rows = as_rows(zeros, torch.device("cpu"), None)
    encoder.fit(rows)
    assert LocalPart.fit(encoder, RowsDataset(rows, zeros), torch.ones(600, 1)) is None
