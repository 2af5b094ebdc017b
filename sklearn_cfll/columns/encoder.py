"""ColumnEncoder: the recipe of what a network sees of a table's columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from .._compat import Interval, Options
from .._validation import check_parameters
from .bins import PiecewiseLinear
from .expansion import Expansion, Levels, NumberRows
from .indicators import Indicators
from .normal_scores import NormalScores
from .protocol import Encoder, take_sizes
from .rows import Rows
from .scaling import RobustStandardize, Standardize

__all__ = ["ENCODERS", "ColumnEncoder", "Encoded", "EncodedColumns"]


# Indicators per category from which on they are looked up in the first layer's weights: with fewer,
# products take less time (two cores, eight members).
LOOKED_UP = 32
TAKES = "takes_scale"  # attribute of networks whose forward takes the scale of each input too


class ColumnEncoder(BaseEstimator):
    """Recipe of what a network sees of a table's columns.

    Pass one as ``columns`` of an estimator, to change an encoding of the default network, to search
    over its parameters, or to put the encoding before a network of your own. Categories become
    indicators, gaps are filled and marked, and numbers are standardised by robust statistics; the
    parameters below add to that.

    An estimator fits the encoding to all rows that are passed to ``fit``, those that are held out
    included (but not ``X_val``). ``importance``, ``target_means`` and ``values_as_levels`` also use
    the targets: ``importance`` those of the training rows only, the others those of rows outside
    the fold of each row.

    Parameters
    ----------
    n_bins : int, default=16
        Number of bins per column of a piecewise linear encoding, beside the standardised column:
        they let a network turn sharply along a column. In
        :class:`~sklearn_cfll.backbones.MLPBackbone`, a share of the units of each layer
        (``bins_share``: half, or a quarter by default in CFLLClassifier) form a separate network on
        the bins. A column with few distinct values (up to four times as many as bins, with 16 rows
        each on average) is cut at every value, so that category codes may be in any order. 0 leaves
        the bins out.
    quantiles : bool, default=False
        Whether to replace columns whose interquartile range is small relative to their 5-95% range
        (lognormal columns, counts that are mostly zero) by their normal scores, a quantile
        transform. Bins also resolve the values of such columns.
    importance : bool, default=True
        Whether to multiply each column by how much predictions vary along it. Two short runs on
        halves of the rows, whose networks are discarded, and an additive model of all columns
        estimate that. Uninformative columns then have less influence, and columns that neither
        finds are switched off. Members that hold out folds have factors of their own, from rows
        outside their folds. This requires held-out rows, at least 75 training rows and two columns.
    target_means : bool, default=True
        Whether a category becomes numbers if more than a tenth of the rows have none of its 255
        most frequent levels. The numbers are the mean targets of each level (for up to 32 classes,
        the means of their indicators), shrunk towards the mean of all rows, more so for levels with
        few rows. In the fit, a row gets the mean of rows outside its fold, one of five; a new row
        gets that of all rows. Streams have no such means.
    values_as_levels : bool, default=True
        Whether a column of integers is a category as well, beside the number, if its values are
        names, such as the number of a shop or a postal code. They are if their mean targets, from
        rows outside the fold of each row, explain 2% of what a piecewise linear function of the
        number leaves. Only tables in memory have such columns, arrays or frames: not streams, data
        sets, memory maps or sparse matrices.

    Examples
    --------
    >>> from sklearn_cfll import CFLLRegressor, ColumnEncoder
    >>> model = CFLLRegressor(columns=ColumnEncoder(n_bins=8))
    >>> model.set_params(columns__n_bins=32).columns
    ColumnEncoder(n_bins=32)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "n_bins": [Options(Integral, {0}), Interval(Integral, 2, None, closed="left")],
        "quantiles": ["boolean"],
        "importance": ["boolean"],
        "target_means": ["boolean"],
        "values_as_levels": ["boolean"],
    }

    def __init__(
        self,
        n_bins: int = 16,
        quantiles: bool = False,
        importance: bool = True,
        target_means: bool = True,
        values_as_levels: bool = True,
    ) -> None:
        self.n_bins = n_bins
        self.quantiles = quantiles
        self.importance = importance
        self.target_means = target_means
        self.values_as_levels = values_as_levels

    def build(self) -> EncodedColumns:
        """A new module, which has to be fitted."""
        check_parameters(self)
        encoders = [make(self) for make in ENCODERS.values()]
        return EncodedColumns([each for each in encoders if each is not None], self.importance)


