"""Data sets, models and measures of the classification study."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from classification_calibration import calibrations, fitted_logits, scores_of
from common import keep_best, train
from scipy.special import softmax
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, OneHotEncoder, StandardScaler
from torch import nn

from sklearn_cfll import CFLLClassifier
from sklearn_cfll.backbones import MLPBackbone

MOST_ROWS = 8000  # of training: what a minute a model allows
HELD_OUT = 0.1
BINS = 15
SMALLEST = 1e-7  # probabilities below count as this: a zero would make the log loss infinite


@dataclass
class Split:
    """Rows that train, that are held out of training to choose and calibrate, and that test."""

    train: tuple[np.ndarray, np.ndarray]
    valid: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and held-out rows, for models that hold out none or their own."""
        (X, y), (X_valid, y_valid) = self.train, self.valid
        return np.concatenate([X, X_valid]), np.concatenate([y, y_valid])


def load_split(name: str, seed: int, data: Path) -> Split:
    """One set: its customary test rows, else 30% at random; at most ``MOST_ROWS`` others.

    Strings are one-hot encoded and gaps imputed by what the training rows show.
    """
    n_train = None
    if (data / f"{name}.csv").exists():
        table = pd.read_csv(data / f"{name}.csv")
        X, labels = table.iloc[:, :-1], table.iloc[:, -1]
        n_train = 15_000 if name == "adult" else None
    elif (data / f"{name}.dat").exists():
        table = pd.read_csv(data / f"{name}.dat", header=None, skipinitialspace=True, comment="@")
        X, labels = table.iloc[:, :-1].to_numpy(float), table.iloc[:, -1]
    else:
        stored = np.load(data / f"{name}.npz")
        X, labels = stored["X"], stored["y"]
        n_train = int(stored["n_train"]) if "n_train" in stored.files else None
    y = LabelEncoder().fit_transform(labels)
    rows = np.arange(len(y))
    if n_train is None:
        known, test = train_test_split(rows, test_size=0.3, stratify=y, random_state=seed)
    else:
        known, test = rows[:n_train], rows[n_train:]
    if len(known) > MOST_ROWS:
        known, _ = train_test_split(
            known, train_size=MOST_ROWS, stratify=y[known], random_state=seed
        )
    train, valid = train_test_split(known, test_size=HELD_OUT, stratify=y[known], random_state=seed)
    if isinstance(X, pd.DataFrame):
        numbers = make_column_selector(dtype_include="number")
        strings = make_column_selector(dtype_exclude="number")
        encode = make_column_transformer(
            (SimpleImputer(), numbers),
            (
                make_pipeline(
                    SimpleImputer(strategy="most_frequent"),
                    OneHotEncoder(handle_unknown="ignore", sparse_output=False),
                ),
                strings,
            ),
        ).fit(X.iloc[train])
        X = encode.transform(X)
    return Split(*((np.asarray(X[part], np.float64), y[part]) for part in (train, valid, test)))


# -- measures ---------------------------------------------------------------------------


