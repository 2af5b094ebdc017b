"""A last layer that is not told its sizes takes them from its first rows."""

import pytest
import torch

from sklearn_cfll import ClosedFormLastLayer, EnsembleLastLayer


@pytest.mark.parametrize("known", [{}, {"in_features": 5}, {"out_features": 2}])
def test_layer_without_sizes_takes_them_from_its_first_rows(known):
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    targets = features[:, :2] + 1.0
    lazy, sized = ClosedFormLastLayer(**known, ridge=0.1), ClosedFormLastLayer(5, 2, ridge=0.1)
    assert torch.equal(lazy.update(features, targets), sized.update(features, targets))
    assert (lazy.in_features, lazy.out_features) == (5, 2)
    with pytest.raises(ValueError, match="must have 5 columns"):
        lazy.update(features[:, :4], targets)


def test_rows_that_do_not_match_leave_the_sizes_open():
    features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    layer = ClosedFormLastLayer()
    with pytest.raises(ValueError, match=r"must have shape \(30, 1\).*unsqueeze"):
        layer.update(features, features[:, 0])
    assert layer.in_features is None
    with pytest.raises(ValueError, match="multiple of `n_members`, got 5 and 2"):
        EnsembleLastLayer(n_members=2).step(features, features)
