"""Cross-fitted members: each holds out its own fold, and every row is held out once."""

import itertools
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits, make_classification, make_friedman1
from sklearn.metrics import accuracy_score, log_loss, r2_score
from torch import nn

from helpers import BOTH, caught, friedman, on_disk, raw
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.estimator.split import draw_folds
from sklearn_cfll.training.batches import RowsDataset
from sklearn_cfll.training.folds import FoldRows, Folds
from small_tables import friedman_or_iris

BRIEF = {"hidden_layer_sizes": (16,), "max_epochs": 4, "random_state": 0}

# -- folds ------------------------------------------------------------------------------------


def test_folds_have_one_size_and_spread_classes_and_values():
    rng = np.random.default_rng(0)
    labels = rng.choice(3, size=203, p=[0.8, 0.15, 0.05])
    folds = draw_folds(8, labels[:, None], None, seed=1)
    for each in (folds, *(folds[labels == label] for label in range(3))):
        counts = np.bincount(each, minlength=8)
        assert counts.max() - counts.min() <= 2
    values = rng.lognormal(size=(203, 1))
    folds = draw_folds(8, values, None, seed=1)
    means = [np.log(values[folds == fold]).mean() for fold in range(8)]
    assert np.std(means) < 0.1 * np.log(values).std()
    np.testing.assert_array_equal(folds, draw_folds(8, values, None, seed=1))
    assert (folds != draw_folds(8, values, None, seed=2)).any()


@pytest.mark.parametrize("kind", [int, str])
def test_rows_of_a_group_share_a_fold(kind):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, size=400).astype(kind)
    folds = [draw_folds(8, np.zeros((400, 1)), groups, seed) for seed in range(2)]
    for group in np.unique(groups):
        assert len(np.unique(folds[0][groups == group])) == 1
    counts = np.bincount(folds[0], minlength=8)
    assert counts.min() > 0.6 * counts.max()
    assert (folds[0] != folds[1]).any()


def test_weights_of_a_member_are_those_of_the_rows_it_sees():
    rng = np.random.default_rng(0)
    weight = torch.as_tensor(rng.integers(1, 4, size=50)).double()
    rows = RowsDataset(as_rows(rng.normal(size=(50, 2)), "cpu", None), torch.zeros(50, 1), weight)
    of_row = torch.as_tensor(rng.integers(0, 3, size=50))
    second = torch.where(torch.arange(50) % 5 == 0, (of_row + 1) % 3, -1)
    folds = Folds(of_row, second, 3, 5)
    for held_out in (False, True):
        seen = FoldRows(rows, folds, held_out)
        weights = seen.batch(slice(None)).sample_weight.double()
        torch.testing.assert_close(weights.mean(0), torch.ones(5).double(), rtol=1e-6, atol=0)
        for member, own in enumerate(weights.T):
            inside = (of_row == member % 3) | (second == member % 3)
            assert bool((own[inside != held_out] == 0).all())
            share = own / weight
            assert len(share[inside == held_out].unique()) == 1
        some = torch.tensor([7, 3, 11])
        torch.testing.assert_close(seen.subset(some).batch(slice(1, 3))[2], seen.batch(some[1:])[2])


# -- what a row does not influence ------------------------------------------------------------


@pytest.mark.parametrize("update_order", ["last_layer_first", "backbone_first"])
def test_a_row_has_no_influence_on_its_own_out_of_fold_prediction(update_order):
    """Its target is replaced by a wild one: its fold's members never saw it, all others did."""
    X, y = friedman(60)
    options = BRIEF | {
        "cross_fit": True,
        "early_stopping": False,  # the epoch would depend on all rows
        "refit_last_layer": False,  # so would the final ridge
        "normalize_y": False,
        "linear_part": False,
        "columns": ColumnEncoder(importance=False),
        "update_order": update_order,
        "precision": "float64",
    }
    model, groups = CFLLRegressor(**options), np.arange(60)  # folds do not depend on y then
    before = model.fit(X, y, groups=groups).oof_prediction_
    changed = y.copy()
    changed[17] += 100.0
    after = model.fit(X, changed, groups=groups).oof_prediction_
    folds = draw_folds(8, y[:, None], groups, 0)
    own = folds == folds[17]
    np.testing.assert_allclose(after[own], before[own], rtol=1e-9)
    assert (np.abs(after[~own] - before[~own]) > 1e-3).all()


