"""What all simulated equations share: seeds, resolutions, batches, the cache."""

import re
import warnings
from functools import partial

import numpy as np
import pytest

from simulated_fields import DESIGNS, error
from sklearn_cfll.datasets import (
    _cache,
    burgers,
    darcy,
    make_burgers,
    make_darcy,
    make_navier_stokes,
    navier_stokes,
)
from sklearn_cfll.datasets._random_fields import evaluate_cosine, neumann_field

EQUATIONS = {
    "burgers": partial(make_burgers, 3, 32, final_time=0.1),
    "darcy": partial(make_darcy, 3, 9),
    "navier_stokes": partial(make_navier_stokes, 3, 16, final_time=0.5),
}
equations = pytest.mark.parametrize("make", EQUATIONS.values(), ids=EQUATIONS)


# -- what all equations share -----------------------------------------------------------------


def periodic_eigenvalues(dimension, tau, power, n_modes):
    """Of (-Δ + tau² I)^-power without the constant mode, over all frequencies."""
    k = np.meshgrid(*[np.arange(-n_modes, n_modes + 1)] * dimension, indexing="ij")
    squared = 4 * np.pi**2 * sum(axis**2 for axis in k)
    return np.where(squared > 0, (squared + tau**2) ** -power, 0.0)


@pytest.mark.slow
def test_initial_fields_have_the_variance_of_the_formulas_of_li_et_al():
    X, _ = make_burgers(2000, 8, final_time=1e-6, random_state=0)
    variance = 625 * periodic_eigenvalues(1, 5.0, 2.0, 340).sum()
    assert np.mean(X**2) == pytest.approx(variance, rel=0.08)
    X, _ = make_navier_stokes(300, 8, final_time=1e-6, random_state=0)
    variance = 7**1.5 * periodic_eigenvalues(2, 7.0, 2.5, 32).sum()
    assert np.mean(X**2) == pytest.approx(variance, rel=0.1)


def test_permeability_follows_the_sign_of_the_field_of_li_et_al():
    field = neumann_field(np.random.RandomState(0), 4, 128, scale=1.0, tau=3.0, power=2.0)
    values = evaluate_cosine(field, (np.arange(32) + 0.5) / 32)
    X, _ = make_darcy(4, random_state=0)
    np.testing.assert_array_equal(X, np.where(values < 0, 3.0, 12.0))


@equations
def test_a_seed_reproduces_and_another_does_not(make):
    X, y = make(random_state=0)
    again = make(random_state=np.random.RandomState(0))
    np.testing.assert_array_equal(again[0], X)
    np.testing.assert_array_equal(again[1], y)
    assert not np.array_equal(make(random_state=1)[0], X)
    assert not np.array_equal(make()[0], make()[0])
    assert X.dtype == y.dtype == np.float64 and np.isfinite(X).all() and np.isfinite(y).all()


@pytest.mark.parametrize("make", [EQUATIONS["burgers"], EQUATIONS["navier_stokes"]])
@pytest.mark.parametrize("factor", [2, 3])
def test_a_seed_names_the_same_functions_at_any_resolution(make, factor):
    simulate, (n_samples, resolution) = make.func, make.args
    fine = simulate(n_samples, factor * resolution, random_state=0, **make.keywords)
    for coarse_field, fine_field in zip(make(random_state=0), fine, strict=True):
        every = (slice(None), *[slice(None, None, factor)] * (fine_field.ndim - 1))
        np.testing.assert_allclose(coarse_field, fine_field[every], atol=1e-13)


def test_a_seed_names_the_same_permeabilities_at_any_resolution():
    X, y = make_darcy(4, 21, random_state=0)
    X_fine, y_fine = make_darcy(4, 63, random_state=0)
    np.testing.assert_array_equal(X, X_fine[:, 1::3, 1::3])
    assert error(y, y_fine[:, 1::3, 1::3]) < 0.05


