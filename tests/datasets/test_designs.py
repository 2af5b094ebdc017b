"""Designs for instruments: the demand for tickets, and sprites."""

import pickle
from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_digits

from simulated_fields import DESIGNS, error
from sklearn_cfll.datasets import make_demand_design, make_sprite_design
from sklearn_cfll.datasets.sprites import render

designs = pytest.mark.parametrize("make", DESIGNS.values(), ids=DESIGNS)


# -- demand design ----------------------------------------------------------------------------


def season(t):
    return 2 * ((t - 5) ** 4 / 600 + np.exp(-4 * (t - 5) ** 2) + t / 10 - 2)


def shock_and_noise(data, noise_scale, strength=1.0):
    """v and e, recovered from what the design gives."""
    shock = data.X[:, 0] - 25 - (strength * data.Z[:, 0] + 3) * season(data.C[:, 0])
    return shock, (data.y - data.structural(data.X, data.C)) / noise_scale


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9])
@pytest.mark.parametrize("noise_scale", [1.0, 158.0])
def test_noise_is_correlated_with_the_prices_shock_as_asked(rho, noise_scale):
    data = make_demand_design(40_000, rho, noise_scale, random_state=0)
    shock, noise = shock_and_noise(data, noise_scale)
    assert np.corrcoef(shock, noise)[0, 1] == pytest.approx(rho, abs=0.02)
    for standard in shock, noise:
        assert standard.mean() == pytest.approx(0, abs=0.02)
        assert standard.std() == pytest.approx(1, abs=0.02)


def test_noise_has_mean_zero_given_the_instrument():
    data = make_demand_design(40_000, 0.9, random_state=0)
    _, noise = shock_and_noise(data, 158.0)
    order = np.argsort(data.Z[:, 0])
    by_cost = noise[order].reshape(20, -1).mean(1)  # standard error 1 / sqrt(2000)
    assert abs(by_cost).max() < 4 / np.sqrt(2000)
    by_price = noise[np.argsort(data.X[:, 0])].reshape(20, -1).mean(1)
    assert abs(by_price).max() > 10 / np.sqrt(2000)


def test_moments_of_the_demand_design():
    data = make_demand_design(100_000, noise_scale=0.0, random_state=0)
    assert data.y.std() == pytest.approx(158, rel=0.02)
    assert data.Z.mean() == pytest.approx(0, abs=0.02) and data.Z.std() == pytest.approx(1, 0.02)
    time, customer = data.C.T
    assert time.min() >= 0 and time.max() <= 10 and time.mean() == pytest.approx(5, rel=0.01)
    counts = np.unique(customer, return_counts=True)
    np.testing.assert_array_equal(counts[0], np.arange(1, 8))
    np.testing.assert_allclose(counts[1] / 100_000, 1 / 7, rtol=0.03)
    np.testing.assert_allclose(data.y, data.structural(data.X, data.C))


def test_structural_function_by_hand():
    structural = make_demand_design(1).structural
    # t = 5: h = 2 (0 + 1 + 0.5 - 2) = -1. t = 10: h = 2 (625/600 + e^-100 + 1 - 2) = 1/12.
    sales = structural(np.array([[20.0], [14.0]]), np.array([[5.0, 1.0], [10.0, 6.0]]))
    np.testing.assert_allclose(sales, [100 - 30 - 40, 100 + 24 * 6 / 12 - 28])


@pytest.mark.parametrize("strength", [0.0, 0.3, -2.0])
def test_instrument_strength_scales_the_costs_effect(strength):
    data = make_demand_design(2000, instrument_strength=strength, random_state=0)
    shock, _ = shock_and_noise(data, 158.0, strength)
    assert shock.std() == pytest.approx(1, rel=0.05)
    assert abs(np.corrcoef(shock, data.Z[:, 0])[0, 1]) < 0.06


def test_grid_of_the_demand_design():
    one, other = (make_demand_design(10, random_state=seed).grid for seed in (0, 1))
    assert one.X.shape == (2800, 1) and one.C.shape == (2800, 2) and one.y.shape == (2800,)
    np.testing.assert_array_equal(one.C, other.C)
    np.testing.assert_allclose(one.y, make_demand_design(1).structural(one.X, one.C))
    np.testing.assert_allclose(np.unique(one.X), np.linspace(10, 25, 20))
    np.testing.assert_allclose(np.unique(one.C[:, 0]), np.linspace(0, 10, 20))
    assert len(np.unique(np.column_stack([one.X, one.C]), axis=0)) == 2800


def test_images_stand_in_for_the_customer_type_and_nothing_else_changes():
    plain = make_demand_design(300, random_state=0)
    images = make_demand_design(300, images=True, random_state=0)
    assert images.C.shape == (300, 65) and images.grid.C.shape == (2800, 65)
    for key in "X", "y", "Z":
        np.testing.assert_array_equal(images[key], plain[key])
    np.testing.assert_array_equal(images.C[:, 0], plain.C[:, 0])
    np.testing.assert_allclose(
        images.structural(images.X, images.C), plain.structural(plain.X, plain.C)
    )
    np.testing.assert_allclose(images.structural(images.grid.X, images.grid.C), plain.grid.y)