def test_the_offset_is_evaluated_without_the_row():
    """Of pure noise nothing can be said: no out-of-fold prediction may seem to help."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 25)), rng.normal(size=60)
    scores = [CFLLRegressor(random_state=seed).fit(X, y).oof_score_ for seed in range(3)]
    assert max(scores) < 0.05


def test_groups_that_are_recognised_help_only_if_they_are_torn_apart():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 8)
    X = rng.normal(size=(40, 4))[groups] + 0.01 * rng.normal(size=(320, 4))
    y = rng.normal(size=40)[groups]  # nothing of it can be said for a new group
    for options in ({}, {"cross_fit": False, "validation_fraction": 0.3}):
        model = CFLLRegressor(random_state=0, **options)
        apart = model.fit(X, y)
        torn = apart.noise_variance_
        together = model.fit(X, y, groups=groups).noise_variance_
        assert torn < 0.01 * y.var() < 0.5 * y.var() < together
    assert CFLLRegressor(random_state=0).fit(X, y, groups=groups).oof_score_ < 0.4


# -- scores -----------------------------------------------------------------------------------


def test_the_score_is_that_of_new_rows():
    X, y = make_friedman1(4000, noise=1.0, random_state=0)
    model = CFLLRegressor(max_epochs=20, random_state=0).fit(X[:1000], y[:1000])
    assert model.oof_score_ == pytest.approx(model.score(X[1000:], y[1000:]), abs=0.01)
    # Single members are worse than their mean, by the variance between them.
    assert r2_score(y[:1000], model.oof_prediction_) < model.oof_score_ - 0.002


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_classifier_has_labels_and_probabilities_of_all_rows(n_classes):
    X, y = make_classification(
        400, n_informative=5, n_classes=n_classes, flip_y=0.2, random_state=0
    )
    names = np.array(["a", "b", "c"])[y]
    model = CFLLClassifier(max_epochs=10, random_state=0).fit(X, names)
    assert model.oof_prediction_.shape == (400,) and set(model.oof_prediction_) <= set(names)
    assert model.oof_score_ == accuracy_score(names, model.oof_prediction_)
    assert model.oof_proba_.shape == (400, n_classes)
    np.testing.assert_allclose(model.oof_proba_.sum(1), 1, rtol=1e-6)
    agree = model.classes_[model.oof_proba_.argmax(1)] == model.oof_prediction_
    assert agree.mean() > 0.99
    assert model.oof_score_ < model.score(X, names)


def test_several_targets_and_labels():
    X, y = friedman(200)
    model = CFLLRegressor(**BRIEF).fit(X, np.column_stack([y, -2 * y]))
    assert model.oof_prediction_.shape == (200, 2)
    labels = np.column_stack([y > np.median(y), y > np.quantile(y, 0.95)]).astype(int)
    model = CFLLClassifier(**BRIEF).fit(X, labels)
    assert model.oof_prediction_.shape == model.oof_proba_.shape == (200, 2)
    assert model.oof_score_ == (model.oof_prediction_ == labels).all(1).mean()


def test_rows_of_weight_zero_are_predicted_by_all_members():
    X, y = friedman(120)
    weights = np.tile([1.0, 2.0, 0.0], 40)
    model = CFLLRegressor(**BRIEF).fit(X, y, weights)
    unused = weights == 0
    np.testing.assert_allclose(model.oof_prediction_[unused], model.predict(X[unused]), rtol=1e-6)
    kept = CFLLRegressor(**BRIEF).fit(X[~unused], y[~unused], weights[~unused])
    np.testing.assert_allclose(model.oof_prediction_[~unused], kept.oof_prediction_, rtol=1e-6)
    assert model.oof_score_ == pytest.approx(kept.oof_score_)


def test_class_weights_do_not_weigh_the_score():
    X, y = make_classification(300, weights=[0.9], flip_y=0.1, random_state=0)
    model = CFLLClassifier(**BRIEF, class_weight="balanced").fit(X, y)
    assert model.oof_score_ == accuracy_score(y, model.oof_prediction_)
    weights = np.where(y == 1, 3.0, 1.0)
    model = CFLLClassifier(**BRIEF).fit(X, y, weights)
    expected = accuracy_score(y, model.oof_prediction_, sample_weight=weights)
    assert model.oof_score_ == pytest.approx(expected)


# -- which fits are cross-fitted ----------------------------------------------------------------

FOLDS = [
    ({}, 200, 8),
    ({}, 39, 8),
    ({}, 9, 0),
    ({"cross_fit": False}, 200, 0),
    ({"early_stopping": False}, 200, 0),
    ({"validation_fraction": 0.2}, 200, 0),
    ({"n_members": 3}, 200, 0),
    ({"n_members": 3, "cross_fit": True}, 200, 3),
    ({"n_members": 12}, 200, 10),
    ({"cross_fit": True}, 30, 8),
    ({"cross_fit": True, "early_stopping": False}, 200, 8),
    ({"backbone": MLPBackbone((8,), n_members=5)}, 200, 5),
    ({"backbone": nn.Sequential(nn.Linear(6, 4), nn.ReLU())}, 200, 0),
    ({"backbone": nn.Sequential(nn.Linear(6, 4), nn.ReLU()), "n_members": 4}, 200, 4),
]


@pytest.mark.parametrize(("options", "n_rows", "n_folds"), FOLDS)
def test_which_fits_have_folds(options, n_rows, n_folds):
    X, y = friedman(n_rows)
    options = {"max_epochs": 2, "random_state": 0} | options
    model = CFLLRegressor(**options)
    assert caught(lambda: model.fit(X, y)) == []
    assert model.resolved_["n_folds"] == n_folds
    assert hasattr(model, "oof_score_") == hasattr(model, "oof_prediction_") == (n_folds > 0)
    if n_folds:
        assert model.resolved_["n_held_out"] == n_rows
        assert len(model.history_) == 2 and model.history_[0]["valid_loss"] > 0
    else:
        with pytest.raises(AttributeError, match="`oof_score_`.*cross_fit=True"):
            model.oof_score_  # noqa: B018


@BOTH
def test_copies_of_few_rows_are_one_row_of_their_weight(Estimator):
    rng = np.random.default_rng(0)
    X, y, weights = rng.normal(size=(15, 4)), rng.integers(0, 3, 15), rng.integers(0, 4, 15)
    copies = rng.permutation(np.repeat(np.arange(15), weights))
    model = Estimator(**BRIEF)
    weighted = model.fit(X, y, sample_weight=weights)
    found, honest, score = raw(weighted, X), weighted.oof_prediction_, weighted.oof_score_
    repeated = model.fit(X[copies], y[copies])
    np.testing.assert_allclose(raw(repeated, X), found, rtol=1e-8)
    np.testing.assert_allclose(repeated.oof_prediction_, honest[copies], rtol=1e-8)
    assert repeated.oof_score_ == pytest.approx(score)


def test_few_rows_with_the_same_inputs_share_a_fold():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, size=(35, 2)).astype(float)
    y = X[:, 0] + rng.normal(size=35)
    honest = CFLLRegressor(linear_part=False, **BRIEF).fit(X, y).oof_prediction_
    _, cell = np.unique(X, axis=0, return_inverse=True)
    for number in np.unique(cell):
        assert np.ptp(honest[cell.ravel() == number]) < 1e-9


def test_few_rows_with_one_input_have_random_folds():
    y = np.random.default_rng(0).normal(size=30)
    model = CFLLRegressor(cross_fit=True, **BRIEF).fit(np.ones((30, 2)), y)
    assert model.resolved_["n_folds"] == 8
    assert CFLLRegressor(**BRIEF).fit(np.ones((30, 2)), y).resolved_["n_folds"] == 0


@BOTH
def test_few_rows_of_noise_lead_to_no_certainty(Estimator):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(535, 5)), rng.integers(0, 2, 535)
    model = Estimator(random_state=0).fit(X[:35], y[:35])
    if Estimator is CFLLRegressor:  # a quarter is the variance
        assert np.mean((model.predict(X[35:]) - y[35:]) ** 2) < 1.15 * 0.25
    else:  # that of a coin is .69
        assert log_loss(y[35:], model.predict_proba(X[35:])) < 0.75


def test_few_groups_are_as_many_folds():
    X, y = friedman(90)
    groups = np.repeat(["x", "y", "z"], 30)
    model = CFLLRegressor(**BRIEF).fit(X, y, groups=groups)
    assert model.resolved_["n_folds"] == 3


BAD = [
    ({"n_members": 1}, {}, "`cross_fit`=True needs several networks.*`n_members`"),
    ({}, {"X_val": 1, "y_val": 1}, "`cross_fit`=True holds out a fold.*`X_val`"),
    ({}, {"groups": np.zeros(7)}, r"`groups` must hold one label for each of the 60 rows.*\(7,\)"),
    ({}, {"groups": np.zeros(60)}, "`groups` holds one group, 0.0, among"),
    ({}, {"groups": [None, *range(59)]}, "Input groups contains missing values.*row 0"),
]


@pytest.mark.parametrize(("options", "given", "message"), BAD)
def test_what_cannot_be_cross_fitted_is_named(options, given, message):
    X, y = friedman(60)
    if "X_val" in given:
        given = {"X_val": X, "y_val": y}
    model = CFLLRegressor(cross_fit=True, **BRIEF | options)
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, **given)
    with pytest.raises(ValueError, match="`cross_fit`=True holds out rows and needs at least 10"):
        CFLLRegressor(cross_fit=True, **BRIEF).fit(X[:9], y[:9])


def test_a_fraction_beside_folds_is_named():
    X, y = friedman(60)
    model = CFLLRegressor(cross_fit=True, validation_fraction=0.3, **BRIEF)
    (message,) = caught(lambda: model.fit(X, y))
    assert "`validation_fraction`=0.3 has no effect" in message


# -- everything else ----------------------------------------------------------------------------


@BOTH
def test_weights_are_repetitions_within_given_folds(Estimator):
    """With groups, a row's copies share its fold: the whole fit is the same."""
    X, y = friedman_or_iris(Estimator)
    X, y = X[:144:3], y[:144:3]
    options = BRIEF | {"batch_size": "full", "columns": ColumnEncoder(importance=False)}
    if Estimator is CFLLRegressor:
        options["linear_part"] = False  # its shrinkage takes a weight as a precision
    # Eight groups of as many rows and repetitions, and one fold for each.
    groups, times = np.arange(len(X)) % 8, 1 + np.arange(len(X)) // 8 % 3
    weighted = Estimator(**options).fit(X, y, times, groups=groups)
    repeated = Estimator(**options).fit(
        X.repeat(times, 0), y.repeat(times), groups=groups.repeat(times)
    )
    found, expected = (
        m.predict(X) if Estimator is CFLLRegressor else m.decision_function(X)
        for m in (weighted, repeated)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        weighted.ridge_path_["error"], repeated.ridge_path_["error"], rtol=1e-6
    )


