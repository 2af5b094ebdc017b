"""Run: the net of a fit, the values that "auto" stands for, and the record of its training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.base import is_classifier
from torch import Tensor

from ..final_solve.calibration import calibrate
from ..final_solve.offset import LinearOffset
from ..final_solve.out_of_fold import refit_crossed
from ..final_solve.refit import Refit, mean_squared_residuals, refit_last_layer
from ..heads.memory import memory_of
from ..persistence import dtype_name
from ..training.batches import RowsDataset
from ..training.callbacks import BestEpoch, EpochBar, TaskBridge
from ..training.net import CFLLNet
from ..training.optimizers import optimizer_class
from ..training.schedules import mean_factor
from ..training.streams import StreamRows
from .fitted import FittedModel
from .inputs import out_of_range
from .nets import standardise
from .network import Network
from .packing import part_of
from .plan import Plan
from .split import Parts
from .unusable_features import unusable_features

__all__ = ["Run"]


class Run:
    """One or several runs of a net with an estimator's parameters.

    Parameters
    ----------
    estimator : estimator
        Its parameters and its table of defaults are read, and nothing is set.
    plan : Plan
    net : CFLLNet
    before : dict or None
        State of the module from which the net continues; None for a new net.

    Attributes
    ----------
    history : list of dict
        Per epoch of the last run.
    best_iteration : int
        Number of the epoch that was kept, counted from the first fit.
    """

    def __init__(
        self, estimator: Any, plan: Plan, net: CFLLNet, before: dict[str, Tensor] | None = None
    ) -> None:
        self.estimator, self.plan, self.net, self.before = estimator, plan, net, before
        self.network, self.defaults = plan.network, estimator.defaults
        self.on_fields = self.network.on_fields and self.defaults.fields_differ
        self.trains = net.optimizer_ is not None
        self.stopper: BestEpoch | None = None
        self.history: list[dict[str, Any]] = []
        self.best_iteration = 0

    # -- what "auto" stands for -----------------------------------------------------

    @property
    def epochs(self) -> int:
        """Maximum number of epochs."""
        return self.defaults.max_epochs(self.estimator.max_epochs, self.on_fields)

    @property
    def rate(self) -> float:
        """Learning rate at the start of the schedule."""
        return self.defaults.rate(self.estimator.learning_rate, self.on_fields)

    @property
    def schedule(self) -> str:
        """Schedule of the learning rate."""
        return self.defaults.rate_schedule(self.estimator.learning_rate_schedule, self.on_fields)

    def batch_rows(self, n_rows: int) -> int:
        """Samples per batch."""
        perceptron, size = self.network.is_perceptron, self.estimator.batch_size
        return self.defaults.batch_size(size, n_rows, perceptron, self.on_fields)

    def n_batches(self, n_rows: int) -> int:
        """Batches per epoch."""
        return math.ceil(n_rows / self.batch_rows(n_rows))

    def ridge(self, n_rows: int) -> float:
        """Training ridge; that of one member's width."""
        *grid, width = self.network.feature_shape
        shape = (*grid, width // self.network.n_members)
        full = self.estimator.batch_size == "full"
        batch = "full" if full else self.batch_rows(n_rows)
        n_members = self.network.n_members
        return self.defaults.ridge(self.estimator.ridge, shape, batch, n_rows, n_members)

    def given_ridge(self) -> float | None:
        """The parameter ``ridge`` where it is the penalty of an exact solve itself, else None.

        It is with fixed features and full batches.
        """
        exact = not self.trains or self.estimator.batch_size == "full"
        return float(self.estimator.ridge) if exact and self.estimator.ridge != "auto" else None

    def weight_decay(self, n_steps: int | None) -> float:
        """Weight decay for ``n_steps`` steps; "auto" is 0 if their number is unknown."""
        if self.estimator.weight_decay != "auto":
            return float(self.estimator.weight_decay)
        decoupled = optimizer_class(self.estimator.optimizer) is torch.optim.AdamW
        if n_steps is None or not self.network.is_perceptron or not decoupled:
            return 0.0
        return self.defaults.weight_decay(self.rate, self.schedule, n_steps)

    def n_threads(self, n_rows: int) -> int:
        """Number of threads to train on ``n_rows`` rows."""
        at_once = min(n_rows, self.batch_rows(n_rows))
        return self.defaults.n_threads(self.estimator.n_threads, at_once, self.network.product_size)

    def configure(
        self,
        n_rows: int,
        epochs: int,
        *,
        stream: bool = False,
        share: float = 1.0,
        going_on: bool = False,
        fixed_rate: bool = False,
        solved_ridge: float | None = None,
    ) -> None:
        """Configure the net for a run of ``epochs`` epochs, independently of earlier runs.

        Parameters
        ----------
        n_rows, epochs : int
        stream : bool
            Whether the number of steps to come is unknown.
        share : float
            Fraction of the learning rate.
        going_on : bool
            Whether a finished fit is continued on a few rows: the statistics of batch
            normalisation are then kept.
        fixed_rate : bool
            Whether the learning rate stays constant.
        solved_ridge : float or None
            Ridge of the last exact solve, for a memory that holds all rows.
        """
        net, estimator, full = self.net, self.estimator, self.estimator.batch_size == "full"
        net.module_.holds_statistics = going_on
        if not self.trains:
            epochs = 1  # nothing to train
        batch_rows, ridge = self.batch_rows(n_rows), self.ridge(n_rows)
        if stream and memory_of(estimator.memory).holds_rows:
            ridge = ridge if solved_ridge is None else solved_ridge
        elif stream:
            # The ridge is meant for a full batch: fewer rows must change the last layer less.
            ridge *= max(1.0, batch_rows / n_rows)
            share *= min(1.0, n_rows / batch_rows) ** 0.5  # adaptive steps are noisier
        net.configure(
            update_order=estimator.update_order,
            lr_schedule="constant" if fixed_rate else self.schedule,
            lr=share * self.rate,
            weight_decay=self.weight_decay(None if stream else epochs * self.n_batches(n_rows)),
            max_epochs=epochs,
            batch_size=batch_rows,
            ridge=ridge,
            # A batch of all rows needs no memory: γ = 0 gives the exact minimiser.
            decay=0.0 if full and not stream else float(estimator.decay),
            memory=estimator.memory,
            solver="cholesky" if full else "auto",
            verbose=max(0, int(estimator.verbose) - 1),
        )

    # -- running --------------------------------------------------------------------

    def callbacks(
        self, parts: Parts, task: Any, given: tuple[Any, Any], as_fitted: Any,
        warm: bool = False,
    ) -> list[Any]:  # fmt: skip
        """Callbacks of the next run.

        Parameters
        ----------
        parts : Parts
        task : sklearn.callback.CallbackContext or None
        given : tuple
            X and y, which scikit-learn's callbacks receive.
        as_fitted : callable
            Returns the attributes of the estimator as if training had stopped here.
        warm : bool
            Whether the first state may be the best one.
        """
        estimator, found = self.estimator, list(self.estimator.callbacks or ())
        self.stopper = None
        if parts.valid is not None and estimator.early_stopping is not False:
            first = parts.watched(self.defaults.most_watched) if warm else None
            self.stopper = BestEpoch(estimator.n_iter_no_change, estimator.tol, first)
            found.append(("early_stopping", self.stopper))
        if estimator.verbose == 1:
            found.append(("epoch_bar", EpochBar()))
        if task is not None:
            X, y = given
            task.call_on_fit_task_begin(estimator=estimator, X=X, y=y)
            found.append(("task_bridge", TaskBridge(estimator, task, X, y, as_fitted)))
        return found

    @contextlib.contextmanager
    def explained(self, parts: Parts, X: Any) -> Iterator[None]:
        """Explain errors of a run, and record its epochs."""
        net = self.net
        try:
            yield
        except IndexError as error:
            raise out_of_range(net.module_.backbone, X) from error
        except FloatingPointError as error:
            said = None
            with contextlib.suppress(Exception):  # a callable may fail when it is called again
                net.module_.backbone.load_state_dict(self._backbone_before(parts))
                said = unusable_features(net, parts)
            if said is None:
                raise
            raise FloatingPointError(said) from error
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                "The backbone's batch normalisation needs at least two rows per batch, got a batch "
                "of a single row. Pass more rows to the first `partial_fit`, set `batch_size` to 2 "
                "or more, or use nn.LayerNorm."
            ) from error
        self.history = [_history_row(row) for row in net.history[net.first_epoch_ :]]
        self.best_iteration = net.first_epoch_ + len(self.history)
        if self.stopper is not None and hasattr(self.stopper, "best_epoch_"):
            self.best_iteration = int(self.stopper.best_epoch_)

    def _backbone_before(self, parts: Parts) -> dict[str, Tensor]:
        """State of the backbone before the run; that of a new net is built again."""
        if self.before is not None:
            return part_of(self.before, "backbone.")
        network = self.network.with_state(self.net.module_.backbone.state_dict())
        standardise(network.backbone.module, parts.before)
        return network.module.state_dict()

    @property
    def total_rate(self) -> float:
        """Sum of the learning rates of the last run's steps."""
        net = self.net
        if not self.trains:
            return 0.0
        steps = net.n_batches_ * (len(net.history) - net.first_epoch_)
        return net.lr * mean_factor(net.lr_schedule) * steps

    def solve(self, parts: Parts, rest: Parts, offset: LinearOffset | None) -> Refit:
        """Solve exactly for the last layer and estimate the noise.

        ``rest`` are the parts less the offset, to which the net was trained.
        """
        net, train, valid = self.net, parts.train, parts.valid
        most = self.defaults.most_judged
        others = rest.rows if isinstance(rest.rows, StreamRows) else None
        train = train if others is None else rest.train
        exact = self.estimator.refit_last_layer
        if parts.folds is not None:
            crossed: Any = rest  # both views are FoldRows
            lowest = self.defaults.lowest_ridge(len(parts.rows))
            solved = refit_crossed(
                net,
                crossed.rows,
                crossed.train,
                crossed.valid,
                lowest,
                offset,
                most,
                exact=exact,
                local=takes_local_part(self.estimator, self.network, parts),
                exclusive=is_classifier(self.estimator),
            )
            solved = solved if exact else solved._replace(ridge=self.ridge(len(train)))
        elif exact:
            points = math.prod(self.network.feature_shape[:-1])  # each is a row of the solve
            lowest = self.defaults.lowest_ridge(points * len(parts.rows))
            solved = refit_last_layer(
                net, train, valid, self.given_ridge(), lowest, offset, most, others
            )
        else:
            train, valid = rest.train.spread(most), rest.judged(most).valid
            noise: Tensor = mean_squared_residuals(net, train if valid is None else valid)
            calibration = None if valid is None else calibrate(net, valid, noise, None, train=train)
            ridge = self.ridge(len(train))
            solved = Refit(ridge, noise, calibration=calibration, offset=offset)
        net.agree()
        net.check_finite()
        return solved

    def _columns_said(self) -> str:
        """What a user would pass as ``columns``, with every parameter, for `resolved_`."""
        encoder = self.network.encoder
        if encoder is None or self.network.columns is None:
            return "passthrough"
        options = ", ".join(f"{name}={value}" for name, value in encoder.get_params().items())
        return f"ColumnEncoder({options})"

    def resolved(self, parts: Parts, model: FittedModel) -> dict[str, Any]:
        """Settings of the last run, with every "auto" replaced by its value."""
        net, head = self.net, self.net.module_.last_layer
        options = net.optimizer_.param_groups[0] if self.trains else {}
        return {
            "ridge": head.ridge,
            "decay": head.decay,
            "learning_rate": net.lr,
            "learning_rate_schedule": net.lr_schedule,
            "weight_decay": options.get("weight_decay", 0.0),
            "batch_size": net.batch_size,
            "max_epochs": net.max_epochs,
            "n_held_out": 0 if parts.valid is None else len(parts.valid),
            "n_folds": 0 if parts.folds is None else parts.folds.n_folds,
            "n_members": self.network.n_members,
            "linear_part": model.offset is not None,
            "local_part": model.local_part is not None,
            "columns": self._columns_said(),
            "precision": "bf16" if net.autocast else dtype_name(self.network.dtype),
            "device": str(self.network.device),
            "n_threads": self.n_threads(parts.train.n_joint),
        }


def takes_local_part(estimator: Any, network: Network, parts: Parts) -> bool:
    """Whether a smoother of the residuals may be added.

    Rows of new groups are not near those of known ones. All rows have to be in memory of one
    process, and samples without positions.
    """
    return (
        estimator.local_part
        and estimator.refit_last_layer
        and network.columns is not None
        and len(network.feature_shape) == 1
        and not parts.grouped
        and isinstance(parts.rows, RowsDataset)
        and parts.rows.own is parts.rows
    )


def _history_row(row: dict[str, Any]) -> dict[str, Any]:
    """Entries of skorch's record of an epoch that `history_` keeps."""
    return {
        "epoch": row["epoch"],
        "train_loss": row["train_loss"],
        "valid_loss": row.get("valid_loss"),
        "learning_rate": row["learning_rate"],
        "seconds": row.get("dur"),
    }
