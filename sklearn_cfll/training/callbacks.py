"""skorch callbacks: early stopping, progress, weight averaging, scikit-learn's callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from skorch.callbacks import Callback, EarlyStopping, PassthroughScoring, PrintLog
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

__all__ = ["BestEpoch", "EpochBar", "EpochLog", "EpochLoss", "TaskBridge", "WeightAveraging"]


class BestEpoch(EarlyStopping):
    """Stop if the validation loss has not improved for some epochs; restore the best epoch.

    It is skorch's ``load_best=True`` without the deep copy of the module's state at every
    improvement, which would slow down fits to few rows.

    Parameters
    ----------
    patience : int
        Epochs without improvement.
    tol : float
        Smallest decrease of the loss that counts as an improvement.
    start_on : Dataset, optional
        Validation set on which the initial state is evaluated too: if no epoch is better, that
        state is kept.
    """

    def __init__(self, patience: int, tol: float, start_on: Any = None) -> None:
        super().__init__(patience=patience, threshold=tol, threshold_mode="abs", sink=_silent)
        self.start_on = start_on
        self.resumed: dict[str, Any] | None = None  # the state of a run that is continued

    @property
    def state(self) -> dict[str, Any]:
        """The best epoch so far, and what it takes to be better."""
        return {name: value for name, value in vars(self).items() if name.endswith("_")}

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        self.best_state_: dict[str, Any] | None = None
        if self.resumed is not None:
            self.__dict__.update(self.resumed)
            self.resumed = None
        elif self.start_on is not None:
            self.best_epoch_ = len(net.history)
            self.dynamic_threshold_ = self._calc_new_threshold(net.mean_loss(self.start_on))
            self._keep_state(net)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        super().on_epoch_end(net, **kwargs)
        if self.best_epoch_ == net.history[-1, "epoch"]:
            self._keep_state(net)

    def _keep_state(self, net: Any) -> None:
        state = net.module_.state_dict()
        self.best_state_ = {name: _copied(value) for name, value in state.items()}

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if self.best_state_ is not None and self.best_epoch_ != net.history[-1, "epoch"]:
            net.module_.load_state_dict(self.best_state_)
        self.best_state_ = None


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _silent(*args: Any) -> None:
    """Discard what skorch's EarlyStopping prints."""


class EpochBar(Callback):
    """Epoch, losses and learning rate beside the bar of a net's progress."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        epoch = len(net.history) - net.first_epoch_
        shown = {"epoch": f"{epoch}/{net.max_epochs}", "train": f"{row['train_loss']:.4g}"}
        if "valid_loss" in row:
            shown["valid"] = f"{row['valid_loss']:.4g}"
        shown["rate"] = f"{row['learning_rate']:.2g}"
        net.progress.say(**shown)


class EpochLog(PrintLog):
    """skorch's line per epoch, formatted only if it is shown."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose or self.sink is not print:
            super().on_epoch_end(net, **kwargs)


class EpochLoss(PassthroughScoring):
    """Record the mean loss of an epoch without skorch's records of every batch.

    A run that continues from a loaded history starts with the best loss in it.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.initialize()
        for row in net.history:
            if self.name in row and self._is_best_score(row[self.name]):
                self.best_score_ = row[self.name]

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if not net.epoch_losses_:  # a user's own `run_single_epoch` keeps records
            super().on_epoch_end(net, **kwargs)
        elif self.name in net.epoch_losses_:
            loss = net.epoch_losses_[self.name]
            is_best = self._is_best_score(loss)
            net.history.record(self.name, loss)
            if is_best:
                self.best_score_ = loss
            if is_best is not None:
                net.history.record(f"{self.name}_best", bool(is_best))


class WeightAveraging(Callback):
    """End training with the mean of the weights after each of the last epochs.

    This helps if steps stay large, as with ``learning_rate_schedule="constant"``; a learning rate
    that falls to zero has the same effect. Early stopping restores a single epoch: set
    ``early_stopping=False``.

    Parameters
    ----------
    n_epochs : int, default=10
        Number of epochs, the last of ``max_epochs``, to average over.

    References
    ----------
    Izmailov et al., "Averaging weights leads to wider optima and better generalization",
    arXiv 1803.05407.

    Examples
    --------
    >>> from sklearn.datasets import make_friedman1
    >>> from sklearn_cfll import CFLLRegressor, WeightAveraging
    >>> X, y = make_friedman1(200, random_state=0)
    >>> model = CFLLRegressor(callbacks=[WeightAveraging(5)], early_stopping=False,
    ...                       learning_rate_schedule="constant", max_epochs=20, random_state=0)
    >>> model.fit(X, y).score(X, y) > 0.8
    True
    """

    def __init__(self, n_epochs: int = 10) -> None:
        self.n_epochs = n_epochs

    def initialize(self) -> WeightAveraging:
        if self.n_epochs < 1:
            raise ValueError(f"`n_epochs` must be at least 1, got {self.n_epochs!r}.")
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.average_: AveragedModel | None = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        epoch = len(net.history) - net.first_epoch_
        if epoch <= net.max_epochs - self.n_epochs:
            return
        if self.average_ is None:
            self.average_ = AveragedModel(net.module_, use_buffers=True)
        self.average_.update_parameters(net.module_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if self.average_ is not None:
            net.module_.load_state_dict(self.average_.module.state_dict())
        del self.average_


class TaskBridge(Callback):
    """Report each epoch as a task to scikit-learn's callbacks (scikit-learn ≥ 1.9).

    Parameters
    ----------
    estimator : estimator
        The estimator that is being fitted.
    context : sklearn.callback.CallbackContext
        Its root task.
    X, y
        The data on which it is fitted.
    fitted_attributes : callable
        Returns the attributes of the estimator as if training had stopped at this epoch.
    """

    def __init__(
        self,
        estimator: Any,
        context: Any,
        X: Any,
        y: Any,
        fitted_attributes: Callable[[], dict[str, Any]],
    ) -> None:
        self.estimator, self.context = estimator, context
        self.X, self.y = X, y
        self.fitted_attributes = fitted_attributes

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        self.task_ = self.context.subcontext(task_name="epoch")
        self.task_.call_on_fit_task_begin(estimator=self.estimator, X=self.X, y=self.y)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        stop = self.task_.call_on_fit_task_end(
            estimator=self.estimator,
            X=self.X,
            y=self.y,
            reconstruction_attributes=self.fitted_attributes,
        )
        if stop:
            raise KeyboardInterrupt  # how skorch's own callbacks end training
