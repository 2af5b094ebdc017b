"""TrainingCheckpoint: a fit that was cut off ends as if it had not been."""

import numpy as np
import pytest
from skorch.callbacks import Callback

from helpers import friedman, small
from sklearn_cfll import CFLLRegressor, TrainingCheckpoint, WeightAveraging


class CutOff(Callback):
    """Fails at a batch of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, training=False, **kwargs):
        if training and not net.provisional_ and len(net.history) == self.epoch:
            raise ZeroDivisionError


def fitted(callbacks, **parameters):
    X, y = friedman(200)
    return small(CFLLRegressor, callbacks=callbacks, **parameters).fit(X, y), X


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_epochs": 12, "n_iter_no_change": 3},
        {
            "memory": "statistics",
            "early_stopping": False,
            "dropout": 0.1,
            "hidden_layer_sizes": (16, 16),
        },
        {"n_members": 4, "n_iter_no_change": 1},
    ],
)
def test_a_fit_that_was_cut_off_ends_as_if_it_had_not_been(parameters, tmp_path):
    whole, X = fitted(None, **parameters)
    checkpoint = TrainingCheckpoint(tmp_path / "training.pt")
    for epoch in (2, 3, whole.n_iter_):
        with pytest.raises(ZeroDivisionError):
            fitted([checkpoint, CutOff(epoch)], **parameters)
    for _ in range(2):  # the second one finds all epochs done
        model, _ = fitted([checkpoint], **parameters)
        assert np.array_equal(model.predict(X), whole.predict(X))
        assert (model.n_iter_, model.best_iteration_) == (whole.n_iter_, whole.best_iteration_)
        for row, wanted in zip(model.history_, whole.history_, strict=True):
            assert row["train_loss"] == wanted["train_loss"]


def test_a_checkpoint_of_another_fit_is_not_continued(tmp_path):
    checkpoint = TrainingCheckpoint(tmp_path / "training.pt")
    fitted([checkpoint])
    for other in ({"max_epochs": 9}, {"random_state": 1}, {"hidden_layer_sizes": (8,)}):
        with pytest.raises(ValueError, match="is of a fit with"):
            fitted([checkpoint], **other)
    with pytest.raises(ValueError, match="does not keep the averages"):
        fitted([checkpoint, WeightAveraging(2)], early_stopping=False)
