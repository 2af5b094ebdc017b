"""The table of defaults: every threshold, the script that measured it, and what "auto" comes to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ..training.schedules import mean_factor
from ..training.torch_settings import callers_threads

__all__ = ["DEFAULTS", "Defaults"]


def measured(value: Any, script: str, why: str) -> Any:
    """A field of the table, the benchmark that it rests on, and what was found."""
    return field(default=value, metadata={"script": script, "why": why})


def reasoned(value: Any, why: str) -> Any:
    """A field of the table that no benchmark chose."""
    return field(default=value, metadata={"script": None, "why": why})


@dataclass(frozen=True)
class Defaults:
    """Thresholds of an estimator, and a method for each parameter that may be "auto".

    An estimator class holds its table as ``defaults``. A subclass with another one,
    ``dataclasses.replace(DEFAULTS, ...)``, is how a benchmark tries other values. Each field's
    ``metadata`` names the script that measured it and says what was found.
    """

    # -- rows held out ----------------------------------------------------------------

    held_out_from: int = reasoned(
        40,
        "Of fewer rows none are held out: ten say too little about when to stop, and a random "
        "split would make weights differ from repetitions on tiny sets.",
    )
    enough_held_out: int = reasoned(
        40,
        "Of a thousand rows a tenth are enough to stop by; of a hundred ten are not.",
    )

    # -- the linear part and the final ridge --------------------------------------------

    linear_part_below: int = measured(
        600,
        "small_data.py",
        "Networks for fewer rows are trained on the residuals of a ridge regression: alone they "
        "were worse than it on more of the small sets. From about 800 rows on it gained nothing.",
    )
    lowest_ridge_of_few: float = measured(
        5e-4,
        "small_data.py",
        "Of the ridges tried this leaves 0.001 and more. A hardly penalised fit to about as many "
        "rows as features explodes: the one to the training rows may look well, and that to all "
        "rows be wrong.",
    )

    # -- the training ridge ---------------------------------------------------------------

    ridge_per_feature: float = measured(
        0.12,
        "tuned.py",
        "The ridge is 30 at d = B = 256, where it beat tuned Adam on five of six tasks. With fewer "
        "features than rows a batch says more about the last layer, and the best ridge follows "
        "(d / B)² (ridge_rules.py, defaults.py).",
    )
    full_batch_ridge: float = measured(
        0.01,
        "full_batch.py",
        "In the middle of 0.001 to 0.1, the best decades of six.",
    )
    field_ridge: float = measured(
        0.1,
        "field_ridge.py",
        "Each point of a field is a row, far more than features. It beat tuned Adam on all "
        "operator tasks; of 0.001 to 10 the smaller ridges were better on clean simulations. "
        "Fields with noise, which asks for more, were not measured.",
    )

    # -- training ---------------------------------------------------------------------------

    epochs: int = measured(60, "defaults.py", "The error is 0.5% above that of 100 epochs.")
    learning_rate: float = measured(
        0.02, "tuned.py", "Of 0.003, 0.01 and 0.03 the largest was best on five of six tasks."
    )
    schedule: str = reasoned("cosine", "It ends at a rate of zero, as the kept epoch should.")
    field_learning_rate: float = measured(
        0.01,
        "fields.py",
        "Found with Fourier neural operators under AdamW. Mean relative error of one seed after 20 "
        "epochs in batches of 10, 20, 40 and 256 samples: .0114, .0153, .0220, .0442.",
    )
    field_epochs: int = measured(
        40,
        "fields.py",
        "In batches of 10: a cosine .0074, one cycle .0060; 60 epochs of a cosine .0055, in half "
        "as much time again.",
    )
    field_batch: int = measured(10, "fields.py", "The same comparison.")
    field_schedule: str = measured(
        "one_cycle",
        "fields.py",
        "At a rate of 0.02 it gave .0042, but wide operators were stopped early at it (.0048 on "
        "the guide's example, .0006 at 0.01).",
    )
    batches_an_epoch: int = measured(
        8,
        "defaults.py",
        "A closed-form last layer is good at large batches: of more than 2,000 rows an eighth is "
        "as good as 256 and takes less time.",
    )
    least_batch: int = measured(256, "defaults.py", "The same comparison.")
    largest_batch: int = measured(
        1024, "defaults.py", "Beyond, the time of a step grows as its rows do."
    )
    log_shrinkage: float = measured(
        3.0,
        "defaults.py",
        "Weights that no gradient moves end a run at exp(-3) of themselves; a third and three "
        "times as much decay were not better.",
    )
    short_run: int = reasoned(
        100, "Runs of fewer steps shrink such weights by less than the above."
    )

    # -- precision and threads ------------------------------------------------------------

    float64_rows: int = reasoned(
        300,
        "Up to so many rows weights equal repetitions to 1e-7, as scikit-learn's checks ask; on "
        "more rows float64 would cost noticeable time.",
    )
    float64_targets: int = reasoned(2**15, "Of fields each point counts: it is a row of the work.")
    worth_threads: float = measured(
        2e9,
        "threads.py",
        "Multiply-adds of a product that several threads are worth. They share it and spin while "
        "they wait for each other. Where other processes held both cores, two threads took 2 to 9 "
        "times as long as one for products of 1e8 and less, and 7 to 31 times in default fits, "
        "whose products have 2e7 at most; 1.1 times for 1e9, 0.8 for 9e9 and 1.1 in a "
        "convolutional network with 5e9. On idle cores they would gain 1.06 in a default fit of "
        "400 rows, 1.2 to 1.3 at 3,000 and 1.35 to 1.5 at 20,000.",
    )

    # -- what "auto" comes to -------------------------------------------------------------

    def holds_out(self, early_stopping: Any, n_rows: int) -> bool:
        """Whether rows are held out of so many; "auto" is from 40 rows on."""
        return bool(n_rows >= self.held_out_from if early_stopping == "auto" else early_stopping)

    def n_held_out(self, fraction: Any, n_rows: int) -> int:
        """Rows to hold out; "auto" is a tenth, of few rows 40 or a quarter, whichever is less."""
        if fraction == "auto":
            return max(round(0.1 * n_rows), min(self.enough_held_out, n_rows // 4))
        return max(1, round(fraction * n_rows))

    def lowest_ridge(self, n_rows: int) -> float:
        """The least ridge that held-out rows may choose for the final fit."""
        return self.lowest_ridge_of_few if n_rows < self.linear_part_below else 0.0

    def ridge(
        self, ridge: Any, feature_shape: tuple[int, ...], batch_size: Any, n_rows: int
    ) -> float:
        """The training ridge; "auto" is 0.12 · d · min(1, d/B)², 0.01 in full batches.

        Never less than 0.1 for fields. Fewer than 40 training rows count as a batch of 40: where
        none are held out weights equal repetitions to 1e-7, and with less ridge rounding errors
        would grow beyond it.
        """
        if ridge != "auto":
            return float(ridge)
        if batch_size == "full":
            return self.full_batch_ridge
        if n_rows < self.held_out_from:
            batch_size = min(batch_size, self.held_out_from)
        *grid, n_features = feature_shape
        points = math.prod(grid)
        share = min(1.0, n_features / (points * batch_size))
        found = self.ridge_per_feature * n_features * share**2
        return found if points == 1 else max(self.field_ridge, found)

    def rate(self, learning_rate: Any, fields: bool) -> float:
        """The backbone's learning rate; "auto" is 0.02, of networks on fields 0.01."""
        if learning_rate == "auto":
            return self.field_learning_rate if fields else self.learning_rate
        return float(learning_rate)

    def rate_schedule(self, schedule: str, fields: bool) -> str:
        """The rate's schedule; "auto" is a cosine, for fields one cycle."""
        if schedule == "auto":
            return self.field_schedule if fields else self.schedule
        return schedule

    def max_epochs(self, max_epochs: Any, fields: bool) -> int:
        """Epochs at most; "auto" is 60 (of the classifier 100), for fields 40."""
        if max_epochs == "auto":
            return self.field_epochs if fields else self.epochs
        return int(max_epochs)

    def batch_size(
        self, batch_size: Any, n_rows: int, perceptron: bool, fields: bool = False
    ) -> int:
        """Rows a batch; "auto" is an eighth of the training rows, within 256 and 1,024.

        Ten samples of ``fields``, where each position is a row of the solve; 256 for other networks
        than perceptrons: their rows may be large, and were not measured.
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
        """Decoupled weight decay that shrinks by a set factor over a run, however long it is.

        AdamW multiplies weights by ``1 - rate · decay`` a step: the same decay is nothing in the
        few steps of a small set and too much in the many of a large one (Wang & Aitchison, arXiv
        2405.13698, who keep the time constant in epochs).
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

        And float64 where float32 would be too ``coarse`` for the data and the device has it.
        """
        small = y_shape[0] <= self.float64_rows and math.prod(y_shape) <= self.float64_targets
        wanted = (small and device.type == "cpu") or (coarse and device.type != "mps")
        if precision == "float64" or (precision == "auto" and wanted):
            if device.type == "mps":
                raise ValueError('`precision`="float64" is not available on MPS; use "float32".')
            return torch.float64
        return torch.float32

    def n_threads(self, n_threads: int | None, n_rows: int, product_size: float) -> int:
        """Threads that products are worth: one, or where they are large torch's number.

        A function of the sizes alone, not of how busy the machine is: the number of threads moves
        the last bits of products.

        Parameters
        ----------
        n_threads : int or None
            An integer is taken as it is.
        n_rows : int
            Rows that pass the network at once.
        product_size : float
            Multiply-adds for one row of the network's products.
        """
        if n_threads is not None:
            return int(n_threads)
        return callers_threads() if n_rows * product_size >= self.worth_threads else 1


DEFAULTS = Defaults()
