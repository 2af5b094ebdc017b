"""Steps: one epoch, one training step, one validation step, and the loss of a batch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch.dataset import get_len
from torch import Tensor, nn

from ..backbones.dropout import seed_dropout
from ..heads import ClosedFormLastLayer, EnsembleLastLayer
from ..heads.module import apply, as_tuple, match_targets, with_feature_dimension
from ..heads.rows import NotFiniteError
from .batches import fetches_by_own_code
from .errors import error_gradient, squared_error, training_error
from .feeding import Feeding
from .schedules import SCHEDULES
from .seeding import LentStream, mix_seed, own_generator
from .torch_settings import default_modes
from .update_orders import UPDATE_ORDERS, BackboneFirst, StepBatch

__all__ = ["Steps"]

OWN_HEADS = (ClosedFormLastLayer, EnsembleLastLayer)


class Steps(Feeding):
    """The part of CFLLNet that trains: what skorch calls for each epoch and each batch."""

    # Attributes of CFLLNet.
    _optimizers: list[str]
    first_epoch_: int
    n_epochs_: int
    seed_: int
    lends_: bool  # whether a step may draw from torch's global generators
    last_batch_: StepBatch | None  # the batch whose step has changed the backbone
    solved_first_: bool  # whether the last layer was solved on it before

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """One pass over the batches, which records the mean loss over their rows."""
        if iterator is None:
            return
        if training:
            # All random numbers of an epoch depend only on (seed, epoch): a run resumed from a
            # checkpoint gives the same result as an uninterrupted one.
            seed = mix_seed(self.workers_.own_seed(self.seed_), len(self.history))
            seed_dropout(self.module_, own_generator(self.device, seed))
            self.stream_ = LentStream(self.device, seed)
            self.n_batches_ = len(iterator)
            self.step_ = (len(self.history) - 1 - self.first_epoch_) * self.n_batches_
        solve_after = self._solve_after_epoch
        if fetches_by_own_code(iterator):
            iterator = self.stream_.batches(iterator)
        if self.lends_:
            lend = self.stream_.lent()
            step_fn, solve_after = lend(step_fn), lend(solve_after)
        if training and self.progress is not None:
            iterator = self.progress.over(iterator)
        self._set_training(training)
        if training:
            self._listen()
        losses: list[float] = []
        sizes: list[int] = []
        if self._records_batches():
            super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
            names = (f"{prefix}_loss", f"{prefix}_batch_size")
            losses, sizes = map(list, zip(*self.history[-1, "batches", :, names], strict=True))
        else:
            found: list[Tensor] = []
            for batch in iterator:
                loss = step_fn(batch, **fit_params)["loss"].detach()
                if loss.device.type == "cpu":
                    # Small tensors that live for an epoch would scatter over the heap between large
                    # ones that do not, and keep it from shrinking.
                    losses.append(loss.item())
                else:
                    found.append(loss)
                sizes.append(get_len(batch[0] if isinstance(batch, list | tuple) else batch))
            if found:
                losses = torch.stack(found).flatten().tolist()  # one copy from an accelerator
            # skorch's loggers and Checkpoint read the last batch of an epoch, so record one.
            if not self.history[-1]["batches"]:
                self.history.new_batch()
            self.history.record_batch(f"{prefix}_loss", losses[-1])
            self.history.record_batch(f"{prefix}_batch_size", sizes[-1])
            self.history.record(f"{prefix}_batch_count", len(sizes))
        if training:
            solve_after()
            self.history.record("learning_rate", self._current_rate())
            self.epoch_losses_ = {}
        mean_loss = self.workers_.mean([float(value) for value in losses], sizes)
        if not math.isfinite(mean_loss) and torch.device(self.device).type != "cpu":
            self._raise_diverged()  # on a CPU, the batch has raised
        self.epoch_losses_[f"{prefix}_loss"] = mean_loss

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Update both parts on one batch, in ``update_order``; raise if the loss is not finite."""
        self._follow_schedule()
        self.last_batch_ = None
        with self.naming_divergence():
            step: dict[str, Any] = super().train_step(batch, **fit_params)
            order, last = UPDATE_ORDERS[self.update_order], self.last_batch_
            if last is not None and order.update(self.module_, last, None):
                self.last_batch_ = None
        self._check_loss_of(step["loss"])
        return step

    def _step_optimizer(self, step_fn: Any) -> None:
        if self._optimizers:
            super()._step_optimizer(step_fn)
        else:  # fixed features: only the last layer is fitted
            step_fn()

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Loss and gradients of one batch; with "last_layer_first" the solve comes first."""
        inputs, targets, sample_weight = self._unpack(batch)
        if targets is None:
            raise ValueError(
                "CFLLNet needs targets to solve for its last layer, got y=None and a data set "
                "without targets."
            )
        if not self.module_.training:
            self._set_training(True)
        order, last = UPDATE_ORDERS[self.update_order], self.last_batch_
        evaluated = last is not None and last.given is batch  # by an optimiser such as LBFGS
        if last is not None and not evaluated:  # a user's own `train_step` has not done it
            order.update(self.module_, last, None)
        inputs, kwargs = self._merged(inputs, fit_params)
        features, *more = self.module_.outputs(inputs, **kwargs)
        features = features.contiguous()  # of channels first, one copy for both solve and loss
        if not evaluated:  # the last layer is fixed in further evaluations
            self.last_batch_ = last = StepBatch(batch, inputs, targets, sample_weight, kwargs)
            self.solved_first_ = order.update(self.module_, last, features)
        targets = self.module_.matched_targets(targets, features)

        def loss(prediction: Tensor, wanted: Tensor, weight: Tensor | None) -> Tensor:
            options = {} if weight is None else {"sample_weight": weight}
            y_pred = (prediction, *more) if more else prediction
            return self.get_loss(y_pred, wanted, X=inputs, training=True, **options)

        layer = self.module_.last_layer
        if self._has_own_loss() and features.requires_grad:
            rows = layer, features, targets, sample_weight
            error, prediction, gradient = error_gradient(*rows)
            features.backward(gradient)
        else:
            error, prediction = training_error(layer, features, targets, sample_weight, loss)
            if error.requires_grad:
                error.backward()
        error = self.workers_.mean_error(error, self.module_.backbone.parameters(), last)
        if layer.n_members > 1:
            error = error / layer.n_members
        prediction = prediction.detach()
        return {"loss": error, "y_pred": (prediction, *more) if more else prediction}

    def _has_own_loss(self) -> bool:
        """Whether the loss is the squared error of the last layer, and nothing is added to it."""
        criterion, layer = getattr(self, "criterion_", None), self.module_.last_layer
        plain = type(criterion) is nn.MSELoss and criterion.reduction == "mean"
        own = type(self).get_loss is Steps.get_loss and type(layer) in OWN_HEADS
        return plain and own and "get_loss" not in self.__dict__

    def _follow_schedule(self) -> None:
        if self.lr_schedule == "constant" or not self._optimizers:
            return
        factor = SCHEDULES[self.lr_schedule](self.step_ / (self.n_epochs_ * self.n_batches_))
        self.step_ += 1
        for group in self.optimizer_.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def _solve_after_epoch(self) -> None:
        """Solve again after the last step of an epoch, before the net is evaluated.

        With "last_layer_first", the last layer does not reflect that step; at large learning rates,
        errors between epochs were up to three times as large and erratic (benchmarks/operators.py).
        """
        last, self.last_batch_ = self.last_batch_, None
        if last is None or not self._optimizers:
            return
        # The moments hold the batch already; for one batch of all rows, it would cost a step more.
        if self.solved_first_ and (self.module_.last_layer.holds_rows or self.n_batches_ == 1):
            return
        with self.naming_divergence():
            BackboneFirst().update(self.module_, last, None)

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        inputs, targets, sample_weight = self._unpack(batch)
        if self.module_.training:
            self._set_training(False)
        with torch.no_grad():
            inputs, kwargs = self._merged(inputs, fit_params)
            if sample_weight is not None and sample_weight.ndim > 1:
                return self._members_step(inputs, targets, sample_weight, kwargs)
            output = apply(self.module_, inputs, **kwargs)
            first, *more = as_tuple(output)
            prediction = with_feature_dimension(first)
            targets = match_targets(targets, prediction, prediction.shape[-1])
            y_pred = (prediction, *more) if more else prediction
            options = {} if sample_weight is None else {"sample_weight": sample_weight}
            loss = self.get_loss(y_pred, targets, X=inputs, training=False, **options)
        self._check_loss_of(loss)
        return {"loss": loss, "y_pred": y_pred}

    def _members_step(
        self, inputs: Any, targets: Tensor, sample_weight: Tensor, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Validation of each member on the rows that it has weights for; see `validation_step`."""
        features, *_ = self.module_.outputs(inputs, **kwargs)
        targets, layer = self.module_.matched_targets(targets, features), self.module_.last_layer
        error, prediction = training_error(layer, features, targets, sample_weight, squared_error)
        loss = error / layer.n_members
        self._check_loss_of(loss)
        return {"loss": loss, "y_pred": prediction}

    def mean_loss(self, dataset: Any) -> float:
        """The loss on a labelled data set, computed as in the validation of an epoch."""
        losses, sizes = [], []
        for batch in self._batches(dataset):
            losses.append(float(self.validation_step(batch)["loss"]))
            sizes.append(get_len(batch[0]))
        return float(np.average(losses, weights=sizes))

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        self.check_is_fitted()
        with default_modes(), torch.set_grad_enabled(training):
            self._set_training(training)
            return apply(self.module_, self._inputs(batch))

    def get_loss(
        self,
        y_pred: Any,
        y_true: Any,
        X: Any = None,
        training: bool = False,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """Squared error by ``criterion``: the loss of the backbone.

        Parameters
        ----------
        y_pred, y_true : Tensor of shape (n, ..., k)
            Those of all members are concatenated when an ensemble is trained. ``y_pred`` is a tuple
            that starts with the predictions if the module returns a tuple.
        X : optional
            The batch's inputs.
        training : bool, default=False
        sample_weight : Tensor of shape (n,), optional
            Given only if the rows have weights.
        """
        y_pred = y_pred[0] if isinstance(y_pred, tuple) else y_pred
        y_true = y_true if isinstance(y_true, Tensor) else self._on_device(y_true)
        if sample_weight is None:
            loss: Tensor = self.criterion_(y_pred, y_true)
            return loss
        if type(self.criterion_) is not nn.MSELoss or self.criterion_.reduction != "mean":
            raise ValueError(
                f"Rows with sample weights need `criterion`=torch.nn.MSELoss with "
                f'reduction="mean", got {self.criterion_!r}. Override `get_loss`, which receives '
                "the weights."
            )
        return squared_error(y_pred, y_true, sample_weight)

    def _current_rate(self) -> float:
        optimizer = getattr(self, "optimizer_", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            return optimizer.param_groups[0]["lr"]
        return 0.0 if optimizer is None else math.nan  # NaN: not a torch optimiser

    def check_finite(self) -> None:
        """Raise if the last layer's weights are not finite."""
        if not torch.isfinite(self.module_.last_layer.weight).all():
            self._raise_diverged()

    @contextlib.contextmanager
    def naming_divergence(self) -> Iterator[None]:
        """Report features that are not finite as divergence of the backbone."""
        try:
            yield
        except NotFiniteError as error:
            if error.argument != "features":
                raise
            self._raise_diverged()

    def _check_loss_of(self, loss: Tensor) -> None:
        """Raise if the loss of a batch is not finite; an accelerator's is looked at later."""
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self._raise_diverged()

    def _raise_diverged(self) -> None:
        layer = self.module_.last_layer
        raise FloatingPointError(
            f"Training diverged in epoch {len(self.history)}: the loss is not finite. Lower "
            f"`learning_rate` (now {self.lr:g}) or raise `ridge` (now {layer.ridge:g})."
        )
