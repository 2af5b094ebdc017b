"""Exported modules and ONNX files compute what the estimator does."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_cfll import CFLLClassifier, CFLLRegressor

SMALL = dict(hidden_layer_sizes=(16, 8), n_members=3, max_epochs=3, random_state=0)
ONNX = all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))


def numbers(n=200):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    return X, X[:, 0] * X[:, 1] + 0.3 * (1 + np.abs(X[:, 2])) * rng.normal(size=n)


def labels(y, kind):
    if kind == "binary":
        return y > 0
    if kind == "classes":
        return np.digitize(y, [-0.3, 0.3])
    return np.column_stack([y > 0, y > 0.5]).astype(int)


def applied(module, rows):
    with torch.no_grad():
        found = module(torch.as_tensor(rows))
    return [part.numpy() for part in found] if isinstance(found, tuple) else found.numpy()


@pytest.mark.parametrize("kind", ["binary", "classes", "labels"])
def test_probabilities(kind):
    X, y = numbers()
    model = CFLLClassifier(**SMALL).fit(X, labels(y, kind))
    found = applied(model.to_torch("probabilities"), model.encode(X))
    np.testing.assert_allclose(found, model.predict_proba(X), rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"linear_part": True},
        {"linear_part": False, "n_members": 1},
        {"precision": "float64", "normalize_y": False},
        {"cross_fit": False},
    ],
)
@pytest.mark.parametrize("n_targets", [1, 2])
def test_means_and_deviations(options, n_targets):
    X, y = numbers()
    y = 100 * y + 7 if n_targets == 1 else np.column_stack([100 * y + 7, X[:, 3] + 0.1 * y])
    model = CFLLRegressor(**{**SMALL, **options}).fit(X, y)
    mean, std = applied(model.to_torch("mean_std"), model.encode(X))
    expected = model.predict(X, return_std=True)
    np.testing.assert_allclose(mean.reshape(expected[0].shape), expected[0], rtol=2e-4, atol=2e-3)
    np.testing.assert_allclose(std.reshape(expected[1].shape), expected[1], rtol=2e-4)


def test_noise_that_varies_is_exported():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(3000, 1))
    y = np.exp(X[:, 0]) * rng.normal(size=3000)
    model = CFLLRegressor(hidden_layer_sizes=(16,), max_epochs=5, random_state=0).fit(X, y)
    std = applied(model.to_torch("mean_std"), model.encode(X))[1][:, 0]
    assert std.max() > 2 * std.min()
    np.testing.assert_allclose(std, model.predict(X, return_std=True)[1], rtol=1e-4)


def test_outputs_that_an_estimator_does_not_have():
    X, y = numbers(60)
    regressor, classifier = CFLLRegressor(**SMALL).fit(X, y), CFLLClassifier(**SMALL).fit(X, y > 0)
    with pytest.raises(ValueError, match="`output` must be one of 'prediction'.*got 'std'"):
        regressor.to_torch("std")
    with pytest.raises(ValueError, match="not available for a CFLLRegressor.*'mean_std'"):
        regressor.to_torch("probabilities")
    with pytest.raises(ValueError, match="not available for a CFLLClassifier.*'probabilities'"):
        classifier.to_torch("mean_std")
    without = CFLLRegressor(**SMALL, early_stopping=False).fit(X, y)
    with pytest.raises(ValueError, match="held out"):
        without.to_torch("mean_std")


@pytest.mark.skipif(ONNX, reason="what ONNX files need is installed")
def test_missing_packages_are_named(tmp_path):
    X, y = numbers(60)
    with pytest.raises(ImportError, match=r"sklearn-cfll\[onnx\]"):
        CFLLRegressor(**SMALL).fit(X, y).to_onnx(tmp_path / "model.onnx", X)


@pytest.mark.skipif(not ONNX, reason="onnx, onnxscript or onnxruntime is missing")
@pytest.mark.parametrize("output", ["prediction", "probabilities"])
def test_onnx_files(output, tmp_path):
    pandas, runtime = pytest.importorskip("pandas"), pytest.importorskip("onnxruntime")
    X, y = numbers()
    X = pandas.DataFrame(X).assign(kind=np.where(X[:, 3] > 0, "up", "down"))
    X.columns = list(map(str, X.columns))
    X.loc[::9, "1"] = None
    if output == "probabilities":
        model = CFLLClassifier(**SMALL).fit(X, labels(y, "classes"))
        expected = [model.predict_proba(X)]
    else:
        model = CFLLRegressor(**SMALL, linear_part=True).fit(X, y)
        expected = [model.predict(X)[:, None]]
    model.to_onnx(tmp_path / "model.onnx", X[:1], output)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    for n in (1, 50, len(X)):
        found = session.run(None, {"X": model.encode(X[:n])})
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other[:n], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not ONNX, reason="onnx, onnxscript or onnxruntime is missing")
def test_onnx_files_of_plain_numbers_take_any_number_of_rows(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    X, y = numbers()
    X[:, 3] = np.exp(2 * X[:, 3])  # its quantiles are uneven
    model = CFLLRegressor(**SMALL).fit(X, y)
    model.to_onnx(tmp_path / "model.onnx", X[:3], "mean_std")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, {"X": model.encode(X)})
    for one, other in zip(found, model.predict(X, return_std=True), strict=True):
        np.testing.assert_allclose(one[:, 0], other, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not ONNX, reason="onnx, onnxscript or onnxruntime is missing")
def test_onnx_file_of_named_inputs(tmp_path):
    runtime = pytest.importorskip("onnxruntime")

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(4, 8), nn.Linear(2, 8)

        def forward(self, one, other):
            return torch.relu(self.one(one) + self.other(other))

    X, y = numbers()
    X = {"one": X.astype(np.float32), "other": X[:, :2].astype(np.float32)}
    model = CFLLRegressor(Sum(), max_epochs=2, random_state=0).fit(X, y)
    model.to_onnx(tmp_path / "model.onnx", X)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    found = session.run(None, model.encode(X))[0][:, 0]
    np.testing.assert_allclose(found, model.predict(X), rtol=1e-3, atol=1e-4)
