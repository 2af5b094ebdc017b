"""The loss landscape of two parameters, and the ways of gradient descent and of the closed form.

The networks ``w relu(θx)`` and ``w tanh(θx)`` have one backbone parameter θ and one last-layer
weight w. For each θ the best w is known, and all of these form the curve w*(θ). Gradient descent
walks across the landscape; the closed form stays on the curve. With relu the loss is the same all
along each branch of the curve (``w relu(θx)`` depends on wθ only, for θ > 0): one solve is all
there is to do, and from θ < 0 neither method reaches the lower branch. With tanh the curve falls to
a minimum, and the closed form follows it.

    python examples/landscape.py            # seconds; writes landscape.png and landscape.gif
"""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import Tensor

from sklearn_cfll import ClosedFormLastLayer

# Each path has the rate with the least loss at its end.
STEPS, RATES = 60, (0.03, 0.1, 0.3, 1.0, 3.0)
FRAME = (-2.0, 3.0), (-2.2, 3.4)  # of θ, of w
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}
# (θ, w)
STARTS = {"relu": [(2.4, -1.5), (0.4, 2.0), (-1.2, -1.5)], "tanh": [(0.4, -1.5), (2.6, 2.4)]}
TRUTH = {"relu": (1.0, 1.2), "tanh": (1.5, 1.2)}


def rows(name: str) -> tuple[Tensor, Tensor]:
    """Inputs (n, 1) and what the network with the true parameters makes of them, with noise."""
    x = torch.linspace(-2, 2, 81, dtype=torch.float64).unsqueeze(1)
    theta, w = TRUTH[name]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, w * ACTIVATIONS[name](theta * x) + 0.1 * noise


def path(name: str, start: tuple[float, float], closed_form: bool, rate: float) -> np.ndarray:
    """(θ, w) after each step; for the closed form, also before the first solve."""
    (x, y), activation = rows(name), ACTIVATIONS[name]
    theta, w = (torch.tensor([[value]], dtype=torch.float64) for value in start)
    # The layer that the estimators use. Without `decay` it is the exact fit to all rows.
    head = ClosedFormLastLayer(
        1, 1, ridge=1e-9, decay=0.0, fit_intercept=False, dtype=torch.float64
    )
    places = [start]
    for _ in range(STEPS):
        theta.requires_grad_()
        w.requires_grad_()
        features = activation(x * theta)
        prediction = head.update(features, y) if closed_form else features * w
        if closed_form:
            places.append((theta.item(), head.weight.item()))
        loss = (prediction - y).square().mean()
        wanted = [theta] if closed_form else [theta, w]
        gradients = torch.autograd.grad(loss, wanted)
        theta = (theta - rate * gradients[0]).detach()
        w = head.weight.clone() if closed_form else (w - rate * gradients[1]).detach()
        places.append((theta.item(), w.item()))
    return np.array(places)


def loss_of(name: str, theta: np.ndarray, w: np.ndarray) -> np.ndarray:
    x, y = (part.numpy() for part in rows(name))
    features = ACTIVATIONS[name](torch.from_numpy(theta[..., None] * x[:, 0])).numpy()
    return np.square(w[..., None] * features - y[:, 0]).mean(-1)


def final_loss(name: str, places: np.ndarray) -> float:
    return float(np.nan_to_num(loss_of(name, *places[-1:].T)[0], nan=np.inf))


def best_weight(name: str, theta: np.ndarray) -> np.ndarray:
    """The curve w*(θ)."""
    x, y = (part.numpy()[:, 0] for part in rows(name))
    features = ACTIVATIONS[name](torch.from_numpy(theta[:, None] * x)).numpy()
    return features @ y / np.square(features).sum(1)


def draw_landscape(ax: plt.Axes, name: str) -> None:
    theta, w = np.meshgrid(*(np.linspace(*ends, 241) for ends in FRAME))
    height = np.log10(loss_of(name, theta, w))
    ax.contourf(theta, w, height, levels=24, cmap="Greys_r", alpha=0.7)
    for side in (np.linspace(FRAME[0][0], -0.05, 200), np.linspace(0.05, FRAME[0][1], 200)):
        ax.plot(side, best_weight(name, side), "k--", lw=1)
    ax.set(xlim=FRAME[0], ylim=FRAME[1], xlabel="θ (backbone)", ylabel="w (last layer)")
    ax.set_title(f"w {name}(θx); dashed: w*(θ)")


def main() -> dict[str, list[dict[str, float]]]:
    """Returns the losses at the end, by activation and start."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    lines, losses = [], {}
    for ax, (name, starts) in zip(axes, STARTS.items(), strict=True):
        draw_landscape(ax, name)
        losses[name] = []
        for start in starts:
            ends = {}
            for closed_form, color in ((False, "tab:blue"), (True, "tab:red")):
                paths = [path(name, start, closed_form, rate) for rate in RATES]
                places = min(paths, key=lambda found: final_loss(name, found))
                label = "closed form" if closed_form else "gradient descent"
                ends[label] = final_loss(name, places)
                first = start == starts[0]
                style = {"color": color, "ms": 3, "lw": 1.2, "label": label if first else None}
                (line,) = ax.plot(*places.T, "o-", **style)
                lines.append((line, places[:: 2 if closed_form else 1]))
            ax.plot(*start, "ks", ms=5)
            losses[name].append(ends)
            found = ", ".join(f"{label} {loss:.4f}" for label, loss in ends.items())
            print(f"{name}, from θ, w = {start}: {found}")
        ax.legend(loc="upper left")
    figure.savefig("landscape.png", dpi=90)

    def show(step: int) -> list[plt.Line2D]:
        for line, places in lines:
            line.set_data(*places[: step + 1].T)
        return [line for line, _ in lines]

    frames = [0] * 5 + list(range(1, 41)) + [STEPS] * 10
    animation = FuncAnimation(figure, show, frames=frames, interval=100)
    animation.save("landscape.gif", writer=PillowWriter(fps=10), dpi=60)
    print("pictures: landscape.png, landscape.gif")
    return losses


if __name__ == "__main__":
    main()