@pytest.mark.parametrize(
    ("module", "size", "value"),
    [(burgers, "_BATCH_POINTS", 1), (darcy, "_BATCH_SIZE", 2), (navier_stokes, "_BATCH_POINTS", 1)],
    ids=EQUATIONS,
)
def test_results_do_not_depend_on_batches(module, size, value, monkeypatch):
    make = EQUATIONS[module.__name__.rpartition(".")[-1]]
    whole = make(random_state=0)
    monkeypatch.setattr(module, size, value)
    for one, other in zip(make(random_state=0), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


@equations
def test_fewer_samples_are_the_first_of_more(make):
    _, resolution = make.args
    fewer = make.func(2, resolution, random_state=0, **make.keywords)
    for few, many in zip(fewer, make(random_state=0), strict=True):
        np.testing.assert_allclose(few, many[:2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "make", [*EQUATIONS.values(), *DESIGNS.values()], ids=[*EQUATIONS, *DESIGNS]
)
def test_global_random_state_is_left_alone_and_nothing_is_printed(make, capfd):
    before = str(np.random.get_state())
    for random_state in 0, np.random.RandomState(0), None:
        make(random_state=random_state)
    assert str(np.random.get_state()) == before
    assert capfd.readouterr() == ("", "")


@equations
def test_verbose_shows_a_bar(make, capfd):
    make(random_state=0, verbose=1)
    assert re.search(r"3/3", capfd.readouterr().err)


# -- cache ------------------------------------------------------------------------------------


def no_simulation(*args, **kwargs):
    raise AssertionError("simulated although the result is cached")


@equations
def test_cache_gives_back_what_was_simulated(make, tmp_path, monkeypatch):
    expected = make(random_state=0)
    first = make(random_state=0, cache_dir=tmp_path / "new" / "folder")
    monkeypatch.setattr(burgers, "solve_burgers", no_simulation)
    monkeypatch.setattr(darcy, "solve_darcy", no_simulation)
    monkeypatch.setattr(navier_stokes, "solve_navier_stokes", no_simulation)
    second = make(random_state=np.int64(0), cache_dir=str(tmp_path / "new" / "folder"))
    for arrays in zip(expected, first, second, strict=True):
        np.testing.assert_array_equal(arrays[0], arrays[1])
        np.testing.assert_array_equal(arrays[0], arrays[2])
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 1


def test_cache_tells_parameters_and_seeds_apart(tmp_path):
    make = partial(make_darcy, 1, cache_dir=tmp_path)
    variants = [
        make(6, random_state=0),
        make(6, random_state=1),
        make(7, random_state=0),
        make(6, contrast=(1, 2), random_state=0),
        make(6, refinement=3, random_state=0),
    ]
    assert len(list(tmp_path.iterdir())) == len(variants)
    make(6, contrast=np.array([3.0, 12.0]), random_state=0)  # the first one's, written otherwise
    assert len(list(tmp_path.iterdir())) == len(variants)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_a_value(path):
    """A sound archive with another content."""
    with np.load(path) as archive:
        content = dict(archive)
    content["array_1"][0, 0] += 1e-12
    np.savez(path, **content)


def forget_the_checksum(path):
    with np.load(path) as archive:
        content = {name: archive[name] for name in archive.files if name != "sha256"}
    np.savez(path, **content)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, change_a_value, forget_the_checksum])
def test_damaged_cache_is_computed_again_with_a_warning(damage, tmp_path):
    make = partial(make_burgers, 2, 16, final_time=0.01, random_state=0, cache_dir=tmp_path)
    expected = make()
    (path,) = tmp_path.iterdir()
    damage(path)
    with pytest.warns(UserWarning, match=r"burgers-n_samples=2.* is damaged .*computed again"):
        repaired = make()
    np.testing.assert_array_equal(repaired, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(make(), expected)


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache.np, "savez", no_simulation)
    with pytest.raises(AssertionError):
        make_darcy(1, 4, random_state=0, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("random_state", [None, np.random.RandomState(0)])
def test_cache_needs_an_integer_seed(random_state, tmp_path):
    with pytest.raises(ValueError, match="`cache_dir` needs an integer `random_state`, got "):
        make_burgers(1, 8, random_state=random_state, cache_dir=tmp_path)
