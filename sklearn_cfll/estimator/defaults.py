"""Options that mean something only next to the data or the machine, resolved before work."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ..training.schedules import SCHEDULES
from ..training.torch_settings import callers_threads

__all__ = [
    "HELD_OUT_FROM",
    "LINEAR_PART_BELOW",
    "auto_weight_decay",
    "draw_seed",
    "lowest_ridge",
    "n_held_out",
    "resolve_batch_size",
    "resolve_device",
    "resolve_dtype",
    "resolve_learning_rate",
    "resolve_max_epochs",
    "resolve_n_threads",
    "resolve_ridge",
    "resolve_schedule",
]

# Below this many rows none are held out by default: ten say too little about when to stop, and
# a random split would make weights differ from repetitions on tiny sets.
HELD_OUT_FROM = 40
# Networks for fewer rows are trained on what a ridge regression leaves over: alone they were
# farther off than it on more of the small sets; from about 800 rows on it gained nothing
# (benchmarks/small_data.py).
LINEAR_PART_BELOW = 600
LOWEST_OF_FEW = 5e-4  # of the ridges tried leaves 0.001 and more
# Of a thousand rows a tenth are enough to stop by; of a hundred ten are not.
ENOUGH_HELD_OUT = 40
# In the middle of 0.001 to 0.1, the best of six decades on six tasks (benchmarks/full_batch.py).
FULL_BATCH_RIDGE = 0.01

# Weights that no gradient moves end a run at exp(-3) of themselves; a third and three times as
# much decay were not better (benchmarks/defaults.py).
LOG_SHRINKAGE = 3.0
SHORT_RUN = 100  # steps, below which a run shrinks them by less

# Multiply-adds of a product that several threads are worth. They share it and wait for each other,
# spinning. Where other processes held both cores, two threads took 2 to 9 times as long as one for
# products of 1e8 and less, and 7 to 31 times in default fits, whose products have 2e7 at most; 1.1
# times for 1e9, 0.8 for 9e9 and 1.1 in a convolutional network with 5e9 (benchmarks/threads.py). On
# idle cores they would gain 1.06 in a default fit of 400 rows, 1.2 to 1.3 at 3,000 and 1.35 to 1.5
# at 20,000.
WORTH_THREADS = 2e9

# Of 0.003, 0.01 and 0.03 the largest had the least validation error on five of six tasks
# (benchmarks/tuned.py).
RATE = 0.02
# For fields: found on simulations with Fourier neural operators under AdamW (benchmarks/fields.py).
# Mean relative error of one seed after 20 epochs at this rate in batches of 10, 20, 40 and 256
# samples: .0114, .0153, .0220 and .0442. After 40 epochs in batches of 10: a cosine .0074, one
# cycle .0060. One cycle at 0.02 gave .0042, but wide operators were stopped early at it (.0048 on
# the guide's example, .0006 at 0.01). 60 epochs of a cosine: .0055, in half as much time again.
FIELD_RATE, FIELD_EPOCHS, FIELD_BATCH = 0.01, 40, 10
FIELD_SCHEDULE = "one_cycle"
FIELD_RIDGE = 0.1  # benchmarks/field_ridge.py

# Batches of many rows are what a closed-form last layer is good at: of more than 2,000 rows an
# eighth is as good as 256 and takes less time (benchmarks/defaults.py). Beyond 1,024 a step's
# time grows as its rows do.
BATCHES_AN_EPOCH = 8
LEAST_BATCH, LARGEST_BATCH = 256, 1024

# Up to this many rows weights equal repetitions to 1e-7, as scikit-learn's checks ask; on more
# rows float64 would cost noticeable time.
FLOAT64_ROWS = 300
FLOAT64_TARGETS = 2**15  # fields: each point is a row of the work


def resolve_device(device: Any) -> torch.device:
    """The torch device meant; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:  # TypeError: of another kind than a string
        reason = f": {error}" if isinstance(error, RuntimeError) else ""
        raise ValueError(
            f'`device`={device!r} is no torch device such as "cpu" or "cuda:0", nor "auto"{reason}'
        ) from error
    try:
        if resolved.type == "meta":
            raise RuntimeError("tensors there hold no numbers")
        torch.empty(0, device=resolved)
    except Exception as error:  # of many kinds: AssertionError, ImportError, RuntimeError...
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        here += ["mps"] * torch.backends.mps.is_available()
        kind = resolved.type
        name = str(resolved) if any(kind in other for other in here) else f"{kind.upper()} device"
        raise ValueError(
            f"`device`={device!r} was asked for, but torch sees no {name} that it can compute on "
            f'here, only {", ".join(here)}. Use device="auto" to take what there is, or '
            'device="cpu".'
        ) from error
    return resolved


def resolve_dtype(
    precision: str,
    y_shape: tuple[int, ...],
    device: torch.device,
    coarse: bool = False,
    few: int = FLOAT64_ROWS,
) -> torch.dtype:
    """The dtype to compute in; "auto" is float64 for few rows on a CPU, else float32.

    And float64 where float32 would be too ``coarse`` for the data and the device has it.
    """
    small = y_shape[0] <= few and math.prod(y_shape) <= FLOAT64_TARGETS
    wanted = (small and device.type == "cpu") or (coarse and device.type != "mps")
    if precision == "float64" or (precision == "auto" and wanted):
        if device.type == "mps":
            raise ValueError('`precision`="float64" is not available on MPS; use "float32".')
        return torch.float64
    return torch.float32


