"""Network: from a recipe and a table's rows to the module that gives the features."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..backbones.mlp import MLPBackbone, SideBySide
from ..backbones.products import product_size
from ..backbones.recipe import (
    build_backbone,
    cast_module,
    input_shape_of,
    kept_recipe,
    rebuild_backbone,
    takes_generator,
)
from ..backbones.splitting import Backbone, CannotTakeInputs
from ..columns.encoder import ColumnEncoder, Encoded, EncodedColumns
from ..columns.rows import ChosenRows, Rows, as_rows, from_numpy
from ..columns.scaling import Standardize
from ..columns.statistics import some_rows
from ..training.seeding import LentStream, draws_globally, own_generator
from .checks import Checked
from .inputs import integers_fit
from .packing import part_of

__all__ = ["Network"]


@dataclass
class Network:
    """The encoding of the columns and the backbone, with all that is needed to build them again.

    Attributes
    ----------
    recipe : recipe, torch.nn.Module or callable
        Source of the backbone. It is a copy, so later changes of the estimator's parameter have no
        effect.
    encoder : ColumnEncoder or None
        Recipe of the encoding of the columns.
    sample_shape : tuple of int, or dict of them
        Shape of one input, or of each named input; of a table that is encoded, that of an expanded
        row.
    seed : int
        Of the initial weights.
    device : torch.device
    dtype : torch.dtype
    columns : EncodedColumns or None
        The fitted encoding.
    backbone : Backbone
        The network behind it, or several copies side by side.
    copies : int
        Number of networks that are built from a recipe that does not build several itself.
    """

    recipe: Any
    encoder: ColumnEncoder | None
    sample_shape: Any
    seed: int
    device: torch.device
    dtype: torch.dtype
    columns: EncodedColumns | None
    backbone: Backbone
    copies: int = 1

    @classmethod
    def build(
        cls,
        recipe: Any,
        encoder: ColumnEncoder | None,
        checked: Checked,
        *,
        copies: int,
        n_outputs: int | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> Network:
        """A new network for checked rows.

        Columns are encoded by all rows, those that are held out included: no target is looked at.
        """
        recipe, encoder = kept_recipe(recipe), None if encoder is None else clone(encoder)
        sample = as_rows(checked.X, device, None, lazy=True).take(slice(0, 2))
        if len(checked.y) == 1:  # batch normalisation and the like need two rows
            sample = _twice(sample)
        shape, columns = input_shape_of(sample), None
        widths: tuple[int, ...] = ()
        if encoder is not None and _is_table(shape, recipe):
            columns = cast_module(encoder.build(), device, dtype)
            reader = checked.reader
            columns.fit(*_rows_to_encode(checked), None if reader is None else reader.levels)
            widths = columns.widths
            with torch.no_grad():
                sample = columns.expansion(sample)
                shape, sample = input_shape_of(sample), columns(sample)
        with random_numbers(recipe, seed, device) as generator:
            try:
                options = {"generator": generator, "widths": widths}
                exact = integers_fit(checked.X, dtype)
                backbone = side_by_side(
                    [
                        build_backbone(recipe, sample, dtype, n_outputs, exact=exact, **options)
                        for _ in range(copies)
                    ]
                )
            except CannotTakeInputs as error:
                if columns is None:
                    raise
                raise CannotTakeInputs(
                    f"`columns` makes {sum(widths)} numbers of the columns of X, and "
                    f"passes them to the backbone: {error} Let its first layer take its width from "
                    "the data (torch.nn.LazyLinear, or a callable of the shape), or use "
                    '`columns`="passthrough".'
                ) from error
        return cls(recipe, encoder, shape, seed, device, dtype, columns, backbone, copies)

    def with_state(self, arrays: dict[str, Tensor]) -> Network:
        """New modules like those of this description, with a state of the encoding of the columns.

        The backbone has initial weights. ``arrays`` is the state of :attr:`module`.
        """
        device, dtype, columns = self.device, self.dtype, None
        sample = blank(self.sample_shape, self.backbone.input_dtype, device)
        widths: tuple[int, ...] = ()
        if self.encoder is not None:
            columns = cast_module(self.encoder.build(), device, dtype)
            columns.load_state_dict(part_of(arrays, "columns."))
            with torch.no_grad():
                widths, sample = columns.widths, columns.encode(sample)
        with random_numbers(self.recipe, self.seed, device) as generator:
            options = {"generator": generator, "widths": widths}
            alone = self.backbone._replace(feature_shape=self.member_shape)
            backbone = side_by_side(
                [
                    rebuild_backbone(self.recipe, sample, dtype, alone, **options)
                    for _ in range(self.copies)
                ]
            )
        return replace(self, columns=columns, backbone=backbone)

    @functools.cached_property
    def module(self) -> nn.Module:
        """From inputs to features."""
        network = self.backbone.module
        return network if self.columns is None else Encoded(self.columns, network)

    @functools.cached_property
    def scales(self) -> list[Standardize]:
        """The parts that standardise the inputs."""
        return [part for part in self.module.modules() if isinstance(part, Standardize)]

    @property
    def n_numbers(self) -> int | None:
        """Number of inputs that are numbers, not indicators; None if columns are not encoded."""
        return None if self.columns is None else self.columns.expansion.n_numbers

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features; the last entry is their number."""
        return self.backbone.feature_shape

    @property
    def n_members(self) -> int:
        """Number of networks that are trained side by side, each with its own last layer."""
        return self.copies * members_of(self.recipe)

    @property
    def member_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features in one of the copies."""
        *positions, width = self.feature_shape
        return (*positions, width // self.copies)

    @property
    def is_perceptron(self) -> bool:
        """Whether the defaults tuned for perceptrons apply."""
        return isinstance(self.recipe, MLPBackbone)

    @property
    def on_fields(self) -> bool:
        """Whether features have positions, each of which is a row of the solve."""
        return len(self.feature_shape) > 1

    @functools.cached_property
    def product_size(self) -> float:
        """Multiply-adds of all products per row, from which the number of threads follows."""
        sample = blank(self.sample_shape, self.backbone.input_dtype, self.device)
        with random_numbers(self.recipe, self.seed, self.device):
            return product_size(self.module, sample)


def side_by_side(networks: list[Backbone]) -> Backbone:
    """One backbone of several alike; that of a single one is unchanged."""
    first = networks[0]
    if len(networks) == 1:
        return first
    *positions, width = first.feature_shape
    module = SideBySide(*(each.module for each in networks))
    return first._replace(module=module, feature_shape=(*positions, len(networks) * width))


def copies_of(recipe: Any, estimator: Any) -> int:
    """Number of networks to build from a recipe for the parameter ``n_members``."""
    if has_members(recipe):
        return 1
    return estimator.defaults.n_members(estimator.n_members, own=True)


def members_of(recipe: Any) -> int:
    """Number of networks that a recipe builds side by side."""
    return int(recipe.n_members) if has_members(recipe) else 1


def has_members(recipe: Any) -> bool:
    """Whether a recipe says itself how many networks it builds."""
    is_recipe = hasattr(recipe, "build") and not isinstance(recipe, nn.Module)
    return is_recipe and hasattr(recipe, "n_members")


def builds_from_generator(recipe: Any) -> bool:
    """Whether building draws no numbers from torch's global generators."""
    fixed = isinstance(recipe, nn.Module) and not draws_globally(recipe)
    return fixed or takes_generator(recipe)


