"""The table of defaults: values of "auto", and the sizes of data at which they change."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from .._validation import positive_integers
from ..backbones.mlp import MLPBackbone
from ..columns.encoder import ColumnEncoder
from ..training.schedules import mean_factor
from ..training.torch_settings import callers_threads

__all__ = ["DEFAULTS", "Defaults"]


def measured(value: Any, script: str, why: str) -> Any:
    """A field whose default was measured, with the benchmark and its finding."""
    return field(default=value, metadata={"script": script, "why": why})


def reasoned(value: Any, why: str) -> Any:
    """A field whose default was not chosen by a benchmark."""
    return field(default=value, metadata={"script": None, "why": why})


@dataclass(frozen=True)
class Thresholds:
    """Values that "auto" stands for, and sizes of data at which they change.

    An estimator class holds its table as ``defaults``. To try other values, a benchmark defines a
    subclass with another table, ``dataclasses.replace(DEFAULTS, ...)``. The ``metadata`` of each
    field names the script that measured it and states what was found.
    """

    # -- rows held out ----------------------------------------------------------------

    held_out_from: int = reasoned(
        40,
        "With fewer rows none are held out for all members: ten are too few for early stopping, "
        "and with a random split weights would not be equivalent to repetitions.",
    )
    enough_held_out: int = reasoned(
        40,
        "A tenth of a thousand rows is enough for early stopping; a tenth of a hundred is not.",
    )

    # -- members and folds ------------------------------------------------------------------

    members: int = measured(
        8,
        "defaults.py",
        "On the development sets four members erred by 8.5% more, and eight by 7.4% more if they "
        "held out the same tenth of the rows.",
    )
    folds_from: int = measured(
        10,
        "small_data.py",
        "Different inputs from which members hold out folds. With 39 rows of the reported sets the "
        "test MSE was .73 of ridge regression's and at most 1.01 of it, without folds .98 and 3.4.",
    )
    cross_fit_from: int = reasoned(
        4, "Each of m members trains on a share 1 - 1/m of the rows; half of them are too few."
    )
    most_folds: int = reasoned(10, "More members share folds: a fold of a tenth is small enough.")
    most_watched: int = reasoned(
        4096,
        "Held-out rows on which each epoch is evaluated. From 40,000 rows on it costs less than a "
        "tenth of an epoch, and the mean loss of so many rows varies by 2 to 3%.",
    )

    most_judged: int = reasoned(
        2**15,
        "Held-out rows that choose the final ridge and estimate noise, calibration and scores. A "
        "share of so many rows has a standard error of at most .003.",
    )

    # -- columns ------------------------------------------------------------------------

    n_bins: int = measured(
        16,
        "defaults.py",
        "Without bins the mean error on 15 development sets was 1.40 times as large.",
    )
    bins_from: int = reasoned(0, "The regressor bins the columns of tables of any size.")
    bins_share: float = reasoned(
        0.5, "Share of the units that see bins; with fewer, wrong entries harm the regressor more."
    )
    quantiles: bool = reasoned(False, "Bins resolve the values of uneven columns too.")

    # -- the linear part and the final ridge --------------------------------------------

    linear_part_below: int = measured(
        600,
        "small_data.py",
        "With fewer rows, networks are fitted to the residuals of a ridge regression: without it "
        "they were worse than the ridge regression on more of the small data sets. From about 800 "
        "rows on it gained nothing.",
    )
    lowest_ridge_of_few: float = measured(
        5e-4,
        "small_data.py",
        "This restricts the ridges tried to 0.001 and above. A barely penalised fit to about as "
        "many rows as features is unstable: the fit to the training rows may look good while the "
        "fit to all rows is wrong.",
    )

    # -- the training ridge ---------------------------------------------------------------

    ridge_per_feature: float = measured(
        0.12,
        "tuned.py",
        "The ridge is 30 at d = B = 256, where it beat tuned Adam on five of six tasks. With fewer "
        "features than rows, a batch determines the last layer better, and the best ridge scales "
        "as (d / B)² (ridge_rules.py, defaults.py).",
    )
    ridge_per_feature_of_members: float = measured(
        0.012,
        "defaults.py",
        "The mean of several members averages out the noise that a small ridge lets in: with ten "
        "times this ridge, that of a single network, the error on the development sets was 5.8% "
        "larger; with three times it 2.3%, with a third of it 0.4%.",
    )
    full_batch_ridge: float = measured(
        0.01,
        "full_batch.py",
        "The middle of 0.001 to 0.1, the best of the six decades tried.",
    )
    field_ridge: float = measured(
        0.1,
        "field_ridge.py",
        "Each point of a field is a row, so rows far outnumber features. This value beat tuned "
        "Adam on all operator tasks; from 0.001 to 10, smaller ridges were better on clean "
        "simulations. Noisy fields, which need a larger ridge, were not measured.",
    )

    # -- training ---------------------------------------------------------------------------

    epochs: int = measured(60, "defaults.py", "With 40 epochs the error was 4.6% larger.")
    learning_rate: float = measured(
        0.02, "tuned.py", "Among 0.003, 0.01 and 0.03 the largest was best on five of six tasks."
    )
    schedule: str = reasoned("cosine", "The rate ends at zero, as suits the epoch that is kept.")
    field_learning_rate: float = measured(
        0.01,
        "fields.py",
        "Tuned with Fourier neural operators and AdamW. Mean relative error of one seed after 20 "
        "epochs with batches of 10, 20, 40 and 256 samples: .0114, .0153, .0220, .0442.",
    )
    field_epochs: int = measured(
        40,
        "fields.py",
        "Errors with batches of 10: cosine .0074, one cycle .0060; cosine over 60 epochs .0055, "
        "which takes 50% more time.",
    )
    field_batch: int = measured(10, "fields.py", "From the same comparison.")
    field_schedule: str = measured(
        "one_cycle",
        "fields.py",
        "With a rate of 0.02 its error was .0042, but training of wide operators stopped early at "
        "that rate (.0048 on the guide's example, .0006 at 0.01).",
    )
    batches_an_epoch: int = measured(
        8,
        "defaults.py",
        "A closed-form last layer works well with large batches: above 2,000 rows, an eighth of "
        "them is as good as 256 and takes less time.",
    )
    least_batch: int = measured(256, "defaults.py", "From the same comparison.")
    largest_batch: int = measured(
        1024, "defaults.py", "Above this, the time per step grows with the batch size."
    )
    log_shrinkage: float = measured(
        3.0,
        "defaults.py",
        "The decay alone would shrink the weights by exp(-3) over training; a third of it and "
        "three times as much were not better.",
    )
    short_run: int = reasoned(100, "Runs with fewer steps shrink the weights by less than that.")

    fields_differ: bool = reasoned(
        True,
        "Whether networks on fields have their own rate, schedule, epochs and batch size, which "
        "were tuned for regression only.",
    )

    # -- precision and threads ------------------------------------------------------------

    float64_rows: int = reasoned(
        300,
        "Up to this many rows, weights equal repetitions to within 1e-7, as scikit-learn's checks "
        "require; with more rows float64 would take noticeably longer.",
    )
    float64_targets: int = reasoned(2**15, "For fields, each point counts as a row.")
    worth_threads: float = measured(
        2e9,
        "threads.py",
        "Multiply-adds of a product from which several threads pay off. Threads share a product "
        "and spin while they wait for each other. When other processes occupied both cores, two "
        "threads took 2 to 9 times as long as one for products of at most 1e8, and 7 to 31 times "
        "in default fits, whose products have at most 2e7; 1.1 times for 1e9, 0.8 times for 9e9 "
        "and 1.1 times in a convolutional network with 5e9. On idle cores the speed-up would be "
        "1.06 in a default fit of 400 rows, 1.2 to 1.3 with 3,000 and 1.35 to 1.5 with 20,000.",
    )


@dataclass(frozen=True)
class Defaults(Thresholds):
    """The thresholds, and a method for each parameter that may be "auto"."""

    def column_encoder(self, columns: Any, recipe: Any, n_rows: int) -> ColumnEncoder | None:
        """The encoding of the columns; None passes them on unchanged.

        The default is that of a perceptron, and none for other networks. It has no bins if there
        are few rows, or if the perceptron has a layer of one unit, which cannot be shared by two
        networks.
        """
        if isinstance(columns, ColumnEncoder):
            return columns
        if columns == "passthrough" or not isinstance(recipe, MLPBackbone):
            return None
        narrow = 1 in (positive_integers(recipe.hidden_layer_sizes) or ())
        without = narrow or n_rows < self.bins_from
        return ColumnEncoder(0 if without else self.n_bins, self.quantiles)

    def n_members(self, n_members: Any, own: bool) -> int:
        """Number of networks; "auto" is 8 perceptrons, and one of your ``own`` backbones."""
        if n_members == "auto":
            return 1 if own else self.members
        return int(n_members)

    def holds_out(self, early_stopping: Any, n_rows: int, *, crosses: bool) -> bool:
        """Whether rows are held out; "auto" holds some out from 40 rows on, folds from 10 on."""
        if early_stopping != "auto":
            return bool(early_stopping)
        return n_rows >= self.least_rows(crosses)

    def least_rows(self, crosses: bool) -> int:
        """Number of rows from which some are held out, or all by folds."""
        return self.folds_from if crosses else self.held_out_from

    def n_held_out(self, fraction: Any, n_rows: int) -> int:
        """Rows to hold out; "auto" is a tenth, or min(40, a quarter) if that is more."""
        if fraction == "auto":
            return max(round(0.1 * n_rows), min(self.enough_held_out, n_rows // 4))
        return max(1, round(fraction * n_rows))

    def lowest_ridge(self, n_rows: int) -> float:
        """The smallest ridge that may be chosen on held-out rows for the final fit."""
        return self.lowest_ridge_of_few if n_rows < self.linear_part_below else 0.0

    def ridge(
        self,
        ridge: Any,
        feature_shape: tuple[int, ...],
        batch_size: Any,
        n_rows: int,
        n_members: int = 1,
    ) -> float:
        """The training ridge; "auto" is 0.12 · d · min(1, d/B)², 0.01 in full batches.

        For four or more members it is a tenth of that (not for the classifier), and for fields at
        least 0.1. With fewer than 40 training rows it is that of a single network and B is at most
        40: weights must equal repetitions to 1e-7, and with a smaller ridge rounding errors would
        exceed that.
        """
        if ridge != "auto":
            return float(ridge)
        if batch_size == "full":
            return self.full_batch_ridge
        per_feature = self.ridge_per_feature
        if n_rows < self.held_out_from:
            batch_size = min(batch_size, self.held_out_from)
        elif n_members >= self.cross_fit_from:
            per_feature = self.ridge_per_feature_of_members
        *grid, n_features = feature_shape
        points = math.prod(grid)
        share = min(1.0, n_features / (points * batch_size))
        found = per_feature * n_features * share**2
        return found if points == 1 else max(self.field_ridge, found)

    def rate(self, learning_rate: Any, fields: bool) -> float:
        """The backbone's learning rate; "auto" is 0.02, and 0.01 for networks on fields."""
        if learning_rate == "auto":
            return self.field_learning_rate if fields else self.learning_rate
        return float(learning_rate)

    def rate_schedule(self, schedule: str, fields: bool) -> str:
        """The learning-rate schedule; "auto" is a cosine, and one cycle for fields."""
        if schedule == "auto":
            return self.field_schedule if fields else self.schedule
        return schedule

    def max_epochs(self, max_epochs: Any, fields: bool) -> int:
        """Maximum number of epochs; "auto" is 60 (100 for the classifier), and 40 for fields."""
        if max_epochs == "auto":
            return self.field_epochs if fields else self.epochs
        return int(max_epochs)

    def batch_size(
        self, batch_size: Any, n_rows: int, perceptron: bool, fields: bool = False
    ) -> int:
        """Samples per batch; "auto" is an eighth of the training rows, from 256 to 1,024.

        It is ten samples for ``fields``, where each position is a row of the solve, and 256 for
        networks other than perceptrons: their rows may be large and were not measured.
        """
        if batch_size == "full":
            return n_rows
        if batch_size == "auto" and fields:
            return self.field_batch
        if batch_size == "auto":
            wanted = math.ceil(n_rows / self.batches_an_epoch) if perceptron else self.least_batch
            return min(max(wanted, self.least_batch), self.largest_batch)
        return int(batch_size)

    def weight_decay(self, learning_rate: float, schedule: str, n_steps: int) -> float:
        """Decoupled weight decay that shrinks weights by a fixed factor over a run of any length.

        AdamW multiplies weights by ``1 - rate · decay`` per step, so the same decay is negligible
        in the few steps on a small data set and too strong in the many steps on a large one (Wang &
        Aitchison, arXiv 2405.13698, who keep the time constant in epochs).
        """
        total = learning_rate * mean_factor(schedule) * max(n_steps, self.short_run)
        return float(self.log_shrinkage / total)

    def dtype(
        self,
        precision: str,
        y_shape: tuple[int, ...],
        device: torch.device,
        coarse: bool = False,
    ) -> torch.dtype:
        """The dtype to compute in; "auto" is float64 for few rows on a CPU, else float32.

        It is also float64 if float32 is too ``coarse`` for the data and the device supports
        float64.
        """
        small = y_shape[0] <= self.float64_rows and math.prod(y_shape) <= self.float64_targets
        wanted = (small and device.type == "cpu") or (coarse and device.type != "mps")
        if precision == "float64" or (precision == "auto" and wanted):
            if device.type == "mps":
                raise ValueError('`precision`="float64" is not available on MPS; use "float32".')
            return torch.float64
        return torch.float32

    def n_threads(self, n_threads: int | None, n_rows: int, product_size: float) -> int:
        """Number of threads: one, or torch's number if the network's products are large.

        It depends on the sizes alone and not on the load of the machine, because the number of
        threads changes the last bits of products.

        Parameters
        ----------
        n_threads : int or None
            An integer is returned unchanged.
        n_rows : int
            Rows per forward pass.
        product_size : float
            Multiply-adds of the network's products per row.
        """
        if n_threads is not None:
            return int(n_threads)
        return callers_threads() if n_rows * product_size >= self.worth_threads else 1


DEFAULTS = Defaults()