def test_fits_are_equal_from_any_container(tmp_path):
    X, y = friedman(150)
    expected = CFLLRegressor(**BRIEF).fit(X, y)
    dataset = torch.utils.data.TensorDataset(torch.as_tensor(X), torch.as_tensor(y))
    for inputs, targets in ((scipy.sparse.csr_matrix(X), y), (on_disk(X, tmp_path), y)):
        model = CFLLRegressor(**BRIEF).fit(inputs, targets)
        np.testing.assert_array_equal(model.oof_prediction_, expected.oof_prediction_)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
    options = {"n_members": 4, "max_epochs": 3, "random_state": 0}
    expected = CFLLRegressor(backbone, **options).fit(X, y)
    model = CFLLRegressor(backbone, **options).fit(dataset)
    np.testing.assert_allclose(model.oof_prediction_, expected.oof_prediction_, rtol=1e-5)


def test_they_survive_saving_and_go_when_rows_are_added(tmp_path):
    X, y = friedman(150)
    model = CFLLRegressor(**BRIEF).fit(X, y)
    model.save(tmp_path / "model.npz")
    for other in (pickle.loads(pickle.dumps(model)), CFLLRegressor.load(tmp_path / "model.npz")):
        np.testing.assert_array_equal(other.oof_prediction_, model.oof_prediction_)
        assert other.oof_score_ == model.oof_score_
    for method in ("adapt", "partial_fit"):
        other = pickle.loads(pickle.dumps(model))
        getattr(other, method)(X[:20], y[:20])
        assert not hasattr(other, "oof_score_")


