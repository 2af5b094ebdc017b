"""TrainingCheckpoint: training that was cut off goes on from its last whole epoch."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from skorch.callbacks import Callback

from ._skorch import written_whole
from .callbacks import BestEpoch, EpochLoss, WeightAveraging

__all__ = ["TrainingCheckpoint"]


class TrainingCheckpoint(Callback):
    """Write the state of training to a file after each epoch, and go on from it if it is there.

    A fit that was killed is called again with the same rows and parameters: it goes on after the
    last whole epoch and gives the result of an uninterrupted one. After training the file stays,
    and the same call only solves for the last layer once more; delete the file to train anew.

    Pass it as one of the ``callbacks`` of an estimator, with a ``random_state`` that is a number.
    Among several workers the first one alone reads and writes the file.

    Parameters
    ----------
    path : str or path-like
        It is replaced once a new state is written completely.
    every : int, default=1
        Number of epochs between two states.

    Raises
    ------
    ValueError
        At fit, if the file is of another network, seed or number of epochs.

    Examples
    --------
    >>> import tempfile
    >>> from sklearn.datasets import make_friedman1
    >>> from sklearn_cfll import CFLLRegressor, TrainingCheckpoint
    >>> X, y = make_friedman1(200, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = TrainingCheckpoint(folder + "/training.pt")
    ...     model = CFLLRegressor(callbacks=[checkpoint], max_epochs=5, random_state=0).fit(X, y)
    ...     again = CFLLRegressor(callbacks=[checkpoint], max_epochs=5, random_state=0).fit(X, y)
    >>> bool((model.predict(X) == again.predict(X)).all())
    True
    """

    def __init__(self, path: Any, every: int = 1) -> None:
        self.path, self.every = path, every

    def initialize(self) -> TrainingCheckpoint:
        if self.every < 1:
            raise ValueError(f"`every` must be at least 1, got {self.every!r}.")
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        if any(isinstance(each, WeightAveraging) for _, each in net.callbacks_):
            raise ValueError(
                "TrainingCheckpoint does not keep the averages of WeightAveraging. Use one of them."
            )
        path = Path(self.path)
        found = path.read_bytes() if net.workers_.rank == 0 and path.exists() else None
        found = net.workers_.first(found)
        if found is not None:
            state = torch.load(io.BytesIO(found), map_location=net.device, weights_only=True)
            self._restore(net, state)

    def _restore(self, net: Any, state: dict[str, Any]) -> None:
        wanted = self._of(net)
        for name, value in json.loads(state["of"]).items():
            if value != wanted[name]:
                raise ValueError(
                    f"The checkpoint {str(self.path)!r} is of a fit with {name} {value}, this one "
                    f"has {wanted[name]}. Delete the file, or choose another path."
                )
        net.module_.load_state_dict(state["module"])
        if net.optimizer_ is not None:
            net.optimizer_.load_state_dict(state["optimizer"])
        rows = json.loads(state["history"])
        net.history.extend(rows)
        net.whole_epochs_ = len(net.history)
        net.resumed_ = net.max_epochs if state["ended"] else len(rows)
        for _, each in net.callbacks_:
            if isinstance(each, EpochLoss):
                each.on_train_begin(net)  # it looks for the best loss so far
            elif isinstance(each, BestEpoch):
                each.resumed = state["best"]

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        # Now all callbacks have seen the end of the epoch before.
        n_epochs = len(net.history) - 1 - net.first_epoch_
        if n_epochs > net.resumed_ and n_epochs % self.every == 0:
            self._write(net, net.history[:-1], ended=False)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        if len(net.history) - net.first_epoch_ > net.resumed_ and not net.interrupted_:
            self._write(net, net.history, ended=True)

    def _write(self, net: Any, rows: Any, *, ended: bool) -> None:
        if net.workers_.rank:
            return
        best = [each for _, each in net.callbacks_ if isinstance(each, BestEpoch)]
        state = {
            "ended": ended,
            "of": json.dumps(self._of(net)),
            "module": net.module_.state_dict(),
            "optimizer": None if net.optimizer_ is None else net.optimizer_.state_dict(),
            "history": json.dumps([dict(row, batches=[]) for row in rows], default=float),
            "best": best[0].state if best else {},
        }
        with written_whole(self.path) as beside:
            torch.save(state, beside)

    def _of(self, net: Any) -> dict[str, Any]:
        """What a state belongs to."""
        shapes = [list(each.shape) for each in net.module_.backbone.parameters()]
        return {"max_epochs": net.max_epochs, "seed": net.seed_, "shapes": shapes}