def measures(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Accuracy, log loss, Brier score (summed over classes), expected calibration error.

    The last over ``BINS`` bins with equally many rows, by the largest probability of a row.
    """
    kept = probabilities.clip(SMALLEST)
    kept = kept / kept.sum(1, keepdims=True)
    rows = np.arange(len(y))
    right = kept.argmax(1) == y
    order = kept.max(1).argsort(kind="stable")
    gaps = [
        len(part) * abs(right[part].mean() - kept[part].max(1).mean())
        for part in np.array_split(order, BINS)
        if len(part)
    ]
    return {
        "accuracy": float(right.mean()),
        "log_loss": float(-np.log(kept[rows, y]).mean()),
        "brier": float(np.square(kept - np.eye(kept.shape[1])[y]).sum(1).mean()),
        "ece": float(sum(gaps) / len(y)),
    }


# -- cross-entropy ----------------------------------------------------------------------

RATES = (1e-3, 3e-3, 1e-2)


def scaled_inputs(split: Split, seed: int) -> nn.Sequential:
    """What `CFLLClassifier` does to its columns before the network sees them."""
    model = CFLLClassifier(n_iter_no_change=1, random_state=seed)
    model.fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])
    return model.backbone_[:2].float()


def perceptron(inputs: nn.Sequential, n_columns: int, n_classes: int, seed: int) -> nn.Sequential:
    """The default network of `CFLLClassifier` with an output layer."""
    torch.manual_seed(seed)
    backbone = MLPBackbone().build((n_columns,))
    return nn.Sequential(*inputs, *backbone[2:], nn.Linear(256, n_classes))


def cross_entropy_fit(
    net: nn.Module,
    split: Split,
    rate: float,
    seed: int,
    *,
    epochs: int = 100,
    patience: int = 20,
    batch_size: int = 256,
) -> float:
    """Adam on all layers, cosine schedule; the epoch of least held-out log loss is kept.

    Returns that log loss.
    """
    X, y = (torch.as_tensor(part) for part in split.train)
    torch.manual_seed(seed)  # of random flips
    loop = train(
        net, (X.float(), y), "adam", rate, batch_size, epochs, seed, loss_of=F.cross_entropy
    )

    def held_out() -> float:
        logits = torch.from_numpy(outputs(net, split.valid[0]))
        net.train()
        return float(F.cross_entropy(logits, torch.as_tensor(split.valid[1])))

    return keep_best(loop, net, held_out, patience)[0]


def outputs(net: nn.Module, X: np.ndarray) -> np.ndarray:
    """Outputs in evaluation mode."""
    net.eval()
    with torch.no_grad():
        parts = [net(part) for part in torch.as_tensor(X, dtype=torch.float32).split(1024)]
    return torch.cat(parts).double().numpy()


# -- models -----------------------------------------------------------------------------


def closed_form(split: Split, seed: int) -> dict[str, np.ndarray]:
    model = CFLLClassifier(random_state=seed)
    model.fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])
    return {"CFLL": model.predict_proba(split.test[0])}


def cross_entropy(split: Split, seed: int) -> dict[str, np.ndarray]:
    """The rate of least held-out log loss, plain and with a temperature."""
    n_classes = int(split.known[1].max()) + 1
    inputs = scaled_inputs(split, seed)
    best, chosen = np.inf, None
    for rate in RATES:
        net = perceptron(inputs, split.train[0].shape[1], n_classes, seed)
        loss = cross_entropy_fit(net, split, rate, seed)
        if loss < best:
            best, chosen = loss, net
    valid, test = outputs(chosen, split.valid[0]), outputs(chosen, split.test[0])
    # A quarter: the calibration starts at four times the scores, here at the logits.
    calibrate = fitted_logits("temperature", valid / 4, split.valid[1])
    return {
        "cross-entropy": softmax(test, axis=1),
        "cross-entropy, temperature": calibrate(test / 4),
    }


def scikit(name: str, make: Callable[[int], object]) -> Callable:
    def run(split: Split, seed: int) -> dict[str, np.ndarray]:
        return {name: make(seed).fit(*split.known).predict_proba(split.test[0])}

    return run


MODELS: dict[str, Callable[[Split, int], dict[str, np.ndarray]]] = {
    "CFLL": closed_form,
    "cross-entropy": cross_entropy,
    "MLPClassifier": scikit(
        "MLPClassifier",
        lambda seed: make_pipeline(StandardScaler(), MLPClassifier(random_state=seed)),
    ),
    "LogisticRegression": scikit(
        "LogisticRegression",
        lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
    ),
    "HistGradientBoosting": scikit(
        "HistGradientBoosting", lambda seed: HistGradientBoostingClassifier(random_state=seed)
    ),
}


def run_model(name: str, split: Split, seed: int) -> list[dict]:
    """Records of one model: several where its probabilities come in several ways."""
    start = time.perf_counter()
    found = MODELS[name](split, seed)
    seconds = time.perf_counter() - start
    return [
        {"model": way, "seconds": seconds, **measures(p, split.test[1])} for way, p in found.items()
    ]


def calibrated(split: Split, seed: int) -> list[dict]:
    """Records of every way to probabilities, from one fitted network."""
    model = CFLLClassifier(random_state=seed)
    model.fit(*split.train, X_val=split.valid[0], y_val=split.valid[1])
    ways = {"CFLLClassifier as it is": model.predict_proba(split.test[0])}
    ways |= calibrations(scores_of(model, split))
    return [{"model": way, **measures(p, split.test[1])} for way, p in ways.items()]
