"""From the scores of squared loss to probabilities: the ways that the study compares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from tasks import Task
from torch import Tensor

from sklearn_cfll import CFLLClassifier, linalg


@dataclass
class Scores:
    """Estimated class indicators (n, k) of one fitted network.

    Attributes
    ----------
    seen : of the held-out rows, by the final layer, which was fitted to them too
    unseen : of the held-out rows, by a layer fitted to the training rows alone
    test : of the test rows, by the final layer
    y_valid, y_test : class codes
    variance : mean squared residual of a held-out indicator
    """

    seen: np.ndarray
    unseen: np.ndarray
    test: np.ndarray
    y_valid: np.ndarray
    y_test: np.ndarray
    variance: float


def scores_of(model: CFLLClassifier, split: Task) -> Scores:
    """Scores of a model that was fitted to these training and held-out rows."""
    features = [
        torch.from_numpy(model.features(X)).double()
        for X, _ in (split.train, split.valid, split.test)
    ]
    k = len(model.last_layer_coef_)
    indicators = np.eye(len(model.classes_))[split.train[1]]
    targets = torch.from_numpy(indicators if k > 1 else indicators[:, 1:])
    ridge = torch.tensor([model.final_ridge_], dtype=torch.float64)
    weight, bias = (
        part[0] for part in linalg.ridge_path(linalg.moments(features[0], targets), ridge)
    )
    unseen = (features[1] @ weight.T + bias).numpy()
    seen, test = (
        f.numpy() @ model.last_layer_coef_.T + model.last_layer_intercept_ for f in features[1:]
    )
    if k == 1:
        seen, unseen, test = (np.hstack([1 - s, s]) for s in (seen, unseen, test))
    return Scores(
        seen, unseen, test, split.valid[1], split.test[1], float(model.noise_variance_.mean())
    )


def on_simplex(scores: np.ndarray) -> np.ndarray:
    """Nearest points of the simplex (Duchi et al., 2008)."""
    descending = -np.sort(-scores, axis=1)
    excess = (descending.cumsum(1) - 1) / np.arange(1, scores.shape[1] + 1)
    last = (descending > excess).sum(1) - 1
    return (scores - excess[np.arange(len(scores)), last][:, None]).clip(0)


# Logits of scores (n, k) and parameters; those start at zero, and a normal prior of deviation one
# pulls them there.
def temperature(s: Tensor, p: Tensor) -> Tensor:
    return 4 * p[0].exp() * s


def vector(s: Tensor, p: Tensor) -> Tensor:
    return temperature(s, p) + p[2:]


def matrix(s: Tensor, p: Tensor) -> Tensor:
    k = s.shape[1]
    return vector(s, p[: 2 + k]) + s @ p[2 + k :].reshape(k, k)


def power(s: Tensor, p: Tensor) -> Tensor:
    """Powers of the score, which squared loss makes an estimate of the probability itself.

    A softplus keeps it positive; a floor, the second parameter, stands for the share of labels
    that no score foretells. Between them a straight line.
    """
    return 2 * p[0].exp() * (F.softplus(32 * s) / 32 + 0.01 * p[1].exp()).log()


def fixed_floor(s: Tensor, p: Tensor) -> Tensor:
    return power(s, p[:1].repeat(2) * torch.tensor([1.0, 0.0]))


def no_floor(s: Tensor, p: Tensor) -> Tensor:
    return 2 * p[0].exp() * F.softplus(16 * s).clamp_min(1e-30).log()


def free_bend(s: Tensor, p: Tensor) -> Tensor:
    """Linear in the score where the second parameter is small, its logarithm where it is large."""
    return 2 * p[0].exp() * F.softplus(4 * p[1].exp() * s).clamp_min(1e-30).log()


FAMILIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "temperature": temperature,
    "vector": vector,
    "matrix": matrix,
    "power": power,
    "power, wide prior": power,
    "power, floor 0.01": fixed_floor,
    "power, no floor": no_floor,
    "power, free bend": free_bend,
}
N_MORE: dict[str, Callable[[int], int]] = {"vector": lambda k: k, "matrix": lambda k: k + k * k}
WIDE = {"temperature", "vector", "matrix", "power, wide prior"}


def fitted_logits(
    family: str, scores: np.ndarray, y: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Probabilities by the family's parameters of largest posterior density on these rows."""
    logits = FAMILIES[family]
    s, codes = torch.from_numpy(scores), torch.as_tensor(y)
    count = 2 + N_MORE.get(family, lambda k: 0)(s.shape[1])
    p = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    deviation = torch.ones_like(p)
    if family in WIDE:
        deviation[:2] = 3.0  # logarithms of scales
    optimizer = torch.optim.LBFGS([p], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        prior = (p / deviation).square().sum() / 2
        value = F.cross_entropy(logits(s, p), codes) + prior / len(codes)
        value.backward()
        return value

    optimizer.step(loss)
    found = p.detach()
    return lambda new: logits(torch.from_numpy(new), found).softmax(1).numpy()


def calibrations(scores: Scores) -> dict[str, np.ndarray]:
    """Probabilities of the test rows, by each way."""
    k = scores.test.shape[1]
    found = {
        "simplex projection": on_simplex(scores.test),
        "Gaussian posterior": softmax(scores.test / max(scores.variance, 0.01), axis=1),
    }
    for family in FAMILIES:
        for name, held in (("refitted", scores.seen), ("unseen", scores.unseen)):
            if name == "refitted" and family not in ("temperature", "power"):
                continue
            fit = fitted_logits(family, held, scores.y_valid)
            found[f"{family}, {name} rows"] = fit(scores.test)
    columns = slice(0, k - 1)  # they sum to one
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    discriminant.fit(scores.unseen[:, columns], scores.y_valid)
    if len(discriminant.classes_) == k:
        found["discriminant, unseen rows"] = discriminant.predict_proba(scores.test[:, columns])
    return found
