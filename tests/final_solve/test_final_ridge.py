"""The final solve without held-out rows chooses its own ridge, and is no worse than training."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1
from torch import nn

from sklearn_cfll import CFLLNet, CFLLRegressor, ClosedFormLastLayer, EnsembleLastLayer, linalg

RIDGES = torch.tensor(linalg.RIDGES, dtype=torch.float64)


def rows(n=60, d=6, k=2, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    features = draw(n, d) * torch.logspace(0, -2, d, dtype=torch.float64) + 3.0
    return features, features @ draw(d, k) + noise * draw(n, k)


# -- generalised cross-validation --------------------------------------------------------------


@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("optimism", [1.0, 2.0])
def test_errors_equal_those_of_the_hat_matrix(fit_intercept, weighted, optimism):
    features, targets = rows()
    counts = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(1))
    weights = counts.double() if weighted else None
    block = linalg.moments(features, targets, weights, center=fit_intercept)
    found, _ = linalg.cross_validation_errors(
        block, RIDGES[8:], optimism=optimism, fit_intercept=fit_intercept
    )
    if weighted:  # a weight is a number of repetitions
        features = features.repeat_interleave(counts, 0)
        targets = targets.repeat_interleave(counts, 0)
    n = len(features)
    if fit_intercept:
        features, targets = features - features.mean(0), targets - targets.mean(0)
    power = features.square().mean()
    for ridge, error in zip(RIDGES[8:], found, strict=True):
        penalty = n * ridge * power * torch.eye(6).double()
        hat = features @ torch.linalg.solve(features.T @ features + penalty, features.T)
        left = (targets - hat @ targets).square().sum() / n
        share = (hat.trace() + fit_intercept) / n
        torch.testing.assert_close(error, left / (1 - optimism * share) ** 2, rtol=1e-9, atol=0)


def test_a_fit_that_takes_up_all_rows_is_not_chosen():
    features, targets = rows(8, 20, noise=0.0)
    errors, _ = linalg.cross_validation_errors(
        linalg.moments(features, targets), RIDGES, optimism=2.0
    )
    assert torch.isinf(errors[0]) and torch.isfinite(errors[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_equally_exact_fits_the_largest_ridge_is_taken(dtype):
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(-3, 4, (400, 4), generator=generator).double()
    targets = features @ torch.ones(4, 2).double()
    layer = ClosedFormLastLayer(4, 2, dtype=dtype)
    layer.refit([(features.to(dtype), targets.to(dtype))])
    assert layer.final_ridge > 1e-8
    assert F.mse_loss(layer(features.to(dtype)), targets.to(dtype)) < 1e-8


@pytest.mark.parametrize("n_rows", [1, 2, 5, 30, 400])
@pytest.mark.parametrize("targets", ["constant", "one_constant", "zero"])
def test_targets_that_do_not_vary_leave_finite_weights(n_rows, targets):
    features, wanted = rows(n_rows)
    wanted = {"constant": wanted * 0 + 7, "zero": wanted * 0, "one_constant": wanted.clone()}[
        targets
    ]
    wanted[:, 1] = wanted[0, 1]
    layer = ClosedFormLastLayer(6, 2, dtype=torch.float64).refit([(features, wanted)])
    assert torch.isfinite(layer.weight).all()
    torch.testing.assert_close(layer(features)[:, 1], wanted[:, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [1e-6, 1.0, 7.0, 1e6])
def test_rows_behind_weights(factor):
    counts = torch.tensor([1.0, 3.0, 0.0, 2.0, 2.0])
    assert linalg.count_rows(factor * counts) == 8
    assert linalg.count_rows(factor * torch.tensor([1.0, 1.37, 2.2, 0.0, 3.14])) == 4
    assert linalg.count_rows(factor * torch.tensor([1.0, 1.0, 1e12])) == 3
    assert linalg.count_rows(torch.zeros(3)) == 0


def test_weighted_refit_equals_that_of_repeated_rows():
    features, targets = rows()
    counts = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(1))
    weighted = ClosedFormLastLayer(6, 2, dtype=torch.float64)
    weighted.refit(
        [(features[:20], targets[:20], counts[:20]), (features[20:], targets[20:], counts[20:])]
    )
    repeated = ClosedFormLastLayer(6, 2, dtype=torch.float64)
    repeated.refit([(features.repeat_interleave(counts, 0), targets.repeat_interleave(counts, 0))])
    assert weighted.final_ridge == repeated.final_ridge
    torch.testing.assert_close(weighted.weight, repeated.weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n_rows", [30, 59])
def test_few_rows_are_not_fitted_much_worse_than_by_training(n_rows):
    features, targets = rows(n_rows, noise=0.1)
    block = linalg.moments(features, targets)
    ridge = linalg.final_ridge([block], n_rows)
    near = linalg.solve_moments(block, 1e-6)
    assert linalg.final_ridge([block], n_rows, trained=[near]) <= ridge
    far = (torch.zeros(2, 6).double(), None)  # nothing was trained
    assert linalg.final_ridge([block], n_rows, trained=[far]) == ridge
    weight, bias = linalg.solve_moments(block, linalg.final_ridge([block], 30, trained=[near]))
    left = (targets - features @ weight.T - bias).square().sum()
    torch.testing.assert_close(linalg.residual_square(block, weight, bias), left)
    assert left <= 1.5 * linalg.residual_square(block, *near)


# -- the layer ---------------------------------------------------------------------------------


def test_refit_never_takes_the_ridge_of_the_batches():
    features, targets = rows(400)
    found = [
        ClosedFormLastLayer(6, 2, ridge=ridge, dtype=torch.float64).refit([(features, targets)])
        for ridge in (1e-3, 15.0, 1e4)
    ]
    assert len({layer.final_ridge for layer in found}) == 1
    assert found[0].final_ridge < 0.1
    assert all(torch.equal(layer.weight, found[0].weight) for layer in found)


def test_a_given_ridge_is_taken():
    features, targets = rows()
    layer = ClosedFormLastLayer(6, 2, dtype=torch.float64).refit([(features, targets)], ridge=0.2)
    assert layer.final_ridge == 0.2
    weight, _ = linalg.solve_moments(linalg.moments(features, targets), 0.2)
    torch.testing.assert_close(layer.weight, weight)


@pytest.mark.parametrize("members", [1, 2])
def test_more_rows_are_solved_with_the_chosen_ridge(members):
    features, targets = rows(40)
    more = rows(25, seed=1)
    make = {
        1: lambda: ClosedFormLastLayer(6, 2, dtype=torch.float64),
        2: lambda: EnsembleLastLayer(6, 2, n_members=2, dtype=torch.float64),
    }[members]
    layer = make().refit([(features, targets)])
    ridge = layer.final_ridge
    layer.accumulate(*more).solve()
    together = make().refit([(features, targets), more], ridge=ridge)
    assert layer.final_ridge == ridge
    new = rows(7, seed=2)[0]
    torch.testing.assert_close(layer(new), together(new), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.variance(new), together.variance(new), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(layer.to_linear()(new), layer(new))


def test_what_was_chosen_is_part_of_the_state():
    features, targets = rows()
    layer = ClosedFormLastLayer(6, 2, dtype=torch.float64).refit([(features, targets)])
    loaded = ClosedFormLastLayer(6, 2, dtype=torch.float64)
    assert loaded.final_ridge is None
    loaded.load_state_dict(layer.state_dict())
    assert loaded.final_ridge == layer.final_ridge
    assert torch.equal(loaded.variance(features), layer.variance(features))
    more = rows(9, seed=1)
    assert torch.equal(
        loaded.accumulate(*more).solve().weight, layer.accumulate(*more).solve().weight
    )
    layer.update(*more)
    assert layer.final_ridge is None  # the weights are no longer those of the solve


def test_members_share_the_ridge_with_the_least_sum_of_errors():
    features, targets = rows(50)
    together = EnsembleLastLayer(6, 2, n_members=2, dtype=torch.float64)
    together.refit([(features[:30], targets[:30]), (features[30:], targets[30:])])
    blocks = [linalg.moments(part, targets) for part in features.split(3, 1)]
    assert together.final_ridge == linalg.final_ridge(blocks, 50)
    assert {member.final_ridge for member in together.members} == {together.final_ridge}


def test_accumulated_rows_are_solved_without_a_refit():
    features, targets = rows(400)
    layer = ClosedFormLastLayer(6, 2, ridge=15.0, dtype=torch.float64)
    layer.accumulate(features, targets).solve()
    refitted = ClosedFormLastLayer(6, 2, dtype=torch.float64).refit([(features, targets)])
    assert layer.final_ridge == refitted.final_ridge


def test_no_rows_are_named():
    with pytest.raises(ValueError, match="`batches` has no rows.*exhausted"):
        ClosedFormLastLayer(6, 2).refit(iter([]))


# -- after training ----------------------------------------------------------------------------


def loop(n, noise, width=64, ridge=15.0, epochs=25):
    """A network trained by a loop of one's own, with its training rows and fresh ones."""
    generator = torch.Generator().manual_seed(0)
    X = torch.rand(n + 2000, 4, generator=generator) * 2 - 1
    y = torch.sin(3 * X[:, :1] * X[:, 1:2]) + torch.cos(4 * X[:, 2:3]) * X[:, 3:]
    y = y + noise * torch.randn(len(y), 1, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    head = ClosedFormLastLayer(width, 1, ridge=ridge)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-2)
    for _ in range(epochs):
        for part in torch.randperm(n, generator=generator).split(50):
            loss = F.mse_loss(head.update(backbone(X[part]), y[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return backbone, head, (X[:n], y[:n]), (X[n:], y[n:])


@pytest.mark.parametrize(
    ("n", "noise", "most"),
    # On the smallest, cleanest tables the rule is a few percent too careful.
    [(100, 0.0, 1.06), (100, 0.5, 1.0), (600, 0.0, 0.9), (800, 0.5, 1.0)],
)
def test_refit_after_a_loop_is_no_worse_than_what_training_left(n, noise, most):
    backbone, head, (X, y), (X_test, y_test) = loop(n, noise)
    with torch.no_grad():
        error = lambda: float(F.mse_loss(head(backbone(X_test)), y_test))  # noqa: E731
        before = error()
        head.refit((backbone(X[part]), y[part]) for part in torch.arange(n).split(64))
        assert error() < most * before


def test_rows_of_a_net_are_refitted_alike():
    X, y = make_friedman1(400, n_features=5, noise=0.5, random_state=0)
    X, y = X.astype("float32"), y.astype("float32")[:, None]
    y = (y - y.mean()) / y.std()
    net = CFLLNet(
        nn.Sequential(nn.Linear(5, 32), nn.ReLU()),
        last_layer__in_features=32,
        last_layer__out_features=1,
        last_layer__ridge=15.0,
        max_epochs=10,
        lr=0.02,
        verbose=0,
    ).fit(X[:300], y[:300])
    error = lambda: float(np.square(net.predict(X[300:]) - y[300:]).mean())  # noqa: E731
    before, layer = error(), net.module_.last_layer
    layer.refit(net.labelled_features(X[:300], y[:300]))
    assert layer.final_ridge < 1.0
    assert error() < 1.02 * before


SETS = {
    "diabetes": lambda: load_diabetes(return_X_y=True),
    "friedman1": lambda: make_friedman1(600, noise=0.5, random_state=0),
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "digits": lambda: (load_digits(return_X_y=True)[0], np.eye(10)[load_digits().target]),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("n", [40, 60, 150])
def test_estimator_without_held_out_rows_is_no_worse_for_its_refit(name, n):
    X, y = SETS[name]()
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    settings = {"hidden_layer_sizes": (32, 32), "max_epochs": 20, "early_stopping": False}
    settings |= {"random_state": 0}
    errors = []
    for refit in (False, True):
        model = CFLLRegressor(refit_last_layer=refit, **settings).fit(X[:n], y[:n])
        errors.append(np.square(model.predict(X[n:]) - y[n:]).mean())
    assert errors[1] < 1.05 * errors[0]


def smooth_fields(n):
    """Fields of 64 points and their images under a smooth nonlinear map, noise-free."""
    generator = np.random.default_rng(0)
    x = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    waves = np.stack([f(k * x) for k in (1, 2, 3) for f in (np.sin, np.cos)])
    X = generator.normal(size=(n, 6)) @ waves
    return X, np.roll(X, 5, axis=1) * X + np.sin(X)


class Fields(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)  # whoever builds it sees to the global state
        convolve = lambda i, o: nn.Conv1d(i, o, 13, padding=6, padding_mode="circular")  # noqa: E731
        self.layers = nn.Sequential(convolve(1, 24), nn.GELU(), convolve(24, 24), nn.GELU())

    def forward(self, fields):
        return self.layers(fields[:, None]).movedim(1, -1)


def test_clean_fields_are_not_ruined_by_the_final_ridge():
    X, y = smooth_fields(160)
    settings = {"max_epochs": 20, "batch_size": 20, "learning_rate": 0.01, "random_state": 0}
    settings |= {"precision": "float32", "ridge": 1e-3, "early_stopping": False}

    def error(model):
        return np.square(model.predict(X[100:]) - y[100:]).mean() ** 0.5

    with torch.random.fork_rng():
        module = Fields()
    trained = CFLLRegressor(module, refit_last_layer=False, **settings).fit(X[:100], y[:100])
    model = CFLLRegressor(module, **settings).fit(X[:100], y[:100])
    chosen = error(model)
    assert chosen < error(trained)
    model.net_.module_.last_layer.solve(0.001)
    assert chosen < error(model)


@pytest.mark.parametrize("n", [3, 10, 19])
def test_weights_equal_repetitions_where_the_ridge_is_chosen(n):
    X, y = make_friedman1(n, n_features=5, noise=0.5, random_state=0)
    times = np.random.default_rng(1).integers(1, 4, n)
    times[0] = 1
    settings = {"hidden_layer_sizes": (16,), "max_epochs": 5, "random_state": 0}
    settings["early_stopping"] = False
    weighted = CFLLRegressor(**settings).fit(X, y, times)
    repeated = CFLLRegressor(**settings).fit(X.repeat(times, 0), y.repeat(times))
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6)
