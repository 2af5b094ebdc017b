"""Streams: rows that are read in blocks are fitted like rows in memory."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from sklearn_cfll import CFLLClassifier, CFLLRegressor, linalg
from sklearn_cfll.data.blocks import Block, cut
from sklearn_cfll.estimator import known_rows, streaming

N, P = 3000, 4
# Streams have no local part: what is compared with them has none either.
SMALL = {
    "hidden_layer_sizes": (16, 16),
    "max_epochs": 3,
    "random_state": 0,
    "local_part": False,
}


def make_data(n_rows=N):
    random = np.random.default_rng(0)
    X = random.normal(size=(n_rows, P))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] + 0.1 * random.normal(size=n_rows)


class Rows(IterableDataset):
    """A user's stream of pairs."""

    def __init__(self, *parts):
        self.parts = parts

    def __iter__(self):
        return iter(zip(*self.parts, strict=True))


class InBlocks:
    """A source that gives blocks, in another order for each seed."""

    def __init__(self, X, y, size, sample_weight=None):
        self.rows, self.size = Block(X, y, sample_weight), size
        self.orders = []

    def blocks(self, seed=None):
        starts = np.arange(0, len(self.rows), self.size)
        self.orders.append(seed)
        if seed is not None:
            starts = np.random.default_rng(seed).permutation(starts)
        for start in starts:
            yield self.rows.part(start, min(start + self.size, len(self.rows)))


@pytest.fixture(autouse=True)
def few_rows_in_memory(monkeypatch):
    """A sample of 500 rows, and blocks of 1,000: the stream is larger than both."""
    monkeypatch.setattr(streaming, "ENTRIES", 500 * P)
    monkeypatch.setattr(streaming, "MOST_IN_BLOCK", 500)


