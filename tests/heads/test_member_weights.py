"""Weights of each member: solve, gradient and validation, as if members were trained alone."""

import pytest
import torch
from torch import nn

from sklearn_cfll import CFLLNet, ClosedFormLastLayer, EnsembleLastLayer, linalg
from sklearn_cfll.backbones import MLPBackbone
from sklearn_cfll.columns.rows import as_rows
from sklearn_cfll.training.batches import RowsDataset
from sklearn_cfll.training.errors import squared_error, training_error

M, D, K = 3, 5, 2


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, M * D, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, K, generator=generator, dtype=torch.float64)
    weights = torch.rand(n, M, generator=generator, dtype=torch.float64)
    return features, targets, weights * (torch.rand(n, M, generator=generator) > 0.3)


def heads(**options):
    options = {"ridge": 0.3, "dtype": torch.float64} | options
    ensemble = EnsembleLastLayer(M * D, K, n_members=M, **options)
    return ensemble, [ClosedFormLastLayer(D, K, **options) for _ in range(M)]


def assert_same(ensemble, alone):
    for member, layer in zip(ensemble.members, alone, strict=True):
        torch.testing.assert_close(member.weight, layer.weight)
        torch.testing.assert_close(member.bias, layer.bias)


@pytest.mark.parametrize("memory", ["proximal", "statistics"])
@pytest.mark.parametrize("n", [40, 4], ids=["primal", "dual"])
@pytest.mark.parametrize("total", [None, 40.0])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_updates_are_those_of_layers_on_their_own(memory, n, total, fit_intercept):
    features, targets, weights = draw(n)
    ensemble, alone = heads(memory=memory, fit_intercept=fit_intercept)
    for _ in range(3):
        ensemble.step(features, targets, weights, total)
        for i, layer in enumerate(alone):
            layer.step(features[:, i * D : (i + 1) * D], targets, weights[:, i], total)
    for member, layer in zip(ensemble.members, alone, strict=True):
        torch.testing.assert_close(member.weight, layer.weight)
        if fit_intercept:
            torch.testing.assert_close(member.bias, layer.bias)


def test_wide_members_are_solved_by_conjugate_gradients_each():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 2 * 150, generator=generator, dtype=torch.float64)
    targets = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    weights = torch.rand(200, 2, generator=generator, dtype=torch.float64)
    assert linalg.choose_solver(200, 150, 1, 5.0) == "cg"
    ensemble = EnsembleLastLayer(300, 1, n_members=2, ridge=5.0, dtype=torch.float64)
    alone = [ClosedFormLastLayer(150, 1, ridge=5.0, dtype=torch.float64) for _ in range(2)]
    ensemble.step(features, targets, weights)
    for i, layer in enumerate(alone):
        layer.step(features[:, i * 150 : (i + 1) * 150], targets, weights[:, i])
    assert_same(ensemble, alone)


def test_exact_fits_and_paths_are_those_of_layers_on_their_own():
    features, targets, weights = draw(40)
    ensemble, alone = heads()
    ensemble.refit([(features, targets, weights)], ridge=0.1)
    ridges = torch.tensor([0.01, 1.0])
    paths = ensemble.member_paths(ridges)
    for i, layer in enumerate(alone):
        layer.refit([(features[:, i * D : (i + 1) * D], targets, weights[:, i])], ridge=0.1)
        for found, expected in zip(paths, layer.ridge_path(ridges), strict=True):
            torch.testing.assert_close(found[i], expected)
    assert_same(ensemble, alone)


def test_equal_weights_of_members_are_weights_of_rows():
    features, targets, weights = draw(40)
    (one, _), (other, _) = heads(), heads()
    one.step(features, targets, weights[:, 0])
    other.step(features, targets, weights[:, :1].expand(-1, M))
    torch.testing.assert_close(one.weight, other.weight)


def test_positions_of_a_sample_share_its_weights():
    features, targets, weights = draw(24)
    (fields, _), (rows, _) = heads(), heads()
    each = weights[:6]
    fields.step(features.reshape(6, 4, -1), targets.reshape(6, 4, K), each[:, None])
    rows.step(features, targets, each.repeat_interleave(4, 0))
    torch.testing.assert_close(fields.weight, rows.weight)


def test_weights_of_another_number_of_members_are_named():
    features, targets, weights = draw(10)
    with pytest.raises(ValueError, match=r"last dimension of 3, one weight for each member.*10, 2"):
        heads()[0].step(features, targets, weights[:, :2])


def test_the_error_is_the_sum_over_members():
    features, targets, weights = draw(30)
    ensemble, alone = heads()
    ensemble.step(features, targets, weights)
    error, _ = training_error(ensemble, features, targets, weights)
    own = [
        squared_error(ensemble.members[i](features[:, i * D : (i + 1) * D]), targets, weights[:, i])
        for i in range(M)
    ]
    torch.testing.assert_close(error, sum(own))
    assert len(alone) == M


@pytest.mark.parametrize("order", ["last_layer_first", "backbone_first"])
def test_a_member_does_not_learn_from_rows_of_weight_zero(order):
    """Targets of a fold may be anything: the member that holds it out stays the same to the bit."""
    X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = X[:, :1].sin()
    fold = torch.arange(60) % M
    trained = (fold[:, None] != torch.arange(M)).double()
    predictions = []
    for shift in (0.0, 100.0):
        torch.manual_seed(0)
        net = CFLLNet(
            MLPBackbone((6,), n_members=M).build((4,), torch.Generator().manual_seed(0)).double(),
            last_layer=EnsembleLastLayer,
            last_layer__n_members=M,
            last_layer__in_features=M * 6,
            last_layer__out_features=1,
            update_order=order,
            max_epochs=4,
            batch_size=20,
            random_state=0,
            verbose=0,
        )
        changed = y + shift * (fold == 0).double()[:, None]
        net.fit(RowsDataset(as_rows(X, "cpu", torch.float64), changed, trained))
        with torch.no_grad():
            features = net.module_.features(X)
            predictions.append(net.module_.last_layer.member_predictions(features))
    assert torch.equal(predictions[0][0], predictions[1][0])
    assert not torch.allclose(predictions[0][1], predictions[1][1])


def test_validation_is_of_the_members_that_have_not_seen_a_row():
    features, targets, _ = draw(30)
    fold = torch.arange(30) % M
    unseen = (fold[:, None] == torch.arange(M)).double()
    net = CFLLNet(
        nn.Identity(),
        last_layer=EnsembleLastLayer,
        last_layer__n_members=M,
        last_layer__in_features=M * D,
        last_layer__out_features=K,
        last_layer__dtype=torch.float64,
        batch_size=7,
        verbose=0,
    ).initialize()
    head = net.module_.last_layer
    head.refit([(features, targets, 1.0 - unseen)], ridge=0.1)
    rows = RowsDataset(as_rows(features, "cpu", torch.float64), targets, M * unseen)
    own = head.member_predictions(features)[fold, torch.arange(30)]
    assert net.mean_loss(rows) == pytest.approx(float((own - targets).square().mean()))
