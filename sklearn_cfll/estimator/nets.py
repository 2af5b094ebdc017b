"""Nets of a fit: new ones, and those that a state describes."""

from __future__ import annotations

import contextlib
from typing import Any

from skorch.history import History
from torch import nn

from ..columns.scaling import RobustStandardize, Standardize
from ..columns.statistics import input_statistics
from ..training.batches import RowsDataset
from ..training.net import CFLLNet
from ..training.optimizers import OPTIMIZERS, optimizer_class, optimizer_options
from .fitted import FittedModel, head_of
from .network import Network
from .packing import map_arrays, map_tensors
from .plan import Plan, prediction_batch
from .unusable_features import warn_of_equal_features

__all__ = ["new_net", "pack_net", "standardise", "standardise_inside", "unpack_net"]


def new_net(plan: Plan, optimizer: Any, compile: bool, memory: Any) -> CFLLNet:
    """A net around the plan's network, initialised."""
    network, kind = plan.network, optimizer_class(optimizer)
    last_layer, of_head = head_of(network, plan.layout.n_targets)
    options = {f"optimizer__{k}": v for k, v in optimizer_options(kind, network.module).items()}
    options |= {f"last_layer__{k}": v for k, v in of_head.items()}
    net = CFLLNet(
        network.module,
        optimizer=kind,
        last_layer=last_layer,
        last_layer__memory=memory,
        **options,
        device=str(network.device),
        compile=compile,
        autocast=plan.autocast,
        random_state=network.seed,
        iterator_valid__batch_size=prediction_batch(network),
        verbose=0,
    )
    return net.initialize()


def standardise_inside(network: Network, net: CFLLNet, train: RowsDataset) -> None:
    """Standardise inputs inside a user's network by the training rows.

    Without an encoding of the columns, warn if the network cannot tell rows apart.
    """
    standardise(network.backbone.module, train)
    if network.columns is None:
        with contextlib.suppress(IndexError):  # index out of range: training raises it
            warn_of_equal_features(net, train)


def standardise(module: nn.Module, train: RowsDataset) -> None:
    for part in module.modules():
        if isinstance(part, RobustStandardize):
            part.fit(train.inputs, train.sample_weight)
        elif isinstance(part, Standardize):
            part.adapt_to(*input_statistics(train.inputs, train.sample_weight))


def pack_net(net: CFLLNet) -> dict[str, Any]:
    """What a net has besides its module: the optimiser and the history."""
    optimizer = None if net.optimizer_ is None else net.optimizer_.state_dict()
    if optimizer is not None and not optimizer["state"]:
        optimizer = None  # no step yet, so nothing to keep
    names = {kind: name for name, kind in OPTIMIZERS.items()}
    return {
        "optimizer": map_tensors(optimizer),
        "optimizer_class": names.get(net.optimizer, net.optimizer),
        "compile": bool(net.compile),
        "history": [dict(row, batches=[]) for row in net.history],
    }


def unpack_net(model: FittedModel, packed: dict[str, Any]) -> CFLLNet:
    """A net that trains a fitted model on, from the result of :func:`pack_net`."""
    head = model.head
    net = new_net(model.plan, packed["optimizer_class"], packed["compile"], head.memory)
    net.module_.last_layer = head
    model.module = net.module_
    net.history_ = History(packed["history"])
    if packed["optimizer"] is not None and net.optimizer_ is not None:
        net.optimizer_.load_state_dict(map_arrays(packed["optimizer"]))
    return net
