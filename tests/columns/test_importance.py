"""An additive model, sparse by column, tells columns that matter from those that do not."""

import numpy as np
import pytest
import torch

from sklearn_cfll import CFLLRegressor
from sklearn_cfll.columns.expansion import NUMBER, Expansion, Levels
from sklearn_cfll.columns.importance import (
    AdditiveScreen,
    additive_screen,
    random_directions,
    screened_features,
)
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.training.column_scales import column_scales

N, FOLDS = 600, 4


def screen(codes, y, levels=None, seed=0):
    """The screen of members that hold out a fold each."""
    expansion = Expansion()
    rows = as_rows(np.asarray(codes, dtype=np.float64), "cpu", torch.float64)
    expansion.fit(rows, None, levels)
    features, column = screened_features(expansion, expansion(rows.take(slice(None))))
    y = torch.as_tensor(np.asarray(y, dtype=np.float32)).reshape(len(y), -1)
    fold = torch.randint(FOLDS, (len(y), 1), generator=torch.Generator().manual_seed(seed))
    held = (fold == torch.arange(FOLDS)).float()
    return additive_screen(features, column, y, 1.0 - held, held)


def noise(n_columns, seed=0):
    return np.random.default_rng(seed).normal(size=(N, n_columns))


def test_columns_that_matter_are_found_among_many():
    X = noise(60)
    y = np.sin(2 * X[:, 3]) + np.abs(X[:, 40]) + 0.5 * (X[:, 7] > 1) + 0.3 * noise(1, 1)[:, 0]
    found = screen(X, y)
    sizes = found.sizes.mean(0)
    assert set(sizes.argsort(descending=True)[:3].tolist()) == {3, 7, 40}
    assert found.matters[:, [3, 7, 40]].all() and found.matters.double().mean() < 0.3
    assert found.sizes.shape == found.matters.shape == (FOLDS, 60)


@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_found_in_noise_and_no_column_is_switched_off(seed):
    found = screen(noise(40, seed), noise(1, seed=100 + seed))
    assert found.sizes.max() == 0.0 and found.matters.all()


def test_a_wide_category_of_noise_counts_less_than_a_number_that_matters():
    rng = np.random.default_rng(0)
    codes = np.stack([rng.normal(size=N), rng.integers(0, 30, N), rng.integers(0, 4, N)], 1)
    y = codes[:, 0] + np.array([2.0, 0.0, -1.0, 0.5])[codes[:, 2].astype(int)]
    found = screen(codes, y + rng.normal(size=N), [NUMBER, Levels(30), Levels(4)])
    assert found.matters[:, [0, 2]].all()
    assert found.sizes[:, 1].max() < 0.03 * found.sizes[:, [0, 2]].min()


def test_sizes_are_variances_of_parts():
    X = noise(3)
    found = screen(X, 3.0 * X[:, 0])
    torch.testing.assert_close(
        found.sizes[:, 0].mean().double(), torch.tensor(9.0 * X[:, 0].var()), rtol=0.15, atol=0
    )


def test_weights_are_repetitions():
    X, rng = noise(8), np.random.default_rng(2)
    y = torch.as_tensor(X[:, :1] + 0.5 * noise(1, 1), dtype=torch.float32)
    weight = torch.as_tensor(rng.integers(1, 3, N), dtype=torch.float32)[:, None]
    features = torch.as_tensor(X, dtype=torch.float32)
    features = features / features.std(0)
    held = (torch.arange(N)[:, None] % FOLDS == torch.arange(FOLDS)).float()
    weighted = additive_screen(features, torch.arange(8), y, weight * (1 - held), weight * held)
    again = weight[:, 0].long()
    repeated = [each.repeat_interleave(again, 0) for each in (y, 1 - held, held)]
    features = features.repeat_interleave(again, 0)
    other = additive_screen(features, torch.arange(8), *repeated)
    # Features are centred and scaled by rows, whatever their weights.
    torch.testing.assert_close(weighted.sizes[:, 0], other.sizes[:, 0], rtol=0.05, atol=0)


def test_targets_of_a_members_fold_do_not_change_its_model():
    X = noise(10)
    y = X[:, 0] + 0.5 * noise(1, 1)[:, 0]
    fold = torch.randint(FOLDS, (N, 1), generator=torch.Generator().manual_seed(0))
    changed = np.where(fold[:, 0].numpy() == 0, y + 1e-3 * noise(1, 2)[:, 0], y)
    one, other = screen(X, y), screen(X, changed)
    moved = (one.sizes - other.sizes).abs().amax(1)
    assert moved[0] < 0.1 * moved[1:].min()  # the grid of penalties moves a little


def test_constant_columns_have_no_part():
    X = np.concatenate([noise(2), np.ones((N, 1))], 1)
    found = screen(X, X[:, 0])
    assert found.sizes[:, 2].max() == 0 and not found.matters[:, 2].any()
    assert screen(X, np.zeros(N)).sizes.max() == 0


def test_a_column_without_influence_is_switched_off():
    slopes = torch.ones(50, 1, 3)
    slopes[..., 2] = 0.0
    slopes[..., 1] = 0.01
    seen = AdditiveScreen(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[True, True, False]]))
    scales = column_scales(slopes, slopes, None, seen)
    assert scales[2] < 0.01 * scales[0] and scales[1] == pytest.approx(scales[0])
    assert column_scales(slopes, slopes)[2] > 0.1 * scales[0]


def test_many_targets_are_summed_with_random_signs():
    directions = random_directions(100, 4)
    assert directions.shape == (4, 100) and directions.abs().eq(1).all()
    assert random_directions(3, 4).equal(torch.eye(3))


def test_a_product_without_main_effects_is_found():
    X = np.random.default_rng(0).normal(size=(1000, 10))
    model = CFLLRegressor(max_epochs=20, random_state=0).fit(X, X[:, 2] * X[:, 5])
    assert model.feature_importances_[[2, 5]].min() > 0.4
