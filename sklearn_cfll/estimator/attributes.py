"""Fitted attributes and methods that read the fitted model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..training.net import CFLLNet
from ..training.torch_settings import default_modes
from .exported import export, write_onnx
from .fitted import FittedModel
from .known_rows import KnownRows
from .left_out import honest
from .nets import pack_net, unpack_net
from .packing import map_tensors, versions
from .state import StateMixin
from .state_checks import check_optimizer, check_packed, try_out

__all__ = ["FittedAttributes"]


class FittedAttributes(StateMixin):
    """Mixin of attributes that only a fitted estimator has."""

    _model: FittedModel
    _net: CFLLNet
    _training: dict[str, Any]  # of a loaded model, until its net is built

    _code_parameters = ("backbone", "optimizer")

    @property
    def net_(self) -> CFLLNet:
        """The skorch net; that of a loaded model is built when it is needed to train on."""
        return self._own_net

    @property
    def _own_net(self) -> CFLLNet:
        model = self._fitted("net_")
        if "_net" not in self.__dict__:
            # Built before anything is dropped: an interrupt leaves what a pickle needs.
            self._net = unpack_net(model, self._training)
            self.__dict__.pop("_training", None)
        return self._net

    @property
    def backbone_(self) -> nn.Module:
        """The trained backbone, with the encoding of the columns."""
        return self._fitted("backbone_").module.backbone

    @property
    def device_(self) -> torch.device:
        """Where the model computes."""
        return self._fitted("device_").plan.network.device

    @property
    def n_outputs_(self) -> int:
        """Number of targets per sample or position."""
        return self._fitted("n_outputs_").plan.layout.n_targets

    @property
    def final_ridge_(self) -> float:
        """Ridge of the final solve."""
        return self._fitted("final_ridge_").final_ridge

    @property
    def decay_(self) -> float:
        """Decay used in training."""
        return float(self._fitted("decay_").head.decay)

    @property
    def noise_variance_(self) -> np.ndarray:
        """Mean squared residual; shape (k,)."""
        return self._fitted("noise_variance_").noise_variance

    @property
    def last_layer_coef_(self) -> np.ndarray:
        """Weights of the last layer in y's units; shape (k, d).

        Predictions are ``features(X) @ last_layer_coef_.T + last_layer_intercept_``, plus the local
        part if there is one (``resolved_["local_part"]``).
        """
        return self._fitted("last_layer_coef_").coef()

    @property
    def last_layer_intercept_(self) -> np.ndarray:
        """Intercept of the last layer in y's units; shape (k,)."""
        return self._fitted("last_layer_intercept_").intercept()

    @property
    def feature_importances_(self) -> np.ndarray:
        """Influence of each column on the predictions; shape (p,), summing to one.

        It is the variance of the predictions along all that the network sees of the column (number,
        bins, indicators), to first order: for a number, the mean squared slope times the variance.
        What a column adds to a score is measured by
        :func:`sklearn.inspection.permutation_importance`.
        """
        squares = self._fitted("feature_importances_").influences
        if squares is None:
            raise AttributeError(
                f"This {type(self).__name__} has no `feature_importances_`: they are slopes along "
                "the columns of a table, and require X of shape (n_samples, n_features) and a "
                "backbone that is differentiable with respect to X."
            )
        total = squares.sum()
        if not total > 0:  # a constant prediction
            return np.full(len(squares), 1.0 / len(squares))
        importances: np.ndarray = squares / total
        return importances

    @property
    def columns_(self: Any) -> dict[Any, str]:
        """How each column of the table is used, in words, by its name or index."""
        plan = self._fitted("columns_").plan
        if plan.network.columns is None:
            raise AttributeError(
                f"This {type(self).__name__} has no `columns_`: the columns of its inputs are not "
                "encoded. Pass `columns`=ColumnEncoder()."
            )
        if plan.reader is None:
            names = getattr(self, "feature_names_in_", range(self.n_features_in_))
            return dict.fromkeys(names, "number")
        found: dict[Any, str] = plan.reader.described()
        return found

    @property
    def oof_score_(self) -> float:
        """The score to be expected of new rows."""
        return honest(self, "oof_score_")[1]

    def features(self: Any, X: Any) -> np.ndarray:
        """Compute the features: the output of the backbone and input of the last layer.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ..., d)
            With a linear part, the standardised columns of X are appended.
        """
        with self._rows_to_predict(X) as rows:
            return self._model.features(rows).to(self._model.plan.network.dtype).numpy()

    def encode(self: Any, X: Any) -> np.ndarray:
        """Numbers that the network takes for the rows of X, as arrays for :meth:`to_torch`.

        Of a table whose columns are encoded, gaps are filled and marked, and categories, integers
        whose values are names among them, have become indicators or mean targets; nothing is
        scaled. Other inputs are returned as they are taken.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)

        Returns
        -------
        ndarray of shape (n_samples, ...), or dict of them for named inputs
        """
        with self._rows_to_predict(X) as rows:
            return map_tensors(rows.X)

    @default_modes()
    def to_torch(self: Any, output: str = "prediction") -> nn.Module:
        """Export a plain module that maps numbers to predictions.

        It takes what :meth:`encode` makes of X: X itself, unless a table has gaps, categories or
        integers whose values are names.
        The module includes the scaling of inputs and targets. If the last layer was split off a
        network, it is put back with the fitted weights (a 1 × 1 convolution stays one). The module
        is on the CPU, in evaluation mode and independent of the estimator.

        Parameters
        ----------
        output : {"prediction", "probabilities", "mean_std"}, default="prediction"
            What the module returns. "prediction": predictions (n, ..., k); for a classifier, its
            decision values. It ends in an ``nn.Linear``, unless there is a local part.
            "probabilities": those of
            ``predict_proba``. "mean_std": predictions and standard deviations of new observations,
            two tensors of shape (n, k), as ``predict(X, return_std=True)`` returns them.

        Returns
        -------
        torch.nn.Module
            Named inputs are keyword arguments, and integer inputs of embeddings are
            ``torch.int64``.

        Raises
        ------
        ValueError
            If the estimator does not have this output.
        """
        check_is_fitted(self)
        return export(self, output)

    @default_modes()
    def to_onnx(self: Any, file: Any, X: Any, output: str = "prediction") -> None:
        """Write the module of :meth:`to_torch` as an ONNX file, which takes any number of rows.

        Requires ``pip install 'sklearn-cfll[onnx]'``.

        Parameters
        ----------
        file : path-like
        X : array-like of shape (n_samples, ...)
            A few rows like those to be predicted. The input of the file is called ``X``, or has the
            names of named inputs; it takes what :meth:`encode` makes of such rows, in that dtype.
        output : {"prediction", "probabilities", "mean_std"}, default="prediction"
            As in :meth:`to_torch`. The outputs of the file are called ``prediction``,
            ``probabilities``, or ``prediction`` and ``std``.

        Raises
        ------
        ImportError
            If ``onnx`` or ``onnxscript`` is missing.
        ValueError
            If the estimator does not have this output.
        """
        check_is_fitted(self)
        write_onnx(export(self, output), file, self.encode(X), output)

    # -- state ----------------------------------------------------------------------

    def _pack(self, state: dict[str, Any]) -> dict[str, Any]:
        model, known_rows = state.pop("_model"), state.pop("_known_rows")
        training, net = state.pop("_training", None), state.pop("_net", None)
        packed = {
            **versions(),
            "device": str(model.plan.network.device),
            "seed": model.plan.network.seed,
            "model": model.pack(),
            "training": pack_net(net) if training is None else training,
            "known_rows": known_rows.pack(),
        }
        return {**state, "_packed": packed}

    @classmethod
    def _unpack(cls, packed: dict[str, Any], device: torch.device) -> dict[str, Any]:
        return {
            "_model": FittedModel.unpack(packed["model"], device),
            "_training": packed["training"],
            "_known_rows": KnownRows.unpack(packed["known_rows"]),
        }

    @classmethod
    def _code_in(cls, packed: dict[str, Any]) -> list[tuple[dict[str, Any], str, str]]:
        return [
            (packed["model"]["network"], "recipe", "backbone"),
            (packed["model"]["parameters"], "backbone", "backbone"),
            (packed["training"], "optimizer_class", "optimizer"),
        ]

    @classmethod
    def _check_file(cls, state: dict[str, Any]) -> None:
        check_packed(cls, state)
        packed = state["_packed"]
        packed["training"]["compile"] = False
        if state["optimizer"] is None:  # set after fit, to code that was not passed again
            state["optimizer"] = packed["training"]["optimizer_class"]
        state["callbacks"] = None

    def _check_loaded(self, packed: dict[str, Any]) -> None:
        if packed["training"]["optimizer"] is not None:
            check_optimizer(self._own_net.optimizer_)
        try_out(self)