def random_numbers(
    recipe: Any, seed: int, device: torch.device
) -> contextlib.AbstractContextManager[torch.Generator | None]:
    """Generator of the initial weights; torch's global generators only if necessary."""
    if builds_from_generator(recipe):
        return contextlib.nullcontext(own_generator("cpu", seed))
    return LentStream(device, seed).lent()


def blank(shape: Any, dtype: Any, device: torch.device) -> Any:
    """Two rows of zeros, for each input if there are several."""
    if isinstance(dtype, dict):
        return {name: blank(shape[name], each, device) for name, each in dtype.items()}
    return torch.zeros((), device=device, dtype=dtype).expand(2, *shape)


def _is_table(sample_shape: Any, recipe: Any) -> bool:
    """Whether samples are rows of columns; raise if not, unless the recipe does."""
    table = not isinstance(sample_shape, dict) and len(sample_shape) == 1
    if not table and not isinstance(recipe, MLPBackbone):
        raise ValueError(
            f"`columns` encodes tables, but samples of X have shape {sample_shape}. Omit it, or "
            "pass X of shape (n_samples, n_features)."
        )
    return table


def _rows_to_encode(checked: Checked) -> tuple[Rows, Tensor | None]:
    """Rows of a table and their weights, on the CPU, read only when they are needed."""
    rows: Rows = as_rows(checked.X, "cpu", torch.float64, lazy=True)
    if checked.rows is not None:
        rows = ChosenRows(rows, torch.as_tensor(checked.rows))
    repetitions = checked.repetitions
    weights = None if repetitions is None else from_numpy(repetitions)
    if isinstance(checked.X, Dataset):  # read once, and not in full if there are many rows
        some, weights = some_rows(rows, weights)
        rows = as_rows(some, "cpu", torch.float64)
    return rows, weights


def _twice(sample: Any) -> Any:
    """Repeat a single row."""
    if isinstance(sample, dict):
        return {name: _twice(part) for name, part in sample.items()}
    return sample.repeat(2, *[1] * (sample.ndim - 1))
