"""Displays draw what they are given, and say what they need."""

import importlib
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import BayesianRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_cfll import CFLLIVRegressor, CFLLRegressor
from sklearn_cfll.inspection import (
    FieldDisplay,
    InstrumentDisplay,
    PredictionIntervalDisplay,
    RidgePathDisplay,
    TrainingCurveDisplay,
)

pytest.importorskip("matplotlib").use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")

HISTORY = [
    {"epoch": 1, "train_loss": 0.9, "valid_loss": 1.0, "learning_rate": 0.02, "seconds": 2.0},
    {"epoch": 2, "train_loss": 0.5, "valid_loss": 0.6, "learning_rate": 0.01, "seconds": 1.0},
    {"epoch": 3, "train_loss": 0.3, "valid_loss": 0.7, "learning_rate": 0.0, "seconds": 1.0},
]


@pytest.fixture(autouse=True)
def _figures_closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def fitted():
    X = np.random.default_rng(0).normal(size=(60, 3))
    y = X[:, 0] + 0.1 * X[:, 1]
    model = CFLLRegressor(
        hidden_layer_sizes=8, max_epochs=4, early_stopping=True, random_state=0
    ).fit(X, y)
    return model, X, y


def fields(*shape, seed=0):
    """Truth, prediction and standard deviation."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=shape)
    return truth, truth + 0.1 * rng.normal(size=shape), rng.uniform(0.5, 1.0, shape)


def image(axis):
    (found,) = axis.get_images()
    return found


class FixedFields:
    """Predicts twice its input, and remembers how many samples it was asked for."""

    def predict(self, X, return_std=False):
        self.asked = len(X)
        return (2 * X, 0.5 + 0 * X) if return_std else 2 * X


# -- fields -------------------------------------------------------------------------


def test_images_show_truth_prediction_error_and_std_of_the_sample():
    truth, prediction, std = fields(4, 6, 5)
    display = FieldDisplay.from_predictions(truth, prediction, std, sample=2)
    assert display.axes_.shape == (1, 4)
    drawn = [np.asarray(image(axis).get_array()) for axis in display.axes_[0]]
    wanted = (truth[2], prediction[2], prediction[2] - truth[2], std[2])
    for array, field in zip(drawn, wanted, strict=True):
        np.testing.assert_allclose(array, field.T)  # the first axis of the grid to the right
    assert image(display.axes_[0, 0]).origin == "lower"
    titles = [axis.get_title() for axis in display.axes_[0]]
    assert titles == ["truth", "prediction", "error", "std"] == list(display.panels)


def test_truth_and_prediction_share_a_scale_error_is_centred_and_std_starts_at_zero():
    truth, prediction, std = fields(2, 6, 5)
    axes = FieldDisplay.from_predictions(truth, prediction, std).axes_[0]
    both = np.stack([truth[0], prediction[0]])
    assert image(axes[0]).get_clim() == image(axes[1]).get_clim() == (both.min(), both.max())
    low, high = image(axes[2]).get_clim()
    assert -low == high == np.abs(prediction[0] - truth[0]).max()
    assert image(axes[3]).get_clim() == (0.0, std[0].max())


def test_each_scale_has_one_colour_bar():
    display = FieldDisplay.from_predictions(*fields(2, 6, 5))
    assert image(display.axes_[0, 0]).colorbar is None
    assert all(image(axis).colorbar is not None for axis in display.axes_[0, 1:])
    assert [len(axis.child_axes) for axis in display.axes_[0]] == [0, 1, 1, 1]


def test_lines_show_truth_prediction_and_error_with_their_bands():
    truth, prediction, std = fields(3, 20)
    display = FieldDisplay.from_predictions(
        truth, prediction, std, sample=1, extent=(0, 2), n_std=3
    )
    left, right = display.axes_[0]
    for line, field in zip(left.get_lines(), (truth[1], prediction[1]), strict=True):
        np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 2, 20))
        np.testing.assert_allclose(line.get_ydata(), field)
    np.testing.assert_allclose(right.get_lines()[0].get_ydata(), prediction[1] - truth[1])
    for axis, middle in ((left, prediction[1]), (right, np.zeros(20))):
        heights = axis.collections[0].get_paths()[0].vertices[:, 1]
        assert np.isclose(heights.max(), (middle + 3 * std[1]).max())
        assert np.isclose(heights.min(), (middle - 3 * std[1]).min())
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["truth", "prediction", "± 3 std"]


def test_without_std_there_is_no_band_and_no_panel():
    truth, prediction, _ = fields(2, 20)
    assert not FieldDisplay.from_predictions(truth, prediction).axes_[0, 0].collections
    truth, prediction, _ = fields(2, 6, 5)
    assert FieldDisplay.from_predictions(truth, prediction).axes_.shape == (1, 3)


def test_several_samples_are_labelled_rows():
    display = FieldDisplay.from_predictions(*fields(5, 20), sample=[4, 1])
    assert [axes[0].get_ylabel() for axes in display.axes_] == ["sample 4", "sample 1"]
    assert [axes[0].get_legend() is not None for axes in display.axes_] == [True, False]
    display = FieldDisplay.from_predictions(*fields(5, 20), sample=[4, 1], labels=["a", "b"])
    assert [axes[0].get_ylabel() for axes in display.axes_] == ["a", "b"]


@pytest.mark.parametrize(("channels", "axis"), [("first", 1), ("last", -1)])
def test_a_channel_is_taken_from_its_axis(channels, axis):
    parts = [np.moveaxis(part, 1, axis) for part in fields(3, 2, 6, 5)]
    display = FieldDisplay.from_predictions(*parts, channels=channels, channel=1, sample=2)
    np.testing.assert_array_equal(display.y_true[0], parts[0].take(1, axis)[2])


def test_a_plane_is_taken_from_three_axes():
    truth, prediction, std = fields(2, 3, 4, 5)
    display = FieldDisplay.from_predictions(truth, prediction, std, plane=(1, 2))
    np.testing.assert_array_equal(display.y_true[0], truth[0, :, 2])


def test_given_axes_are_drawn_on():
    _, axes = plt.subplots(4)
    display = FieldDisplay.from_predictions(*fields(2, 6, 5), ax=axes)
    assert list(display.axes_[0]) == list(axes) and display.figure_ is axes[0].figure
    with pytest.raises(ValueError, match=r"`ax` must hold axes of shape \(1, 4\)"):
        FieldDisplay.from_predictions(*fields(2, 6, 5), ax=axes[:3])


def test_only_the_drawn_samples_are_predicted():
    model, X = FixedFields(), fields(9, 8)[0]
    display = FieldDisplay.from_estimator(model, X, X, sample=[7, 3])
    assert model.asked == 2
    np.testing.assert_array_equal(display.y_pred, 2 * X[[7, 3]])
    np.testing.assert_array_equal(display.y_std, np.full((2, 8), 0.5))
    assert display.labels == ["sample 7", "sample 3"]
    assert FieldDisplay.from_estimator(model, X, X, return_std=False).y_std is None


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((5,), {}, r"shape \(n, grid_1\) or \(n, grid_1, grid_2\)"),
        ((5, 6), {"channels": "last"}, r"shape \(n, grid_1, channels\)"),
        ((2, 2, 3, 4, 5), {}, r'`channels` states .* \("first", "last" or None\)'),
        ((2, 3, 4, 5), {}, "plane=.axis of the grid, index"),
        ((2, 3, 4, 5), {"plane": (0, 3)}, r"`plane\[1\]` must lie between 0 and 2, got 3"),
        ((2, 8), {"plane": (0, 3)}, "fields on three axes, got 1"),
        ((2, 8), {"sample": 2}, "`sample` must lie between 0 and 1, got 2"),
        ((2, 8), {"sample": []}, "at least one sample"),
        ((2, 8, 3), {"channels": "last", "channel": 3}, "`channel` must lie between 0 and 2"),
        ((2, 8, 3), {"channels": "middle"}, "`channels` must be one of"),
        ((2, 8), {"labels": ["a", "b"]}, "`labels` must name 1 rows, got 2"),
    ],
)
def test_errors_of_wrong_fields_say_what_was_expected(shape, options, message):
    with pytest.raises(ValueError, match=message):
        FieldDisplay.from_predictions(*fields(*shape), **options)


def test_errors_of_fields_that_do_not_match_say_whose_shape_counts():
    truth, prediction, std = fields(2, 8)
    with pytest.raises(ValueError, match=r"`y_pred` must have shape \(2, 8\), as `y_true`"):
        FieldDisplay.from_predictions(truth, prediction[:, :4])
    with pytest.raises(ValueError, match=r"`y_std` must have shape \(2, 8\), as `y_true`"):
        FieldDisplay.from_predictions(truth, prediction, std[:1])
    with pytest.raises(ValueError, match="the same length, got 2 and 1"):
        FieldDisplay.from_estimator(FixedFields(), truth, truth[:1])
    with pytest.raises(ValueError, match="`sample` must lie between 0 and 1, got 5"):
        FieldDisplay.from_estimator(FixedFields(), truth, truth, sample=5)
    with pytest.raises(ValueError, match=r"shape \(n_rows, grid_1\) or .*, got \(8,\)"):
        FieldDisplay(truth[0], truth[0])


# -- training curve -----------------------------------------------------------------


def test_training_curve_marks_the_epoch_that_was_kept():
    display = TrainingCurveDisplay(HISTORY, best_iteration=2).plot()
    np.testing.assert_array_equal(display.train_line_.get_xydata(), [[1, 0.9], [2, 0.5], [3, 0.3]])
    np.testing.assert_array_equal(display.valid_line_.get_ydata(), [1.0, 0.6, 0.7])
    np.testing.assert_array_equal(display.best_marker_.get_xydata(), [[2, 0.6]])
    assert display.best_marker_.get_label() == "kept: epoch 2"
    assert display.ax_.get_yscale() == "log" and display.ax_.get_xlabel() == "epoch"
    assert display.learning_rate_ax_ is display.learning_rate_line_ is None


def test_training_curve_runs_over_seconds_with_the_rate_on_a_twin_axis():
    display = TrainingCurveDisplay(HISTORY).plot(x="seconds", show_learning_rate=True)
    np.testing.assert_array_equal(display.train_line_.get_xdata(), [2.0, 3.0, 4.0])
    np.testing.assert_array_equal(display.learning_rate_line_.get_ydata(), [0.02, 0.01, 0.0])
    assert display.learning_rate_line_.axes is display.learning_rate_ax_ is not display.ax_
    labels = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert labels == ["training", "validation", "learning rate"]


def test_training_curve_without_held_out_rows_has_one_line():
    history = [{**row, "valid_loss": None} for row in HISTORY]
    display = TrainingCurveDisplay(history, best_iteration=3).plot()
    assert display.valid_line_ is display.best_marker_ is None


def test_training_curve_of_an_estimator(fitted):
    model, _, _ = fitted
    _, ax = plt.subplots()
    display = TrainingCurveDisplay.from_estimator(model, ax=ax)
    assert display.ax_ is ax and display.figure_ is ax.figure
    losses = [row["train_loss"] for row in model.history_]
    np.testing.assert_array_equal(display.train_line_.get_ydata(), losses)
    assert display.best_marker_.get_xdata() == [model.best_iteration_]
    further = CFLLRegressor(hidden_layer_sizes=8, max_epochs=2, random_state=0).fit(*fitted[1:])
    further.partial_fit(*fitted[1:])  # keeps its own epoch, of which no row was held out
    display = TrainingCurveDisplay.from_estimator(further)
    assert display.valid_line_ is not None and display.best_marker_ is None


def test_training_curve_says_what_it_needs(fitted):
    _, X, y = fitted
    with pytest.raises(ValueError, match=r"`x` must be one of \['epoch', 'seconds'\]"):
        TrainingCurveDisplay(HISTORY).plot(x="hours")
    with pytest.raises(ValueError, match='use x="epoch"'):
        TrainingCurveDisplay([{"epoch": 1, "train_loss": 1.0}]).plot(x="seconds")
    with pytest.raises(ValueError, match="at least one epoch"):
        TrainingCurveDisplay([])
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(CFLLRegressor())
    with pytest.raises(ValueError, match=r"`history_`, but this Pipeline .*`pipeline\[-1\]`"):
        TrainingCurveDisplay.from_estimator(
            make_pipeline(StandardScaler(), BayesianRidge()).fit(X, y)
        )


# -- ridge path ---------------------------------------------------------------------


def test_ridge_path_is_drawn_in_order_with_the_chosen_ridge():
    display = RidgePathDisplay([1.0, 0.1, 10.0], [0.3, 0.5, 0.4]).plot()
    np.testing.assert_array_equal(display.line_.get_xydata(), [[0.1, 0.5], [1, 0.3], [10, 0.4]])
    np.testing.assert_allclose(display.chosen_marker_.get_xydata(), [[1.0, 0.3]])
    assert display.ax_.get_xscale() == display.ax_.get_yscale() == "log"
    assert display.chosen_marker_.get_label() == "chosen: 1"


def test_ridge_path_of_an_estimator(fitted):
    model, _, _ = fitted
    _, ax = plt.subplots()
    display = RidgePathDisplay.from_estimator(model, ax=ax)
    assert display.ax_ is ax and display.chosen == model.final_ridge_
    np.testing.assert_array_equal(display.line_.get_xdata(), model.ridge_path_["ridge"])
    np.testing.assert_array_equal(display.line_.get_ydata(), model.ridge_path_["error"])
    at_chosen = display.errors[model.ridge_path_["ridge"] == model.final_ridge_]
    np.testing.assert_array_equal(display.chosen_marker_.get_ydata(), at_chosen)


def test_ridge_path_says_what_it_needs():
    X, y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20.0)
    model = CFLLRegressor(hidden_layer_sizes=4, max_epochs=1, early_stopping=False).fit(X, y)
    with pytest.raises(ValueError, match="refit_last_layer=True and rows are held out"):
        RidgePathDisplay.from_estimator(model)
    with pytest.raises(NotFittedError):
        RidgePathDisplay.from_estimator(CFLLRegressor())
    with pytest.raises(ValueError, match=r"shape \(n_ridges,\), got \(2,\) and \(1,\)"):
        RidgePathDisplay([1.0, 2.0], [1.0])


# -- intervals ----------------------------------------------------------------------


def test_interval_band_is_sorted_and_counts_what_it_covers():
    x, y_pred = [2.0, 0.0, 1.0], np.array([3.0, 1.0, 2.0])
    display = PredictionIntervalDisplay.from_predictions(
        x, y_pred, y_pred - 0.5, y_pred + 1, y_true=[3.0, 9.0, 2.5]
    )
    np.testing.assert_array_equal(display.line_.get_xydata(), [[0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(display.points_.get_xydata(), [[0, 9], [1, 2.5], [2, 3]])
    corners = {tuple(point) for point in display.band_.get_paths()[0].vertices}
    assert {(0, 0.5), (0, 2), (2, 2.5), (2, 4)} <= corners
    assert np.isclose(display.coverage, 2 / 3)
    assert display.points_.get_label() == "observed, 67% inside"


def test_interval_of_an_estimator_is_its_own(fitted):
    model, X, y = fitted
    _, ax = plt.subplots()
    display = PredictionIntervalDisplay.from_estimator(model, X, y, feature=1, coverage=0.8, ax=ax)
    lower, upper = model.predict_interval(X, 0.8)
    np.testing.assert_array_equal(display.lower, lower)
    np.testing.assert_array_equal(display.upper, upper)
    np.testing.assert_array_equal(display.line_.get_xdata(), np.sort(X[:, 1]))
    assert display.ax_ is ax and ax.get_xlabel() == "feature 1"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[:2] == ["80% interval", "prediction"]


def test_intervals_of_rows_that_differ_in_several_columns_are_no_zigzag(fitted):
    model, X, y = fitted
    display = PredictionIntervalDisplay.from_estimator(model, X, y)
    assert display.ax_.get_xlabel() == "row, sorted by prediction"
    np.testing.assert_array_equal(display.line_.get_xdata(), np.arange(len(X)))
    assert (np.diff(display.line_.get_ydata()) >= 0).all()  # sorted
    np.testing.assert_allclose(display.line_.get_ydata(), np.sort(model.predict(X)))
    by_column = PredictionIntervalDisplay.from_estimator(model, X, y, feature=1)
    for drawn in (display, by_column):
        assert drawn.line_.get_linestyle() == "None"  # neighbours have little in common
        assert len(drawn.band_.get_segments()) == len(X)
    bar = by_column.band_.get_segments()[0]
    first = X[:, 1].argmin()
    np.testing.assert_allclose(bar[:, 1], [by_column.lower[first], by_column.upper[first]])


def test_intervals_along_one_column_with_the_others_held_are_a_band(fitted):
    model, X, _ = fitted
    grid = np.tile(X[:1], (20, 1))
    grid[:, 1] = np.linspace(0, 1, 20)
    display = PredictionIntervalDisplay.from_estimator(model, grid)
    assert display.ax_.get_xlabel() == "feature 1" and display.line_.get_linestyle() == "-"
    np.testing.assert_array_equal(display.line_.get_xdata(), grid[:, 1])
    with pytest.raises(ValueError, match='`kind` must be "band" or "bars"'):
        PredictionIntervalDisplay([0], [0], [-1], [1], kind="zigzag")


def test_interval_over_a_named_column_of_a_frame():
    frame = pd.DataFrame({"dose": [0.0, 1.0, 2.0], "age": [3.0, 5.0, 4.0]})
    model = BayesianRidge().fit(frame, [0.0, 1.0, 2.1])
    display = PredictionIntervalDisplay.from_estimator(model, frame, feature="age")
    assert display.ax_.get_xlabel() == "age" and display.points_ is None
    mean, std = model.predict(frame, return_std=True)  # no intervals of its own: normal ones
    np.testing.assert_allclose(display.upper - mean, 1.6448536 * std)
    np.testing.assert_allclose(mean - display.lower, 1.6448536 * std)
    np.testing.assert_array_equal(display.x, frame["age"])
    assert display.coverage is None
    by_number = PredictionIntervalDisplay.from_estimator(model, frame, feature=1)
    assert by_number.ax_.get_xlabel() == "age"


def test_interval_says_what_it_needs(fitted):
    model, X, _ = fitted
    with pytest.raises(ValueError, match="`coverage` must lie between 0 and 1, got 90"):
        PredictionIntervalDisplay.from_estimator(model, X, coverage=90)
    classifier = DummyClassifier().fit(X, X[:, 0] > 0)
    for other in (classifier, make_pipeline(classifier)):
        with pytest.raises(TypeError, match=r"needs a regressor.* (Dummy|Pipeline).* neither"):
            PredictionIntervalDisplay.from_estimator(other, X)
    with pytest.raises(ValueError, match="`feature` must lie between 0 and 2, got 3"):
        PredictionIntervalDisplay.from_estimator(model, X, feature=3)
    with pytest.raises(ValueError, match="`feature`='dose' is not a column of X"):
        PredictionIntervalDisplay.from_estimator(model, X, feature="dose")
    with pytest.raises(ValueError, match=r"`y_pred` must have shape \(n_samples,\), got \(3, 2\)"):
        PredictionIntervalDisplay(np.arange(3), np.zeros((3, 2)), np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"`upper` must have shape \(3,\), as `x`"):
        PredictionIntervalDisplay(np.arange(3), np.zeros(3), np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="`lower` must not be above `upper`"):
        PredictionIntervalDisplay([0], [0], [1], [-1])


# -- matplotlib ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("FieldDisplay", lambda: FieldDisplay.from_predictions(*fields(2, 8))),
        ("FieldDisplay", lambda: FieldDisplay(*fields(2, 8)).plot()),
        ("TrainingCurveDisplay", lambda: TrainingCurveDisplay(HISTORY).plot()),
        ("RidgePathDisplay", lambda: RidgePathDisplay([1.0], [1.0]).plot()),
        (
            "PredictionIntervalDisplay",
            lambda: PredictionIntervalDisplay.from_predictions([0], [0], [0], [0]),
        ),
    ],
)
def test_error_without_matplotlib_says_how_to_install_it(monkeypatch, name, draw):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{name} needs matplotlib: .*sklearn-cfll\[plot\]"):
        draw()


def test_displays_are_imported_without_matplotlib(monkeypatch):
    for module in ("matplotlib", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in [name for name in sys.modules if name.startswith("sklearn_cfll.inspection")]:
        monkeypatch.delitem(sys.modules, module)
    assert importlib.import_module("sklearn_cfll.inspection").__all__


def test_instrument_display_draws_the_curve_its_band_and_the_effect():
    rng = np.random.default_rng(0)
    Z, hidden, C = rng.normal(size=(3, 120))
    X = pd.DataFrame({"dose": Z + hidden})
    C = pd.DataFrame({"age": C})
    y = X["dose"].to_numpy() + hidden
    quick = {"max_epochs": 4, "n_repeats": 1, "n_folds": 2, "random_state": 0}
    model = CFLLIVRegressor(**quick).fit(X, y, Z=Z[:, None], C=C)
    display = InstrumentDisplay.from_estimator(model, X, C, y_name="yield")
    assert display.ax_.get_xlabel() == "dose" and display.ax_.get_ylabel() == "yield"
    line = display.effect_line_.get_ydata()
    slope = (line[-1] - line[0]) / (display.x[-1] - display.x[0])
    assert slope == pytest.approx(model.effect_.estimate[0])
    middle = len(display.x) // 2
    assert line[middle] == display.curve[middle]
    assert display.x[middle] == pytest.approx(np.median(X["dose"]))
    assert (display.lower <= display.curve).all() and (display.curve <= display.upper).all()
    whole = InstrumentDisplay.from_estimator(model, X, C, coverage=0.8, simultaneous=True)
    assert whole.band_.get_label() == "80% simultaneous band"
    pointwise = InstrumentDisplay.from_estimator(model, X, C, coverage=0.8)
    assert (whole.upper > pointwise.upper).all()


def test_instrument_display_checks_its_arrays():
    with pytest.raises(ValueError, match="ascending"):
        InstrumentDisplay([1, 0], [0, 0], [0, 0], [0, 0])
    with pytest.raises(ValueError, match="`curve` must have shape"):
        InstrumentDisplay([0, 1], [0], [0, 0], [0, 0])
