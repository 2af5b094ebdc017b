"""The return to schooling, by an instrument: real data whose linear answer is known.

Men who like school earn more for other reasons too, so that plain regression of wages on schooling
misleads. Card (1995) takes as instrument whether a four-year college was near the boy's home.
Prints the published estimates, least squares 0.075 (standard error 0.003) and two-stage least
squares 0.132 (0.055) of the log wage a year, as found here again, and CFLLIVRegressor's average
return between 12 and 16 years; draws its dose-response curve with a 90% band beside both lines to
``schooling.png``. Beyond the controls the predicted schooling has 0.2% of the variance of
schooling: there is one weak slope to find, and whatever shrinks it shrinks it towards zero.
The band does not know of that: it is too narrow here, and leaves both linear slopes out.
Needs ``pip install sklearn-cfll[plot] linearmodels``::

    python examples/schooling.py
"""

from __future__ import annotations

import time

import matplotlib
import numpy as np
import pandas as pd

from sklearn_cfll import CFLLIVRegressor

try:
    from linearmodels.datasets import card
    from linearmodels.iv import IV2SLS
except ImportError as error:
    raise ImportError(
        "The schooling example takes its data and the linear estimates from linearmodels: "
        "pip install linearmodels"
    ) from error

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OUTCOME, TREATMENT, INSTRUMENT = "lwage", "educ", "nearc4"
EXPERIENCE = ["exper", "expersq"]
BINARY = ["black", "south", "smsa", "smsa66", *(f"reg66{i}" for i in range(1, 9))]
NORMAL_90 = 1.6449
YEARS = np.arange(8, 19)  # fewer than 3% of the men went to school for less


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


def common_man(data: pd.DataFrame) -> pd.DataFrame:
    """The controls of the commonest kind of man, of median experience, once for each year."""
    kind = dict(zip(BINARY, data.groupby(BINARY).size().idxmax(), strict=True))
    experience = data["exper"].median()
    man = pd.DataFrame([{"exper": experience, **kind}])
    return man.loc[man.index.repeat(len(YEARS))].reset_index(drop=True)


def main() -> tuple[float, float, float]:
    data = card.load()
    estimates = linear_estimates(data)
    for name, (slope, error) in estimates.items():
        print(f"{name + ':':26s}{slope:.4f} a year (standard error {error:.4f})")

    # The square of experience is left to the network.
    X, Z = data[[TREATMENT]].astype(float), data[[INSTRUMENT]].astype(float)
    C = data[["exper", *BINARY]].astype(float)
    start = time.perf_counter()
    model = CFLLIVRegressor(random_state=0).fit(X, data[OUTCOME], Z=Z, C=C)
    seconds = time.perf_counter() - start
    twelve, sixteen = (model.predict(X.assign(educ=float(years)), C=C) for years in (12, 16))
    slope = float(np.mean(sixteen - twelve) / 4)
    print(
        f"{'CFLLIVRegressor:':26s}{slope:.4f} a year between 12 and 16, fitted in {seconds:.1f} s"
    )
    print(model.summary())

    man = common_man(data)
    doses = pd.DataFrame({TREATMENT: YEARS.astype(float)})
    curve, std = model.predict(doses, C=man[C.columns], return_std=True)
    draw(curve, std, estimates)
    return estimates["least squares"][0], estimates["two-stage least squares"][0], slope


def draw(curve: np.ndarray, std: np.ndarray, estimates: dict[str, tuple[float, float]]) -> None:
    """Curve and band, and lines of both linear slopes through its value at 12 years."""
    figure, axes = plt.subplots(figsize=(7, 4.5), constrained_layout=True)
    half = NORMAL_90 * std
    axes.fill_between(YEARS, curve - half, curve + half, alpha=0.2, label="90% band")
    axes.plot(YEARS, curve, label="CFLLIVRegressor")
    at_twelve = curve[YEARS == 12]
    for style, (name, (slope, _)) in zip((":", "--"), estimates.items(), strict=True):
        line = at_twelve + slope * (YEARS - 12)
        axes.plot(YEARS, line, style, color="0.3", label=f"{name}, slope {slope:.3f}")
    axes.set(
        xlabel="years of schooling",
        ylabel="log hourly wage, 1976",
        title="Dose-response for the commonest kind of man",
    )
    axes.legend(fontsize=8)
    figure.savefig("schooling.png", dpi=110)
    print("picture: schooling.png")


if __name__ == "__main__":
    main()
