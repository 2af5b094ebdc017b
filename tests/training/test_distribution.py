"""Several workers: what cannot be fitted together says so before it starts."""

import pytest
import torch.distributed
from joblib import Parallel, delayed

from helpers import friedman, small
from sklearn_cfll import CFLLIVRegressor, CFLLNet, CFLLRegressor
from sklearn_cfll.training import alone


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)


def test_what_is_not_served_with_several_workers_raises(two_workers):
    X, y = friedman(60)
    net = CFLLNet(torch.nn.Linear(6, 8), verbose=0)
    for fit in (CFLLIVRegressor().fit, net.fit, small(CFLLRegressor).partial_fit):
        with pytest.raises(RuntimeError, match="does not train on several workers yet"):
            fit(X.astype("float32"), y.astype("float32"))


def test_a_fit_may_be_alone_among_several_workers(two_workers):
    X, y = friedman(60)
    with alone():
        small(CFLLRegressor, max_epochs=1).fit(X, y)
    Parallel(n_jobs=2, backend="threading")(
        delayed(small(CFLLRegressor, max_epochs=1).fit)(X, y) for _ in range(1)
    )
