"""FoldModels: models of several folds and epochs, which predict by their average."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..estimator.packing import map_arrays, map_tensors
from ..training.seeding import own_generator
from .diagnostics import jackknife_variance
from .stages import (
    InstrumentRows,
    Model,
    Networks,
    Offset,
    Shrinkage,
    instrument_features,
    predicted_treatment,
    projected_outcome,
    structural_design,
    structural_outcome,
    treatment_features,
)
from .two_stage import LinearMap, Scaling, ridge_fit

__all__ = ["FoldModels"]


@dataclass
class FoldModels:
    """Models by fold and record, and how they were chosen.

    Attributes
    ----------
    networks : Networks
        The modules. Their own weights are not used: each model brings its weights.
    folds : list of list of Model
        For each fold, in the order of the splits, the records that are averaged. The last
        record of each fold has a covariance.
    whole : Model or None
        Fitted to all rows, if nothing is trained by gradient descent.
    shrinkage : Shrinkage
        The most likely one. Second stages are averaged over shrinkages, weighted by held-out
        likelihood times prior: measured up to 10% better than the best one alone.
    held_out_loss : float
    history : list of dict
    best_epoch : int
    n_rows : float
        Sum of the weights of all rows.
    n_repeats : int
        Number of repeated splits into folds.
    level : float
        Ratio of the jackknife variance of the structural function to the unscaled Bayesian
        variance, both averaged over the training rows.
    """

    networks: Networks
    folds: list[list[Model]]
    whole: Model | None
    shrinkage: Shrinkage
    held_out_loss: float
    history: list[dict[str, Any]]
    best_epoch: int
    n_rows: float
    n_repeats: int
    level: float = 1.0

    @property
    def n_epochs(self) -> int:
        """Number of epochs trained; one if nothing is trained by gradient descent."""
        return max(1, self.history[-1]["epoch"])

    # -- predicting -----------------------------------------------------------------

    @torch.no_grad()
    def by_fold(self, rows: InstrumentRows) -> Tensor:
        """Structural function of each fold, averaged over its records; (repeats, folds, n, k)."""
        folds = [
            torch.cat([self._mean(fold, block) for block in rows.blocks()]) for fold in self.folds
        ]
        return torch.stack(folds).unflatten(0, (self.n_repeats, -1))

    @torch.no_grad()
    def predict(self, rows: InstrumentRows) -> Tensor:
        """The structural function; (n, k)."""
        if self.whole is None:
            return self.by_fold(rows).flatten(0, 1).mean(0)
        return torch.cat([self._mean([self.whole], block) for block in rows.blocks()])

    @torch.no_grad()
    def variance(self, rows: InstrumentRows) -> Tensor:
        """Variance of the structural function, (n,): Bayesian, scaled to the jackknife's level.

        ``(1 + (d - d̄)ᵀ(DᵀD/n + λI)⁻¹(d - d̄)) / n`` is the uncertainty of the last layer. It does
        not include the variance of the nets, which the jackknife over folds measures.
        """
        return self.level * self._shape(rows)

    @torch.no_grad()
    def paths(self, rows: InstrumentRows, n_paths: int, seed: int) -> Tensor:
        """Draws (n, n_paths) from the posterior of the last layers, over their deviation.

        Draws of other rows with the same seed are of the same functions.
        """
        rng, total, variance = own_generator("cpu", seed), torch.zeros(()), torch.zeros(())
        for *_, model in self.folds:
            assert model.covariance is not None
            values, vectors = torch.linalg.eigh(model.covariance.cpu())
            factor = vectors * values.clamp_min(0.0).sqrt()
            noise = torch.randn(len(factor) + 1, n_paths, generator=rng, dtype=factor.dtype)
            design = structural_design(self.networks, model, rows).to(model.covariance)
            parts = (design - model.mean).cpu() @ factor
            total = total + noise[0] + parts @ noise[1:]
            variance = variance + 1.0 + parts.square().sum(1)
        return total / variance.sqrt().unsqueeze(1)

    @torch.no_grad()
    def projected(self, rows: InstrumentRows) -> Tensor:
        """``E[f(X, C) | Z, C]``; (n, k)."""
        models = [fold[-1] for fold in self.folds] if self.whole is None else [self.whole]
        return torch.cat([self._mean(models, block, projected_outcome) for block in rows.blocks()])

    # -- held-out rows --------------------------------------------------------------

    @torch.no_grad()
    def held_out_treatment(self, rows: InstrumentRows, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The treatment and its prediction by first stages not fitted to the row; (n, p).

        Averages over splits and records, which makes them depend little on the random state.

        This is the raw treatment if the nets include it among its features. Otherwise it is an
        index that is comparable between folds: the part of the structural function that is
        linear in the features.
        """
        actual, predicted = self._held_out(self._treatment, rows, labels).mean(0).cpu()
        return actual, predicted

    @torch.no_grad()
    def held_out_outcome(self, rows: InstrumentRows, labels: Tensor) -> Tensor:
        """The structural function at each row by the fold that held it out; (repeats, n, k)."""

        def outcome(models: list[Model], own: InstrumentRows) -> Tensor:
            return torch.cat([self._mean(models, block) for block in own.blocks()]).unsqueeze(0)

        return self._held_out(outcome, rows, labels)[:, 0].cpu()

    def _held_out(
        self, of: Callable[[list[Model], InstrumentRows], Tensor], rows: InstrumentRows, labels: Any
    ) -> Tensor:
        """Values (·, n, k) of each row's own models, by split: (repeats, ·, n, k)."""
        n_folds = len(self.folds) // self.n_repeats
        splits = []
        for repeat, label in enumerate(labels):
            members = [(label == k).nonzero()[:, 0] for k in range(n_folds)]
            parts = [
                of(self.folds[repeat * n_folds + k], rows.take(indices))
                for k, indices in enumerate(members)
            ]
            back = torch.argsort(torch.cat(members))
            splits.append(torch.cat(parts, dim=1)[:, back])
        return torch.stack(splits)

    def _treatment(self, models: list[Model], rows: InstrumentRows) -> Tensor:
        """Treatment and its prediction, averaged over models; (2, n, p)."""
        blocks = []
        for block in rows.blocks():
            known = [
                self._columns(model, features(self.networks, model, block))
                for model in models
                for features in (treatment_features, predicted_treatment)
            ]
            blocks.append(torch.stack(known).unflatten(0, (-1, 2)).mean(0))
        return torch.cat(blocks, dim=1)

    @torch.no_grad()
    def held_out_functions(
        self, rows: InstrumentRows, labels: Tensor, values: Tensor, ridge: float
    ) -> Tensor:
        """Functions (n, d) of the rows, predicted from the instrument features of other folds.

        Their ridge fit to the rows of the other folds is averaged over first stages; the result has
        shape (repeats, n, d).
        """
        n_folds, values = len(self.folds) // self.n_repeats, values.to(rows.treatment)
        told = values.new_empty(self.n_repeats, *values.shape)
        for i, (*_, model) in enumerate(self.folds):
            repeat, k = divmod(i, n_folds)
            held = (labels[repeat] == k).to(values.device)
            features = [
                torch.cat(parts)
                for parts in zip(
                    *(instrument_features(self.networks, model, block) for block in rows.blocks()),
                    strict=True,
                )
            ]
            weight = None if rows.weight is None else rows.weight[~held]
            told[repeat, held] = torch.stack(
                [ridge_fit(phi[~held], values[~held], ridge, weight)(phi[held]) for phi in features]
            ).mean(0)
        return told

    @torch.no_grad()
    def set_level(self, rows: InstrumentRows) -> None:
        """Scale the Bayesian variance to the jackknife variance, on average over these rows."""
        jackknife = jackknife_variance(self.by_fold(rows)).mean(1)
        shape = self._shape(rows)
        weight = torch.ones_like(shape) if rows.weight is None else rows.weight.to(shape)
        self.level = float((weight @ jackknife) / (weight @ shape))

    # -- parts of these ---------------------------------------------------------------

    def _shape(self, rows: InstrumentRows) -> Tensor:
        parts = []
        for block in rows.blocks():
            quadratic: Any = 0.0
            for *_, model in self.folds:
                assert model.covariance is not None
                design = structural_design(self.networks, model, block).to(model.covariance)
                centered = design - model.mean
                quadratic = quadratic + ((centered @ model.covariance) * centered).sum(1)
            parts.append((1.0 + quadratic / len(self.folds)) / self.n_rows)
        return torch.cat(parts)

    def _mean(
        self, models: list[Model], rows: InstrumentRows, outcome_of: Any = structural_outcome
    ) -> Tensor:
        """Outcomes averaged over models; (n, k)."""
        return torch.stack([outcome_of(self.networks, model, rows) for model in models]).mean(0)

    def _columns(self, model: Model, features: Tensor) -> Tensor:
        scaling, n_raw = model.scalings["treatment"], self.networks.n_raw
        if n_raw:
            return (features * scaling.scale + scaling.mean)[:, :n_raw]
        return features.to(model.weight) @ model.weight[:, : features.shape[1]].T

    # -- packing ----------------------------------------------------------------------

    def pack(self) -> dict[str, Any]:
        """Arrays and plain data; the modules are built again by whoever unpacks."""
        packed = {each.name: getattr(self, each.name) for each in fields(self)}
        del packed["networks"]
        packed["folds"] = [[model._asdict() for model in fold] for fold in self.folds]
        packed["whole"] = None if self.whole is None else self.whole._asdict()
        return map_tensors(packed)  # type: ignore[no-any-return]

    @classmethod
    def unpack(cls, packed: dict[str, Any], networks: Networks, device: torch.device) -> FoldModels:
        """Inverse of :meth:`pack`."""
        arrays = map_arrays(packed, device)
        arrays["folds"] = [[unpack_model(model) for model in fold] for fold in arrays["folds"]]
        arrays["whole"] = None if arrays["whole"] is None else unpack_model(arrays["whole"])
        arrays["shrinkage"] = Shrinkage(*arrays["shrinkage"])
        return cls(networks, **arrays)


def unpack_model(packed: dict[str, Any]) -> Model:
    """A model from its fields, whose named tuples were packed as plain ones."""
    parts = {
        "scalings": {name: Scaling(*each) for name, each in packed["scalings"].items()},
        "first_stages": [
            (Scaling(*scaling), LinearMap(*solved)) for scaling, solved in packed["first_stages"]
        ],
        "corrections": [LinearMap(*each) for each in packed["corrections"]],
        "offset": None if packed["offset"] is None else Offset(*packed["offset"]),
    }
    return Model(**packed | parts)
