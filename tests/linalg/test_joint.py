"""Updates from summed moments are those of the rows themselves, however these are shared."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

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


def together(parts, step):
    """What each of several workers, here threads, gets from ``step(part, add)``."""
    meeting, sent = threading.Barrier(len(parts), timeout=20), {}

    def work(rank):
        def add(sums):
            sent[rank] = sums
            meeting.wait()
            total = sum(sent[i] for i in range(len(parts)))
            meeting.wait()  # before another sum begins
            return total

        return step(parts[rank], add)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(work, range(len(parts))))


@pytest.mark.parametrize("weights", ["none", "rows"])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("cuts", [(100,), (0, 250)], ids=["two", "three, one without rows"])
def test_a_step_by_gradients_is_that_of_all_rows(cuts, fit_intercept, weights):
    features, targets, weight = rows(1, 300, 160, 2, weights)
    before = draw(2, 160, seed=3)
    options = {"ridge": 5.0, "decay": 0.9, "fit_intercept": fit_intercept}

    def step(part, add):
        own, wanted, own_weight = part
        n_rows = float(len(wanted))
        if not n_rows:  # a row that weighs nothing stands for none
            own, wanted, own_weight = features[:, :1], targets[:1], torch.zeros(1).double()
        return linalg.proximal_step_of_parts(
            own[0], wanted, before, n_rows, add, sample_weight=own_weight, **options
        )

    found = together(shared(features, targets, weight, *cuts), step)
    expected = linalg.proximal_step(
        features[0], targets, before, sample_weight=weight, total=300.0, **options
    )
    for each in found:
        for part, first, other in zip(each, found[0], expected, strict=True):
            assert torch.equal(part, first)
            torch.testing.assert_close(part, other, rtol=1e-8, atol=1e-9)


def test_without_variation_or_with_few_rows_moments_decide():
    features, targets, _ = rows(1, 300, 160, 1, "none")
    options = {"ridge": 5.0}
    for given in (features[0, :90], 1e-9 * features[0] + 1e3):
        n_rows, before = len(given), draw(1, 160, seed=3)
        assert (
            linalg.proximal_step_of_parts(
                given, targets[:n_rows], before, n_rows, lambda sums: sums, **options
            )
            is None
        )


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
