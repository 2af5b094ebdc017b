"""ColumnEncoder: before any network, in a grid, in a file, and with an encoder from outside."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLClassifier, CFLLRegressor, ColumnEncoder
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.columns import Encoder
from sklearn_cfll.columns.bins import PiecewiseLinear
from sklearn_cfll.columns.encoder import ENCODERS, Encoded, EncodedColumns
from sklearn_cfll.columns.expansion import NUMBER, Levels
from sklearn_cfll.columns.normal_scores import NormalScores
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.columns.scaling import RobustStandardize
from sklearn_cfll.estimator.defaults import DEFAULTS

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3)) * [1.0, 1e3, 1e-3] + [0.0, 5e3, 1.0]
Y = np.sin(3 * X[:, 0]) + (X[:, 1] > 5e3)
BRIEF = {"max_epochs": 5, "random_state": 0, "linear_part": False}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.LazyLinear(16), nn.Tanh())


def table(n=200, p=3):
    return as_rows(X[:n, :p], "cpu", torch.float64)


class Squares(nn.Module):
    """A toy: the squares of the columns, in units of their largest."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.ones(0))

    @property
    def n_outputs(self):
        return len(self.largest)

    @property
    def column(self):
        return torch.arange(self.n_outputs)

    def fit(self, rows, sample_weight=None):
        self.largest = rows.take(slice(None)).abs().amax(0).to(self.largest)

    def forward(self, rows):
        return (rows.to(self.largest) / self.largest).square()


@pytest.mark.parametrize("make", [RobustStandardize, NormalScores, PiecewiseLinear, Squares])
def test_every_encoder_keeps_the_protocol(make):
    encoder = make()
    assert isinstance(encoder, Encoder)
    encoder.fit(table(), torch.ones(200))
    encoded = encoder(table().take(slice(0, 7)))
    assert encoded.shape == (7, encoder.n_outputs) and encoded.dtype == torch.float32
    assert len(encoder.column) == encoder.n_outputs and encoder.column.max() == 2
    flags = table().take(slice(0, 7)) > 1.0
    torch.testing.assert_close(encoder(flags), encoder(flags.double()), rtol=0, atol=0)


def test_an_encoder_from_outside_is_one_line_of_the_table(monkeypatch, tmp_path):
    monkeypatch.setitem(ENCODERS, "squares", lambda encoder: Squares())
    model = CFLLRegressor(**BRIEF).fit(X[:150], Y[:150])
    columns = model.backbone_.columns
    assert columns.widths == (3, 48, 3) and isinstance(columns.encoders[2], Squares)
    for scale in columns.column_scale[:, 0]:
        assert len(scale.unique()) <= 3  # one scale for all that comes from a column
    assert model.score(X[150:], Y[150:]) > 0.85
    model.save(tmp_path / "model.npz")
    for other in (CFLLRegressor.load(tmp_path / "model.npz"), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_the_classifier_bins_the_columns_of_a_thousand_rows():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(1000, 2)), np.arange(1000) % 2
    for n, widths in ((999, (2,)), (1000, (2, 32))):
        model = CFLLClassifier(max_epochs=1, hidden_layer_sizes=8, random_state=0)
        assert model.fit(rows[:n], labels[:n]).backbone_.columns.widths == widths


def test_without_the_object_there_is_no_encoding():
    model = CFLLRegressor(hidden_layer_sizes=8, columns="passthrough", **BRIEF).fit(X, Y)
    assert model.backbone_(torch.zeros(1, 3).double()).shape == (1, 64)
    assert isinstance(model.backbone_[0], nn.Sequential)  # the perceptrons, on X as it is


@BOTH
def test_the_default_is_the_encoder_that_the_docstring_names(Estimator):
    y = Y > 0.5 if Estimator is CFLLClassifier else Y
    text, named = "ColumnEncoder(n_bins=16)", ColumnEncoder()
    if Estimator is CFLLClassifier:
        text = "ColumnEncoder(n_bins=16, quantiles=True)"
        named = ColumnEncoder(n_bins=0, quantiles=True)  # of fewer than 1,000 rows
    assert text in Estimator.__doc__
    settings = {"max_epochs": 3, "random_state": 0}
    default = Estimator(**settings).fit(X, y)
    spelt_out = Estimator(columns=named, **settings).fit(X, y)
    np.testing.assert_array_equal(default.predict(X), spelt_out.predict(X))


def test_it_brings_a_frame_to_a_users_own_network():
    frame = pd.DataFrame(X, columns=["dose", "income", "share"])
    with pytest.warns(UserWarning, match="sees X unscaled"):
        plain = CFLLRegressor(network(), **BRIEF).fit(frame[:150], Y[:150])
    encoded = CFLLRegressor(network(), columns=ColumnEncoder(8), **BRIEF)
    encoded.fit(frame[:150], Y[:150])
    assert encoded.backbone_.network[0].in_features == 3 + 3 * 8
    assert encoded.score(frame[150:], Y[150:]) > 0.85
    assert plain.score(frame[150:], Y[150:]) < 0.2
    assert list(encoded.feature_names_in_) == list(frame.columns)


