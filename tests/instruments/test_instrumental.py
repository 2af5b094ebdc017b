"""CFLLIVRegressor: against two-stage least squares, on both designs, in scikit-learn's manners."""

import copy
import pickle
import runpy
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.datasets import make_demand_design
from sklearn_cfll.instruments.data import (
    InstrumentData,
    fold_labels,
)
from sklearn_cfll.instruments.diagnostics import hansen
from sklearn_cfll.instruments.identification import RedundantInstrumentWarning
from sklearn_cfll.instruments.report import (
    DirectRegressionPreferredWarning,
    WeakInstrumentWarning,
)
from small_fits import SMALL

LINEAR = {
    "treatment_backbone": "identity",
    "instrument_backbone": "identity",
    "covariate_backbone": "identity",
    "stage1_ridge": 0,
    "stage2_ridge": 0,
    "interaction_scale": 0,
    "cross_fit": False,
}


def linear_data(n=400, n_treatments=1, seed=0):
    rng = np.random.default_rng(seed)
    C, Z, hidden = rng.normal(size=(n, 2)), rng.normal(size=(n, 3)), rng.normal(size=n)
    X = Z @ rng.uniform(0.3, 1, size=(3, n_treatments)) + C[:, :1] + hidden[:, None]
    X += 0.5 * rng.normal(size=X.shape)
    y = X.sum(1) - C[:, 1] + 2 * hidden + 0.5 * rng.normal(size=n)
    return X, y, Z, C


def nonlinear_data(n=300, seed=0):
    rng = np.random.default_rng(seed)
    Z, hidden = rng.normal(size=(n, 1)), rng.normal(size=n)
    C = rng.normal(size=(n, 1))
    X = Z + 0.5 * hidden[:, None]
    return X, np.abs(X[:, 0]) + C[:, 0] + hidden, Z, C


@pytest.fixture
def data():
    return nonlinear_data()


@pytest.fixture(scope="module")
def fitted():
    X, y, Z, C = nonlinear_data()
    return CFLLIVRegressor(**SMALL).fit(X, y, Z=Z, C=C)


def test_resolved_and_summary_say_what_was_fitted(fitted):
    resolved = fitted.resolved_
    assert resolved["treatment_hidden_sizes"] == (8, 2) and resolved["batch_size"] == 300
    assert resolved["stage2_ridge"] == fitted.shrinkage_["ridge"]
    assert resolved["precision"] == "float64" and resolved["n_threads"] == 1
    assert "1 treatment, 1 instrument, 1 confounder\n" in str(fitted.summary())


# -- against linear estimators --------------------------------------------------------


