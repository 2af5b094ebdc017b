"""Deep feature instrumental-variable regression as published, written anew.

L. Xu et al., "Learning deep features in instrumental variable regression", International
Conference on Learning Representations (2021), with the settings of its authors: networks,
penalties of 0.1 a row (the constant columns are penalised), 100 epochs of 20 first-stage steps,
20 steps of the confounders' network and one second-stage step, each on all rows; half of the rows
to each stage, Adam at 1e-3, data in their own units.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

PENALTY = 0.1
EPOCHS, FIRST_STEPS, CONFOUNDER_STEPS = 100, 20, 20


def demand_networks(n_treatments: int, n_instruments: int, n_confounders: int):
    """Theirs for the demand design, of any number of columns."""
    treatment = nn.Sequential(nn.Linear(n_treatments, 16), nn.ReLU(), nn.Linear(16, 1))
    instrument = nn.Sequential(
        *(nn.Linear(n_instruments, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()),
        *(nn.Linear(64, 32), nn.BatchNorm1d(32)),
    )
    confounder = None
    if n_confounders:
        confounder = nn.Sequential(
            *(nn.Linear(n_confounders, 128), nn.ReLU(), nn.Linear(128, 32)),
            *(nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()),
        )
    return treatment, instrument, confounder


def curve_networks(n_treatments: int, n_instruments: int, n_confounders: int):
    """Theirs for a curve of one treatment with two instruments and no confounders."""
    treatment = nn.Sequential(
        *(nn.Linear(n_treatments, 20), nn.LeakyReLU(), nn.Linear(20, 3), nn.LeakyReLU())
    )
    return treatment, nn.Sequential(nn.Linear(n_instruments, 20), nn.LeakyReLU()), None


def image_networks(n_treatments: int, n_instruments: int, n_confounders: int):
    """Theirs for images of sprites."""

    def dense(n_in: int, n_out: int) -> nn.Module:
        return spectral_norm(nn.Linear(n_in, n_out))

    treatment = nn.Sequential(
        *(dense(n_treatments, 1024), nn.ReLU(), dense(1024, 512), nn.ReLU(), nn.BatchNorm1d(512)),
        *(dense(512, 128), nn.ReLU(), dense(128, 32), nn.BatchNorm1d(32), nn.Tanh()),
    )
    instrument = nn.Sequential(
        *(dense(n_instruments, 256), nn.ReLU(), dense(256, 128), nn.ReLU(), nn.BatchNorm1d(128)),
        *(dense(128, 128), nn.ReLU(), nn.BatchNorm1d(128), dense(128, 32)),
        *(nn.BatchNorm1d(32), nn.ReLU()),
    )
    return treatment, instrument, None


def solve(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """argmin ‖targets - features w‖² + penalty ‖w‖²."""
    gram = features.T @ features + penalty * torch.eye(features.shape[1])
    return torch.linalg.solve(gram, features.T @ targets)


def loss(features: Tensor, targets: Tensor, penalty: float) -> Tensor:
    """The minimum that ``solve`` reaches.

    The weights are held: they minimise this loss, so that its gradient does not pass them.
    """
    weights = solve(features, targets, penalty).detach()
    return (targets - features @ weights).square().sum() + penalty * weights.square().sum()


def with_constant(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones(len(features), 1)], dim=1)


def dfiv(X, y, Z, C=None, seed: int = 0, networks=None):
    """Fit; returns ``predict(X, C)``. The networks follow the data where none are given."""
    torch.manual_seed(seed)
    if networks is None:
        networks = demand_networks
        if X.shape[1] > 100:
            networks = image_networks
    wide = C is not None
    treatment, instrument, confounder = networks(
        X.shape[1], Z.shape[1] + (C.shape[1] if wide else 0), C.shape[1] if wide else 0
    )
    decay = 0.1 if networks is image_networks else 0.0
    optimizers = [
        torch.optim.Adam(treatment.parameters(), weight_decay=decay),
        torch.optim.Adam(instrument.parameters(), weight_decay=decay),
    ]
    if wide:
        optimizers.append(torch.optim.Adam(confounder.parameters(), weight_decay=0.1))

    parts = train_test_split(np.arange(len(y)), train_size=0.5, random_state=seed)
    rows = torch.float32
    X1 = torch.as_tensor(X[parts[0]], dtype=rows)
    y2 = torch.as_tensor(y[parts[1], None], dtype=rows)
    joint = np.column_stack([Z, C]) if wide else Z
    Z1, Z2 = (torch.as_tensor(joint[part], dtype=rows) for part in parts)
    C2 = torch.as_tensor(C[parts[1]], dtype=rows) if wide else None
    penalty1, penalty2 = PENALTY * len(X1), PENALTY * len(y2)

    def second_features(of_treatment: Tensor, of_confounder: Tensor | None) -> Tensor:
        features = with_constant(of_treatment)
        if of_confounder is not None:
            products = features[:, :, None] * with_constant(of_confounder)[:, None, :]
            features = products.flatten(1)
        return features

    def train_only(net: nn.Module | None) -> None:
        for other in (treatment, instrument, confounder):
            if other is not None:
                other.train(other is net)

    def step(optimizer, value: Tensor) -> None:
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    def predicted(features1: Tensor, features2: Tensor, psi: Tensor) -> Tensor:
        return features2 @ solve(features1, psi, penalty1)

    @torch.no_grad()
    def instrument_features() -> tuple[Tensor, Tensor]:
        instrument.eval()
        return with_constant(instrument(Z1)), with_constant(instrument(Z2))

    for _ in range(EPOCHS):
        train_only(instrument)
        with torch.no_grad():
            psi = treatment(X1)
        for _ in range(FIRST_STEPS):
            step(optimizers[1], loss(with_constant(instrument(Z1)), psi, penalty1))
        phi1, phi2 = instrument_features()
        if wide:
            train_only(confounder)
            with torch.no_grad():
                held = predicted(phi1, phi2, treatment(X1))
            for _ in range(CONFOUNDER_STEPS):
                features = second_features(held, confounder(C2))
                step(optimizers[2], loss(features, y2, penalty2))
        train_only(treatment)
        with torch.no_grad():
            xi = confounder(C2) if wide else None
        features = second_features(predicted(phi1, phi2, treatment(X1)), xi)
        step(optimizers[0], loss(features, y2, penalty2))

    train_only(None)
    with torch.no_grad():
        phi1, phi2 = instrument_features()
        xi = confounder(C2) if wide else None
        weights = solve(second_features(predicted(phi1, phi2, treatment(X1)), xi), y2, penalty2)

    @torch.no_grad()
    def predict(X, C) -> np.ndarray:
        xi = confounder(torch.as_tensor(C, dtype=rows)) if wide else None
        features = second_features(treatment(torch.as_tensor(X, dtype=rows)), xi)
        return (features @ weights)[:, 0].numpy()

    return predict
