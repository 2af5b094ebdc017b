"""Wrong parameters of data sets are named."""

import pytest

from sklearn_cfll.datasets import (
    make_burgers,
    make_darcy,
    make_demand_design,
    make_navier_stokes,
    make_sprite_design,
)


@pytest.mark.parametrize(
    ("make", "parameters", "message"),
    [
        (make_burgers, {"n_samples": 0}, "'n_samples' parameter of make_burgers must be an int"),
        (make_burgers, {"viscosity": 0.0}, "'viscosity' parameter of make_burgers must be a float"),
        (make_burgers, {"final_time": -1.0}, "'final_time' parameter"),
        (make_burgers, {"resolution": 2.5}, "'resolution' parameter"),
        (make_burgers, {"random_state": "one"}, "'random_state' parameter"),
        (make_burgers, {"cache_dir": 3}, "'cache_dir' parameter"),
        (make_darcy, {"contrast": (3, 12, 4)}, r"`contrast` must be two positive .* \(3, 12, 4\)"),
        (make_darcy, {"contrast": (0, 12)}, r"`contrast` must be two positive numbers, got \(0,"),
        (make_darcy, {"contrast": ("a", "b")}, "`contrast` must be two positive numbers"),
        (make_darcy, {"refinement": 2}, "`refinement` must be odd, got 2"),
        (make_navier_stokes, {"viscosity": 1e-9}, "'viscosity' parameter of make_navier_stokes"),
        (make_navier_stokes, {"amplitude": 100}, "'amplitude' parameter"),
        (make_demand_design, {"rho": 1.5}, "'rho' parameter of make_demand_design"),
        (make_demand_design, {"noise_scale": -1}, "'noise_scale' parameter"),
        (make_demand_design, {"images": "yes"}, "'images' parameter"),
        (make_sprite_design, {"shape": "heart"}, "'shape' parameter of make_sprite_design"),
        (make_sprite_design, {"size": 4}, "'size' parameter"),
    ],
)
def test_bad_parameters_are_named(make, parameters, message):
    with pytest.raises(ValueError, match=message):
        make(**parameters)