@pytest.mark.parametrize("n_treatments", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_frozen_backbones_without_ridge_are_two_stage_least_squares(n_treatments, weighted):
    iv = pytest.importorskip("linearmodels.iv")
    X, y, Z, C = linear_data(n_treatments=n_treatments)
    weights = np.random.default_rng(1).uniform(0.5, 2, len(y)) if weighted else None
    exogenous = np.column_stack([np.ones(len(y)), C])
    reference = iv.IV2SLS(y, exogenous, X, Z, weights=weights).fit()
    expected = np.column_stack([exogenous, X]) @ reference.params
    model = CFLLIVRegressor(**LINEAR, diagnose=False)
    model.fit(X, y, Z=Z, C=C, sample_weight=weights)
    np.testing.assert_allclose(model.predict(X, C), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("with_confounders", [True, False])
def test_frozen_backbones_without_ridge_are_the_k_class_estimator_at_one(with_confounders):
    ivmodels = pytest.importorskip("ivmodels")
    X, y, Z, C = linear_data()
    C = C if with_confounders else None
    expected = ivmodels.KClass(kappa=1).fit(X, y, Z=Z, C=C).predict(X, C=C)
    model = CFLLIVRegressor(**LINEAR, diagnose=False).fit(X, y, Z=Z, C=C)
    np.testing.assert_allclose(model.predict(X, C), expected, rtol=1e-8, atol=1e-8)


def test_diagnostics_of_frozen_backbones_are_those_of_linearmodels():
    iv = pytest.importorskip("linearmodels.iv")
    X, y, Z, C = linear_data()
    model = iv.IV2SLS(y, np.column_stack([np.ones(len(y)), C]), X, Z)
    reference = model.fit(cov_type="unadjusted", debiased=True)
    report = CFLLIVRegressor(**LINEAR).fit(X, y, Z=Z, C=C).diagnostics_
    first = reference.first_stage.diagnostics["f.stat"].iloc[0]
    assert report["first_stage_f"][0] == pytest.approx(float(first), rel=1e-8)
    expected = hansen(X, y, Z, C).statistic
    assert report["overidentification"][0] == pytest.approx(expected, rel=1e-8)
    robust = model.fit(cov_type="robust")
    expected = robust.wooldridge_regression.stat * report["wu_hausman"][1][1] / len(y)
    assert report["wu_hausman"][0] == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
def test_linear_truth_is_found_within_two_standard_errors():
    iv = pytest.importorskip("linearmodels.iv")
    X, y, Z, C = linear_data(1000)
    reference = iv.IV2SLS(y, np.column_stack([np.ones(len(y)), C]), X, Z).fit()
    model = CFLLIVRegressor(random_state=0, diagnose=False).fit(X, y, Z=Z, C=C)
    low, high = np.quantile(X, [0.2, 0.8])
    step = np.array([[low], [high]])
    below, above = model.predict(step, np.zeros((2, 2)))
    slope = (above - below) / (high - low)
    assert abs(slope - reference.params.iloc[-1]) < 2 * reference.std_errors.iloc[-1]


# -- both designs -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.25, 0.9])
def test_demand_design_with_strong_noise_is_won_by_the_instrument(rho):
    data = make_demand_design(1000, rho, random_state=20)
    model = CFLLIVRegressor(random_state=0).fit(data.X, data.y, Z=data.Z, C=data.C)
    f, std = model.predict(data.grid.X, data.grid.C, return_std=True)
    error = np.mean((f - data.grid.y) ** 2)
    direct = CFLLIVRegressor(random_state=0).fit(data.X, data.y, C=data.C)
    assert error < 3000
    assert error < np.mean((direct.predict(data.grid.X, data.grid.C) - data.grid.y) ** 2)
    assert 0.75 < np.mean(np.abs(f - data.grid.y) < 1.645 * std) < 1
    if rho > 0.5:
        assert model.preferred_ == "instrument"


@pytest.mark.slow
def test_demand_design_with_little_noise_is_left_to_direct_regression():
    data = make_demand_design(1000, 0.5, noise_scale=1.0, random_state=20)
    with pytest.warns(DirectRegressionPreferredWarning, match="Fit without Z"):
        model = CFLLIVRegressor(random_state=0).fit(data.X, data.y, Z=data.Z, C=data.C)
    assert model.preferred_ == "direct"
    error = np.mean((model.predict(data.grid.X, data.grid.C) - data.grid.y) ** 2)
    assert error < 1213  # what deep feature instrumental variables reach, n = 1000


def test_nonlinear_treatment_is_found_where_regression_is_confounded():
    rng = np.random.default_rng(0)
    Z, hidden = rng.uniform(-3, 3, size=(600, 2)), rng.normal(size=600)
    X = Z[:, :1] + hidden[:, None]
    y = np.abs(X[:, 0]) + 2 * hidden
    grid = np.linspace(-3, 3, 50)[:, None]
    errors = [
        np.mean(
            (CFLLIVRegressor(**settings).fit(X, y, Z=each).predict(grid) - abs(grid[:, 0])) ** 2
        )
        for each in (Z, None)
        for settings in [{**SMALL, "max_epochs": 40, "treatment_hidden_sizes": (16, 4)}]
    ]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.slow
def test_example_draws_the_curve_nearest_the_truth(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)  # it draws demand.png
    example = Path(__file__).parents[2] / "examples" / "demand.py"
    errors = runpy.run_path(str(example))["main"]()
    assert errors[0] < min(errors[1:]) / 2
    assert "effective F" in capsys.readouterr().out
    assert (tmp_path / "demand.png").exists()


# -- data of all kinds ------------------------------------------------------------------


def finite(model, X, C=None):
    f, std = model.predict(X, C, return_std=True)
    return np.isfinite(f).all() and np.isfinite(std).all() and (std >= 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["binary", "several", "constant", "weak", "few", "no_confounders"])
def test_odd_data_give_finite_estimates(case):
    X, y, Z, C = nonlinear_data(120)
    if case == "binary":
        X, Z = (X > 0).astype(float), (Z > 0).astype(float)
    if case == "several":
        X, Z = np.column_stack([X, X**2, Z]), np.column_stack([Z, Z**3, C, y])
    if case == "constant":
        X, Z, C = (np.column_stack([part, np.full(len(y), 3.0)]) for part in (X, Z, C))
    if case == "weak":
        Z = np.random.default_rng(1).normal(size=Z.shape)
    if case == "few":
        X, y, Z, C = X[:6], y[:6], Z[:6], C[:6]
    if case == "no_confounders":
        C = None
    model = CFLLIVRegressor(**SMALL).fit(X, y, Z=Z, C=C)
    assert finite(model, X, C)
    assert np.isfinite(model.score(X, y, Z=Z, C=C))
    assert str(model.summary())


def test_weak_instruments_are_named_at_the_line_that_fits():
    X, y, Z, C = nonlinear_data()
    noise = np.random.default_rng(1).normal(size=Z.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DirectRegressionPreferredWarning)
        with pytest.warns(WeakInstrumentWarning, match="effective F") as caught:
            CFLLIVRegressor(**SMALL).fit(X, y, Z=noise, C=C)
    assert caught[0].filename == __file__


def test_confounders_alone_do_not_make_an_instrument_strong():
    # The treatment follows C closely and Z not at all: that is no instrument.
    X, y, Z, C = nonlinear_data()
    X = 3 * np.sin(2 * C) + X
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noise = np.random.default_rng(1).normal(size=Z.shape)
        weak = CFLLIVRegressor(**SMALL).fit(X, y, Z=noise, C=C).diagnostics_
        strong = CFLLIVRegressor(**SMALL).fit(X, y, Z=Z, C=C).diagnostics_
    assert weak["effective_f"] < weak["critical_value"] < strong["effective_f"]


@pytest.mark.filterwarnings("ignore:Direct regression", "ignore:Instruments are weak")
@pytest.mark.parametrize("name", ["X", "C"])
def test_instruments_that_repeat_a_regressor_are_named(data, name):
    X, y, Z, C = data
    repeated = np.column_stack([Z, 2 * (X if name == "X" else C) + 1])
    with pytest.warns(
        RedundantInstrumentWarning, match=f"Column 1 of `Z` repeats column 0 of `{name}`"
    ):
        CFLLIVRegressor(**SMALL, diagnose=False).fit(X, y, Z=repeated, C=C)


def image_backbone(input_shape):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3), nn.Tanh())


