"""The return to schooling, by an instrument: real data whose linear answer is known.

Men who like school earn more for other reasons too, so that plain regression of wages on schooling
misleads. Card (1995) takes as instrument whether a four-year college was near the boy's home.
Prints the published estimates, least squares 0.075 (standard error 0.003) and two-stage least
squares 0.132 (0.055) of the log wage a year, as found here again, the summary of CFLLIVRegressor
and what may be concluded; draws the dose-response curve with its band and the average effect to
``schooling.png``. Needs ``pip install sklearn-cfll[plot,iv] linearmodels``::

    python examples/schooling.py
"""

from __future__ import annotations

import time
import warnings

import matplotlib
import numpy as np
import pandas as pd

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.inspection import InstrumentDisplay

try:
    from linearmodels.datasets import card
    from linearmodels.iv import IV2SLS
except ImportError as error:
    raise ImportError(
        "The schooling example takes its data and the linear estimates from linearmodels: "
        "pip install linearmodels"
    ) from error

matplotlib.use("Agg")

OUTCOME, TREATMENT, INSTRUMENT = "lwage", "educ", "nearc4"
EXPERIENCE = ["exper", "expersq"]
BINARY = ["black", "south", "smsa", "smsa66", *(f"reg66{i}" for i in range(1, 9))]


def linear_estimates(data: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return to a year and its standard error, of Card's table 3: least squares, two-stage."""
    exogenous = data[EXPERIENCE + BINARY].assign(constant=1.0)
    treatment, instrument = data[TREATMENT], data[INSTRUMENT]
    fits = {
        "least squares": IV2SLS(data[OUTCOME], exogenous.assign(educ=treatment), None, None),
        "two-stage least squares": IV2SLS(data[OUTCOME], exogenous, treatment, instrument),
    }
    estimates = {}
    for name, model in fits.items():
        fitted = model.fit(cov_type="unadjusted", debiased=True)
        estimates[name] = (fitted.params[TREATMENT], fitted.std_errors[TREATMENT])
    return estimates


def conclusion(model: CFLLIVRegressor, least_squares: float) -> str:
    """What a careful economist would write about this fit."""
    effect, report = model.effect_, model.diagnostics_
    estimate, error = effect.estimate[0], effect.std_error[0]
    strong = report["effective_f"] >= report["critical_value"]
    (low, high), *_ = effect.anderson_rubin[0]
    weak = (
        f"The instrument is {'strong' if strong else 'weak'}: the effective F is "
        f"{report['effective_f']:.1f}, where {report['critical_value']:.1f} is needed for a bias "
        "of at most a tenth of the worst case."
    )
    curve, curve_error = effect.curve_estimate[0], effect.curve_std_error[0]
    return (
        f"A year of schooling raises the log wage by {estimate:.3f} (robust standard error "
        f"{error:.3f}), if nearness of a college affects wages through schooling only. {weak} So "
        f"the Anderson-Rubin set is the one to report: from {low:.3f} to {high:.3f} with 95% "
        f"confidence. It {'contains' if low <= 0 <= high else 'excludes'} zero, and it "
        f"{'contains' if low <= least_squares <= high else 'excludes'} the slope of least squares, "
        f"{least_squares:.3f}: these data do "
        f"{'not tell' if low <= least_squares <= high else 'tell'} whether ability biases least "
        f"squares. The average slope of the curve is {curve:.3f} ({curve_error:.3f}); one binary "
        "instrument cannot identify more than a slope, so its shape is not evidence."
    )


def main() -> tuple[float, float, float]:
    data = card.load()
    estimates = linear_estimates(data)
    for name, (slope, error) in estimates.items():
        print(f"{name + ':':26s}{slope:.4f} a year (standard error {error:.4f})")

    # The square of experience is left to the network.
    X, Z = data[[TREATMENT]].astype(float), data[[INSTRUMENT]].astype(float)
    C = data[["exper", *BINARY]].astype(float)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the weak instrument, which is discussed below
        model = CFLLIVRegressor(random_state=0).fit(X, data[OUTCOME], Z=Z, C=C)
    print(f"CFLLIVRegressor, fitted in {time.perf_counter() - start:.1f} s\n")
    print(model.summary())
    print(f"\n{conclusion(model, estimates['least squares'][0])}")

    display = InstrumentDisplay.from_estimator(model, X, C, y_name="log hourly wage, 1976")
    display.ax_.set(xlabel="years of schooling", title="Dose-response at median controls")
    display.figure_.savefig("schooling.png", dpi=110)
    print("picture: schooling.png")
    two_stage = estimates["two-stage least squares"][0]
    return estimates["least squares"][0], two_stage, float(np.squeeze(model.effect_.estimate))


if __name__ == "__main__":
    main()
