"""A few plain rows are predicted in NumPy as by the modules."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import small
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.estimator.few_rows import MOST_ROWS, few_rows
from sklearn_cfll.estimator.plain_row import plain_row

N = 700  # without a linear part, and in float32, unless a test asks for others


def make_rows():
    """Columns with a heavy tail and of few values among normal ones."""
    random = np.random.default_rng(0)
    X = random.normal(size=(N, 5))
    X[:, 1], X[:, 2] = np.exp(2 * X[:, 1]), random.integers(0, 5, N)
    return X, np.sin(2 * X[:, 0]) + np.log(X[:, 1]) + 0.1 * X[:, 2]


def alone(method, X):
    """The results of single rows."""
    return np.concatenate([method(X[i : i + 1]) for i in range(len(X))])


SERVED = {
    "default": {},
    "double": {"precision": "float64"},
    "one network": {"n_members": 1, "hidden_layer_sizes": (8, 8), "dropout": 0.1},
    "odd sizes": {"n_members": 3, "hidden_layer_sizes": (7, 5), "activation": "gelu"},
    "three layers": {"n_members": 4, "hidden_layer_sizes": (8, 8, 8), "activation": "silu"},
    "numbers": {"columns": ColumnEncoder(n_bins=0, importance=False), "activation": "elu"},
    "scores": {"columns": ColumnEncoder(quantiles=True), "activation": "identity"},
    "offset of scores": {"columns": ColumnEncoder(n_bins=0), "linear_part": True},
}


@pytest.mark.parametrize("options", SERVED.values(), ids=SERVED)
def test_rows_alone_are_predicted_as_among_others(options):
    X, y = make_rows()
    y = np.column_stack([y, -y]) if "columns" in options else y
    model = small(CFLLRegressor, max_epochs=2, local_part=False, **options).fit(X, y)
    wanted = model.predict(3 * X)  # far rows are clipped
    found = alone(model.predict, 3 * X[:60])
    assert few_rows(model, X[:1]) is not None
    assert found.dtype == wanted.dtype and found.shape[1:] == wanted.shape[1:]
    eps = np.finfo(wanted.dtype).eps
    np.testing.assert_allclose(found, wanted[:60], rtol=0, atol=50 * eps * np.abs(wanted).max())


def test_which_rows_come_together_does_not_matter():
    X, y = make_rows()
    model = small(CFLLRegressor, max_epochs=2).fit(X, y)
    found = alone(model.predict, X[:MOST_ROWS])
    np.testing.assert_array_equal(model.predict(X[:MOST_ROWS]), found)
    np.testing.assert_array_equal(model.predict(X[:MOST_ROWS].astype(np.float64)), found)


def test_a_classifier_of_single_rows():
    X, y = make_rows()
    model = CFLLClassifier(max_epochs=2, local_part=False, random_state=0)
    model.fit(X, np.digitize(y, [-1, 1]))
    found = alone(model.predict_proba, X[:40])
    assert few_rows(model, X[:1]) is not None
    np.testing.assert_allclose(found, model.predict_proba(X)[:40], atol=1e-5)


CHANGES = {
    "adapt": lambda model, X, y: model.adapt(X[:50], y[:50] + 5),
    "partial_fit": lambda model, X, y: model.partial_fit(X[:50], y[:50] + 5),
    "fit": lambda model, X, y: model.fit(X, -y),
    "last layer": lambda model, X, y: model.net_.module_.last_layer.solve(10.0),
    "weights of the last layer": lambda model, X, y: model.net_.module_.last_layer.weight.mul_(3),
    "net": lambda model, X, y: model.net_.partial_fit(torch.tensor(X).float(), torch.tensor(-y)),
    "weights": lambda model, X, y: [p.data.mul_(2) for p in model.backbone_.parameters()],
    "data": lambda model, X, y: doubled(model.backbone_),
    "layer": lambda model, X, y: linear(model.backbone_.network),
}


def doubled(module):
    for parameter in module.parameters():
        parameter.data = 2 * parameter.data


def linear(networks):
    """Replace an activation of each network."""
    for network in networks.networks:
        network[1] = torch.nn.Identity()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_changes_the_model_changes_its_predictions_of_single_rows(change):
    X, y = make_rows()
    model = small(CFLLRegressor, max_epochs=2).fit(X, y)
    before = alone(model.predict, X[:5])
    change(model, X, y)
    found, wanted = alone(model.predict, X[:5]), model.predict(X)[:5]
    assert np.abs(found - before).min() > 1e-4
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def test_other_models_and_rows_take_the_usual_way():
    X, y = make_rows()
    gaps = np.where(np.arange(N)[:, None] % 7 == 0, np.nan, X)
    for options, rows in (
        ({"precision": "bf16"}, X),
        ({"columns": "passthrough"}, X),
        ({}, gaps),
        ({"backbone": torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.GELU("tanh"))}, X),
    ):
        model = small(CFLLRegressor, max_epochs=1, **options).fit(rows, y)
        np.testing.assert_allclose(
            alone(model.predict, rows[:3]), model.predict(rows)[:3], rtol=1e-5
        )
        assert few_rows(model, rows[1:2]) is None
    model = small(CFLLRegressor, max_epochs=1).fit(X, y)
    assert model.predict([[0.0, 1.0, 2.0, 3.0, 4.0]]).shape == (1,)
    with pytest.raises(ValueError, match="features"):
        model.predict(X[:1, :4])
    with pytest.raises(ValueError, match="infinity"):
        model.predict(np.full((1, 5), np.inf))
    frame = pd.DataFrame(X, columns=list("abcde"))
    named = small(CFLLRegressor, max_epochs=1).fit(frame, y)
    with pytest.warns(UserWarning, match="feature names"):
        named.predict(X[:1])


# -- rows that are added -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"n_members": 3, "linear_part": True}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_plain_row_is_added_as_one_that_is_checked(options, dtype):
    X, y = make_rows()
    X = X.astype(dtype)
    plain, checked = (
        small(CFLLRegressor, max_epochs=1, **options).fit(X[:600], y[:600]) for _ in range(2)
    )
    for i in range(600, 605):
        row = X[i : i + 1], y[i : i + 1]
        assert plain_row(plain, *row, None) is not None
        plain.adapt(*row)
        checked.adapt(row[0], row[1].tolist())
    np.testing.assert_allclose(plain.last_layer_coef_, checked.last_layer_coef_, rtol=1e-12)


def test_which_rows_are_plain():
    X, y = make_rows()
    model, row, one = small(CFLLRegressor, max_epochs=1).fit(X, y), X[:1], y[:1]
    assert plain_row(model, row, one, None) is not None
    tiny = np.where(np.arange(5) == 2, 1e-150, row)
    for other in (
        (X[:2], y[:2], None),
        (row, one, np.ones(1)),
        (row.tolist(), one, None),
        (np.full((1, 5), np.nan), one, None),
        (row + 1e6, one, None),
        (tiny, one, None),
        (row, one + 1e6, None),
        (row, one[:, None], None),
        (row[:, :4], one, None),
    ):
        assert plain_row(model, *other) is None
    for options in ({"normalize_y": False}, {"columns": "passthrough"}):
        assert (
            plain_row(small(CFLLRegressor, max_epochs=1, **options).fit(X, y), row, one, None)
            is None
        )
    several = small(CFLLRegressor, max_epochs=1).fit(X, np.stack([y, -y], 1))
    assert plain_row(several, row, one, None) is None
    labels = small(CFLLClassifier, max_epochs=1).fit(X, (y > 0).astype(float))
    assert plain_row(labels, row, np.ones(1), None) is None
    with pytest.warns(UserWarning, match="Column 0 of the new rows"):
        model.adapt(row + 1e6, one)
