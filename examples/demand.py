"""A dose-response curve by instruments: what sales would be if the price were set.

Prices of airline tickets follow demand, so a regression of sales on prices mistakes the demand
for an effect of the price. The cost of fuel moves prices and nothing else: an instrument. Fits
``CFLLIVRegressor`` with the cost, without it (direct regression) and two-stage least squares,
prints their errors and the diagnostics, and draws sales over the price, for one customer type at
three times of the year, with the 90% band, to ``demand.png``. It ends with what may be concluded.
Needs ``pip install sklearn-cfll[plot,iv]``::

    python examples/demand.py
"""

from __future__ import annotations

import time

import matplotlib
import numpy as np

from sklearn_cfll import CFLLIVRegressor
from sklearn_cfll.datasets import make_demand_design

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TIMES, CUSTOMER = (1.0, 4.0, 6.0), 4


def main() -> tuple[float, float, float]:
    data = make_demand_design(1000, rho=0.75, random_state=0)
    start = time.perf_counter()
    model = CFLLIVRegressor(random_state=0).fit(data.X, data.y, Z=data.Z, C=data.C)
    print(f"fitted in {time.perf_counter() - start:.1f} s, {model.n_iter_} epochs")
    print(model.summary())

    direct = CFLLIVRegressor(random_state=0).fit(data.X, data.y, C=data.C)
    # Backbones that pass columns on, no penalty, no interactions: two-stage least squares.
    linear = CFLLIVRegressor(
        "identity",
        "identity",
        "identity",
        stage1_ridge=0,
        stage2_ridge=0,
        interaction_scale=0,
        cross_fit=False,
        diagnose=False,
    ).fit(data.X, data.y, Z=data.Z, C=data.C)

    models = {"instruments": model, "direct regression": direct, "two-stage least squares": linear}
    errors = [
        float(np.mean((each.predict(data.grid.X, data.grid.C) - data.grid.y) ** 2))
        for each in models.values()
    ]
    for name, error in zip(models, errors, strict=True):
        print(f"mean squared error of the structural function, {name + ':':<25}{error:8.0f}")
    draw(data, models)
    print(f"\n{conclusion(model, data)}")
    return errors[0], errors[1], errors[2]


def conclusion(model: CFLLIVRegressor, data) -> str:
    """What a careful economist would write about this fit."""
    effect, report = model.effect_, model.diagnostics_
    strong = report["effective_f"] >= report["critical_value"]
    rise = data.structural(data.X + 0.5, data.C) - data.structural(data.X - 0.5, data.C)
    return (
        f"The instrument is {'strong' if strong else 'weak'} (effective F "
        f"{report['effective_f']:.0f}, needed {report['critical_value']:.0f}). If the price rises "
        f"by one, sales change by {effect.curve_estimate[0]:.1f} on average over customers and "
        f"times (standard error {effect.curve_std_error[0]:.1f}; truth {np.mean(rise):.1f}). The "
        f"partially linear effect, {effect.estimate[0]:.1f} ({effect.std_error[0]:.1f}), answers "
        "another question: the effect of the price differs between times and customers, and it "
        "weights them by how much the cost of fuel moves their price. Report the curve for a "
        "given time and customer with its band; one slope would hide these differences."
    )


def draw(data, models: dict[str, CFLLIVRegressor]) -> None:
    """Sales over the price at three times, each model's curve and the band of the first."""
    price = np.linspace(10, 25, 60)[:, None]
    figure, axes = plt.subplots(
        1, len(TIMES), figsize=(13, 4.2), sharey=True, constrained_layout=True
    )
    for axis, when in zip(axes, TIMES, strict=True):
        confounders = np.column_stack([np.full(60, when), np.full(60, CUSTOMER)])
        axis.plot(price, data.structural(price, confounders), "k", label="truth")
        for style, (name, model) in zip(("C0", "C3--", "C1:"), models.items(), strict=True):
            axis.plot(price, model.predict(price, confounders), style, label=name)
            if name == "instruments":
                band = model.predict_interval(price, confounders, coverage=0.9)
                axis.fill_between(price[:, 0], *band, color="C0", alpha=0.2, label="90% band")
        near = (np.abs(data.C[:, 0] - when) < 1) & (np.abs(data.C[:, 1] - CUSTOMER) < 1.5)
        shown = near & (data.X[:, 0] > 10) & (data.X[:, 0] < 25)
        axis.plot(data.X[shown, 0], data.y[shown], ".", color="0.7", zorder=0)
        axis.set(title=f"time {when:g}, customer type {CUSTOMER}", xlabel="price")
    axes[0].set_ylabel("sales")
    axes[0].legend(fontsize=8)
    figure.savefig("demand.png", dpi=110)
    print("picture: demand.png")


if __name__ == "__main__":
    main()