SOURCES = {
    "iterable": lambda X, y: Rows(X, y),
    "loader": lambda X, y: DataLoader(
        TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=70, shuffle=True
    ),
    "blocks": lambda X, y: InBlocks(X, y, 130),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_stream_is_fitted_and_predicted(source):
    X, y = make_data()
    before = torch.random.get_rng_state()
    model = CFLLRegressor(**SMALL).fit(source(X, y))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert model.n_features_in_ == P
    in_memory = CFLLRegressor(**SMALL).fit(X, y)
    error = np.mean((model.predict(X) - y) ** 2)
    # Batches differ, and after three epochs of networks of 16 units so do errors.
    assert error < 1.5 * np.mean((in_memory.predict(X) - y) ** 2)
    assert model.oof_score_ == pytest.approx(in_memory.oof_score_, abs=0.05)
    low, high = model.predict_interval(X)
    assert 0.8 < np.mean((low <= y) & (y <= high)) < 1.0
    with pytest.raises(AttributeError, match="stream"):
        model.oof_prediction_  # noqa: B018


@pytest.mark.parametrize("n_members", [1, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_last_layer_is_the_exact_fit_to_all_rows_of_a_stream(n_members, weighted):
    X, y = make_data()
    weight = 1.0 + np.arange(N) % 3 if weighted else None
    model = CFLLRegressor(**SMALL, n_members=n_members, precision="float64")
    model.fit(InBlocks(X, y, 130, weight))
    fitted = model._model
    rows = fitted.plan.rows(X, lazy=False).take(slice(None))
    with torch.no_grad():
        features = fitted.module.features(rows)
    targets = torch.from_numpy(fitted.plan.scale.transform(y[:, None]))
    weights = None if weight is None else torch.from_numpy(weight)
    for member, own in zip(fitted.head.members, features.chunk(n_members, 1), strict=True):
        block = linalg.moments(own, targets, weights)
        expected, _ = linalg.solve_moments(block, fitted.final_ridge)
        torch.testing.assert_close(member.weight, expected, rtol=1e-6, atol=1e-8)


def test_no_member_sees_its_own_fold_in_whatever_order_rows_come():
    X, y = make_data()
    held = {}
    for order in (np.arange(N), np.random.default_rng(1).permutation(N)):
        model = CFLLRegressor(**SMALL).fit(InBlocks(X[order], y[order], 130))
        checked = streaming.check_data(model, X, y, None, plan=model._model.plan, min_samples=1)
        numbers = known_rows.checksums(model._model.plan.dataset(checked)) % np.uint64(8)
        held[len(held)] = numbers
        assert np.bincount(numbers.astype(int), minlength=8).min() > N / 8 * 0.8
    # The scale of the targets follows from a sample, so only equal rows of one fit are compared.
    assert all(len(numbers) == N for numbers in held.values())


def test_equal_rows_have_equal_checksums_and_others_do_not():
    X, y = make_data(500)
    X[0], y[0] = X[7], y[7]
    model = CFLLRegressor(**SMALL).fit(X, y)
    checked = streaming.check_data(model, X, y, None, plan=model._model.plan, min_samples=1)
    rows = model._model.plan.dataset(checked)
    numbers = known_rows.checksums(rows)
    assert numbers[0] == numbers[7] and len(np.unique(numbers)) == 499
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(known_rows.checksums(rows.subset(order)), numbers[order])


def test_each_epoch_reads_the_blocks_in_another_order_that_the_seed_determines():
    X, y = make_data()
    orders, predictions = [], []
    for _ in range(2):
        source = InBlocks(X, y, 130)
        predictions.append(CFLLRegressor(**SMALL).fit(source).predict(X))
        orders.append([seed for seed in source.orders if seed is not None])
    assert len(set(orders[0])) == SMALL["max_epochs"]
    assert orders[0] == orders[1]
    np.testing.assert_array_equal(*predictions)


def test_a_label_of_a_single_row_is_known():
    X, y = make_data()
    labels = np.where(y > 0, "high", "low").astype(object)
    labels[1234] = "rare"
    model = CFLLClassifier(**SMALL).fit(InBlocks(X, labels, 130))
    assert model.classes_.tolist() == ["high", "low", "rare"]
    assert np.mean(model.predict(InBlocks(X, None, 130)) == labels) > 0.8


def test_a_pass_over_a_stream_is_a_partial_fit_of_each_block():
    X, y = make_data(600)
    whole = CFLLRegressor(**SMALL).partial_fit(InBlocks(X, y, 200))
    steps = CFLLRegressor(**SMALL)
    for start in range(0, 600, 200):
        steps.partial_fit(X[start : start + 200], y[start : start + 200])
    np.testing.assert_array_equal(whole.predict(X), steps.predict(X))


def test_blocks_are_cut_to_size():
    rows = Block(np.arange(10)[:, None], np.arange(10))
    blocks = [rows.part(0, 3), rows.part(3, 4), rows.part(4, 10)]
    found = list(cut(blocks, [5, 4, 1]))
    assert [len(block) for block in found] == [5, 4, 1]
    np.testing.assert_array_equal(np.concatenate([block.y for block in found]), rows.y)
    assert [len(block) for block in cut(blocks, [6, 6])] == [6]  # too few


class Once(IterableDataset):
    """A mistake: it can be read only once."""

    def __init__(self, X, y):
        self.rows = zip(X, y, strict=True)

    def __iter__(self):
        return self.rows


BAD = {
    "read once": (lambda X, y: (Once(X, y),), {}, "exhausted after one pass"),
    "nothing": (lambda X, y: (Rows(X[:0], y[:0]),), {}, "no rows"),
    "no targets": (lambda X, y: (Rows(X),), {}, "no targets"),
    "targets twice": (lambda X, y: (Rows(X, y), y), {}, "`y` cannot be given"),
    "full": (lambda X, y: (Rows(X, y),), {"batch_size": "full"}, "full"),
    "target": (lambda X, y: (Rows(X, np.where(np.arange(600) == 77, np.nan, y)),), {}, "row 77 of"),
    "input": (lambda X, y: (Rows(np.where(X[77, 1] == X, np.inf, X), y),), {}, "row 77 of"),
    "lengths": (lambda X, y: (DataLoader(list(zip(X, y, strict=True)), None),), {}, "`batch_size`"),
    "shapes": (lambda X, y: (Rows([*X[:-1], X[0, :2]], y),), {}, "number 599 .* shape .2,."),
}


@pytest.mark.parametrize(("arguments", "options", "message"), BAD.values(), ids=BAD)
def test_what_a_stream_cannot_do_is_said(arguments, options, message):
    X, y = make_data(600)
    model = CFLLRegressor(**SMALL | options)
    with pytest.raises(ValueError, match=message):
        model.fit(*arguments(X, y))
    assert not hasattr(model, "n_features_in_")


def test_balanced_classes_need_all_rows():
    X, y = make_data(600)
    with pytest.raises(ValueError, match="balanced"):
        CFLLClassifier(**SMALL, class_weight="balanced").fit(Rows(X, y > 0))


def test_methods_that_need_rows_by_index_refuse_a_stream():
    X, y = make_data(600)
    model = CFLLRegressor(**SMALL).fit(X, y)
    with pytest.raises(TypeError, match="read in order"):
        model.predict_interval(Rows(X, y))


def test_a_failed_fit_to_a_stream_leaves_the_previous_one():
    X, y = make_data(600)
    model = CFLLRegressor(**SMALL).fit(X, y)
    before = model.predict(X)
    with pytest.raises(ValueError, match="exhausted"):
        model.fit(Once(X, y))
    np.testing.assert_array_equal(model.predict(X), before)


def test_few_rows_judge_without_changing_the_exact_fit():
    """In memory too: the moments of all rows are those of folds, added up."""
    X, y = make_data()
    options = SMALL | {"precision": "float64", "linear_part": False}

    class Few(CFLLRegressor):
        defaults = dataclasses.replace(CFLLRegressor.defaults, most_judged=500)

    few, many = Few(**options).fit(X, y), CFLLRegressor(**options).fit(X, y)
    assert few.oof_prediction_.shape == (N,)
    few._model.head.solve(many.final_ridge_)
    few.final_ridge_ == many.final_ridge_  # noqa: B015
    np.testing.assert_allclose(few.predict(X), many.predict(X), rtol=1e-6, atol=1e-8)
    assert few.oof_score_ == pytest.approx(many.oof_score_, abs=0.03)


@pytest.mark.parametrize("fitted", [False, True])
def test_a_block_that_fails_undoes_the_blocks_before(fitted):
    X, y = make_data(600)
    model = CFLLRegressor(**SMALL)
    before = model.fit(X, y).predict(X) if fitted else None
    with pytest.raises(ValueError, match="NaN"):
        model.partial_fit(InBlocks(X, np.where(np.arange(600) == 599, np.nan, y), 100))
    if fitted:
        np.testing.assert_array_equal(model.predict(X), before)
    else:
        assert not hasattr(model, "n_features_in_")


def test_what_can_be_read_only_once_is_named():
    X, y = make_data(600)
    with pytest.raises(TypeError, match="generator, which can be read only once"):
        CFLLRegressor(**SMALL).fit((row, target) for row, target in zip(X, y, strict=True))


@pytest.mark.parametrize("change", [-7, 7])
def test_another_number_of_rows_in_a_later_pass_is_named(change):
    X, y = make_data(1207)

    class Changing:
        passes = 0

        def blocks(self, seed=None):
            self.passes += 1
            n_rows = 1200 + (change if self.passes == 3 else 0)
            yield Block(X[:n_rows], y[:n_rows])

    with pytest.raises(ValueError, match="same rows each time"):
        CFLLRegressor(**SMALL).fit(Changing())


def test_copies_of_rows_are_in_several_folds():
    """Of a few different rows, a member would otherwise never see one target of them."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 3, (2000, 2)).astype(float)
    y = (rng.random(2000) < 0.2 + 0.2 * X[:, 0]).astype(int)
    settings = SMALL | {"max_epochs": 8}
    stream = CFLLClassifier(**settings).fit(InBlocks(X, y, 500))
    in_memory = CFLLClassifier(**settings).fit(X, y)
    assert stream.oof_score_ == pytest.approx(in_memory.oof_score_, abs=0.03)
    proba = stream.predict_proba(X)[:, 1]
    np.testing.assert_allclose(proba, in_memory.predict_proba(X)[:, 1], atol=0.08)
