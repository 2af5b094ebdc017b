"""skorch callbacks of our own: lines and a bar of progress, scikit-learn's callbacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch.callbacks import Callback, PrintLog
from tqdm.auto import tqdm

__all__ = ["EpochBar", "EpochLog", "TaskBridge"]


class EpochBar(Callback):
    """One tqdm bar over all epochs, with losses and learning rate."""

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.bar_ = tqdm(total=net.max_epochs, unit="epoch")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        row = net.history[-1]
        shown = {"train": f"{row['train_loss']:.4g}"}
        if "valid_loss" in row:
            shown["valid"] = f"{row['valid_loss']:.4g}"
        shown["rate"] = f"{row['learning_rate']:.2g}"
        self.bar_.set_postfix(shown, refresh=False)
        self.bar_.update()

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        self.bar_.close()
        del self.bar_


class EpochLog(PrintLog):
    """skorch's line an epoch, made only where it is shown."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose or self.sink is not print:
            super().on_epoch_end(net, **kwargs)


class TaskBridge(Callback):
    """Report each epoch as a task to scikit-learn's callbacks (scikit-learn ≥ 1.9).

    Parameters
    ----------
    estimator : estimator
        The one that is being fitted.
    context : sklearn.callback.CallbackContext
        Its root task.
    X, y
        What it is fitted on.
    fitted_attributes : callable
        Gives the attributes of the estimator as if training had stopped here.
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
