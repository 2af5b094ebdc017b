"""scikit-learn's callbacks, and interrupts while a model is trained."""

import functools
import signal
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback
from torch import nn

from helpers import BOTH
from sklearn_cfll import CFLLRegressor
from small_tables import friedman_or_iris, quick

X, y = friedman_or_iris(CFLLRegressor)
small = functools.partial(quick, max_epochs=15)


# -- scikit-learn's callbacks -----------------------------------------------------------------


def callback_module():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn < 1.9")


@BOTH
def test_scoring_monitor_logs_a_score_per_epoch(Estimator):
    scoring = "r2" if Estimator is CFLLRegressor else "accuracy"
    monitor = callback_module().ScoringMonitor(scoring=scoring)
    data, target = friedman_or_iris(Estimator)
    settings = {"max_epochs": 5, "refit_last_layer": False, "early_stopping": False}
    model = small(Estimator, learning_rate=0.003, **settings)
    model.set_callbacks(monitor).fit(data, target)
    rows = monitor.get_logs().data
    epochs = [row for row in rows if row["task_name"].startswith("epoch")]
    assert len(epochs) == 5
    scores = [row[scoring] for row in epochs]
    assert np.isfinite(scores).all()
    assert len(set(scores)) > 1  # the model as it was then, not as it is in the end
    # Without a refit the last epoch's model is the one that is kept.
    assert scores[-1] == pytest.approx(model.score(data, target))


def test_scoring_monitor_leaves_the_fit_as_it_is():
    monitor = callback_module().ScoringMonitor(scoring="r2")
    plain = small(CFLLRegressor).fit(X, y)
    heard = small(CFLLRegressor).set_callbacks(monitor).fit(X, y)
    np.testing.assert_array_equal(heard.predict(X), plain.predict(X))


def test_scoring_monitor_inside_a_pipeline_and_a_search():
    monitor = callback_module().ScoringMonitor(scoring="r2")
    model = make_pipeline(
        StandardScaler(), small(CFLLRegressor, max_epochs=3).set_callbacks(monitor)
    )
    model.fit(X, y)
    epochs = [row for row in monitor.get_logs().data if row["task_name"].startswith("epoch")]
    assert len(epochs) == 3
    monitor = callback_module().ScoringMonitor(scoring="r2")
    model = small(CFLLRegressor, max_epochs=3).set_callbacks(monitor)
    GridSearchCV(model, {"ridge": [0.1, 1.0]}, cv=2, refit=False).fit(X, y)
    rows = [row for log in monitor.get_logs(select="all") for row in log.data]
    assert sum(row["task_name"].startswith("epoch") for row in rows) == 2 * 2 * 3


@pytest.mark.parametrize("where", ["estimator", "pipeline", "search"])
def test_progress_bar_spans_search_pipeline_and_epochs(where, capsys):
    callback = callback_module()
    pytest.importorskip("rich")
    model = small(CFLLRegressor, max_epochs=3)
    if where != "estimator":
        model = make_pipeline(StandardScaler(), model)
    if where == "search":
        model = GridSearchCV(model, {"cfllregressor__ridge": [0.1, 1.0]}, cv=2)
    model.set_callbacks(callback.ProgressBar(max_propagation_depth=None)).fit(X, y)
    shown = capsys.readouterr().out
    assert "CFLLRegressor" in shown
    assert "100%" in shown
    assert {"pipeline": "Pipeline", "search": "GridSearchCV"}.get(where, "") in shown
    assert model.predict(X).shape == (150,)


def test_callbacks_are_torn_down_after_fits_and_failures():
    callback = callback_module()
    calls = []

    class Watcher:
        def setup(self, estimator, context):
            calls.append("setup")

        def teardown(self, estimator, context):
            calls.append("teardown")

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            pass

    assert callback is not None
    model = small(CFLLRegressor).set_callbacks(Watcher()).fit(X, y)
    assert calls == ["setup", "teardown"]
    with pytest.raises(
        ValueError, match="Input X contains infinity"
    ):  # before callbacks are set up
        model.fit(np.full_like(X, np.inf), y)
    assert calls == ["setup", "teardown"]
    diverges = {"learning_rate": 1e12, "optimizer": "sgd", "hidden_layer_sizes": (16, 16)}
    with pytest.raises(FloatingPointError, match="diverged in epoch"):
        model.set_params(**diverges, batch_size=32).fit(X, y)
    assert calls == ["setup", "teardown"] * 2


def test_callback_that_says_stop_ends_training():
    callback_module()

    class StopAtSecond:
        def setup(self, estimator, context):
            pass

        def teardown(self, estimator, context):
            pass

        def on_fit_task_begin(self, estimator, context, **kwargs):
            pass

        def on_fit_task_end(self, estimator, context, **kwargs):
            return context.task_name.startswith("epoch") and context.task_id == 1

    model = small(CFLLRegressor).set_callbacks(StopAtSecond()).fit(X, y)
    assert model.n_iter_ == 2
    assert model.score(X, y) > 0.9


# -- Ctrl-C -----------------------------------------------------------------------------------


class PressCtrlC(nn.Module):
    """Presses Ctrl-C in the n-th training pass."""

    def __init__(self, at_pass):
        super().__init__()
        self.at_pass, self.passes = at_pass, 0
        self.linear = nn.Linear(6, 16)

    def forward(self, inputs):
        self.passes += self.training
        if self.training and self.passes == self.at_pass:
            signal.raise_signal(signal.SIGINT)
        return self.linear(inputs).tanh()


@pytest.fixture
def ctrl_c_interrupts():
    """A job in the background of a shell starts with SIGINT ignored; Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@BOTH
@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_ends_training_and_keeps_the_model(Estimator):
    target = y if Estimator is CFLLRegressor else y > y.mean()
    # Two passes a batch, two batches an epoch: in the fifth epoch.
    options = {"batch_size": 75, "max_epochs": 50, "update_order": "backbone_first"}
    model = small(Estimator, backbone=PressCtrlC(18), **options)
    with pytest.warns(UserWarning, match="interrupted after .* epochs.*kept"):
        model.fit(X, target)
    assert 3 <= model.n_iter_ <= 5
    assert len(model.history_) == model.n_iter_
    assert model.score(X, target) > 0.75
    model.partial_fit(X, target)


@pytest.mark.usefixtures("ctrl_c_interrupts")
def test_ctrl_c_in_the_first_epoch_leaves_a_model_that_predicts():
    model = small(CFLLRegressor, backbone=PressCtrlC(1))
    with pytest.warns(UserWarning, match="interrupted after 0 epochs"):
        model.fit(X, y)
    assert np.isfinite(model.predict(X)).all()


class StopTraining(Callback):
    """Ends training as skorch's own early stopping does."""

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 4:
            raise KeyboardInterrupt


@BOTH
def test_callback_that_interrupts_ends_training_and_keeps_the_model(Estimator):
    data, target = friedman_or_iris(Estimator)
    model = small(Estimator, callbacks=[StopTraining()])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data, target)
    assert model.n_iter_ == 4
    assert model.score(data, target) > 0.9


def test_early_stopping_is_no_interruption():
    X, y = load_diabetes(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = small(CFLLRegressor, early_stopping=True, n_iter_no_change=1, tol=10.0).fit(X, y)
    assert model.n_iter_ < 15