def test_a_warm_started_fit_goes_on_with_the_same_folds():
    X, y = friedman(200)
    model = CFLLRegressor(**BRIEF, warm_start=True).fit(X, y)
    scores = [model.oof_score_]
    scores += [model.fit(X, y).oof_score_ for _ in range(3)]
    assert all(b > a - 0.01 for a, b in itertools.pairwise(scores)) and scores[-1] > scores[0]
    assert model.oof_score_ < model.score(X, y)
    assert model.resolved_["n_folds"] == 8


def test_few_of_many_rows_are_watched(monkeypatch):
    X, y = friedman(400)
    few = type(
        "Few", (CFLLRegressor,), {"defaults": CFLLRegressor.defaults.__class__(most_watched=100)}
    )
    models = [kind(**BRIEF, linear_part=False).fit(X, y) for kind in (few, CFLLRegressor)]
    losses = [[row["valid_loss"] for row in model.history_] for model in models]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.5)
    assert len(models[0].oof_prediction_) == 400


def test_rare_classes_do_no_harm():
    X, y = load_digits(return_X_y=True)
    kept = np.flatnonzero((y < 4) | (np.arange(len(y)) > 1780))[-300:]
    model = CFLLClassifier(**BRIEF).fit(X[kept], y[kept])
    counts = np.bincount(y[kept])
    assert counts[counts > 0].min() <= 3 and model.resolved_["n_folds"] == 8
    assert model.oof_score_ > 0.7