# What is made of a table's columns, side by side in this order. None leaves an encoder out: a new
# line should do so unless a parameter of ColumnEncoder asks for it, because every model whose
# encodings change can no longer be loaded.
ENCODERS: dict[str, Callable[[ColumnEncoder], Encoder | None]] = {
    "numbers": lambda encoder: NormalScores() if encoder.quantiles else RobustStandardize(),
    "bins": lambda encoder: PiecewiseLinear(encoder.n_bins) if encoder.n_bins else None,
}


class EncodedColumns(nn.Module):
    """The outputs of several encoders side by side, each times the scale of its column.

    Its inputs are those of :class:`~sklearn_cfll.columns.expansion.Expansion`: numbers, which each
    encoder sees, and indicators, which stand beside the outputs of each, so that every block of a
    network sees them. The indicators of a column are centred, and together vary as much as a
    standardised number.

    Scales are one until :meth:`scale_columns` sets them. Columns with large scales influence a
    network early in training, columns with small scales late. Members of an ensemble may have
    scales of their own, and then rows of their own: outputs have the shape (m, n, ...).

    Parameters
    ----------
    encoders : list of Encoder
    importance : bool
        Whether columns have scales.
    """

    column_scale: Tensor | None

    def __init__(self, encoders: list[Encoder], importance: bool) -> None:
        super().__init__()
        self.expansion = Expansion()
        self.encoders: Any = nn.ModuleList(encoders)  # type: ignore[arg-type]
        self.importance = importance
        self.register_buffer("column_scale", torch.ones(0) if importance else None)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of outputs of each encoder that has any, and of the indicators beside them."""
        widths = [each.n_outputs for each in self._encoders]
        return tuple(n + len(self.expansion.share) for n in widths or [0])

    @property
    def column(self) -> Tensor:
        """Index of the table's column that each output comes from."""
        expansion = self.expansion
        indicators = expansion.column[expansion.n_numbers :]
        found = [torch.cat([expansion.column[e.column], indicators]) for e in self._encoders]
        return torch.cat(found or [indicators])

    @property
    def _encoders(self) -> list[Any]:
        """The encoders that have outputs."""
        return [each for each in self.encoders if each.n_outputs]

    def fit(
        self,
        rows: Rows,
        sample_weight: Tensor | None = None,
        levels: Sequence[Levels] | None = None,
    ) -> None:
        """Fit the expansion and all encoders to the same coded rows."""
        self.expansion.fit(rows, sample_weight, levels)
        if self.expansion.n_numbers:
            numbers = NumberRows(rows, self.expansion.numbers)
            for encoder in self.encoders:
                encoder.fit(numbers, sample_weight)
        if self.column_scale is not None:
            self.column_scale = self.column_scale.new_ones(sum(self.widths))

    def scale_columns(self, scales: Tensor) -> None:
        """Set the scale of every column of the table; shape (p,), or (m, p) for m members."""
        assert self.column_scale is not None
        found = scales[..., self.column].to(self.column_scale)
        self.column_scale = found if found.ndim == 1 else found.unsqueeze(1)

    def encode(self, rows: Tensor) -> Tensor:
        """Outputs without scales, for expanded rows (n, q) or (m, n, q)."""
        if rows.ndim > 2:
            encoded = self.encode(rows.flatten(0, -2))
            return encoded.reshape(*rows.shape[:-1], -1)
        rows = rows.float() if rows.dtype == torch.bool else rows
        n, share = self.expansion.n_numbers, self.expansion.share
        numbers = rows[:, :n] if len(share) else rows
        parts = [encoder(numbers) for encoder in self._encoders]
        if len(share):
            found = self.expansion.standardised(rows[:, n:]).to(self.expansion.like.dtype)
            parts = [each for part in parts for each in (part, found)] or [found]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @property
    def looks_up(self) -> bool:
        """Whether indicators are so many that looking them up is faster than products."""
        n_ones = len(self.expansion.gaps) + len(self.expansion.categories)
        return len(self.expansion.share) > LOOKED_UP * max(1, n_ones)

    def looked_up(self, rows: Tensor) -> tuple[Tensor, Tensor, Indicators]:
        """Outputs of the encoders, the scales of all outputs, and the indicators of rows (n, q)."""
        n, dtype = self.expansion.n_numbers, self.expansion.like.dtype
        parts = [encoder(rows[:, :n]) for encoder in self._encoders]
        found = torch.cat(parts or [rows[:, :0].to(dtype)], 1)
        scale = found.new_ones(sum(self.widths)) if self.column_scale is None else self.column_scale
        given = (rows[:, n:], self.expansion.share, self.expansion.spread)
        indicators = Indicators.of(*(each.to(dtype) for each in given))
        return found, scale if scale.ndim > 1 else scale[None, None], indicators

    def forward(self, rows: Tensor, scaled: bool = True) -> Tensor:
        encoded = self.encode(rows)
        return encoded if self.column_scale is None or not scaled else encoded * self.column_scale

    def standardised(self, rows: Tensor) -> Tensor:
        """Standardised numbers and indicators (n, q) of expanded rows.

        The first encoder has to be a :class:`~sklearn_cfll.columns.scaling.Standardize`.
        """
        n, expansion = self.expansion.n_numbers, self.expansion
        assert isinstance(self.encoders[0], Standardize)
        found = [self.encoders[0](rows[:, :n]), expansion.standardised(rows[:, n:])]
        return torch.cat(found, 1).to(expansion.like.dtype)

    def units(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`standardised`, and the change of an input per unit of each."""
        spread, numbers = self.expansion.spread.to(rows), rows[:, : self.expansion.n_numbers]
        unit = [self.encoders[0].unit(numbers), spread.expand(len(rows), -1)]
        return self.standardised(rows), torch.cat(unit, 1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        take_sizes(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Encoded(nn.Module):
    """A network behind the encoding of a table's columns.

    Scales that members have of their own go to the weights of a network that ``takes_scale``, as a
    second argument: it has far fewer weights than m times a batch has entries.
    """

    def __init__(self, columns: EncodedColumns, network: nn.Module) -> None:
        super().__init__()
        self.columns, self.network = columns, network

    def forward(self, rows: Tensor) -> Any:
        scale = self.columns.column_scale
        if self._looks_up(rows):
            return self.network(*self.columns.looked_up(rows))
        if rows.ndim > 2 or scale is None or scale.ndim < 3 or not hasattr(self.network, TAKES):
            return self.network(self.columns(rows))
        return self.network(self.columns(rows, scaled=False), scale)

    def _looks_up(self, rows: Tensor) -> bool:
        """Whether the indicators of these rows are looked up: in training, on a CPU.

        Modules that are used elsewhere may be traced, exported or derived in any way, for all of
        which products are made. A compiled module has no numbers of ones that depend on the rows,
        and a GPU would have to wait for them.
        """
        plain = rows.ndim == 2 and rows.device.type == "cpu" and not rows.requires_grad
        trained = plain and self.training and not torch.compiler.is_compiling()
        return trained and hasattr(self.network, TAKES) and self.columns.looks_up