@pytest.mark.parametrize("backbone", [None, MLPBackbone((8,), n_members=2), network()], ids=str)
def test_files_and_plain_modules_hold_it(backbone, tmp_path):
    columns = ColumnEncoder(8, quantiles=True)
    model = CFLLRegressor(backbone, columns=columns, **BRIEF).fit(X, Y)
    own = {"backbone": backbone} if isinstance(backbone, nn.Module) else {}
    if own:
        with pytest.warns(UserWarning, match="Pass these arguments .*`backbone`"):
            model.save(tmp_path / "model.npz")
    else:
        model.save(tmp_path / "model.npz")
    opened = CFLLRegressor.load(tmp_path / "model.npz", **own)
    np.testing.assert_array_equal(opened.predict(X), model.predict(X))
    with torch.no_grad():
        exported = model.to_torch()(torch.from_numpy(X))[:, 0]
    np.testing.assert_allclose(exported, model.predict(X), rtol=1e-4, atol=1e-5)


def test_a_grid_goes_over_its_parameters():
    search = GridSearchCV(
        CFLLRegressor(columns=ColumnEncoder(), **BRIEF),
        {"columns__n_bins": [0, 4], "columns__importance": [True, False]},
        cv=2,
        error_score="raise",
    ).fit(X, Y)
    assert search.best_params_["columns__n_bins"] == 4
    assert len(set(search.cv_results_["mean_test_score"])) == 4


def test_the_estimators_own_object_is_not_fitted():
    columns = ColumnEncoder(4)
    model = CFLLRegressor(columns=columns, **BRIEF).fit(X, Y)
    assert vars(columns) == vars(ColumnEncoder(4))
    columns.n_bins = 2  # has no effect on what is fitted, and a warm start would not follow it
    with pytest.raises(ValueError, match="`columns` has changed"):
        model.set_params(warm_start=True).fit(X, Y)
    assert clone(model).columns is not columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (ColumnEncoder(1), "'n_bins' parameter of ColumnEncoder"),
        (ColumnEncoder(4, quantiles="some"), "'quantiles' parameter of ColumnEncoder"),
        (ColumnEncoder, "'columns' parameter of CFLLRegressor"),
        ("none", "'columns' parameter of CFLLRegressor"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        CFLLRegressor(columns=columns).fit(X, Y)


def test_samples_that_are_no_rows_are_refused():
    images = np.zeros((60, 1, 4, 4))
    model = CFLLRegressor(nn.Flatten(), columns=ColumnEncoder())
    with pytest.raises(ValueError, match=r"`columns` encodes tables, .* shape \(1, 4, 4\)"):
        model.fit(images, np.arange(60.0))
    named = CFLLRegressor(nn.Flatten(), columns=ColumnEncoder())
    with pytest.raises(ValueError, match="`columns` encodes tables"):
        named.fit({"a": X, "b": X}, Y)


def test_rows_held_out_count_for_edges_but_their_targets_do_not():
    """Edges are those of all rows, so that members with other held-out rows can share them."""
    found = [
        CFLLRegressor(random_state=seed, max_epochs=1).fit(X, Y).backbone_.columns.encoders[1].lower
        for seed in (0, 1)
    ]
    assert torch.equal(*found)
    assert DEFAULTS.column_encoder(None, MLPBackbone(), 40).n_bins == 16


def test_a_module_scales_what_comes_from_a_column():
    columns = EncodedColumns([RobustStandardize(), RobustStandardize()], True).double()
    inputs = torch.randn(5, 3, dtype=torch.float64)
    columns.fit(as_rows(inputs, "cpu", torch.float64))
    before = columns(inputs)
    columns.scale_columns(torch.tensor([2.0, 3.0, 5.0]))
    assert torch.equal(columns(inputs), before * torch.tensor([2.0, 3.0, 5.0, 2.0, 3.0, 5.0]))


@pytest.mark.parametrize("scales", ["none", "shared", "of members"])
def test_many_levels_are_looked_up_in_the_weights(scales):
    """The same outputs and gradients as products with the indicators, unknown levels included."""
    codes = torch.arange(300, dtype=torch.float64)
    known = torch.stack([codes % 90, torch.sin(codes), codes % 70, codes.cos().round()], 1)
    known[::50, 1] = torch.nan
    columns = EncodedColumns([RobustStandardize(), PiecewiseLinear(4)], scales != "none").double()
    columns.fit(
        as_rows(known, "cpu", torch.float64), levels=[Levels(91), NUMBER, Levels(70), NUMBER]
    )
    if scales != "none":
        columns.scale_columns(torch.rand(*[3] * (scales == "of members"), 4).double() + 0.5)
    recipe = MLPBackbone((6, 5), n_members=3)
    network = recipe.build((sum(columns.widths),), widths=columns.widths).double()
    module = Encoded(columns, network)
    known[:3, 0] = torch.tensor([-1.0, torch.nan, 90.0])
    rows = columns.expansion(known)
    assert columns.looks_up
    found = []
    for inputs in (rows, rows.clone().requires_grad_()):  # slopes along indicators need products
        module.zero_grad()
        outputs = module(inputs)
        outputs.square().sum().backward()
        found.append([outputs, *(each.grad for each in module.parameters())])
    for looked_up, multiplied in zip(*found, strict=True):
        torch.testing.assert_close(looked_up, multiplied)
    traced = torch.jit.trace(module.eval(), rows[:4])  # of a module that is exported
    torch.testing.assert_close(traced(rows), module(rows))
    assert module(rows[:0]).shape == (0, 15)