@pytest.mark.filterwarnings("ignore:Direct regression", "ignore:Instruments are weak")
@pytest.mark.parametrize("role", ["treatment", "covariate", "instrument"])
def test_images_may_be_treatments_confounders_or_instruments(role, data, tmp_path):
    X, y, Z, C = data
    shape = np.random.default_rng(0).normal(size=(len(y), 1, 4, 4))
    side = {"treatment": X, "covariate": C, "instrument": Z}[role]
    images = shape * side.reshape(-1, 1, 1, 1)
    X, C, Z = (
        images if name == role else part
        for name, part in (("treatment", X), ("covariate", C), ("instrument", Z))
    )
    model = CFLLIVRegressor(**SMALL, **{f"{role}_backbone": image_backbone})
    model.fit(X, y, Z=Z, C=C)
    assert finite(model, X, C)
    model.save(tmp_path / "model.cfll")
    opened = CFLLIVRegressor.load(tmp_path / "model.cfll", **{f"{role}_backbone": image_backbone})
    for other in (pickle.loads(pickle.dumps(model)), opened):
        np.testing.assert_array_equal(other.predict(X, C), model.predict(X, C))
    with pytest.raises(ValueError, match=f"pass the same object as `{role}_backbone`"):
        CFLLIVRegressor.load(tmp_path / "model.cfll")


def test_modules_and_recipes_are_copied_and_inputs_of_recipes_standardised(data):
    X, y, Z, C = data
    module = nn.Sequential(nn.Linear(1, 3), nn.Tanh())
    before = copy.deepcopy(module.state_dict())
    settings = {**SMALL, "diagnose": False, "covariate_backbone": MLPBackbone((4,), "tanh")}
    model = CFLLIVRegressor(treatment_backbone=module, **settings).fit(X, y, Z=Z, C=C)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    again = CFLLIVRegressor(treatment_backbone=module, **settings).fit(X, y, Z=Z, C=1e3 * C + 7)
    np.testing.assert_allclose(again.predict(X, 1e3 * C + 7), model.predict(X, C), rtol=1e-5)


def test_wide_treatments_have_features_alone(data):
    X, y, Z, _ = data
    pixels = X @ np.ones((1, 144)) + np.random.default_rng(0).normal(size=(len(y), 144))
    settings = {**SMALL, "treatment_hidden_sizes": "auto", "diagnose": False}
    model = CFLLIVRegressor(**settings).fit(pixels, y, Z=Z)
    assert model.shrinkage_["features"] == 1.0
    assert finite(model, pixels)