def resolve_learning_rate(learning_rate: Any, fields: bool) -> float:
    """The backbone's rate; "auto" is 0.02, of networks on fields less."""
    if learning_rate == "auto":
        return FIELD_RATE if fields else RATE
    return float(learning_rate)


def resolve_schedule(schedule: str, fields: bool) -> str:
    """The rate's schedule; "auto" is a cosine, for fields one cycle."""
    if schedule == "auto":
        return FIELD_SCHEDULE if fields else "cosine"
    return schedule


def resolve_max_epochs(max_epochs: Any, fields: bool, on_tables: int) -> int:
    """Epochs at most; "auto" is what was found for tables (``on_tables``) or for fields."""
    if max_epochs == "auto":
        return FIELD_EPOCHS if fields else on_tables
    return int(max_epochs)


def resolve_batch_size(batch_size: Any, n_rows: int, perceptron: bool, fields: bool = False) -> int:
    """Rows a batch; "auto" is an eighth of the training rows, within 256 and 1,024.

    Ten samples of ``fields``, where each position is a row of the solve; 256 for other networks
    than perceptrons: their rows may be large, and were not measured.
    """
    if batch_size == "full":
        return n_rows
    if batch_size == "auto" and fields:
        return FIELD_BATCH
    if batch_size == "auto":
        wanted = math.ceil(n_rows / BATCHES_AN_EPOCH) if perceptron else LEAST_BATCH
        return min(max(wanted, LEAST_BATCH), LARGEST_BATCH)
    return int(batch_size)


def resolve_n_threads(n_threads: int | None, n_rows: int, product_size: float) -> int:
    """Threads that products of so many rows are worth: one, or where they are large torch's number.

    A function of the sizes alone, not of how busy the machine is: the number of threads moves the
    last bits of products.

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
    return callers_threads() if n_rows * product_size >= WORTH_THREADS else 1


def resolve_ridge(
    ridge: Any, feature_shape: tuple[int, ...], batch_size: Any, n_rows: int
) -> float:
    """The training ridge; "auto" is 0.12 · d · min(1, d/B)², 0.01 in full batches.

    30 at d = B = 256, where it beat tuned Adam on five of six tasks (benchmarks/tuned.py). With
    fewer features than rows a batch says more about the last layer, and less pull is needed:
    the best ridge follows (d/B)² (benchmarks/ridge_rules.py, benchmarks/defaults.py).
    A sample of a field gives a row for each point, far more than features: never less than 0.1
    there, which beat tuned Adam on all operator tasks; of 0.001 to 10 the smaller were the better
    on clean simulations (benchmarks/field_ridge.py). Fields with noise, which asks for more, were
    not measured.
    Fewer than 40 training rows count as a batch of 40: where none are held out weights equal
    repetitions to 1e-7, and with less ridge rounding errors would grow beyond it.
    """
    if ridge != "auto":
        return float(ridge)
    if batch_size == "full":
        return FULL_BATCH_RIDGE
    if n_rows < HELD_OUT_FROM:
        batch_size = min(batch_size, HELD_OUT_FROM)
    *grid, n_features = feature_shape
    points = math.prod(grid)
    found = 0.12 * n_features * min(1.0, n_features / (points * batch_size)) ** 2
    return found if points == 1 else max(FIELD_RIDGE, found)


def auto_weight_decay(learning_rate: float, schedule: str, n_steps: int) -> float:
    """Decoupled weight decay that shrinks by a set factor over a run, however long it is.

    AdamW multiplies weights by ``1 - rate · decay`` a step: the same decay is nothing in the few
    steps of a small set and too much in the many of a large one (Wang & Aitchison, arXiv
    2405.13698, who keep the time constant in epochs).
    """
    factor = np.mean([SCHEDULES[schedule](progress) for progress in np.linspace(0, 1, 101)])
    return float(LOG_SHRINKAGE / (learning_rate * factor * max(n_steps, SHORT_RUN)))


def lowest_ridge(n_rows: int) -> float:
    """The least ridge that held-out rows may choose for the final fit.

    The number of few rows is close to that of a network's features, where a fit that is hardly
    pulled explodes: the one to the training rows may look well, and that to all rows be far off.
    """
    return LOWEST_OF_FEW if n_rows < LINEAR_PART_BELOW else 0.0


def n_held_out(fraction: Any, n_rows: int) -> int:
    """Rows to hold out; "auto" is a tenth, of few rows 40 or a quarter, whichever is less."""
    if fraction == "auto":
        return max(round(0.1 * n_rows), min(ENOUGH_HELD_OUT, n_rows // 4))
    return max(1, round(fraction * n_rows))


def draw_seed(random_state: Any) -> int:
    """A seed from ``random_state``; None takes fresh entropy, not NumPy's global state."""
    if random_state is None:
        return int(np.random.default_rng().integers(2**31 - 1))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return int(random_state)
