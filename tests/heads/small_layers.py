"""Layers of one member and of three, for the tests of this folder."""

import pytest

from sklearn_cfll import ClosedFormLastLayer, EnsembleLastLayer

D, K = 6, 2
members = pytest.mark.parametrize("members", [1, 3])


def make_layer(members, width=D, **options):
    if members == 1:
        return ClosedFormLastLayer(width, K, **options)
    return EnsembleLastLayer(members * width, K, n_members=members, **options)