def test_pandas_frames_and_series(data):
    pd = pytest.importorskip("pandas")
    X, y, Z, C = data
    frame = pd.DataFrame(X, columns=["price"])
    model = CFLLIVRegressor(**SMALL, diagnose=False)
    model.fit(frame, pd.Series(y), Z=pd.Series(Z[:, 0]), C=pd.DataFrame(C, columns=["time"]))
    expected = clone(model).fit(X, y, Z=Z, C=C).predict(X, C)
    np.testing.assert_array_equal(model.predict(frame, pd.DataFrame(C)), expected)
    assert list(model.feature_names_in_) == ["price"]


# -- what must not matter -----------------------------------------------------------------


def test_a_weight_is_a_number_of_repetitions():
    X, y, Z, C = nonlinear_data(80)
    counts = np.random.default_rng(0).integers(0, 3, len(y))
    settings = {**SMALL, "diagnose": False}
    weighted = CFLLIVRegressor(**settings).fit(X, y, Z=Z, C=C, sample_weight=counts)
    again = [np.repeat(part, counts, axis=0) for part in (X, y, Z, C)]
    repeated = CFLLIVRegressor(**settings).fit(again[0], again[1], Z=again[2], C=again[3])
    for a, b in zip(
        weighted.predict(X, C, return_std=True),
        repeated.predict(X, C, return_std=True),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("change", ["order", "instrument", "confounder", "treatment", "outcome"])
def test_units_and_order_do_not_matter(change):
    X, y, Z, C = nonlinear_data(100)
    settings = {**SMALL, "diagnose": False}
    expected = CFLLIVRegressor(**settings).fit(X, y, Z=Z, C=C).predict(X, C)
    order = np.random.default_rng(0).permutation(len(y)) if change == "order" else slice(None)
    rows = {"X": X[order], "y": y[order], "Z": Z[order], "C": C[order]}
    name = {"instrument": "Z", "confounder": "C", "treatment": "X", "outcome": "y"}.get(change)
    if name:
        rows[name] = 1e3 * rows[name] + 7
    model = CFLLIVRegressor(**settings).fit(**rows)
    found = model.predict(rows["X"], rows["C"])
    if change == "outcome":
        found = (found - 7) / 1e3
    np.testing.assert_allclose(found, expected[order], rtol=1e-5, atol=1e-6)


def test_copies_of_a_row_share_a_fold():
    X, y, Z, C = nonlinear_data(50)
    twice = InstrumentData(
        *(np.tile(part, (2, 1)) if part.ndim > 1 else np.tile(part, 2) for part in (X, y, Z, C)),
        None,
        100.0,
    )
    for labels in np.concatenate(fold_labels(twice, 5, 2, 0)):
        np.testing.assert_array_equal(labels[:50], labels[50:])
        counts = np.bincount(labels)
        assert counts.max() - counts.min() <= 10


# -- manners ------------------------------------------------------------------------------


def test_score_with_instruments_is_that_of_the_projected_outcome(fitted):
    X, y, Z, C = nonlinear_data(seed=1)
    projected = fitted.score(X, y, Z=Z, C=C)
    assert 0 < projected < 1
    assert projected == fitted.score(X + 100, y, Z=Z, C=C)  # the treatment is not looked at
    assert fitted.score(X, y, C=C) == sklearn.metrics.r2_score(y, fitted.predict(X, C))


@pytest.mark.filterwarnings("ignore:Direct regression", "ignore:Instruments are weak")
def test_pipelines_and_searches_route_instruments_and_confounders(data):
    X, y, Z, C = data
    with sklearn.config_context(enable_metadata_routing=True):
        model = CFLLIVRegressor(**{**SMALL, "max_epochs": 5}, diagnose=False)
        model.set_fit_request(Z=True, C=True)
        model.set_score_request(Z=True, C=True).set_predict_request(C=True)
        pipeline = make_pipeline(StandardScaler(), model)
        search = GridSearchCV(pipeline, {"cfllivregressor__stage1_ridge": [1e-2, 1e3]}, cv=2)
        search.fit(X, y, Z=Z, C=C)
        assert search.best_params_ == {"cfllivregressor__stage1_ridge": 1e-2}
        assert search.best_estimator_.predict(X, C=C).shape == y.shape


def test_fitted_models_survive_every_kind_of_copy(fitted, tmp_path):
    X, _, Z, C = nonlinear_data(seed=1)
    joblib.dump(fitted, tmp_path / "model.joblib")
    fitted.save(tmp_path / "model.cfll")
    for other in (
        pickle.loads(pickle.dumps(fitted)),
        copy.deepcopy(fitted),
        joblib.load(tmp_path / "model.joblib"),
        CFLLIVRegressor.load(tmp_path / "model.cfll"),
    ):
        for a, b in zip(
            other.predict(X, C, return_std=True),
            fitted.predict(X, C, return_std=True),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        assert str(other.summary()) == str(fitted.summary())
        assert other.score(X, X[:, 0], Z=Z, C=C) == fitted.score(X, X[:, 0], Z=Z, C=C)


def test_quiet_and_without_a_trace_in_global_state(data, capsys):
    X, y, Z, C = data
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    a = CFLLIVRegressor(**{**SMALL, "max_epochs": 5}).fit(X, y, Z=Z, C=C).predict(X, C)
    b = CFLLIVRegressor(**{**SMALL, "max_epochs": 5}).fit(X, y, Z=Z, C=C).predict(X, C)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert capsys.readouterr() == ("", "")


def test_a_fit_that_fails_leaves_the_previous_one(fitted, data):
    X, y, Z, C = data
    model = copy.deepcopy(fitted)
    before = model.predict(X, C)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(np.hstack([X, X]), y, Z=Z[:-1], C=C)
    np.testing.assert_array_equal(model.predict(X, C), before)
    assert model.n_features_in_ == 1


def test_a_sample_of_its_own_for_the_first_stage(data):
    X, y, Z, C = data
    extra = nonlinear_data(200, seed=5)
    settings = {**SMALL, "diagnose": False}
    stage1 = {"X_stage1": extra[0], "Z_stage1": extra[2], "C_stage1": extra[3]}
    model = CFLLIVRegressor(**settings).fit(X, y, Z=Z, C=C, **stage1)
    # Then the treatment beside the outcomes is not looked at, but for its scale.
    other = CFLLIVRegressor(**settings).fit(X[::-1].copy(), y, Z=Z, C=C, **stage1)
    np.testing.assert_allclose(model.held_out_loss_, other.held_out_loss_, rtol=0.2)
    assert finite(model, X, C)


def test_linear_two_sample_estimate_is_exact(data):
    X, y, Z, _ = data
    extra = nonlinear_data(200, seed=5)
    model = CFLLIVRegressor(**LINEAR, diagnose=False)
    model.fit(X, y, Z=Z, X_stage1=extra[0], Z_stage1=extra[2])
    slope, intercept = np.polyfit(extra[2][:, 0], extra[0][:, 0], 1)
    slope2, intercept2 = np.polyfit(slope * Z[:, 0] + intercept, y, 1)
    np.testing.assert_allclose(model.predict(X), slope2 * X[:, 0] + intercept2, rtol=1e-8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"Z": np.ones((5, 1))}, "inconsistent numbers of samples"),
        ({"Z": np.full((300, 1), np.nan)}, "Input Z contains NaN"),
        ({"X_stage1": np.ones((9, 1))}, "`X_stage1` requires instruments"),
        (
            dict(Z=np.arange(300.0), X_stage1=np.full((9, 1), np.nan), Z_stage1=np.ones((9, 1))),
            "In `X_stage1`, called X here: Input X contains NaN",
        ),
        ({"sample_weight": np.eye(300)[0]}, "`sample_weight` must be positive"),
        ({"C": np.ones((300, 2, 2))}, "Found array with dim 3"),
    ],
)
def test_errors_of_fit_name_the_argument(data, arguments, match):
    X, y, *_ = data
    with pytest.raises(ValueError, match=match):
        CFLLIVRegressor(**SMALL).fit(X, y, **arguments)


