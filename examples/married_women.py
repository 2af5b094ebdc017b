"""The return to schooling of married women: two instruments, and no evidence of confounding.

Mroz (1987): 428 married women who worked for a wage in 1975. Their parents' schooling is the
instrument; experience is a control. Prints least squares and two-stage least squares (0.0614 with
standard error 0.0314 in textbooks), the summary of CFLLIVRegressor and what may be concluded; draws
``married_women.png``.
Needs ``pip install sklearn-cfll[plot,iv] linearmodels``::

    python examples/married_women.py
"""

from __future__ import annotations

import warnings

import matplotlib
import pandas as pd

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.inspection import InstrumentDisplay

try:
    from linearmodels.datasets import mroz
    from linearmodels.iv import IV2SLS
except ImportError as error:
    raise ImportError(
        "This example takes its data and the linear estimates from linearmodels: "
        "pip install linearmodels"
    ) from error

matplotlib.use("Agg")

INSTRUMENTS, CONTROLS = ["motheduc", "fatheduc"], ["exper"]


def linear_estimates(data: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Return to a year and its standard error, with experience and its square as controls."""
    known = data[["exper", "expersq"]].assign(constant=1.0)
    fits = {
        "least squares": IV2SLS(data["lwage"], known.assign(educ=data["educ"]), None, None),
        "two-stage least squares": IV2SLS(data["lwage"], known, data["educ"], data[INSTRUMENTS]),
    }
    fitted = {name: each.fit(cov_type="unadjusted", debiased=True) for name, each in fits.items()}
    return {name: (each.params["educ"], each.std_errors["educ"]) for name, each in fitted.items()}


def conclusion(model: CFLLIVRegressor, least_squares: float) -> str:
    """What a careful economist would write about this fit."""
    effect, report = model.effect_, model.diagnostics_
    (low, high), *_ = effect.anderson_rubin[0]
    _, _, hansen = report["overidentification"]
    strong = report["effective_f"] >= report["critical_value"]
    return (
        f"A year of schooling raises the log wage by {effect.estimate[0]:.3f} (robust standard "
        f"error {effect.std_error[0]:.3f}), if parents' schooling affects wages through schooling "
        f"only. The instruments are {'strong' if strong else 'weak'} (effective F "
        f"{report['effective_f']:.1f}, needed {report['critical_value']:.1f}), and do "
        f"{'not ' if hansen >= 0.05 else ''}contradict each other (p-value of Hansen's J "
        f"{hansen:.2f}; both may be wrong together). With 95% confidence the effect lies between "
        f"{low:.3f} and {high:.3f} (Anderson-Rubin): zero is "
        f"{'inside' if low <= 0 <= high else 'outside'} this set, and the slope of least squares, "
        f"{least_squares:.3f}, is {'inside' if low <= least_squares <= high else 'outside'}. "
        f"The regression to rely on is, says the summary: {model.preferred_}."
    )


def main() -> tuple[float, float, float]:
    data = mroz.load().dropna(subset=["lwage"])
    estimates = linear_estimates(data)
    for name, (slope, error) in estimates.items():
        print(f"{name + ':':26s}{slope:.4f} a year (standard error {error:.4f})")
    X, Z = data[["educ"]].astype(float), data[INSTRUMENTS].astype(float)
    C = data[CONTROLS].astype(float)  # its square is left to the network
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that direct regression may be preferred is said below
        model = CFLLIVRegressor(random_state=0).fit(X, data["lwage"], Z=Z, C=C)
    print(f"\n{model.summary()}\n\n{model.summary().to_latex()}")
    print(f"\n{conclusion(model, estimates['least squares'][0])}")
    display = InstrumentDisplay.from_estimator(model, X, C, y_name="log hourly wage, 1975")
    display.ax_.set(xlabel="years of schooling", title="Dose-response at median experience")
    display.figure_.savefig("married_women.png", dpi=110)
    print("picture: married_women.png")
    two_stage = estimates["two-stage least squares"][0]
    return estimates["least squares"][0], two_stage, float(model.effect_.estimate[0])


if __name__ == "__main__":
    main()
