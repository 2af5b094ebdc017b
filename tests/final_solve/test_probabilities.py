"""The map from scores to probabilities, and its power for a mean of members."""

import numpy as np
import pytest
from scipy.special import expit

from sklearn_cfll.final_solve.probabilities import SHARPEST, Probabilities


def simulated(spread, n=200_000, n_members=8, seed=0):
    """Calibrated scores of members that disagree, and labels of two classes.

    Scores are so near a half that probabilities are nearly linear in them.
    """
    rng = np.random.default_rng(seed)
    signal = 0.1 * rng.normal(size=n)
    scores = signal + spread * rng.normal(size=(n_members, n))
    share = 0.01 / (0.01 + spread**2)  # of a member's variance that tells of the class
    labels = rng.random(n) < 0.5 + signal
    return 0.5 + share * (scores - 0.5 + 0.5), labels.astype(float)


@pytest.mark.parametrize("spread", [0.03, 0.1])
def test_the_power_of_a_mean_is_the_best_one(spread):
    scores, labels = simulated(spread)
    one = Probabilities.fit(scores[0, :, None], labels[:, None], None, exclusive=False)
    pairs = scores[:2, :20_000, None]
    found = one.sharpened(pairs, None, 8, exclusive=False)
    mean = scores.mean(0)[:, None]
    best = Probabilities.fit(mean, labels[:, None], None, exclusive=False)
    # A member's best slope is 1; that of the mean is larger, as less noise flattens it.
    assert found.power / one.power == pytest.approx(best.power / one.power, rel=0.04)
    assert found.power > 1.05 * one.power
    calibrated = found(mean, exclusive=False)[:, 0]
    top = calibrated > np.quantile(calibrated, 0.9)
    assert labels[top].mean() == pytest.approx(calibrated[top].mean(), abs=0.01)


def test_a_share_that_would_move_bounds_the_power():
    rng = np.random.default_rng(0)
    signal = np.clip(0.25 + 0.15 * rng.normal(size=4000), 0.02, 0.98)
    scores = signal + 0.08 * rng.normal(size=(2, 4000))
    one = Probabilities(1.2, 0.005)
    found = one.sharpened(scores[:, :, None], None, 2, exclusive=False)
    mean = scores.mean(0)[:, None]
    after, before = (each(mean, exclusive=False).mean() for each in (found, one))
    assert found.power >= one.power and abs(after - before) < 0.005


def test_members_that_agree_are_not_sharpened():
    scores, _ = simulated(0.0, 500)
    one = Probabilities(2.0, 0.01)
    assert one.sharpened(scores[:2, :, None], None, 8, exclusive=False).power == pytest.approx(2.0)
    assert one.sharpened(scores[:2, :0, None], None, 8, exclusive=False) == one


def test_members_that_agree_on_nothing_are_sharpened_within_bounds():
    noise = np.random.default_rng(0).normal(size=(2, 400, 3))
    one = Probabilities(1.0, 0.01)
    found = one.sharpened(0.3 + 0.2 * noise, None, 8, exclusive=True)
    assert 1.0 <= found.power <= SHARPEST


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_the_share_of_a_rare_class_stays(rate, spread):
    # Away from a half, a larger power makes probabilities of a rare class smaller.
    rng = np.random.default_rng(0)
    scores = rate * np.exp(spread * rng.normal(size=5000)) + spread * rng.normal(size=(8, 5000))
    one = Probabilities(1.0, 0.005)
    found = one.sharpened(scores[:2, :, None], None, 8, exclusive=False)
    mean = scores.mean(0)[:, None]
    after, before = (each(mean, exclusive=False).mean() for each in (found, one))
    assert after == pytest.approx(before, abs=0.01)


def test_weights_of_pairs_are_repetitions():
    scores, _ = simulated(0.1, 300)
    pairs, weight = scores[:2, :, None], np.random.default_rng(1).integers(0, 4, 300)
    one = Probabilities(1.0, 0.01)
    weighted = one.sharpened(pairs, weight.astype(float), 8, exclusive=False)
    repeated = one.sharpened(np.repeat(pairs, weight, 1), None, 8, exclusive=False)
    assert weighted.power == pytest.approx(repeated.power, rel=1e-9)


def test_two_folds_need_the_power_of_two_members():
    scores, _ = simulated(0.1, 2000)
    one, pairs = Probabilities(1.0, 0.01), scores[:2, :, None]
    of_two, of_all = (one.sharpened(pairs, None, n, exclusive=False).power for n in (2, 8))
    assert of_all == pytest.approx(1 / (1 - 2 * (1 - 1 / 8) * (1 - 1 / of_two)), rel=1e-9)


def test_probabilities_of_two_classes_are_a_logistic_function_of_log_odds():
    scores = np.array([[0.3], [0.7]])
    found = Probabilities(1.5, 0.0)(scores, exclusive=False)
    np.testing.assert_allclose(found, expit(1.5 * np.log(scores / (1 - scores))), rtol=1e-4)