# -- several of one's own backbone ----------------------------------------------------------------


def build(shape):
    return nn.Sequential(nn.Linear(*shape, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("backbone", [build, build((6,))], ids=["callable", "module"])
def test_several_copies_of_a_backbone(backbone, tmp_path):
    X, y = friedman(200)
    model = CFLLRegressor(backbone, n_members=4, max_epochs=10, random_state=0).fit(X, y)
    assert model.features(X).shape == (200, 32) and model.resolved_["n_folds"] == 4
    first = [each[0].weight for each in model.backbone_.networks]
    assert not torch.equal(first[0], first[1])
    joined = model.to_torch()(torch.as_tensor(X, dtype=first[0].dtype)).detach().numpy()[:, 0]
    np.testing.assert_allclose(joined, model.predict(X), rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.npz")
    loaded = CFLLRegressor.load(tmp_path / "model.npz", backbone=backbone)
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    loaded.partial_fit(X[:50], y[:50])
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.predict(X), model.predict(X))


def test_copies_of_a_network_on_fields_and_named_inputs():
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(60, 1, 12)).astype("f4")
    y = np.cumsum(fields[:, 0], axis=1)
    network = nn.Sequential(nn.Conv1d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv1d(6, 1, 1))
    model = CFLLRegressor(network, n_members=4, max_epochs=3, random_state=0).fit(fields, y)
    assert model.oof_prediction_.shape == y.shape and model.resolved_["n_folds"] == 4
    assert model.predict_interval(fields)[0].shape == y.shape

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 5)

        def forward(self, a, b):
            return torch.relu(self.layer(torch.cat([a, b], 1)))

    named = {"a": rng.normal(size=(60, 2)).astype("f4"), "b": rng.normal(size=(60, 2)).astype("f4")}
    model = CFLLRegressor(Both(), n_members=4, max_epochs=3, random_state=0).fit(named, y[:, 0])
    assert model.features(named).shape == (60, 20)


def test_equal_copies_and_groups_without_effect_are_named():
    X, y = friedman(100)
    options = {"n_members": 4, "max_epochs": 1, "random_state": 0}
    alone = CFLLRegressor(build((6,)), cross_fit=False, **options)
    (message,) = caught(lambda: alone.fit(X, y))
    assert "`n_members`=4 copies of a module" in message
    assert caught(lambda: CFLLRegressor(build, cross_fit=False, **options).fit(X, y)) == []
    groups = np.arange(100) // 2
    for given in ({"X_val": X, "y_val": y}, {}):
        model = CFLLRegressor(**BRIEF, early_stopping=False)
        (message,) = caught(lambda m=model, g=given: m.fit(X, y, groups=groups, **g))
        assert "`groups` has no effect because" in message


