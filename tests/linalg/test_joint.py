"""Updates from summed moments are those of the rows themselves, however these are shared."""

import itertools

import pytest
import torch

from helpers import draw
from sklearn_cfll import linalg


def summed(parts, center=True):
    """Moments of all parts: what each worker would get."""
    blocks, sent = [linalg.joint_moments(*part, center=center) for part in parts], []

    def send(sums):
        sent.append(sums)
        return sums

    for block in blocks:
        linalg.summed_moments(block, send, center=center)
    return linalg.summed_moments(blocks[0], lambda _: sum(sent), center=center)


def rows(m, n, d, k, weights):
    features, targets = 3.0 * draw(m, n, d) + 5.0, draw(n, k, seed=1)
    shape = {"none": None, "rows": (n,), "members": (m, n)}[weights]
    return features, targets, None if shape is None else draw(*shape, seed=2).abs()


def shared(features, targets, weight, *cuts):
    edges = [0, *cuts, len(targets)]
    return [
        (features[:, a:b], targets[a:b], None if weight is None else weight[..., a:b])
        for a, b in itertools.pairwise(edges)
    ]


@pytest.mark.parametrize("weights", ["none", "rows", "members"])
@pytest.mark.parametrize("ridge", [0.0, 0.1, 5.0])
@pytest.mark.parametrize(("n", "d"), [(40, 16), (40, 160), (300, 160)])
def test_a_step_from_moments_is_that_of_the_rows(n, d, ridge, weights):
    features, targets, weight = rows(2, n, d, 2, weights)
    before = draw(2, 2, d, seed=3)
    block = summed(shared(features, targets, weight, n // 3))
    for solver in ("auto", "cholesky"):  # "auto" takes conjugate gradients for the widest
        options = {"ridge": ridge, "decay": 0.9, "total": float(n), "solver": solver}
        found = linalg.proximal_step_of_moments(block, before, **options)
        for j in range(2):
            own = weight if weight is None or weight.ndim == 1 else weight[j]
            wanted = linalg.proximal_step(
                features[j], targets, before[j], sample_weight=own, **options
            )
            for part, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(part[j], other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("center", [True, False])
def test_sums_are_the_moments_of_all_rows_even_if_a_worker_has_none(center):
    features, targets, weight = rows(1, 30, 4, 2, "rows")
    empty = features[:, :1], targets[:1], torch.zeros(1, dtype=torch.float64)
    found = summed([empty, *shared(features, targets, weight, 7)], center)
    for part, whole in zip(
        found, linalg.moments(features[0], targets, weight, center=center), strict=True
    ):
        torch.testing.assert_close(part[0], whole)


def test_a_large_common_mean_costs_no_digit_of_float32():
    features, targets, _ = rows(1, 200, 8, 1, "none")
    far = (features + 1e3).float()
    block = summed(shared(far, targets.float(), None, 50))
    exact = linalg.moments(far[0].double(), targets.float().double())
    torch.testing.assert_close(block.gram[0], exact.gram, rtol=1e-4, atol=1e-2)