def test_errors_of_predict_name_the_argument(fitted, data):
    X, y, Z, C = data
    with pytest.raises(ValueError, match="`C` was given at fit and is needed"):
        fitted.predict(X)
    with pytest.raises(ValueError, match=r"`C` has samples of shape \(2,\)"):
        fitted.predict(X, np.hstack([C, C]))
    direct = CFLLIVRegressor(**{**SMALL, "max_epochs": 5}).fit(X, y)
    with pytest.raises(ValueError, match="`C` was not given at fit"):
        direct.predict(X, C)
    with pytest.raises(ValueError, match="`Z` was not given at fit"):
        direct.score(X, y, Z=Z)


def test_backbones_that_are_none_are_named(data):
    X, y, Z, C = data
    with pytest.raises(TypeError, match="backbone"):
        CFLLIVRegressor(treatment_backbone="resnet").fit(X, y, Z=Z, C=C)


def test_parameters_of_what_is_not_given_are_warned_of():
    data = make_demand_design(60, random_state=0)
    options = {"covariate_hidden_sizes": (8,), "max_epochs": 1, "n_repeats": 1}
    with pytest.warns(UserWarning, match=r"`covariate_hidden_sizes`=\(8,\) has no effect without"):
        CFLLIVRegressor(random_state=0, **options).fit(data.X, data.y, Z=data.Z)