def test_a_warm_start_on_other_rows_has_no_honest_predictions():
    X, y = friedman(200)
    model = CFLLRegressor(**BRIEF, warm_start=True).fit(X[:100], y[:100])
    assert hasattr(model.fit(X[:100], y[:100]), "oof_score_")
    assert not hasattr(model.fit(X, y), "oof_score_")


def test_members_that_share_folds_have_less_excess():
    """Of twelve members two hold out each of the first two folds: their mean errs less."""
    X, y = friedman(400)
    model = CFLLRegressor(n_members=12, **BRIEF).fit(X, y)
    assert model.resolved_["n_folds"] == 10
    assert model.oof_score_ == pytest.approx(model.score(*friedman(2000, seed=1)), abs=0.05)


# -- what a breaker found -------------------------------------------------------------------------


@pytest.mark.parametrize("linear_part", ["auto", True])
def test_the_linear_part_does_not_tell_of_groups(linear_part):
    """The nine other rows of a group say all of the tenth; of a new group nothing is known."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(160), 10)
    X = rng.normal(size=(160, 20))[groups]
    y = rng.normal(size=160)[groups] + 0.3 * rng.normal(size=1600)
    kept = groups < 40
    model = CFLLRegressor(max_epochs=5, linear_part=linear_part, random_state=0)
    model.fit(X[kept], y[kept], groups=groups[kept])
    assert model.resolved_["linear_part"] == (linear_part is True)
    assert model.oof_score_ < 0.1
    lower, upper = model.predict_interval(X[~kept])
    assert ((lower <= y[~kept]) & (y[~kept] <= upper)).mean() > 0.7  # of 40 groups


def test_a_warm_start_with_other_folds_is_named():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(120, 5)), rng.normal(size=120)
    first = {"early_stopping": False}, {"cross_fit": False}, {}
    for options in first:
        model = CFLLRegressor(**BRIEF, warm_start=True).set_params(**options).fit(X[:100], y[:100])
        model.set_params(early_stopping="auto", cross_fit="auto")
        rows = slice(0, 100) if options else slice(0, 101)
        messages = caught(lambda m=model, r=rows: m.fit(X[r], y[r]))
        assert any("trained on rows that they now hold out" in each for each in messages)
        assert not hasattr(model, "oof_score_")
    groups = np.arange(100) % 50
    model = CFLLRegressor(**BRIEF, warm_start=True).fit(X[:100], y[:100], groups=groups)
    assert caught(lambda: model.fit(X[:100], y[:100], groups=groups)) == []
    model.fit(X[:100], y[:100], groups=groups // 5)
    assert not hasattr(model, "oof_score_")


def test_sets_are_of_the_classes_as_they_come():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 4))
    y = (X[:, 0] + rng.normal(size=3000) > 2).astype(int)
    model = CFLLClassifier(max_epochs=5, random_state=0, class_weight={0: 1, 1: 100})
    model.fit(X[:600], y[:600])
    chosen = model.predict_set(X[600:])
    assert chosen[np.arange(2400), y[600:]].mean() == pytest.approx(0.9, abs=0.04)


def test_one_group_of_positive_weight_is_named():
    X, y = friedman(80)
    groups, weights = np.r_[np.zeros(20), np.arange(60)], np.r_[np.ones(20), np.zeros(60)]
    with pytest.raises(ValueError, match="`groups` holds one group, 0.0, among the rows of pos"):
        CFLLRegressor(cross_fit=True, **BRIEF).fit(X, y, weights, groups=groups)


def test_scales_of_the_columns_do_not_tell_of_the_held_out_targets():
    """Many columns of noise: scales by all targets would pick those that fit by chance."""
    scores = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X, y = rng.normal(size=(300, 200)), rng.integers(0, 2, 300)
        model = CFLLClassifier(hidden_layer_sizes=(32, 32), max_epochs=4, random_state=seed)
        scale = model.fit(X, y).backbone_.columns.column_scale
        assert scale.shape == (8, 1, 200) and not torch.equal(scale[0], scale[1])
        scores.append(model.oof_score_)
    assert np.mean(scores) < 0.55