def test_images_are_digits_of_the_type_and_the_grid_has_others():
    plain = make_demand_design(2000, random_state=0)
    data = make_demand_design(2000, images=True, random_state=0)
    digits = load_digits()
    pairs = zip(digits.data / 16, digits.target, strict=True)
    label = {image.tobytes(): target for image, target in pairs}
    sample = [row.tobytes() for row in np.ascontiguousarray(data.C[:, 1:])]
    grid = [row.tobytes() for row in np.ascontiguousarray(data.grid.C[:, 1:])]
    assert [label[image] for image in sample] == plain.C[:, 1].tolist()
    assert [label[image] for image in grid] == plain.grid.C[:, 1].tolist()
    assert not set(sample) & set(grid)


# -- sprite design ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["ellipse", "square"])
@pytest.mark.parametrize("scale", [0.5, 1.0])
@pytest.mark.parametrize(("x", "y"), [(0.0, 1.0), (0.5, 0.25)])
def test_sprites_have_the_area_and_centre_asked_for(shape, scale, x, y):
    for rotation in 0.0, 0.7, 4.0:
        image = render(64, shape, scale, rotation, x, y)
        centres = (np.arange(64) + 0.5) / 64
        assert image.sum() == pytest.approx(scale**2 * 256, rel=0.03)
        assert image.sum(0) @ centres / image.sum() == pytest.approx(0.22 + 0.56 * x, abs=0.003)
        assert image.sum(1) @ centres / image.sum() == pytest.approx(0.22 + 0.56 * y, abs=0.003)
        assert image.min() == 0 and image.max() == 1
        assert not image[[0, -1]].any() and not image[:, [0, -1]].any()


def test_sprites_turn_with_their_rotation():
    turn = partial(render, 64, scale=1.0, x=0.5, y=0.5)
    quarter = turn("ellipse", rotation=np.pi / 2)
    np.testing.assert_allclose(np.rot90(turn("ellipse", rotation=0.0)), quarter, atol=1e-12)
    np.testing.assert_allclose(turn("ellipse", rotation=np.pi / 2 + np.pi), quarter, atol=1e-12)
    np.testing.assert_allclose(
        turn("square", rotation=0.3), turn("square", rotation=0.3 + np.pi / 2)
    )
    assert error(turn("ellipse", rotation=0.0), quarter) > 0.5


def test_outcome_of_the_sprite_design():
    data = make_sprite_design(1500, 32, random_state=0)
    rest = data.y - data.structural(data.X) - 32 * (data.confounder - 0.5)
    assert rest.mean() == pytest.approx(0, abs=0.05) and rest.std() == pytest.approx(0.5, rel=0.06)
    assert 3.5 < data.structural(data.X).std() < 5.5
    np.testing.assert_array_equal(data.images.reshape(1500, -1), data.X)
    for instrument in data.Z.T:
        assert abs(np.corrcoef(instrument, data.confounder)[0, 1]) < 0.08
        assert abs(np.corrcoef(instrument, rest)[0, 1]) < 0.08


def test_treatment_shows_the_confounder_and_the_instruments_set_it():
    data = make_sprite_design(200, 32, shape="square", random_state=0)
    bright = np.where(data.images > 0.5, 1.0, 0.0)
    height = bright.sum(2) @ np.arange(32) / bright.sum((1, 2))
    assert np.corrcoef(height, data.confounder)[0, 1] > 0.99
    assert np.corrcoef(data.structural(data.X), data.Z[:, 0])[0, 1] > 0.9  # scale sets the area


@pytest.mark.parametrize("size", [16, 64])
def test_quadratic_form_by_hand(size):
    structural = make_sprite_design(1, size, random_state=0).structural
    weights = np.random.RandomState(0).uniform(size=(10, size**2)) * (64 / size) ** 2
    image = render(size, "square", 0.8, 0.3, 0.5, 0.5).ravel()
    by_hand = (sum((row @ image) ** 2 for row in weights) / 10 - 5000) / 1000
    assert structural(image[None])[0] == pytest.approx(by_hand, rel=1e-12)
    assert by_hand == pytest.approx(((0.5 * 256 * 0.64) ** 2 - 5000) / 1000, abs=0.6)


def test_grid_of_the_sprite_design_is_noiseless_and_the_same_for_every_seed():
    one, other = (make_sprite_design(2, 16, random_state=seed).grid for seed in (0, 1))
    np.testing.assert_array_equal(one.X, other.X)
    assert one.X.shape == (588, 256) and one.X.min() == 0 and one.X.max() == 1
    np.testing.assert_allclose(one.y, make_sprite_design(1, 16).structural(one.X))


@designs
def test_designs_reproduce_and_survive_pickling(make):
    data, again, other = make(random_state=0), make(random_state=0), make(random_state=1)
    loaded = pickle.loads(pickle.dumps(data))
    for key in "X", "y", "Z":
        np.testing.assert_array_equal(data[key], again[key])
        assert data[key].dtype == np.float64 and not np.array_equal(data[key], other[key])
    np.testing.assert_array_equal(
        loaded.structural(loaded.grid.X, loaded.grid.C), data.structural(data.grid.X, data.grid.C)
    )
