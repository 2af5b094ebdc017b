"""Every measure of the benchmarks: functions of predictions and the truth on test rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.stats import norm

BINS = 15  # of the expected calibration error
SMALLEST = 1e-7  # smaller probabilities count as this: a zero would make the log loss infinite


def relative_mse(prediction: np.ndarray, y: np.ndarray) -> float:
    """Mean squared error in units of the variance of ``y``."""
    return float(np.mean(np.square(np.ravel(prediction) - y)) / y.var())


def mean_squared_error(predict: Any, rows: tuple[np.ndarray, np.ndarray]) -> float:
    X, y = rows
    return float(np.square(predict(X).reshape(y.shape) - y).mean())


def of_regression(
    y: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray | None = None,
    interval: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Error, log-likelihood of a normal, squared residual over deviation, coverage."""
    mean = np.asarray(mean, dtype=float)
    found = {"rmse": float(np.sqrt(np.mean((mean - y) ** 2)))}
    if std is not None:
        std = np.asarray(std, dtype=float)
        found["log_likelihood"] = float(norm.logpdf(y, mean, std).mean())
        found["squared_z"] = float(np.mean(((y - mean) / std) ** 2))
    if interval is not None:
        lower, upper = interval
        found["coverage"] = float(np.mean((lower <= y) & (y <= upper)))
    return found


def of_classes(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss, Brier score (summed over classes), expected calibration error.

    The last is over ``BINS`` bins with equally many rows, by the largest probability of a row.
    """
    kept = probabilities.clip(SMALLEST)
    kept = kept / kept.sum(1, keepdims=True)
    right = kept.argmax(1) == y
    order = kept.max(1).argsort(kind="stable")
    gaps = [
        len(part) * abs(right[part].mean() - kept[part].max(1).mean())
        for part in np.array_split(order, BINS)
        if len(part)
    ]
    return {
        "accuracy": float(right.mean()),
        "log_loss": float(-np.log(kept[np.arange(len(y)), y]).mean()),
        "brier": float(np.square(kept - np.eye(kept.shape[1])[y]).sum(1).mean()),
        "ece": float(sum(gaps) / len(y)),
    }


def relative_l2(prediction: np.ndarray, y: np.ndarray) -> float:
    """Mean over samples of ‖prediction - y‖ / ‖y‖."""
    error, size = ((part**2).reshape(len(y), -1).sum(1) for part in (prediction - y, y))
    return float(np.sqrt(error / size).mean())


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds of the block: ``seconds`` by the clock, ``cpu_seconds`` of the process."""
    found: dict[str, float] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    yield found
    found["seconds"] = time.perf_counter() - start
    found["cpu_seconds"] = time.process_time() - start_cpu
