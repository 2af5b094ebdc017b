"""Coded rows become numbers without gaps and indicators, by the rows of the fit."""

import numpy as np
import pandas as pd
import pytest
import torch

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.columns import expansion as module
from sklearn_cfll.columns.expansion import NUMBER, Expansion, Levels
from sklearn_cfll.columns.rows import as_rows

NAN = np.nan


def rows_of(array):
    return as_rows(np.asarray(array, dtype=np.float64), "cpu", torch.float64)


def expanded(array, levels=None, weights=None, new=None):
    encoder = Expansion()
    encoder.fit(rows_of(array), weights, levels)
    rows = torch.as_tensor(np.asarray(array if new is None else new, dtype=np.float64))
    return encoder, encoder(rows).numpy()


def test_plain_numbers_pass_as_they_are():
    X = np.random.default_rng(0).normal(size=(50, 3))
    encoder, found = expanded(X)
    np.testing.assert_array_equal(found, X)
    assert encoder.column.tolist() == [0, 1, 2] and len(encoder.share) == 0


def test_a_gap_is_the_median_and_an_indicator():
    X = np.arange(40.0).repeat(2).reshape(40, 2)
    X[:12, 1] = NAN
    X[0, 0] = NAN  # one gap is too few for an indicator
    encoder, found = expanded(X)
    assert found.shape == (40, 3) and encoder.column.tolist() == [0, 1, 1]
    assert found[0, 0] == 20.0 and (found[:12, 1] == 25.0).all()
    np.testing.assert_array_equal(found[:, 2], np.arange(40) < 12)
    assert encoder.share.tolist() == [0.3]


def test_frequent_levels_have_indicators_and_rare_ones_share_one():
    codes = np.repeat([0, 1, 2, 3, NAN], [30, 1, 20, 2, 15])[:, None]
    encoder, found = expanded(codes, [Levels(4)])
    np.testing.assert_array_equal(found.sum(1), 1.0)
    assert found.sum(0).tolist() == [30, 20, 15, 3]  # 0, 2, gaps, and 1 with 3
    np.testing.assert_array_equal(found[30], found[-16])
    assert encoder.column.tolist() == [0] * 4


def test_an_unknown_level_is_a_gap_and_a_gap_without_rows_a_rare_level():
    codes = np.repeat([0, 1, 2, 3], [30, 20, 2, 2])[:, None]
    _, found = expanded(codes, [Levels(4)], new=[[2.0], [NAN], [0.0]])
    assert found.tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]


def test_an_unknown_level_is_the_mean_where_none_is_rare():
    codes = np.repeat([0, 1], [30, 10])[:, None]
    encoder, found = expanded(codes, [Levels(2)], new=[[NAN], [1.0]])
    assert found.tolist() == [[0.75, 0.25], [0.0, 1.0]]
    assert encoder.spread.tolist() == pytest.approx([0.375**0.5] * 2)


def test_the_most_frequent_levels_have_indicators(monkeypatch):
    monkeypatch.setattr(module, "MOST_INDICATORS", 3)
    codes = np.repeat([0, 1, 2, 3], [20, 40, 30, 10])[:, None]
    _, found = expanded(codes, [Levels(4)])
    assert found.sum(0).tolist() == [40, 30, 30]


def test_an_ordered_category_is_a_number_too():
    codes = np.repeat([0, 1, 2, NAN], 20)[:, None]
    encoder, found = expanded(codes, [Levels(3, ordered=True)])
    assert encoder.n_numbers == 1 and found[:60, 0].tolist() == codes[:60, 0].tolist()
    assert found[60, 0] == 1.0 and found.shape == (80, 5)


def test_a_weight_is_a_number_of_repetitions():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 2)).astype(float)
    codes[rng.random((60, 2)) < 0.3] = NAN
    weights = rng.integers(1, 4, 60)
    one, _ = expanded(codes, [Levels(4), NUMBER], torch.as_tensor(weights, dtype=torch.float64))
    other, _ = expanded(codes.repeat(weights, axis=0), [Levels(4), NUMBER])
    for name, buffer in one.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name))


def test_the_variance_of_slopes_is_that_of_predictions_over_the_levels():
    codes = np.repeat([0, 1, 2], [50, 30, 20])[:, None]
    encoder, found = expanded(codes, [Levels(3)])
    effect = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    predictions = torch.as_tensor(found) @ effect
    slopes = encoder.centred(effect) * (encoder.share * (1 - encoder.share)).sqrt()
    torch.testing.assert_close(slopes.square().sum(), predictions.var(correction=0))
    torch.testing.assert_close(encoder.centred(effect + 7.0), encoder.centred(effect))


def test_sums_by_column():
    codes = np.stack([np.arange(40.0), np.repeat([0, 1], 20), np.arange(40.0)], 1)
    codes[:15, 2] = NAN
    encoder, _ = expanded(codes, [NUMBER, Levels(2), NUMBER])
    assert encoder.column.tolist() == [0, 2, 2, 1, 1]
    assert encoder.by_column(torch.tensor([1.0, 2, 4, 8, 16])).tolist() == [1, 24, 6]


def test_buffers_that_do_not_fit_are_refused():
    codes = np.repeat([0, 1, 2], 20)[:, None]
    encoder, _ = expanded(codes, [Levels(3)])
    encoder.check([Levels(3)])
    for sizes in ([4], [2], [3, 0], [0]):
        with pytest.raises(ValueError, match="do not fit"):
            encoder.check([Levels(each) for each in sizes])
    encoder.slot[0] = 7
    with pytest.raises(ValueError, match="do not fit"):
        encoder.check([Levels(3)])


def test_weights_pool_levels_as_repetitions_do():
    rng = np.random.default_rng(0)
    levels = np.repeat([f"l{i}" for i in range(60)], 2)
    X = pd.DataFrame({"level": levels, "x": rng.normal(size=120)})
    y, weight = rng.normal(size=120), np.where(np.arange(120) < 60, 2, 6)
    several = np.repeat(np.arange(120), weight)
    model = CFLLRegressor(max_epochs=1, random_state=0)
    weighted = model.fit(X, y, sample_weight=weight).encode(X)
    repeated = model.fit(X.iloc[several], y[several]).encode(X)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-6)
