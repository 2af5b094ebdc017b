"""The mathematics of a closed-form last layer: pure functions on tensors.

Shapes throughout: ``features`` (n, d), ``targets`` (n, k), ``sample_weight`` (n,),
``weight`` (k, d) as in :class:`torch.nn.Linear`, so predictions are ``features @ weight.T + bias``.
A *penalty* is absolute: it multiplies ``‖weight‖²``, which is added to the **mean** squared error.
A *ridge* is dimensionless: ``penalty = ridge * feature_power``.

References
----------
Galashov, Da Costa, Xu, Hennig, Gretton, "Closed-Form Last Layer Optimization",
arXiv 2510.04606 (the proximal update).
"""

from ._final_ridge import (
    RIDGES,
    count_rows,
    cross_validation_errors,
    final_ridge,
)
from ._joint import (
    joint_moments,
    proximal_step_of_moments,
    proximal_step_of_parts,
    summed_moments,
)
from ._moments import (
    Moments,
    add_moments,
    leave_one_out_errors,
    leverage,
    leverage_basis,
    merge_moments,
    moments,
    residual_square,
    ridge_path,
    scale_moments,
    solve_moments,
    solve_near_moments,
)
from ._proximal import (
    SOLVERS,
    ProximalStep,
    choose_solver,
    conjugate_gradient_steps,
    dual_update,
    primal_update,
    proximal_step,
)
from ._rows import center_rows, feature_power, is_constant
from ._symmetric import solve_symmetric

__all__ = [
    "RIDGES",
    "SOLVERS",
    "Moments",
    "ProximalStep",
    "add_moments",
    "center_rows",
    "choose_solver",
    "conjugate_gradient_steps",
    "count_rows",
    "cross_validation_errors",
    "dual_update",
    "feature_power",
    "final_ridge",
    "is_constant",
    "joint_moments",
    "leave_one_out_errors",
    "leverage",
    "leverage_basis",
    "merge_moments",
    "moments",
    "primal_update",
    "proximal_step",
    "proximal_step_of_moments",
    "proximal_step_of_parts",
    "residual_square",
    "ridge_path",
    "scale_moments",
    "solve_moments",
    "solve_near_moments",
    "solve_symmetric",
    "summed_moments",
]
